//! The circuit breaker: while Redis does not answer, nobody waits for it.
//!
//! It opens after a few failures in a row, or when half of many calls fail. While it is open every call is answered at
//! once. The layer's keeper tries again, later each time; calls of clients are never the ones that try.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rand::RngExt;
use tokio::sync::watch;

use crate::clock::Clock;

/// Failures in a row that open it.
const CONSECUTIVE_MAX: u32 = 5;

/// Of this many calls at least, within [`WINDOW`], half must have failed to open it.
const WINDOW_CALLS_MIN: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Pause before the first try, doubled for each that fails, up to the maximum.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// It must have stayed closed this long for the next pauses to be short again; otherwise a Redis that is only just too
/// slow would be tried, and waited for, ten times a second.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// Keeps calls away from a store that does not answer.
pub(super) struct Breaker {
    clock: Clock,
    /// Whether calls may go through; others wait for it to become true.
    closed: watch::Sender<bool>,
    inner: Mutex<Inner>,
}

/// What the breaker does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Calls go through.
    Closed,
    /// Calls are answered at once; nobody tries before the instant.
    Open(Instant),
    /// One try is under way; calls are answered at once.
    HalfOpen,
}

struct Inner {
    state: State,
    consecutive: u32,
    window_since: Instant,
    window_calls: u32,
    window_failures: u32,
    /// Tries that failed since it was last closed for long.
    tries: u32,
    closed_since: Instant,
    opened: u64,
}

// === impl Breaker ===

impl Breaker {
    /// Open, because nothing is connected yet, and to be tried at once.
    pub(super) fn new(clock: Clock) -> Self {
        let now = clock.monotonic();
        let inner = Inner {
            state: State::Open(now),
            consecutive: 0,
            window_since: now,
            window_calls: 0,
            window_failures: 0,
            tries: 0,
            closed_since: now,
            opened: 0,
        };
        Self { clock, closed: watch::Sender::new(false), inner: Mutex::new(inner) }
    }

    /// Whether calls may go through.
    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Returns once calls may go through.
    pub(super) async fn wait_closed(&self) {
        // The sender lives as long as `self`, so this can only end with what it waits for.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// What it does now.
    pub(super) fn state(&self) -> State {
        self.lock().state
    }

    /// Times that it opened after having been closed.
    pub(super) fn opened(&self) -> u64 {
        self.lock().opened
    }

    /// A call was answered, with whatever answer.
    pub(super) fn succeeded(&self) {
        let mut inner = self.lock();
        inner.consecutive = 0;
        inner.count(self.clock.monotonic(), false);
    }

    /// A call was not answered.
    pub(super) fn failed(&self) {
        let now = self.clock.monotonic();
        let mut inner = self.lock();
        inner.consecutive += 1;
        inner.count(now, true);
        let half_fail = inner.window_calls >= WINDOW_CALLS_MIN && inner.window_failures * 2 >= inner.window_calls;
        if inner.state == State::Closed && (inner.consecutive >= CONSECUTIVE_MAX || half_fail) {
            self.open(&mut inner, now);
        }
    }

    /// Opens without waiting for more failures: it is certain that there is no store.
    pub(super) fn trip(&self) {
        let mut inner = self.lock();
        if inner.state == State::Closed {
            self.open(&mut inner, self.clock.monotonic());
        }
    }

    /// Whether it is time to try; if so, the caller tries, and says how that ended.
    pub(super) fn begin_try(&self) -> bool {
        let mut inner = self.lock();
        let due = matches!(inner.state, State::Open(until) if self.clock.monotonic() >= until);
        if due {
            inner.state = State::HalfOpen;
        }
        due
    }

    /// The try succeeded: calls go through.
    pub(super) fn close(&self) {
        let now = self.clock.monotonic();
        let mut inner = self.lock();
        inner.state = State::Closed;
        inner.consecutive = 0;
        inner.restart_window(now);
        inner.closed_since = now;
        self.closed.send_replace(true);
    }

    /// The try failed: the next one is later.
    pub(super) fn reopen(&self) {
        let now = self.clock.monotonic();
        let mut inner = self.lock();
        let pause = pause(inner.tries, rand::rng().random_range(0.5..1.0));
        inner.state = State::Open(now + pause);
        inner.tries = inner.tries.saturating_add(1);
    }

    /// The next try is due now, as when somebody has changed what made the last ones fail.
    pub(super) fn hurry(&self) {
        let mut inner = self.lock();
        if let State::Open(until) = &mut inner.state {
            *until = self.clock.monotonic();
        }
    }

    fn open(&self, inner: &mut Inner, now: Instant) {
        if now.duration_since(inner.closed_since) >= SETTLED_AFTER {
            inner.tries = 0;
        }
        inner.state = State::Open(now + pause(inner.tries, rand::rng().random_range(0.5..1.0)));
        inner.tries = inner.tries.saturating_add(1);
        inner.opened += 1;
        self.closed.send_replace(false);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    fn count(&mut self, now: Instant, failed: bool) {
        if now.duration_since(self.window_since) >= WINDOW {
            self.restart_window(now);
        }
        self.window_calls += 1;
        self.window_failures += u32::from(failed);
    }

    fn restart_window(&mut self, now: Instant) {
        (self.window_since, self.window_calls, self.window_failures) = (now, 0, 0);
    }
}

/// How long to wait after so many failed tries. The jitter keeps a fleet from trying in step.
fn pause(tries: u32, jitter: f64) -> Duration {
    PAUSE_MIN.saturating_mul(1 << tries.min(16)).min(PAUSE_MAX).mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::START;

    fn closed() -> (Clock, Breaker) {
        let clock = Clock::manual(START);
        let breaker = Breaker::new(clock.clone());
        assert!(breaker.begin_try());
        breaker.close();
        (clock, breaker)
    }

    #[test]
    fn nothing_goes_through_before_the_first_connection() {
        let breaker = Breaker::new(Clock::manual(START));
        assert!(!breaker.is_closed());
        assert!(breaker.begin_try() && !breaker.begin_try(), "one try at a time");
        breaker.close();
        assert!(breaker.is_closed());
        assert_eq!(breaker.opened(), 0, "it was never closed before");
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_an_answer_starts_the_count_again() {
        let (_clock, breaker) = closed();
        for _ in 0..4 {
            breaker.failed();
        }
        breaker.succeeded();
        for _ in 0..4 {
            breaker.failed();
            assert!(breaker.is_closed());
        }
        breaker.failed();
        assert!(!breaker.is_closed());
        assert_eq!(breaker.opened(), 1);
    }

    #[test]
    fn half_of_many_calls_failing_opens_it_although_others_are_answered() {
        let (clock, breaker) = closed();
        let rounds =
            |count| (0..count).for_each(|_| [breaker.succeeded(), breaker.failed()].into_iter().for_each(drop));
        rounds(9);
        assert!(breaker.is_closed(), "18 calls are too few to tell");
        clock.advance(WINDOW);
        rounds(9);
        assert!(breaker.is_closed(), "old calls do not count");
        rounds(1);
        assert!(!breaker.is_closed());
    }

    #[test]
    fn tries_come_later_each_time_up_to_five_seconds_and_never_in_step() {
        let spans: Vec<u128> = (0..8).map(|tries| pause(tries, 1.0).as_millis()).collect();
        assert_eq!(spans, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pause(u32::MAX, 0.5), PAUSE_MAX / 2);
        let (clock, breaker) = closed();
        breaker.trip();
        for _ in 0..20 {
            assert!(!breaker.begin_try(), "not before the pause is over");
            clock.advance(PAUSE_MAX);
            assert!(breaker.begin_try(), "never later than five seconds");
            assert_eq!(breaker.state(), State::HalfOpen);
            assert!(!breaker.is_closed(), "calls of clients are not the ones that try");
            breaker.reopen();
        }
    }

    #[test]
    fn a_store_that_fails_again_soon_is_not_tried_at_the_first_pace() {
        let (clock, breaker) = closed();
        let pause_after_trip = || {
            breaker.trip();
            let State::Open(until) = breaker.state() else { panic!("it is open") };
            until.duration_since(clock.monotonic())
        };
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pauses.push(pause_after_trip());
            clock.advance(PAUSE_MAX);
            assert!(breaker.begin_try());
            breaker.close();
        }
        assert!(pauses[0] < PAUSE_MIN && pauses[5] > Duration::from_secs(1), "{pauses:?}");
        clock.advance(SETTLED_AFTER);
        assert!(pause_after_trip() < PAUSE_MIN, "after ten good seconds it counts from the beginning");
    }

    #[test]
    fn a_change_of_what_was_wrong_is_tried_at_once() {
        let (_clock, breaker) = closed();
        breaker.trip();
        assert!(!breaker.begin_try());
        breaker.hurry();
        assert!(breaker.begin_try());
    }

    #[tokio::test]
    async fn waiters_are_woken_when_it_closes() {
        let (clock, breaker) = closed();
        breaker.trip();
        let waiting = breaker.wait_closed();
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        clock.advance(PAUSE_MAX);
        assert!(breaker.begin_try());
        breaker.close();
        waiting.await;
    }
}
