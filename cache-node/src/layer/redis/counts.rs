//! What the Redis layer has done, in numbers.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::layer::{ErrorKind, Stats};

/// Parts of each doubling of the latency that are told apart: a percentile is at most a quarter too large.
const PARTS: u32 = 4;
const BUCKETS: usize = 30 * PARTS as usize;

/// All counters of the layer.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) not_handled: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) removed: AtomicU64,
    /// Sets that Redis had no memory for; an older copy was removed instead.
    pub(super) not_written_full: AtomicU64,
    /// Reads that found an entry of before the last clear.
    pub(super) below_floor: AtomicU64,
    pub(super) reclaimed: AtomicU64,
    pub(super) shed: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) unfenced: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) errors: [AtomicU64; ErrorKind::ALL.len()],
    pub(super) latency: Latency,
}

/// How long calls took, lately.
#[derive(Default)]
pub(super) struct Latency {
    /// The span now, and the one before: figures are of between one and two spans.
    spans: [Buckets; 2],
}

#[derive(Default)]
struct Buckets([[AtomicU64; PARTS as usize]; BUCKETS / PARTS as usize]);

// === impl Counts ===

impl Counts {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn error(&self, kind: ErrorKind) -> u64 {
        self.errors[kind as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// All, with what others count: how often the breaker opened and how many calls are under way.
    pub(super) fn stats(&self, breaker_opened: u64, in_flight: u64) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let errors = ErrorKind::ALL.map(|kind| (kind, count(&self.errors[kind as usize])));
        let (hits, misses) = (count(&self.hits), count(&self.misses));
        let p99 = self.latency.percentile(99).map_or(0, |p99| p99.as_micros());
        Stats {
            hits,
            misses,
            operations: hits + misses + count(&self.written) + count(&self.removed),
            errors: errors.into_iter().filter(|(_, count)| *count > 0).collect(),
            extras: vec![
                ("written", count(&self.written)),
                ("removed", count(&self.removed)),
                ("notHandled", count(&self.not_handled)),
                ("notWrittenOutOfMemory", count(&self.not_written_full)),
                ("belowFloor", count(&self.below_floor)),
                ("reclaimed", count(&self.reclaimed)),
                ("shed", count(&self.shed)),
                ("breakerOpened", breaker_opened),
                ("reconnects", count(&self.reconnects)),
                ("reconnectsUnfenced", count(&self.unfenced)),
                ("inFlight", in_flight),
                ("latencyP99Us", u64::try_from(p99).unwrap_or(u64::MAX)),
                ("bytesRead", count(&self.bytes_read)),
                ("bytesWritten", count(&self.bytes_written)),
            ],
            ..Stats::default()
        }
    }
}

// === impl Latency ===

impl Latency {
    /// Takes note of one call.
    pub(super) fn record(&self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let doubling = micros.ilog2();
        // The bits below the highest say how far into its doubling the value is.
        let part = (((u64::from(micros) - (1 << doubling)) * u64::from(PARTS)) >> doubling) as usize;
        let row = (doubling as usize).min(self.spans[0].0.len() - 1);
        self.spans[0].0[row][part].fetch_add(1, Ordering::Relaxed);
    }

    /// Begins a new span.
    pub(super) fn turn(&self) {
        let [now, before] = &self.spans;
        for (now, before) in now.0.iter().flatten().zip(before.0.iter().flatten()) {
            before.store(now.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// What `percent` of the calls did not exceed; none without calls.
    pub(super) fn percentile(&self, percent: u64) -> Option<Duration> {
        let counts = self.counts();
        let total: u64 = counts.iter().sum();
        let mut left = (total * percent).div_ceil(100);
        let bucket = counts.iter().position(|count| {
            left = left.saturating_sub(*count);
            left == 0
        });
        if total == 0 { None } else { bucket.map(|bucket| upper_end(bucket as u32)) }
    }

    /// How many calls took longer than `limit`, and how many there were.
    pub(super) fn slower_than(&self, limit: Duration) -> (u64, u64) {
        let counts = self.counts();
        let slower = counts.iter().zip(0..).filter(|(_, bucket)| upper_end(*bucket) > limit);
        (slower.map(|(count, _)| count).sum(), counts.iter().sum())
    }

    /// Calls by bucket, of both spans.
    fn counts(&self) -> Vec<u64> {
        let [now, before] = &self.spans;
        let both = now.0.iter().flatten().zip(before.0.iter().flatten());
        both.map(|(now, before)| now.load(Ordering::Relaxed) + before.load(Ordering::Relaxed)).collect()
    }
}

fn upper_end(bucket: u32) -> Duration {
    let (doubling, part) = (bucket / PARTS, bucket % PARTS);
    Duration::from_micros(((u64::from(PARTS + part) + 1) << doubling) / u64::from(PARTS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn percentile_is_at_most_a_quarter_too_large() {
        for micros in [1, 2, 3, 7, 100, 1000, 12_345, 50_000, 999_999] {
            let latency = Latency::default();
            latency.record(us(micros));
            let p99 = latency.percentile(99).unwrap();
            assert!(p99 >= us(micros) && p99 <= us(micros + micros / 4 + 1), "{micros}: {p99:?}");
            assert_eq!(latency.slower_than(Duration::ZERO), (1, 1));
        }
    }

    #[test]
    fn two_slow_calls_of_a_hundred_show_and_one_does_not() {
        let latency = Latency::default();
        (0..98).for_each(|_| latency.record(us(100)));
        latency.record(us(100_000));
        latency.record(us(100));
        assert!(latency.percentile(99).unwrap() < us(200));
        latency.record(us(100_000));
        assert!(latency.percentile(99).unwrap() >= us(100_000));
    }

    #[test]
    fn calls_that_took_longer_are_counted() {
        let latency = Latency::default();
        [100, 20_000, 26_000, 100_000].iter().for_each(|&took| latency.record(us(took)));
        assert_eq!(latency.slower_than(us(25_000)), (2, 4));
    }

    #[test]
    fn old_calls_are_forgotten_after_two_spans() {
        let latency = Latency::default();
        latency.record(us(100_000));
        latency.turn();
        latency.record(us(100));
        assert_eq!(latency.slower_than(Duration::ZERO), (2, 2));
        latency.turn();
        assert!(latency.percentile(99).unwrap() < us(200));
        latency.turn();
        assert_eq!(latency.percentile(99), None);
    }

    #[test]
    fn the_longest_call_has_a_place() {
        let latency = Latency::default();
        latency.record(Duration::from_secs(u64::MAX));
        latency.record(Duration::ZERO);
        assert_eq!(latency.slower_than(Duration::ZERO), (2, 2));
    }
}
