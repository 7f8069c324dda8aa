//! Fills: what was fetched under a lease is stored, unless something has changed its key since.

use std::sync::Arc;

use super::{Token, table::Grant};
use crate::{
    backplane::What,
    context::OperationContext,
    coordinator::{Coordinator, Traced, WriteError, WriteMode, freshness::Freshness, stores::Stores},
    entry::{Entry, EntryMeta, Key, Position},
    layer::{Change, lease::SharedLeases},
    write_queue::{Full, Pending, Receipt, Ticket, Turn},
};

/// A lease as it is named with a fill.
#[derive(Clone, Copy)]
struct Named {
    token: Token,
    grant: Grant,
    /// Whether this node has granted it, and knows of no change since.
    is_known: bool,
}

/// Where a fill goes from here.
#[derive(Clone, Copy)]
enum Way {
    /// Wherever writes go.
    EveryLayer,
    /// To what belongs to this node alone.
    OwnLayers,
}

// === impl Coordinator ===

impl Coordinator {
    /// Stores an entry under the lease with this token, if nothing has changed its key, nor removed one of its tags,
    /// since the lease was granted, by this node or by another; answers whether it did. The lease has ended then.
    ///
    /// # Errors
    /// As [`Coordinator::set`].
    pub async fn fill(&self, op: impl Into<Traced<'_>>, token: Token, entry: Entry) -> Result<bool, WriteError> {
        let op = &mut op.into();
        if !self.stores.write_queue.fits(&entry) {
            return Err(WriteError::TooLarge(entry.bytes()));
        }
        let held = self.leases.grant_of(entry.key(), token, self.clock.monotonic());
        let filled = match (&self.shared_leases, held) {
            (None, Some(grant)) => self.fill_here(op, token, &as_fresh(entry, grant), Way::EveryLayer).await?,
            (None, None) => false,
            (Some(_), Some(grant)) if !grant.is_shared => {
                self.fill_here(op, token, &as_fresh(entry, grant), Way::OwnLayers).await?
            }
            (Some(shared), Some(grant)) => {
                self.fill_shared(op, shared, Named { token, grant, is_known: true }, entry).await?
            }
            // A client may bring the value to another node than the one that sent it for it.
            (Some(shared), None) => match shared.granted(op.cx, entry.key(), token.0).await {
                Ok(Some(position)) => {
                    let grant = Grant { position, is_shared: true };
                    self.fill_shared(op, shared, Named { token, grant, is_known: false }, entry).await?
                }
                Ok(None) | Err(_) => false,
            },
        };
        if filled {
            self.leases.filled()
        } else {
            self.leases.refuse()
        }
        Ok(filled)
    }

    /// Stores the entry under a lease that this node alone knows of, or alone can judge.
    async fn fill_here(&self, op: &mut Traced<'_>, token: Token, entry: &Entry, way: Way) -> Result<bool, WriteError> {
        let receipt = self.fill_receipt();
        loop {
            let room = self.stores.write_queue.room();
            match self.try_fill(op.cx, token, entry, (way, receipt.clone())) {
                Ok(false) => return Ok(false),
                Ok(true) => break,
                Err(Full) => self.roomy(op, room.for_value(op.cx.deadline)).await?,
            }
        }
        self.fill_confirmed(op, receipt).await
    }

    fn try_fill(
        &self,
        cx: &OperationContext,
        token: Token,
        entry: &Entry,
        (way, receipt): (Way, Option<Arc<Receipt>>),
    ) -> Result<bool, Full> {
        let mut turn = self.stores.write_queue.turn(entry.key());
        // Under the turn: whatever changes the key afterwards changes it after the fill.
        let holds = self.leases.grant_of(entry.key(), token, self.clock.monotonic()).is_some();
        if !holds || self.stores.freshness(cx, entry) == Freshness::Removed {
            return Ok(false);
        }
        // As any change of the key this ends the lease.
        match way {
            Way::EveryLayer => self.stores.set(cx, &mut turn, entry, receipt)?,
            Way::OwnLayers => {
                let known = self.stores.backplane.position();
                self.stores.set_own(cx, &mut turn, entry, (known, receipt))?;
            }
        }
        Ok(true)
    }

    /// Has Redis store the entry, and then the layers of this node, unless the key was changed meanwhile.
    async fn fill_shared(
        &self,
        op: &mut Traced<'_>,
        shared: &Arc<dyn SharedLeases>,
        lease: Named,
        entry: Entry,
    ) -> Result<bool, WriteError> {
        let entry = as_fresh(entry, lease.grant);
        let Some(ticket) = self.may_fill(op.cx, lease, &entry) else { return Ok(false) };
        match shared.fill(op.cx, (lease.token.0, lease.grant.position), &entry).await {
            Ok(Some(at)) => self.place(op, &entry, (ticket, at)).await,
            Ok(None) => Ok(false),
            Err(error) if lease.is_known => {
                tracing::debug!(%error, "a fill stays on this node");
                self.fill_here(op, lease.token, &entry, Way::OwnLayers).await
            }
            Err(_) => Ok(false),
        }
    }

    /// Whether nothing that this node knows forbids the fill, and when that was so.
    fn may_fill(&self, cx: &OperationContext, lease: Named, entry: &Entry) -> Option<Ticket> {
        let turn = self.stores.write_queue.turn(entry.key());
        let holds = if lease.is_known {
            self.leases.grant_of(entry.key(), lease.token, self.clock.monotonic()).is_some()
        } else {
            // What was accepted here and is not in Redis yet ends a lease there only once it is.
            matches!(turn.pending(entry.key()), Pending::Unknown) && self.shared_leases().is_some()
        };
        (holds && self.stores.freshness(cx, entry) != Freshness::Removed).then(|| turn.ticket())
    }

    /// Redis has the fill at this position: now the layers of this node, which must not keep what is older.
    async fn place(
        &self,
        op: &mut Traced<'_>,
        entry: &Entry,
        (ticket, at): (Ticket, Position),
    ) -> Result<bool, WriteError> {
        self.stores.tags.see_in_log(at);
        self.stores.backplane.published();
        let receipt = self.fill_receipt();
        loop {
            let room = self.stores.write_queue.room();
            match self.stores.place(op.cx, entry, ticket, (at, receipt.clone())) {
                Ok(true) => break,
                Ok(false) => return Ok(true),
                Err(Full) => self.roomy(op, room.for_value(op.cx.deadline)).await?,
            }
        }
        self.fill_confirmed(op, receipt).await
    }

    fn fill_receipt(&self) -> Option<Arc<Receipt>> {
        (self.write_mode == WriteMode::Through).then(|| Receipt::new(1))
    }

    async fn fill_confirmed(&self, op: &mut Traced<'_>, receipt: Option<Arc<Receipt>>) -> Result<bool, WriteError> {
        if let Some(receipt) = receipt {
            self.confirmed(op, &receipt, 1).await?;
        }
        Ok(true)
    }
}

/// As fresh as its lease, not as its arrival: what was removed since concerns it.
fn as_fresh(entry: Entry, grant: Grant) -> Entry {
    // Only tags are compared with positions.
    if entry.position() == Position::NONE {
        return entry;
    }
    Entry::new(entry.key(), entry.value(), EntryMeta { position: grant.position, ..entry.meta() })
}

// === impl Stores ===

impl Stores {
    /// Stores the entry in the layers of this node alone, at this place in the log, under the turn of its key.
    fn set_own(
        &self,
        cx: &OperationContext,
        turn: &mut Turn<'_>,
        entry: &Entry,
        (at, receipt): (Position, Option<Arc<Receipt>>),
    ) -> Result<(), Full> {
        turn.push_own(cx.now, Change::Set(entry.clone()), at, receipt)?;
        self.memory.set(cx.now, entry);
        self.tell(cx, What::Key(entry.key()));
        Ok(())
    }

    /// The same with an entry that Redis has already, if nothing was written to its key since the ticket was issued. Else
    /// what is older than it goes. Answers whether the receipt is of use.
    fn place(
        &self,
        cx: &OperationContext,
        entry: &Entry,
        ticket: Ticket,
        (at, receipt): (Position, Option<Arc<Receipt>>),
    ) -> Result<bool, Full> {
        let mut turn = self.write_queue.turn(entry.key());
        if turn.is_current(ticket) {
            self.set_own(cx, &mut turn, entry, (at, receipt))?;
            return Ok(true);
        }
        let is_older = turn.supersede(cx.now, entry.key(), at);
        if is_older {
            let key = Key::new(entry.key().to_vec()).expect("an entry has a key");
            turn.push_own(cx.now, Change::Remove(key), at, receipt)?;
            self.memory.remove(entry.key());
            self.tell(cx, What::Key(entry.key()));
        }
        Ok(is_older)
    }
}
