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
    flying: Vec<(TagRemoval, Vec<Arc<Receipt>>)>,
}

#[derive(Default)]
struct Waiting {
    position: Position,
    receipts: Vec<Arc<Receipt>>,
}

// === impl Tagged ===

impl Tagged {
    /// Takes a removal in; of one set of tags only the newest counts, since it covers the older ones.
    pub(super) fn add(&mut self, removal: TagRemoval, receipts: Vec<Arc<Receipt>>) {
        let TagRemoval { tags, matching, position } = removal;
        let waiting = self.waiting.entry((matching, sorted(&tags))).or_default();
        waiting.position = waiting.position.max(position);
        waiting.receipts.extend(receipts);
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
            if let Some(((matching, tags), Waiting { position, receipts })) = self.waiting.remove_entry(&key) {
                self.flying.push((TagRemoval { tags, matching, position }, receipts));
            }
        }
        self.flying.iter().map(|(removal, _)| removal)
    }

    /// Those under way have arrived; answers who waits for them.
    pub(super) fn land(&mut self) -> impl Iterator<Item = Arc<Receipt>> + use<> {
        std::mem::take(&mut self.flying).into_iter().flat_map(|(_, receipts)| receipts)
    }

    /// Those under way have not arrived.
    pub(super) fn turn_back(&mut self) {
        for (removal, receipts) in std::mem::take(&mut self.flying) {
            self.add(removal, receipts);
        }
    }

    /// Has `receipt` wait for all of them, at this layer.
    pub(super) fn wait_for_all(&mut self, place: usize, receipt: &Arc<Receipt>) {
        receipt.expect_at(place, self.waiting.len() + self.flying.len());
        self.receipts().for_each(|receipts| receipts.push(Arc::clone(receipt)));
    }

    /// Drops those that wait, and answers for whom.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = Arc<Receipt>> + use<> {
        std::mem::take(&mut self.waiting).into_values().flat_map(|waiting| waiting.receipts)
    }

    /// Answers who waits, and lets them go.
    pub(super) fn excuse(&mut self) -> Vec<Arc<Receipt>> {
        self.receipts().flat_map(std::mem::take).collect()
    }

    fn receipts(&mut self) -> impl Iterator<Item = &mut Vec<Arc<Receipt>>> {
        let waiting = self.waiting.values_mut().map(|waiting| &mut waiting.receipts);
        waiting.chain(self.flying.iter_mut().map(|(_, receipts)| receipts))
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
