//! Where a key is, layer by layer, without changing anything: for `TC.EXPLAIN`.

use super::{Coordinator, Freshness, below::within, promote::Stores};
use crate::{
    context::{OperationContext, Outcome},
    entry::{Entry, Key},
    layer::{Component, LayerResult},
    write_queue::Pending,
};

/// What every part says about a key.
#[derive(Debug)]
pub struct Explanation {
    /// The operation that asked, as in spans and in the slow log.
    pub id: u64,
    /// In the order in which a read asks.
    pub seen: Vec<Seen>,
}

/// What one part says about a key.
#[derive(Debug)]
pub struct Seen {
    /// Which part, by its stable name.
    pub part: &'static str,
    /// What it said.
    pub outcome: Outcome,
    /// Why a copy is not served: `expired`, `removed by tag`, `negative`; or what failed.
    pub note: String,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Its copy, served or not.
    pub entry: Option<Entry>,
}

// === impl Coordinator ===

impl Coordinator {
    /// Asks every part about the key, also those that a read would not reach. Promotes and counts nothing in memory.
    pub async fn explain(&self, cx: &OperationContext, key: &Key) -> Explanation {
        let stores = &self.stores;
        let mut seen = vec![stores.seen_in_memory(cx, key)];
        if !stores.cold.is_empty() {
            seen.push(stores.seen_in_queue(cx, key));
        }
        for cold in &stores.cold {
            let begun = self.clock.monotonic();
            let answer = if stores.may_ask(cold) {
                within(cx, cold.layer.get(cx, key)).await
            } else {
                Some(Ok(LayerResult::NotHandled))
            };
            let took = self.clock.monotonic().saturating_duration_since(begun);
            let (outcome, note, entry) = match answer {
                None => (Outcome::Failed, "no answer within the deadline".to_owned(), None),
                Some(Err(error)) => (Outcome::Failed, error.to_string(), None),
                Some(Ok(LayerResult::Hit(entry))) => stores.verdict(cx, entry),
                Some(Ok(LayerResult::Miss)) => (Outcome::Miss, String::new(), None),
                Some(Ok(LayerResult::NotHandled)) => {
                    (Outcome::NotHandled, "is away, or what it holds can not be trusted yet".to_owned(), None)
                }
                Some(Ok(LayerResult::StopWithoutValue)) => (Outcome::Stopped, "known to be gone".to_owned(), None),
            };
            let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            seen.push(Seen { part: cold.layer.name(), outcome, note, took_us, entry });
        }
        Explanation { id: cx.id, seen }
    }
}

// === impl Stores ===

impl Stores {
    fn seen_in_memory(&self, cx: &OperationContext, key: &Key) -> Seen {
        let (outcome, note, entry) = match self.memory.peek(cx.now, key.as_bytes()) {
            Some(entry) => self.verdict(cx, entry),
            None => (Outcome::Miss, String::new(), None),
        };
        Seen { part: self.memory.name(), outcome, note, took_us: 0, entry }
    }

    fn seen_in_queue(&self, cx: &OperationContext, key: &Key) -> Seen {
        let pending = self.write_queue.turn(key.as_bytes()).pending(key.as_bytes());
        let (outcome, note, entry) = match pending {
            Pending::Value(entry) => self.verdict(cx, entry),
            Pending::Removed => (Outcome::Stopped, "a removal is on its way".to_owned(), None),
            Pending::Unknown => (Outcome::Miss, String::new(), None),
        };
        Seen { part: self.write_queue.name(), outcome, note, took_us: 0, entry }
    }

    fn verdict(&self, cx: &OperationContext, entry: Entry) -> (Outcome, String, Option<Entry>) {
        let (outcome, note) = match self.freshness(cx, &entry) {
            Freshness::Fresh => (Outcome::Hit, ""),
            Freshness::Negative => (Outcome::Stopped, "negative"),
            Freshness::Stale => (Outcome::Stale, "expired, within its stale life"),
            Freshness::Expired => (Outcome::Miss, "expired"),
            Freshness::Removed => (Outcome::Miss, "removed by tag"),
        };
        (outcome, note.to_owned(), Some(entry))
    }
}
