//! L2: entries in a Redis or Valkey that the nodes of a cache share.
//!
//! - Every entry lives there as an envelope, for what is left of its useful life, at most [`RedisOptions::max_ttl`].
//! - A Redis that is away, slow or refuses is never waited for: a call has [`RedisOptions::timeout`], and after a few
//!   failures a breaker answers in its place. A keeper connects in the background, so that a node starts without Redis.
//! - A clear raises a floor, which every read asks for along with its keys, so that it takes effect at once for every
//!   node; memory is reclaimed afterwards.
//! - Redis is not trusted: what is damaged, foreign or of another key is a counted miss.
//!
//! A hit may be past its expiry and within its stale life; whoever asked decides.

mod breaker;
mod clear;
mod connect;
mod counts;
mod eviction;
mod followers;
mod gate;
mod keeper;
mod keys;
mod lease;
mod link;
mod log;
mod options;
mod place;
mod read;
mod run;
mod scripts;
mod secrets;
mod sentinel;
mod trouble;
mod write;

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use futures::FutureExt;
use redis::{RedisError, aio::MultiplexedConnection};
use tokio::{sync::Notify, time::timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    breaker::Breaker,
    connect::{CONNECT_TIMEOUT, Connected},
    counts::Counts,
    gate::Gate,
    keeper::Refusal,
    keys::Keys,
    link::Link,
    log::Published,
    scripts::Scripts,
    trouble::{Consequence, Trouble},
};
pub use self::{
    followers::RedisFollowers,
    lease::RedisLeases,
    log::RedisLog,
    options::{Endpoint, EndpointError, RedisOptions, TlsOptions, Topology},
};
use crate::{
    clock::Clock,
    context::OperationContext,
    entry::{Key, Position},
    layer::{
        Answers, Change, Component, ErrorKind, Health, Layer, LayerError, LayerId, LayerResult, Observed, Stats,
        TagRemoval,
    },
};

/// L2.
pub struct Redis {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What calls and background tasks share.
struct Shared {
    options: RedisOptions,
    clock: Clock,
    keys: Keys,
    breaker: Breaker,
    link: Link,
    reads: Gate,
    writes: Gate,
    counts: Counts,
    observed: Observed,
    /// What opened the breaker, or keeps it open.
    trouble: Mutex<Option<Trouble>>,
    /// The last write that a working Redis refused.
    refusal: Mutex<Option<Refusal>>,
    /// Its eviction policy, if that may evict what must stay.
    evicts_all: Mutex<Option<String>>,
    /// When Redis last answered, in milliseconds since `opened_at`.
    answered_ms: AtomicU64,
    opened_at: Instant,
    scripts: Scripts,
    /// Tells the records of this process from all others.
    origin: String,
    log: Published,
    /// Records that the log keeps: those of the options, or fewer if they are large.
    log_kept: AtomicU64,
    /// Whether somebody follows the log, and under which history of the server what it holds is known to be all right.
    is_followed: AtomicBool,
    settled: ArcSwapOption<String>,
    reclaim: Notify,
    tasks: TaskTracker,
}

/// One call: what it is and how long it may take.
#[derive(Clone, Copy)]
struct Errand {
    /// For people.
    what: &'static str,
    deadline: Instant,
    /// What the layer allows, whatever the caller's deadline: a Redis that had less is not to blame.
    allowance: Duration,
}

// === impl Redis ===

impl Redis {
    /// Begins to connect, on the current runtime; until that is done the layer takes no part.
    pub fn open(options: RedisOptions, clock: Clock) -> Self {
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared::new(options, clock, tasks.clone()));
        for task in [keeper::start(&shared).boxed(), keeper::watch(&shared).boxed(), clear::start(&shared).boxed()] {
            let stop = stop.clone();
            tasks.spawn(async move { stop.run_until_cancelled_owned(task).await });
        }
        Self { shared, tasks, stop }
    }

    /// Whether the layer takes part: connected, and the breaker is closed.
    pub fn is_available(&self) -> bool {
        self.shared.breaker.is_closed()
    }

    /// Returns once the layer takes part.
    pub async fn wait_available(&self) {
        self.shared.breaker.wait_closed().await;
    }
}

impl Drop for Redis {
    /// Without a shutdown, as in a panic: the background tasks must not go on connecting.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[async_trait]
impl Component for Redis {
    fn name(&self) -> &'static str {
        LayerId::Redis.label()
    }

    fn health(&self) -> Health {
        self.shared.observed.health()
    }

    fn stats(&self) -> Stats {
        let in_flight = self.shared.reads.in_flight() + self.shared.writes.in_flight();
        self.shared.counts.stats(self.shared.breaker.opened(), in_flight as u64)
    }

    async fn shutdown(&self, deadline: Instant) {
        self.stop.cancel();
        self.tasks.close();
        if timeout_at(deadline.into(), self.tasks.wait()).await.is_err() {
            tracing::warn!("stopped before the tasks of the redis layer had ended");
        }
        self.shared.link.close();
    }
}

#[async_trait]
impl Layer for Redis {
    fn id(&self) -> LayerId {
        LayerId::Redis
    }

    async fn get(&self, cx: &OperationContext, key: &Key) -> Result<LayerResult, LayerError> {
        let read = self.shared.read(cx, std::slice::from_ref(key)).await?;
        let answer = read.into_iter().flatten().next();
        Ok(answer.unwrap_or(Ok(LayerResult::NotHandled))?)
    }

    fn is_away(&self) -> bool {
        !self.is_available()
    }

    async fn get_many(&self, cx: &OperationContext, keys: &[Key]) -> Answers {
        let Some(answers) = self.shared.read(cx, keys).await? else {
            return Ok(keys.iter().map(|_| Ok(LayerResult::NotHandled)).collect());
        };
        Ok(answers.into_iter().map(|answer| answer.map_err(LayerError::from)).collect())
    }

    fn passed_over(&self, keys: usize) {
        Counts::add(&self.shared.counts.not_handled, keys as u64);
    }

    async fn apply(&self, cx: &OperationContext, changes: &[Change]) -> Result<Vec<Position>, LayerError> {
        Ok(self.shared.apply(cx, changes).await?)
    }

    async fn clear(&self, cx: &OperationContext) -> Result<(), LayerError> {
        Ok(self.shared.clear(cx).await?)
    }

    async fn tag_removals(&self, cx: &OperationContext) -> Result<Vec<TagRemoval>, LayerError> {
        Ok(self.shared.tag_removals(cx).await?)
    }
}

// === impl Shared ===

impl Shared {
    fn new(options: RedisOptions, clock: Clock, tasks: TaskTracker) -> Self {
        Self {
            keys: Keys::new(&options.cache_uid),
            breaker: Breaker::new(clock.clone()),
            link: Link::new(options.connections, options.writer_file.clone()),
            reads: Gate::new(options.concurrency),
            writes: Gate::new(options.concurrency),
            counts: Counts::default(),
            observed: Observed::new(clock.clone()),
            trouble: Mutex::new(None),
            refusal: Mutex::new(None),
            evicts_all: Mutex::new(None),
            answered_ms: AtomicU64::new(0),
            opened_at: clock.monotonic(),
            scripts: Scripts::new(),
            origin: format!("{:016x}", rand::random::<u64>()),
            log: Published::default(),
            log_kept: AtomicU64::new(options.log_records),
            is_followed: AtomicBool::new(false),
            settled: ArcSwapOption::empty(),
            reclaim: Notify::new(),
            tasks,
            options,
            clock,
        }
    }

    /// Whether what the server at the other end holds may be served. Not when it was restarted, or is another one, until
    /// the follower of the log knows that it has all that nodes were told it has; and not if it is a replica, which may be
    /// behind for any time.
    fn is_settled(&self, connected: &Connected) -> bool {
        !self.is_followed.load(Ordering::Acquire)
            || connected.is_master && self.settled.load().as_ref().is_some_and(|history| **history == connected.history)
    }

    /// The layer's own timeout, or the caller's deadline if that is earlier.
    fn errand(&self, cx: &OperationContext, what: &'static str, allowance: Duration) -> Errand {
        Errand { what, deadline: cx.deadline.min(self.clock.monotonic() + allowance), allowance }
    }

    /// Waits for its turn, calls, and tells everybody concerned how that went.
    async fn call<T>(
        &self,
        gate: &Gate,
        errand: Errand,
        call: impl AsyncFnOnce(MultiplexedConnection) -> Result<T, RedisError>,
        connected: Option<Arc<Connected>>,
    ) -> Result<T, Trouble> {
        let Some(connected) = connected else {
            return Err(self.fail(Trouble::unreachable("not connected").unsent(), None));
        };
        let Ok(_permit) = gate.enter(errand.deadline).await else {
            Counts::add(&self.counts.shed, 1);
            self.counts.error(ErrorKind::Timeout);
            return Err(Trouble::timeout(errand.what).unsent());
        };
        self.measured(&connected, errand, call(connected.connection.clone())).await
    }

    /// One exchange over one connection.
    async fn measured<T>(
        &self,
        connected: &Arc<Connected>,
        errand: Errand,
        call: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, Trouble> {
        let start = self.clock.monotonic();
        let outcome = timeout_at(errand.deadline.into(), call).await;
        let took = self.clock.monotonic().saturating_duration_since(start);
        match outcome {
            Ok(Ok(answer)) => {
                self.counts.latency.record(took);
                self.answered();
                Ok(answer)
            }
            Ok(Err(error)) => Err(self.fail(Trouble::from(&error), Some(connected))),
            Err(_) => {
                self.counts.latency.record(took);
                let trouble = Trouble::timeout(errand.what);
                // Whoever came with little time left, or waited long for a turn, says nothing about Redis.
                let had_its_time = took >= errand.allowance.mul_f64(0.75);
                let consequence = if had_its_time { trouble.consequence } else { Consequence::None };
                Err(self.fail(Trouble { consequence, ..trouble }, Some(connected)))
            }
        }
    }

    fn answered(&self) {
        let since = self.clock.monotonic().saturating_duration_since(self.opened_at);
        self.answered_ms.store(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.breaker.succeeded();
    }

    /// Counts a failure and draws its consequences.
    fn fail(&self, trouble: Trouble, connected: Option<&Arc<Connected>>) -> Trouble {
        self.counts.error(trouble.kind);
        if trouble.consequence == Consequence::None {
            if trouble.kind != ErrorKind::Timeout {
                self.answered();
                self.note_refusal(&trouble);
            }
            return trouble;
        }
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble.clone());
        self.breaker.failed();
        if trouble.consequence == Consequence::Reconnect
            && let Some(connected) = connected
        {
            self.link.give_up(connected);
        }
        trouble
    }
}

#[cfg(test)]
mod tests;
