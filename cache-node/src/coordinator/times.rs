//! How long the parts take that are called within the process, timed by their caller. The cold layers are timed by
//! [`Metered`](crate::layer::metered::Metered).

use std::time::Instant;

use crate::{clock::Clock, context::OperationContext, metrics::Histogram};

/// The times of one node.
#[derive(Default)]
pub(super) struct Times {
    /// Looks of clients into memory.
    pub(super) memory_get: Histogram,
    /// Values put into memory by clients.
    pub(super) memory_set: Histogram,
    /// Values taken in by the write queue.
    pub(super) accept: Histogram,
    /// Removals by tag noted by the tag index.
    pub(super) tag_removal: Histogram,
}

// === impl Times ===

impl Times {
    /// When a step in memory begins, if the operation is one of those that are timed.
    #[inline]
    pub(super) fn begin(cx: &OperationContext, clock: &Clock) -> Option<Instant> {
        if cx.is_timed() { Some(clock.monotonic()) } else { None }
    }

    /// A timed step is over, and the next begins.
    #[cold]
    pub(super) fn lap(step: &Histogram, begun: Instant, clock: &Clock) -> Instant {
        let now = clock.monotonic();
        step.observe_since(begun, now);
        now
    }
}
