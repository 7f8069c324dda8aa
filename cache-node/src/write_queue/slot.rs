//! The newest accepted change of one key, and which cold layers have not got it.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Receipt, SLOT_OVERHEAD_BYTES,
    account::Used,
    batch::{Order, Taken},
    journal::Record,
    lanes::{LANES_MAX, Lanes},
    line::{Line, Ref},
    receipt::Wait,
};
use crate::{
    entry::{Key, Position},
    layer::{Change, LayerId},
};

/// A slot. It lives until all layers have its change.
pub(super) struct Slot {
    pub(super) hash: u64,
    /// Tells it from earlier slots of the key, so that an old reference does not touch it.
    pub(super) id: u64,
    pub(super) change: Change,
    pub(super) charge: u64,
    /// Layers in whose line it stands.
    pub(super) queued: Lanes,
    /// Layers that are being given the change, or the one before it.
    pub(super) flying: Lanes,
    urgent: Lanes,
    /// Layers that have to forget the key although its value is elsewhere: readers do not see this slot.
    hidden: Lanes,
    dropped: bool,
    /// What the journal knows of it.
    pub(super) record: Option<Record>,
    pub(super) waits: Vec<Wait>,
    /// Others may have changed the key since this place in the log, and must not see the value come back: it was made of
    /// one that was known then, or Redis was asked before, and nobody knows whether it did as asked.
    /// [`Position::LAST`] if neither is so.
    tried_after: Position,
    /// It was made of a value that was known then, so it may be older than what others have done since.
    is_revised: bool,
    /// Once Redis has the change, its place in the log. Before, the newest change of another node that came while this
    /// one was on its way.
    in_log: Position,
}

/// What a queued change is to a change of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It comes after it, or that is not known yet.
    Newer,
    /// It is no value any more.
    Hidden,
    /// Nobody can tell which of them comes after the other.
    Doubtful,
    Older,
}

// === impl Slot ===

impl Slot {
    pub(super) const fn new(hash: u64, id: u64, change: Change, charge: u64) -> Self {
        Self {
            hash,
            id,
            change,
            charge,
            queued: Lanes::NONE,
            flying: Lanes::NONE,
            urgent: Lanes::NONE,
            hidden: Lanes::NONE,
            dropped: false,
            record: None,
            waits: Vec::new(),
            tried_after: Position::LAST,
            is_revised: false,
            in_log: Position::NONE,
        }
    }

    pub(super) const fn reference(&self, at_ms: u64) -> Ref {
        Ref { hash: self.hash, id: self.id, at_ms }
    }

    /// Layers that do not have the change yet.
    pub(super) const fn owed(&self) -> Lanes {
        self.queued.with(self.flying)
    }

    /// Since which place in the log others may have changed the key.
    pub(super) fn tried_after(&self) -> Option<Position> {
        Some(self.tried_after).filter(|tried| *tried < Position::LAST)
    }

    /// The same of a value that Redis has yet to be given; [`Position::LAST`] if it comes after whatever others did.
    pub(super) fn doubted_since(&self) -> Option<Position> {
        let redis = Lanes::of(LayerId::Redis);
        match self.change {
            Change::Set(_) if self.queued.contains(redis) => Some(self.tried_after),
            // Another node has changed the key while this was on its way: only Redis knows which of them came first.
            Change::Set(_) if self.flying.contains(redis) && self.in_log > Position::NONE => Some(self.in_log.before()),
            _ => None,
        }
    }

    pub(super) fn doubt(&mut self, since: Position) {
        if matches!(self.change, Change::Set(_)) && since < Position::LAST {
            self.tried_after = self.tried_after.min(since);
            self.is_revised = true;
        }
    }

    /// Whether it is a value that was written here, of which Redis has yet to be told.
    pub(super) fn is_untold(&self) -> bool {
        matches!(self.change, Change::Set(_)) && !self.is_revised && self.owed().contains(Lanes::of(LayerId::Redis))
    }

    pub(super) const fn is_hidden(&self) -> bool {
        !self.hidden.is_empty()
    }

    /// A newer change of the key. It keeps its place in the lines where it still stands.
    pub(super) fn replace(&mut self, change: Change, charge: u64, used: &Used) {
        self.unhide(self.hidden, used);
        self.undrop(used);
        self.change = change;
        self.charge = charge;
        self.tried_after = Position::LAST;
        self.is_revised = false;
        self.in_log = Position::NONE;
    }

    pub(super) fn enqueue(&mut self, line: &mut Line, place: usize, order: Order, at_ms: u64) {
        if !self.queued.contains(Lanes::at(place)) {
            self.queued = self.queued.with(Lanes::at(place));
            line.queued += 1;
            line.order(order).push_back(self.reference(at_ms));
        }
    }

    pub(super) fn wait(&mut self, receipt: Arc<Receipt>, lanes: Lanes) {
        if !lanes.is_empty() {
            self.waits.push(Wait { receipt, queued: lanes, flying: Lanes::NONE });
        }
    }

    pub(super) fn hurry(&mut self, line: &mut Line, place: usize, at_ms: u64) {
        if !self.urgent.contains(Lanes::at(place)) {
            self.urgent = self.urgent.with(Lanes::at(place));
            line.order(Order::Urgent).push_back(self.reference(at_ms));
        }
    }

    /// Has `receipt` wait for what these layers have not got. Nobody waits for promotions, which may be dropped.
    pub(super) fn wait_until_landed(&mut self, lanes: Lanes, receipt: &Arc<Receipt>) {
        if matches!(self.change, Change::Fill(_)) {
            return;
        }
        let queued = self.queued.and(lanes);
        let flying = self.flying.without(self.queued).and(lanes);
        let lanes = queued.with(flying);
        self.waits.retain(|wait| !wait.receipt.is_abandoned());
        if !lanes.is_empty() {
            lanes.places().for_each(|place| receipt.expect_at(place, 1));
            self.waits.push(Wait { receipt: Arc::clone(receipt), queued, flying });
        }
    }

    /// It is on its way to the layer. Written again while a batch is being collected, a key may be taken into that batch
    /// twice: in the order of its writes, so the newer one wins, and they land or turn back together.
    pub(super) fn take_off(&mut self, line: &mut Line, place: usize) {
        let lane = Lanes::at(place);
        line.queued -= 1;
        self.queued = self.queued.without(lane);
        self.urgent = self.urgent.without(lane);
        self.flying = self.flying.with(lane);
        for wait in self.waits.iter_mut().filter(|wait| wait.queued.contains(lane)) {
            wait.queued = wait.queued.without(lane);
            wait.flying = wait.flying.with(lane);
        }
    }

    /// The layer has what was taken off, at this place in the log. Answers whether a change of another node, that came
    /// meanwhile, is newer.
    pub(super) fn land(
        &mut self,
        place: usize,
        position: Position,
        used: &Used,
        settled: &mut Vec<Arc<Receipt>>,
    ) -> bool {
        let lane = Lanes::at(place);
        self.flying = self.flying.without(lane);
        let is_newest = !self.queued.contains(lane);
        if is_newest {
            self.unhide(lane, used);
            if lane == Lanes::of(LayerId::Redis) {
                self.tried_after = Position::LAST;
                self.is_revised = false;
            }
        }
        self.end_waits(settled, |wait| wait.flying.remove(lane));
        if !is_newest || position == Position::NONE {
            return false;
        }
        std::mem::replace(&mut self.in_log, position) > position
    }

    /// It has this place in the log. If Redis is yet to give it one, others may have changed the key since this.
    pub(super) fn place(&mut self, at: Position) {
        if self.owed().contains(Lanes::of(LayerId::Redis)) {
            self.doubt(at);
        } else {
            self.in_log = at;
        }
    }

    /// What becomes of it now that another node has changed the key.
    pub(super) fn meet(&mut self, at: Position) -> Met {
        let redis = Lanes::of(LayerId::Redis);
        // Of a value that is forgotten, the key is still to be removed from Redis; what memory has is older.
        if self.is_hidden() {
            return Met::Hidden;
        }
        if self.tried_after().is_some() {
            return Met::Doubtful;
        }
        if !matches!(self.change, Change::Fill(_)) {
            if self.queued.contains(redis) {
                return Met::Newer;
            }
            if self.flying.contains(redis) {
                self.in_log = self.in_log.max(at);
                return Met::Newer;
            }
            if self.in_log > at {
                return Met::Newer;
            }
        }
        Met::Older
    }

    /// Turns into a removal, for the layers of this node alone.
    pub(super) fn turn_into_removal(&mut self, lines: &mut [Line; LANES_MAX], own: Lanes, at_ms: u64, used: &Used) {
        let redis = Lanes::of(LayerId::Redis);
        if self.queued.contains(redis) {
            redis.places().for_each(|place| lines[place].queued -= 1);
            self.queued = self.queued.without(redis);
        }
        if !matches!(self.change, Change::Remove(_)) {
            self.keep_key(used);
        }
        for place in own.places() {
            self.enqueue(&mut lines[place], place, Order::Keys, at_ms);
        }
    }

    /// Turns into a removal for all layers: absent is right, whatever came after what.
    pub(super) fn give_up_value(&mut self, lines: &mut [Line; LANES_MAX], lanes: Lanes, at_ms: u64, used: &Used) {
        self.in_log = Position::NONE;
        self.keep_key(used);
        for place in lanes.places() {
            self.enqueue(&mut lines[place], place, Order::Keys, at_ms);
        }
    }

    /// The layer did not take it. Answers whether a change of another node came meanwhile, and nobody can tell which of
    /// them comes after the other.
    pub(super) fn turn_back(
        &mut self,
        line: &mut Line,
        place: usize,
        (taken, known): (&Taken, Position),
        excused: Option<&mut Vec<Arc<Receipt>>>,
    ) -> bool {
        let lane = Lanes::at(place);
        self.flying = self.flying.without(lane);
        if !self.queued.contains(lane) {
            if lane == Lanes::of(LayerId::Redis) && matches!(self.change, Change::Set(_)) {
                self.tried_after = self.tried_after.min(known);
            }
            self.queued = self.queued.with(lane);
            line.queued += 1;
            // What somebody waited for still stands in another order as well.
            if taken.from == Order::Urgent {
                self.urgent = self.urgent.with(lane);
            }
            line.order(taken.from).push_front(taken.reference);
        }
        for wait in self.waits.iter_mut().filter(|wait| wait.flying.contains(lane)) {
            wait.flying = wait.flying.without(lane);
            wait.queued = wait.queued.with(lane);
        }
        if let Some(excused) = excused {
            self.excuse(place, excused);
        }
        self.tried_after().is_some() && self.in_log > Position::NONE
    }

    /// Lets those go who wait for this layer.
    pub(super) fn excuse(&mut self, place: usize, excused: &mut Vec<Arc<Receipt>>) {
        let lane = Lanes::at(place);
        self.end_waits(excused, |wait| wait.queued.remove(lane));
    }

    /// Ends one step of each wait for which `ends` answers so.
    fn end_waits(&mut self, ended: &mut Vec<Arc<Receipt>>, mut ends: impl FnMut(&mut Wait) -> bool) {
        if self.waits.is_empty() {
            return;
        }
        for wait in &mut self.waits {
            if ends(wait) {
                ended.push(Arc::clone(&wait.receipt));
            }
        }
        self.waits.retain(|wait| !wait.is_over());
    }

    /// The layer gets a clear instead.
    pub(super) fn leave(&mut self, place: usize, used: &Used, mut waits_for_clear: impl FnMut(Arc<Receipt>)) {
        let lane = Lanes::at(place);
        self.queued = self.queued.without(lane);
        self.urgent = self.urgent.without(lane);
        if !self.flying.contains(lane) {
            self.unhide(lane, used);
        }
        let mut waiting = Vec::new();
        self.excuse(place, &mut waiting);
        waiting.into_iter().for_each(&mut waits_for_clear);
    }

    /// It stands in no line any more.
    pub(super) fn leave_all(&mut self, lines: &mut [Line; LANES_MAX]) {
        for place in self.queued.places() {
            lines[place].queued -= 1;
        }
        self.queued = Lanes::NONE;
    }

    /// Keeps only the key, for readers to see.
    pub(super) fn drop_value(&mut self, used: &Used) {
        self.keep_key(used);
        self.dropped = true;
        used.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps only the key, which readers do not see. False if there was no value.
    pub(super) fn hide_value(&mut self, used: &Used) -> bool {
        let is_value = matches!(self.change, Change::Set(_) | Change::Fill(_));
        if is_value {
            self.keep_key(used);
            self.hide(used);
        }
        is_value
    }

    /// From now on readers do not see it, and leave the layers out that it goes to.
    pub(super) fn hide(&mut self, used: &Used) {
        self.hidden = self.owed();
        for place in self.hidden.places() {
            used.hidden[place].fetch_add(1, Ordering::AcqRel);
        }
    }

    fn keep_key(&mut self, used: &Used) {
        self.tried_after = Position::LAST;
        let key = Key::new(self.change.key().to_vec()).expect("a value has a key");
        self.change = Change::Remove(key);
        let charge = self.change.bytes() + SLOT_OVERHEAD_BYTES;
        used.release(0, self.charge - charge);
        self.charge = charge;
    }

    /// The layers may be read again, as far as this slot is concerned.
    pub(super) fn unhide(&mut self, lanes: Lanes, used: &Used) {
        for place in self.hidden.and(lanes).places() {
            used.hidden[place].fetch_sub(1, Ordering::AcqRel);
        }
        self.hidden = self.hidden.without(lanes);
    }

    fn undrop(&mut self, used: &Used) {
        if std::mem::take(&mut self.dropped) {
            used.dropped.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Gives its room back.
    pub(super) fn free(&mut self, used: &Used) {
        debug_assert!(!self.is_hidden(), "a slot that is gone hides nothing");
        self.undrop(used);
        used.release(1, self.charge);
    }
}
