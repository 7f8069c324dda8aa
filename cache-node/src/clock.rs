//! The only reader of wall and monotonic time; a settable twin serves the tests.

#![allow(clippy::disallowed_methods, reason = "this module is where time comes from")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

/// Milliseconds since 1970-01-01T00:00:00Z: the form in which every expiry is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct UnixMillis(pub u64);

/// Where time comes from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual { started: Instant, unix_ms: Arc<AtomicU64>, elapsed_ms: Arc<AtomicU64> },
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
