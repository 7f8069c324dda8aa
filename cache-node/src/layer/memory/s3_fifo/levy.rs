//! Who has how much of the capacity, and who gives up what for whom.

use std::{ptr, sync::atomic::Ordering};

use super::{Arrival, Gone, Place, S3Fifo, STEP, shard::Shard};
use crate::layer::memory::{Admission, weight::weight};

/// An entry heavier than this part of an equal share is paid for by all shards.
const HEAVY_PART: u64 = 8;

/// A shard whose allowance falls short of an equal share by more than this part takes from the others.
const POOR_PART: u64 = 16;

impl S3Fifo {
    pub(in crate::layer::memory) fn capacity(&self) -> u64 {
        self.room.capacity()
    }

    /// Changes the capacity; evicts what does not fit any more, a step at a time. The number of shards stays.
    pub(in crate::layer::memory) fn set_capacity(&self, bytes: u64) -> Admission {
        let mut admission = Admission::default();
        let excess = self.room.resize(bytes);
        let got = self.levy(excess, None, &mut admission);
        self.room.give_back(got);
        admission
    }

    /// Makes room in the shard for the entry; answers how many bytes are lacking that others must give. `alone`: nobody
    /// will.
    pub(super) fn make_room(&self, shard: &mut Shard, arrival: Arrival<'_>, alone: bool, gone: &mut Gone) -> u64 {
        let Arrival { hash, entry, .. } = arrival;
        let mut short = shard.short_of(hash, entry);
        if short == 0 {
            return 0;
        }
        shard.allowance += self.room.draw(short);
        short = shard.short_of(hash, entry);
        let share = self.room.share();
        let heavy = weight(entry) > share / HEAVY_PART;
        let poor = shard.allowance < share - share / POOR_PART;
        let keep = if (heavy || poor) && !alone { share } else { 0 };
        while short > 0 && shard.bytes() > keep {
            gone.evict_from(shard);
            short = shard.short_of(hash, entry);
        }
        short
    }

    /// Takes `wanted` bytes of allowance from all shards but that of the hash: first what they have beyond an equal
    /// share, then from each a quarter of a share at a time.
    pub(super) fn levy(&self, wanted: u64, except: Option<u64>, admission: &mut Admission) -> u64 {
        let start = self.hand.fetch_add(1, Ordering::Relaxed);
        let payer = except.map(|hash| self.place(hash));
        let mut got = 0;
        for quarters in (0..=4).rev() {
            let keep = self.room.share() / 4 * quarters;
            for number in 0..self.shards.len() {
                let place = &self.shards[(start + number) % self.shards.len()];
                if got < wanted && !payer.is_some_and(|payer| ptr::eq(payer, place)) {
                    got += Self::take_from(place, keep, wanted - got, admission);
                }
            }
        }
        got
    }

    /// Takes up to `wanted` bytes of the allowance and leaves `keep`, evicting a step at a time.
    fn take_from(place: &Place, keep: u64, wanted: u64, admission: &mut Admission) -> u64 {
        let mut got = 0;
        loop {
            let mut gone = Gone::default();
            let mut shard = place.write();
            let due = shard.allowance.saturating_sub(keep).min(wanted - got);
            while shard.spare() < due && gone.entries.len() < STEP {
                gone.evict_from(&mut shard);
            }
            let given = shard.spare().min(due);
            shard.allowance -= given;
            drop(shard);
            admission.add(&gone);
            got += given;
            if given == due {
                return got;
            }
        }
    }

    /// Returns what the shard has beyond its entries, if that is much.
    pub(super) fn give_back(&self, shard: &mut Shard) {
        let reserve = self.room.reserve();
        if shard.spare() > 8 * reserve {
            let given = shard.spare() - reserve;
            shard.allowance -= given;
            self.room.give_back(given);
        }
    }
}
