//! Which entries are worth a write: not those that die soon, not when the volume is full, by choice not those that are
//! used once, and not more bytes than the day's budget.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use xxhash_rust::xxh3::xxh3_64;

use super::DiskOptions;
use crate::{
    clock::{Clock, UnixMillis},
    entry::Entry,
};

/// An entry stored with exactly the least life is written, although the write queue had it for a while: this part of the
/// least life, and a second at least.
const TOLERANCE_PARTS: u32 = 10;
const TOLERANCE_MIN: Duration = Duration::from_secs(1);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// This part of a day's budget may be written at once.
const BURST_PARTS: u64 = 24;

/// A generation of the doorkeeper is given up after this many keys or this long, so a key must come back within one to
/// two of them. At 8 bits a key, one in 40 unknown keys is taken for a known one, which costs no more than a write.
const GENERATION_KEYS: u32 = 1 << 18;
const GENERATION_LASTS: Duration = Duration::from_secs(3600);
const GENERATION_WORDS: usize = GENERATION_KEYS as usize * 8 / 64;
const PROBES: u32 = 4;

/// Which entries are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admit {
    /// Every one.
    #[default]
    All,
    /// Those stored, or found on disk, for the second time within an hour.
    SecondHit,
}

/// Why an entry is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    ShortLived,
    DiskPressure,
    FirstSeen,
    OverBudget,
}

pub(super) struct Admission {
    clock: Clock,
    /// Entries with less life left are not written.
    least_left: Duration,
    doorkeeper: Option<Mutex<Doorkeeper>>,
    budget: Option<Mutex<Bucket>>,
}

/// Remembers keys for a while in two Bloom filters, of which the older is given up when the newer is full (Einziger et
/// al., "TinyLFU", 2017, call it a doorkeeper). 512 KiB.
struct Doorkeeper {
    newer: Vec<u64>,
    older: Vec<u64>,
    keys: u32,
    since: Instant,
}

/// A token bucket that may be overdrawn by one batch, so that a batch larger than the bucket is written too.
struct Bucket {
    tokens: i64,
    capacity: i64,
    per_day: u64,
    filled: Instant,
}

// === impl Refusal ===

impl Refusal {
    pub(super) const COUNT: usize = 4;
}

// === impl Admission ===

impl Admission {
    pub(super) fn new(options: &DiskOptions, clock: Clock) -> Self {
        let now = clock.monotonic();
        let doorkeeper = (options.admit == Admit::SecondHit).then(|| Mutex::new(Doorkeeper::new(now)));
        let budget = options.daily_write_bytes.map(|per_day| Mutex::new(Bucket::new(per_day, now)));
        let tolerance = TOLERANCE_MIN.max(options.min_ttl / TOLERANCE_PARTS);
        Self { clock, least_left: options.min_ttl.saturating_sub(tolerance), doorkeeper, budget }
    }

    /// Whether the entry may be written now; if not, why.
    pub(super) fn admit(&self, now: UnixMillis, entry: &Entry, braked: bool) -> Result<(), Refusal> {
        if entry.useful_until().is_some_and(|at| at.since(now) < self.least_left || at <= now) {
            return Err(Refusal::ShortLived);
        }
        // Seen, even if something else keeps it from being written.
        let known = self.see(entry.key());
        if braked {
            return Err(Refusal::DiskPressure);
        }
        if !known {
            return Err(Refusal::FirstSeen);
        }
        if let Some(budget) = &self.budget
            && budget.lock().unwrap_or_else(PoisonError::into_inner).tokens(self.clock.monotonic()) <= 0
        {
            return Err(Refusal::OverBudget);
        }
        Ok(())
    }

    /// Notes that the key is in use; answers whether it was before. Always true without a doorkeeper.
    pub(super) fn see(&self, key: &[u8]) -> bool {
        let Some(doorkeeper) = &self.doorkeeper else { return true };
        let now = self.clock.monotonic();
        doorkeeper.lock().unwrap_or_else(PoisonError::into_inner).see(xxh3_64(key), now)
    }

    /// Takes what was written from the budget.
    pub(super) fn spend(&self, bytes: u64) {
        if let Some(budget) = &self.budget {
            let mut budget = budget.lock().unwrap_or_else(PoisonError::into_inner);
            budget.tokens = budget.tokens.saturating_sub_unsigned(bytes);
        }
    }
}

// === impl Doorkeeper ===

impl Doorkeeper {
    fn new(now: Instant) -> Self {
        Self { newer: vec![0; GENERATION_WORDS], older: vec![0; GENERATION_WORDS], keys: 0, since: now }
    }

    fn see(&mut self, hash: u64, now: Instant) -> bool {
        if self.keys >= GENERATION_KEYS || now.duration_since(self.since) >= GENERATION_LASTS {
            let idle = now.duration_since(self.since) >= 2 * GENERATION_LASTS;
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.fill(0);
            if idle {
                self.older.fill(0);
            }
            (self.keys, self.since) = (0, now);
        }
        let (mut in_newer, mut in_older) = (true, true);
        for probe in 0..PROBES {
            // Neighbouring probes share five bits of the hash, which costs next to nothing.
            let bit = hash.rotate_left(16 * probe) as usize % (GENERATION_WORDS * 64);
            let (word, mask) = (bit / 64, 1 << (bit % 64));
            in_newer &= self.newer[word] & mask != 0;
            in_older &= self.older[word] & mask != 0;
            self.newer[word] |= mask;
        }
        self.keys += u32::from(!in_newer);
        in_newer || in_older
    }
}

// === impl Bucket ===

impl Bucket {
    fn new(per_day: u64, now: Instant) -> Self {
        let capacity = i64::try_from(per_day / BURST_PARTS).unwrap_or(i64::MAX);
        Self { tokens: capacity, capacity, per_day, filled: now }
    }

    /// What may be written at this moment.
    fn tokens(&mut self, now: Instant) -> i64 {
        let earned = u128::from(self.per_day) * now.duration_since(self.filled).as_millis() / DAY.as_millis();
        if earned > 0 {
            // Parts of a byte stay in the clock, or a small budget would never fill.
            let paid_ms = earned * DAY.as_millis() / u128::from(self.per_day);
            self.filled += Duration::from_millis(u64::try_from(paid_ms).unwrap_or(u64::MAX));
            self.tokens = self.tokens.saturating_add(i64::try_from(earned).unwrap_or(i64::MAX)).min(self.capacity);
        }
        self.tokens
    }
}
