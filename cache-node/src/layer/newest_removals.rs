//! The removals by tag that a layer keeps, read within bounds however many it keeps.

use super::{Matching, TagRemoval};
use crate::entry::{Position, TagSet};

/// Bytes that a removal may take on average, and those that it takes besides its tags.
pub(crate) const REMOVAL_BYTES: usize = 100;
pub(crate) const REMOVAL_OVERHEAD_BYTES: usize = 64;

/// The newest of the removals that are shown to it, at most so many, and so many bytes, as the index holds. Of more it
/// forgets the older ones, and has one in their place that concerns every tagged entry of before: too many entries are gone
/// then, never too few.
pub(super) struct NewestRemovals {
    most: usize,
    found: Vec<TagRemoval>,
    bytes: usize,
    floor: Position,
}

// === impl NewestRemovals ===

impl NewestRemovals {
    /// None yet, and never more than twice so many.
    pub(super) const fn at_most(most: usize) -> Self {
        Self { most, found: Vec::new(), bytes: 0, floor: Position::NONE }
    }

    /// Takes one in.
    pub(super) fn add(&mut self, removal: TagRemoval) {
        self.bytes += bytes_of(&removal);
        self.found.push(removal);
        if self.exceeds(self.most.saturating_mul(2)) {
            self.forget_older();
        }
    }

    /// What they come to.
    pub(super) fn end(mut self) -> Vec<TagRemoval> {
        while self.exceeds(self.most) {
            self.forget_older();
        }
        if self.floor != Position::NONE {
            let (tags, matching) = (TagSet::default(), Matching::All);
            self.found.push(TagRemoval { tags, matching, position: self.floor });
        }
        self.found
    }

    fn exceeds(&self, most: usize) -> bool {
        self.found.len() > most || self.bytes > most.saturating_mul(REMOVAL_BYTES)
    }

    /// Those beyond the bound, and half of them at least if they are large.
    fn forget_older(&mut self) {
        let kept = if self.found.len() > self.most { self.most } else { self.found.len() / 2 };
        let last = self.found.len() - kept - 1;
        let (_, oldest, _) = self.found.select_nth_unstable_by_key(last, |removal| removal.position);
        let floor = oldest.position;
        self.found.retain(|removal| removal.position > floor);
        self.floor = self.floor.max(floor);
        self.bytes = self.found.iter().map(bytes_of).sum();
    }
}

fn bytes_of(removal: &TagRemoval) -> usize {
    REMOVAL_OVERHEAD_BYTES + removal.tags.tags().packed().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal(number: u64) -> TagRemoval {
        let mut tags = TagSet::default();
        tags.add(format!("t{number}").as_bytes()).unwrap();
        TagRemoval { tags, matching: Matching::Any, position: Position::from_parts(number, 0) }
    }

    fn read(most: usize, numbers: impl Iterator<Item = u64>) -> Vec<TagRemoval> {
        let mut removals = NewestRemovals::at_most(most);
        for number in numbers {
            removals.add(removal(number));
            assert!(removals.found.len() <= 2 * most);
        }
        removals.end()
    }

    #[test]
    fn within_the_bound_all_are_there() {
        assert_eq!(read(3, [5, 1, 3].into_iter()), [5, 1, 3].map(removal));
    }

    #[test]
    fn large_ones_count_for_several() {
        let mut removals = NewestRemovals::at_most(100);
        for number in 0..1000_u64 {
            let mut tags = TagSet::default();
            tags.add(format!("{number:0>200}").as_bytes()).unwrap();
            removals.add(TagRemoval { tags, matching: Matching::Any, position: Position::from_parts(number, 0) });
            assert!(removals.bytes <= 2 * 100 * REMOVAL_BYTES);
        }
        let found = removals.end();
        assert!(found.len() < 40 && found.iter().any(|removal| removal.position.millis() == 999), "{}", found.len());
    }

    #[test]
    fn beyond_the_bound_the_older_ones_become_one_that_concerns_all() {
        let mut found = read(3, (1..=100).rev());
        let floor = found.pop().unwrap();
        assert!(floor.tags.tags().is_empty(), "{floor:?}");
        assert_eq!(floor.position.millis(), 97);
        found.sort_unstable_by_key(|removal| removal.position);
        assert_eq!(found, [98, 99, 100].map(removal));
    }
}
