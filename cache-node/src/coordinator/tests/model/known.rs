//! What may be read: the newest value of each key, never an older one, and which of it must not be missing.

use std::{
    collections::HashMap,
    fmt::{self, Display, Formatter},
    time::Duration,
};

use super::{LIFE_MIN, diary::Diary};
use crate::{clock::UnixMillis, entry::Entry, layer::Matching};

/// Tags in use.
pub(super) const TAGS: [&str; 8] = ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7"];

/// What was written to a key once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) value: Vec<u8>,
    pub(super) expires_at: Option<UnixMillis>,
    pub(super) stale_until: Option<UnixMillis>,
    /// One bit for each of [`TAGS`].
    pub(super) tags: u8,
    pub(super) negative: bool,
}

/// What is known of one key.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// What a read may find: the newest version, if that was not removed.
    now: Vec<Version>,
    /// Removed by tag, of which the disk does not know for sure: a crash may bring it back.
    past: Vec<Version>,
    /// There may be nothing, whatever the layers do.
    may_be_absent: bool,
    /// Its newest write is perhaps not in all layers, so that a crash removes the key.
    unflushed: bool,
    /// The disk has it for sure, whatever life it has left by now.
    on_disk: bool,
    /// Redis has it, or the queue on its behalf.
    in_redis: bool,
}

/// Which layers answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answering {
    pub(super) redis: bool,
    pub(super) disk: bool,
}

/// All keys.
#[derive(Debug)]
pub(super) struct Model {
    keys: HashMap<String, Known>,
    promises: Promises,
    pub(super) diary: Diary,
}

/// What the model may count on. Without it, what is not in memory may be missing, but is never older.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promises {
    /// No value gives way to a newer one.
    pub(super) queue_keeps_values: bool,
    /// What is worth a write is on disk.
    pub(super) disk_has_all: bool,
    /// A removal by tag takes only what it names: there is no floor.
    pub(super) removals_stay_apart: bool,
}

// === impl Version ===

impl Version {
    pub(super) fn of(entry: &Entry) -> Self {
        let bit = |tag: &[u8]| 1 << TAGS.iter().position(|known| known.as_bytes() == tag).expect("a tag of the test");
        Self {
            value: entry.value().to_vec(),
            expires_at: entry.expires_at(),
            stale_until: entry.stale_until(),
            tags: entry.tags().iter().map(bit).sum(),
            negative: entry.is_negative(),
        }
    }

    fn is_fresh(&self, now: UnixMillis) -> bool {
        !self.negative && self.expires_at.is_none_or(|at| now < at)
    }

    fn is_stale(&self, now: UnixMillis) -> bool {
        !self.negative && !self.is_fresh(now) && self.stale_until.is_some_and(|until| now < until)
    }

    /// Whether the disk is to write it now, or wrote it before.
    fn is_worth_a_write(&self, now: UnixMillis) -> bool {
        let until = self.expires_at.map(|at| self.stale_until.map_or(at, |stale| stale.max(at)));
        until.is_none_or(|until| until.since(now) >= LIFE_MIN + Duration::from_secs(1))
    }

    fn matches(&self, tags: u8, matching: Matching) -> bool {
        match matching {
            Matching::Any => self.tags & tags != 0,
            Matching::All => self.tags & tags == tags,
        }
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { value, expires_at, stale_until, tags, negative } = self;
        let value = String::from_utf8_lossy(value);
        let until = |time: &Option<UnixMillis>| time.map_or(0, |time| time.0);
        let (life, stale) = (until(expires_at), until(stale_until));
        write!(f, "{value:.12} ({} bytes) until {life}, stale until {stale}, tags {tags:08b}", value.len())?;
        if *negative { f.write_str(", negative") } else { Ok(()) }
    }
}

// === impl Model: what happens ===

impl Model {
    pub(super) fn new(promises: Promises) -> Self {
        Self { keys: HashMap::new(), promises, diary: Diary::default() }
    }

    pub(super) fn written(&mut self, name: &str, version: Version) {
        self.diary.note(name, || format!("written {version}"));
        let known = Known { now: vec![version], unflushed: true, in_redis: true, ..Known::default() };
        self.keys.insert(name.to_owned(), known);
    }

    /// What was written last is in all layers: a crash does not touch it.
    pub(super) fn confirmed(&mut self, name: &str, now: UnixMillis) {
        self.diary.note(name, || "confirmed".to_owned());
        if let Some(known) = self.keys.get_mut(name) {
            known.flushed(now, true);
        }
    }

    /// Confirmed or not, nothing of it comes back: the journal knows the key as long as some layer does not.
    pub(super) fn removed(&mut self, name: &str) {
        self.diary.note(name, || "removed".to_owned());
        self.keys.remove(name);
    }

    pub(super) fn removed_tagged(&mut self, tags: u8, matching: Matching, confirmed: bool) {
        self.diary.note_all(|| format!("removed {matching:?} of tags {tags:08b}, confirmed: {confirmed}"));
        for known in self.keys.values_mut() {
            let before = known.now.len();
            let mut gone: Vec<Version> = known.now.extract_if(.., |known| known.matches(tags, matching)).collect();
            known.may_be_absent |= known.now.len() < before;
            if confirmed {
                known.past.retain(|known| !known.matches(tags, matching));
            } else {
                known.past.append(&mut gone);
            }
        }
    }

    /// Confirmed or not: the journal knows that the layers are owed a clear.
    pub(super) fn cleared(&mut self) {
        self.diary.note_all(|| "cleared".to_owned());
        self.keys.clear();
    }

    /// All writes so far are on disk, and in Redis if it took part.
    pub(super) fn flushed(&mut self, now: UnixMillis, in_all_layers: bool) {
        self.diary.note_all(|| format!("flushed, in all layers: {in_all_layers}"));
        self.keys.values_mut().for_each(|known| known.flushed(now, in_all_layers));
    }

    /// What was queued is lost: the newest value or none is there, and never an older one.
    pub(super) fn crashed(&mut self) {
        self.diary.note_all(|| "crashed".to_owned());
        for known in self.keys.values_mut() {
            known.may_be_absent |= known.unflushed;
            known.now.append(&mut known.past);
        }
    }

    pub(super) fn redis_evicted(&mut self, name: &str) {
        self.diary.note(name, || "evicted by Redis".to_owned());
        if let Some(known) = self.keys.get_mut(name) {
            known.in_redis = false;
        }
    }

    pub(super) fn redis_emptied(&mut self) {
        self.diary.note_all(|| "Redis emptied".to_owned());
        self.keys.values_mut().for_each(|known| known.in_redis = false);
    }
}

// === impl Model: what may be read ===

impl Model {
    /// What a read that began now may find, also if it ends later.
    pub(super) fn versions(&self, name: &str) -> Vec<Version> {
        self.keys.get(name).map(|known| known.now.clone()).unwrap_or_default()
    }

    /// Whether a fresh value must be there, must not, or may.
    pub(super) fn is_there(&self, name: &str, now: UnixMillis, answering: Answering) -> Option<bool> {
        let Some(known) = self.keys.get(name) else { return Some(false) };
        match known.now.as_slice() {
            [version] if version.is_fresh(now) && self.is_kept(known, now, answering) => Some(true),
            versions if versions.iter().any(|version| version.is_fresh(now)) => None,
            _ => Some(false),
        }
    }

    /// Panics if a read now must not have had this answer. Whoever does not want stale values must not get one.
    pub(super) fn check(&self, name: &str, found: Option<&Entry>, stale: bool, at: (UnixMillis, Answering)) {
        let (now, answering) = at;
        let Some(found) = found else {
            let there = self.is_there(name, now, answering);
            let known = self.keys.get(name);
            assert_ne!(
                there,
                Some(true),
                "{name} is missing at {now:?}, {answering:?}: {known:?}\n{}",
                self.diary.of(name)
            );
            return;
        };
        let version = Version::of(found);
        let known = self.keys.get(name).is_some_and(|known| known.now.contains(&version));
        let serves = version.is_fresh(now) || (stale && version.is_stale(now));
        let expected = self.keys.get(name);
        assert!(known && serves, "{name} has {version} at {now:?}: {expected:?}\n{}", self.diary.of(name));
    }

    fn is_kept(&self, known: &Known, now: UnixMillis, answering: Answering) -> bool {
        let Promises { queue_keeps_values, disk_has_all, removals_stay_apart } = self.promises;
        let stays = queue_keeps_values && (removals_stay_apart || known.now.iter().all(|version| version.tags == 0));
        let on_disk = known.on_disk || known.now.iter().all(|version| version.is_worth_a_write(now));
        let is_somewhere = (answering.redis && known.in_redis) || (answering.disk && on_disk && disk_has_all);
        stays && is_somewhere && !known.may_be_absent
    }
}

// === impl Known ===

impl Known {
    fn flushed(&mut self, now: UnixMillis, in_all_layers: bool) {
        self.past.clear();
        self.unflushed &= !in_all_layers;
        self.on_disk |= self.now.iter().all(|version| version.is_worth_a_write(now));
    }
}
