//! One pass over one `TieredCache`: fetch → validate → build → observe → apply → grow → roll out → status. The middle is pure; a
//! crash between any two calls is repaired by the next pass, because every pass starts from what the cluster has.

mod fetch;

mod validate;

mod build;

mod observe;

mod lineage;

mod rollout;

mod storage;

mod apply;

mod status;

mod report;

mod events;

mod watches;

mod memory;

mod diagnose;

mod absent;

mod compare;

mod amount;

#[cfg(test)]
mod testing;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use crds::tiered_cache::{REPLICAS_MAX, TieredCache};
use futures::FutureExt;
use kube::{Client, Resource, ResourceExt, core::DeserializeGuard, runtime::controller::Action};
use tokio_util::sync::CancellationToken;

use self::{
    diagnose::Trouble,
    events::Tale,
    fetch::Fetched,
    lineage::Lineage,
    memory::{Memories, Memory},
    observe::Node,
    rollout::Step,
    status::{Terms, Verdict, View},
    validate::{Identity, Rejection, ValidCache},
    watches::Stores,
};
use crate::{
    clock,
    metrics::{Metrics, Outcome},
    recorder::Recorder,
};

pub(crate) use self::{
    observe::Poller,
    validate::Settings,
    watches::{Scope, run},
};

/// A fleet at rest is looked at this often at least, so that a node that is cut off is told within 20 s.
const CALM: Duration = Duration::from_secs(5);
/// Up to so much is added at random, so that a thousand fleets are not looked at at once.
const CALM_JITTER: Duration = Duration::from_secs(3);
/// A fleet in motion, or a node that has not answered, is looked at again after this.
const BUSY: Duration = Duration::from_secs(2);
/// So many passes in a row must fail before the status says so: most failures are over at the next attempt.
const FAILURES_TOLD: u32 = 3;

/// What the controller is given for each object: readable or not, so that one bad object does not stop the others.
pub(crate) type Watched = DeserializeGuard<TieredCache>;

/// What every pass needs.
#[derive(Clone)]
pub(crate) struct Shared {
    /// The API server.
    pub(crate) client: Client,
    /// What the operator was told by its flags.
    pub(crate) settings: Settings,
    /// Asks nodes.
    pub(crate) poller: Poller,
    /// Writes events.
    pub(crate) recorder: Recorder,
    /// Counts.
    pub(crate) metrics: Metrics,
}

/// What every pass over the objects of one scope needs.
struct Context {
    shared: Shared,
    stores: Stores,
    memories: Memories,
    /// Set once every watch has its first list; no pass begins before.
    listed: CancellationToken,
}

/// Why a pass has failed. It is tried again with backoff.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Apply(#[from] apply::Error),
    #[error("could not write the status: {0}")]
    Status(#[source] Box<kube::Error>),
    #[error("a bug: the pass panicked")]
    Panicked,
}

/// What a pass has come to, whether or not it got to its end.
struct Done {
    verdict: Verdict,
    tales: Vec<Tale>,
    failure: Option<apply::Error>,
}

/// One pass. The controller never runs two for the same object at once.
async fn reconcile(cache: Arc<Watched>, cx: Arc<Context>) -> Result<Action, Error> {
    // Once deletion has begun the garbage collector does the rest; anything made now would be in its way.
    if cache.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let started = clock::monotonic();
    let identity = validate::identity(&cache);
    let mut memory = cx.memories.take(&identity.uid);
    let pass = AssertUnwindSafe(pass(&cache, &identity, &cx, &mut memory)).catch_unwind().await;
    let result = pass.unwrap_or(Err(Error::Panicked));
    if result.is_ok() {
        memory.failures = 0;
    }
    cx.memories.put(&identity.uid, memory);
    let outcome = result.as_ref().map_or(Outcome::Failed, |(outcome, _)| *outcome);
    cx.shared.metrics.reconciled(outcome, clock::monotonic().duration_since(started));
    result.map(|(_, wait)| Action::requeue(wait))
}

async fn pass(
    cache: &Watched,
    identity: &Identity,
    cx: &Context,
    memory: &mut Memory,
) -> Result<(Outcome, Duration), Error> {
    let fetched = fetch::fetch(&cx.stores, identity); // what the watches know
    let valid = validate::validate(cache, &cx.shared.settings).map(|valid| settle(valid, cx, memory)); // pure
    let nodes = observe::observe(&cx.shared.poller, &fetched, memory, clock::now()).await; // asks the nodes
    let (backplane, lineage) = valid.as_ref().map(|valid| (valid.backplane, valid.lineage.clone())).unwrap_or_default();
    let done = match valid {
        Ok(valid) => carry_out(cx, (&valid, &fetched), &nodes, memory).await, // asks and changes the API server
        Err(rejection) => Done::refused(&rejection),
    };
    let Done { verdict, tales, failure } = done;
    let outcome = verdict.outcome();
    if failure.is_none() || memory.failures + 1 >= FAILURES_TOLD {
        let (absent, redis_trouble) = missing(cx, (identity, &fetched), memory);
        let terms = Terms { backplane: backplane.as_ref(), lineage: &lineage };
        let replicas = replicas(cache, &nodes);
        let view = View { identity, replicas, nodes: &nodes, absent: &absent, redis_trouble, terms, verdict };
        report::report(cx, cache, &view, tales, memory).await?; // changes the API server
    }
    match failure {
        Some(error) => Err(error.into()),
        None => Ok((outcome, next_look(memory, &nodes))),
    }
}

/// The cache with the lineage of its data in Redis.
fn settle(valid: ValidCache, cx: &Context, memory: &mut Memory) -> ValidCache {
    let identity = &valid.identity;
    let live = fetch::stateful_set(&cx.stores, identity, &identity.name);
    let written = || Lineage::written_on(live.as_deref()?, identity);
    memory.lineage = memory.lineage.take().or_else(written);
    let lineage = Lineage::of(&valid, memory.lineage.as_ref(), memory.planned.as_ref(), clock::now());
    // It counts as used once the nodes' StatefulSet is asked to have it, and not before: a change that never gets there
    // can be taken back without a new beginning.
    memory.planned = Some(lineage.clone());
    ValidCache { lineage, ..valid }
}

/// Makes the objects, asks for larger volumes, then replaces the nodes whose turn it is.
async fn carry_out(
    cx: &Context,
    (valid, fetched): (&ValidCache, &Fetched),
    nodes: &[Node],
    memory: &mut Memory,
) -> Done {
    let desired = build::build(valid);
    let mut tales = Vec::new();
    let applied = match apply::apply(cx, (&valid.identity, fetched), &desired, memory).await {
        Ok(applied) => applied,
        Err(error) => return Done::failed(error, tales),
    };
    tales.extend(events::of_writes(&applied.writes));
    let growth = match storage::grow(cx, (valid, fetched), &mut tales, memory).await {
        Ok(growth) => growth,
        Err(error) => return Done::failed(error, tales),
    };
    let step = match (&applied.stateful_set, applied.block) {
        (Some(stateful_set), _) => rollout::decide(nodes, stateful_set, &desired.revisions),
        (None, Some(block)) => Step::Blocked(block),
        (None, None) => Step::Settled,
    };
    let step = match roll_out(cx, &valid.identity, step, &mut tales).await {
        Ok(step) => step,
        Err(error) => return Done::failed(error, tales),
    };
    let verdict = Verdict::Applied { revisions: desired.revisions, conflicts: applied.conflicts, step, growth };
    Done { verdict, tales, failure: None }
}

/// Replaces the nodes whose turn it is. Returns the step as it has turned out.
async fn roll_out(cx: &Context, identity: &Identity, step: Step, tales: &mut Vec<Tale>) -> Result<Step, apply::Error> {
    match &step {
        Step::Replace(pod) if apply::replace(cx, identity, pod).await? => tales.push(events::of_replacement(pod)),
        Step::Replace(pod) => return Ok(Step::budget_refuses(pod)),
        Step::Switch(pods) => {
            apply::stop(cx, identity, pods).await?;
            tales.push(events::of_switch(pods));
        }
        Step::Settled | Step::Blocked(_) => {}
    }
    Ok(step)
}

/// The nodes that are missing for too long, and what keeps the cache's own Redis from running.
fn missing(
    cx: &Context,
    (identity, fetched): (&Identity, &Fetched),
    memory: &mut Memory,
) -> (Vec<(String, Trouble)>, Option<Trouble>) {
    let now = clock::monotonic();
    let stateful_set = |name: &str| fetch::stateful_set(&cx.stores, identity, name);
    let (nodes, redis) = (stateful_set(&identity.name), stateful_set(&build::managed_redis::name(&identity.name)));
    let absent = memory.absences.look(nodes.as_deref(), &fetched.pods, &diagnose::OF_NODES, now);
    let absent_redis = memory.redis_absences.look(redis.as_deref(), &fetched.redis, &diagnose::OF_REDIS, now);
    let trouble = fetched.redis_trouble(&memory.password, clock::now());
    (absent, trouble.or_else(|| absent_redis.into_iter().next().map(|(_, trouble)| trouble)))
}

/// How many nodes are asked for; of an object that can not be read, as many as there are.
fn replicas(cache: &Watched, nodes: &[Node]) -> i32 {
    match &cache.0 {
        Ok(cache) => cache.spec.replicas.clamp(0, REPLICAS_MAX),
        Err(_) => i32::try_from(nodes.len()).unwrap_or(i32::MAX),
    }
}

/// How long until the next look, if nothing happens before.
fn next_look(memory: &Memory, nodes: &[Node]) -> Duration {
    let at_rest = nodes.iter().all(Node::is_ready) && !memory.polls.values().any(observe::Polled::is_doubtful);
    if at_rest { CALM + CALM_JITTER.mul_f64(rand::random()) } else { BUSY }
}

/// What becomes of a failed pass.
fn error_policy(cache: Arc<Watched>, error: &Error, cx: Arc<Context>) -> Action {
    let wait = cx.memories.failed(&cache.uid().unwrap_or_default());
    let (name, namespace) = (cache.name_any(), cache.namespace().unwrap_or_default());
    tracing::warn!(%error, name, namespace, retry_in_ms = wait.as_millis(), "pass failed");
    Action::requeue(wait)
}

// === impl Done ===

impl Done {
    fn refused(rejection: &Rejection) -> Self {
        Self { verdict: Verdict::Refused(rejection.to_string()), tales: Vec::new(), failure: None }
    }

    fn failed(error: apply::Error, tales: Vec<Tale>) -> Self {
        Self { verdict: Verdict::Failed(error.message()), tales, failure: Some(error) }
    }
}
