//! Where a key is, layer by layer, without changing anything: for `TC.EXPLAIN`.

use super::{
    Coordinator, Freshness, Place,
    below::within,
    stores::{Cold, Stores, trusts_queued},
};
use crate::{
    context::{OperationContext, Outcome, Trust},
    entry::{Entry, Key},
    layer::{Component, LayerResult},
    write_queue::{Pending, WriteQueue},
};

/// What every part says about a key.
#[derive(Debug)]
pub struct Explanation {
    /// The operation that asked, as in spans and in the slow log.
    pub id: u64,
    /// Which part answers a read, be it that there is no value; none if no part knows.
    pub answered_by: Option<&'static str>,
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

/// What was said, why, and of which copy.
type Said = (Outcome, String, Option<Entry>);

// === impl Coordinator ===

impl Coordinator {
    /// Asks every part about the key, also those that a read would not reach. Promotes and counts nothing in memory.
    pub async fn explain(&self, cx: &OperationContext, key: &Key) -> Explanation {
        let stores = &self.stores;
        let mut seen = Vec::new();
        for place in stores.in_order() {
            seen.push(match place {
                Place::Memory(memory) => {
                    let (outcome, note, entry) = stores.said_by_memory(cx, memory.peek(cx.now, key.as_bytes()));
                    Seen { part: memory.name(), outcome, note, took_us: 0, entry }
                }
                Place::Queue(queue) => {
                    let (outcome, note, entry) = stores.said_by_queue(cx, queue, key);
                    Seen { part: queue.name(), outcome, note, took_us: 0, entry }
                }
                Place::Cold(cold) => {
                    let begun = self.clock.monotonic();
                    let (outcome, note, entry) = stores.said_by_cold(cx, cold, key).await;
                    let took = self.clock.monotonic().saturating_duration_since(begun);
                    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                    Seen { part: cold.layer.name(), outcome, note, took_us, entry }
                }
            });
        }
        Explanation { id: cx.id, answered_by: answered_by(&seen, self.write_queue().name()), seen }
    }
}

/// The first that settles it; else the first with a value past its expiry that may be served, as reads have it.
fn answered_by(seen: &[Seen], queue: &'static str) -> Option<&'static str> {
    let is_stale = |seen: &&Seen| seen.outcome == Outcome::Stale;
    let settles = |seen: &&Seen| match seen.outcome {
        Outcome::Hit | Outcome::Stopped => true,
        // It is on its way to the layers below, so what they have is older still.
        Outcome::Stale => seen.part == queue,
        _ => false,
    };
    let answer = match seen.iter().find(settles) {
        // Below, that there is no value does not end the stale life of the one in memory.
        Some(found) if found.outcome == Outcome::Stopped && found.part != queue => {
            seen.first().filter(is_stale).or(Some(found))
        }
        Some(found) => Some(found),
        None => seen.iter().find(is_stale),
    };
    answer.map(|seen| seen.part)
}

// === impl Stores ===

impl Stores {
    fn said_by_memory(&self, cx: &OperationContext, held: Option<Entry>) -> Said {
        match held {
            // Not by `trusted`, which counts what is served.
            Some(entry) if cx.trust == Trust::None => (Outcome::NotHandled, NOT_TRUSTED.to_owned(), Some(entry)),
            Some(entry) => said_of(self.freshness(cx, &entry), entry),
            None => (Outcome::Miss, String::new(), None),
        }
    }

    fn said_by_queue(&self, cx: &OperationContext, queue: &WriteQueue, key: &Key) -> Said {
        let turn = queue.turn(key.as_bytes());
        match turn.pending(key.as_bytes()) {
            Pending::Value(entry) if !trusts_queued(cx, &turn, key.as_bytes()) => {
                (Outcome::NotHandled, NOT_TRUSTED.to_owned(), Some(entry))
            }
            Pending::Value(entry) => {
                let (outcome, note, entry) = said_of(self.freshness(cx, &entry), entry);
                // What is below a write on its way is older still.
                (if outcome == Outcome::Miss { Outcome::Stopped } else { outcome }, note, entry)
            }
            Pending::Removed => (Outcome::Stopped, "a removal is on its way".to_owned(), None),
            Pending::Unknown => (Outcome::Miss, String::new(), None),
        }
    }

    async fn said_by_cold(&self, cx: &OperationContext, cold: &Cold, key: &Key) -> Said {
        if !self.may_ask(cold) {
            return (Outcome::NotHandled, NOT_TRUSTED.to_owned(), None);
        }
        match within(cx, cold.layer.get(cx, key)).await {
            None => (Outcome::Failed, "no answer within the deadline".to_owned(), None),
            Some(Err(error)) => (Outcome::Failed, error.to_string(), None),
            Some(Ok(LayerResult::Hit(entry))) => match self.freshness_below(cx, &entry) {
                Some(freshness) => said_of(freshness, entry),
                None => (Outcome::Miss, "fenced: it may have been removed by tag".to_owned(), Some(entry)),
            },
            Some(Ok(LayerResult::Miss)) => (Outcome::Miss, String::new(), None),
            Some(Ok(LayerResult::NotHandled)) => (Outcome::NotHandled, "is away".to_owned(), None),
            Some(Ok(LayerResult::StopWithoutValue)) => (Outcome::Stopped, "known to be gone".to_owned(), None),
        }
    }
}

/// Of a part that is not asked.
const NOT_TRUSTED: &str = "what it holds can not be trusted now";

fn said_of(freshness: Freshness, entry: Entry) -> Said {
    let (outcome, note) = match freshness {
        Freshness::Fresh => (Outcome::Hit, ""),
        Freshness::Negative => (Outcome::Stopped, "negative"),
        Freshness::Stale => (Outcome::Stale, "expired, within its stale life"),
        Freshness::Expired => (Outcome::Miss, "expired"),
        Freshness::Removed => (Outcome::Miss, "removed by tag"),
    };
    (outcome, note.to_owned(), Some(entry))
}
