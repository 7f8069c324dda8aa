//! Histograms for hot paths: counted per thread like a [`Tally`], summed when somebody asks.

use std::time::{Duration, Instant};

use crate::tally::Tally;

/// Upper ends of the buckets, in nanoseconds: from a look into memory to the longest a request may usually take.
const ENDS_NS: [u64; 20] = [
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
];

/// What is beyond the last end.
const BEYOND: usize = ENDS_NS.len();

/// Nanoseconds in all.
const SUM_NS: usize = BEYOND + 1;

/// How long something took, again and again.
#[derive(Default)]
pub struct Histogram(Tally<{ SUM_NS + 1 }>);

/// What a histogram has counted, as Prometheus wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Upper end of each bucket in seconds, with how many took no longer.
    pub buckets: Vec<(f64, u64)>,
    /// How many in all.
    pub count: u64,
    /// Seconds in all.
    pub sum: f64,
}

// === impl Histogram ===

impl Histogram {
    /// Notes that `count` things took so long each.
    #[inline]
    pub fn observe(&self, took: Duration, count: u64) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.add(ENDS_NS.partition_point(|&end| end < took_ns), count);
        self.0.add(SUM_NS, took_ns.saturating_mul(count));
    }

    /// How long something took that ended just now.
    #[inline]
    pub fn observe_since(&self, begun: Instant, now: Instant) {
        self.observe(now.saturating_duration_since(begun), 1);
    }

    /// What was noted since the start.
    pub fn distribution(&self) -> Distribution {
        let mut count = 0;
        let mut upto = |bucket| {
            count += self.0.sum(bucket);
            count
        };
        let buckets = ENDS_NS.iter().enumerate().map(|(bucket, &end)| (end as f64 / 1e9, upto(bucket))).collect();
        let count = upto(BEYOND);
        Distribution { buckets, count, sum: self.0.sum(SUM_NS) as f64 / 1e9 }
    }
}

// === impl Distribution ===

impl Distribution {
    /// What all took on average; zero if there were none.
    pub fn mean(&self) -> Duration {
        if self.count == 0 { Duration::ZERO } else { Duration::from_secs_f64(self.sum / self.count as f64) }
    }

    /// What this share of all did not exceed, spread evenly within its bucket as Prometheus' `histogram_quantile` does;
    /// zero if there were none. Beyond the last bucket it is the end of that one.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = share * self.count as f64;
        let (mut below, mut start) = (0, 0.0);
        for &(end, upto) in &self.buckets {
            if upto > below && upto as f64 >= rank {
                let part = (rank - below as f64) / (upto - below) as f64;
                return Duration::from_secs_f64(start + (end - start) * part.max(0.0));
            }
            (below, start) = (upto, end);
        }
        if self.count == 0 { Duration::ZERO } else { Duration::from_secs_f64(start) }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Histogram").field(&self.distribution()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_counts_all_that_took_no_longer_than_its_end() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_nanos(250), 3);
        histogram.observe(Duration::from_nanos(251), 1);
        histogram.observe(Duration::from_secs(20), 1);
        let Distribution { buckets, count, sum } = histogram.distribution();
        assert_eq!(buckets[..2], [(250e-9, 3), (500e-9, 4)]);
        assert_eq!(buckets.last(), Some(&(10.0, 4)));
        assert_eq!(count, 5);
        assert!((sum - 20.000_001_001).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn a_quantile_lies_in_the_bucket_that_has_it() {
        let histogram = Histogram::default();
        assert_eq!(histogram.distribution().quantile(0.99), Duration::ZERO);
        histogram.observe(Duration::from_micros(400), 98);
        histogram.observe(Duration::from_millis(40), 2);
        let told = histogram.distribution();
        let half = told.quantile(0.5);
        assert!(half > Duration::from_micros(250) && half <= Duration::from_micros(500), "{half:?}");
        let p99 = told.quantile(0.99);
        assert!(p99 > Duration::from_millis(25) && p99 <= Duration::from_millis(50), "{p99:?}");
        assert_eq!(told.mean(), Duration::from_micros(1192));
    }

    #[test]
    fn what_is_beyond_the_last_bucket_counts_as_its_end() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_secs(60), 1);
        assert_eq!(histogram.distribution().quantile(0.99), Duration::from_secs(10));
    }
}
