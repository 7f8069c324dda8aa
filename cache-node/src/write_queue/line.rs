//! The part of a shard that one cold layer is served from.

use std::collections::VecDeque;

use super::batch::Order;

/// Slots that one cold layer owes, in the orders in which it gets them. Every queued slot stands in at least one.
#[derive(Default)]
pub(super) struct Line {
    /// Slots that somebody waits for; they stand in another order too, whichever comes first.
    urgent: VecDeque<Ref>,
    /// Slots of which only the key is left.
    keys: VecDeque<Ref>,
    accepted: VecDeque<Ref>,
    /// Slots queued here.
    pub(super) queued: u64,
}

/// Finds a slot again, unless it is gone.
#[derive(Clone, Copy)]
pub(super) struct Ref {
    pub(super) hash: u64,
    pub(super) id: u64,
    /// When the write was accepted that this reference stands for.
    pub(super) at_ms: u64,
}

// === impl Line ===

impl Line {
    pub(super) fn order(&mut self, order: Order) -> &mut VecDeque<Ref> {
        match order {
            Order::Urgent => &mut self.urgent,
            Order::Keys => &mut self.keys,
            Order::Accepted => &mut self.accepted,
        }
    }

    pub(super) fn has_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    pub(super) fn has_work(&self) -> bool {
        self.queued > 0
    }

    /// The first reference of each order that is good.
    pub(super) fn heads(&self, is_good: impl Fn(&Ref) -> bool) -> impl Iterator<Item = &Ref> {
        let orders = [&self.urgent, &self.keys, &self.accepted];
        orders.into_iter().filter_map(move |order| order.iter().find(|reference| is_good(reference)))
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
