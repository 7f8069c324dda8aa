//! Slots of entries and the two queues that run through them. A slot is 16 bytes: a pointer and two numbers.

use crate::{entry::Entry, layer::memory::weight::weight};

/// Which queue an entry stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// New entries, a tenth of the bytes. Most leave from here.
    Small,
    /// Entries that have been asked for again.
    Main,
}

/// The entries of a shard.
#[derive(Default)]
pub(super) struct Slab {
    slots: Vec<Slot>,
    /// First of the vacant slots, which are linked by `newer`.
    vacant: Link,
    small: Ends,
    main: Ends,
}

/// A place in one of the queues, or vacant.
struct Slot {
    entry: Option<Entry>,
    /// With the queue in its spare bit, so that a slot stays at 16 bytes.
    older: Link,
    newer: Link,
}

/// A slot's number, or none; with one spare bit.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Link(u32);

/// A queue: its ends and what is in it.
#[derive(Default)]
struct Ends {
    oldest: Link,
    newest: Link,
    bytes: u64,
}

// === impl Slab ===

impl Slab {
    /// Room for `entries` without growing.
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self { slots: Vec::with_capacity(entries), ..Self::default() }
    }

    pub(super) fn entry(&self, id: u32) -> &Entry {
        self.slot(id).entry.as_ref().expect("ids of the table are of occupied slots")
    }

    /// Bytes of both queues by weight.
    pub(super) const fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }

    pub(super) const fn bytes_of(&self, queue: Queue) -> u64 {
        match queue {
            Queue::Small => self.small.bytes,
            Queue::Main => self.main.bytes,
        }
    }

    /// Slots that exist, occupied or vacant.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn oldest(&self, queue: Queue) -> Option<u32> {
        self.ends(queue).oldest.id()
    }

    /// Puts the entry at the young end of the queue.
    pub(super) fn push(&mut self, entry: Entry, queue: Queue) -> u32 {
        let slot = Slot { entry: Some(entry), older: Link::default(), newer: Link::default() };
        let id = if let Some(id) = self.vacant.id() {
            self.vacant = self.slot(id).newer;
            *self.slot_mut(id) = slot;
            id
        } else {
            if self.slots.len() == self.slots.capacity() {
                // Not by doubling: half of it would lie idle.
                self.slots.reserve_exact(self.slots.len() / 8 + 8);
            }
            self.slots.push(slot);
            u32::try_from(self.slots.len() - 1).ok().filter(|&id| id < Link::NONE).expect("a shard has no 2^31 entries")
        };
        self.link(id, queue);
        id
    }

    /// Puts another entry of the same key in the place of the one there.
    pub(super) fn replace(&mut self, id: u32, entry: Entry) -> Entry {
        let queue = self.slot(id).queue();
        let new = weight(&entry);
        let old = self.slot_mut(id).entry.replace(entry).expect("ids of the table are of occupied slots");
        let ends = self.ends_mut(queue);
        ends.bytes = ends.bytes - weight(&old) + new;
        old
    }

    /// Moves the entry to the young end of the queue.
    pub(super) fn requeue(&mut self, id: u32, queue: Queue) {
        self.unlink(id);
        self.link(id, queue);
    }

    /// Takes the entry out and leaves its slot vacant.
    pub(super) fn take(&mut self, id: u32) -> Entry {
        self.unlink(id);
        let vacant = std::mem::replace(&mut self.vacant, Link(id));
        let slot = self.slot_mut(id);
        slot.newer = vacant;
        slot.entry.take().expect("ids of the table are of occupied slots")
    }

    fn link(&mut self, id: u32, queue: Queue) {
        let weight = weight(self.entry(id));
        let ends = self.ends_mut(queue);
        let before = std::mem::replace(&mut ends.newest, Link(id));
        ends.bytes += weight;
        match before.id() {
            Some(before) => self.slot_mut(before).newer = Link(id),
            None => ends.oldest = Link(id),
        }
        let slot = self.slot_mut(id);
        slot.older = before.in_queue(queue);
        slot.newer = Link::default();
    }

    fn unlink(&mut self, id: u32) {
        let weight = weight(self.entry(id));
        let slot = self.slot(id);
        let (queue, older, newer) = (slot.queue(), slot.older.plain(), slot.newer);
        match older.id() {
            Some(older) => self.slot_mut(older).newer = newer,
            None => self.ends_mut(queue).oldest = newer,
        }
        match newer.id() {
            Some(newer) => self.slot_mut(newer).older = older.in_queue(queue),
            None => self.ends_mut(queue).newest = older,
        }
        self.ends_mut(queue).bytes -= weight;
    }

    fn slot(&self, id: u32) -> &Slot {
        &self.slots[id as usize]
    }

    fn slot_mut(&mut self, id: u32) -> &mut Slot {
        &mut self.slots[id as usize]
    }

    const fn ends(&self, queue: Queue) -> &Ends {
        match queue {
            Queue::Small => &self.small,
            Queue::Main => &self.main,
        }
    }

    const fn ends_mut(&mut self, queue: Queue) -> &mut Ends {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }
}

// === impl Slot ===

impl Slot {
    const fn queue(&self) -> Queue {
        if self.older.0 & Link::IN_MAIN == 0 { Queue::Small } else { Queue::Main }
    }
}

// === impl Link ===

impl Link {
    const IN_MAIN: u32 = 1 << 31;
    const NONE: u32 = Self::IN_MAIN - 1;

    const fn id(self) -> Option<u32> {
        match self.plain().0 {
            Self::NONE => None,
            id => Some(id),
        }
    }

    const fn plain(self) -> Self {
        Self(self.0 & !Self::IN_MAIN)
    }

    const fn in_queue(self, queue: Queue) -> Self {
        match queue {
            Queue::Small => self.plain(),
            Queue::Main => Self(self.0 | Self::IN_MAIN),
        }
    }
}

impl Default for Link {
    /// None.
    fn default() -> Self {
        Self(Self::NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{entry, text};

    fn order(slab: &Slab, queue: Queue) -> String {
        let ids = std::iter::successors(slab.oldest(queue), |&id| slab.slot(id).newer.id());
        ids.map(|id| text(slab.entry(id))).collect()
    }

    #[test]
    fn slot_has_sixteen_bytes() {
        assert_eq!(size_of::<Slot>(), 16);
    }

    #[test]
    fn queues_keep_the_order_of_arrival_through_removals_and_moves() {
        let mut slab = Slab::default();
        let ids: Vec<u32> = "abcdef".chars().map(|c| slab.push(entry("k", &c.to_string()), Queue::Small)).collect();
        assert_eq!(text(&slab.take(ids[2])), "c");
        assert_eq!(text(&slab.take(ids[0])), "a");
        assert_eq!(text(&slab.take(ids[5])), "f");
        slab.requeue(ids[3], Queue::Main);
        slab.requeue(ids[1], Queue::Main);
        assert_eq!((order(&slab, Queue::Small), order(&slab, Queue::Main)), ("e".to_owned(), "db".to_owned()));
        slab.requeue(ids[3], Queue::Main);
        slab.push(entry("k", "g"), Queue::Small);
        assert_eq!((order(&slab, Queue::Small), order(&slab, Queue::Main)), ("eg".to_owned(), "bd".to_owned()));
        assert_eq!(slab.slots(), 6, "vacant slots are used again");
    }

    #[test]
    fn bytes_are_those_of_the_entries_in_each_queue() {
        let mut slab = Slab::default();
        let (small, large) = (entry("k", "v"), entry("k", &"v".repeat(1000)));
        let first = slab.push(small.clone(), Queue::Small);
        slab.push(small.clone(), Queue::Main);
        assert_eq!(slab.replace(first, large.clone()).value(), b"v");
        assert_eq!((slab.bytes_of(Queue::Small), slab.bytes_of(Queue::Main)), (weight(&large), weight(&small)));
        slab.requeue(first, Queue::Main);
        assert_eq!((slab.bytes_of(Queue::Small), slab.bytes()), (0, weight(&large) + weight(&small)));
        slab.take(first);
        assert_eq!(slab.bytes(), weight(&small));
    }
}
