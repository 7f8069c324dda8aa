//! What the queue says of itself: health, numbers, and its end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{
    NEVER_MS, WriteQueue,
    lanes::{Lane, LaneReport},
    lock,
};
use crate::{
    clock::UnixMillis,
    layer::{Component, Health, LayerId, Stats, Verdict},
    metrics::Histogram,
    sync::atomic::{AtomicU64, Ordering},
};

/// From this age of the oldest write on the queue is called degraded.
const AGE_DEGRADED: Duration = Duration::from_secs(1);

/// Having been full for this long makes the queue unavailable.
const FULL_UNAVAILABLE: Duration = Duration::from_secs(10);

// === impl WriteQueue ===

impl WriteQueue {
    /// Observes health. To be called about once a second.
    pub fn tick(&self) {
        let now_ms = self.clock.now().0;
        let refused_ago = now_ms.saturating_sub(self.counts.refused_last_ms.load(Ordering::Relaxed));
        if refused_ago > 2000 {
            self.counts.full_since_ms.store(NEVER_MS, Ordering::Relaxed);
        }
        self.observed.observe(self.verdict());
    }

    /// A read was answered with a value of the queue.
    pub fn note_hit(&self) {
        self.counts.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// So many reads found no live value here.
    pub fn note_misses(&self, reads: usize) {
        self.counts.misses.fetch_add(reads as u64, Ordering::Relaxed);
    }

    /// A read found a value past its expiry that may still be served, which is a miss as well.
    pub fn note_stale(&self) {
        self.counts.stale_hits.fetch_add(1, Ordering::Relaxed);
        self.note_misses(1);
    }

    /// Bytes of slots in use.
    pub fn bytes(&self) -> u64 {
        self.used.bytes.load(Ordering::Relaxed)
    }

    /// Slots in use: writes that some layer does not have yet.
    pub fn items(&self) -> u64 {
        self.used.items.load(Ordering::Relaxed)
    }

    /// How long ago the oldest change was accepted that some layer does not have yet, be it a removal or a clear.
    pub fn oldest_age(&self) -> Duration {
        self.lanes.iter().map(|lane| self.oldest_age_of(lane)).max().unwrap_or_default()
    }

    /// The way to each cold layer.
    pub fn lanes(&self) -> Vec<LaneReport> {
        self.lanes.iter().map(|lane| self.report(lane)).collect()
    }

    /// How long writes waited from their acceptance until each layer had them, by the value of the metric label
    /// `operation`.
    pub fn waits(&self) -> Vec<(&'static str, &Histogram)> {
        let name = |layer| if layer == LayerId::Redis { "flush_to_redis" } else { "flush_to_disk" };
        self.lanes.iter().map(|lane| (name(lane.target.id()), &lane.counts.waited)).collect()
    }

    fn report(&self, lane: &Arc<Lane>) -> LaneReport {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LaneReport {
            layer: lane.target.id(),
            items: self.shards.iter().map(|shard| lock(shard).queued(lane.place)).sum(),
            removals: self.removals(lane),
            replayed: count(&lane.counts.replayed),
            oldest_age: self.oldest_age_of(lane),
            flushed: count(&lane.counts.flushed),
            batches: count(&lane.counts.batches),
            failures: count(&lane.counts.failures),
            forgotten: count(&lane.counts.forgotten),
            clears: count(&lane.counts.clears),
            lost: count(&lane.counts.lost_at_shutdown),
            is_reachable: !lane.is_away(),
            is_trusted: self.is_trusted(lane.target.id()),
        }
    }

    /// Removals that the layer does not have.
    fn removals(&self, lane: &Lane) -> u64 {
        let keys: u64 = self.shards.iter().map(|shard| lock(shard).removals(lane.place)).sum();
        keys + lock(&lane.tagged).len() as u64 + u64::from(lane.is_void())
    }

    /// Why the layer has not got what it is owed, if it is away.
    pub fn trouble_of(&self, layer: LayerId) -> Option<String> {
        self.lanes.iter().find(|lane| lane.target.id() == layer).and_then(|lane| lane.trouble())
    }

    fn oldest_age_of(&self, lane: &Lane) -> Duration {
        let change = self.oldest_change_of(lane);
        let clear = lock(&self.clears)[lane.place].oldest_ms().map(UnixMillis);
        let oldest = [change, clear].into_iter().flatten().min();
        oldest.map_or(Duration::ZERO, |oldest| self.clock.now().since(oldest))
    }

    /// When the oldest write or removal by tag was accepted that the layer lacks. Not to be called during a turn.
    pub(super) fn oldest_change_of(&self, lane: &Lane) -> Option<UnixMillis> {
        let queued = self.shards.iter().filter_map(|shard| lock(shard).oldest_ms(lane.place)).min();
        let tagged = lock(&lane.tagged).oldest_ms();
        let applying = Some(lane.applying_since_ms()).filter(|&ms| ms != NEVER_MS);
        [queued, tagged, applying].into_iter().flatten().min().map(UnixMillis)
    }

    fn verdict(&self) -> Verdict {
        let full_since = self.counts.full_since_ms.load(Ordering::Relaxed);
        if full_since != NEVER_MS && self.clock.now().since(UnixMillis(full_since)) >= FULL_UNAVAILABLE {
            return Verdict::unavailable("QueueFull", "writes wait for room and time out".to_owned());
        }
        if let Some(trouble) = self.lanes.iter().find_map(|lane| lane.trouble()) {
            return Verdict::degraded("FlushFails", trouble);
        }
        if let Some(trouble) = lock(&self.journal_trouble).as_ref() {
            return Verdict::degraded("NoJournal", format!("a kill may bring overwritten values back: {trouble}"));
        }
        let age = self.oldest_age();
        if age > AGE_DEGRADED {
            return Verdict::degraded("QueueLags", format!("the oldest write has waited {} ms", age.as_millis()));
        }
        let percent = (self.bytes() * 100 / self.options.capacity_bytes.max(1))
            .max(self.items() * 100 / self.options.items_max.max(1));
        if percent > 80 {
            return Verdict::degraded("QueueNearlyFull", format!("{percent} % full"));
        }
        Verdict::healthy()
    }

    /// What did not make it, lane by lane: writes, removals by tag and a clear.
    fn count_lost(&self) {
        for lane in &self.lanes {
            let keys: u64 = self.shards.iter().map(|shard| lock(shard).owed(lane.place)).sum();
            let (tagged, is_void) = (lock(&lane.tagged).len() as u64, lane.is_void());
            let lost = keys + tagged + u64::from(is_void);
            lane.counts.lost_at_shutdown.store(lost, Ordering::Relaxed);
            if lost > 0 {
                let (layer, removals) = (lane.target.id(), self.removals(lane));
                tracing::warn!(%layer, lost, removals, "stopped before all queued writes had reached the layer");
            }
        }
    }
}

#[async_trait]
impl Component for WriteQueue {
    fn name(&self) -> &'static str {
        "writeQueue"
    }

    fn health(&self) -> Health {
        self.observed.health()
    }

    fn stats(&self) -> Stats {
        let sum = |counter: fn(&Lane) -> &AtomicU64| -> u64 {
            self.lanes.iter().map(|lane| counter(lane).load(Ordering::Relaxed)).sum()
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (hits, misses) = (count(&self.counts.hits), count(&self.counts.misses));
        Stats {
            hits,
            misses,
            stale_hits: count(&self.counts.stale_hits),
            operations: hits + misses + count(&self.counts.accepted),
            entries: Some(self.items()),
            bytes: Some(self.bytes()),
            capacity_bytes: Some(self.options.capacity_bytes),
            extras: vec![
                ("oldestAgeMs", u64::try_from(self.oldest_age().as_millis()).unwrap_or(u64::MAX)),
                ("flushed", sum(|lane| &lane.counts.flushed)),
                ("batches", sum(|lane| &lane.counts.batches)),
                ("flushFailures", sum(|lane| &lane.counts.failures)),
                ("queuedRemovals", self.lanes.iter().map(|lane| self.removals(lane)).sum()),
                ("replayedRemovals", sum(|lane| &lane.counts.replayed)),
                ("clears", sum(|lane| &lane.counts.clears)),
                ("refusedFull", count(&self.counts.refused_full)),
                ("droppedOverflow", count(&self.counts.dropped_values)),
                ("droppedUnreachable", sum(|lane| &lane.counts.forgotten)),
                ("droppedFills", count(&self.counts.dropped_fills)),
                ("recovered", count(&self.counts.recovered)),
                ("lostAtShutdown", sum(|lane| &lane.counts.lost_at_shutdown)),
            ],
            ..Stats::default()
        }
    }

    /// Writes everything queued. What is left at `deadline` is counted and logged.
    async fn shutdown(&self, deadline: Instant) {
        self.drain.cancel();
        self.lanes.iter().for_each(|lane| lane.wake_all());
        if tokio::time::timeout_at(deadline.into(), self.flushing.wait()).await.is_err() {
            self.give_up.cancel();
            self.flushing.wait().await;
            self.count_lost();
        }
        self.close_journal();
    }
}
