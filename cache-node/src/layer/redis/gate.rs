//! How many calls may be under way at once, and how many may wait for that.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout_at,
};

/// Calls that may wait, for each that may be under way. Who comes after them would wait longer than it is worth.
const WAITING_PER_PERMIT: usize = 4;

/// A bound on calls under way and on calls that wait.
pub(super) struct Gate {
    permits: Semaphore,
    concurrency: usize,
    waiting: AtomicUsize,
}

/// Why a call was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shed {
    /// Too many wait already.
    Crowded,
    /// The deadline passed while it waited.
    Late,
}

/// Counts itself out however the wait ends.
struct Waiting<'a>(&'a AtomicUsize);

// === impl Gate ===

impl Gate {
    /// Lets this many in at once.
    pub(super) fn new(concurrency: usize) -> Self {
        assert!(concurrency > 0, "the configuration was checked");
        Self { permits: Semaphore::new(concurrency), concurrency, waiting: AtomicUsize::new(0) }
    }

    /// Waits for a place; it is given back when the permit is dropped.
    pub(super) async fn enter(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Shed> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(permit);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.concurrency * WAITING_PER_PERMIT {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Shed::Crowded);
        }
        let _waiting = Waiting(&self.waiting);
        let permit = timeout_at(deadline.into(), self.permits.acquire()).await.map_err(|_| Shed::Late)?;
        Ok(permit.expect("the semaphore is never closed"))
    }

    /// Calls under way now.
    pub(super) fn in_flight(&self) -> usize {
        self.concurrency - self.permits.available_permits().min(self.concurrency)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;

    use super::*;
    use crate::clock::Clock;

    #[tokio::test(start_paused = true)]
    async fn waiting_counts_against_the_deadline() {
        let gate = Gate::new(1);
        let soon = || tokio::time::Instant::now().into_std() + Duration::from_millis(50);
        let held = gate.enter(soon()).await.unwrap();
        assert_eq!(gate.in_flight(), 1);
        assert_eq!(gate.enter(soon()).await.err(), Some(Shed::Late));
        drop(held);
        assert!(gate.enter(soon()).await.is_ok());
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn calls_beyond_the_bound_are_turned_away_at_once() {
        let gate = Gate::new(2);
        let later = Clock::system().monotonic() + Duration::from_secs(600);
        let held = join_all([gate.enter(later), gate.enter(later)]).await;
        let mut waiting: Vec<_> = (0..2 * WAITING_PER_PERMIT).map(|_| Box::pin(gate.enter(later))).collect();
        for wait in &mut waiting {
            assert!(futures::poll!(wait).is_pending());
        }
        assert_eq!(gate.enter(later).await.err(), Some(Shed::Crowded));
        waiting.pop();
        assert!(futures::poll!(Box::pin(gate.enter(later))).is_pending(), "one that gave up makes room");
        drop(held);
    }
}
