//! L1: entries in memory, read synchronously. No await, no allocation and no shared counter on a hit.
//!
//! Two engines behind one enum, because the set is closed and the call is hot: S3-FIFO (quick_cache) and TinyLFU
//! (moka). Neither knows of expiry: it stands beside the entry and is checked on every read, and [`Memory::sweep`]
//! reclaims what nobody reads any more.

mod s3_fifo;
mod tiny_lfu;
mod usage;

use std::time::{Duration, Instant};

use async_trait::async_trait;

use self::{
    s3_fifo::S3Fifo,
    tiny_lfu::TinyLfu,
    usage::{Judge, Usage},
};
use crate::{
    clock::{Clock, UnixMillis},
    entry::{Entry, KEY_BYTES_MAX},
    layer::{Component, Health, LayerId, Observed, Stats, Verdict},
    tally::Tally,
};

/// What an entry takes besides its key and value: the block's header and rounding, the engine's slot, its links, its
/// place in the table and its ghosts. Measured with one million entries of 116 bytes (`cargo bench --bench memory`).
pub const ENTRY_OVERHEAD_BYTES: u64 = 112;

/// How L1 is built. `config.rs` fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Bytes of keys, values and [`ENTRY_OVERHEAD_BYTES`] each.
    pub capacity_bytes: u64,
    /// Which entries stay when memory is full.
    pub policy: Policy,
    /// How long a copy may stay without being read again from a lower layer.
    pub max_ttl: Duration,
    /// The largest value that is to be held, by which the number of shards is chosen.
    pub value_bytes_max: u64,
}

/// The eviction policy.
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
    capacity_bytes: u64,
    max_ttl_ms: u64,
    tally: Tally<{ Count::ALL }>,
    judge: Judge,
    observed: Observed,
}

enum Engine {
    S3Fifo(S3Fifo),
    TinyLfu(TinyLfu),
}

/// The value slot of both engines.
#[derive(Clone)]
struct Held {
    entry: Entry,
    /// The earlier of the entry's expiry and this layer's own limit. A copy past it is a miss; the entry's own expiry
    /// is untouched, so that it can be promoted again from below.
    until_ms: u64,
}

/// Positions in the tally.
enum Count {}

// === impl Memory ===

impl Memory {
    /// Empty memory.
    pub fn open(options: MemoryOptions, clock: Clock) -> Self {
        let engine = match options.policy {
            Policy::S3Fifo => Engine::S3Fifo(S3Fifo::new(options.capacity_bytes, weight_max(options.value_bytes_max))),
            Policy::TinyLfu => Engine::TinyLfu(TinyLfu::new(options.capacity_bytes)),
        };
        Self {
            engine,
            capacity_bytes: options.capacity_bytes,
            max_ttl_ms: u64::try_from(options.max_ttl.as_millis()).unwrap_or(u64::MAX),
            tally: Tally::new(),
            judge: Judge::default(),
            observed: Observed::new(clock),
        }
    }

    /// The entry of `key`, if a copy is live at `now`. Counts a hit or a miss.
    #[inline]
    pub fn get(&self, now: UnixMillis, key: &[u8]) -> Option<Entry> {
        let found = self.peek(now, key);
        self.tally.add(if found.is_some() { Count::HITS } else { Count::MISSES }, 1);
        found
    }

    /// As [`Memory::get`], for writers that look before they write: counts nothing.
    #[inline]
    pub fn peek(&self, now: UnixMillis, key: &[u8]) -> Option<Entry> {
        let copy = match &self.engine {
            Engine::S3Fifo(engine) => engine.get(key),
            Engine::TinyLfu(engine) => engine.get(key),
        };
        copy.filter(|copy| now.0 < copy.until_ms).map(|copy| copy.entry)
    }

    /// Holds `entry` in place of any older copy of its key. An entry too large for the engine is refused and counted,
    /// and the older copy goes all the same.
    pub fn set(&self, now: UnixMillis, entry: &Entry) {
        let limit_ms = now.0.saturating_add(self.max_ttl_ms);
        let until_ms = entry.expires_at().map_or(limit_ms, |at| at.0.min(limit_ms));
        let outcome = match &self.engine {
            Engine::S3Fifo(engine) => engine.set(entry, until_ms),
            Engine::TinyLfu(engine) => engine.set(entry, until_ms),
        };
        self.tally.add(Count::WRITES, 1);
        if outcome.refused {
            self.tally.add(Count::REFUSALS, 1);
        }
        if outcome.evicted > 0 {
            self.tally.add(Count::EVICTIONS, outcome.evicted);
            self.tally.add(Count::EVICTIONS_UNREAD, outcome.evicted_unread);
        }
    }

    /// Forgets `key`.
    pub fn remove(&self, key: &[u8]) {
        self.tally.add(Count::WRITES, 1);
        match &self.engine {
            Engine::S3Fifo(engine) => engine.remove(key),
            Engine::TinyLfu(engine) => engine.remove(key),
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        match &self.engine {
            Engine::S3Fifo(engine) => engine.clear(),
            Engine::TinyLfu(engine) => engine.clear(),
        }
    }

    /// Reclaims copies that expired before `now`. Takes a tenth of a second for a million entries, without holding any
    /// lock for long: for every few seconds, on a thread that may be busy for so long.
    pub fn sweep(&self, now: UnixMillis) {
        let expired = match &self.engine {
            Engine::S3Fifo(engine) => engine.sweep(now),
            Engine::TinyLfu(engine) => engine.sweep(now),
        };
        self.tally.add(Count::EXPIRED, expired);
    }

    /// Does the engine's postponed work, and observes health. To be called a few times a second.
    pub fn tick(&self) {
        if let Engine::TinyLfu(engine) = &self.engine {
            let evicted = engine.tick();
            self.tally.add(Count::EVICTIONS, evicted);
        }
        self.observed.observe(self.verdict());
    }

    /// Entries held, expired ones included.
    pub fn entries(&self) -> u64 {
        match &self.engine {
            Engine::S3Fifo(engine) => engine.entries(),
            Engine::TinyLfu(engine) => engine.entries(),
        }
    }

    /// Entries given up for want of room since the node was opened.
    pub fn evictions(&self) -> u64 {
        self.tally.sum(Count::EVICTIONS)
    }

    fn bytes(&self) -> u64 {
        match &self.engine {
            Engine::S3Fifo(engine) => engine.bytes(),
            Engine::TinyLfu(engine) => engine.bytes(),
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
            operations: count(Count::HITS) + count(Count::MISSES) + count(Count::WRITES),
            entries: Some(self.entries()),
            bytes: Some(self.bytes()),
            capacity_bytes: Some(self.capacity_bytes),
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

// === impl Held ===

impl Held {
    fn weight(&self) -> u64 {
        self.entry.bytes() + ENTRY_OVERHEAD_BYTES
    }
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
    const ALL: usize = 7;
}

/// What an engine did with a new copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Admission {
    refused: bool,
    evicted: u64,
    evicted_unread: u64,
}

const fn weight_max(value_bytes_max: u64) -> u64 {
    value_bytes_max.saturating_add(KEY_BYTES_MAX as u64 + ENTRY_OVERHEAD_BYTES)
}

#[cfg(test)]
mod tests;
