//! Read-modify-write of one key: atomic on this node, whatever layer holds the value.

use std::sync::Arc;

use super::{Confirmed, Coordinator, Freshness, Look, Traced, WriteError, WriteMode, search::Found, stores::Stores};
use crate::{
    context::OperationContext,
    entry::{Entry, Key},
    layer::Change,
    write_queue::{Full, Receipt, Ticket, Turn},
};

/// What a read-modify-write does with what it has read.
#[derive(Debug)]
pub enum Update {
    /// Nothing.
    Keep,
    /// Store this entry, which has the key that was read, whatever was there.
    Set(Entry),
    /// Store this entry, which was made of the one that was read: it must not outlive that one. If another node has removed
    /// or replaced that one meanwhile, the key is forgotten.
    Revise(Entry),
    /// Forget the key.
    Remove,
}

/// The outcome of [`Coordinator::try_update`].
#[derive(Debug)]
pub enum TryUpdate<T> {
    /// Done, with what the closure answered.
    Done(T),
    /// It takes I/O: call [`Coordinator::update`]. The closure may have run, but nothing has changed.
    Cold,
}

/// What a read-modify-write came to under the turn of its key.
enum Attempt<T> {
    /// With a receipt if the layers must confirm it.
    Done(T, Option<Arc<Receipt>>),
    /// Done by a removal, which the layers must confirm.
    Removed(T, Arc<Receipt>),
    /// Nothing has changed: the value is not known without I/O.
    Cold(Ticket),
    /// Nothing has changed: there is no room for the write.
    Full,
}

// === impl Coordinator ===

impl Coordinator {
    /// Lets `change` decide on the live entry of `key`, atomically on this node, if that takes no waiting. `change` may
    /// run without effect, so it must be pure; it runs under a lock, so it must be quick.
    #[inline]
    pub fn try_update<T>(
        &self,
        cx: &OperationContext,
        key: &[u8],
        mut change: impl FnMut(Option<&Entry>) -> (Update, T),
    ) -> TryUpdate<T> {
        let mut turn = self.stores.write_queue.turn(key);
        let current = match self.known(cx, &turn, key) {
            Look::Hit(entry) => Some(entry),
            Look::Absent | Look::Stale(_, None) => None,
            Look::Cold(_) | Look::Stale(_, Some(_)) => return TryUpdate::Cold,
        };
        let (update, answer) = change(current.as_ref());
        let is_done = match update {
            Update::Keep => true,
            Update::Set(_) | Update::Revise(_) if self.write_mode == WriteMode::Through => false,
            Update::Set(entry) => self.stores.set(cx, &mut turn, &entry, None).is_ok(),
            Update::Revise(entry) => self.stores.revise(cx, &mut turn, &entry, None).is_ok(),
            Update::Remove => false,
        };
        if is_done { TryUpdate::Done(answer) } else { TryUpdate::Cold }
    }

    /// As [`Coordinator::try_update`], reading cold layers and waiting for room and for the confirmation of a removal.
    ///
    /// # Errors
    /// [`WriteError`]; only after [`WriteError::Unconfirmed`] the change may still take effect.
    pub async fn update<T>(
        &self,
        op: impl Into<Traced<'_>>,
        key: &Key,
        change: impl FnMut(Option<&Entry>) -> (Update, T),
    ) -> Result<T, WriteError> {
        Ok(self.update_told(op, key, change).await?.0)
    }

    /// As [`Coordinator::update`], and says who knows of the change.
    ///
    /// # Errors
    /// Those of [`Coordinator::update`].
    pub async fn update_told<T>(
        &self,
        op: impl Into<Traced<'_>>,
        key: &Key,
        mut change: impl FnMut(Option<&Entry>) -> (Update, T),
    ) -> Result<(T, Confirmed), WriteError> {
        let op = &mut op.into();
        let mut read: Option<(Ticket, Found)> = None;
        loop {
            let cx = &self.renewed(op.cx);
            let room = self.stores.write_queue.room();
            match self.attempt(cx, key, read.take(), &mut change)? {
                Attempt::Done(answer, None) => return Ok((answer, Confirmed::Accepted)),
                Attempt::Done(answer, Some(receipt)) | Attempt::Removed(answer, receipt) => {
                    return Ok((answer, self.told(op, &receipt, 1).await?));
                }
                Attempt::Cold(ticket) => {
                    let ride = self.ask(cx, key, ticket);
                    let found = self.arrival(cx, &ride, None).await;
                    op.note(&self.trail(&[ride]));
                    if matches!(found, Found::Unknown) || self.clock.monotonic() >= cx.deadline {
                        return Err(WriteError::Unreadable);
                    }
                    read = Some((ticket, found));
                }
                Attempt::Full => self.roomy(op, room.for_value(cx.deadline)).await?,
            }
        }
    }

    /// One turn of the key, with what was read from below before it, which counts only if its ticket still does.
    fn attempt<T>(
        &self,
        cx: &OperationContext,
        key: &Key,
        read: Option<(Ticket, Found)>,
        change: &mut impl FnMut(Option<&Entry>) -> (Update, T),
    ) -> Result<Attempt<T>, WriteError> {
        let mut turn = self.stores.write_queue.turn(key.as_bytes());
        let current = match self.known(cx, &turn, key.as_bytes()) {
            Look::Hit(entry) => Some(entry),
            Look::Absent | Look::Stale(_, None) => None,
            Look::Cold(now) | Look::Stale(_, Some(now)) => match read {
                Some((then, Found::Fresh(entry))) if then == now => Some(entry),
                Some((then, _)) if then == now => None,
                _ => return Ok(Attempt::Cold(now)),
            },
        };
        let (update, answer) = change(current.as_ref());
        let is_revised = matches!(update, Update::Revise(_));
        Ok(match update {
            Update::Keep => Attempt::Done(answer, None),
            Update::Set(entry) | Update::Revise(entry) if !self.stores.write_queue.fits(&entry) => {
                return Err(WriteError::TooLarge(entry.bytes()));
            }
            Update::Set(entry) | Update::Revise(entry) => {
                let receipt = (self.write_mode == WriteMode::Through).then(|| Receipt::new(1));
                let store = if is_revised { Stores::revise } else { Stores::set };
                match store(&self.stores, cx, &mut turn, &entry, receipt.clone()) {
                    Ok(()) => Attempt::Done(answer, receipt),
                    Err(Full) => Attempt::Full,
                }
            }
            Update::Remove => {
                let receipt = Receipt::new(0);
                match self.stores.remove(cx, &mut turn, key, &receipt) {
                    Ok(()) => Attempt::Removed(answer, receipt),
                    Err(Full) => Attempt::Full,
                }
            }
        })
    }

    /// What is known about the key under its turn.
    pub(super) fn known(&self, cx: &OperationContext, turn: &Turn<'_>, key: &[u8]) -> Look {
        if let Some(entry) = self.stores.trusted(cx, self.stores.memory.peek(cx.now, key)) {
            match self.stores.freshness(cx, &entry) {
                Freshness::Fresh => return Look::Hit(entry),
                Freshness::Negative => return Look::Absent,
                Freshness::Stale | Freshness::Expired | Freshness::Removed => {}
            }
        }
        if self.stores.cold.is_empty() { Look::Absent } else { self.below(cx, turn, key) }
    }
}

// === impl Stores ===

impl Stores {
    /// Stores an entry that was made of the one that is known here, under the turn of its key.
    fn revise(
        &self,
        cx: &OperationContext,
        turn: &mut Turn<'_>,
        entry: &Entry,
        receipt: Option<Arc<Receipt>>,
    ) -> Result<(), Full> {
        // Up to here it is known that nobody has changed the key: what others did has spoilt what was known of it.
        let seen = self.backplane.is_on().then(|| self.backplane.position());
        self.take_in(cx, entry, || match seen {
            Some(seen) => turn.revise(cx.now, entry, seen, receipt),
            None => turn.push(cx.now, Change::Set(entry.clone()), receipt),
        })
    }
}

impl From<Full> for WriteError {
    fn from(Full: Full) -> Self {
        Self::QueueFull
    }
}
