//! Which tagged entries are gone: a removal by tag is kept as a position, and an entry that carries the tag and is not
//! newer counts as missing, in whatever layer it lies and whether or not anybody knew of it.
//!
//! There are no lists of keys. A removal is one position in a table, so it takes the same time for one entry as for a
//! million, nothing is lost when an entry is evicted, promoted or written by another node, and tagging costs an entry
//! only the bytes of its tags. What is dead leaves memory with the next sweep and disk with the next compaction, both of
//! which ask [`TagIndex::is_removed`].
//!
//! The table is bounded. A removal is forgotten once every copy that it could concern has ended its life; should there
//! be too many even so, the older half becomes one *floor*: all tagged entries below it are gone, never too few.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use ahash::RandomState;
use async_trait::async_trait;

use crate::{
    clock::{CLOCKS_APART_MAX, Clock, UnixMillis},
    entry::{Position, Positions, TagSet, Tags},
    layer::{Component, Health, Matching, Observed, Stats, TagRemoval, Verdict},
    sync::{
        RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// How the index is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagOptions {
    /// Removals that are remembered one by one; default one million, about 100 bytes each.
    pub removals_max: usize,
    /// The longest time that a copy of an entry stays in any one layer: a removal older than that concerns nobody.
    pub life_max: Duration,
}

/// The index.
pub struct TagIndex {
    options: TagOptions,
    clock: Clock,
    positions: Positions,
    /// Positions come from a log, never from the clock.
    follows: AtomicBool,
    /// The newest removal: what is newer needs no look.
    newest: AtomicU64,
    /// Tagged entries up to here are gone.
    floor: AtomicU64,
    table: RwLock<Table>,
    removals: AtomicU64,
    floor_raised: AtomicU64,
    floor_raised_ms: AtomicU64,
    dead_reads: AtomicU64,
    observed: Observed,
}

#[derive(Default)]
struct Table {
    any: HashMap<Box<[u8]>, Position, RandomState>,
    /// Removals of entries that carry all of several tags, found by the first of them.
    all: HashMap<Box<[u8]>, Vec<(TagSet, Position)>, RandomState>,
    len: usize,
}

/// How long the index is called degraded after it had to forget.
const FLOOR_DEGRADED: Duration = Duration::from_secs(600);

// === impl TagOptions ===

impl Default for TagOptions {
    /// One million removals, and the longest default life of a layer, that of disk.
    fn default() -> Self {
        Self { removals_max: 1_000_000, life_max: Duration::from_secs(168 * 3600) }
    }
}

// === impl TagIndex ===

impl TagIndex {
    /// Without any removal.
    pub fn open(options: TagOptions, clock: Clock) -> Self {
        Self {
            options,
            positions: Positions::default(),
            follows: AtomicBool::new(false),
            newest: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            table: RwLock::default(),
            removals: AtomicU64::new(0),
            floor_raised: AtomicU64::new(0),
            floor_raised_ms: AtomicU64::new(0),
            dead_reads: AtomicU64::new(0),
            observed: Observed::new(clock.clone()),
            clock,
        }
    }

    /// From now on positions come from a log that other nodes write, too: what is written here comes right after the
    /// newest record that this node knows of, whatever its clock says, or said before.
    pub fn follow_log(&self) {
        self.positions.forget();
        self.follows.store(true, Ordering::Release);
    }

    /// Takes note of a place in the log.
    pub fn see_in_log(&self, position: Position) {
        self.positions.see(position);
    }

    /// The newest place in the log that this node knows of; none if there is no log.
    pub fn newest_in_log(&self) -> Option<Position> {
        self.follows.load(Ordering::Acquire).then(|| self.positions.last())
    }

    /// A position for an entry that is written now: it is newer than all removals so far that this node knows of.
    pub fn position(&self, now: UnixMillis) -> Position {
        self.newest_in_log().map_or_else(|| self.positions.next(now), Position::next)
    }

    /// Removes all entries written so far that carry the tags. The answer is what the cold layers must be told, so that
    /// it holds after a restart. With a log its position is a provisional one: the log gives the final one, which is to be
    /// recorded as well.
    pub fn remove(&self, now: UnixMillis, tags: TagSet, matching: Matching) -> TagRemoval {
        let removal = TagRemoval { tags, matching, position: self.position(now) };
        self.record(&removal);
        // What is written from here on comes after it, also while the log can not place it.
        self.positions.see(removal.position);
        self.removals.fetch_add(1, Ordering::Relaxed);
        removal
    }

    /// Takes note of a removal that a cold layer kept, or that another node made.
    pub fn record(&self, removal: &TagRemoval) {
        if !self.follows.load(Ordering::Acquire) {
            self.positions.see(removal.position);
        }
        let mut table = self.write();
        table.insert(removal);
        if table.len > self.options.removals_max {
            let floor = table.forget_older_half();
            self.floor.fetch_max(floor.to_bits(), Ordering::AcqRel);
            self.floor_raised.fetch_add(1, Ordering::Relaxed);
            self.floor_raised_ms.store(self.clock.now().0, Ordering::Relaxed);
        }
        // Last, and under the lock: whoever sees it finds the removal.
        self.newest.fetch_max(removal.position.to_bits(), Ordering::AcqRel);
    }

    /// Takes note of a position that was given to a change before: all later ones are newer.
    pub fn see(&self, position: Position) {
        // With a log only its records say what comes after what.
        if !self.follows.load(Ordering::Acquire) {
            self.positions.see(position);
        }
    }

    /// The removals that are remembered here, and not there or only with an older position.
    pub fn missing_from(&self, there: &[TagRemoval]) -> Vec<TagRemoval> {
        let mut known = Table::default();
        there.iter().for_each(|removal| known.insert(removal));
        let table = self.read();
        let any = table.any.iter().filter(|(tag, position)| known.any.get(*tag).is_none_or(|there| there < *position));
        let all = table.all.values().flatten().filter(|(tags, position)| !known.has_all(tags.tags(), *position));
        let removal = |tags, matching, position: &Position| TagRemoval { tags, matching, position: *position };
        let of_one = |tag: &[u8], position: &Position| {
            let mut tags = TagSet::default();
            tags.add(tag).expect("it was a tag of a set before");
            removal(tags, Matching::Any, position)
        };
        let of_all = |(tags, position): &(TagSet, _)| removal(tags.clone(), Matching::All, position);
        any.map(|(tag, position)| of_one(tag, position)).chain(all.map(of_all)).collect()
    }

    /// Whether an entry with these tags, as fresh as `position`, was removed.
    #[inline]
    pub fn is_removed(&self, tags: Tags<'_>, position: Position) -> bool {
        if tags.is_empty() || position.to_bits() > self.newest.load(Ordering::Acquire) {
            return false;
        }
        // The floor under the lock: while it rises, removals leave the table for it.
        let table = self.read();
        position.to_bits() <= self.floor.load(Ordering::Acquire) || table.covers(tags, position)
    }

    /// Counts a read that met a removed entry.
    pub fn met_dead(&self) {
        self.dead_reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets removals that concern nobody any more, and observes health. To be called every few seconds.
    pub fn tick(&self) {
        let now = self.clock.now();
        let kept = self.options.life_max + CLOCKS_APART_MAX;
        let kept_ms = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
        let ended = Position::from_parts(now.0.saturating_sub(kept_ms), 0);
        let somebody_ended = self.read().positions().any(|position| position < ended);
        if somebody_ended {
            self.write().retain(|position| position >= ended);
        }
        self.observed.observe(self.verdict(now));
    }

    fn verdict(&self, now: UnixMillis) -> Verdict {
        let raised = UnixMillis(self.floor_raised_ms.load(Ordering::Relaxed));
        if raised.0 > 0 && now.since(raised) < FLOOR_DEGRADED {
            let message = format!(
                "more than {} tags were removed within the life of an entry; tagged entries older than {} are gone too",
                self.options.removals_max,
                Position::from_bits(self.floor.load(Ordering::Relaxed)),
            );
            return Verdict::degraded("TooManyRemovals", message);
        }
        Verdict::healthy()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Component for TagIndex {
    fn name(&self) -> &'static str {
        "tagIndex"
    }

    fn health(&self) -> Health {
        self.observed.health()
    }

    fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            operations: count(&self.removals),
            entries: Some(self.read().len as u64),
            extras: vec![
                ("removals", count(&self.removals)),
                ("deadReads", count(&self.dead_reads)),
                ("floorRaised", count(&self.floor_raised)),
                ("removalsMax", self.options.removals_max as u64),
            ],
            ..Stats::default()
        }
    }

    /// Nothing to finish: the cold layers have what must outlive the node.
    async fn shutdown(&self, _deadline: Instant) {}
}

// === impl Table ===

impl Table {
    fn insert(&mut self, removal: &TagRemoval) {
        let TagRemoval { tags, matching, position } = removal;
        if *matching == Matching::Any || tags.tags().iter().count() == 1 {
            for tag in tags.tags().iter() {
                match self.any.get_mut(tag) {
                    Some(newest) => *newest = (*newest).max(*position),
                    None => {
                        self.any.insert(tag.into(), *position);
                        self.len += 1;
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
                self.len += 1;
            }
        }
    }

    fn covers(&self, tags: Tags<'_>, position: Position) -> bool {
        tags.iter().any(|tag| {
            let by_tag = self.any.get(tag).is_some_and(|&removed| position <= removed);
            let by_all = |(all, removed): &(TagSet, Position)| {
                position <= *removed && all.tags().iter().all(|needed| tags.contains(needed))
            };
            by_tag || (!self.all.is_empty() && self.all.get(tag).is_some_and(|removals| removals.iter().any(by_all)))
        })
    }

    /// Whether the removal of what carries all of these is here, at this position or a newer one.
    fn has_all(&self, tags: Tags<'_>, position: Position) -> bool {
        let of_first = tags.iter().min().and_then(|first| self.all.get(first));
        of_first.is_some_and(|removals| removals.iter().any(|(all, at)| *at >= position && same(all.tags(), tags)))
    }

    /// Forgets the older half, and answers the newest position that was forgotten.
    fn forget_older_half(&mut self) -> Position {
        let mut positions: Vec<Position> = self.positions().collect();
        let middle = positions.len() / 2;
        let floor = *positions.select_nth_unstable(middle).1;
        self.retain(|position| position > floor);
        floor
    }

    fn positions(&self) -> impl Iterator<Item = Position> {
        let of_all = self.all.values().flatten().map(|(_, position)| *position);
        self.any.values().copied().chain(of_all)
    }

    fn retain(&mut self, matters: impl Fn(Position) -> bool) {
        self.any.retain(|_, position| matters(*position));
        self.all.retain(|_, removals| {
            removals.retain(|(_, position)| matters(*position));
            !removals.is_empty()
        });
        self.len = self.any.len() + self.all.values().map(Vec::len).sum::<usize>();
    }
}

/// Whether both have the same tags, in whatever order.
fn same(one: Tags<'_>, other: Tags<'_>) -> bool {
    one.packed().len() == other.packed().len() && one.iter().all(|tag| other.contains(tag))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{Arc, Mutex},
    };

    use shuttle::thread;

    use super::*;
    use crate::{
        layer::HealthState,
        testing::{START, in_every_order},
    };

    fn set(tags: &[&str]) -> TagSet {
        let mut set = TagSet::default();
        tags.iter().for_each(|tag| set.add(tag.as_bytes()).unwrap());
        set
    }

    fn index(removals_max: usize) -> (TagIndex, Clock) {
        let clock = Clock::manual(START);
        let options = TagOptions { removals_max, life_max: Duration::from_secs(3600) };
        (TagIndex::open(options, clock.clone()), clock)
    }

    #[test]
    fn removal_concerns_what_was_written_before_and_nothing_after() {
        let (index, _) = index(100);
        let before = index.position(START);
        index.remove(START, set(&["red", "blue"]), Matching::Any);
        let after = index.position(START);
        for tags in [set(&["red"]), set(&["green", "blue"])] {
            assert!(index.is_removed(tags.tags(), before));
            assert!(!index.is_removed(tags.tags(), after));
        }
        assert!(!index.is_removed(set(&["green"]).tags(), before));
        assert!(!index.is_removed(Tags::NONE, before), "untagged entries are never concerned");
    }

    #[test]
    fn what_is_written_after_a_removal_that_the_log_has_not_placed_yet_is_newer() {
        let index = TagIndex::open(TagOptions::default(), Clock::manual(UnixMillis(1000)));
        index.follow_log();
        index.see_in_log(Position::from_parts(500, 3));
        let (before, now) = (index.position(UnixMillis(1000)), UnixMillis(1000));
        let tags = index.remove(now, set(&["t"]), Matching::Any).tags;
        assert!(index.is_removed(tags.tags(), before) && !index.is_removed(tags.tags(), index.position(now)));
    }

    #[test]
    fn entry_of_unknown_freshness_is_gone_with_its_tag() {
        let (index, _) = index(100);
        index.remove(START, set(&["red"]), Matching::Any);
        assert!(index.is_removed(set(&["red"]).tags(), Position::NONE));
    }

    #[test]
    fn removal_by_all_tags_concerns_only_entries_with_all() {
        let (index, _) = index(100);
        let before = index.position(START);
        index.remove(START, set(&["b", "a"]), Matching::All);
        assert!(index.is_removed(set(&["a", "x", "b"]).tags(), before));
        assert!(!index.is_removed(set(&["a", "x"]).tags(), before));
        assert!(!index.is_removed(set(&["b"]).tags(), before));
        assert!(!index.is_removed(set(&["a", "b"]).tags(), index.position(START)));
    }

    #[test]
    fn same_removal_again_takes_no_more_room() {
        let (index, _) = index(100);
        for _ in 0..50 {
            index.remove(START, set(&["a"]), Matching::Any);
            index.remove(START, set(&["a", "b"]), Matching::All);
            index.remove(START, set(&["b", "a"]), Matching::All);
        }
        assert_eq!(index.stats().entries, Some(2));
    }

    #[test]
    fn over_the_bound_too_much_is_gone_but_never_too_little() {
        let (index, clock) = index(100);
        let entries: Vec<(TagSet, Position)> =
            (0..1000).map(|number| (set(&[&format!("t{number}")]), index.position(START))).collect();
        let late = index.position(START);
        for (tags, _) in &entries {
            index.remove(START, tags.clone(), Matching::Any);
        }
        assert!(index.stats().entries.unwrap() <= 100);
        assert!(entries.iter().all(|(tags, position)| index.is_removed(tags.tags(), *position)));
        assert!(index.is_removed(set(&["other"]).tags(), late), "below the floor");
        assert!(!index.is_removed(set(&["other"]).tags(), index.position(START)));
        for _ in 0..5 {
            index.tick();
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!((index.health().state, index.health().reason), (HealthState::Degraded, "TooManyRemovals"));
    }

    /// `make mutants` plants bugs that only this test sees, such as a look at the floor before the table.
    #[test]
    fn no_order_of_removals_spares_what_was_removed_or_takes_what_is_newer() {
        in_every_order(|| {
            let index = Arc::new(index(4).0);
            let before = index.position(START);
            let first = index.remove(START, set(&["red"]), Matching::Any);
            let after = index.position(START);
            assert!(before < first.position && first.position < after);
            let taken = Arc::new(Mutex::new(HashSet::new()));
            let remove = |names: &'static [&'static str]| {
                let (index, taken) = (Arc::clone(&index), Arc::clone(&taken));
                thread::spawn(move || {
                    for name in names {
                        let removal = index.remove(START, set(&[name]), Matching::Any);
                        assert!(index.is_removed(set(&[name]).tags(), removal.position), "{name}");
                        assert!(taken.lock().unwrap().insert(removal.position), "one position for two changes");
                        assert!(index.position(START) > removal.position);
                    }
                    index.tick();
                })
            };
            let removers = [remove(&["a", "b", "c"]), remove(&["d", "e"])];
            for _ in 0..3 {
                assert!(index.is_removed(set(&["red"]).tags(), before));
            }
            removers.into_iter().for_each(|remover| remover.join().unwrap());
            assert!(index.is_removed(set(&["red"]).tags(), before));
            assert!(!index.is_removed(set(&["red"]).tags(), index.position(START)));
        });
    }

    #[test]
    fn removal_is_forgotten_after_the_longest_life_and_the_day_that_clocks_may_be_apart() {
        let (index, clock) = index(100);
        index.remove(START, set(&["a"]), Matching::Any);
        index.remove(START, set(&["a", "b"]), Matching::All);
        clock.advance(Duration::from_secs(3600) + CLOCKS_APART_MAX);
        index.tick();
        assert_eq!(index.stats().entries, Some(2));
        clock.advance(Duration::from_millis(1));
        index.tick();
        assert_eq!(index.stats().entries, Some(0));
    }

    #[test]
    fn removals_that_another_list_lacks_or_has_older_are_told() {
        let (index, _) = index(100);
        let removal = |words: &[&str], matching| index.remove(START, set(words), matching);
        let (a, ab) = ([removal(&["a"], Matching::Any)], [removal(&["b", "a"], Matching::All)]);
        assert_eq!(index.missing_from(&[a.clone(), ab.clone()].concat()), []);
        assert_eq!(index.missing_from(&ab), a);
        assert_eq!(index.missing_from(&a), ab);
        let newer = [removal(&["a"], Matching::Any), removal(&["a", "b"], Matching::All)];
        let missing = index.missing_from(&[a, ab].concat());
        assert_eq!(missing.len(), 2);
        assert!(missing.iter().zip(newer).all(|(missing, newer)| missing.position == newer.position), "{missing:?}");
    }

    #[test]
    fn removals_kept_by_a_layer_hold_again_and_new_entries_are_newer() {
        let (old, _) = index(100);
        let before = old.position(START);
        let late = UnixMillis(START.0 + 3_600_000);
        let kept = old.remove(late, set(&["a"]), Matching::Any);
        // The clock of the next start is an hour behind.
        let (new, _) = index(100);
        new.record(&kept);
        assert!(new.is_removed(set(&["a"]).tags(), before));
        assert!(!new.is_removed(set(&["a"]).tags(), new.position(START)));
    }
}
