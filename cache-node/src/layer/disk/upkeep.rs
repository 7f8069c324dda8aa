//! The layer's own eyes: once a second it looks at the volume and at failing writes, and mends what can be mended.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::fs::statvfs;

use super::shared::{Failing, Shared};
use crate::layer::{ErrorKind, LayerError, LayerId, Verdict};

const EVERY: Duration = Duration::from_secs(1);

/// Share of the volume in use from which on the layer is called degraded, and from which on sets are no longer
/// written. The rest is kept for removals and for compaction, which needs room to make room.
const PRESSURE_PERCENT: u64 = 85;
const BRAKE_PERCENT: u64 = 92;
/// The brake is released below this.
const RELEASE_PERCENT: u64 = 90;

/// After failing for this long the database is reopened: RocksDB refuses all writes after some failures until then.
const REOPEN_AFTER: Duration = Duration::from_secs(5);

/// Starts the thread. It ends when the layer stops.
pub(super) fn start(shared: Arc<Shared>) -> Result<JoinHandle<()>, LayerError> {
    thread::Builder::new().name("disk-upkeep".to_owned()).spawn(move || shared.watch()).map_err(|error| {
        LayerError::new(LayerId::Disk, ErrorKind::Unreachable, format!("no thread disk-upkeep: {error}"))
    })
}

/// How full the volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    bytes: u64,
    used_percent: u64,
}

// === impl Shared ===

impl Shared {
    fn watch(&self) {
        while !self.stopping.load(Ordering::Acquire) {
            self.refresh();
            self.mend();
            self.make_room();
            thread::park_timeout(EVERY);
        }
    }

    /// Looks once, and sets brake, estimates and health by it.
    pub(super) fn refresh(&self) {
        let volume = self.measure();
        if let Ok(store) = self.store() {
            self.counts.entries.store(store.entries_estimate(), Ordering::Relaxed);
            self.counts.bytes.store(store.bytes(), Ordering::Relaxed);
            self.counts.statistics.add(store.tickers());
            if volume.is_some_and(|volume| volume.used_percent >= PRESSURE_PERCENT)
                && let Err(error) = store.files().drop_aside()
            {
                tracing::warn!(%error, "the database that was put aside can not be given up");
            }
        }
        self.observed.observe(self.verdict(volume));
    }

    /// Looks at the volume, and sets the brake by it. A microsecond.
    pub(super) fn measure(&self) -> Option<Volume> {
        let volume = Volume::of(&self.options.path)?;
        self.counts.capacity_bytes.store(volume.bytes, Ordering::Relaxed);
        let limit = if self.brake.load(Ordering::Relaxed) { RELEASE_PERCENT } else { BRAKE_PERCENT };
        let brake = volume.used_percent >= limit;
        self.brake.store(brake, Ordering::Relaxed);
        let mut since = self.braked_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = brake.then(|| since.unwrap_or_else(|| self.clock.monotonic()));
        Some(volume)
    }

    /// What is to be said of the layer, on such a volume; on none in particular, of the database alone.
    pub(super) fn verdict(&self, volume: Option<Volume>) -> Verdict {
        if self.store.load().is_none() {
            return Verdict::unavailable("NotOpen", "the database is not open".to_owned());
        }
        let percent = volume.map_or(0, |volume| volume.used_percent);
        match self.failing() {
            Some(Failing { kind: ErrorKind::Full, message, .. }) => return Verdict::degraded("DiskFull", message),
            Some(Failing { message, .. }) => return Verdict::degraded("WritesFail", message),
            None => {}
        }
        if self.brake.load(Ordering::Relaxed) {
            return Verdict::degraded(
                "DiskFull",
                format!("the volume is {percent} % full; new values are not written"),
            );
        }
        if percent >= PRESSURE_PERCENT {
            return Verdict::degraded("DiskPressure", format!("the volume is {percent} % full"));
        }
        match self.started_cold.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            Some(why) => Verdict { reason: "StartedCold", message: why, ..Verdict::healthy() },
            None => Verdict::healthy(),
        }
    }

    /// Reopens a database that refuses writes: warm if it can be, else empty.
    fn mend(&self) {
        let Some(failing) = self.failing() else { return };
        let failing_for = self.clock.monotonic().duration_since(failing.since);
        let patience = if failing.kind == ErrorKind::Corrupt { Duration::ZERO } else { REOPEN_AFTER };
        if failing_for < patience {
            return;
        }
        // Background work that met damage would meet it again. A device that failed may have lost what it had taken,
        // removals among it, and look intact when it comes back.
        let mut discard = matches!(failing.kind, ErrorKind::Corrupt | ErrorKind::Unreachable);
        if failing.kind == ErrorKind::Full && self.brake.load(Ordering::Relaxed) {
            // Reopening needs room. If somebody else's files fill the volume, waiting is all there is to do; if it is
            // the database itself, an empty cache that works is worth more than a full one that can not be written.
            discard = self.fills_the_volume();
            if !discard || failing_for < self.options.full_patience {
                return;
            }
        }
        tracing::warn!(failure = failing.message, "the database refuses writes; it is reopened");
        self.counts.reopened.fetch_add(1, Ordering::Relaxed);
        if let Some(store) = self.take_store() {
            if discard {
                let mut distrust = self.distrust.lock().unwrap_or_else(PoisonError::into_inner);
                *distrust = Some(format!("it refused writes: {}", failing.message));
                store.abandon();
            } else if let Err(error) = store.close() {
                tracing::warn!(%error, "the failing database was not closed cleanly");
            }
        }
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Err(error) = self.open() {
            tracing::error!(%error, "the database can not be reopened; it is tried again");
            // Keeps `mend` coming back while there is no database.
            let since = self.clock.monotonic();
            *self.failing.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Failing { since, kind: error.kind, message: error.message });
        }
    }

    /// Gives up entries of a database that has filled the volume and still takes removals: without new values a cache
    /// is of less and less use.
    fn make_room(&self) {
        let now = self.clock.monotonic();
        let mut since = self.braked_since.lock().unwrap_or_else(PoisonError::into_inner);
        let due = since.is_some_and(|since| now.duration_since(since) >= self.options.full_patience);
        if !due || self.failing().is_some() || !self.fills_the_volume() {
            return;
        }
        // The next part only if this one was not enough.
        *since = Some(now);
        drop(since);
        match self.write(|store| store.trim(rand::random())) {
            Ok(()) => {
                self.counts.trimmed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("the database fills the volume; a part of its entries was given up");
            }
            Err(error) => tracing::warn!(%error, "the database fills the volume, and no entries can be given up"),
        }
    }

    /// Whether it is the database that takes most of the volume, not somebody else's files.
    fn fills_the_volume(&self) -> bool {
        let (own, all) = (&self.counts.bytes, &self.counts.capacity_bytes);
        own.load(Ordering::Relaxed) * 2 > all.load(Ordering::Relaxed)
    }

    fn failing(&self) -> Option<Failing> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// === impl Volume ===

impl Volume {
    fn of(path: &std::path::Path) -> Option<Self> {
        let volume = statvfs(path).ok()?;
        let bytes = volume.f_blocks.saturating_mul(volume.f_frsize);
        // As `df` reckons: of what an ordinary user may have.
        let used = volume.f_blocks.saturating_sub(volume.f_bfree);
        let usable = used + volume.f_bavail;
        (usable > 0).then(|| Self { bytes, used_percent: used * 100 / usable })
    }
}
