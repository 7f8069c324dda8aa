//! The client against a small server in this process.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use super::*;

/// Answers every 9-line SET of the ring's one-key workloads and every 5-line GET with `reply`, until its client leaves.
fn serve(listener: TcpListener, connections: usize, reply: &'static [u8], seen: &Arc<AtomicU64>) {
    for _ in 0..connections {
        let (mut stream, _) = listener.accept().unwrap();
        let seen = Arc::clone(seen);
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                // A command begins with the only star of its bytes: values hold none.
                let commands = buffer[..length].iter().filter(|&&byte| byte == b'*').count();
                seen.fetch_add(commands as u64, Ordering::AcqRel);
                let replies = reply.repeat(commands);
                if stream.write_all(&replies).is_err() {
                    return;
                }
            }
        });
    }
}

fn run(name: &str, reply: &'static [u8], length: Duration) -> (io::Result<Slice>, u64) {
    let workload: Workload = name.parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let (connections, counter) = (workload.connections, Arc::clone(&seen));
    let server = thread::spawn(move || serve(listener, connections, reply, &counter));
    let ring = Arc::new(workload.ring(crate::workload::Stored::Plain));
    let mut client = Client::open(address, &workload, &ring).unwrap();
    let slice = client.run(length);
    server.join().unwrap();
    (slice, seen.load(Ordering::Acquire))
}

#[test]
fn a_closed_loop_counts_exactly_what_the_server_answered() {
    let (slice, seen) = run("get-p16-c4", b"$3\r\nabc\r\n", Duration::from_millis(50));
    let slice = slice.unwrap();
    assert!(seen >= 64 && seen.is_multiple_of(16), "{seen}");
    assert_eq!(slice.tally, Tally { replies: seen, nulls: 0, value_bytes: 3 * seen });
    assert_eq!(slice.latency.len(), seen);
}

#[test]
fn requests_larger_than_the_socket_buffer_are_sent_whole() {
    let (slice, seen) = run("set4k-p1024-c1", b"+OK\r\n", Duration::from_millis(1));
    let slice = slice.unwrap();
    assert_eq!(slice.tally.replies, seen);
    assert!(seen >= 1024, "{seen}");
}

#[test]
fn an_open_loop_sends_its_rate_and_no_more() {
    let (slice, seen) = run("mix-c3-r2000", b"+OK\r\n", Duration::from_millis(250));
    assert_eq!((slice.unwrap().tally.replies, seen), (500, 500));
}

#[test]
fn an_error_reply_fails_the_run() {
    let (slice, _) = run("get-p1-c2", b"-ERR no\r\n", Duration::from_millis(10));
    assert!(slice.err().unwrap().to_string().contains("ERR no"));
}

#[test]
fn a_reply_nobody_asked_for_fails_the_run() {
    let (slice, _) = run("get-p1-c1", b"+OK\r\n+OK\r\n", Duration::from_millis(50));
    assert!(slice.err().unwrap().to_string().contains("more than was asked"));
}
