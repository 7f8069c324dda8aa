//! Operations that have a number, and writes that tell what they waited for.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{Coordinator, WriteError, below::within};
use crate::{
    context::{OperationContext, Outcome, Trail, TrailStep},
    layer::{Component, Layer},
    write_queue::{Full, Lanes, Receipt},
};

/// An operation, and where to note which parts it asked and waited for, if somebody wants to know. Made from its context,
/// or from both.
#[derive(Debug)]
pub struct Traced<'a> {
    pub(super) cx: &'a OperationContext,
    trail: Option<&'a mut Trail>,
}

// === impl Traced ===

impl Traced<'_> {
    /// The same operation, for one of several steps.
    pub(super) fn again(&mut self) -> Traced<'_> {
        Traced { cx: self.cx, trail: self.trail.as_deref_mut() }
    }

    /// Notes what was read, one after the other.
    pub(super) fn note(&mut self, trail: &Trail) {
        trail.steps().for_each(|step| self.add(*step));
    }

    fn add(&mut self, step: TrailStep) {
        if let Some(trail) = &mut self.trail {
            trail.add(step);
        }
    }
}

impl<'a> From<&'a OperationContext> for Traced<'a> {
    fn from(cx: &'a OperationContext) -> Self {
        Self { cx, trail: None }
    }
}

impl<'a> From<(&'a OperationContext, &'a mut Trail)> for Traced<'a> {
    fn from((cx, trail): (&'a OperationContext, &'a mut Trail)) -> Self {
        Self { cx, trail: Some(trail) }
    }
}

// === impl Coordinator ===

impl Coordinator {
    /// A number for an operation that begins now; no other of this node has it.
    pub fn number(&self) -> u64 {
        self.operations.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits until the layers have so many changes.
    pub(super) async fn confirmed(
        &self,
        op: &mut Traced<'_>,
        receipt: &Receipt,
        changes: usize,
    ) -> Result<(), WriteError> {
        let begun = self.clock.monotonic();
        let mut missing = receipt.missing();
        self.note_lanes(op, begun, (receipt.concerned().without(missing), changes, Outcome::Written), receipt);
        while !receipt.is_settled() {
            let Some(left) = within(op.cx, receipt.fewer_than(missing)).await else {
                self.note_lanes(op, begun, (missing, changes, Outcome::Unconfirmed), receipt);
                return Err(WriteError::Unconfirmed);
            };
            self.note_lanes(op, begun, (missing.without(left), changes, Outcome::Written), receipt);
            missing = left;
        }
        Ok(())
    }

    fn note_lanes(
        &self,
        op: &mut Traced<'_>,
        begun: Instant,
        (lanes, keys, outcome): (Lanes, usize, Outcome),
        receipt: &Receipt,
    ) {
        let took = self.clock.monotonic().saturating_duration_since(begun);
        let is_meant = |layer: &&Arc<dyn Layer>| lanes.contains(Lanes::of(layer.id()));
        for layer in self.cold().filter(is_meant) {
            let excused = receipt.excused().contains(Lanes::of(layer.id()));
            let outcome = if excused { Outcome::Excused } else { outcome };
            op.add(TrailStep { part: layer.name(), outcome, keys, hits: 0, failed: 0, took });
        }
    }

    /// Waits for room in the queue.
    pub(super) async fn roomy(
        &self,
        op: &mut Traced<'_>,
        room: impl Future<Output = Result<(), Full>>,
    ) -> Result<(), WriteError> {
        let begun = self.clock.monotonic();
        let outcome = room.await;
        let took = self.clock.monotonic().saturating_duration_since(begun);
        let part = self.write_queue().name();
        op.add(TrailStep { part, outcome: Outcome::Full, keys: 1, hits: 0, failed: 0, took });
        Ok(outcome?)
    }
}
