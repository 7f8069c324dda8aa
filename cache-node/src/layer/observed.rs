//! Health that does not flicker: bad news must hold for two seconds, good news for ten.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    clock::Clock,
    layer::{Health, HealthState},
};

/// How long a part must look worse before it is called so.
const WORSE_AFTER: Duration = Duration::from_secs(2);

/// How long a part must look better before it is called so.
const BETTER_AFTER: Duration = Duration::from_secs(10);

/// The reason of a part that is well.
const AS_EXPECTED: &str = "AsExpected";

/// What a part looks like at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How well it works.
    pub state: HealthState,
    /// Stable word for machines.
    pub reason: &'static str,
    /// Sentence for people.
    pub message: String,
}

/// The health of a part, as observed again and again.
pub struct Observed {
    clock: Clock,
    inner: Mutex<Inner>,
}

struct Inner {
    health: Health,
    /// Since when observations have been worse, or better, than `health`.
    turning: Option<(Turn, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Worse,
    Better,
}

// === impl Verdict ===

impl Verdict {
    /// All as it should be.
    pub fn healthy() -> Self {
        Self { state: HealthState::Healthy, reason: AS_EXPECTED, message: String::new() }
    }

    /// Works, with a restriction.
    pub fn degraded(reason: &'static str, message: String) -> Self {
        Self { state: HealthState::Degraded, reason, message }
    }

    /// Does not work.
    pub fn unavailable(reason: &'static str, message: String) -> Self {
        Self { state: HealthState::Unavailable, reason, message }
    }
}

// === impl Observed ===

impl Observed {
    /// Healthy until something else is observed.
    pub fn new(clock: Clock) -> Self {
        let Verdict { state, reason, message } = Verdict::healthy();
        let health = Health { state, reason, message, since: clock.now() };
        Self { clock, inner: Mutex::new(Inner { health, turning: None }) }
    }

    /// Takes note of one more look at the part. Call it at least once a second.
    pub fn observe(&self, verdict: Verdict) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = match verdict.state.cmp(&inner.health.state) {
            std::cmp::Ordering::Equal => {
                inner.turning = None;
                inner.health.reason = verdict.reason;
                inner.health.message = verdict.message;
                return;
            }
            std::cmp::Ordering::Greater => Turn::Worse,
            std::cmp::Ordering::Less => Turn::Better,
        };
        let now = self.clock.monotonic();
        let since = match inner.turning {
            Some((same, since)) if same == turn => since,
            _ => {
                inner.turning = Some((turn, now));
                now
            }
        };
        if now.duration_since(since) >= turn.patience() {
            let Verdict { state, reason, message } = verdict;
            inner.health = Health { state, reason, message, since: self.clock.now() };
            inner.turning = None;
        }
    }

    /// The settled view.
    pub fn health(&self) -> Health {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).health.clone()
    }
}

// === impl Turn ===

impl Turn {
    const fn patience(self) -> Duration {
        match self {
            Self::Worse => WORSE_AFTER,
            Self::Better => BETTER_AFTER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;

    fn full() -> Verdict {
        Verdict::unavailable("Full", "no room".to_owned())
    }

    #[test]
    fn short_trouble_does_not_show() {
        let clock = Clock::manual(UnixMillis(0));
        let observed = Observed::new(clock.clone());
        observed.observe(full());
        clock.advance(Duration::from_millis(1900));
        observed.observe(full());
        assert_eq!(observed.health().state, HealthState::Healthy);
        observed.observe(Verdict::healthy());
        clock.advance(Duration::from_millis(1900));
        observed.observe(full());
        assert_eq!(observed.health().state, HealthState::Healthy, "the count starts again after a good look");
    }

    #[test]
    fn lasting_trouble_shows_after_two_seconds_and_its_end_after_ten() {
        let clock = Clock::manual(UnixMillis(0));
        let observed = Observed::new(clock.clone());
        observed.observe(full());
        clock.advance(Duration::from_secs(2));
        observed.observe(full());
        let health = observed.health();
        assert_eq!((health.state, health.reason, health.since), (HealthState::Unavailable, "Full", UnixMillis(2000)));
        observed.observe(Verdict::healthy());
        clock.advance(Duration::from_millis(9900));
        observed.observe(Verdict::healthy());
        assert_eq!(observed.health().state, HealthState::Unavailable);
        clock.advance(Duration::from_millis(100));
        observed.observe(Verdict::healthy());
        assert_eq!(observed.health().state, HealthState::Healthy);
    }
}
