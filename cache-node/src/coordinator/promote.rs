//! The layers side by side, and what moves between them: a write downward, a cold hit upward under its ticket.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    context::OperationContext,
    entry::{Entry, Key},
    layer::{Change, ErrorKind, Layer, LayerError, LayerResult, memory::Memory},
    write_queue::{Full, Pending, Receipt, Ticket, Turn, WriteQueue},
};

/// All places where an entry can be, from top to bottom.
pub(super) struct Stores {
    pub(super) memory: Memory,
    pub(super) write_queue: Arc<WriteQueue>,
    pub(super) cold: Vec<Arc<dyn Layer>>,
    promotions: AtomicU64,
    promotions_refused: AtomicU64,
    /// Evictions of memory from which on it no longer holds all entries; zero if it never did.
    complete_until: AtomicU64,
}

/// What the cold layers answered together.
#[derive(Clone, Debug)]
pub(super) enum ColdRead {
    Found(Entry),
    /// No layer holds anything under the key.
    Absent,
    /// There is something, but it is expired or damaged.
    Unusable,
    /// No layer had it, and not every layer could be asked.
    Failed,
}

/// What a removal came to under the turn of its key.
pub(super) enum Removal {
    /// There was nothing to remove in any layer.
    Absent,
    Queued {
        live: bool,
        receipt: Arc<Receipt>,
    },
    /// The key was written after it was looked at: look again.
    Changed,
    Full,
}

// === impl Stores ===

impl Stores {
    pub(super) fn new(memory: Memory, write_queue: Arc<WriteQueue>, cold: Vec<Arc<dyn Layer>>) -> Self {
        let warm = cold.iter().any(|layer| layer.stats().entries.is_some_and(|entries| entries > 0));
        Self {
            memory,
            write_queue,
            cold,
            promotions: AtomicU64::new(0),
            promotions_refused: AtomicU64::new(0),
            complete_until: AtomicU64::new(u64::from(!warm)),
        }
    }

    /// Forgets everything; the receipt tells when the cold layer has, too.
    pub(super) fn clear(&self) -> Arc<Receipt> {
        self.write_queue.clear(|| {
            self.memory.clear();
            self.complete_until.store(self.memory.evictions() + 1, Ordering::Relaxed);
        })
    }

    /// An estimate: exact while memory holds everything, else the larger of what memory holds and disk believes.
    pub(super) fn entries(&self) -> u64 {
        let memory = self.memory.entries();
        if self.memory.evictions() < self.complete_until.load(Ordering::Relaxed) {
            return memory;
        }
        self.cold.iter().filter_map(|layer| layer.stats().entries).max().unwrap_or(0).max(memory)
    }

    /// Stores the entry under the turn of its key. The queue first: a reader that finds memory still without it must
    /// find it there, or it would read an older copy from below.
    #[inline]
    pub(super) fn set(&self, cx: &OperationContext, turn: &mut Turn<'_>, entry: &Entry) -> Result<(), Full> {
        turn.push(cx.now, Change::Set(entry.clone()), None)?;
        self.memory.set(cx.now, entry);
        Ok(())
    }

    /// Forgets the key under its turn. The tombstone first, for the same reason.
    pub(super) fn remove(&self, cx: &OperationContext, turn: &mut Turn<'_>, key: &Key) -> Result<Arc<Receipt>, Full> {
        let receipt = Receipt::new(1);
        turn.push(cx.now, Change::Remove(key.clone()), Some(Arc::clone(&receipt)))?;
        self.memory.remove(key.as_bytes());
        Ok(receipt)
    }

    /// Forgets the key, of which the cold layers said `seen` when the ticket was issued.
    pub(super) fn remove_seen(&self, cx: &OperationContext, key: &Key, seen: Option<(Ticket, ColdRead)>) -> Removal {
        let mut turn = self.write_queue.turn(key.as_bytes());
        let live = if self.memory.peek(cx.now, key.as_bytes()).is_some_and(|entry| entry.is_live(cx.now)) {
            true
        } else if self.cold.is_empty() {
            false
        } else {
            match (turn.pending(key.as_bytes()), seen) {
                (Pending::Value(entry), _) => entry.is_live(cx.now),
                // Somebody else is removing it. This caller, too, is told only once that is certain.
                (Pending::Removed, _) => false,
                (Pending::Unknown, Some((ticket, read))) if turn.is_current(ticket) => match read {
                    ColdRead::Found(_) => true,
                    ColdRead::Absent => return Removal::Absent,
                    ColdRead::Unusable | ColdRead::Failed => false,
                },
                (Pending::Unknown, _) => return Removal::Changed,
            }
        };
        match self.remove(cx, &mut turn, key) {
            Ok(receipt) => Removal::Queued { live, receipt },
            Err(Full) => Removal::Full,
        }
    }

    /// Asks the cold layers in order, and promotes what one of them has.
    pub(super) async fn read_cold(self: Arc<Self>, cx: OperationContext, key: Key, ticket: Ticket) -> ColdRead {
        let mut outcome = ColdRead::Absent;
        for layer in &self.cold {
            match layer.get(&cx, &key).await {
                Ok(LayerResult::Hit(entry)) if entry.is_live(cx.now) => {
                    self.promote(&cx, ticket, &entry);
                    return ColdRead::Found(entry);
                }
                Ok(LayerResult::Hit(_) | LayerResult::StopWithoutValue) => return ColdRead::Unusable,
                Ok(LayerResult::Miss) => {}
                Ok(LayerResult::NotHandled) => outcome = ColdRead::Failed,
                Err(error) => outcome = outcome.but(&error),
            }
        }
        outcome
    }

    /// As [`Stores::read_cold`] for many keys, with one round trip to each layer.
    pub(super) async fn read_cold_many(
        &self,
        cx: &OperationContext,
        keys: &[Key],
        tickets: &[Ticket],
    ) -> Vec<ColdRead> {
        let mut outcomes = vec![ColdRead::Absent; keys.len()];
        let mut open: Vec<usize> = (0..keys.len()).collect();
        for layer in &self.cold {
            if open.is_empty() {
                break;
            }
            let asked: Vec<Key> = open.iter().map(|&index| keys[index].clone()).collect();
            match layer.get_many(cx, &asked).await {
                Ok(answers) => {
                    debug_assert_eq!(answers.len(), asked.len(), "a layer answers every key");
                    let mut still_open = Vec::new();
                    for (index, answer) in open.into_iter().zip(answers) {
                        match answer {
                            LayerResult::Hit(entry) if entry.is_live(cx.now) => {
                                self.promote(cx, tickets[index], &entry);
                                outcomes[index] = ColdRead::Found(entry);
                            }
                            LayerResult::Hit(_) | LayerResult::StopWithoutValue => outcomes[index] = ColdRead::Unusable,
                            LayerResult::Miss => still_open.push(index),
                            LayerResult::NotHandled => {
                                outcomes[index] = ColdRead::Failed;
                                still_open.push(index);
                            }
                        }
                    }
                    open = still_open;
                }
                Err(error) => open.iter().for_each(|&index| outcomes[index] = outcomes[index].but(&error)),
            }
        }
        outcomes
    }

    /// Puts an entry that was read from below into memory, unless its key was written since the ticket was issued. The
    /// entry keeps the expiry it was stored with.
    fn promote(&self, cx: &OperationContext, ticket: Ticket, entry: &Entry) {
        let turn = self.write_queue.turn(entry.key());
        if turn.is_current(ticket) {
            self.memory.set(cx.now, entry);
            self.promotions.fetch_add(1, Ordering::Relaxed);
        } else {
            self.promotions_refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn promotions(&self) -> u64 {
        self.promotions.load(Ordering::Relaxed)
    }

    /// Promotions refused because the key was written meanwhile.
    pub(super) fn promotions_refused(&self) -> u64 {
        self.promotions_refused.load(Ordering::Relaxed)
    }
}

// === impl ColdRead ===

impl ColdRead {
    pub(super) fn found(self) -> Option<Entry> {
        match self {
            Self::Found(entry) => Some(entry),
            Self::Absent | Self::Unusable | Self::Failed => None,
        }
    }

    /// The outcome with one layer's error. What is corrupt will never be readable; after any other error it may be.
    fn but(&self, error: &LayerError) -> Self {
        match (self, error.kind) {
            (Self::Failed, _) => Self::Failed,
            (_, ErrorKind::Corrupt) => Self::Unusable,
            _ => Self::Failed,
        }
    }
}
