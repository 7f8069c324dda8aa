//! The tasks that move queued writes to one cold layer, batch by batch, in order.

use std::{sync::Arc, time::Duration};

use rand::RngExt;
use tokio::{select, time::sleep};

use super::{
    LINGER, WriteQueue,
    batch::Batch,
    lanes::{Lane, Rest, Seat},
};
use crate::{
    context::{OperationContext, Origin, Trust},
    layer::{Change, ErrorKind, LayerError, LayerId},
};

/// Longest time one attempt to write a batch may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after the first failed attempt; doubles with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// One of the flushers of a lane. The first also carries out clears and removals by tag.
pub(super) struct Flusher {
    queue: Arc<WriteQueue>,
    lane: Arc<Lane>,
    number: usize,
}

/// What came of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There was nothing to do.
    Nothing,
    Done,
    Failed,
    /// The node gives up.
    GaveUp,
}

// === impl Flusher ===

impl Flusher {
    pub(super) fn new(queue: Arc<WriteQueue>, lane: Arc<Lane>, number: usize) -> Self {
        Self { queue, lane, number }
    }

    /// Works until its part of the lane is empty and shall drain, or until it shall give up.
    pub(super) async fn run(self) {
        let mut pause = RETRY_FIRST;
        loop {
            let goes_on = match self.step().await {
                Step::Nothing => self.idle().await,
                Step::Done => {
                    pause = RETRY_FIRST;
                    self.linger().await
                }
                Step::Failed => {
                    let goes_on = self.pause(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    goes_on
                }
                Step::GaveUp => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Carries out one clear or one batch, if there is something to do.
    pub(super) async fn step(&self) -> Step {
        if self.leads() && self.lane.is_void() {
            let _alone = self.lane.gate.write().await;
            return self.clear().await;
        }
        let _among_batches = self.lane.gate.read().await;
        let batch = self.queue.take(&self.lane, self.number);
        if batch.is_empty() { Step::Nothing } else { self.apply(batch).await }
    }

    async fn clear(&self) -> Step {
        let begun = self.queue.begin_clear(&self.lane);
        let cx = self.context(Origin::Queue);
        let outcome = select! {
            outcome = self.lane.target.clear(&cx) => outcome,
            () = self.queue.give_up.cancelled() => return Step::GaveUp,
        };
        let step = self.judge(&outcome);
        self.queue.end_clear(&self.lane, begun, outcome.is_ok());
        step
    }

    async fn apply(&self, batch: Batch) -> Step {
        let is_fill = |change: &Change| matches!(change, Change::Fill(_));
        let origin = if batch.changes.iter().all(is_fill) { Origin::Promotion } else { Origin::Queue };
        let cx = self.context(origin);
        let outcome = select! {
            outcome = self.lane.target.apply(&cx, &batch.changes) => outcome,
            () = self.queue.give_up.cancelled() => return Step::GaveUp,
        };
        let step = self.judge(&outcome);
        match outcome {
            Ok(positions) => self.queue.settle(&self.lane, self.number, batch, &positions),
            Err(error) => self.queue.give_back(&self.lane, self.number, batch, error.untouched),
        }
        step
    }

    fn judge<T>(&self, outcome: &Result<T, LayerError>) -> Step {
        match outcome {
            Ok(_) => {
                self.lane.arrived(self.queue.clock.now());
                Step::Done
            }
            Err(error) => {
                self.lane.failed(error);
                if self.lane.target.id() == LayerId::Disk && !matches!(error.kind, ErrorKind::Full | ErrorKind::Timeout)
                {
                    self.queue.abandon_journal(error);
                }
                Step::Failed
            }
        }
    }

    /// Waits before the next attempt, jittered, so that nodes with the same trouble do not retry in step. A lane that
    /// outgrows its share meanwhile is relieved.
    async fn pause(&self, pause: Duration) -> bool {
        let over = sleep(pause.mul_f64(rand::rng().random_range(0.5..1.0)));
        tokio::pin!(over);
        loop {
            select! {
                () = &mut over => return true,
                () = self.queue.give_up.cancelled() => return false,
                () = self.lane.relief.notified(), if self.leads() => self.queue.relieve(&self.lane),
            }
        }
    }

    /// Sleeps until there is work. False if there is none and none will come.
    pub(super) async fn idle(&self) -> bool {
        if self.queue.drain.is_cancelled() {
            if self.lane.is_void() && !self.leads() && !self.queue.give_up.is_cancelled() {
                // What is queued here may be written only after the clear, which the first of the lane carries out.
                sleep(LINGER).await;
                return true;
            }
            return self.has_work();
        }
        // Announced before the last look: a writer that this look misses sees the announcement, because both go
        // through the lock of the writer's shard.
        self.seat().rests(Rest::IDLE);
        if !self.has_work() {
            select! {
                () = self.seat().wake.notified() => {}
                () = self.lane.relief.notified(), if self.leads() => self.queue.relieve(&self.lane),
                () = self.queue.drain.cancelled() => {}
            }
        }
        self.seat().rests(Rest::BUSY);
        true
    }

    /// Lets more overwrites gather, unless somebody waits or a batch is full.
    async fn linger(&self) -> bool {
        if self.queue.give_up.is_cancelled() {
            return false;
        }
        self.seat().rests(Rest::LINGERING);
        if !self.queue.has_urgent_work(&self.lane, self.number) && !self.queue.drain.is_cancelled() {
            select! {
                () = sleep(LINGER) => {}
                () = self.seat().wake.notified() => {}
                () = self.queue.drain.cancelled() => {}
            }
        }
        self.seat().rests(Rest::BUSY);
        true
    }

    fn has_work(&self) -> bool {
        self.queue.has_work(&self.lane, self.number)
    }

    const fn leads(&self) -> bool {
        self.number == 0
    }

    fn seat(&self) -> &Seat {
        &self.lane.seats[self.number]
    }

    fn context(&self, origin: Origin) -> OperationContext {
        let clock = &self.queue.clock;
        OperationContext {
            id: 0,
            origin,
            now: clock.now(),
            deadline: clock.monotonic() + ATTEMPT_TIMEOUT,
            trust: Trust::Full,
        }
    }
}
