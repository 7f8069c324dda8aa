//! Keeps the layer connected: connects, tries again while the breaker is open, follows a failover, takes up changed
//! files, and tells how the layer is.

use std::{
    future::Future,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::time::{interval, timeout};

use super::{
    Errand, Shared, Topology,
    breaker::State,
    connect::{Connected, connect_all},
    counts::Counts,
    eviction,
    link::Fence,
    secrets::Secrets,
    sentinel::find_master,
    trouble::Trouble,
};
use crate::layer::Verdict;

/// How often the keeper looks whether there is something to do.
const TICK: Duration = Duration::from_millis(100);

/// A Redis that has not answered anything for so long is asked something.
const IDLE: Duration = Duration::from_secs(1);

/// How often Sentinels are asked for the master.
const MASTER_EVERY: Duration = Duration::from_secs(1);

/// How often the files are read.
const FILES_EVERY: Duration = Duration::from_secs(2);

/// How long to wait before connections that are missing, or lead to a replica, are made again.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// How often health is observed, and how long figures of latency count: between one and two of the latter.
const OBSERVE_EVERY: Duration = Duration::from_millis(500);
const OBSERVATIONS_PER_SPAN: u32 = 20;

/// How often Redis is asked what it evicts.
const EVICTION_EVERY: Duration = Duration::from_secs(5);

/// How long a refused write shows in health.
const REFUSAL_SHOWS: Duration = Duration::from_secs(10);

/// So many slow calls of few are not chance.
const SLOW_CALLS_MIN: u64 = 3;

/// A write that a working Redis refused.
pub(super) struct Refusal {
    at: Instant,
    trouble: Trouble,
}

/// What the keeper remembers from one look to the next.
struct Keeper {
    shared: Arc<Shared>,
    /// The files' content by which the connections were made, or last tried.
    secrets: Option<Secrets>,
    files_due: Instant,
    master_due: Instant,
    renew_due: Instant,
    eviction_due: Instant,
}

/// The task that keeps the layer connected.
pub(super) fn start(shared: &Arc<Shared>) -> impl Future<Output = ()> + Send + 'static {
    let now = shared.clock.monotonic();
    let shared = Arc::clone(shared);
    let mut keeper =
        Keeper { shared, secrets: None, files_due: now, master_due: now, renew_due: now, eviction_due: now };
    async move {
        loop {
            // A connection that was given up is replaced at once, all else in its time.
            let _ = timeout(TICK, keeper.shared.link.broken.notified()).await;
            keeper.look().await;
        }
    }
}

/// The task that observes health.
pub(super) fn watch(shared: &Arc<Shared>) -> impl Future<Output = ()> + Send + 'static {
    let shared = Arc::clone(shared);
    async move {
        let mut ticks = interval(OBSERVE_EVERY);
        for count in 1_u32.. {
            ticks.tick().await;
            shared.observed.observe(shared.verdict());
            if count.is_multiple_of(OBSERVATIONS_PER_SPAN) {
                shared.counts.latency.turn();
            }
        }
    }
}

// === impl Keeper ===

impl Keeper {
    async fn look(&mut self) {
        let now = self.shared.clock.monotonic();
        let files_changed = now >= self.files_due && self.files_changed().await;
        if !self.shared.breaker.is_closed() {
            if files_changed {
                self.shared.breaker.hurry();
            }
            if self.shared.breaker.begin_try() {
                self.attempt().await;
            }
            return;
        }
        let moved = now >= self.master_due && self.master_moved().await;
        let lacking = !self.shared.link.is_complete() || self.shared.link.is_read_only() || self.is_elsewhere();
        if files_changed || moved || (lacking && now >= self.renew_due) {
            if let Err(trouble) = self.renew().await {
                self.note(trouble);
                // Without any connection every call would fail; with some, those go on.
                if self.shared.link.all().is_empty() {
                    self.shared.breaker.trip();
                }
            }
        } else if self.shared.idle() >= IDLE {
            self.probe().await;
        }
        if now >= self.eviction_due {
            self.eviction_due = now + EVICTION_EVERY;
            self.shared.look_at_eviction().await;
        }
    }

    /// Finds out whether Redis works, and opens or closes the breaker accordingly.
    async fn attempt(&mut self) {
        let outcome = if self.shared.link.is_complete() && self.probe().await {
            Ok(())
        } else {
            // A connection may be dead without anybody having been told.
            match self.renew().await {
                Ok(()) if self.probe().await => Ok(()),
                Ok(()) => Err(None),
                Err(trouble) => Err(Some(trouble)),
            }
        };
        match outcome {
            Ok(()) => {
                *self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
                self.shared.breaker.close();
                tracing::info!(endpoint = self.endpoint(), "redis answers");
            }
            Err(trouble) => {
                // Without one, the probe has noted its own.
                trouble.into_iter().for_each(|trouble| self.note(trouble));
                self.shared.breaker.reopen();
            }
        }
    }

    /// Asks something over every connection, as a client would and no more patiently.
    async fn probe(&self) -> bool {
        let ask = async |connected: Arc<Connected>| {
            let mut get = redis::cmd("MGET");
            get.arg(self.shared.keys.floor());
            let allowance = self.shared.options.timeout;
            let deadline = self.shared.clock.monotonic() + allowance;
            let errand = Errand { what: "a probe", deadline, allowance };
            let mut connection = connected.connection.clone();
            let query = async { get.exec_async(&mut connection).await };
            self.shared.measured(&connected, errand, query).await.is_ok()
        };
        join_all(self.shared.link.all().into_iter().map(ask)).await.into_iter().all(|well| well)
    }

    /// Makes all connections anew, and only then gives up the old ones.
    async fn renew(&mut self) -> Result<(), Trouble> {
        let shared = &self.shared;
        self.renew_due = shared.clock.monotonic() + RENEW_EVERY;
        let secrets = Secrets::read(&shared.options).await;
        let secrets = secrets.map_err(|message| Trouble::refused("SecretsUnreadable", message))?;
        self.secrets = Some(secrets.clone());
        let new = connect_all(&shared.options, &shared.keys, &secrets).await?;
        let fence = shared.link.replace(new).await?;
        let count = shared.counts.reconnects.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(endpoint = self.endpoint(), count, "connected to redis");
        if fence == Fence::Refused {
            Counts::add(&shared.counts.unfenced, 1);
            tracing::warn!(
                "redis does not permit CLIENT INFO or CLIENT KILL: a write that timed out may overtake a later one"
            );
        }
        Ok(())
    }

    async fn files_changed(&mut self) -> bool {
        self.files_due = self.shared.clock.monotonic() + FILES_EVERY;
        match (&self.secrets, Secrets::read(&self.shared.options).await) {
            (Some(old), Ok(new)) => *old != new,
            // What can not be read in the middle of a change is read the next time.
            _ => false,
        }
    }

    async fn master_moved(&mut self) -> bool {
        self.master_due = self.shared.clock.monotonic() + MASTER_EVERY;
        let (Topology::Sentinel { master_name }, Some(secrets)) = (&self.shared.options.topology, &self.secrets) else {
            return false;
        };
        let master = find_master(&self.shared.options, secrets, master_name).await;
        // Sentinels that are away say nothing about the master.
        master.is_ok_and(|master| self.shared.link.endpoint().is_some_and(|current| current != master))
    }

    fn note(&self, trouble: Trouble) {
        self.shared.counts.error(trouble.kind);
        let mut last = self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().map(|last| last.reason) != Some(trouble.reason) {
            tracing::warn!(reason = trouble.reason, error = trouble.message, "redis can not be used");
        }
        *last = Some(trouble);
    }

    fn endpoint(&self) -> String {
        self.shared.link.endpoint().map(|endpoint| endpoint.to_string()).unwrap_or_default()
    }

    /// Whether a connection was made under another history than that under which the log is known to be whole. It may lead
    /// to another server; or the server got another id meanwhile, as a master does when its first replica comes. Nothing
    /// would ever be written or served over it.
    fn is_elsewhere(&self) -> bool {
        let shared = &self.shared;
        // Of a server that does not tell its history nothing is known, over a new connection either.
        let differs = |connected: &Arc<Connected>| !connected.history.is_empty() && !shared.is_settled(connected);
        shared.settled.load().is_some() && shared.link.all().iter().any(differs)
    }
}

// === impl Shared: health ===

impl Shared {
    /// How long ago Redis last answered.
    fn idle(&self) -> Duration {
        let answered = self.opened_at + Duration::from_millis(self.answered_ms.load(Ordering::Relaxed));
        self.clock.monotonic().saturating_duration_since(answered)
    }

    pub(super) fn note_refusal(&self, trouble: &Trouble) {
        let refusal = Refusal { at: self.clock.monotonic(), trouble: trouble.clone() };
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }

    fn verdict(&self) -> Verdict {
        if self.breaker.state() != State::Closed {
            let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let connecting = || Trouble::refused("Connecting", "the first connection is not made yet");
            let Trouble { reason, message, .. } = trouble.unwrap_or_else(connecting);
            return Verdict::unavailable(reason, message);
        }
        if self.link.is_read_only() {
            return Verdict::degraded("ReadOnly", "the server is a replica; it takes no writes".to_owned());
        }
        if let Some(Refusal { at, trouble }) = &*self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
            && self.clock.monotonic().saturating_duration_since(*at) < REFUSAL_SHOWS
        {
            return Verdict::degraded(trouble.reason, trouble.message.clone());
        }
        if let Some(policy) = &*self.evicts_all.lock().unwrap_or_else(PoisonError::into_inner) {
            return Verdict::degraded("EvictsAll", eviction::advice(policy));
        }
        let allowed = self.options.timeout;
        slow(self.counts.latency.slower_than(allowed / 2), allowed).unwrap_or_else(Verdict::healthy)
    }
}

/// What is told of a Redis more than one call in a hundred of which takes more than half of what a call may take. The
/// message does not say how long: each value would be news, and written to the status.
fn slow((slower, calls): (u64, u64), allowed: Duration) -> Option<Verdict> {
    let is_slow = slower >= SLOW_CALLS_MIN && slower * 100 > calls;
    let message = || format!("more than one call in a hundred takes over half of redis.timeout, which is {allowed:?}");
    is_slow.then(|| Verdict::degraded("Slow", message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Duration = Duration::from_millis(50);

    #[test]
    fn a_redis_is_slow_of_which_more_than_one_call_in_a_hundred_is() {
        assert_eq!([slow((0, 0), ALLOWED), slow((10, 1000), ALLOWED)], [None, None]);
        assert!(slow((11, 1000), ALLOWED).is_some());
    }

    #[test]
    fn two_slow_calls_of_a_few_may_be_chance() {
        assert_eq!(slow((2, 10), ALLOWED), None);
        assert!(slow((3, 10), ALLOWED).is_some());
    }

    #[test]
    fn a_slow_redis_is_told_in_the_same_words_however_slow_it_is() {
        let told = slow((11, 1000), ALLOWED).unwrap();
        assert_eq!(slow((20, 40), ALLOWED), Some(told.clone()));
        let message = "more than one call in a hundred takes over half of redis.timeout, which is 50ms";
        assert_eq!(told, Verdict::degraded("Slow", message.to_owned()));
    }
}
