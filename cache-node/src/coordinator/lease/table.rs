//! The leases of one node.

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
    waits: AtomicU64,
    filled: AtomicU64,
    refused: AtomicU64,
}

struct Lease {
    token: Token,
    until: Instant,
    position: Position,
}

/// What became of leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// Held now, those that have ended unnoticed included.
    pub held: usize,
    /// Granted since the start.
    pub granted: u64,
    /// Callers told to wait for another's fill.
    pub waits: u64,
    /// Fills that were stored.
    pub filled: u64,
    /// Fills that were not, because their lease had ended or their key had changed.
    pub refused: u64,
}

// === impl Leases ===

impl Leases {
    /// A lease, or how long another one is still held.
    pub(super) fn grant(&self, key: &Key, now: Instant, life: Duration, position: Position) -> Result<Token, Duration> {
        let mut held = self.held();
        if let Some(lease) = held.get(key).filter(|lease| now < lease.until) {
            self.waits.fetch_add(1, Ordering::Relaxed);
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
        held.insert(key.clone(), Lease { token, until: now + life, position });
        self.count.store(held.len(), Ordering::Relaxed);
        self.granted.fetch_add(1, Ordering::Relaxed);
        Ok(token)
    }

    /// When the lease was granted, if it still holds.
    pub(super) fn position(&self, key: &[u8], token: Token, now: Instant) -> Option<Position> {
        let held = self.held();
        held.get(key).filter(|lease| lease.token == token && now < lease.until).map(|lease| lease.position)
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
        let grant = |name: &str, now| leases.grant(&key(name), now, LIFE, Position::NONE);
        let first = grant("first", now).unwrap();
        for number in 1..LEASES_MAX {
            grant(&number.to_string(), now + Duration::from_secs(5)).unwrap();
        }
        assert!(leases.position(b"first", first, now).is_some());
        grant("later", now + LIFE).unwrap();
        assert_eq!(leases.position(b"first", first, now), None, "it had ended");
        assert_eq!(leases.counts().held, LEASES_MAX);
        grant("more", now + LIFE).unwrap();
        assert_eq!(leases.counts().held, LEASES_MAX);
    }

    #[test]
    fn tokens_are_above_zero_and_not_guessed() {
        let (leases, now) = (Leases::default(), Clock::system().monotonic());
        let token = |name: &str| leases.grant(&key(name), now, LIFE, Position::NONE).unwrap();
        let tokens: Vec<Token> = (0..100).map(|number| token(&number.to_string())).collect();
        assert!(tokens.iter().all(|token| token.0 > 0));
        assert!(tokens.iter().enumerate().all(|(index, token)| !tokens[..index].contains(token)));
        assert_eq!(leases.position(b"1", tokens[2], now), None);
    }
}
