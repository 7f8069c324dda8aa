//! Threads: one acceptor, and the event loops it hands connections to.

use std::{
    future::Future,
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc::{self, Receiver, Sender},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    Limits, Options,
    connection::{Connection, Scratch},
    counters::{Counters, Event},
    measure::Meter,
};
use crate::{
    command::{Commands, Identity, NearCaches, Session, Settings},
    coordinator::Coordinator,
    server::{
        Place, ServeError,
        pulse::{Pulse, Pulses},
    },
    slow_log::SlowLog,
};

/// Accepted connections on their way to one event loop.
const HANDED_OVER_MAX: usize = 256;

/// How long the acceptor rests when the system has no descriptor to give: connections wait in the kernel meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a thread may take to end once everything in it was cut off.
const CUT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that is silent for so long is asked by the kernel whether it still exists, and again if it does not answer.
/// Redis waits five minutes, as long as some firewalls remember a silent connection; a client that vanished would keep
/// its place and all that is remembered of it.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(10);

/// A client whose machine has confirmed nothing for so long, neither what it was sent nor that it exists, is gone.
const VANISHED: Duration = Duration::from_secs(60);

/// The threads of one RESP server.
#[derive(Debug)]
pub(super) struct Workers {
    threads: Vec<JoinHandle<()>>,
    pulses: Pulses,
    meter: Arc<Meter>,
    near_caches: Arc<NearCaches>,
    /// Closed when the last thread has ended.
    ended: Receiver<()>,
    /// Ends connections that are still busy.
    cut: CancellationToken,
}

/// One event loop, as its connections see it.
#[derive(Debug)]
pub(super) struct EventLoop {
    pub(super) commands: Arc<Commands>,
    pub(super) meter: Arc<Meter>,
    pub(super) counters: Arc<Counters>,
    pub(super) limits: Limits,
    pub(super) stop: CancellationToken,
    /// Beats with every turn, and once a second without any.
    pub(super) pulse: Arc<Pulse>,
    /// The buffers of whichever connection has its turn. Never contended: all its connections run on one thread.
    scratch: Mutex<Scratch>,
}

/// One event loop, as the acceptor sees it.
struct Target {
    connections: Arc<AtomicU32>,
    handover: Sender<Accepted>,
}

/// A connection that was given a place.
struct Accepted {
    stream: TcpStream,
    session: Session,
    _place: Place,
    _load: Load,
}

/// One connection in the count of its event loop.
struct Load(Arc<AtomicU32>);

// === impl Workers ===

impl Workers {
    pub(super) fn start(
        listener: TcpListener,
        coordinator: Arc<Coordinator>,
        counters: Arc<Counters>,
        options: Options,
    ) -> Result<Self, ServeError> {
        let (alive, ended) = mpsc::channel(1);
        let cut = CancellationToken::new();
        let slow_log = Arc::new(SlowLog::new(options.slow_log));
        let names = (0..options.threads.get()).map(|index| format!("resp-{index}"));
        let pulses: Vec<Arc<Pulse>> = names.chain(["resp-accept".to_owned()]).map(Pulse::new).collect();
        let facts = Arc::clone(&counters);
        let settings = settings(&options.limits, options.identity, &slow_log, options.spans.is_some());
        let facts = Arc::new(move || facts.facts());
        let commands = Arc::new(Commands::new(coordinator, options.clock.clone(), settings, facts));
        let meter =
            Arc::new(Meter::new(slow_log, options.limits.request_timeout, options.spans, options.clock.clone()));
        let mut workers = Self {
            threads: Vec::new(),
            pulses: Pulses::new(pulses.clone()),
            meter: Arc::clone(&meter),
            near_caches: commands.near_caches(),
            ended,
            cut: cut.clone(),
        };

        let mut targets = Vec::new();
        let (acceptor, loops) = pulses.split_last().expect("the acceptor has one");
        for pulse in loops {
            let (handover, accepted) = mpsc::channel(HANDED_OVER_MAX);
            targets.push(Target { connections: Arc::default(), handover });
            let event_loop = Arc::new(EventLoop {
                commands: Arc::clone(&commands),
                meter: Arc::clone(&meter),
                counters: Arc::clone(&counters),
                limits: options.limits,
                // A child per thread, so that polling it is not contended between threads.
                stop: options.stop.child_token(),
                pulse: Arc::clone(pulse),
                scratch: Mutex::default(),
            });
            let cut = cut.clone();
            let alive = alive.clone();
            workers.spawn(&options.stop, pulse, async move {
                event_loop.run(accepted, cut).await;
                drop(alive);
            })?;
        }
        let stop = options.stop.clone();
        workers.spawn(&options.stop, acceptor, async move {
            stop.run_until_cancelled(accept(listener, targets, counters, options.clock)).await;
            drop(alive);
        })?;
        Ok(workers)
    }

    /// Starts one thread with an event loop of its own, which beats the pulse by whose name it goes. If that fails, those
    /// that run already are stopped.
    fn spawn(
        &mut self,
        stop: &CancellationToken,
        pulse: &Arc<Pulse>,
        body: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        let name = pulse.name().to_owned();
        let pulse = Arc::clone(pulse);
        let run = |runtime: Runtime| {
            move || {
                runtime.block_on(async {
                    tokio::select! { () = body => {}, () = pulse.keep_beating() => {} }
                });
                // Not after a panic: then the thread is missed.
                pulse.end();
                // Whoever joins this thread does not wait for its blocking work.
                runtime.shutdown_background();
            }
        };
        let started = Builder::new_current_thread()
            .enable_all()
            .build()
            .and_then(|runtime| thread::Builder::new().name(name.clone()).spawn(run(runtime)));
        match started {
            Ok(thread) => self.threads.push(thread),
            Err(source) => {
                stop.cancel();
                self.cut.cancel();
                return Err(ServeError::Thread { name, source });
            }
        }
        Ok(())
    }

    pub(super) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    pub(super) fn near_caches(&self) -> Arc<NearCaches> {
        Arc::clone(&self.near_caches)
    }

    /// Signs of life of the threads.
    pub(super) fn pulses(&self) -> Pulses {
        self.pulses.clone()
    }

    pub(super) async fn join(mut self, deadline: Instant) {
        // Nothing is ever sent: the channel closes when the threads have ended.
        if tokio::time::timeout_at(deadline.into(), self.ended.recv()).await.is_err() {
            warn!("connections were still busy at the end of the drain timeout and are cut off");
            self.cut.cancel();
            if tokio::time::timeout(CUT_TIMEOUT, self.ended.recv()).await.is_err() {
                error!("a RESP thread did not end");
                return;
            }
        }
        for thread in self.threads {
            if thread.join().is_err() {
                error!("a RESP thread had panicked");
            }
        }
    }
}

fn settings(limits: &Limits, identity: Identity, slow_log: &Arc<SlowLog>, has_spans: bool) -> Settings {
    Settings {
        identity,
        value_bytes_max: limits.value_bytes_max,
        request_timeout: limits.request_timeout,
        slow_log: Arc::clone(slow_log),
        follows_reads: has_spans || slow_log.options().is_fine(),
        ttl_jitter_percent: limits.ttl_jitter_percent,
        negative_ttl: limits.negative_ttl,
        tracked_items_max: limits.tracked_items_max,
    }
}

// === impl EventLoop ===

impl EventLoop {
    /// Serves the connections handed over, until `stop`; then until all are done, or `cut`.
    async fn run(self: Arc<Self>, mut accepted: Receiver<Accepted>, cut: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(next) = accepted.recv() => {
                    if let Err(error) = self.take_over(next, &mut connections) {
                        warn!(%error, "a new connection was lost");
                    }
                }
                Some(ended) = connections.join_next() => self.note_end(ended),
                () = self.stop.cancelled() => break,
            }
        }
        accepted.close();
        let drained = async {
            while let Some(ended) = connections.join_next().await {
                self.note_end(ended);
            }
        };
        let _ = cut.run_until_cancelled(drained).await;
    }

    fn take_over(self: &Arc<Self>, accepted: Accepted, connections: &mut JoinSet<()>) -> io::Result<()> {
        let Accepted { stream, session, _place, _load } = accepted;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let event_loop = Arc::clone(self);
        connections.spawn(async move {
            Connection::new(stream, session, &event_loop).run().await;
            drop((_place, _load));
        });
        Ok(())
    }

    /// A fault of the node ends one connection, not the thread.
    fn note_end(&self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended {
            self.counters.note(Event::Panic, 1);
            error!(%error, "a connection ended by a fault of the node");
        }
    }

    /// Lends the buffers of this thread.
    pub(super) fn with_scratch<T>(&self, borrow: impl FnOnce(&mut Scratch) -> T) -> T {
        self.pulse.beat();
        // A panic of another connection may have left anything in the buffers, but a turn starts by clearing them.
        borrow(&mut self.scratch.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === accepting ===

/// Hands every new connection to the event loop that has the fewest, for ever.
async fn accept(listener: TcpListener, targets: Vec<Target>, counters: Arc<Counters>, clock: crate::clock::Clock) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "the RESP listener can not be watched"),
    };
    for id in 1.. {
        let (stream, peer) = next_connection(&listener).await;
        // The client has gone already.
        let Ok(stream) = prepare(stream) else { continue };
        let Some(place) = counters.limit().take() else {
            reject(stream);
            continue;
        };
        let target = least_loaded(&targets);
        let local = stream.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        let session = Session::new(id, peer, local, clock.now());
        let load = Load::new(&target.connections);
        let accepted = Accepted { stream, session, _place: place, _load: load };
        if target.handover.send(accepted).await.is_err() {
            warn!("a RESP thread has ended; its connection is dropped");
        }
    }
}

/// Waits for a connection, also while the system has no descriptor for it.
async fn next_connection(listener: &tokio::net::TcpListener) -> (tokio::net::TcpStream, SocketAddr) {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Once, not as often as it is tried.
                if !std::mem::replace(&mut told, true) {
                    warn!(%error, "connections can not be accepted and wait in the kernel");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The event loop with the fewest connections.
fn least_loaded(targets: &[Target]) -> &Target {
    let fewest = targets.iter().min_by_key(|target| target.connections.load(Ordering::Relaxed));
    fewest.expect("there is at least one event loop")
}

/// Moves the stream out of the acceptor's event loop, with the options of a request–reply protocol.
fn prepare(stream: tokio::net::TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_AGAIN))?;
    socket.set_tcp_user_timeout(Some(VANISHED))?;
    stream.into_std()
}

/// Says why, as Redis does, as far as it fits into the empty buffer of a new connection.
fn reject(mut stream: TcpStream) {
    if let Err(error) = stream.write_all(b"-ERR max number of clients reached\r\n") {
        warn!(%error, "a connection over the limit could not be told so");
    }
}

// === impl Load ===

impl Load {
    fn new(connections: &Arc<AtomicU32>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connections))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
