//! The benchmark's only reader of time.

#![allow(clippy::disallowed_methods, reason = "this module is where the benchmark's time comes from")]

use std::time::{Duration, Instant};

/// Nanoseconds since the clock was made: cheap to copy, compare and subtract in the client's loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

// === impl Clock ===

impl Clock {
    /// A clock that reads zero now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since [`Clock::start`]; 2^64 of them are 584 years.
    pub(crate) fn nanos(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether `limit` has passed since [`Clock::start`].
    pub(crate) fn passed(self, limit: Duration) -> bool {
        self.0.elapsed() > limit
    }
}
