//! What the layer's threads share: the open database, and what is known of it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;

use super::{
    DiskOptions,
    admission::Admission,
    counts::Counts,
    store::{Applied, Store},
};
use crate::{
    clock::{Clock, UnixMillis},
    entry::Entry,
    layer::{Change, ErrorKind, LayerError, LayerId, Observed},
};

/// What the layer's threads share.
pub(super) struct Shared {
    pub(super) options: DiskOptions,
    pub(super) clock: Clock,
    /// None while the database is being reopened, and after the shutdown.
    pub(super) store: ArcSwapOption<Store>,
    pub(super) counts: Arc<Counts>,
    pub(super) admission: Admission,
    /// Above the last threshold of the volume: sets are not written, old copies are removed.
    pub(super) brake: AtomicBool,
    /// Since when, or since when entries were last given up.
    pub(super) braked_since: Mutex<Option<Instant>>,
    /// Why what is on disk must not be trusted, although it may look intact.
    pub(super) distrust: Mutex<Option<String>>,
    pub(super) stopping: AtomicBool,
    /// The failure of the last write, and since when writes have failed; none after a success.
    pub(super) failing: Mutex<Option<Failing>>,
    pub(super) observed: Observed,
    pub(super) started_cold: Mutex<Option<String>>,
}

#[derive(Clone)]
pub(super) struct Failing {
    pub(super) since: Instant,
    pub(super) kind: ErrorKind,
    pub(super) message: String,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(options: DiskOptions, clock: Clock) -> Self {
        Self {
            admission: Admission::new(&options, clock.clone()),
            options,
            store: ArcSwapOption::empty(),
            counts: Arc::default(),
            brake: AtomicBool::new(false),
            braked_since: Mutex::new(None),
            distrust: Mutex::new(None),
            stopping: AtomicBool::new(false),
            failing: Mutex::new(None),
            observed: Observed::new(clock.clone()),
            clock,
            started_cold: Mutex::new(None),
        }
    }

    /// Opens the database in place of none.
    pub(super) fn open(&self) -> Result<(), LayerError> {
        let distrust = self.distrust.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let opened = Store::open(&self.options, &self.clock, &self.counts, distrust);
        let (store, cold) = opened.inspect_err(|error| {
            self.counts.error(error.kind);
        })?;
        *self.distrust.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(why) = cold {
            tracing::warn!(why, path = %self.options.path.display(), "the disk layer starts cold");
            self.counts.cold_starts.fetch_add(1, Ordering::Relaxed);
            *self.started_cold.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
        self.store.store(Some(Arc::new(store)));
        self.refresh();
        Ok(())
    }

    pub(super) fn store(&self) -> Result<Arc<Store>, LayerError> {
        self.store
            .load_full()
            .ok_or_else(|| LayerError::new(LayerId::Disk, ErrorKind::Unreachable, "the database is not open"))
    }

    pub(super) fn apply(&self, now: UnixMillis, changes: &[Change]) -> Result<(), LayerError> {
        // A small volume fills within the second until the next look.
        if !self.brake.load(Ordering::Relaxed) {
            self.measure();
        }
        let braked = self.brake.load(Ordering::Relaxed);
        let admit = |entry: &Entry| {
            let verdict = self.admission.admit(now, entry, braked);
            verdict.map_err(|refusal| self.counts.refused(refusal)).is_ok()
        };
        let Applied { written, bytes, removed } = self.write(|store| store.apply(now, changes, admit))?;
        self.admission.spend(bytes);
        self.counts.written.fetch_add(written, Ordering::Relaxed);
        self.counts.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        self.counts.removed.fetch_add(removed, Ordering::Relaxed);
        Ok(())
    }

    /// Writes, and keeps account of failures for the upkeep.
    pub(super) fn write<T>(&self, write: impl FnOnce(&Store) -> Result<T, LayerError>) -> Result<T, LayerError> {
        let outcome = self.store().and_then(|store| write(&store));
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match &outcome {
            Ok(_) => *failing = None,
            Err(error) => {
                self.counts.error(error.kind);
                let since = failing.as_ref().map_or_else(|| self.clock.monotonic(), |failing| failing.since);
                *failing = Some(Failing { since, kind: error.kind, message: error.message.clone() });
            }
        }
        outcome
    }

    /// Takes the database out of use and waits for its last reader.
    pub(super) fn take_store(&self) -> Option<Store> {
        let mut store = self.store.swap(None)?;
        loop {
            match Arc::try_unwrap(store) {
                Ok(store) => return Some(store),
                // A reader is inside RocksDB, where it is not for long.
                Err(shared) => store = shared,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn close(&self) {
        if let Some(store) = self.take_store()
            && let Err(error) = store.close()
        {
            tracing::warn!(%error, "the database was not closed cleanly; it is recovered from its log at the next start");
        }
    }
}
