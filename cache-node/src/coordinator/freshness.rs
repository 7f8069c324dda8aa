//! What may be served: fresh values to everybody; a value past its expiry, within its stale life, to all but the one
//! reader that is to fetch a fresh one.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ahash::RandomState;

use crate::{clock::UnixMillis, entry::Entry, tag_index::TagIndex};

/// How stale values are served. `config.rs` fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreshnessOptions {
    /// How long a reader of a stale value waits for the layers below to have a fresh one.
    pub soft_timeout: Duration,
    /// How long all but one reader of a stale value get it, before another is told that there is none, so that it
    /// fetches a fresh one.
    pub refresh_window: Duration,
}

impl Default for FreshnessOptions {
    fn default() -> Self {
        Self { soft_timeout: Duration::from_millis(20), refresh_window: Duration::from_secs(2) }
    }
}

/// What a copy of an entry is good for at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// To be served.
    Fresh,
    /// The client said that there is no value, and it still holds.
    Negative,
    /// Past its expiry, within its stale life.
    Stale,
    /// Past its life.
    Expired,
    /// Removed by one of its tags.
    Removed,
}

/// Stale keys that somebody was told to fetch. More than these are simply told again.
const CLAIMS_MAX: usize = 65_536;

/// Who fetches what is stale.
pub(super) struct Refreshes {
    window: Duration,
    /// Hash of the key, and until when others get the stale value. A collision of hashes only serves a stale value
    /// where a miss was due.
    claims: Mutex<HashMap<u64, UnixMillis, RandomState>>,
    hasher: RandomState,
    stale_hits: AtomicU64,
}

// === impl Freshness ===

impl Freshness {
    #[inline]
    pub(super) fn of(entry: &Entry, now: UnixMillis, tags: &TagIndex) -> Self {
        if entry.is_plain() {
            return if entry.is_live(now) { Self::Fresh } else { Self::Expired };
        }
        if tags.is_removed(entry.tags(), entry.position()) {
            tags.met_dead();
            return Self::Removed;
        }
        if entry.is_live(now) {
            return if entry.is_negative() { Self::Negative } else { Self::Fresh };
        }
        match entry.stale_until() {
            Some(until) if now < until && !entry.is_negative() => Self::Stale,
            _ => Self::Expired,
        }
    }
}

// === impl Refreshes ===

impl Refreshes {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, claims: Mutex::default(), hasher: RandomState::new(), stale_hits: AtomicU64::new(0) }
    }

    /// Whether this reader of a stale value is the one to fetch a fresh one.
    pub(super) fn claim(&self, key: &[u8], now: UnixMillis) -> bool {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = self.hasher.hash_one(key);
        if claims.get(&hash).is_some_and(|&until| now < until) {
            return false;
        }
        if claims.len() >= CLAIMS_MAX {
            claims.retain(|_, until| now < *until);
        }
        if claims.len() < CLAIMS_MAX {
            claims.insert(hash, now.after(self.window));
        }
        true
    }

    /// The stale value, counted.
    pub(super) fn serve(&self, entry: Entry) -> Option<Entry> {
        self.stale_hits.fetch_add(1, Ordering::Relaxed);
        Some(entry)
    }

    pub(super) fn stale_hits(&self) -> u64 {
        self.stale_hits.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::START;

    #[test]
    fn one_reader_of_a_window_is_told_to_fetch() {
        let refreshes = Refreshes::new(Duration::from_secs(1));
        assert!(refreshes.claim(b"k", START));
        assert!(!refreshes.claim(b"k", START.after(Duration::from_millis(999))));
        assert!(refreshes.claim(b"other", START));
        assert!(refreshes.claim(b"k", START.after(Duration::from_secs(1))), "the first may have died");
    }

    #[test]
    fn claims_are_bounded() {
        let refreshes = Refreshes::new(Duration::from_secs(1));
        for number in 0..CLAIMS_MAX + 10 {
            assert!(refreshes.claim(&number.to_be_bytes(), START));
        }
        assert_eq!(refreshes.claims.lock().unwrap().len(), CLAIMS_MAX);
        assert!(refreshes.claim(b"k", START.after(Duration::from_secs(2))));
        assert_eq!(refreshes.claims.lock().unwrap().len(), 1);
    }
}
