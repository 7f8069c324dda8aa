use std::{
    cell::Cell,
    io::{BufRead, BufReader, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    task::spawn_blocking,
};

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
    let memory = MemoryOptions { capacity_bytes: 1 << 20, policy: Policy::S3Fifo, max_ttl: Duration::from_secs(60) };
    let queue = QueueOptions { capacity_bytes: 1 << 20, items_max: 100, overflow: Overflow::Block };
    let parts = Parts::new(Memory::open(memory, clock.clone()), queue, Vec::new(), &clock);
    let coordinator = Coordinator::open(parts, clock.clone()).await;
    let slow_log = SlowLogOptions { threshold: Duration::from_secs(1), length_max: 8 };
    let slow_log = Arc::new(SlowLog::new(slow_log));
    let settings = settings(&LIMITS, Identity::default(), &slow_log, false);
    let commands = Commands::new(coordinator, clock, settings, Arc::new(facts));
    Arc::new(EventLoop {
        commands: Arc::new(commands),
        meter: Arc::new(Meter::new(slow_log, LIMITS.request_timeout, None, Clock::system())),
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

/// Sends a request and receives its reply, without allocating.
async fn exchange(client: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str, reply: &str) {
    let mut received = [0; 1024];
    let received = &mut received[..reply.len()];
    client.write_all(request.as_bytes()).await.unwrap();
    client.read_exact(received).await.unwrap();
    assert_eq!(received, reply.as_bytes());
}

/// Bytes that this thread has asked the allocator for so far.
fn allocated_bytes() -> u64 {
    tikv_jemalloc_ctl::thread::allocatedp::read().expect("jemalloc counts by thread").get()
}

#[tokio::test]
async fn a_hit_in_memory_allocates_nothing_from_its_request_to_its_reply() {
    let event_loop = event_loop(ServerFacts::default).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let session = Session::new(1, peer, address, Clock::system().now());
    let stop = event_loop.stop.clone();
    let (get, value) = ("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", "$5\r\nvalue\r\n");
    let asking = async {
        exchange(&mut client, "SET k value EX 600\r\n", "+OK\r\n").await;
        for (request, reply) in [
            (get, value),
            (&get.repeat(16), &value.repeat(16)),
            ("GET k\r\n", value),
            ("STRLEN k\r\n", ":5\r\n"),
            ("EXISTS k\r\n", ":1\r\n"),
            ("PING\r\n", "+PONG\r\n"),
        ] {
            // The buffers of the thread grow when they are first used.
            exchange(&mut client, request, reply).await;
            let begun = allocated_bytes();
            for _ in 0..1000 {
                exchange(&mut client, request, reply).await;
            }
            assert_eq!(allocated_bytes() - begun, 0, "bytes for a thousand times {request:?}");
        }
        stop.cancel();
    };
    // Both on the thread of this test.
    tokio::join!(Connection::new(stream, session, &event_loop).run(), asking);
    let begun = allocated_bytes();
    drop(std::hint::black_box(vec![0_u8; 4096]));
    assert!(allocated_bytes() >= begun + 4096, "allocations of this thread are counted");
}

/// The node's end of a connection, which counts how often the node writes.
struct Counted<'a> {
    stream: DuplexStream,
    writes: &'a Cell<u32>,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(task, buffer)
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        Pin::new(&mut self.stream).poll_write_vectored(task, pieces)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

#[tokio::test]
async fn what_arrives_together_is_answered_with_one_write() {
    let event_loop = event_loop(ServerFacts::default).await;
    let (mut client, stream) = duplex(4096);
    let (writes, address) = (Cell::new(0), SocketAddr::from(([127, 0, 0, 1], 6379)));
    let session = Session::new(1, address, address, Clock::system().now());
    let stop = event_loop.stop.clone();
    let asking = async {
        exchange(&mut client, &"PING\r\n".repeat(100), &"+PONG\r\n".repeat(100)).await;
        stop.cancel();
    };
    tokio::join!(asking, Connection::new(Counted { stream, writes: &writes }, session, &event_loop).run());
    assert_eq!(writes.get(), 1);
}

#[tokio::test]
async fn a_client_that_confirms_nothing_for_a_minute_is_gone() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let stream = prepare(listener.accept().await.unwrap().0).unwrap();
    let socket = SockRef::from(&stream);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(60)));
    assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    let times = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
    assert_eq!(times, (Duration::from_secs(30), Duration::from_secs(10)));
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
