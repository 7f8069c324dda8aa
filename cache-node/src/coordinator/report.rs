//! The parts of a node and what the coordinator has counted, for reports.

use std::sync::Arc;

use super::Coordinator;
use crate::{
    backplane::Backplane,
    layer::{Component, Layer, memory::Memory},
    tag_index::TagIndex,
    write_queue::WriteQueue,
};

// === impl Coordinator ===

impl Coordinator {
    /// L1, for reports.
    pub fn memory(&self) -> &Memory {
        &self.stores.memory
    }

    /// What this node tells other nodes and hears from them.
    pub fn backplane(&self) -> &Backplane {
        &self.stores.backplane
    }

    /// The write queue, for reports.
    pub fn write_queue(&self) -> &WriteQueue {
        &self.stores.write_queue
    }

    /// The tag index, for reports.
    pub fn tags(&self) -> &TagIndex {
        &self.stores.tags
    }

    /// The layers below memory, for reports, in the order in which they are read.
    pub fn cold(&self) -> impl Iterator<Item = &Arc<dyn Layer>> {
        self.stores.cold.iter().map(|cold| &cold.layer)
    }

    /// Every part, from top to bottom, for reports.
    pub fn parts(&self) -> Vec<&dyn Component> {
        let mut parts: Vec<&dyn Component> = vec![self.memory(), self.tags(), self.write_queue()];
        parts.extend(self.backplane().is_on().then(|| self.backplane() as &dyn Component));
        parts.extend(self.cold().map(|layer| layer.as_ref() as &dyn Component));
        parts
    }

    /// Values that were brought from a cold layer into memory.
    pub fn promotions(&self) -> u64 {
        self.stores.promotions()
    }

    /// Values from a cold layer that were kept out of memory because their key was written meanwhile.
    pub fn promotions_refused(&self) -> u64 {
        self.stores.promotions_refused()
    }

    /// Reads answered with a value past its expiry, within its stale life.
    pub fn stale_hits(&self) -> u64 {
        self.refreshes.stale_hits()
    }

    /// An estimate of the number of entries, for `DBSIZE`.
    pub fn entries(&self) -> u64 {
        self.stores.entries()
    }
}
