//! Leases: of all who miss a key, one is to fetch its value, and what it fetched counts only if nothing has changed the
//! key since.
//!
//! Source: Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013.

mod table;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::sleep;

pub use self::table::LeaseCounts;
pub(super) use self::table::Leases;
use super::{Coordinator, Look, Traced, WriteError, WriteMode, freshness::Freshness, promote::Found};
use crate::{
    context::OperationContext,
    entry::{Entry, Key, Position},
    write_queue::{Full, Receipt, Ticket},
};

/// What became of a read that fetches the value if there is none.
#[derive(Debug)]
pub enum Leased {
    /// Here it is.
    Value(Entry),
    /// Somebody said that there is none, and it still holds.
    Negative,
    /// The caller is to fetch it, and to bring it by [`Coordinator::fill`] within this time.
    Granted(Token, Duration),
    /// Somebody else is fetching it, and has this long to do so. With what may be served until then, if anything.
    Wait(Option<Entry>, Duration),
}

/// What a lease is known by; above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub i64);

/// What one turn of the key came to.
enum Attempt {
    Done(Leased),
    /// Nothing is known without a look below.
    Cold(Ticket),
}

// === impl Coordinator ===

impl Coordinator {
    /// The entry of `key`, or a lease to fetch it, for one caller at a time. Of a stale value the first caller gets a
    /// lease, all others the value.
    ///
    /// # Errors
    /// [`WriteError::Unreadable`] if the key was written again and again until the deadline.
    pub async fn get_or_lease(
        &self,
        op: impl Into<Traced<'_>>,
        key: &Key,
        life: Duration,
    ) -> Result<Leased, WriteError> {
        let op = &mut op.into();
        let cx = op.cx;
        let mut read: Option<(Ticket, Option<Entry>)> = None;
        loop {
            match self.attempt_lease(cx, key, life, read.take()) {
                Attempt::Done(leased) => return Ok(leased),
                Attempt::Cold(_) if self.clock.monotonic() >= cx.deadline => return Err(WriteError::Unreadable),
                Attempt::Cold(ticket) => {
                    let ride = self.ask(cx, key, ticket);
                    let mut patience = pin!(sleep(self.freshness.soft_timeout));
                    // Whoever can be served a stale value does not wait for long.
                    let patience = self.stale(cx, key).map(|_| patience.as_mut());
                    let found = self.arrival(cx, &ride, patience).await;
                    op.note(&self.trail(&[ride]));
                    let stale = match found {
                        Found::Fresh(entry) => return Ok(Leased::Value(entry)),
                        Found::Stale(entry) => Some(entry),
                        Found::Absent | Found::Unknown => None,
                    };
                    read = Some((ticket, stale));
                }
            }
        }
    }

    /// One turn of the key, with what was read from below before it: that there is no fresh value, but maybe a stale one.
    fn attempt_lease(
        &self,
        cx: &OperationContext,
        key: &Key,
        life: Duration,
        read: Option<(Ticket, Option<Entry>)>,
    ) -> Attempt {
        let turn = self.stores.write_queue.turn(key.as_bytes());
        let is_negative = |entry: &Entry| self.stores.freshness(cx, entry) == Freshness::Negative;
        if self.stores.memory.peek(cx.now, key.as_bytes()).as_ref().is_some_and(is_negative) {
            return Attempt::Done(Leased::Negative);
        }
        let stale = match self.known(cx, &turn, key.as_bytes()) {
            Look::Hit(entry) => return Attempt::Done(Leased::Value(entry)),
            Look::Absent => self.stale(cx, key),
            Look::Stale(entry, None) => Some(entry),
            Look::Cold(now) | Look::Stale(_, Some(now)) => match read {
                Some((then, below)) if then == now => below.or_else(|| self.stale(cx, key)),
                _ => return Attempt::Cold(now),
            },
        };
        let position = self.stores.tags.position(cx.now);
        Attempt::Done(match self.leases.grant(key, self.clock.monotonic(), life, position) {
            Ok(token) => Leased::Granted(token, life),
            Err(left) => Leased::Wait(stale, left),
        })
    }

    /// What memory may serve past its expiry.
    fn stale(&self, cx: &OperationContext, key: &Key) -> Option<Entry> {
        let held = self.stores.memory.peek(cx.now, key.as_bytes());
        held.filter(|entry| self.stores.freshness(cx, entry) == Freshness::Stale)
    }

    /// As fresh as what? A value that is brought under this lease was fetched after this position. None if there is no
    /// such lease: it has ended, or the key has changed.
    pub fn leased_at(&self, key: &[u8], token: Token) -> Option<Position> {
        let position = self.leases.position(key, token, self.clock.monotonic());
        if position.is_none() {
            self.leases.refuse();
        }
        position
    }

    /// Stores an entry, which has the position of its lease, if nothing has changed its key, nor removed one of its tags,
    /// since the lease was granted; answers whether it did. The lease has ended then.
    ///
    /// # Errors
    /// As [`Coordinator::set`].
    pub async fn fill(&self, op: impl Into<Traced<'_>>, token: Token, entry: Entry) -> Result<bool, WriteError> {
        let op = &mut op.into();
        if !self.stores.write_queue.fits(&entry) {
            return Err(WriteError::TooLarge(entry.bytes()));
        }
        let receipt = (self.write_mode == WriteMode::Through).then(|| Receipt::new(1));
        loop {
            let room = self.stores.write_queue.room();
            match self.try_fill(op.cx, token, &entry, receipt.clone()) {
                Ok(false) => return Ok(false),
                Ok(true) => break,
                Err(Full) => self.roomy(op, room.for_value(op.cx.deadline)).await?,
            }
        }
        if let Some(receipt) = receipt {
            self.confirmed(op, &receipt, 1).await?;
        }
        Ok(true)
    }

    fn try_fill(
        &self,
        cx: &OperationContext,
        token: Token,
        entry: &Entry,
        receipt: Option<Arc<Receipt>>,
    ) -> Result<bool, Full> {
        let mut turn = self.stores.write_queue.turn(entry.key());
        // Under the turn: whatever changes the key afterwards changes it after the fill.
        let holds = self.leases.position(entry.key(), token, self.clock.monotonic()).is_some();
        if !holds || self.stores.freshness(cx, entry) == Freshness::Removed {
            self.leases.refuse();
            return Ok(false);
        }
        // As any change of the key this ends the lease.
        self.stores.set(cx, &mut turn, entry, receipt)?;
        self.leases.filled();
        Ok(true)
    }

    /// Leases held now, and what became of others, for metrics.
    pub fn leases(&self) -> LeaseCounts {
        self.leases.counts()
    }
}
