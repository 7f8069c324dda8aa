//! The one clock of a history: monotonic, read by every client, so that moments of different nodes compare.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the clock of the run was made.
pub(crate) type Nanos = u64;

/// Cheap to copy; all copies of one agree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// When it reads zero.
    zero: Nanos,
}

// === impl Clock ===

impl Clock {
    /// A clock that reads zero now.
    pub(crate) fn start() -> Self {
        Self { zero: Self::of_machine().nanos() }
    }

    /// The monotonic clock of this machine, which reads the same in every process.
    pub(crate) fn of_machine() -> Self {
        Self { zero: 0 }
    }

    /// Nanoseconds since it read zero.
    pub(crate) fn nanos(self) -> Nanos {
        let now = clock_gettime(ClockId::Monotonic);
        let since_boot = now.tv_sec * 1_000_000_000 + now.tv_nsec;
        since_boot.unsigned_abs() - self.zero
    }
}

/// A span in the unit of a history; 2^64 nanoseconds are 584 years.
pub(crate) fn nanos(span: Duration) -> Nanos {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
