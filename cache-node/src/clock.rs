//! The only reader of wall and monotonic time; a settable twin serves the tests.

#![allow(clippy::disallowed_methods, reason = "this module is where time comes from")]

use std::{
    fs, io, str,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

/// How far the clock of a node may be ahead of that by which a removal was placed, without the removal being forgotten too
/// early.
pub(crate) const CLOCKS_APART_MAX: Duration = Duration::from_secs(24 * 3600);

/// Milliseconds since 1970-01-01T00:00:00Z: the form in which every expiry is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct UnixMillis(pub u64);

/// A moment that a later process on the same machine can place: which boot it is of, and how long after it. No wall clock
/// moves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uptime {
    boot: String,
    ms: u64,
}

/// Where time comes from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual { started: Instant, unix_ms: Arc<AtomicU64>, elapsed_ms: Arc<AtomicU64> },
}

/// The number of this boot of the machine, the same in all its containers.
pub(crate) fn boot_id() -> io::Result<[u8; 36]> {
    let text = fs::read("/proc/sys/kernel/random/boot_id")?;
    text.get(..36).and_then(|id| id.try_into().ok()).ok_or_else(|| io::Error::other("boot_id is not a UUID"))
}

// === impl UnixMillis ===

impl UnixMillis {
    /// This moment plus `span`; saturates at the end of time.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

// === impl Uptime ===

impl Uptime {
    /// From its parts; none if `boot` is no word.
    pub fn from_parts(boot: &str, ms: u64) -> Option<Self> {
        let is_word = !boot.is_empty() && boot.bytes().all(|byte| byte.is_ascii_graphic());
        is_word.then(|| Self { boot: boot.to_owned(), ms })
    }

    /// The boot, one word.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Milliseconds since then.
    pub const fn ms(&self) -> u64 {
        self.ms
    }

    /// How long from `earlier` to this moment; none if the machine was started between.
    pub fn since(&self, earlier: &Self) -> Option<Duration> {
        let ms = (self.boot == earlier.boot).then(|| self.ms.checked_sub(earlier.ms))??;
        Some(Duration::from_millis(ms))
    }
}

// === impl Clock ===

impl Clock {
    /// The machine's clocks.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `start` until a test moves it.
    pub fn manual(start: UnixMillis) -> Self {
        Self(Source::Manual {
            started: Instant::now(),
            unix_ms: Arc::new(AtomicU64::new(start.0)),
            elapsed_ms: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Wall time: what an expiry is compared with.
    pub fn now(&self) -> UnixMillis {
        match &self.0 {
            Source::System => {
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
            }
            Source::Manual { unix_ms, .. } => UnixMillis(unix_ms.load(Ordering::Acquire)),
        }
    }

    /// Monotonic time: what durations, deadlines and leases are measured with.
    pub fn monotonic(&self) -> Instant {
        match &self.0 {
            Source::System => Instant::now(),
            Source::Manual { started, elapsed_ms, .. } => {
                *started + Duration::from_millis(elapsed_ms.load(Ordering::Acquire))
            }
        }
    }

    /// How long the machine has been up; none if the kernel does not say. Counts in steps of 10 ms.
    pub fn uptime(&self) -> Option<Uptime> {
        match &self.0 {
            Source::System => {
                let boot = boot_id().ok()?;
                let seconds: f64 = fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
                Uptime::from_parts(
                    str::from_utf8(&boot).ok()?,
                    u64::try_from(Duration::try_from_secs_f64(seconds).ok()?.as_millis()).ok()?,
                )
            }
            Source::Manual { elapsed_ms, .. } => Uptime::from_parts("manual", elapsed_ms.load(Ordering::Acquire)),
        }
    }

    /// Moves a manual clock forward.
    ///
    /// # Panics
    /// On the system's clock, which nobody moves.
    pub fn advance(&self, span: Duration) {
        let Source::Manual { unix_ms, elapsed_ms, .. } = &self.0 else {
            panic!("only a manual clock can be advanced");
        };
        let span_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        unix_ms.fetch_add(span_ms, Ordering::AcqRel);
        elapsed_ms.fetch_add(span_ms, Ordering::AcqRel);
    }
}
