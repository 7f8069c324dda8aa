//! The layer's own eyes: once a second it looks at the volume and at failing writes, and mends what can be mended.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::fs::statvfs;

use super::{Failing, Shared};
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

/// A full volume may be given room by a person, by expiry or by compaction for this long.
const DISCARD_FULL_AFTER: Duration = Duration::from_secs(60);

/// Starts the thread. It ends when the layer stops.
pub(super) fn start(shared: Arc<Shared>) -> Result<JoinHandle<()>, LayerError> {
    thread::Builder::new().name("disk-upkeep".to_owned()).spawn(move || shared.watch()).map_err(|error| LayerError {
        layer: LayerId::Disk,
        kind: ErrorKind::Unreachable,
        message: format!("no thread disk-upkeep: {error}"),
    })
}

/// How full the volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Volume {
    bytes: u64,
    used_percent: u64,
}

// === impl Shared ===

impl Shared {
    fn watch(&self) {
        while !self.stopping.load(Ordering::Acquire) {
            self.refresh();
            self.mend();
            thread::park_timeout(EVERY);
        }
    }

    /// Looks once, and sets brake, estimates and health by it.
    pub(super) fn refresh(&self) {
        let volume = Volume::of(&self.options.path);
        if let Some(Volume { bytes, used_percent }) = volume {
            self.counts.capacity_bytes.store(bytes, Ordering::Relaxed);
            let limit = if self.brake.load(Ordering::Relaxed) { RELEASE_PERCENT } else { BRAKE_PERCENT };
            self.brake.store(used_percent >= limit, Ordering::Relaxed);
        }
        if let Ok(store) = self.store() {
            self.counts.entries.store(store.entries_estimate(), Ordering::Relaxed);
            self.counts.bytes.store(store.bytes(), Ordering::Relaxed);
            if volume.is_some_and(|volume| volume.used_percent >= PRESSURE_PERCENT)
                && let Err(error) = store.files().drop_aside()
            {
                tracing::warn!(%error, "the database that was put aside can not be given up");
            }
        }
        self.observed.observe(self.verdict(volume));
    }

    fn verdict(&self, volume: Option<Volume>) -> Verdict {
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
        let mut discard = failing.kind == ErrorKind::Corrupt;
        if failing.kind == ErrorKind::Full && self.brake.load(Ordering::Relaxed) {
            // Reopening needs room. If somebody else's files fill the volume, waiting is all there is to do; if it is
            // the database itself, an empty cache that works is worth more than a full one that can not be written.
            let (own, all) = (&self.counts.bytes, &self.counts.capacity_bytes);
            discard = own.load(Ordering::Relaxed) * 2 > all.load(Ordering::Relaxed);
            if !discard || failing_for < DISCARD_FULL_AFTER {
                return;
            }
        }
        tracing::warn!(failure = failing.message, "the database refuses writes; it is reopened");
        self.counts.reopened.fetch_add(1, Ordering::Relaxed);
        if let Some(store) = self.take_store() {
            // A database whose background work met damage would meet it again: it is not worth keeping.
            let closed = if discard { store.discard() } else { store.close() };
            if let Err(error) = closed {
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
