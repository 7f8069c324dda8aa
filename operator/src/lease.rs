//! Leader election: one replica acts, the others stand by.
//!
//! The Lease is changed only by compare-and-swap: `replace` with the resourceVersion that was read, so that of two
//! candidates one gets a conflict. A rival's lease has expired when *we* have seen no change of it for its duration, by
//! our monotonic clock: clocks of other machines are not trusted (the rule of client-go). Losing the lease ends the
//! process, because work in flight can not be told apart from work of the next leader otherwise.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{admin::Readiness, client::Fence, clock, heartbeat::Heartbeats};

/// How long a lease is respected after its last renewal was seen. With [`RETRY`] a killed leader is replaced within 15 s.
pub(crate) const DURATION: Duration = Duration::from_secs(12);
/// A leader that has not renewed for so long stops acting: before anybody else can have begun to.
pub(crate) const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between attempts.
pub(crate) const RETRY: Duration = Duration::from_secs(2);
/// An attempt is given up after this, so that a second one fits before [`RENEW_DEADLINE`].
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// This replica's part in the election.
#[derive(Debug)]
pub(crate) struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    signs: Signs,
    /// The lease as last read or written, and when it was first seen in that state.
    seen: Option<(Lease, Instant)>,
}

/// Where the election shows its state to the rest of the process.
#[derive(Clone, Debug)]
pub(crate) struct Signs {
    /// Open while this replica leads.
    pub(crate) fence: Fence,
    /// Told of every attempt.
    pub(crate) heartbeats: Heartbeats,
    /// Told of every answer.
    pub(crate) readiness: Readiness,
}

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// This replica holds the lease.
    Held,
    /// Somebody else does, and may for so long if no renewal is seen.
    HeldBy(String, Duration),
}

/// What to do with a lease that was read.
#[derive(Debug, PartialEq)]
enum Move {
    Take(Box<LeaseSpec>),
    Wait(String, Duration),
}

// === impl Election ===

impl Election {
    /// Takes part as `identity`, which must be unique among all replicas and all their restarts.
    pub(crate) fn new(api: Api<Lease>, name: &str, identity: String, signs: Signs) -> Self {
        Self { api, name: name.to_owned(), identity, signs, seen: None }
    }

    /// Returns once this replica leads and the fence is open.
    ///
    /// # Cancel safety
    /// Safe: a lease acquired by an attempt that was dropped expires by itself.
    pub(crate) async fn lead(&mut self) {
        let mut holder = None;
        loop {
            let mut wait = RETRY;
            match self.attempt().await {
                Ok(Attempt::Held) => return,
                Ok(Attempt::HeldBy(other, rest)) => {
                    // Awake at the moment at which the lease expires, and not up to a whole wait later.
                    wait = wait.min(rest);
                    if holder.as_ref() != Some(&other) {
                        tracing::info!(holder = other, "standing by: another replica leads");
                        holder = Some(other);
                    }
                }
                Err(error) => tracing::warn!(%error, lease = self.name, "could not try for the lease; will try again"),
            }
            sleep(wait).await;
        }
    }

    /// Renews until the lease is lost, or until `stop`. Returns whether it is still held.
    pub(crate) async fn keep(&mut self, stop: &CancellationToken) -> bool {
        let mut ticks = interval(RETRY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewed = clock::monotonic();
        loop {
            tokio::select! {
                () = stop.cancelled() => return true,
                _ = ticks.tick() => {}
            }
            let sent = clock::monotonic();
            match self.attempt().await {
                Ok(Attempt::Held) => renewed = sent,
                Ok(Attempt::HeldBy(other, _)) => {
                    self.signs.fence.close();
                    tracing::error!(holder = other, "lost the lease to another replica");
                    return false;
                }
                Err(error) => tracing::warn!(%error, lease = self.name, "could not renew the lease"),
            }
            if clock::monotonic().duration_since(renewed) >= RENEW_DEADLINE {
                self.signs.fence.close();
                tracing::error!("lost the lease: not renewed within {} s", RENEW_DEADLINE.as_secs());
                return false;
            }
        }
    }

    /// Gives the lease up, so that the next replica need not wait for it to expire.
    ///
    /// # Errors
    /// If the API server refuses or does not answer; the lease then expires by itself.
    pub(crate) async fn release(mut self) -> Result<(), kube::Error> {
        self.signs.fence.close();
        // Without a version the write would not be a swap, and could clear the lease of a successor.
        if !self.holds_what_was_seen() {
            return Ok(());
        }
        let Some((mut lease, _)) = self.seen.take() else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        // An empty holder, not an absent one: client-go reads the two alike, and `replace` really clears it.
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(clock::now()));
        self.api.replace(&self.name, &PostParams::default(), &lease).await.map(|_| ())
    }

    async fn attempt(&mut self) -> Result<Attempt, Error> {
        self.signs.heartbeats.beat("lease");
        let sent = clock::monotonic();
        let attempt = timeout(ATTEMPT_TIMEOUT, self.take_or_renew()).await.map_err(|_| Error::Timeout);
        let result = attempt.and_then(|result| result.map_err(Error::Api));
        if result.is_ok() {
            self.signs.readiness.answered();
        }
        match &result {
            Ok(Attempt::Held) => self.signs.fence.open(sent),
            Ok(Attempt::HeldBy(..)) => {}
            // Whatever was last read may be outdated now; the next attempt reads again.
            Err(_) => self.forget_version(),
        }
        result
    }

    async fn take_or_renew(&mut self) -> Result<Attempt, kube::Error> {
        if !self.holds_what_was_seen() {
            self.look().await?;
        }
        let now = clock::now();
        let Some((lease, since)) = &self.seen else {
            let spec = fresh(&self.identity, now);
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let created = self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await?;
            self.seen = Some((created, clock::monotonic()));
            return Ok(Attempt::Held);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        match decide(&spec, &self.identity, clock::monotonic().duration_since(*since), now) {
            Move::Wait(holder, rest) => Ok(Attempt::HeldBy(holder, rest)),
            Move::Take(spec) => {
                let wanted = Lease { metadata: lease.metadata.clone(), spec: Some(*spec) };
                let replaced = self.api.replace(&self.name, &PostParams::default(), &wanted).await?;
                self.seen = Some((replaced, clock::monotonic()));
                Ok(Attempt::Held)
            }
        }
    }

    /// A holder need not read before it renews: `replace` fails if anybody changed the lease in between.
    fn holds_what_was_seen(&self) -> bool {
        let spec = self.seen.as_ref().and_then(|(lease, _)| lease.spec.as_ref());
        let version = self.seen.as_ref().and_then(|(lease, _)| lease.metadata.resource_version.as_ref());
        version.is_some() && spec.and_then(|spec| spec.holder_identity.as_ref()) == Some(&self.identity)
    }

    async fn look(&mut self) -> Result<(), kube::Error> {
        let Some(read) = self.api.get_opt(&self.name).await? else {
            self.seen = None;
            return Ok(());
        };
        let unchanged_since = self.seen.take().filter(|(lease, _)| lease.spec == read.spec).map(|(_, since)| since);
        self.seen = Some((read, unchanged_since.unwrap_or_else(clock::monotonic)));
        Ok(())
    }

    fn forget_version(&mut self) {
        if let Some((lease, _)) = &mut self.seen {
            lease.metadata.resource_version = None;
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no answer within {} s", ATTEMPT_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Api(kube::Error),
}

fn fresh(identity: &str, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    }
}

/// Whether the lease may be taken by `identity` when it has not changed for `unchanged`.
fn decide(spec: &LeaseSpec, identity: &str, unchanged: Duration, now: Timestamp) -> Move {
    let holder = spec.holder_identity.clone().unwrap_or_default();
    let duration_seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let duration = duration_seconds.map_or(DURATION, Duration::from_secs);
    let mine = holder == identity;
    if !mine && !holder.is_empty() && unchanged < duration {
        return Move::Wait(holder, duration - unchanged);
    }
    let mut taken = fresh(identity, now);
    taken.lease_transitions = spec.lease_transitions;
    if mine {
        taken.acquire_time = spec.acquire_time.clone();
    } else {
        taken.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
    }
    Move::Take(Box::new(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec { lease_transitions: Some(3), ..fresh(holder, Timestamp::UNIX_EPOCH) }
    }

    fn taken(spec: &LeaseSpec, unchanged: Duration) -> Option<LeaseSpec> {
        match decide(spec, "me", unchanged, Timestamp::UNIX_EPOCH + DURATION) {
            Move::Take(spec) => Some(*spec),
            Move::Wait(..) => None,
        }
    }

    #[test]
    fn a_rivals_lease_is_respected_for_its_duration_by_our_own_clock() {
        let rival = held_by("rival");
        assert_eq!(taken(&rival, DURATION - Duration::from_millis(1)), None);
        let spec = taken(&rival, DURATION).unwrap();
        assert_eq!(spec.holder_identity.as_deref(), Some("me"));
        assert_eq!(spec.lease_transitions, Some(4));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        assert!(taken(&held_by(""), Duration::ZERO).is_some());
    }

    #[test]
    fn a_renewal_keeps_the_time_of_acquisition() {
        let spec = taken(&held_by("me"), Duration::ZERO).unwrap();
        assert_eq!(spec.acquire_time, Some(MicroTime(Timestamp::UNIX_EPOCH)));
        assert_eq!(spec.renew_time, Some(MicroTime(Timestamp::UNIX_EPOCH + DURATION)));
        assert_eq!(spec.lease_transitions, Some(3));
    }
}
