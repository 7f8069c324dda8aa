//! The one clock of a history: monotonic, read by every client, so that moments of different nodes compare.

#![allow(clippy::disallowed_methods, reason = "this module is where a history's time comes from")]

use std::time::{Duration, Instant};

/// Nanoseconds since the clock of the run was made.
pub(crate) type Nanos = u64;

/// Cheap to copy; all copies of one agree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

// === impl Clock ===

impl Clock {
    /// A clock that reads zero now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since [`Clock::start`].
    pub(crate) fn nanos(self) -> Nanos {
        nanos(self.0.elapsed())
    }
}

/// A span in the unit of a history; 2^64 nanoseconds are 584 years.
pub(crate) fn nanos(span: Duration) -> Nanos {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
