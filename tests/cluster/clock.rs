//! The one place where the test cluster reads the wall clock: a real cluster takes real time.

use std::time::{Duration, Instant, SystemTime};

/// The moment it is.
#[expect(clippy::disallowed_methods, reason = "nothing here can run on a paused clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The time of day, with which files are stamped.
#[expect(clippy::disallowed_methods, reason = "files are stamped by the same clock when they are written")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// Asks `done` every `pause` until it says yes; says whether it did within `limit`.
pub(crate) fn wait_until(limit: Duration, pause: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(pause);
    }
}
