//! L1: entries in memory, read synchronously. No await, no allocation and no shared counter on a hit.
//!
//! Two engines: S3-FIFO (ours) and TinyLFU (moka). Neither knows of expiry: it is checked on every read, and
//! [`Memory::sweep`] reclaims what nobody reads any more.

mod engine;
mod limit;
mod s3_fifo;
mod tiny_lfu;
mod usage;
mod weight;

use std::time::{Duration, Instant};

use async_trait::async_trait;

pub use self::weight::ENTRY_OVERHEAD_BYTES;
use self::{
    engine::Engine,
    limit::Limit,
    usage::{Judge, Usage},
};
use crate::{
    clock::{Clock, UnixMillis},
    entry::Entry,
    layer::{Component, Health, LayerId, Observed, Stats, Verdict},
    tally::Tally,
};

/// How L1 is built. `config.rs` fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Bytes of memory for entries: each weighs its block as the allocator rounds it and [`ENTRY_OVERHEAD_BYTES`].
    pub capacity_bytes: u64,
    /// Which entries stay when memory is full.
    pub policy: Policy,
    /// How long a copy may stay without being read again from a lower layer.
    pub max_ttl: Duration,
}

/// The eviction policy. To change it, memory is opened anew, which is a restart of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// FIFO queues with lazy promotion: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
    S3Fifo,
    /// Frequency-based admission: Einziger et al., "TinyLFU: a highly efficient cache admission policy", 2017.
    TinyLfu,
}

/// L1.
pub struct Memory {
    engine: Engine,
    limit: Limit,
    tally: Tally<{ Count::ALL }>,
    judge: Judge,
    observed: Observed,
}

/// The engine can not change its capacity while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the capacity of TinyLFU is fixed when the node starts; restart the node to change it")]
pub struct FixedCapacity;

/// Positions in the tally.
enum Count {}

// === impl Memory ===

impl Memory {
    /// Empty memory.
    pub fn open(options: MemoryOptions, clock: Clock) -> Self {
        Self {
            engine: Engine::new(options),
            limit: Limit::new(options.max_ttl),
            tally: Tally::new(),
            judge: Judge::default(),
            observed: Observed::new(clock),
        }
    }

    /// The entry of `key`, if a copy is of use at `now`: live, or past its expiry and within its stale life. Whoever
    /// wants only a live one checks [`Entry::is_live`]. Counts a hit if it is live, else a miss.
    #[inline]
    pub fn get(&self, now: UnixMillis, key: &[u8]) -> Option<Entry> {
        let found = self.peek(now, key);
        match &found {
            Some(entry) if entry.is_live(now) => self.tally.add(Count::HITS, 1),
            Some(_) => {
                self.tally.add(Count::MISSES, 1);
                self.tally.add(Count::STALE, 1);
            }
            None => self.tally.add(Count::MISSES, 1),
        }
        found
    }

    /// As [`Memory::get`], for writers that look before they write: counts nothing.
    #[inline]
    pub fn peek(&self, now: UnixMillis, key: &[u8]) -> Option<Entry> {
        self.engine.get(key, |copy| self.limit.keeps(now, copy))
    }

    /// Holds `entry` in place of any older copy of its key. An entry too large for the capacity is refused and counted,
    /// and the older copy goes all the same.
    pub fn set(&self, now: UnixMillis, entry: &Entry) {
        self.tally.add(Count::WRITES, 1);
        self.count(self.engine.set(entry, self.limit.end(now)));
    }

    /// Forgets `key`.
    pub fn remove(&self, key: &[u8]) {
        self.tally.add(Count::WRITES, 1);
        self.engine.remove(key);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.engine.clear();
    }

    /// Reclaims copies that are of no more use at `now`, and those that `is_dead` says can not be served any more;
    /// answers how many of the latter. `is_dead` is called under the lock of a few hundred entries and must not use
    /// this memory. Takes a tenth of a second for a million entries, without holding any lock for long: for every few
    /// seconds, on a thread that may be busy for so long.
    pub fn sweep(&self, now: UnixMillis, is_dead: impl Fn(&Entry) -> bool) -> u64 {
        let (mut expired, mut dead) = (0, 0);
        let gone = |copy: &Entry| !self.limit.keeps(now, copy) || is_dead(copy);
        let swept = |copy: &Entry| {
            let which = if self.limit.keeps(now, copy) { &mut dead } else { &mut expired };
            *which += 1;
        };
        self.engine.sweep(&gone, swept);
        self.tally.add(Count::EXPIRED, expired);
        dead
    }

    /// Changes the capacity. A lower one holds when this returns; entries are evicted a few at a time, so that readers
    /// and writers are not kept waiting.
    ///
    /// # Errors
    /// [`FixedCapacity`], if the engine is TinyLFU and the capacity another.
    pub fn set_capacity(&self, bytes: u64) -> Result<(), FixedCapacity> {
        self.count(self.engine.set_capacity(bytes)?);
        Ok(())
    }

    /// Does the engine's postponed work, and observes health. To be called a few times a second.
    pub fn tick(&self) {
        self.tally.add(Count::EVICTIONS, self.engine.tick());
        self.observed.observe(self.verdict());
    }

    /// Entries held, expired ones included.
    pub fn entries(&self) -> u64 {
        self.engine.entries()
    }

    /// Entries given up for want of room since the node was opened.
    pub fn evictions(&self) -> u64 {
        self.tally.sum(Count::EVICTIONS)
    }

    fn count(&self, Admission { refused, evicted, evicted_unread }: Admission) {
        if refused {
            self.tally.add(Count::REFUSALS, 1);
        }
        if evicted > 0 {
            self.tally.add(Count::EVICTIONS, evicted);
            self.tally.add(Count::EVICTIONS_UNREAD, evicted_unread);
        }
    }

    /// Memory never fails; what it can be is too small.
    fn verdict(&self) -> Verdict {
        let count = |which| self.tally.sum(which);
        let usage = Usage {
            reads: count(Count::HITS) + count(Count::MISSES),
            misses: count(Count::MISSES),
            evicted: count(Count::EVICTIONS),
            evicted_unread: count(Count::EVICTIONS_UNREAD),
        };
        if self.judge.is_too_small(usage) {
            let message = "most entries are evicted before anybody reads them, and most reads miss".to_owned();
            return Verdict::degraded("TooSmall", message);
        }
        Verdict::healthy()
    }
}

#[async_trait]
impl Component for Memory {
    fn name(&self) -> &'static str {
        LayerId::Memory.label()
    }

    fn health(&self) -> Health {
        self.observed.health()
    }

    fn stats(&self) -> Stats {
        let count = |which| self.tally.sum(which);
        Stats {
            hits: count(Count::HITS),
            misses: count(Count::MISSES),
            stale_hits: count(Count::STALE),
            operations: count(Count::HITS) + count(Count::MISSES) + count(Count::WRITES),
            entries: Some(self.entries()),
            bytes: Some(self.engine.bytes()),
            capacity_bytes: Some(self.engine.capacity()),
            extras: vec![
                ("evictions", count(Count::EVICTIONS)),
                ("evictionsUnread", count(Count::EVICTIONS_UNREAD)),
                ("expired", count(Count::EXPIRED)),
                ("refusedTooLarge", count(Count::REFUSALS)),
            ],
            ..Stats::default()
        }
    }

    /// Nothing to finish.
    async fn shutdown(&self, _deadline: Instant) {}
}

// === impl Count ===

impl Count {
    const HITS: usize = 0;
    const MISSES: usize = 1;
    const WRITES: usize = 2;
    const EVICTIONS: usize = 3;
    const EVICTIONS_UNREAD: usize = 4;
    const EXPIRED: usize = 5;
    const REFUSALS: usize = 6;
    const STALE: usize = 7;
    const ALL: usize = 8;
}

/// What an engine did with a new copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Admission {
    refused: bool,
    evicted: u64,
    evicted_unread: u64,
}

#[cfg(test)]
mod tests;
