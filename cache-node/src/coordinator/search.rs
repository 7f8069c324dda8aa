//! The search below memory and queue: one layer after the other, until one of them settles it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    flight::Logbook,
    freshness::Freshness,
    stores::{Cold, Stores},
};
use crate::{
    context::{OperationContext, Outcome, TrailStep, Trust},
    entry::{Entry, Key, Position},
    layer::{Answers, ErrorKind, LayerError, LayerId, LayerResult},
    write_queue::{Lanes, Ticket},
};

/// What the cold layers have.
#[derive(Clone, Debug)]
pub(super) enum Found {
    Fresh(Entry),
    /// Past its expiry, within its stale life; no layer had a fresh one.
    Stale(Entry),
    Absent,
    /// No layer had it, and one failed.
    Unknown,
}

/// The search for one key, from layer to layer.
#[derive(Clone)]
pub(super) struct Search {
    /// When the key was looked at.
    pub(super) ticket: Ticket,
    /// Up to here the changes of other nodes had taken effect before the layers were asked.
    pub(super) seen: Position,
    /// Layers that could hold the value and do not.
    missed: Lanes,
    stale: Option<Entry>,
    failed: bool,
}

// === impl Stores ===

impl Stores {
    /// Asks the cold layers in order, and promotes what one of them has.
    pub(super) async fn read_cold(
        self: Arc<Self>,
        cx: OperationContext,
        key: Key,
        ticket: Ticket,
        log: Arc<Logbook>,
    ) -> Found {
        let mut search = Search::new(ticket, self.backplane.position());
        for cold in self.cold_in_order() {
            let begun = self.clock.monotonic();
            log.asks(cold.layer.name(), 1, begun);
            let answer = if self.may_ask(cold) { cold.layer.get(&cx, &key).await } else { passed_over(cold, 1) };
            log.note(self.step(cold, begun, std::slice::from_ref(&answer)));
            if let Some(found) = self.judge(&cx, cold, &mut search, answer) {
                return found;
            }
        }
        search.end()
    }

    /// As [`Stores::read_cold`], if the first cold layer that is not away settles it without I/O; else ask it.
    pub(super) fn read_now(&self, cx: &OperationContext, key: &[u8], ticket: Ticket) -> Option<Found> {
        let mut present = self.cold_in_order().skip_while(|cold| cold.layer.is_away());
        let first = present.next().filter(|first| self.may_ask(first))?;
        let is_last = present.next().is_none();
        let mut search = Search::new(ticket, self.backplane.position());
        let result = first.layer.get_now(cx, key, is_last)?;
        let found = self.judge(cx, first, &mut search, Ok(result));
        // What was removed by tag there may be in the next layer, newer.
        let found = found.or_else(|| is_last.then(|| search.end()))?;
        let away = self.cold_in_order().take_while(|cold| cold.layer.id() != first.layer.id());
        away.for_each(|cold| cold.layer.passed_over(1));
        Some(found)
    }

    /// As [`Stores::read_cold`] for many keys, with one round trip to each layer; answers in their order.
    pub(super) async fn read_cold_many(
        self: Arc<Self>,
        cx: OperationContext,
        wanted: Vec<(Key, Ticket)>,
        log: Arc<Logbook>,
    ) -> Vec<Found> {
        let seen = self.backplane.position();
        let mut searches: Vec<Search> = wanted.iter().map(|(_, ticket)| Search::new(*ticket, seen)).collect();
        let mut found: Vec<Option<Found>> = vec![None; wanted.len()];
        for cold in self.cold_in_order() {
            let open: Vec<usize> = (0..wanted.len()).filter(|&index| found[index].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let begun = self.clock.monotonic();
            log.asks(cold.layer.name(), open.len(), begun);
            let asked: Vec<Key> = open.iter().map(|&index| wanted[index].0.clone()).collect();
            let answers = if self.may_ask(cold) {
                spread(cold.layer.get_many(&cx, &asked).await, asked.len())
            } else {
                (0..asked.len()).map(|_| passed_over(cold, 1)).collect()
            };
            log.note(self.step(cold, begun, &answers));
            for (index, answer) in open.into_iter().zip(answers) {
                found[index] = self.judge(&cx, cold, &mut searches[index], answer);
            }
        }
        found.into_iter().zip(searches).map(|(found, search)| found.unwrap_or_else(|| search.end())).collect()
    }

    /// Whether what a layer holds can be trusted.
    pub(super) fn may_ask(&self, cold: &Cold) -> bool {
        let is_own = cold.layer.id() == LayerId::Disk;
        let trust = if is_own { self.backplane.trust(self.clock.monotonic()) } else { Trust::Full };
        trust != Trust::None && cold.tags_known.load(Ordering::Acquire) && self.write_queue.is_trusted(cold.layer.id())
    }

    /// What one layer's answer about one key means; none if the search goes on.
    fn judge(
        &self,
        cx: &OperationContext,
        cold: &Cold,
        search: &mut Search,
        answer: Result<LayerResult, LayerError>,
    ) -> Option<Found> {
        match answer {
            Ok(LayerResult::Hit(entry)) => match self.freshness_below(cx, &entry) {
                Some(Freshness::Fresh) => {
                    if cx.trust != Trust::Full && cold.layer.id() == LayerId::Disk {
                        self.backplane.served_stale();
                    }
                    self.promote(cx, search, &entry, search.missed.with(self.after(cold)));
                    return Some(Found::Fresh(entry));
                }
                Some(Freshness::Negative) => return Some(Found::Absent),
                // The first of them is nearest.
                Some(Freshness::Stale) => search.stale = search.stale.take().or(Some(entry)),
                Some(Freshness::Expired | Freshness::Removed) | None => {}
            },
            Ok(LayerResult::Miss) => search.missed = search.missed.with(Lanes::of(cold.layer.id())),
            // Off, or given up for now: as if it were not there, or every new key would wait for it.
            Ok(LayerResult::NotHandled) => {}
            Ok(LayerResult::StopWithoutValue) => return Some(Found::Absent),
            // Once read as damaged it always will be, so it is as good as not there, and a later hit takes its place.
            Err(LayerError { kind: ErrorKind::Corrupt, .. }) => {
                search.missed = search.missed.with(Lanes::of(cold.layer.id()));
            }
            // There may be a value.
            Err(_) => search.failed = true,
        }
        None
    }

    /// What a copy from a cold layer is good for, if this node can tell.
    pub(super) fn freshness_below(&self, cx: &OperationContext, entry: &Entry) -> Option<Freshness> {
        (!self.is_beyond_knowledge(entry)).then(|| self.freshness(cx, entry))
    }

    /// Which tags were removed the log says, also of what Redis holds: a fenced node can not tell whether this still is a
    /// value.
    pub(super) fn is_beyond_knowledge(&self, entry: &Entry) -> bool {
        !entry.tags().is_empty() && self.backplane.trust(self.clock.monotonic()) == Trust::None
    }

    /// The layers that are not asked once this one has the value. They may have it or not: a fill finds out.
    fn after(&self, cold: &Cold) -> Lanes {
        let later = self.cold_in_order().skip_while(|other| other.layer.id() != cold.layer.id()).skip(1);
        later.fold(Lanes::NONE, |lanes, other| lanes.with(Lanes::of(other.layer.id())))
    }

    fn step(&self, cold: &Cold, begun: Instant, answers: &[Result<LayerResult, LayerError>]) -> TrailStep {
        TrailStep {
            part: cold.layer.name(),
            outcome: answers.iter().map(outcome).min().unwrap_or(Outcome::NotHandled),
            keys: answers.len(),
            hits: answers.iter().filter(|answer| matches!(answer, Ok(LayerResult::Hit(_)))).count(),
            failed: answers.iter().filter(|answer| answer.is_err()).count(),
            took: self.clock.monotonic().saturating_duration_since(begun),
        }
    }
}

/// What a layer would say that is not asked, because what it holds can not be trusted now.
fn passed_over(cold: &Cold, keys: usize) -> Result<LayerResult, LayerError> {
    cold.layer.passed_over(keys);
    Ok(LayerResult::NotHandled)
}

/// One answer for each of `keys` keys.
fn spread(answers: Answers, keys: usize) -> Vec<Result<LayerResult, LayerError>> {
    let answers = answers.unwrap_or_else(|error| vec![Err(error); keys]);
    debug_assert_eq!(answers.len(), keys, "a layer answers every key");
    answers
}

fn outcome(answer: &Result<LayerResult, LayerError>) -> Outcome {
    match answer {
        Ok(LayerResult::Hit(_)) => Outcome::Hit,
        Ok(LayerResult::Miss) => Outcome::Miss,
        Ok(LayerResult::NotHandled) => Outcome::NotHandled,
        Ok(LayerResult::StopWithoutValue) => Outcome::Stopped,
        Err(_) => Outcome::Failed,
    }
}

// === impl Search ===

impl Search {
    const fn new(ticket: Ticket, seen: Position) -> Self {
        Self { ticket, seen, missed: Lanes::NONE, stale: None, failed: false }
    }

    fn end(self) -> Found {
        match (self.stale, self.failed) {
            (Some(entry), _) => Found::Stale(entry),
            (None, true) => Found::Unknown,
            (None, false) => Found::Absent,
        }
    }
}
