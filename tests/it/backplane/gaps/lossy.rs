//! A replica that takes over with less than its master had acknowledged.

use super::*;

/// What all nodes hold before.
const KEYS: [&str; 3] = ["removed", "overwritten", "tagged"];

/// The newest record of the log there.
fn newest(server: &Server) -> String {
    server.cli(&["XREVRANGE", "{tc:local}:log", "+", "-", "COUNT", "1"])
}

fn holds(server: &Server, key: &str) -> bool {
    server.cli(&["EXISTS", &format!("{{tc:local}}:e:{key}")]) == "1"
}

fn nothing_old(fleet: &Fleet) {
    for number in 0..3 {
        let mut client = fleet.client(number);
        let [removed, overwritten, tagged] = KEYS.map(|key| client.call(&format!("GET {key}")));
        assert_eq!((removed, tagged), (Reply::Null, Reply::Null), "node {number}");
        assert_ne!(overwritten, Reply::bulk("old"), "node {number}");
    }
}

/// Node 0 removes and overwrites what all hold, the master has it, and the replica that takes over does not. The nodes that
/// are `stopped` meanwhile have not heard of it either. Every node has to count a gap of one of these kinds.
fn fails_over_with_less(stopped: &[usize], names: &[&str]) {
    let first = Server::start(&[]);
    let replica = replica_of(&first);
    let endpoints = format!("endpoints: ['127.0.0.1:{}', '127.0.0.1:{}']", first.port, replica.port);
    let mut fleet = Fleet::start_at(first, &endpoints, "");
    let mut one = fleet.client(0);
    for key in KEYS {
        one.call(&format!("TC.SET {key} old PX 3600000 TAGS 1 {key}"));
    }
    fleet.settled();
    KEYS.iter().for_each(|key| fleet.warm(key, "old"));
    eventually("the replica has everything", || newest(&replica) == newest(&fleet.redis));
    // From here on it asks for news where nobody is: what the master sends to a replica that is only stopped, or cut off,
    // it may find in its buffers later.
    assert_eq!(replica.cli(&["REPLICAOF", "127.0.0.1", "1"]), "OK");
    let before = gaps(&fleet, names);
    stopped.iter().for_each(|number| fleet.node(*number).signal(Signal::STOP));
    ["DEL removed", "SET overwritten new", "TC.INVALIDATE tagged"].iter().for_each(|change| drop(one.call(change)));
    eventually("the master has it all", || one.call("TC.FLUSH") == Reply::ok());
    assert_eq!((holds(&fleet.redis, "removed"), holds(&replica, "removed")), (false, true));
    if stopped.is_empty() {
        fleet.settled();
    }
    fleet.redis.kill();
    assert_eq!(replica.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    fleet.redis = replica;
    stopped.iter().for_each(|number| fleet.node(*number).signal(Signal::CONT));
    noticed(&fleet, names, &before);
    nothing_old(&fleet);
    serves(&fleet, "after");
    // Now that they trust themselves and Redis again.
    nothing_old(&fleet);
}

#[test]
fn a_replica_that_lacks_what_all_nodes_have_heard_of_brings_nothing_back() {
    fails_over_with_less(&[], &["gapsRolledBack", "gapsHistoryChanged"]);
}

#[test]
fn a_replica_that_lacks_what_one_node_alone_knows_of_brings_nothing_back_on_the_others_either() {
    fails_over_with_less(&[1, 2], &ALL);
}
