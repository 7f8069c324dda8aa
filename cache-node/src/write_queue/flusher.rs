//! The one task that moves queued writes to the cold layer, batch by batch, in order.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::RngExt;
use tokio::{select, time::sleep};

use super::{LINGER, Rest, Work, WriteQueue};
use crate::{
    context::{OperationContext, Origin},
    layer::{Layer, LayerError},
};

/// Longest time one attempt to write a batch may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after the first failed attempt; doubles with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The flusher.
pub(super) struct Flusher {
    queue: Arc<WriteQueue>,
    target: Arc<dyn Layer>,
}

// === impl Flusher ===

impl Flusher {
    pub(super) fn new(queue: Arc<WriteQueue>, target: Arc<dyn Layer>) -> Self {
        Self { queue, target }
    }

    /// Works until the queue is empty and shall drain, or until it shall give up.
    pub(super) async fn run(self) {
        loop {
            let work = self.queue.take();
            let done = match work {
                Work::Nothing => self.idle().await,
                Work::Clear(_) | Work::Apply(_) => self.insist(&work).await,
            };
            if done {
                self.queue.settle(work);
            }
            if !done || !self.linger().await {
                return;
            }
        }
    }

    /// Tries until it works: what was accepted is not dropped. False if the node gives up meanwhile.
    async fn insist(&self, work: &Work) -> bool {
        let mut pause = RETRY_FIRST;
        loop {
            let outcome = select! {
                outcome = self.attempt(work) => outcome,
                () = self.queue.give_up.cancelled() => return false,
            };
            let Err(error) = outcome else { return true };
            if pause == RETRY_FIRST {
                tracing::warn!(%error, "writing to the cold layer failed; it is tried again until it works");
            }
            self.queue.trouble(&error);
            // Jittered, so that nodes with the same trouble do not retry in step.
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            select! {
                () = sleep(jittered) => {}
                () = self.queue.give_up.cancelled() => return false,
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn attempt(&self, work: &Work) -> Result<(), LayerError> {
        match work {
            Work::Clear(_) => self.target.clear(&self.context()).await,
            Work::Apply(batch) => self.target.apply(&self.context(), &batch.changes).await,
            Work::Nothing => Ok(()),
        }
    }

    /// Sleeps until there is work. False if there is none and none will come.
    async fn idle(&self) -> bool {
        if self.queue.drain.is_cancelled() && self.queue.items() == 0 {
            return false;
        }
        // Announced before the last look: a writer that this look misses sees the announcement, because both go
        // through the lock of the writer's shard.
        self.queue.rest.store(Rest::IDLE, Ordering::Relaxed);
        if !self.queue.has_work() {
            select! {
                () = self.queue.wake.notified() => {}
                () = self.queue.drain.cancelled() => {}
            }
        }
        self.queue.rest.store(Rest::BUSY, Ordering::Relaxed);
        true
    }

    /// Lets more overwrites gather, unless somebody waits or a batch is full.
    async fn linger(&self) -> bool {
        if self.queue.give_up.is_cancelled() {
            return false;
        }
        self.queue.rest.store(Rest::LINGERING, Ordering::Relaxed);
        if !self.queue.has_urgent_work() && !self.queue.drain.is_cancelled() {
            select! {
                () = sleep(LINGER) => {}
                () = self.queue.wake.notified() => {}
                () = self.queue.drain.cancelled() => {}
            }
        }
        self.queue.rest.store(Rest::BUSY, Ordering::Relaxed);
        true
    }

    fn context(&self) -> OperationContext {
        let clock = &self.queue.clock;
        OperationContext {
            id: 0,
            origin: Origin::Client,
            now: clock.now(),
            deadline: clock.monotonic() + ATTEMPT_TIMEOUT,
        }
    }
}
