//! Removals by tag on their way to one cold layer: ahead of everything else, never dropped, one for each set of tags.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;

use super::Receipt;
use crate::{
    entry::{Position, TagSet},
    layer::{Matching, TagRemoval},
};

/// Different sets of tags that may wait. A lane with more owes its layer a clear, which covers them all.
pub(super) const TAGGED_MAX: usize = 4096;

/// The removals of one lane.
#[derive(Default)]
pub(super) struct Tagged {
    waiting: HashMap<(Matching, TagSet), Waiting, RandomState>,
    /// Those of the batch under way.
    flying: Vec<(TagRemoval, Waiting)>,
}

#[derive(Default)]
struct Waiting {
    position: Position,
    /// When the oldest was accepted that this one covers.
    at_ms: u64,
    receipts: Vec<Arc<Receipt>>,
    /// Somebody was told that it is kept for the layer.
    is_owed: bool,
}

// === impl Tagged ===

impl Tagged {
    /// Takes a removal in; of one set of tags only the newest counts, since it covers the older ones.
    pub(super) fn add(&mut self, removal: TagRemoval, at_ms: u64, receipts: Vec<Arc<Receipt>>, is_owed: bool) {
        let TagRemoval { tags, matching, position } = removal;
        let first = || Waiting { at_ms, ..Waiting::default() };
        let waiting = self.waiting.entry((matching, sorted(&tags))).or_insert_with(first);
        waiting.position = waiting.position.max(position);
        waiting.at_ms = waiting.at_ms.min(at_ms);
        waiting.receipts.extend(receipts);
        waiting.is_owed |= is_owed;
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.flying.len()
    }

    /// When the oldest of them was accepted.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.all().map(|waiting| waiting.at_ms).min()
    }

    /// Whether somebody was told of one that it is kept for the layer, which still has what it concerns.
    pub(super) fn owes(&self) -> bool {
        self.all().any(|waiting| waiting.is_owed)
    }

    /// How many of those under way somebody was told are kept.
    pub(super) fn owed_flying(&self) -> usize {
        self.flying.iter().filter(|(_, waiting)| waiting.is_owed).count()
    }

    pub(super) fn has_work(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn is_over_its_bound(&self) -> bool {
        self.waiting.len() > TAGGED_MAX
    }

    /// Up to `max` of them take off.
    pub(super) fn take_off(&mut self, max: usize) -> impl Iterator<Item = &TagRemoval> {
        let keys: Vec<_> = self.waiting.keys().take(max).cloned().collect();
        for key in keys {
            if let Some(((matching, tags), waiting)) = self.waiting.remove_entry(&key) {
                self.flying.push((TagRemoval { tags, matching, position: waiting.position }, waiting));
            }
        }
        self.flying.iter().map(|(removal, _)| removal)
    }

    /// Those under way have arrived; answers who waits for them.
    pub(super) fn land(&mut self) -> impl Iterator<Item = Arc<Receipt>> + use<> {
        std::mem::take(&mut self.flying).into_iter().flat_map(|(_, waiting)| waiting.receipts)
    }

    /// Those under way have not arrived.
    pub(super) fn turn_back(&mut self) {
        for (removal, Waiting { at_ms, receipts, is_owed, .. }) in std::mem::take(&mut self.flying) {
            self.add(removal, at_ms, receipts, is_owed);
        }
    }

    /// Has `receipt` wait for all of them, at this layer.
    pub(super) fn wait_for_all(&mut self, place: usize, receipt: &Arc<Receipt>) {
        receipt.expect_at(place, self.len());
        self.all_mut().for_each(|waiting| waiting.receipts.push(Arc::clone(receipt)));
    }

    /// Drops those that wait, and answers for whom.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = Arc<Receipt>> + use<> {
        std::mem::take(&mut self.waiting).into_values().flat_map(|waiting| waiting.receipts)
    }

    /// Answers who waits, and lets them go.
    pub(super) fn excuse(&mut self) -> Vec<Arc<Receipt>> {
        self.all_mut().for_each(|waiting| waiting.is_owed = true);
        self.all_mut().flat_map(|waiting| std::mem::take(&mut waiting.receipts)).collect()
    }

    fn all(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.values().chain(self.flying.iter().map(|(_, waiting)| waiting))
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Waiting> {
        self.waiting.values_mut().chain(self.flying.iter_mut().map(|(_, waiting)| waiting))
    }
}

/// One form for one set, in whatever order its tags were given.
fn sorted(tags: &TagSet) -> TagSet {
    let mut each: Vec<&[u8]> = tags.tags().iter().collect();
    each.sort_unstable();
    let mut set = TagSet::default();
    for tag in each {
        set.add(tag).expect("a tag of a set fits into a set of the same tags");
    }
    set
}
