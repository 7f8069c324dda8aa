//! A whole node as the model test has it, and how it ends.

use tempfile::TempDir;

use super::{
    LIFE_MIN,
    known::Promises,
    layers::{Mood, Moody, Remote},
};
use crate::{
    coordinator::tests::*,
    layer::disk::{Admit, Disk, DiskOptions},
    write_queue::JournalPlace,
};

/// What is different from run to run.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) policy: Policy,
    pub(super) queue: QueueOptions,
    pub(super) disk_first: bool,
    pub(super) write_mode: WriteMode,
    pub(super) admit: Admit,
    pub(super) removals_max: usize,
}

// === impl Setup ===

impl Setup {
    /// So much room that nothing is given up.
    pub(super) const fn roomy() -> Self {
        Self {
            policy: Policy::S3Fifo,
            queue: QueueOptions { capacity_bytes: 32 << 20, items_max: 10_000, overflow: Overflow::Block },
            disk_first: false,
            write_mode: WriteMode::Behind,
            admit: Admit::All,
            removals_max: 1000,
        }
    }

    /// What the model may count on.
    pub(super) fn promises(&self) -> Promises {
        Promises {
            queue_keeps_values: self.queue.overflow != Overflow::DropOldest,
            disk_has_all: self.admit == Admit::All,
            removals_stay_apart: self.removals_max >= 1000,
        }
    }

    pub(super) async fn open(
        &self,
        folder: &TempDir,
        clock: &Clock,
        (remote, redis, disk): (&Arc<Remote>, &Arc<Mood>, &Arc<Mood>),
    ) -> Arc<Coordinator> {
        let options = DiskOptions {
            memory_bytes: 16 << 20,
            max_ttl: Duration::from_secs(24 * 3600),
            min_ttl: LIFE_MIN,
            admit: self.admit,
            ..DiskOptions::at(folder.path())
        };
        let rocksdb = Disk::open(options, clock.clone()).await.unwrap();
        let moody = |layer, mood: &Arc<Mood>| Arc::new(Moody { layer, mood: Arc::clone(mood) }) as Arc<dyn Layer>;
        let mut cold = vec![moody(Arc::clone(remote) as Arc<dyn Layer>, redis), moody(Arc::new(rocksdb), disk)];
        if self.disk_first {
            cold.reverse();
        }
        // Small and short, so that copies leave memory all the time.
        let memory = MemoryOptions { capacity_bytes: 16 << 10, policy: self.policy, max_ttl: Duration::from_secs(60) };
        let tags = TagOptions { removals_max: self.removals_max, life_max: Duration::from_secs(86_400) };
        let parts = Parts {
            memory: Memory::open(memory, clock.clone()),
            queue: self.queue.clone(),
            tags: Arc::new(TagIndex::open(tags, clock.clone())),
            write_mode: self.write_mode,
            journal: Some(JournalPlace { path: folder.path().join("journal"), owner: "me".to_owned() }),
            ..parts(clock, self.policy, cold)
        };
        Coordinator::open(parts, clock.clone()).await
    }
}

#[allow(clippy::disallowed_methods, reason = "closing takes real time, whatever the test's clock says")]
pub(super) async fn stop(node: &Coordinator) {
    node.shutdown(Instant::now() + Duration::from_secs(60)).await;
}

/// Stops the node without its queue being written. What it left in its journal is what a kill leaves.
#[allow(clippy::disallowed_methods, reason = "closing takes real time, whatever the test's clock says")]
pub(super) async fn abandon(node: &Coordinator) {
    node.write_queue().shutdown(Instant::now()).await;
    stop(node).await;
}
