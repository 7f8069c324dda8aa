//! What the layers below memory say: asked once for each key, however many want to know, waited for only as long as it is
//! worth, and given to the client in the place of a stale value.

use std::{collections::HashSet, future::Future, pin::Pin, sync::Arc};

use tokio::time::{Sleep, timeout_at};

use super::{
    Coordinator, Look,
    flight::{Logbook, Ride},
    freshness::Freshness,
    search::Found,
};
use crate::{
    context::{OperationContext, Trail},
    entry::{Entry, Key},
    write_queue::Ticket,
};

/// What is known about a key without I/O.
#[derive(Debug)]
pub enum Peek {
    /// Here it is.
    Hit(Entry),
    /// There is none: it is being removed, has expired, or there is no layer below.
    Absent,
    /// Ask below, by [`Coordinator::get`].
    Cold,
}

/// What a reader is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// The value, be it stale.
    Value,
    /// Whether there is a live entry, and what it is like: to such a reader a stale one is none.
    Facts,
}

// === impl Coordinator ===

impl Coordinator {
    /// Counts a read that the queue has settled. One that it has not may look at the queue more than once, so it is
    /// counted as a miss when it goes below.
    pub(super) fn note_queued(&self, known: &Look) {
        let queue = &self.stores.write_queue;
        match known {
            Look::Hit(_) => queue.note_hit(),
            Look::Stale(..) => queue.note_stale(),
            Look::Absent => queue.note_misses(1),
            Look::Cold(_) => {}
        }
    }

    /// As [`Coordinator::get`], as far as that takes no I/O: what memory, the queue and the disk's cache know.
    #[inline]
    pub fn get_now(&self, cx: &OperationContext, key: &[u8]) -> Peek {
        self.peek_or(cx, key, |ticket| self.peek_below(cx, key, ticket))
    }

    fn peek_below(&self, cx: &OperationContext, key: &[u8], ticket: Ticket) -> Peek {
        let Some(found) = self.stores.read_now(cx, key, ticket) else { return Peek::Cold };
        self.stores.write_queue.note_misses(1);
        match found {
            Found::Fresh(entry) => Peek::Hit(entry),
            Found::Absent => Peek::Absent,
            Found::Stale(_) | Found::Unknown => Peek::Cold,
        }
    }

    pub(super) fn look(&self, cx: &OperationContext, key: &[u8]) -> Look {
        self.look_beside(cx, key, self.stores.memory.peek(cx.now, key))
    }

    /// Has the layers below asked for a key, unless they are being asked already.
    pub(super) fn ask(&self, cx: &OperationContext, key: &Key, ticket: Ticket) -> Ride {
        self.stores.write_queue.note_misses(1);
        let (stores, cx) = (Arc::clone(&self.stores), *cx);
        self.flights.board(key, ticket, |log| stores.read_cold(cx, key.clone(), ticket, log))
    }

    /// The same for those keys whose look has a ticket, with one round trip to each layer; in their order.
    pub(super) fn ask_many(&self, cx: &OperationContext, keys: &[Key], looks: &[Look]) -> Vec<Ride> {
        let wanted = |(key, look): (&Key, &Look)| Some((key.clone(), look.ticket()?));
        let wanted: Vec<(Key, Ticket)> = keys.iter().zip(looks).filter_map(wanted).collect();
        match wanted.as_slice() {
            [] => Vec::new(),
            [(key, ticket)] => vec![self.ask(cx, key, *ticket)],
            wanted => {
                self.stores.write_queue.note_misses(wanted.len());
                let (stores, cx) = (Arc::clone(&self.stores), *cx);
                self.flights.board_many(wanted, move |wanted, log| stores.read_cold_many(cx, wanted, log))
            }
        }
    }

    /// Waits for an answer until the deadline, and with little patience until that is over. The read goes on without its
    /// callers, and what it finds is there for the next.
    pub(super) async fn arrival(&self, cx: &OperationContext, ride: &Ride, patience: Option<Pin<&mut Sleep>>) -> Found {
        let found = match (ride.ended(), patience) {
            (Some(found), _) => Some(found),
            (None, None) => within(cx, ride.end()).await,
            (None, Some(patience)) if patience.is_elapsed() => None,
            (None, Some(patience)) => tokio::select! {
                found = within(cx, ride.end()) => found,
                () = patience => None,
            },
        };
        self.judge_again(cx, found.unwrap_or(Found::Unknown))
    }

    /// Another may have begun the read, and judged what it found as of then: since, it may have expired, or been removed
    /// by one of its tags.
    fn judge_again(&self, cx: &OperationContext, found: Found) -> Found {
        match found {
            Found::Fresh(entry) | Found::Stale(entry) => match self.stores.freshness(cx, &entry) {
                Freshness::Fresh => Found::Fresh(entry),
                Freshness::Stale => Found::Stale(entry),
                Freshness::Negative | Freshness::Expired | Freshness::Removed => Found::Absent,
            },
            Found::Absent | Found::Unknown => found,
        }
    }

    /// What the client gets, of what the cold layers have and of a stale value from memory.
    pub(super) fn serve(
        &self,
        cx: &OperationContext,
        key: &Key,
        wants: Wants,
        (found, stale): (Found, Option<Entry>),
    ) -> Option<Entry> {
        let (stale, reachable) = match found {
            Found::Fresh(entry) => return Some(entry),
            Found::Stale(below) => (stale.or(Some(below)), true),
            Found::Absent => (stale, true),
            Found::Unknown => (stale, false),
        };
        let entry = stale.filter(|_| wants == Wants::Value)?;
        // While the layers below can not be asked, nobody is sent away for a fresh value.
        if reachable && self.refreshes.claim(key.as_bytes(), cx.now) { None } else { self.refreshes.serve(entry) }
    }

    /// The operation, which may have waited, with what is to be trusted now.
    pub(super) fn renewed(&self, cx: &OperationContext) -> OperationContext {
        OperationContext { trust: self.stores.backplane.trust(self.clock.monotonic()), ..*cx }
    }

    /// What was asked for these keys; what has not answered yet is late.
    pub(super) fn trail(&self, rides: &[Ride]) -> Trail {
        let now = self.clock.monotonic();
        if let [ride] = rides {
            return ride.log().trail(now);
        }
        let mut trail = Trail::default();
        let mut read: HashSet<*const Logbook, ahash::RandomState> = HashSet::default();
        for ride in rides.iter().filter(|ride| read.insert(Arc::as_ptr(ride.log()))) {
            trail.beside(&ride.log().trail(now));
        }
        trail
    }
}

// === impl Look ===

impl Look {
    /// Proof of when the key was looked at, if there is something to be asked below.
    pub(super) const fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Cold(ticket) | Self::Stale(_, Some(ticket)) => Some(*ticket),
            Self::Hit(_) | Self::Absent | Self::Stale(_, None) => None,
        }
    }
}

/// Waits until the deadline.
pub(super) async fn within<T>(cx: &OperationContext, wait: impl Future<Output = T>) -> Option<T> {
    timeout_at(cx.deadline.into(), wait).await.ok()
}
