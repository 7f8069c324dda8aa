//! The bytes of the capacity that no shard has. Shards draw from here as they grow; at capacity, each makes do with its
//! allowance, so that writers of different shards share nothing.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Shards draw and keep this part of an equal share more than they need, so that they do not draw for every entry.
const DRAWN_PART: u64 = 64;

/// Capacity and what is left of it.
pub(super) struct Room {
    capacity: AtomicU64,
    /// Negative after the capacity was lowered, until the shards have given up enough.
    free: AtomicI64,
    shards: u64,
}

// === impl Room ===

impl Room {
    pub(super) fn new(capacity: u64, shards: usize) -> Self {
        Self { capacity: AtomicU64::new(capacity), free: AtomicI64::new(signed(capacity)), shards: shards as u64 }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// What every shard would have if all had the same.
    pub(super) fn share(&self) -> u64 {
        self.capacity() / self.shards
    }

    /// What a shard draws beyond its need.
    pub(super) fn reserve(&self) -> u64 {
        self.share() / DRAWN_PART
    }

    /// Takes `need` and a reserve, or what there is.
    pub(super) fn draw(&self, need: u64) -> u64 {
        let wanted = signed(need + self.reserve());
        let taken = self
            .free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| (free > 0).then(|| free - free.min(wanted)));
        taken.map_or(0, |free| free.min(wanted).unsigned_abs())
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.free.fetch_add(signed(bytes), Ordering::Relaxed);
    }

    /// Answers how many bytes the shards must give up.
    pub(super) fn resize(&self, capacity: u64) -> u64 {
        let change = signed(capacity) - signed(self.capacity.swap(capacity, Ordering::Relaxed));
        let free = self.free.fetch_add(change, Ordering::Relaxed) + change;
        if free < 0 { free.unsigned_abs() } else { 0 }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_and_returned_bytes_add_up_to_the_capacity() {
        let room = Room::new(6400, 10);
        assert_eq!((room.share(), room.reserve()), (640, 10));
        assert_eq!(room.draw(100), 110);
        assert_eq!(room.draw(10_000), 6290, "what there is");
        assert_eq!(room.draw(1), 0);
        room.give_back(5);
        assert_eq!(room.draw(1), 5);
    }

    #[test]
    fn lowered_capacity_must_be_given_up_before_anybody_draws() {
        let room = Room::new(1000, 1);
        assert_eq!(room.draw(800), 815);
        assert_eq!(room.resize(900), 0);
        assert_eq!(room.resize(500), 315);
        assert_eq!(room.draw(1), 0);
        room.give_back(315);
        assert_eq!(room.draw(1), 0);
        assert_eq!(room.resize(2000), 0);
        assert_eq!(room.draw(5000), 1500);
    }
}
