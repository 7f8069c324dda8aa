//! Clients that are broken, slow or malicious: bounded memory, a clear error, and no harm to the others.

use std::{
    collections::BTreeSet,
    io::Write,
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use tempfile::{TempDir, tempdir};

use super::client::{Client, Reply, request};
use crate::program::{Node, binary, config, eventually};

/// Bytes by which a node may grow when it is attacked.
const GROWTH_BYTES_MAX: f64 = 64.0 * 1024.0 * 1024.0;

/// Connections of garbage.
const GARBAGE_CONNECTIONS: usize = 400;

const PANICS: &str = "tieredcache_resp_connections_aborted_total{reason=\"panic\"}";
const TIMEOUTS: &str = "tieredcache_resp_connections_aborted_total{reason=\"timeout\"}";
const REJECTED: &str = "tieredcache_resp_connections_total{result=\"rejected\"}";
const UNKNOWN: &str = "tieredcache_resp_commands_total{command=\"unknown\"}";
const BYTES_IN: &str = "tieredcache_resp_bytes_total{direction=\"in\"}";
const BYTES_OUT: &str = "tieredcache_resp_bytes_total{direction=\"out\"}";

fn node(limits: &str) -> (TempDir, Node) {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, &format!("limits: {{{limits}}}")));
    (folder, node)
}

fn resident_bytes(node: &Node) -> f64 {
    node.metric("process_resident_memory_bytes").unwrap()
}

/// Every series of the metrics: the names, with their labels.
fn series(node: &Node) -> BTreeSet<String> {
    let metrics = node.admin("GET", "/metrics").body;
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|sample| Some(sample.rsplit_once(' ')?.0.to_owned())).collect()
}

fn assert_serves(node: &Node) {
    assert_eq!(Client::connect(node.resp).call("PING"), Reply::Simple("PONG".to_owned()));
    assert_eq!(node.metric(PANICS), Some(0.0));
}

// === malformed requests ===

#[test]
fn a_malformed_request_is_told_what_is_wrong_and_closed() {
    let (_folder, node) = node("valueBytesMax: 1Mi");
    let long_line = vec![b'a'; 64 * 1024];
    let nested = b"*1\r\n".repeat(10_000);
    let cases: [(&[u8], &str); 16] = [
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*2147483648\r\n", "invalid multibulk length"),
        (b"*9223372036854775808\r\n", "invalid multibulk length"),
        (b"*1e3\r\n", "invalid multibulk length"),
        (b"*\0\r\n", "invalid multibulk length"),
        (&nested, "expected '$', got '*'"),
        (b"*1\r\n%1\r\n", "expected '$', got '%'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$-2\r\n", "invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "536870913 bytes are more than the limit of 1048576"),
        (b"*1\r\n$9999999999\r\n", "9999999999 bytes are more than the limit of 1048576"),
        (b"*1\r\n$4\r\nPINGPING\r\n", "expected CRLF after the bulk"),
        (b"*1\r\n$4\r\nPING\n\n", "expected CRLF after the bulk"),
        (b"*1\n$4\nPING\n", "invalid multibulk length"),
        (&long_line, "too big inline request"),
        (b"SET \"k\r\n", "unbalanced quotes"),
    ];
    for (bytes, words) in cases {
        let mut client = Client::connect(node.resp);
        client.send(b"PING\r\n");
        client.try_send(bytes);
        let answer = client.rest();
        assert!(answer.starts_with("+PONG\r\n-ERR Protocol error: "), "{}: {answer}", bytes.escape_ascii());
        assert!(answer.contains(words) && answer.matches("\r\n").count() == 2, "{}: {answer}", bytes.escape_ascii());
    }
    assert_serves(&node);
}

#[test]
fn a_request_of_a_browser_is_cut_off_before_its_body() {
    let (_folder, node) = node("");
    for head in ["POST / HTTP/1.1\r\n", "Host: localhost:6379\r\n"] {
        let mut client = Client::connect(node.resp);
        client.send(format!("{head}SET stolen 1\r\n").as_bytes());
        assert_eq!(client.rest(), "");
    }
    assert_eq!(Client::connect(node.resp).call("EXISTS stolen"), Reply::Integer(0));
}

#[test]
fn a_frame_over_the_limit_gets_its_error_although_the_client_goes_on_sending() {
    let (_folder, node) = node("valueBytesMax: 1Mi");
    let mut client = Client::connect(node.resp);
    client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3000000\r\n");
    // More than the buffers of both kernels hold; the node may have had enough before the end.
    client.try_send(&vec![b'x'; 3_000_000]);
    assert!(client.rest().starts_with("-ERR Protocol error: invalid bulk length: 3000000 bytes"));
    assert_serves(&node);
}

#[test]
fn garbage_does_no_harm() {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let (_folder, node) = node("partialRequestTimeout: 1s");
    let (before, series_before) = (resident_bytes(&node), series(&node));
    let mut random = SmallRng::seed_from_u64(seed);
    let valid = request(&["SET", "key", "value"]);
    let starts: [&[u8]; 6] = [b"", b"*3\r\n", b"*2\r\n$3\r\n", b"\x16\x03\x01\x02\x00\x01", b">2\r\n", &valid];
    for _ in 0..GARBAGE_CONNECTIONS {
        let mut bytes = starts.choose(&mut random).unwrap().to_vec();
        let start = bytes.len();
        bytes.resize(start + random.random_range(0..20_000), 0);
        if random.random_bool(0.5) {
            random.fill_bytes(&mut bytes[start..]);
        } else {
            let alphabet = b"*$\r\n0123456789-+:_%~>|GETSETkv \"'\\x";
            bytes[start..].iter_mut().for_each(|byte| *byte = *alphabet.choose(&mut random).unwrap());
        }
        let mut stream = TcpStream::connect(node.resp).unwrap();
        // The node may close at any byte.
        let _ = stream.write_all(&bytes);
    }
    assert_serves(&node);
    eventually("all garbage connections end", || node.metric("tieredcache_resp_connections") == Some(0.0));
    let growth = resident_bytes(&node) - before;
    assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes");
    // Among the garbage were names of commands that are none. Labels are closed sets: whatever is sent adds no series.
    assert!(node.metric(UNKNOWN) > Some(0.0));
    let series = series(&node);
    assert!(series.len() > 100, "{series:?}");
    assert_eq!(series.symmetric_difference(&series_before).collect::<Vec<_>>(), Vec::<&String>::new());
}

// === slow clients ===

#[test]
fn a_request_begun_and_not_finished_is_given_up() {
    let (_folder, node) = node("partialRequestTimeout: 1s");
    let mut idle = Client::connect(node.resp);
    assert_eq!(idle.call("PING"), Reply::Simple("PONG".to_owned()));
    for begun in [&b"*2\r\n$3\r\nGET\r\n$10\r\nabc"[..], b"GET k", b"*", b"PING\r\n*1\r\n"] {
        let mut client = Client::connect(node.resp);
        let started = Instant::now();
        client.send(begun);
        assert!(client.rest().len() <= "+PONG\r\n".len());
        assert!(started.elapsed() >= Duration::from_millis(900), "{}: too early", begun.escape_ascii());
    }
    // Longer silent than any of them, but not within a request.
    assert_eq!(idle.call("PING"), Reply::Simple("PONG".to_owned()));
    assert_eq!(node.metric(TIMEOUTS), Some(4.0));
}

#[test]
fn announced_sizes_cost_no_memory_before_their_bytes_arrive() {
    let (_folder, node) = node("valueBytesMax: 16Mi, connectionsMax: 2000");
    let before = resident_bytes(&node);
    let mut open = Vec::new();
    for index in 0..1000 {
        let mut client = Client::connect(node.resp);
        client.send(if index % 2 == 0 {
            b"*1048576\r\n$1\r\na\r\n"
        } else {
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16000000\r\nabc"
        });
        open.push(client);
    }
    let received = || node.metric(BYTES_IN).is_some_and(|bytes| bytes > 20_000.0);
    eventually("all have been read", received);
    let growth = resident_bytes(&node) - before;
    // The rest of a request is read into a buffer of 64 KiB; pages of it that were not written to are not resident.
    assert!(growth < 2.0 * GROWTH_BYTES_MAX, "grew by {growth} bytes");
    assert_serves(&node);
}

#[test]
fn a_client_that_does_not_read_is_braked_and_then_closed() {
    let (_folder, node) = node("partialRequestTimeout: 3s");
    let mut writer = Client::connect(node.resp);
    for (key, length) in [("small", 1000), ("large", 1_000_000)] {
        assert_eq!(writer.call_args(&[b"SET", key.as_bytes(), &vec![b'x'; length]]), Reply::ok());
    }
    for key in ["small", "large"] {
        let before = resident_bytes(&node);
        let mut deaf = Client::connect(node.resp);
        // Replies of 2 GB: a server that went on would be seen by its memory.
        let requests = request(&["GET", key]).repeat(2_000_000_000 / if key == "small" { 1000 } else { 1_000_000 });
        let sender = thread::spawn(move || {
            let all_taken = deaf.try_send(&requests);
            (deaf, all_taken)
        });
        let timeouts = || node.metric(TIMEOUTS).unwrap();
        let timeouts_before = timeouts();
        let mut growth = 0.0_f64;
        eventually("the deaf client is closed", || {
            growth = growth.max(resident_bytes(&node) - before);
            timeouts() > timeouts_before
        });
        assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes");
        let (_deaf, all_taken) = sender.join().unwrap();
        assert!(!all_taken || key == "large", "the node stops reading");
    }
    assert_serves(&node);
}

#[test]
fn a_pause_of_a_reader_costs_no_reply() {
    let (_folder, node) = node("");
    let mut client = Client::connect(node.resp);
    let value = vec![b'x'; 100_000];
    assert_eq!(client.call_args(&[b"SET", b"k".as_slice(), &value]), Reply::ok());
    // 50 MB of replies: the node has to stop in the middle and go on.
    client.send(&request(&["GET", "k"]).repeat(500));
    eventually("the node is braked", || node.metric(BYTES_OUT).is_some_and(|sent| sent > 1e6));
    for _ in 0..500 {
        assert!(client.reply() == Reply::Bulk(value.clone()));
    }
}

// === too many ===

#[test]
fn a_connection_over_the_limit_is_told_so_and_closed() {
    let (_folder, node) = node("connectionsMax: 2");
    let mut first = Client::connect(node.resp);
    let mut second = Client::connect(node.resp);
    for client in [&mut first, &mut second] {
        assert_eq!(client.call("PING"), Reply::Simple("PONG".to_owned()));
    }
    assert_eq!(Client::connect(node.resp).rest(), "-ERR max number of clients reached\r\n");
    assert_eq!(first.call("PING"), Reply::Simple("PONG".to_owned()));
    assert_eq!(node.metric(REJECTED), Some(1.0));
    drop(first);
    eventually("the place is free again", || {
        let mut next = Client::connect(node.resp);
        next.try_send(b"PING\r\nQUIT\r\n");
        next.rest() == "+PONG\r\n+OK\r\n"
    });
}

#[test]
fn connections_for_which_there_is_no_descriptor_wait_until_there_is() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("memory.yaml");
    std::fs::write(&file, "listen: {resp: '127.0.0.1:0', admin: '127.0.0.1:0'}\ndisk: {mode: Disabled}").unwrap();
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--nofile=64:64", "--"]).arg(binary()).arg("--config").arg(&file);
    let node = Node::start_by(&mut prlimit);
    let mut clients: Vec<Client> = (0..80).map(|_| Client::connect(node.resp)).collect();
    node.logged("connections can not be accepted and wait in the kernel");
    assert_eq!(clients[0].call("PING"), Reply::Simple("PONG".to_owned()));
    clients.drain(..60);
    for client in &mut clients {
        assert_eq!(client.call("PING"), Reply::Simple("PONG".to_owned()));
    }
}

#[test]
fn a_long_pipeline_of_one_client_does_not_starve_another() {
    let (_folder, node) = node("");
    let mut busy = Client::connect(node.resp);
    let requests = request(&["PING"]).repeat(2_000_000);
    let pipeline = thread::spawn(move || busy.pipeline(&requests, 2_000_000).len());
    let mut other = Client::connect(node.resp);
    let mut slowest = Duration::ZERO;
    while !pipeline.is_finished() {
        let started = Instant::now();
        assert_eq!(other.call("PING"), Reply::Simple("PONG".to_owned()));
        slowest = slowest.max(started.elapsed());
    }
    assert_eq!(pipeline.join().unwrap(), 2_000_000);
    assert!(slowest < Duration::from_secs(2), "one PING took {slowest:?}");
}
