//! All places where an entry can be, side by side, and what holds for all of them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{freshness::Freshness, times::Times};
use crate::{
    backplane::{Backplane, Notice, What},
    clock::{Clock, UnixMillis},
    context::{OperationContext, Origin, Trust},
    entry::{Entry, Position},
    layer::{Layer, memory::Memory},
    tag_index::TagIndex,
    write_queue::{Receipt, Turn, WriteQueue},
};

/// All places where an entry can be. In which order they are read, [`Stores::in_order`] says.
pub(super) struct Stores {
    pub(super) memory: Memory,
    pub(super) write_queue: Arc<WriteQueue>,
    pub(super) cold: Vec<Cold>,
    pub(super) tags: Arc<TagIndex>,
    pub(super) backplane: Arc<Backplane>,
    pub(super) clock: Clock,
    pub(super) times: Times,
    pub(super) promotions: AtomicU64,
    pub(super) promotions_refused: AtomicU64,
    /// Evictions of memory from which on it no longer holds all entries; zero if it never did.
    complete_until: AtomicU64,
}

/// A store below memory.
pub(super) struct Cold {
    pub(super) layer: Arc<dyn Layer>,
    /// Whether the removals by tag that it keeps are known. Until then nothing that it holds is served.
    pub(super) tags_known: AtomicBool,
    /// How often they had to be learned anew.
    pub(super) tags_forgotten: AtomicU64,
    /// Whether it was told what it has missed; what it misses from then on the log says.
    pub(super) tags_told: AtomicBool,
}

// === impl Stores ===

impl Stores {
    pub(super) fn new(
        memory: Memory,
        write_queue: Arc<WriteQueue>,
        cold: Vec<Arc<dyn Layer>>,
        tags: Arc<TagIndex>,
        backplane: Arc<Backplane>,
    ) -> Self {
        let clock = backplane.clock().clone();
        let warm = cold.iter().any(|layer| layer.stats().entries != Some(0));
        Self {
            memory,
            write_queue,
            cold: cold.into_iter().map(Cold::new).collect(),
            tags,
            backplane,
            clock,
            times: Times::default(),
            promotions: AtomicU64::new(0),
            promotions_refused: AtomicU64::new(0),
            complete_until: AtomicU64::new(u64::from(!warm)),
        }
    }

    /// Memory may lack entries that other layers have.
    pub(super) fn forget_completeness(&self) {
        self.complete_until.store(0, Ordering::Relaxed);
    }

    /// Drops from memory what is past its life or was removed by tag.
    pub(super) fn sweep(&self, now: UnixMillis) {
        self.tags.tick();
        let _ = self.memory.sweep(now, |entry| self.tags.is_removed(entry.tags(), entry.position()));
    }

    /// Forgets everything; the receipt tells when the cold layers have, too.
    pub(super) fn clear(&self, cx: &OperationContext) -> Arc<Receipt> {
        self.write_queue.clear(|| {
            self.memory.clear();
            self.complete_until.store(self.memory.evictions() + 1, Ordering::Relaxed);
            self.tell(cx, What::Everything);
        })
    }

    /// Tells of a change that this node has made.
    #[inline]
    pub(super) fn tell(&self, cx: &OperationContext, what: What<'_>) {
        self.backplane.tell(&Notice { origin: cx.origin, operation: cx.id, position: Position::NONE, what });
    }

    /// Tells that the queue has dropped a value, which is therefore removed everywhere.
    pub(super) fn forgot(&self, key: &[u8]) {
        let origin = Origin::Replay;
        self.backplane.tell(&Notice { origin, operation: 0, position: Position::NONE, what: What::Key(key) });
    }

    /// An estimate: exact while memory holds everything, else the larger of what memory holds and disk believes.
    pub(super) fn entries(&self) -> u64 {
        let memory = self.memory.entries();
        if self.memory.evictions() < self.complete_until.load(Ordering::Relaxed) {
            return memory;
        }
        self.cold.iter().filter_map(|cold| cold.layer.stats().entries).max().unwrap_or(0).max(memory)
    }

    /// What memory holds, unless the node is fenced.
    #[inline]
    pub(super) fn trusted(&self, cx: &OperationContext, held: Option<Entry>) -> Option<Entry> {
        match cx.trust {
            Trust::Full => held,
            Trust::Stale => held.inspect(|_| self.backplane.served_stale()),
            Trust::None => None,
        }
    }

    pub(super) fn freshness(&self, cx: &OperationContext, entry: &Entry) -> Freshness {
        Freshness::of(entry, cx.now, &self.tags)
    }
}

/// Whether a value in the queue may be served. What a fenced node has on its way to its own disk alone is what its memory
/// held.
pub(super) fn trusts_queued(cx: &OperationContext, turn: &Turn<'_>, key: &[u8]) -> bool {
    cx.trust != Trust::None || turn.is_untold(key)
}

// === impl Cold ===

impl Cold {
    fn new(layer: Arc<dyn Layer>) -> Self {
        let tags_known = AtomicBool::new(false);
        Self { layer, tags_known, tags_forgotten: AtomicU64::new(0), tags_told: AtomicBool::new(false) }
    }
}
