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
    command::{Answers, Commands, Identity, NearCaches, Session, Settings},
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

/// A client that hears nothing for so long is asked by the kernel whether it still exists, as in Redis.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// The threads of one RESP server.
#[derive(Debug)]
pub(super) struct Workers {
    threads: Vec<JoinHandle<()>>,
    pulses: Pulses,
    meter: Arc<Meter>,
    answers: Arc<Answers>,
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
        let settings = settings(&options.limits, options.identity, &slow_log);
        let facts = Arc::new(move || facts.facts());
        let commands = Arc::new(Commands::new(coordinator, options.clock.clone(), settings, facts));
        let meter = Arc::new(Meter::new(slow_log, options.spans, options.clock.clone()));
        let mut workers = Self {
            threads: Vec::new(),
            pulses: Pulses::new(pulses.clone()),
            meter: Arc::clone(&meter),
            answers: commands.answers(),
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

    pub(super) fn answers(&self) -> Arc<Answers> {
        Arc::clone(&self.answers)
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

fn settings(limits: &Limits, identity: Identity, slow_log: &Arc<SlowLog>) -> Settings {
    Settings {
        identity,
        value_bytes_max: limits.value_bytes_max,
        request_timeout: limits.request_timeout,
        slow_log: Arc::clone(slow_log),
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
    socket2::SockRef::from(&stream).set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE))?;
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
mod tests {
    use std::io::{BufRead, BufReader};

    use tokio::task::spawn_blocking;

    use super::*;
    use crate::{
        clock::Clock,
        command::ServerFacts,
        coordinator::Parts,
        layer::memory::{Memory, MemoryOptions, Policy},
        server::ConnectionLimit,
        slow_log::SlowLogOptions,
        write_queue::{Overflow, QueueOptions},
    };

    const LIMITS: Limits = Limits {
        connections_max: 10,
        value_bytes_max: 1 << 20,
        request_timeout: Duration::from_secs(10),
        partial_request_timeout: Duration::from_secs(10),
        ttl_jitter_percent: 0,
        negative_ttl: Duration::from_secs(30),
        tracked_items_max: 1000,
    };

    /// An event loop whose INFO does what `facts` does.
    async fn event_loop(facts: impl Fn() -> ServerFacts + Send + Sync + 'static) -> Arc<EventLoop> {
        let clock = Clock::system();
        let memory =
            MemoryOptions { capacity_bytes: 1 << 20, policy: Policy::S3Fifo, max_ttl: Duration::from_secs(60) };
        let queue = QueueOptions { capacity_bytes: 1 << 20, items_max: 100, overflow: Overflow::Block };
        let parts = Parts::new(Memory::open(memory, clock.clone()), queue, Vec::new(), &clock);
        let coordinator = Coordinator::open(parts, clock.clone()).await;
        let slow_log = SlowLogOptions { threshold: Duration::ZERO, length_max: 8 };
        let slow_log = Arc::new(SlowLog::new(slow_log));
        let settings = settings(&LIMITS, Identity::default(), &slow_log);
        let commands = Commands::new(coordinator, clock, settings, Arc::new(facts));
        Arc::new(EventLoop {
            commands: Arc::new(commands),
            meter: Arc::new(Meter::new(slow_log, None, Clock::system())),
            counters: Arc::new(Counters::new(ConnectionLimit::new(10))),
            limits: LIMITS,
            stop: CancellationToken::new(),
            pulse: Pulse::new("resp-0".to_owned()),
            scratch: Mutex::default(),
        })
    }

    /// Sends a line on a new connection, and returns what comes back up to the line end or the end.
    fn ask(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        // A connection that is cut is an answer too.
        let _ = BufReader::new(stream).read_line(&mut answer);
        answer
    }

    #[tokio::test]
    async fn a_panic_ends_one_connection_and_is_counted() {
        let event_loop = event_loop(|| panic!("as the test wants")).await;
        let (stop, counters) = (event_loop.stop.clone(), Arc::clone(&event_loop.counters));
        let listener = crate::server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (handover, accepted) = mpsc::channel(1);
        let targets = vec![Target { connections: Arc::default(), handover }];
        let client = async {
            let answers = spawn_blocking(move || ["PING", "INFO", "PING"].map(|line| ask(address, line))).await;
            stop.cancel();
            answers.unwrap()
        };
        let accept = stop.run_until_cancelled(accept(listener, targets, Arc::clone(&counters), Clock::system()));
        let (answers, _, ()) = tokio::join!(client, accept, event_loop.run(accepted, CancellationToken::new()));
        assert_eq!(answers, ["+PONG\r\n", "", "+PONG\r\n"]);
        assert_eq!(counters.totals().panics, 1);
        assert_eq!(counters.totals().connections_open, 0);
    }

    #[tokio::test]
    async fn an_event_loop_that_a_command_holds_up_is_missed_until_it_goes_on() {
        let (entered, held_up) = std::sync::mpsc::sync_channel(1);
        let (release, released) = std::sync::mpsc::channel();
        let released = Mutex::new(released);
        let event_loop = event_loop(move || {
            entered.send(()).unwrap();
            released.lock().unwrap().recv().unwrap();
            ServerFacts::default()
        })
        .await;
        let stop = event_loop.stop.clone();
        let pulses = Pulses::new(vec![Arc::clone(&event_loop.pulse)]);
        let listener = crate::server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let ended = stop.clone();
        let thread = thread::spawn(move || {
            let (handover, accepted) = mpsc::channel(1);
            let targets = vec![Target { connections: Arc::default(), handover }];
            let counters = Arc::clone(&event_loop.counters);
            let accept = ended.run_until_cancelled(accept(listener, targets, counters, Clock::system()));
            let run = Arc::clone(&event_loop).run(accepted, CancellationToken::new());
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { tokio::join!(accept, run) });
        });
        let client = thread::spawn(move || ask(address, "INFO"));
        held_up.recv().unwrap();
        (0..=10).for_each(|_| pulses.look());
        assert_eq!(pulses.trouble().unwrap(), "no sign of life for 10 s from resp-0");
        release.send(()).unwrap();
        assert!(client.join().unwrap().starts_with('$'));
        assert_eq!(ask(address, "PING"), "+PONG\r\n");
        pulses.look();
        assert_eq!(pulses.trouble(), None);
        stop.cancel();
        thread.join().unwrap();
    }

    #[test]
    fn a_connection_goes_to_the_event_loop_with_the_fewest() {
        let target = || Target { connections: Arc::default(), handover: mpsc::channel(1).0 };
        let targets: Vec<Target> = (0..3).map(|_| target()).collect();
        let mut loads: Vec<Load> = (0..7).map(|_| Load::new(&least_loaded(&targets).connections)).collect();
        let counts = || targets.iter().map(|target| target.connections.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert_eq!(counts(), [3, 2, 2]);
        loads.remove(1);
        loads.push(Load::new(&least_loaded(&targets).connections));
        assert_eq!(counts(), [3, 2, 2]);
    }
}
