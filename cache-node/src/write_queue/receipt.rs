//! A promise that some changes are where they have to be.

use std::sync::Arc;

use tokio::sync::Notify;

use super::Lanes;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Settled once every change it was given to is in every cold layer that it has to be in. Never settled falsely: if the
/// node gives up, its waiter runs into its own deadline.
#[derive(Debug)]
pub struct Receipt {
    left: AtomicUsize,
    settled: Notify,
}

/// Somebody who waits for a change of one slot.
pub(super) struct Wait {
    pub(super) receipt: Arc<Receipt>,
    /// Lanes in which the change is still to be taken.
    pub(super) queued: Lanes,
    /// Lanes in which it is under way.
    pub(super) flying: Lanes,
}

// === impl Receipt ===

impl Receipt {
    /// A receipt for `changes` changes; one for none is settled already.
    pub fn new(changes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(changes), settled: Notify::new() })
    }

    /// Waits until all changes are where they have to be. Any number of tasks may wait.
    ///
    /// # Cancel safety
    /// Waiting may be given up and begun again.
    pub async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.left() == 0 {
                return;
            }
            settled.await;
        }
    }

    /// How many steps are not done, one for each change and layer.
    pub(super) fn left(&self) -> usize {
        self.left.load(Ordering::Acquire)
    }

    /// One of its changes has to reach this many layers.
    pub(super) fn spread(&self, lanes: usize) {
        match lanes {
            0 => self.settle(),
            _ => drop(self.left.fetch_add(lanes - 1, Ordering::AcqRel)),
        }
    }

    /// There is more to wait for.
    pub(super) fn expect(&self, more: usize) {
        self.left.fetch_add(more, Ordering::AcqRel);
    }

    /// One more step is done.
    pub(super) fn settle(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_waiters();
        }
    }
}

// === impl Wait ===

impl Wait {
    /// Whether nothing is waited for any more.
    pub(super) const fn is_over(&self) -> bool {
        self.queued.with(self.flying).is_empty()
    }
}
