//! A part of the queue under one lock: slots by key, and for each cold layer the line from which it is served.

use std::{collections::VecDeque, sync::Arc};

use hashbrown::{HashTable, hash_table::Entry as Place};

use super::{
    BATCH_ITEMS, Pending, Receipt, SHARDS,
    account::Used,
    batch::{Batch, Order, Taken},
    journal::Ring,
    lanes::{LANES_MAX, Lanes},
    line::{Line, Ref},
    slot::{Met, Slot},
};
use crate::{
    entry::Position,
    layer::{Change, LayerId},
};

/// Write counts of a shard. With 64 shards there are 4096, so an unrelated write rarely spoils a ticket.
pub(super) const STRIPES: usize = 64;

/// When a line of one shard is this long, all shards together most likely fill a batch.
const LINE_FILLS_A_BATCH: u64 = 2 * BATCH_ITEMS / SHARDS as u64;

/// A part of the queue.
pub(super) struct Shard {
    writes: [u64; STRIPES],
    slots: HashTable<Slot>,
    lines: [Line; LANES_MAX],
    /// Slots of promotions, which give way first.
    fills: VecDeque<Ref>,
    next_id: u64,
    /// All layers that writes go to.
    lanes: Lanes,
    /// Those of which a clear is on its way.
    clearing: Lanes,
    used: Arc<Used>,
    /// Keys of slots, outside the process.
    ring: Option<Ring>,
}

/// A change for which there is room.
pub(super) struct Accepted {
    pub(super) change: Change,
    pub(super) charge: u64,
    pub(super) at_ms: u64,
    /// Where it goes.
    pub(super) lanes: Lanes,
}

/// What became of a queued write whose key another node has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Superseded {
    /// There is none, or no value of it.
    NotQueued,
    /// It comes later.
    Kept,
    /// It is a removal from the layers of this node now.
    Removed,
}

/// What became of a change that a layer did not take.
pub(super) enum GivenBack {
    /// It is tried again.
    Waits,
    /// It was a promotion, which is not.
    Dropped,
    /// It is a removal of this key now, of which memory must forget the value.
    Outdated(Vec<u8>),
}

/// What became of one attempt to make room.
pub(super) enum Dropped {
    /// The value of this key.
    Value(Vec<u8>),
    /// Nothing: there is none that may be dropped.
    Nothing,
}

// === impl Shard: writers and readers ===

impl Shard {
    pub(super) fn new(lanes: Lanes, used: Arc<Used>, ring: Option<Ring>) -> Self {
        Self {
            writes: [0; STRIPES],
            slots: HashTable::new(),
            lines: Default::default(),
            fills: VecDeque::new(),
            next_id: 0,
            lanes,
            clearing: Lanes::NONE,
            used,
            ring,
        }
    }

    pub(super) fn pending(&self, hash: u64, key: &[u8]) -> Pending {
        match self.slots.find(hash, |slot| slot.change.key() == key) {
            Some(slot) if slot.is_hidden() => Pending::Unknown,
            Some(Slot { change: Change::Set(entry) | Change::Fill(entry), .. }) => Pending::Value(entry.clone()),
            Some(_) => Pending::Removed,
            None if !self.clearing.is_empty() && self.clearing.contains(self.lanes) => Pending::Removed,
            None => Pending::Unknown,
        }
    }

    pub(super) fn is_untold(&self, hash: u64, key: &[u8]) -> bool {
        self.slots.find(hash, |slot| slot.change.key() == key).is_some_and(Slot::is_untold)
    }

    pub(super) fn writes(&self, stripe: usize) -> u64 {
        self.writes[stripe]
    }

    pub(super) fn count_write(&mut self, stripe: usize) {
        self.writes[stripe] += 1;
    }

    /// What the slot of the key is charged; `None` if a change of the key needs a slot of its own.
    pub(super) fn charge_of(&self, hash: u64, key: &[u8]) -> Option<u64> {
        self.slots.find(hash, |slot| slot.change.key() == key).map(|slot| slot.charge)
    }

    /// Takes the change in, replacing one of the same key. The receipt waits for the lanes of `waited`.
    pub(super) fn put(&mut self, hash: u64, accepted: Accepted, receipt: Option<(Arc<Receipt>, Lanes)>) {
        let Self { slots, lines, fills, next_id, used, ring, .. } = self;
        let Accepted { change, charge, at_ms, lanes } = accepted;
        let is_fill = matches!(change, Change::Fill(_));
        let slot = match slots.entry(hash, |slot| slot.change.key() == change.key(), |slot| slot.hash) {
            Place::Vacant(place) => {
                *next_id += 1;
                place.insert(Slot::new(hash, *next_id, change, charge)).into_mut()
            }
            Place::Occupied(place) => {
                let slot = place.into_mut();
                slot.replace(change, charge, used);
                slot
            }
        };
        for place in lanes.places() {
            slot.enqueue(&mut lines[place], place, Order::Accepted, at_ms);
        }
        if is_fill {
            fills.push_back(slot.reference(at_ms));
        } else if let (Some(ring), None) = (ring, slot.record) {
            slot.record = Some(ring.note(slot.change.key()));
        }
        if let Some((receipt, waited)) = receipt {
            slot.wait(receipt, waited);
            for place in waited.places() {
                slot.hurry(&mut lines[place], place, at_ms);
            }
        }
    }

    /// Since when the value that Redis has yet to be given is in doubt, if there is one; [`Position::LAST`] if it is not.
    pub(super) fn doubted_since(&self, hash: u64, key: &[u8]) -> Option<Position> {
        self.slots.find(hash, |slot| slot.change.key() == key)?.doubted_since()
    }

    /// What is queued of the key is older than what others have done to it after this place in the log.
    pub(super) fn doubt(&mut self, hash: u64, key: &[u8], since: Position) {
        if let Some(slot) = self.slots.find_mut(hash, |slot| slot.change.key() == key) {
            slot.doubt(since);
        }
    }

    /// What is queued of the key has this place in the log, unless Redis is yet to give it one.
    pub(super) fn place(&mut self, hash: u64, key: &[u8], at: Position) {
        if let Some(slot) = self.slots.find_mut(hash, |slot| slot.change.key() == key) {
            slot.place(at);
        }
    }

    /// Takes in that these layers forget the key, of which others have the newest value.
    pub(super) fn put_hidden(&mut self, hash: u64, accepted: Accepted) {
        let key = accepted.change.key().to_vec();
        self.put(hash, accepted, None);
        if let Some(slot) = self.slots.find_mut(hash, |slot| slot.change.key() == key) {
            slot.hide(&self.used);
        }
    }

    /// Keys are noted no more.
    pub(super) fn forget_ring(&mut self) {
        self.ring = None;
    }

    /// Whether the line is so long that lingering gains nothing.
    pub(super) fn fills_a_batch_of(&self, place: usize) -> bool {
        self.lines[place].queued >= LINE_FILLS_A_BATCH
    }
}

// === impl Shard: room ===

impl Shard {
    /// Drops the oldest promotion that is not under way.
    pub(super) fn drop_fill(&mut self) -> bool {
        while let Some(reference) = self.fills.pop_front() {
            let found = self.slots.find_entry(reference.hash, |slot| slot.id == reference.id);
            let Ok(mut place) = found else { continue };
            if !matches!(place.get().change, Change::Fill(_)) || !place.get().flying.is_empty() {
                continue;
            }
            place.get_mut().leave_all(&mut self.lines);
            place.remove().0.free(&self.used);
            return true;
        }
        false
    }

    /// Turns the oldest value into a removal of its key, so that no layer brings an older one back.
    pub(super) fn drop_value(&mut self, steps: usize) -> Dropped {
        for place in self.lanes.places() {
            for _ in 0..steps {
                let Some(reference) = self.lines[place].order(Order::Accepted).pop_front() else { break };
                let found = self.slots.find_mut(reference.hash, |slot| slot.id == reference.id);
                let Some(slot) = found.filter(|slot| slot.queued.contains(Lanes::at(place))) else { continue };
                // Whatever it is, the line keeps only its key from here on.
                self.lines[place].order(Order::Keys).push_back(reference);
                if matches!(slot.change, Change::Set(_)) {
                    let key = slot.change.key().to_vec();
                    slot.drop_value(&self.used);
                    for place in self.lanes.places() {
                        slot.enqueue(&mut self.lines[place], place, Order::Keys, reference.at_ms);
                    }
                    return Dropped::Value(key);
                }
            }
        }
        Dropped::Nothing
    }

    /// Forgets values that only layers which are away have not got, the oldest first. Their keys stay, to be removed
    /// there. Answers how many.
    pub(super) fn hide_values(&mut self, place: usize, away: Lanes, steps: usize) -> u64 {
        let mut hidden = 0;
        for _ in 0..steps {
            let Some(reference) = self.lines[place].order(Order::Accepted).pop_front() else { break };
            let found = self.slots.find_mut(reference.hash, |slot| slot.id == reference.id);
            let Some(slot) = found.filter(|slot| slot.queued.contains(Lanes::at(place))) else { continue };
            if !away.contains(slot.owed()) {
                self.lines[place].order(Order::Accepted).push_front(reference);
                break;
            }
            self.lines[place].order(Order::Keys).push_back(reference);
            if slot.hide_value(&self.used) {
                hidden += 1;
            }
        }
        hidden
    }

    /// Forgets everything that a layer owes, in exchange for a clear; whoever waits for it waits for the clear.
    pub(super) fn forget(&mut self, place: usize, mut waits_for_clear: impl FnMut(Arc<Receipt>)) -> u64 {
        let mut forgotten = 0;
        let Self { slots, used, ring, .. } = self;
        slots.retain(|slot| {
            if slot.queued.contains(Lanes::at(place)) {
                forgotten += 1;
                slot.leave(place, used, &mut waits_for_clear);
            }
            let stays = !slot.owed().is_empty();
            if !stays {
                slot.free(used);
                release(ring, slot);
            }
            stays
        });
        self.lines[place].clear();
        forgotten
    }
}

// === impl Shard: other nodes ===

impl Shard {
    /// Another node has changed the key.
    pub(super) fn supersede(&mut self, hash: u64, key: &[u8], at: Position, now_ms: u64) -> Superseded {
        let Ok(mut found) = self.slots.find_entry(hash, |slot| slot.change.key() == key) else {
            return Superseded::NotQueued;
        };
        let slot = found.get_mut();
        match slot.meet(at) {
            Met::Newer => return Superseded::Kept,
            Met::Hidden => return Superseded::NotQueued,
            Met::Doubtful => {
                slot.give_up_value(&mut self.lines, self.lanes, now_ms, &self.used);
                return Superseded::Removed;
            }
            Met::Older => {}
        }
        let own = self.lanes.without(Lanes::of(LayerId::Redis));
        slot.turn_into_removal(&mut self.lines, own, now_ms, &self.used);
        if let (Some(ring), None) = (&mut self.ring, slot.record) {
            slot.record = Some(ring.note(key));
        }
        if slot.owed().is_empty() {
            let mut slot = found.remove().0;
            slot.free(&self.used);
            release(&mut self.ring, &slot);
        }
        Superseded::Removed
    }

    /// Another node has removed everything: spoils all tickets, and drops what is older. Whoever waits for that waits for
    /// the clear of the layer.
    pub(super) fn supersede_all(
        &mut self,
        at: Position,
        now_ms: u64,
        mut waits_for_clear: impl FnMut(usize, Arc<Receipt>),
    ) {
        self.writes.iter_mut().for_each(|count| *count += 1);
        let Self { slots, lines, lanes, used, ring, .. } = self;
        slots.retain(|slot| {
            match slot.meet(at) {
                Met::Newer | Met::Hidden => return true,
                Met::Doubtful => {
                    slot.give_up_value(lines, *lanes, now_ms, used);
                    return true;
                }
                Met::Older => {}
            }
            for wait in slot.waits.drain(..) {
                let lanes = wait.queued.with(wait.flying);
                lanes.places().for_each(|place| waits_for_clear(place, Arc::clone(&wait.receipt)));
            }
            slot.leave_all(lines);
            slot.unhide(Lanes::of(LayerId::Redis).with(Lanes::of(LayerId::Disk)), used);
            slot.free(used);
            release(ring, slot);
            false
        });
    }
}

// === impl Shard: flushers ===

impl Shard {
    pub(super) fn take(&mut self, index: usize, place: usize, from: Order, batch: &mut Batch) {
        let redis = Lanes::of(LayerId::Redis);
        while !batch.is_full() {
            let line = &mut self.lines[place];
            let Some(reference) = line.order(from).pop_front() else { return };
            let found = self.slots.find_mut(reference.hash, |slot| slot.id == reference.id);
            // Gone or taken: it went through another order.
            let Some(slot) = found.filter(|slot| slot.queued.contains(Lanes::at(place))) else { continue };
            slot.take_off(line, place);
            let change = match (&slot.change, slot.tried_after()) {
                (Change::Set(entry), Some(tried)) if redis == Lanes::at(place) => Change::Again(entry.clone(), tried),
                (change, _) => change.clone(),
            };
            batch.add(Taken { shard: index, reference, from }, change, slot.charge);
        }
    }

    /// The layer has the change. Unless the key was written again meanwhile, its slot is done there.
    /// Answers the key if another node has changed it since, so that memory must forget it.
    pub(super) fn settle(
        &mut self,
        place: usize,
        reference: Ref,
        position: Position,
        settled: &mut Vec<Arc<Receipt>>,
    ) -> Option<Vec<u8>> {
        let found = self.slots.find_entry(reference.hash, |slot| slot.id == reference.id);
        let mut found = found.ok()?;
        let slot = found.get_mut();
        let outdated = slot.land(place, position, &self.used, settled).then(|| slot.change.key().to_vec());
        if outdated.is_some() {
            let own = self.lanes.without(Lanes::of(LayerId::Redis));
            slot.turn_into_removal(&mut self.lines, own, reference.at_ms, &self.used);
        }
        if slot.owed().is_empty() {
            let mut slot = found.remove().0;
            slot.free(&self.used);
            release(&mut self.ring, &slot);
        }
        outdated
    }

    /// The layer did not take the change: it goes back to where it was. With `excused`, nobody waits for it any more.
    /// `known` is where the log was known to be before the layer was asked; [`Position::LAST`] if it was not.
    pub(super) fn give_back(
        &mut self,
        place: usize,
        (taken, known): (&Taken, Position),
        excused: Option<&mut Vec<Arc<Receipt>>>,
    ) -> GivenBack {
        let Ref { hash, id, at_ms } = taken.reference;
        let Ok(mut found) = self.slots.find_entry(hash, |slot| slot.id == id) else { return GivenBack::Waits };
        let slot = found.get_mut();
        if matches!(slot.change, Change::Fill(_)) && slot.flying == Lanes::at(place) && slot.queued.is_empty() {
            found.remove().0.free(&self.used);
            return GivenBack::Dropped;
        }
        if !slot.turn_back(&mut self.lines[place], place, (taken, known), excused) {
            return GivenBack::Waits;
        }
        let key = slot.change.key().to_vec();
        slot.give_up_value(&mut self.lines, self.lanes, at_ms, &self.used);
        GivenBack::Outdated(key)
    }

    /// Lets all go who wait for this layer.
    pub(super) fn excuse(&mut self, place: usize, excused: &mut Vec<Arc<Receipt>>) {
        for slot in &mut self.slots {
            slot.excuse(place, excused);
        }
    }

    /// Has `receipt` wait for everything that these layers have not got.
    pub(super) fn wait_for_all(&mut self, lanes: Lanes, receipt: &Arc<Receipt>) {
        for slot in &mut self.slots {
            slot.wait_until_landed(lanes, receipt);
        }
    }

    /// Drops all slots and spoils all tickets. Whoever waits for one of them waits for the clear of that layer.
    pub(super) fn clear(&mut self, mut waits_for_clear: impl FnMut(usize, Arc<Receipt>)) {
        self.clearing = self.lanes;
        self.writes.iter_mut().for_each(|count| *count += 1);
        self.lines.iter_mut().for_each(Line::clear);
        self.fills.clear();
        for mut slot in self.slots.drain() {
            for wait in slot.waits.drain(..) {
                let lanes = wait.queued.with(wait.flying);
                lanes.places().for_each(|place| waits_for_clear(place, Arc::clone(&wait.receipt)));
            }
            slot.unhide(self.lanes, &self.used);
            slot.free(&self.used);
            release(&mut self.ring, &slot);
        }
    }

    pub(super) fn end_clear(&mut self, place: usize) {
        self.clearing = self.clearing.without(Lanes::at(place));
    }

    pub(super) fn has_work(&self, place: usize) -> bool {
        self.lines[place].has_work()
    }

    pub(super) fn has_urgent(&self, place: usize) -> bool {
        self.lines[place].has_urgent()
    }

    pub(super) fn queued(&self, place: usize) -> u64 {
        self.lines[place].queued
    }

    /// Slots that the layer owes or is being given.
    pub(super) fn owed(&self, place: usize) -> u64 {
        self.slots.iter().filter(|slot| slot.owed().contains(Lanes::at(place))).count() as u64
    }

    /// Those of them that are removals.
    pub(super) fn removals(&self, place: usize) -> u64 {
        let is_owed = |slot: &&Slot| matches!(slot.change, Change::Remove(_)) && slot.owed().contains(Lanes::at(place));
        self.slots.iter().filter(is_owed).count() as u64
    }

    /// When the oldest write was accepted that waits for this layer.
    pub(super) fn oldest_ms(&self, place: usize) -> Option<u64> {
        let is_queued = |reference: &Ref| {
            let found = self.slots.find(reference.hash, |slot| slot.id == reference.id);
            found.is_some_and(|slot| slot.queued.contains(Lanes::at(place)))
        };
        self.lines[place].heads(is_queued).map(|head| head.at_ms).min()
    }

    /// What all slots are charged.
    #[cfg(test)]
    pub(super) fn charged(&self) -> u64 {
        self.slots.iter().map(|slot| slot.charge).sum()
    }
}

/// The journal may forget the slot's key.
fn release(ring: &mut Option<Ring>, slot: &Slot) {
    if let (Some(ring), Some(record)) = (ring, slot.record) {
        ring.release(record);
    }
}
