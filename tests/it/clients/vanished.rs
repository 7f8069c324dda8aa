//! Clients that are gone without a word: half-open connections give their places back, and cost little until then.

use std::{
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use tempfile::tempdir;

use crate::{
    pipeline::network::{Network, run},
    program::Node,
    resp::client::{Client, Reply},
};

/// Clients that vanish while they are idle.
const IDLE: usize = 500;
/// When a node lets go of a client that confirms nothing, as its README says.
const LET_GO: Duration = Duration::from_secs(60);
/// More of it for a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
const BYTES_MAX: f64 = 32.0 * 1024.0 * 1024.0;
const OPEN: &str = "tieredcache_resp_connections";

#[test]
fn clients_that_vanish_are_let_go_within_a_minute() {
    thread::spawn(in_a_network_of_its_own).join().expect("it says what went wrong");
}

fn in_a_network_of_its_own() {
    let _network = Network::enter();
    let folder = tempdir().unwrap();
    let file = folder.path().join("node.yaml");
    fs::write(&file, "listen: {resp: '0.0.0.0:0', admin: '127.0.0.1:0'}\ndisk: {mode: Disabled}").unwrap();
    let node = Node::start(&file);
    let at = |host: [u8; 4]| SocketAddr::from((host, node.resp.port()));
    let mut living = Client::connect(at([127, 0, 0, 1]));
    assert_eq!(living.call("SET k v"), Reply::ok());
    let before = node.metric("process_resident_memory_bytes").unwrap();

    // Those of the second address vanish: some are idle, one waits for what it is told, one is within a request.
    let mut vanishing: Vec<Client> = (0..IDLE + 2).map(|_| Client::connect(at([127, 0, 0, 2]))).collect();
    vanishing.iter_mut().for_each(|client| assert_eq!(client.call("PING"), Reply::Simple("PONG".to_owned())));
    vanishing[0].call("HELLO 3");
    assert_eq!(vanishing[0].call("CLIENT TRACKING ON"), Reply::ok());
    assert_eq!(vanishing[0].call("GET k"), Reply::Bulk(b"v".to_vec()));
    vanishing[1].send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000\r\nbeginning");
    let open = IDLE as f64 + 3.0;
    assert_eq!(node.metric(OPEN), Some(open));
    run("iptables -w -A INPUT -d 127.0.0.2 -j DROP");
    run("iptables -w -A INPUT -s 127.0.0.2 -j DROP");
    let cut = Instant::now();
    assert_eq!(living.call("SET k w"), Reply::ok(), "and the one that waits is told in vain");

    let mut grown = 0.0_f64;
    while node.metric(OPEN) != Some(1.0) {
        assert!(cut.elapsed() < LET_GO + PATIENCE, "{:?} of {open} are open", node.metric(OPEN));
        grown = grown.max(node.metric("process_resident_memory_bytes").unwrap() - before);
        thread::sleep(Duration::from_millis(200));
    }
    println!("all of {} were let go after {:.1} s", vanishing.len(), cut.elapsed().as_secs_f64());
    assert!(cut.elapsed() > LET_GO / 2, "not before their machines could have come back");
    assert!(grown < BYTES_MAX, "grew by {grown} bytes");
    assert_eq!(living.call("GET k"), Reply::Bulk(b"w".to_vec()), "who is only idle stays");
    assert_eq!(node.metric("tieredcache_tracking_clients"), Some(0.0), "nothing is remembered of them");
}
