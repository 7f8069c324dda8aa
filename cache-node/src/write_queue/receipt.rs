//! A promise that some changes are on disk.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Settled once every change it was given to is on disk. Never settled falsely: if the node gives up, its waiter runs
/// into its own deadline.
#[derive(Debug)]
pub struct Receipt {
    left: AtomicUsize,
    settled: Notify,
}

// === impl Receipt ===

impl Receipt {
    /// A receipt for `changes` changes; one for none is settled already.
    pub fn new(changes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(changes), settled: Notify::new() })
    }

    /// Waits until all changes are on disk. Any number of tasks may wait.
    ///
    /// # Cancel safety
    /// Waiting may be given up and begun again.
    pub async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.left.load(Ordering::Acquire) == 0 {
                return;
            }
            settled.await;
        }
    }

    /// One more change is on disk.
    pub(super) fn settle(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_waiters();
        }
    }
}
