//! What a coordinator joins, and its life from the first layer that is opened to the last that is closed.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Coordinator, FreshnessOptions, Outbox, WriteMode, flight::Flights, freshness::Refreshes, stores::Stores,
    upkeep::Upkeep, write::WAITERS_MAX,
};
use crate::{
    backplane::{Backplane, BackplaneOptions, Listener},
    clock::Clock,
    layer::{Component, Layer, followers::Followers, lease::SharedLeases, log::Log, memory::Memory},
    tag_index::{TagIndex, TagOptions},
    write_queue::{JournalPlace, QueueOptions, WriteQueue},
};

/// How long the disk may take at the end to keep how far this node had heard.
const LAST_WORD_GRACE: Duration = Duration::from_secs(1);

/// What a coordinator joins.
pub struct Parts {
    /// L1.
    pub memory: Memory,
    /// How the write queue is bounded.
    pub queue: QueueOptions,
    /// The layers below memory, in the order in which they are read.
    pub cold: Vec<Arc<dyn Layer>>,
    /// Removals by tag.
    pub tags: Arc<TagIndex>,
    /// When stale values are served.
    pub freshness: FreshnessOptions,
    /// When a write of a client is acknowledged.
    pub write_mode: WriteMode,
    /// Where the keys of queued writes are written down, so that a kill brings no older value back.
    pub journal: Option<JournalPlace>,
    /// The log of the changes of all nodes, and how it is followed; none if this node shares nothing.
    pub log: Option<(Box<dyn Log>, BackplaneOptions)>,
    /// Where leases are kept for all nodes; none if this node shares nothing.
    pub leases: Option<Arc<dyn SharedLeases>>,
    /// The nodes that follow the log; none if this node shares nothing.
    pub followers: Option<Arc<dyn Followers>>,
    /// What becomes of a removal of which Redis can not be told.
    pub outbox: Outbox,
}

// === impl Parts ===

impl Parts {
    /// These layers, and the defaults for the rest.
    pub fn new(memory: Memory, queue: QueueOptions, cold: Vec<Arc<dyn Layer>>, clock: &Clock) -> Self {
        Self {
            memory,
            queue,
            cold,
            tags: Arc::new(TagIndex::open(TagOptions::default(), clock.clone())),
            freshness: FreshnessOptions::default(),
            write_mode: WriteMode::default(),
            journal: None,
            log: None,
            leases: None,
            followers: None,
            outbox: Outbox::default(),
        }
    }
}

// === impl Coordinator ===

impl Coordinator {
    /// Joins the layers, and returns once what they keep about the past is known, as far as they can be reached. Runs
    /// its upkeep on the current runtime.
    pub async fn open(parts: Parts, clock: Clock) -> Arc<Self> {
        let Parts { memory, queue, cold, tags, freshness, write_mode, journal, log, leases, followers, outbox } = parts;
        let write_queue = WriteQueue::open(queue, cold.clone(), journal.as_ref(), clock.clone());
        let tasks = TaskTracker::new();
        let (log, options) = log.unzip();
        let backplane = Arc::new(match options {
            None => Backplane::none(clock.clone()),
            Some(options) => Backplane::following(options, clock.clone()),
        });
        let coordinator = Arc::new(Self {
            stores: Arc::new(Stores::new(memory, write_queue, cold, tags, backplane)),
            flights: Flights::new(tasks.clone(), clock.clone()),
            refreshes: Refreshes::new(freshness.refresh_window),
            leases: Arc::default(),
            shared_leases: leases,
            followers,
            outbox,
            freshness,
            write_mode,
            clock,
            operations: AtomicU64::new(1),
            answers: Arc::default(),
            waiters: Semaphore::new(WAITERS_MAX),
            tasks,
            stop: CancellationToken::new(),
        });
        coordinator.backplane().listen(Arc::clone(&coordinator.leases) as Arc<dyn Listener>);
        coordinator.stores.hear_the_queue();
        let upkeep = Upkeep::new(Arc::clone(&coordinator.stores), coordinator.clock.clone());
        upkeep.learn().await;
        if let Some(log) = log {
            coordinator.follow(log).await;
        }
        coordinator.tasks.spawn(upkeep.run(coordinator.stop.clone()));
        coordinator
    }

    /// Writes what is queued, then closes the layers from top to bottom. Nobody may use the coordinator any more.
    ///
    /// Each step has its share of the time: neither a read that hangs in the disk nor a backlog for a Redis that is away
    /// keeps the database from being closed, without which a machine that goes down as well costs the volume its content.
    pub async fn shutdown(&self, deadline: Instant) {
        let now = self.clock.monotonic();
        let quarter = deadline.saturating_duration_since(now) / 4;
        self.stop.cancel();
        self.tasks.close();
        // Most end by their own deadlines.
        let _ = timeout_at((now + quarter).into(), self.tasks.wait()).await;
        self.stores.write_queue.shutdown(deadline - quarter).await;
        // One that has not read the log to its end does not know whether it has what the process before it had written.
        if let Some(followers) = self.followers.as_ref().filter(|_| self.backplane().is_caught_up()) {
            // Also when the queue took all the time, but a disk that hangs does not keep the process.
            let until = deadline.max(self.clock.monotonic() + LAST_WORD_GRACE);
            let _ = timeout_at(until.into(), self.stores.leave_word(followers.newest())).await;
        }
        for cold in &self.stores.cold {
            cold.layer.shutdown(deadline).await;
        }
    }
}
