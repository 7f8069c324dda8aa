//! The layers side by side, and what moves between them: a write downward, a cold hit upward and sideways under its
//! ticket.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{flight::Logbook, freshness::Freshness, times::Times};
use crate::{
    backplane::{Backplane, Notice, What},
    clock::{Clock, UnixMillis},
    context::{OperationContext, Origin, Outcome, TrailStep, Trust},
    entry::{Entry, EntryMeta, Key, Position},
    layer::{Answers, Change, ErrorKind, Layer, LayerError, LayerId, LayerResult, TagRemoval, memory::Memory},
    tag_index::TagIndex,
    write_queue::{Full, Lanes, Pending, Receipt, Ticket, Turn, WriteQueue},
};

/// Removals by tag that a layer is told of in one batch.
const REMOVALS_AT_ONCE: usize = 256;

/// All places where an entry can be, from top to bottom.
pub(super) struct Stores {
    pub(super) memory: Memory,
    pub(super) write_queue: Arc<WriteQueue>,
    pub(super) cold: Vec<Cold>,
    pub(super) tags: Arc<TagIndex>,
    pub(super) backplane: Arc<Backplane>,
    pub(super) clock: Clock,
    pub(super) times: Times,
    promotions: AtomicU64,
    promotions_refused: AtomicU64,
    /// Evictions of memory from which on it no longer holds all entries; zero if it never did.
    complete_until: AtomicU64,
}

/// A store below memory.
pub(super) struct Cold {
    pub(super) layer: Arc<dyn Layer>,
    /// Whether the removals by tag that it keeps are known. Until then nothing that it holds is served.
    tags_known: AtomicBool,
    /// Whether it was told what it has missed; what it misses from then on the log says.
    tags_told: AtomicBool,
}

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
struct Search {
    /// When the key was looked at.
    ticket: Ticket,
    /// Up to here the changes of other nodes had taken effect before the layers were asked.
    seen: Position,
    /// Layers that could hold the value and do not.
    missed: Lanes,
    stale: Option<Entry>,
    failed: bool,
}

/// What a removal came to under the turn of its key.
pub(super) enum Removal {
    Queued {
        live: bool,
    },
    /// The key was written after it was looked at: look again.
    Changed,
    Full,
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

    /// Learns which tagged entries the layers know to be gone, from those that have not told yet.
    pub(super) async fn learn_tags(&self, cx: &OperationContext) {
        let mut told = Vec::new();
        for cold in self.cold.iter().filter(|cold| !cold.tags_known.load(Ordering::Acquire)) {
            let known = async { Ok((cold.layer.tag_removals(cx).await?, cold.layer.newest_position(cx).await?)) };
            match known.await {
                Ok((removals, newest)) => {
                    for removal in &removals {
                        self.tags.record(removal);
                        self.tell(cx, What::Tagged(removal));
                    }
                    self.tags.see(newest);
                    told.push((cold, removals));
                }
                // It is asked again with the next tick, and not read before.
                Err::<_, LayerError>(error) => tracing::debug!(%error, "removals by tag are not known yet"),
            }
        }
        // Only now: what one layer knows may be news to another.
        for (cold, removals) in told {
            match self.tell_tags(cx, cold, &removals).await {
                // One that takes no writes can be read all the same: this node knows what is gone.
                Ok(()) | Err(LayerError { kind: ErrorKind::Refused, .. }) => {
                    cold.tags_known.store(true, Ordering::Release);
                }
                Err(error) => tracing::debug!(%error, "removals by tag are not told yet"),
            }
        }
    }

    /// Tells a layer of the removals that it has missed: made while it was away, by a process that has ended since. The
    /// disk is never away.
    async fn tell_tags(&self, cx: &OperationContext, cold: &Cold, known: &[TagRemoval]) -> Result<(), LayerError> {
        if cold.layer.id() == LayerId::Disk || (self.backplane.is_on() && cold.tags_told.load(Ordering::Acquire)) {
            return Ok(());
        }
        for removals in self.tags.missing_from(known).chunks(REMOVALS_AT_ONCE) {
            let changes: Vec<Change> = removals.iter().cloned().map(Change::RemoveTagged).collect();
            cold.layer.apply(cx, &changes).await?;
        }
        cold.tags_told.store(true, Ordering::Release);
        Ok(())
    }

    /// The removals that the layer keeps have to be learned anew.
    pub(super) fn forget_tags_of(&self, id: LayerId) {
        let cold = self.cold.iter().filter(|cold| cold.layer.id() == id);
        cold.for_each(|cold| cold.tags_known.store(false, Ordering::Release));
    }

    /// Whether the removals are known that the layer keeps, if there is one.
    pub(super) fn knows_tags_of(&self, id: LayerId) -> bool {
        self.cold.iter().filter(|cold| cold.layer.id() == id).all(|cold| cold.tags_known.load(Ordering::Acquire))
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

    /// Stores the entry under the turn of its key. The queue first: a reader that finds memory still without it must
    /// find it there, or it would read an older copy from below.
    #[inline]
    pub(super) fn set(
        &self,
        cx: &OperationContext,
        turn: &mut Turn<'_>,
        entry: &Entry,
        receipt: Option<Arc<Receipt>>,
    ) -> Result<(), Full> {
        let begun = Times::begin(cx, &self.clock);
        turn.push(cx.now, Change::Set(entry.clone()), receipt)?;
        let queued = begun.map(|begun| Times::lap(&self.times.accept, begun, &self.clock));
        self.memory.set(cx.now, entry);
        if let Some(queued) = queued {
            Times::lap(&self.times.memory_set, queued, &self.clock);
        }
        self.tell(cx, What::Key(entry.key()));
        Ok(())
    }

    /// Forgets the key under its turn. The tombstone first, for the same reason.
    pub(super) fn remove(
        &self,
        cx: &OperationContext,
        turn: &mut Turn<'_>,
        key: &Key,
        receipt: &Arc<Receipt>,
    ) -> Result<(), Full> {
        receipt.expect();
        let pushed = turn.push(cx.now, Change::Remove(key.clone()), Some(Arc::clone(receipt)));
        pushed.inspect_err(|Full| receipt.give_up())?;
        self.memory.remove(key.as_bytes());
        self.tell(cx, What::Key(key.as_bytes()));
        Ok(())
    }

    /// Forgets the key, of which the cold layers said `seen` when the ticket was issued.
    pub(super) fn remove_seen(
        &self,
        cx: &OperationContext,
        key: &Key,
        seen: Option<(Ticket, Found)>,
        receipt: &Arc<Receipt>,
    ) -> Removal {
        let mut turn = self.write_queue.turn(key.as_bytes());
        let fresh = |entry: &Entry| self.freshness(cx, entry) == Freshness::Fresh;
        let held = self.trusted(cx, self.memory.peek(cx.now, key.as_bytes()));
        let live = match held.map(|entry| self.freshness(cx, &entry)) {
            Some(Freshness::Fresh) => true,
            // Known without a look below, as to a reader.
            Some(Freshness::Negative) => false,
            _ if self.cold.is_empty() => false,
            _ => match (turn.pending(key.as_bytes()), seen) {
                (Pending::Value(entry), _) => fresh(&entry),
                // Somebody else is removing it. This caller, too, is told only once that is certain.
                (Pending::Removed, _) => false,
                (Pending::Unknown, Some((ticket, found))) if turn.is_current(ticket) => {
                    matches!(found, Found::Fresh(_))
                }
                (Pending::Unknown, _) => return Removal::Changed,
            },
        };
        // Also if nothing was found: an expired copy must not come back should the clock step back.
        match self.remove(cx, &mut turn, key, receipt) {
            Ok(()) => Removal::Queued { live },
            Err(Full) => Removal::Full,
        }
    }

    /// Asks the cold layers in order, and promotes what one of them has.
    pub(super) async fn read_cold(
        self: Arc<Self>,
        cx: OperationContext,
        key: Key,
        ticket: Ticket,
        log: Arc<Logbook>,
    ) -> Found {
        let mut search = Search::new(ticket, self.backplane.position());
        for cold in &self.cold {
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
        for cold in &self.cold {
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
            Ok(LayerResult::Hit(entry)) if self.is_beyond_knowledge(&entry) => {}
            Ok(LayerResult::Hit(entry)) => match self.freshness(cx, &entry) {
                Freshness::Fresh => {
                    if cx.trust != Trust::Full && cold.layer.id() == LayerId::Disk {
                        self.backplane.served_stale();
                    }
                    self.promote(cx, search, &entry, search.missed.with(self.after(cold)));
                    return Some(Found::Fresh(entry));
                }
                Freshness::Negative => return Some(Found::Absent),
                Freshness::Stale => search.stale = Some(entry),
                Freshness::Expired | Freshness::Removed => {}
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

    /// Which tags were removed the log says, also of what Redis holds: a fenced node can not tell whether this still is a
    /// value.
    fn is_beyond_knowledge(&self, entry: &Entry) -> bool {
        !entry.tags().is_empty() && self.backplane.trust(self.clock.monotonic()) == Trust::None
    }

    /// The layers that are not asked once this one has the value. They may have it or not: a fill finds out.
    fn after(&self, cold: &Cold) -> Lanes {
        let later = self.cold.iter().skip_while(|other| other.layer.id() != cold.layer.id()).skip(1);
        later.fold(Lanes::NONE, |lanes, other| lanes.with(Lanes::of(other.layer.id())))
    }

    /// Puts an entry that was read from below into memory and into the layers that may lack it, unless its key was
    /// written since the ticket was issued. The entry keeps the expiry it was stored with.
    fn promote(&self, cx: &OperationContext, search: &Search, entry: &Entry, lacking: Lanes) {
        let mut turn = self.write_queue.turn(entry.key());
        if !turn.is_current(search.ticket) {
            self.promotions_refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.memory.set(cx.now, entry);
        if lacking != Lanes::NONE {
            let to_redis = self.backplane.is_on() && lacking.contains(Lanes::of(LayerId::Redis));
            // Redis takes a fill only if the log has nothing newer about the key than what was known here.
            let meta = EntryMeta { position: search.seen, ..entry.meta() };
            let copy = if to_redis { Entry::new(entry.key(), entry.value(), meta) } else { entry.clone() };
            turn.fill(cx.now, copy, lacking);
        }
        self.promotions.fetch_add(1, Ordering::Relaxed);
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

    pub(super) fn promotions(&self) -> u64 {
        self.promotions.load(Ordering::Relaxed)
    }

    /// Promotions refused because the key was written meanwhile.
    pub(super) fn promotions_refused(&self) -> u64 {
        self.promotions_refused.load(Ordering::Relaxed)
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

// === impl Cold ===

impl Cold {
    fn new(layer: Arc<dyn Layer>) -> Self {
        Self { layer, tags_known: AtomicBool::new(false), tags_told: AtomicBool::new(false) }
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
