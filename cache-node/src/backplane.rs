//! What the nodes of a cache tell each other: which entries are older than they look.
//!
//! All changes of all nodes are records of one log, which Redis keeps and orders. A node follows it: what another node
//! has changed leaves memory and disk. Whoever follows knows how far it has come; a look at the log that finds nothing
//! new confirms that, as of the moment at which it was asked for. A node that has had no confirmation for too long does
//! not trust what it holds itself ([`Backplane::trust`]): it is *fenced*. A node that finds that records were lost gives
//! up everything that it holds ([`Gap`]).
//!
//! After a restart of Redis, or a change of its master, nobody alone can tell whether records were lost: one may have been
//! confirmed to a node and not have reached any other. So each node says whether it finds all that it knows of, and the
//! log goes on once all have said so. Until then no node's trust is renewed.
//!
//! Every change of this node, and every change that it hears of from another one, is told to each [`Listener`] once
//! memory has it.

mod follower;
mod gap;
mod report;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;

pub(crate) use self::follower::Follower;
pub use self::gap::Gap;
use crate::{
    clock::{Clock, UnixMillis},
    context::{Origin, Trust},
    entry::Position,
    layer::{
        Observed, TagRemoval,
        log::{Cursor, Record},
    },
    metrics::Histogram,
};

/// How the log is followed. `config.rs` fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackplaneOptions {
    /// How long a node trusts what it holds without a confirmation that it knows all changes.
    pub max_staleness: Duration,
    /// For how long after that it is served all the same; zero is not at all.
    pub serve_stale_for: Duration,
}

/// How long before a node was opened its knowledge may be from: more than it could be trusted for.
const EARLIEST: Duration = Duration::from_secs(26 * 3600);

/// Who must know what changes: leases, and the near caches of clients.
const LISTENERS_MAX: usize = 2;

/// The backplane of one node.
pub struct Backplane {
    /// None if there is no log, and nobody to follow.
    options: Option<BackplaneOptions>,
    clock: Clock,
    opened: Instant,
    listeners: [OnceLock<Arc<dyn Listener>>; LISTENERS_MAX],
    /// How far the node was to be trusted when the listeners were last told.
    told: Mutex<Trust>,
    /// When the last look was asked for that found the node at the head of the log, in microseconds since [`EARLIEST`]
    /// before it was opened; zero if none is known, or not any more.
    confirmed_us: AtomicU64,
    /// The position up to which all records have taken effect.
    applied: AtomicU64,
    caught_up: AtomicBool,
    counts: Counts,
    /// From the reading of records until they had taken effect.
    applying: Histogram,
    known: Mutex<Known>,
    observed: Observed,
}

/// Numbers of records, and more.
#[derive(Default)]
struct Counts {
    published: AtomicU64,
    received: AtomicU64,
    own: AtomicU64,
    applied: AtomicU64,
    behind: AtomicU64,
    /// How much older the newest record that has taken effect is than the newest of the log.
    lag_ms: AtomicU64,
    failures: AtomicU64,
    stale: AtomicU64,
    gaps: [AtomicU64; Gap::ALL.len()],
}

/// What health tells.
#[derive(Clone, Default)]
struct Known {
    /// What keeps the node from following.
    trouble: Option<String>,
    /// Since when no look at the log has succeeded; none if the last one has.
    lost_since: Option<Instant>,
    gap: Option<(Gap, UnixMillis)>,
}

/// Hears of changes.
pub trait Listener: Send + Sync + 'static {
    /// Something was overwritten or removed, and no reader of this node finds it in memory any more. Called under the
    /// lock of the key, if there is one: must be quick, must not wait, and must not ask the coordinator.
    fn changed(&self, notice: &Notice<'_>);
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub struct Notice<'a> {
    /// Who made it: a client of this node, or another node.
    pub origin: Origin,
    /// The operation of this node that made it; 0 if none did.
    pub operation: u64,
    /// Its place in the order of changes; [`Position::NONE`] if that is not known yet.
    pub position: Position,
    /// What is older than it looks.
    pub what: What<'a>,
}

/// What a change is about.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// The entry of this key was stored, replaced or removed.
    Key(&'a [u8]),
    /// All entries with these tags were removed.
    Tagged(&'a TagRemoval),
    /// Everything was removed, or nothing is certain any more.
    Everything,
}

/// What the records of the log do to a node.
#[async_trait]
pub(crate) trait Effects: Send + Sync + 'static {
    /// How far the log was followed before the node was started; none if that is not known.
    async fn cursor(&self) -> Option<Cursor>;

    /// Carries the records out, in their order, and keeps the cursor with them. Answers whether one of them says that
    /// records were lost.
    async fn apply(&self, records: &[Record], cursor: &Cursor) -> bool;

    /// Gives up everything that the node holds, and begins at the cursor.
    async fn start_over(&self, cursor: &Cursor);

    /// Keeps how far the log was followed.
    async fn note(&self, cursor: &Cursor);

    /// Tells of the removals that a process before this one could not tell of, if there are any left; false if that does
    /// not work now.
    async fn tell(&self) -> bool;
}

// === impl Backplane ===

impl Backplane {
    /// The backplane of a node that shares nothing, which trusts what it holds.
    pub fn none(clock: Clock) -> Self {
        Self::new(None, clock)
    }

    /// The backplane of a node that is to follow a log, and trusts nothing until it has caught up.
    pub fn following(options: BackplaneOptions, clock: Clock) -> Self {
        Self::new(Some(options), clock)
    }

    fn new(options: Option<BackplaneOptions>, clock: Clock) -> Self {
        Self {
            options,
            opened: clock.monotonic(),
            listeners: Default::default(),
            told: Mutex::new(Trust::None),
            confirmed_us: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            caught_up: AtomicBool::new(options.is_none()),
            counts: Counts::default(),
            applying: Histogram::default(),
            known: Mutex::new(Known { lost_since: Some(clock.monotonic()), ..Known::default() }),
            observed: Observed::new(clock.clone()),
            clock,
        }
    }

    /// Where its time comes from.
    pub(crate) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// How the log is followed; none if there is none.
    pub(crate) const fn options(&self) -> Option<&BackplaneOptions> {
        self.options.as_ref()
    }

    /// Whether there is a log to follow.
    pub const fn is_on(&self) -> bool {
        self.options.is_some()
    }

    /// Has the listener hear of all changes from now on.
    ///
    /// # Panics
    /// If there is no place for it: then somebody would not hear.
    pub fn listen(&self, listener: Arc<dyn Listener>) {
        let left = self.listeners.iter().try_fold(listener, |listener, place| match place.set(listener) {
            Ok(()) => Err(()),
            Err(listener) => Ok(listener),
        });
        assert!(left.is_err(), "there are places for all listeners of a node");
    }

    /// Tells the listeners.
    #[inline]
    pub(crate) fn tell(&self, notice: &Notice<'_>) {
        for listener in self.listeners.iter().filter_map(OnceLock::get) {
            listener.changed(notice);
        }
    }

    /// The position up to which all records have taken effect on this node: a value that memory or disk holds now is at
    /// least as fresh.
    pub fn position(&self) -> Position {
        Position::from_bits(self.applied.load(Ordering::Acquire))
    }

    /// Whether the node has caught up with the log since it was started.
    pub fn is_caught_up(&self) -> bool {
        self.caught_up.load(Ordering::Acquire)
    }

    /// How far what the node holds itself may be trusted at this moment. One load and one comparison.
    #[inline]
    pub fn trust(&self, now: Instant) -> Trust {
        let Some(options) = self.options else { return Trust::Full };
        match self.confirmed_us.load(Ordering::Acquire) {
            0 => Trust::None,
            confirmed => {
                let age_us = self.micros(now).saturating_sub(confirmed);
                if age_us < micros(options.max_staleness) {
                    Trust::Full
                } else if age_us < micros(options.max_staleness) + micros(options.serve_stale_for) {
                    Trust::Stale
                } else {
                    Trust::None
                }
            }
        }
    }

    /// What the node held when it was started was known to be all right so long ago. It is not trusted as if it were still
    /// known.
    fn inherit(&self, age: Duration) {
        let Some(options) = self.options else { return };
        let age_us = micros(age.max(options.max_staleness));
        let confirmed_us = self.micros(self.clock.monotonic()).saturating_sub(age_us);
        self.confirmed_us.store(confirmed_us, Ordering::Release);
    }

    /// Counts values that were served although the node is fenced.
    pub(crate) fn served_stale(&self) {
        self.counts.stale.fetch_add(1, Ordering::Relaxed);
    }

    /// Redis has confirmed a record of this node.
    pub(crate) fn published(&self) {
        self.counts.published.fetch_add(1, Ordering::Relaxed);
    }

    fn micros(&self, at: Instant) -> u64 {
        // Never zero, which stands for "not known".
        micros(EARLIEST + at.saturating_duration_since(self.opened))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests;
