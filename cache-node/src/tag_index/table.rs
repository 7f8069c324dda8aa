//! The removals that are remembered one by one, found by their tags.

use std::collections::HashMap;

use ahash::RandomState;

use crate::{
    entry::{Position, TagSet, Tags},
    layer::{
        Matching, TagRemoval,
        newest_removals::{REMOVAL_BYTES, REMOVAL_OVERHEAD_BYTES},
    },
};

#[derive(Default)]
pub(super) struct Table {
    pub(super) any: HashMap<Box<[u8]>, Position, RandomState>,
    /// Removals of entries that carry all of several tags, found by the first of them.
    pub(super) all: HashMap<Box<[u8]>, Vec<(TagSet, Position)>, RandomState>,
    pub(super) len: usize,
    pub(super) bytes: usize,
}

// === impl Table ===

impl Table {
    pub(super) fn insert(&mut self, removal: &TagRemoval) {
        let TagRemoval { tags, matching, position } = removal;
        if *matching == Matching::Any || tags.tags().iter().count() == 1 {
            for tag in tags.tags().iter() {
                match self.any.get_mut(tag) {
                    Some(newest) => *newest = (*newest).max(*position),
                    None => {
                        self.any.insert(tag.into(), *position);
                        self.count(tag.len());
                    }
                }
            }
            return;
        }
        let Some(first) = tags.tags().iter().min() else { return };
        let removals = self.all.entry(first.into()).or_default();
        match removals.iter_mut().find(|(other, _)| same(other.tags(), tags.tags())) {
            Some((_, newest)) => *newest = (*newest).max(*position),
            None => {
                removals.push((tags.clone(), *position));
                self.count(first.len() + tags.tags().packed().len());
            }
        }
    }

    pub(super) fn covers(&self, tags: Tags<'_>, position: Position) -> bool {
        tags.iter().any(|tag| {
            let by_tag = self.any.get(tag).is_some_and(|&removed| position <= removed);
            let by_all = |(all, removed): &(TagSet, Position)| {
                position <= *removed && all.tags().iter().all(|needed| tags.contains(needed))
            };
            by_tag || (!self.all.is_empty() && self.all.get(tag).is_some_and(|removals| removals.iter().any(by_all)))
        })
    }

    /// Whether the removal of what carries all of these is here, at this position or a newer one.
    pub(super) fn has_all(&self, tags: Tags<'_>, position: Position) -> bool {
        let of_first = tags.iter().min().and_then(|first| self.all.get(first));
        of_first.is_some_and(|removals| removals.iter().any(|(all, at)| *at >= position && same(all.tags(), tags)))
    }

    /// Forgets the older half, and answers the newest position that was forgotten.
    pub(super) fn forget_older_half(&mut self) -> Position {
        let mut positions: Vec<Position> = self.positions().collect();
        let middle = positions.len() / 2;
        let floor = *positions.select_nth_unstable(middle).1;
        self.retain(|position| position > floor);
        floor
    }

    pub(super) fn positions(&self) -> impl Iterator<Item = Position> {
        let of_all = self.all.values().flatten().map(|(_, position)| *position);
        self.any.values().copied().chain(of_all)
    }

    pub(super) fn retain(&mut self, matters: impl Fn(Position) -> bool) {
        self.any.retain(|_, position| matters(*position));
        self.all.retain(|_, removals| {
            removals.retain(|(_, position)| matters(*position));
            !removals.is_empty()
        });
        (self.len, self.bytes) = (0, 0);
        let mut sizes: Vec<usize> = self.any.keys().map(|tag| tag.len()).collect();
        for (first, removals) in &self.all {
            sizes.extend(removals.iter().map(|(tags, _)| first.len() + tags.tags().packed().len()));
        }
        sizes.into_iter().for_each(|bytes| self.count(bytes));
    }

    fn count(&mut self, bytes: usize) {
        self.len += 1;
        self.bytes += bytes + REMOVAL_OVERHEAD_BYTES;
    }

    /// Whether there are more than so many, or so large ones that they take the room of more.
    pub(super) fn exceeds(&self, most: usize) -> bool {
        self.len > most || self.bytes > most.saturating_mul(REMOVAL_BYTES)
    }
}

/// Whether both have the same tags, in whatever order.
fn same(one: Tags<'_>, other: Tags<'_>) -> bool {
    one.packed().len() == other.packed().len() && one.iter().all(|tag| other.contains(tag))
}
