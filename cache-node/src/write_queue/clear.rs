//! The clears that one cold layer is owed: one attempt carries out all that were ordered before it.

use std::sync::Arc;

use super::Receipt;

/// The clears that one layer is owed.
#[derive(Default)]
pub(super) struct Clear {
    /// Counts the orders to clear.
    ordered: u64,
    done: u64,
    /// Since when the oldest is owed that is not carried out.
    oldest_ms: Option<u64>,
    /// The same of those ordered since the last attempt began, which that one does not carry out.
    later_ms: Option<u64>,
    /// Somebody was told that it is kept for the layer.
    was_excused: bool,
    pub(super) receipts: Vec<Arc<Receipt>>,
}

/// A clear being carried out.
pub(super) struct Begun {
    ordered: u64,
    pub(super) receipts: Vec<Arc<Receipt>>,
}

// === impl Clear ===

impl Clear {
    pub(super) const fn is_owed(&self) -> bool {
        self.ordered != self.done
    }

    pub(super) const fn oldest_ms(&self) -> Option<u64> {
        self.oldest_ms
    }

    /// One more is owed; `since_ms` is older than now if it stands for what was forgotten.
    pub(super) fn order(&mut self, since_ms: u64) {
        self.ordered += 1;
        self.oldest_ms.get_or_insert(since_ms);
        self.later_ms.get_or_insert(since_ms);
    }

    pub(super) fn begin(&mut self) -> Begun {
        self.later_ms = None;
        Begun { ordered: self.ordered, receipts: std::mem::take(&mut self.receipts) }
    }

    /// What had been ordered when the attempt began is carried out. Answers whether somebody was told that it is kept.
    pub(super) fn end(&mut self, begun: &Begun) -> bool {
        self.done = begun.ordered;
        self.oldest_ms = self.later_ms;
        std::mem::take(&mut self.was_excused)
    }

    /// Answers who waits, who need not any more.
    pub(super) fn excuse(&mut self) -> Vec<Arc<Receipt>> {
        self.was_excused |= !self.receipts.is_empty();
        std::mem::take(&mut self.receipts)
    }
}
