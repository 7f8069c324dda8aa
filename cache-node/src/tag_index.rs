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

mod table;

use std::{
    sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use async_trait::async_trait;

use self::table::Table;
use crate::{
    clock::{CLOCKS_APART_MAX, Clock, UnixMillis},
    entry::{Position, Positions, TagSet, Tags},
    layer::{Component, Health, Matching, Observed, Stats, TagRemoval, Verdict, newest_removals::REMOVAL_BYTES},
    sync::{
        RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// How the index is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagOptions {
    /// Removals that are remembered one by one, of 100 bytes each on average; default 250 000.
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

/// How long the index is called degraded after it had to forget.
const FLOOR_DEGRADED: Duration = Duration::from_secs(600);

// === impl TagOptions ===

impl Default for TagOptions {
    /// 250 000 removals, and the longest default life of a layer, that of disk.
    fn default() -> Self {
        Self { removals_max: 250_000, life_max: Duration::from_secs(168 * 3600) }
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
        let mut floor = removal.tags.tags().is_empty().then_some(removal.position);
        table.insert(removal);
        if table.exceeds(self.options.removals_max) {
            floor = floor.max(Some(table.forget_older_half()));
        }
        if let Some(floor) = floor {
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
                "more than {} tags, or more than {REMOVAL_BYTES} bytes for each of so many, were removed within the life of an entry; tagged entries older than {} are gone too",
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
            bytes: Some(self.read().bytes as u64),
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

#[cfg(test)]
mod tests;
