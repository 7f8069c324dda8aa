//! What moves up: a value from below into memory, and sideways into the layers that may lack it, under its ticket.

use std::sync::atomic::Ordering;

use super::{search::Search, stores::Stores};
use crate::{
    context::OperationContext,
    entry::{Entry, EntryMeta},
    layer::LayerId,
    write_queue::Lanes,
};

// === impl Stores ===

impl Stores {
    /// Puts an entry that was read from below into memory and into the layers that may lack it, unless its key was
    /// written since the ticket was issued. The entry keeps the expiry it was stored with.
    pub(super) fn promote(&self, cx: &OperationContext, search: &Search, entry: &Entry, lacking: Lanes) {
        let mut turn = self.write_queue.turn(entry.key());
        if !turn.is_current(search.ticket) {
            self.promotions_refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.memory.set(cx.now, entry);
        if lacking != Lanes::NONE {
            let to_redis = self.backplane.is_on() && lacking.contains(Lanes::of(LayerId::Redis));
            // Redis takes a fill only if the log has nothing newer about the key than what was known here.
            let meta = EntryMeta { position: search.seen, ..entry.meta() };
            let copy = if to_redis { Entry::new(entry.key(), entry.value(), meta) } else { entry.clone() };
            turn.fill(cx.now, copy, lacking);
        }
        self.promotions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn promotions(&self) -> u64 {
        self.promotions.load(Ordering::Relaxed)
    }

    /// Promotions refused because the key was written meanwhile.
    pub(super) fn promotions_refused(&self) -> u64 {
        self.promotions_refused.load(Ordering::Relaxed)
    }
}
