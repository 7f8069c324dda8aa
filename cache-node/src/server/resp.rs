//! The RESP front end: one event loop per core, and one acceptor that hands each connection to the least loaded.
//!
//! `SO_REUSEPORT` would let the kernel choose by hash, which splits few connections unevenly; the acceptor counts.

mod connection;
mod counters;
mod measure;
mod worker;

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::worker::Workers;
pub use self::{
    counters::{CommandCount, Counters, Totals},
    measure::{Class, Meter},
};
use super::{ConnectionLimit, ServeError, allow_descriptors, listen, pulse::Pulses};
use crate::{
    clock::Clock,
    command::{Identity, NearCaches},
    coordinator::Coordinator,
    slow_log::SlowLogOptions,
    telemetry::Spans,
};

/// What the RESP server needs besides the coordinator.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where clients connect. Port 0 takes a free one.
    pub address: SocketAddr,
    /// Event loops, one thread each.
    pub threads: NonZeroU16,
    /// Bounds on what clients may send and hold open.
    pub limits: Limits,
    /// What INFO and HELLO say about this node.
    pub identity: Identity,
    /// Where slow commands are kept.
    pub slow_log: SlowLogOptions,
    /// Where spans of commands that leave memory go, if anywhere.
    pub spans: Option<Arc<Spans>>,
    /// Where time comes from.
    pub clock: Clock,
    /// Ends the service: no new connections, idle ones are closed, busy ones finish what they have received.
    pub stop: CancellationToken,
}

/// Bounds on what clients may send and hold open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at once.
    pub connections_max: u32,
    /// Largest value, in bytes.
    pub value_bytes_max: usize,
    /// How long a command may take in all layers together.
    pub request_timeout: Duration,
    /// How long a client may stay silent within a request, or leave a reply unread, before it is closed.
    pub partial_request_timeout: Duration,
    /// By how much of its life a value may expire earlier than asked, in percent.
    pub ttl_jitter_percent: u8,
    /// How long a negative entry holds if the client does not say.
    pub negative_ttl: Duration,
    /// Keys that clients may hold in caches of their own, once for each client, and tags of these keys.
    pub tracked_items_max: usize,
}

/// A running RESP server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    counters: Arc<Counters>,
    workers: Workers,
    tasks: TaskTracker,
}

/// Starts to serve RESP clients on threads of its own, and what they need besides on the current runtime.
///
/// # Errors
/// [`ServeError`] if the address can not be had or a thread can not be started.
pub fn serve(coordinator: Arc<Coordinator>, mut options: Options) -> Result<Server, ServeError> {
    allow_descriptors(options.limits.connections_max);
    let listener = listen(options.address)?;
    let address = listener.local_addr().map_err(|source| ServeError::Listen { address: options.address, source })?;
    // A free port is known only now.
    options.identity.port = address.port();
    let limit = ConnectionLimit::new(options.limits.connections_max);
    let counters = Arc::new(Counters::new(limit));
    let stop = options.stop.clone();
    let workers = Workers::start(listener, coordinator, Arc::clone(&counters), options)?;
    let (tasks, near_caches) = (TaskTracker::new(), workers.near_caches());
    tasks.spawn(async move { stop.run_until_cancelled(near_caches.run()).await });
    tasks.close();
    Ok(Server { address, counters, workers, tasks })
}

// === impl Server ===

impl Server {
    /// Where clients connect: the configured address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was counted since the start, for metrics.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// How long commands took, for metrics.
    pub fn meter(&self) -> Arc<Meter> {
        self.workers.meter()
    }

    /// Which clients hold which keys, for metrics.
    pub fn near_caches(&self) -> Arc<NearCaches> {
        self.workers.near_caches()
    }

    /// Signs of life of its threads.
    pub fn pulses(&self) -> Pulses {
        self.workers.pulses()
    }

    /// Waits until all connections are closed, once `stop` was cancelled; at `deadline` the rest is cut off.
    pub async fn join(self, deadline: Instant) {
        self.workers.join(deadline).await;
        // It does nothing that could take long.
        self.tasks.wait().await;
    }
}
