//! The only reader of wall and monotonic time. Everything that decides by time takes it as an argument.

use jiff::Timestamp;
use tokio::time::Instant;

/// Wall time: what people read in statuses and leases.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// Monotonic time: what ages and deadlines are measured with. Stands still in tests with a paused runtime.
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}
