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
fn count(bytes: &[u8], text: impl AsRef<[u8]>) -> usize {
    let text = text.as_ref();
    bytes.windows(text.len()).filter(|window| *window == text).count()
}

/// What stands between the name of a span, which occurs once, and the last of its attributes.
fn attributes<'a>(bytes: &'a [u8], span: &str) -> &'a [u8] {
    let place = |bytes: &[u8], text: &str| bytes.windows(text.len()).position(|window| window == text.as_bytes());
    let (_, behind) = bytes.split_at(place(bytes, span).unwrap_or_else(|| panic!("no span {span}")));
    &behind[..place(behind, "tieredcache.operation.id").expect("every span has one")]
}

/// Ends the node: then the collector has all its spans.
fn stop(mut node: Node) {
    node.signal(Signal::TERM);
    assert!(node.wait().success());
}

/// Ends the node, and returns all that the collector has then.
fn end(node: Node, received: &Receiver<Received>) -> Vec<Received> {
    stop(node);
    received.try_iter().collect()
}

#[test]
fn operations_that_leave_memory_have_spans_and_hits_have_none() {
    let (endpoint, received) = collector();
    let folder = tempdir().unwrap();
    let headers = folder.path().join("headers");
    fs::write(&headers, "authorization: Bearer secret\n").unwrap();
    let settings = format!(
        "telemetry: {{otlp: {{endpoint: 'http://{endpoint}', sampleRatio: 1, headersFile: '{}'}}}}",
        headers.display()
    );
    let config = config(&folder, &settings);
    let node = Node::start(&config);
    assert_eq!(ask(&node, "SET private-key private-value"), "+OK\r\n");
    assert_eq!(ask(&node, "GET private-key"), "$13\r\n");
    // What RocksDB wrote a moment ago it has in memory; the next process reads it from the volume.
    stop(node);
    let node = Node::start(&config);
    (0..2).for_each(|_| assert_eq!(ask(&node, "GET private-key"), "$13\r\n"));
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
    for span in ["disk get", "disk apply"] {
        assert!(count(&bodies, span) > 0, "{span}");
    }
    assert_eq!(count(&bodies, "GET"), 1, "hits have none");
    assert_eq!(count(&bodies, "DEL"), 1);
    // The whole default of a second, as the protocol has an attribute that is a number.
    let deadline = [b"tieredcache.deadline_ms".as_slice(), &[0x12, 3, 0x18, 0xE8, 0x07]].concat();
    for command in ["GET", "DEL"] {
        let attributes = attributes(&bodies, command);
        for text in ["tieredcache.outcome", "tieredcache.trail", "tieredcache.origin", "client"] {
            assert_eq!(count(attributes, text), 1, "{text} of {command}");
        }
        assert_eq!(count(attributes, &deadline), 1, "{command}");
    }
    assert_eq!(count(attributes(&bodies, "GET"), "disk hit "), 1, "the layer that had the value");
}

#[test]
fn a_node_that_samples_nothing_sends_nothing() {
    let (endpoint, received) = collector();
    let (_folder, node) = start(endpoint, ", sampleRatio: 0");
    // Unlike a read of what RocksDB has in memory, a removal always leaves memory.
    assert_eq!(ask(&node, "DEL absent"), ":0\r\n");
    assert_eq!(end(node, &received).len(), 0);
}

#[test]
fn a_dead_collector_is_told_once_and_holds_nobody_up() {
    // Bound and closed again: nobody listens there.
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_folder, mut node) = start(endpoint, ", sampleRatio: 1");
    assert_eq!(ask(&node, "DEL absent"), ":0\r\n");
    node.logged("the collector takes no spans; it is tried again");
    assert_eq!(ask(&node, "DEL absent"), ":0\r\n");
    assert!(node.metric("tieredcache_spans_total{result=\"failed\"}").is_some_and(|failed| failed >= 1.0));
    let begun = std::time::Instant::now();
    node.signal(Signal::TERM);
    assert!(node.wait().success());
    assert!(begun.elapsed() < PATIENCE, "the end waits for no collector");
}
