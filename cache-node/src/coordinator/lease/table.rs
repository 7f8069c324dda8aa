//! The leases that one node has granted, and knows to hold.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ahash::RandomState;

use super::Token;
use crate::{
    backplane::{Listener, Notice, What},
    entry::{Key, Position},
};

/// Leases held at once. For one more, those that have ended go, or else any one: its fill is refused.
pub(super) const LEASES_MAX: usize = 65_536;

/// Who may fetch what.
#[derive(Default)]
pub(in crate::coordinator) struct Leases {
    held: Mutex<HashMap<Key, Lease, RandomState>>,
    /// How many; a change costs one look at this while there are none.
    count: AtomicUsize,
    granted: AtomicU64,
    alone: AtomicU64,
    waits: AtomicU64,
    filled: AtomicU64,
    refused: AtomicU64,
}

struct Lease {
    token: Token,
    until: Instant,
    grant: Grant,
}

/// What a lease is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// What is brought under it was fetched after this position.
    pub(super) position: Position,
    /// Whether all nodes know of it.
    pub(super) is_shared: bool,
}

/// What became of leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// Held now, those that have ended unnoticed included.
    pub held: usize,
    /// Granted since the start.
    pub granted: u64,
    /// Those of them that no other node knows of, because Redis could not be asked.
    pub alone: u64,
    /// Callers told to wait for another's fill.
    pub waits: u64,
    /// Fills that were stored.
    pub filled: u64,
    /// Fills that were not, because their lease had ended or their key had changed.
    pub refused: u64,
}

// === impl Leases ===

impl Leases {
    /// A lease that this node knows of, or how long another one is still held.
    pub(super) fn reserve(
        &self,
        key: &Key,
        now: Instant,
        life: Duration,
        position: Position,
    ) -> Result<Token, Duration> {
        let mut held = self.held();
        if let Some(lease) = held.get(key).filter(|lease| now < lease.until) {
            self.waited();
            return Err(lease.until - now);
        }
        if held.len() >= LEASES_MAX {
            held.retain(|_, lease| now < lease.until);
        }
        if held.len() >= LEASES_MAX
            && let Some(any) = held.keys().next().cloned()
        {
            held.remove(&any);
        }
        // Guessed tokens must not fill.
        let token = Token(i64::from(rand::random::<u32>()) << 31 | i64::from(rand::random::<u32>() >> 1) | 1);
        held.insert(key.clone(), Lease { token, until: now + life, grant: Grant { position, is_shared: false } });
        self.count.store(held.len(), Ordering::Relaxed);
        Ok(token)
    }

    /// All nodes know of the lease, unless it has ended meanwhile.
    pub(super) fn share(&self, key: &[u8], token: Token, position: Position) {
        if let Some(lease) = self.held().get_mut(key).filter(|lease| lease.token == token) {
            lease.grant = Grant { position, is_shared: true };
        }
    }

    /// Nobody needs the lease.
    pub(super) fn give_up(&self, key: &[u8], token: Token) {
        let mut held = self.held();
        if held.get(key).is_some_and(|lease| lease.token == token) {
            held.remove(key);
        }
        self.count.store(held.len(), Ordering::Relaxed);
    }

    /// What the lease is worth, if it still holds.
    pub(super) fn grant_of(&self, key: &[u8], token: Token, now: Instant) -> Option<Grant> {
        let held = self.held();
        held.get(key).filter(|lease| lease.token == token && now < lease.until).map(|lease| lease.grant)
    }

    pub(super) fn granted(&self) {
        self.granted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn granted_alone(&self) {
        self.granted();
        self.alone.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn waited(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn filled(&self) {
        self.filled.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> LeaseCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LeaseCounts {
            held: self.count.load(Ordering::Relaxed),
            granted: count(&self.granted),
            alone: count(&self.alone),
            waits: count(&self.waits),
            filled: count(&self.filled),
            refused: count(&self.refused),
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Key, Lease, RandomState>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Leases {
    /// Ends the lease of a key that changes. A removal by tag ends none, because nobody knows yet which tags the value
    /// will have: its position is compared with that of the lease when the fill comes.
    #[inline]
    fn changed(&self, notice: &Notice<'_>) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut held = self.held();
        match notice.what {
            What::Key(key) => drop(held.remove(key)),
            What::Everything => held.clear(),
            What::Tagged(_) => {}
        }
        self.count.store(held.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock, testing::key};

    const LIFE: Duration = Duration::from_secs(10);

    #[test]
    fn leases_are_bounded_and_those_that_have_ended_go_first() {
        let (leases, now) = (Leases::default(), Clock::system().monotonic());
        let grant = |name: &str, now| leases.reserve(&key(name), now, LIFE, Position::NONE);
        let first = grant("first", now).unwrap();
        for number in 1..LEASES_MAX {
            grant(&number.to_string(), now + Duration::from_secs(5)).unwrap();
        }
        assert!(leases.grant_of(b"first", first, now).is_some());
        grant("later", now + LIFE).unwrap();
        assert_eq!(leases.grant_of(b"first", first, now), None, "it had ended");
        assert_eq!(leases.counts().held, LEASES_MAX);
        grant("more", now + LIFE).unwrap();
        assert_eq!(leases.counts().held, LEASES_MAX);
    }

    #[test]
    fn tokens_are_above_zero_and_not_guessed() {
        let (leases, now) = (Leases::default(), Clock::system().monotonic());
        let token = |name: &str| leases.reserve(&key(name), now, LIFE, Position::NONE).unwrap();
        let tokens: Vec<Token> = (0..100).map(|number| token(&number.to_string())).collect();
        assert!(tokens.iter().all(|token| token.0 > 0));
        assert!(tokens.iter().enumerate().all(|(index, token)| !tokens[..index].contains(token)));
        assert_eq!(leases.grant_of(b"1", tokens[2], now), None);
    }
}
