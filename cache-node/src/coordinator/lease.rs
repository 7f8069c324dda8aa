//! Leases: of all who miss a key, one is to fetch its value, and what it fetched counts only if nothing has changed the
//! key since.
//!
//! With a Redis the lease is kept there, so that it is one in the whole fleet and ends with any change that any node
//! makes; the node asks for it once, however many of its clients miss the key, and knows the leases of its own clients,
//! which end here with every change that it makes or hears of. A fill is one step in Redis, past the write queue: only
//! there can it be refused for a change that this node has not heard of. The order of the key is kept all the same. A
//! change that was accepted here before the fill has ended the lease here. One that is accepted later reaches Redis later,
//! and its place in memory and queue it has already: the fill, which comes back with its position in the log, gives way
//! to it by the ticket, as a promotion does.
//!
//! A Redis that can not be asked makes a lease the node's own: one filler per node. What is brought under it is as fresh
//! as what the node knew of the log when it granted the lease, stays on this node, and is given up with the first change
//! of the key that the log tells of afterwards. While the node is fenced it counts as missing, like all that it holds:
//! nobody can tell whether it is still good.
//!
//! Source: Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013.

mod fill;
mod table;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::sleep;

pub use self::table::LeaseCounts;
pub(super) use self::table::Leases;
use super::{Coordinator, Look, Traced, WriteError, freshness::Freshness, search::Found};
use crate::{
    context::OperationContext,
    entry::{Entry, Key},
    layer::{
        LayerId,
        lease::{SharedLeases, Taken},
    },
    write_queue::Ticket,
};

/// How often a lease is asked for while copies come that count as none.
const COPIES_MAX: usize = 3;

/// How long somebody waits for whom nothing is known but that he has to.
const WAIT: Duration = Duration::from_millis(10);

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
    /// No other caller of this node has the lease. With what may be served past its expiry.
    Reserved(Token, Option<Entry>),
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
                Attempt::Reserved(token, stale) => return Ok(self.take(cx, key, (token, life), stale).await),
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
        match self.leases.reserve(key, self.clock.monotonic(), life, position) {
            Ok(token) => Attempt::Reserved(token, stale),
            Err(left) => Attempt::Done(Leased::Wait(stale, left)),
        }
    }

    /// Takes the lease that is reserved on this node from all others.
    async fn take(
        &self,
        cx: &OperationContext,
        key: &Key,
        (token, life): (Token, Duration),
        stale: Option<Entry>,
    ) -> Leased {
        let granted = Leased::Granted(token, life);
        let Some(shared) = self.shared_leases() else {
            if self.shared_leases.is_some() {
                self.leases.granted_alone()
            } else {
                self.leases.granted()
            }
            return granted;
        };
        let mut dead = None;
        for _ in 0..COPIES_MAX {
            let leased = match shared.take(cx, key, (token.0, life), dead).await {
                Ok(Taken::Granted(position)) => {
                    // Removals by tag that this node makes from now on come after it.
                    self.stores.tags.see_in_log(position);
                    self.leases.share(key.as_bytes(), token, position);
                    self.leases.granted();
                    return granted;
                }
                Ok(Taken::Held(left)) => {
                    self.leases.waited();
                    Leased::Wait(stale, left)
                }
                Ok(Taken::Found(copy, version)) => match copy.map(|copy| (self.stores.freshness(cx, &copy), copy)) {
                    // Nor is it known whether it is dead: until the node knows again, the lease is its own.
                    Some((_, entry)) if self.stores.is_beyond_knowledge(&entry) => {
                        self.leases.granted_alone();
                        return granted;
                    }
                    Some((Freshness::Fresh, entry)) => Leased::Value(entry),
                    Some((Freshness::Negative, _)) => Leased::Negative,
                    Some((Freshness::Stale | Freshness::Expired | Freshness::Removed, _)) | None => {
                        dead = Some(version);
                        continue;
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, "a lease is the node's own");
                    self.leases.granted_alone();
                    return granted;
                }
            };
            self.leases.give_up(key.as_bytes(), token);
            return leased;
        }
        // Somebody writes what is dead when it comes.
        self.leases.give_up(key.as_bytes(), token);
        self.leases.waited();
        Leased::Wait(stale, WAIT)
    }

    /// Where all nodes keep their leases; none if there is no such place, or if it has not been told yet of changes that
    /// were accepted here, so that it knows less than this node.
    fn shared_leases(&self) -> Option<&Arc<dyn SharedLeases>> {
        self.shared_leases.as_ref().filter(|_| self.stores.write_queue.is_trusted(LayerId::Redis))
    }

    /// What memory may serve past its expiry.
    fn stale(&self, cx: &OperationContext, key: &Key) -> Option<Entry> {
        let held = self.stores.memory.peek(cx.now, key.as_bytes());
        held.filter(|entry| self.stores.freshness(cx, entry) == Freshness::Stale)
    }

    /// Leases held now, and what became of others, for metrics.
    pub fn leases(&self) -> LeaseCounts {
        self.leases.counts()
    }
}
