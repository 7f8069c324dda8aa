//! Spans, as a collector receives them.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use rustix::process::Signal;
use tempfile::{TempDir, tempdir};

use crate::program::{Node, PATIENCE, config};

/// One request to the collector.
struct Received {
    head: String,
    body: Vec<u8>,
}

/// A collector that takes everything, for as long as the test runs.
fn collector() -> (SocketAddr, Receiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sender = sender.clone();
            thread::spawn(move || serve(stream, &sender));
        }
    });
    (address, received)
}

/// Answers the requests of one connection.
fn serve(stream: TcpStream, sender: &Sender<Received>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if !matches!(reader.read_line(&mut head), Ok(1..)) {
                return;
            }
        }
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        if sender.send(Received { head, body }).is_err() {
            return;
        }
    }
}

fn start(endpoint: SocketAddr, more: &str) -> (TempDir, Node) {
    let folder = tempdir().unwrap();
    let settings = format!("telemetry: {{otlp: {{endpoint: 'http://{endpoint}'{more}}}}}");
    let node = Node::start(&config(&folder, &settings));
    (folder, node)
}

/// Sends one inline command, and returns the first line of the reply.
fn ask(node: &Node, command: &str) -> String {
    let mut client = node.connect();
    client.get_mut().write_all(format!("{command}\r\n").as_bytes()).unwrap();
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    line
}

/// How often the text occurs. Texts are plain in the protocol's encoding.
fn count(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
}

/// Ends the node, and returns all that the collector has then.
fn end(mut node: Node, received: &Receiver<Received>) -> Vec<Received> {
    node.signal(Signal::TERM);
    assert!(node.wait().success());
    received.try_iter().collect()
}

#[test]
fn operations_that_leave_memory_have_spans_and_hits_have_none() {
    let (endpoint, received) = collector();
    let (folder, node) = {
        let folder = tempdir().unwrap();
        let headers = folder.path().join("headers");
        fs::write(&headers, "authorization: Bearer secret\n").unwrap();
        let settings = format!(
            "telemetry: {{otlp: {{endpoint: 'http://{endpoint}', sampleRatio: 1, headersFile: '{}'}}}}",
            headers.display()
        );
        let node = Node::start(&config(&folder, &settings));
        (folder, node)
    };
    assert_eq!(ask(&node, "SET private-key private-value"), "+OK\r\n");
    assert_eq!(ask(&node, "GET private-key"), "$13\r\n");
    assert_eq!(ask(&node, "GET absent"), "$-1\r\n");
    assert_eq!(ask(&node, "DEL private-key"), ":1\r\n");
    // What has not been sent by now is sent at the end.
    let requests = end(node, &received);
    assert!(!requests.is_empty(), "nothing was sent");
    for Received { head, body } in &requests {
        assert!(head.starts_with("post /v1/traces "), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        assert!(head.contains("authorization: bearer secret"), "{head}");
        for text in ["service.name", "service.instance.id", "tieredcache.operation.id"] {
            assert!(count(body, text) > 0, "{text}");
        }
        assert_eq!(count(body, "private"), 0, "keys and values stay on the node");
    }
    let bodies: Vec<u8> = requests.into_iter().flat_map(|request| request.body).collect();
    for (span, least) in [("disk get", 1), ("disk apply", 1), ("DEL", 1), ("disk miss ", 1)] {
        assert!(count(&bodies, span) >= least, "{span} occurs {} times", count(&bodies, span));
    }
    assert_eq!(count(&bodies, "GET"), 1, "the hit has none");
    drop(folder);
}

#[test]
fn a_node_that_samples_nothing_sends_nothing() {
    let (endpoint, received) = collector();
    let (_folder, node) = start(endpoint, ", sampleRatio: 0");
    assert_eq!(ask(&node, "GET absent"), "$-1\r\n");
    assert_eq!(end(node, &received).len(), 0);
}

#[test]
fn a_dead_collector_is_told_once_and_holds_nobody_up() {
    // Bound and closed again: nobody listens there.
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_folder, mut node) = start(endpoint, ", sampleRatio: 1");
    assert_eq!(ask(&node, "GET absent"), "$-1\r\n");
    node.logged("the collector takes no spans; it is tried again");
    assert_eq!(ask(&node, "GET absent"), "$-1\r\n");
    assert!(node.metric("tieredcache_spans_total{result=\"failed\"}").is_some_and(|failed| failed >= 1.0));
    let begun = std::time::Instant::now();
    node.signal(Signal::TERM);
    assert!(node.wait().success());
    assert!(begun.elapsed() < PATIENCE, "the end waits for no collector");
}
