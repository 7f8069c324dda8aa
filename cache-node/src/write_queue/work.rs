//! The queue as its flushers see it: batches out, outcomes in, and what a layer is owed that was away.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Lanes, NEVER_MS, Receipt, WriteQueue,
    batch::{Batch, Order},
    clear::{Begun, Clear},
    journal::{Journal, LeftBehind},
    lanes::Lane,
    lock,
    shard::GivenBack,
};
use crate::{
    clock::UnixMillis,
    entry::{Key, Position},
    layer::{Change, LayerError, LayerId},
};

/// Removals by tag in one batch, so that what follows them is not kept waiting.
const TAGGED_PER_BATCH: usize = 256;

// === impl WriteQueue: batches ===

impl WriteQueue {
    /// Collects what a flusher writes next; nothing while a clear is owed.
    pub(super) fn take(&self, lane: &Lane, number: usize) -> Batch {
        let mut batch = Batch::to(lane.target.id(), self.known.get().map_or(Position::NONE, |known| known()));
        let clears = lock(&self.clears);
        if clears[lane.place].is_owed() {
            return batch;
        }
        if number == 0 {
            batch.add_tagged(lock(&lane.tagged).take_off(TAGGED_PER_BATCH));
            // A write of their own, which their callers wait for: values follow in the next, also if more removals come.
            if lane.go_alone(!batch.is_empty()) {
                return batch;
            }
        }
        for order in Order::ALL {
            for index in self.shards_of(lane, number) {
                lock(&self.shards[index]).take(index, lane.place, order, &mut batch);
            }
        }
        drop(clears);
        lane.seats[number].applying_since_ms.store(batch.oldest_ms(), Ordering::Relaxed);
        batch
    }

    /// The layer has the batch for good.
    pub(super) fn settle(&self, lane: &Lane, number: usize, batch: Batch, positions: &[Position]) {
        let mut settled = Vec::new();
        let position_of = |place: usize| positions.get(place).copied().unwrap_or(Position::NONE);
        if let Some(placed) = self.on_placed.get() {
            for (place, change) in batch.changes.iter().enumerate().filter(|_| !positions.is_empty()) {
                let removal = if let Change::RemoveTagged(removal) = change { Some(removal) } else { None };
                placed(position_of(place), removal);
            }
        }
        let mut replayed = batch.removals_until(lane.back_ms());
        if number == 0 {
            let mut tagged = lock(&lane.tagged);
            replayed += tagged.owed_flying() as u64;
            settled.extend(tagged.land());
        }
        let now = self.clock.now();
        let tagged = batch.changes.len() - batch.taken.len();
        for (place, taken) in batch.taken.iter().enumerate() {
            lane.counts.waited.observe(now.since(UnixMillis(taken.reference.at_ms)), 1);
            let mut shard = lock(&self.shards[taken.shard]);
            let position = position_of(tagged + place);
            let outdated = shard.settle(lane.place, taken.reference, position, &mut settled);
            if let (Some(key), Some(on_drop)) = (outdated, self.on_drop.get()) {
                on_drop(&key);
            }
        }
        lane.seats[number].applying_since_ms.store(NEVER_MS, Ordering::Relaxed);
        lane.counts.flushed.fetch_add(batch.changes.len() as u64, Ordering::Relaxed);
        lane.counts.batches.fetch_add(1, Ordering::Relaxed);
        lane.counts.replayed.fetch_add(replayed, Ordering::Relaxed);
        self.room.notify_waiters();
        settled.iter().for_each(|receipt| receipt.settle_at(lane.place));
    }

    /// The layer did not take the batch, or `untouched` nothing of it for certain: it goes back, and those are let go who need not wait for a layer that is away.
    pub(super) fn give_back(&self, lane: &Lane, number: usize, batch: Batch, untouched: bool) {
        let mut excused = Vec::new();
        let mut dropped = 0;
        let known = if untouched { Position::LAST } else { batch.known };
        let mut clears = lock(&self.clears);
        let excuses = self.excuses(lane);
        // Last first, because each goes to the head of its order.
        for taken in batch.taken.iter().rev() {
            let excused = excuses.then_some(&mut excused);
            let mut shard = lock(&self.shards[taken.shard]);
            match shard.give_back(lane.place, (taken, known), excused) {
                GivenBack::Waits => {}
                GivenBack::Dropped => dropped += 1,
                GivenBack::Outdated(key) => self.on_drop.get().into_iter().for_each(|on_drop| on_drop(&key)),
            }
        }
        if number == 0 {
            let mut tagged = lock(&lane.tagged);
            tagged.turn_back();
            if clears[lane.place].is_owed() {
                clears[lane.place].receipts.extend(tagged.clear());
            }
        }
        drop(clears);
        if excuses {
            self.excuse_queued(lane, &mut excused);
        }
        lane.seats[number].applying_since_ms.store(NEVER_MS, Ordering::Relaxed);
        self.counts.dropped_fills.fetch_add(dropped, Ordering::Relaxed);
        // Who waits for room asks again, now that the layer is known to be away.
        self.room.notify_waiters();
        excused.iter().for_each(|receipt| receipt.excuse_at(lane.place));
    }

    /// Lets all go who wait for the layer to take what is queued for it.
    fn excuse_queued(&self, lane: &Lane, excused: &mut Vec<Arc<Receipt>>) {
        self.shards.iter().for_each(|shard| lock(shard).excuse(lane.place, excused));
        excused.extend(lock(&lane.tagged).excuse());
    }

    pub(super) fn has_work(&self, lane: &Lane, number: usize) -> bool {
        if lane.is_void() {
            return number == 0;
        }
        let tagged = number == 0 && lock(&lane.tagged).has_work();
        tagged || self.shards_of(lane, number).any(|index| lock(&self.shards[index]).has_work(lane.place))
    }

    pub(super) fn has_urgent_work(&self, lane: &Lane, number: usize) -> bool {
        let urgent = |index: usize| {
            let shard = lock(&self.shards[index]);
            shard.has_urgent(lane.place) || shard.fills_a_batch_of(lane.place)
        };
        let of_the_lead = number == 0 && (lane.is_void() || lock(&lane.tagged).has_work());
        of_the_lead || self.shards_of(lane, number).any(urgent)
    }

    /// The shards that one flusher of the lane serves.
    fn shards_of(&self, lane: &Lane, number: usize) -> impl Iterator<Item = usize> + use<> {
        (number..self.shards.len()).step_by(lane.seats.len())
    }
}

// === impl WriteQueue: clears ===

impl WriteQueue {
    /// From here until [`WriteQueue::end_clear`] no batch of the lane is under way.
    pub(super) fn begin_clear(&self, lane: &Lane) -> Begun {
        lock(&self.clears)[lane.place].begin()
    }

    pub(super) fn end_clear(&self, lane: &Lane, begun: Begun, is_done: bool) {
        let mut clears = lock(&self.clears);
        let clear = &mut clears[lane.place];
        let was_excused = is_done && clear.end(&begun);
        let (mut settled, mut excused) = (begun.receipts, Vec::new());
        if is_done {
            lane.counts.clears.fetch_add(1, Ordering::Relaxed);
            lane.counts.replayed.fetch_add(u64::from(was_excused), Ordering::Relaxed);
            if !clear.is_owed() {
                // Of those who came while it was under way.
                settled.append(&mut clear.receipts);
                lane.void.store(false, Ordering::Release);
                self.note_owed_clears();
                self.shards.iter().for_each(|shard| lock(shard).end_clear(lane.place));
            }
        } else {
            clear.receipts.append(&mut settled);
            if self.excuses(lane) {
                excused = clear.excuse();
                // Those, too, who wait for what comes after the clear.
                self.excuse_queued(lane, &mut excused);
            }
        }
        drop(clears);
        self.room.notify_waiters();
        settled.iter().for_each(|receipt| receipt.settle_at(lane.place));
        excused.iter().for_each(|receipt| receipt.excuse_at(lane.place));
        lane.wake_all();
    }

    /// Orders a clear, owed since then; `clears` is locked. The layer does not count until it is done.
    pub(super) fn order_clear(&self, lane: &Lane, clear: &mut Clear, since: UnixMillis) {
        clear.order(since.0);
        lane.void.store(true, Ordering::Release);
        self.note_owed_clears();
        clear.receipts.extend(lock(&lane.tagged).clear());
        if lane.is_away() && self.excuses(lane) {
            clear.excuse().iter().for_each(|receipt| receipt.excuse_at(lane.place));
        }
    }

    /// Forgets everything that the layer is owed, in exchange for a clear.
    pub(super) fn forget(&self, lane: &Lane) {
        // The clear stands for all of it, so it is owed since then.
        let since = self.oldest_change_of(lane).unwrap_or_else(|| self.clock.now());
        let mut clears = lock(&self.clears);
        let clear = &mut clears[lane.place];
        // Not trusted first: a reader that no longer finds a write here must not find an older one there.
        lane.void.store(true, Ordering::Release);
        self.note_owed_clears();
        let mut forgotten = 0;
        for shard in &self.shards {
            forgotten += lock(shard).forget(lane.place, |receipt| clear.receipts.push(receipt));
        }
        self.order_clear(lane, clear, since);
        drop(clears);
        self.count_forgotten(lane.place, forgotten);
        tracing::warn!(layer = %lane.target.id(), forgotten, "the layer is away for too long; it is cleared when it is back");
        self.room.notify_waiters();
        lane.wake_all();
    }

    /// Forgets what a layer is owed if it is still away and still in the way: values first, and keys if that is not
    /// enough.
    pub(super) fn relieve(&self, lane: &Lane) {
        // Before the look: who is refused after it asks again.
        lane.overgrown.store(false, Ordering::Relaxed);
        let needed_bytes = lane.needed_bytes.swap(0, Ordering::Relaxed);
        if !lane.is_away() {
            return;
        }
        let away = self.away();
        let hidden = self.shards.iter().map(|shard| lock(shard).hide_values(lane.place, away, usize::MAX)).sum();
        self.count_forgotten(lane.place, hidden);
        if self.used.exceeds(&self.options, 75) || !self.used.has_room_for(&self.options, needed_bytes) {
            self.forget(lane);
        }
        self.room.notify_waiters();
    }

    /// Has the flushers of layers that are away forget what they owe, so that there is room for so many bytes.
    pub(super) fn ask_for_relief(&self, bytes: u64) {
        for lane in self.lanes.iter().filter(|lane| lane.is_away()) {
            lane.needed_bytes.fetch_max(bytes, Ordering::Relaxed);
            if !lane.overgrown.swap(true, Ordering::Relaxed) {
                lane.relief.notify_one();
            }
        }
    }
}

// === impl WriteQueue: journal ===

impl WriteQueue {
    /// Removes from all layers what an earlier queue may have lost, and begins a journal of its own.
    pub(super) fn take_over(&self, left: &LeftBehind) {
        let now = self.clock.now();
        let mut void = left.void.and(self.all);
        if !left.is_nothing() && !self.lanes.is_empty() {
            let lacking = Some(left.lacking.and(self.all)).filter(|lanes| !lanes.is_empty()).unwrap_or(self.all);
            let remove = |key: &Key| match self.turn(key.as_bytes()) {
                mut turn if lacking == self.all => turn.push(now, Change::Remove(key.clone()), None),
                mut turn => turn.forget_in(now, key, lacking),
            };
            if left.incomplete || left.keys.iter().any(|key| remove(key).is_err()) {
                void = void.with(lacking);
            }
            self.counts.recovered.fetch_add(left.keys.len() as u64, Ordering::Relaxed);
            let (keys, clears) = (left.keys.len(), void.count());
            tracing::warn!(keys, clears, "the node did not end in peace: keys whose writes may be lost are removed");
        }
        for lane in self.lanes.iter().filter(|lane| void.contains(Lanes::at(lane.place))) {
            self.order_clear(lane, &mut lock(&self.clears)[lane.place], now);
        }
        if let Some(Err(error)) = lock(&self.journal).as_ref().map(Journal::replace) {
            tracing::warn!(%error, "the journal of queued keys can not take its place");
        }
    }

    /// What a kill must not make forget.
    pub(super) fn note_owed_clears(&self) {
        if let Some(journal) = lock(&self.journal).as_ref() {
            journal.owe_clears(self.lanes_that(Lane::is_void));
        }
    }

    /// Lets go of the journal, whose volume fails: to touch a mapped page that can not be written ends the process. It
    /// stays away until the node is started again.
    pub(super) fn abandon_journal(&self, error: &LayerError) {
        if !lock(&self.journal).as_mut().is_some_and(Journal::let_go) {
            return;
        }
        self.shards.iter().for_each(|shard| lock(shard).forget_ring());
        tracing::warn!(%error, "the journal of queued keys is given up with its volume");
        *lock(&self.journal_trouble) = Some(error.to_string());
    }

    /// Ends the journal if every layer has everything; otherwise it says which have not.
    pub(super) fn close_journal(&self) {
        // Before the journal is locked: others lock it while they hold the shards.
        let lacking = self.lanes_that(|lane| self.shards.iter().any(|shard| lock(shard).owed(lane.place) > 0));
        let is_done = self.items() == 0 && self.lanes.iter().all(|lane| !lane.is_void());
        let journal = lock(&self.journal);
        let Some(journal) = journal.as_ref() else { return };
        if is_done {
            if let Err(error) = journal.discard() {
                tracing::warn!(%error, "the journal of queued keys can not be given up; the next start removes its keys");
            }
            return;
        }
        journal.end_lacking(lacking);
    }
}

// === impl WriteQueue: layers that are away ===

impl WriteQueue {
    /// Layers that the last attempt did not reach.
    pub(super) fn away(&self) -> Lanes {
        self.lanes_that(Lane::is_away)
    }

    /// Layers that a change must reach before it is confirmed.
    pub(super) fn waited_for(&self) -> Lanes {
        self.all.without(self.lanes_that(|lane| lane.is_away() && self.excuses(lane)))
    }

    fn lanes_that(&self, are_so: impl Fn(&Lane) -> bool) -> Lanes {
        let lanes = self.lanes.iter().filter(|lane| are_so(lane));
        lanes.fold(Lanes::NONE, |lanes, lane| lanes.with(Lanes::at(lane.place)))
    }

    /// Whether a change may be confirmed although this layer, being away, does not have it. The disk never is: what it
    /// holds comes back with the node after a kill. Without a disk no layer is: nothing else would know of the change
    /// after a kill, and what the layer holds from before would come back.
    pub(super) fn excuses(&self, lane: &Lane) -> bool {
        lane.target.id() != LayerId::Disk && self.all.contains(Lanes::of(LayerId::Disk))
    }

    pub(super) fn count_forgotten(&self, place: usize, count: u64) {
        if let Some(lane) = self.lanes.iter().find(|lane| lane.place == place) {
            lane.counts.forgotten.fetch_add(count, Ordering::Relaxed);
        }
    }
}
