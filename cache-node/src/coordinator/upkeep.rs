//! What a node does now and then, whether or not anybody asks: postponed work, health, what is dead in memory.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::interval};
use tokio_util::sync::CancellationToken;

use super::stores::Stores;
use crate::{
    clock::Clock,
    context::{OperationContext, Origin, Trust},
};

/// How often postponed work is done and health observed.
const TICK: Duration = Duration::from_millis(200);

/// Ticks from one sweep of dead entries to the next: ten seconds.
const TICKS_PER_SWEEP: u32 = 50;

/// How long a layer may take to tell what it knows about the past.
const LEARN_TIMEOUT: Duration = Duration::from_secs(5);

/// The task.
pub(super) struct Upkeep {
    stores: Arc<Stores>,
    clock: Clock,
}

// === impl Upkeep ===

impl Upkeep {
    pub(super) fn new(stores: Arc<Stores>, clock: Clock) -> Self {
        Self { stores, clock }
    }

    /// Asks the layers what they know about the past, once each.
    pub(super) async fn learn(&self) {
        let deadline = self.clock.monotonic() + LEARN_TIMEOUT;
        let cx =
            OperationContext { id: 0, origin: Origin::Replay, now: self.clock.now(), deadline, trust: Trust::Full };
        self.stores.learn_tags(&cx).await;
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(TICK);
        let mut count = 0;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.stores.memory.tick();
            self.stores.write_queue.tick();
            self.stores.backplane.tick();
            let _ = stop.run_until_cancelled(self.learn()).await;
            count += 1;
            if count % TICKS_PER_SWEEP == 0 {
                let (stores, now) = (Arc::clone(&self.stores), self.clock.now());
                // Awaited, so that it ends before the upkeep does. It can only fail by a panic, which is logged by then.
                let _ = spawn_blocking(move || stores.sweep(now)).await;
            }
        }
    }
}
