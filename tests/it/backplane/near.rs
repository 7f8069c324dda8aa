//! Clients with near caches, of a fleet: what they keep is as good as what their node knows.

use super::*;
use crate::clients::redis_py_near;

/// A client that tracks on this node.
fn tracking(fleet: &Fleet, number: usize) -> Client {
    tracking_as(fleet, number, "ON")
}

/// The same in this mode.
fn tracking_as(fleet: &Fleet, number: usize, mode: &str) -> Client {
    let mut client = fleet.client(number);
    assert!(matches!(client.call("HELLO 3"), Reply::Map(_)));
    assert_eq!(client.call(&format!("CLIENT TRACKING {mode}")), Reply::ok());
    client
}

/// The reply of a command, past the news before it.
fn ask(client: &mut Client, command: &str) -> Reply {
    let mut reply = client.call(command);
    while matches!(reply, Reply::Push(_)) {
        reply = client.reply();
    }
    reply
}

/// Waits for news of this key, or for those that everything is to be forgotten, past others.
fn told(client: &mut Client, key: Option<&str>) {
    let begun = Instant::now();
    let is_it = |news: &Reply| match (news, key) {
        (Reply::Array(keys), Some(key)) => keys.contains(&Reply::bulk(key)),
        (news, key) => key.is_none() && *news == Reply::Null,
    };
    loop {
        let Reply::Push(message) = client.reply() else { panic!("only news are to come") };
        if is_it(&message[1]) {
            break;
        }
    }
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}

/// Brings the value of a key that begins so, under a lease that all nodes share; answers the key. A Redis that a busy
/// machine keeps from answering in time makes a lease the node's own, of which no other node hears.
fn fill_of_the_fleet(fleet: &Fleet, writer: &mut Client, prefix: &str) -> String {
    let alone = || fleet.node(0).metric("tieredcache_leases_total{result=\"granted_alone\"}").unwrap();
    for attempt in 0..100 {
        let (key, before) = (format!("{prefix}{attempt}"), alone());
        let Reply::Array(lease) = writer.call(&format!("TC.GETLEASE {key}")) else { panic!("a lease") };
        let Reply::Integer(token) = lease[1] else { panic!("a token: {lease:?}") };
        let is_shared = alone() == before;
        if is_shared && writer.call(&format!("TC.FILL {key} {token} v")) == Reply::ok() {
            return key;
        }
    }
    panic!("Redis takes no fill");
}

#[test]
fn a_near_cache_hears_of_what_another_node_changes() {
    let fleet = Fleet::start(&[]);
    let (mut writer, mut reader) = (fleet.client(0), tracking(&fleet, 1));
    for (write, change) in [("SET k 1", "SET k 2"), ("SET k 1", "DEL k"), ("TC.SET k 1 TAGS 1 t", "TC.INVALIDATE t")] {
        assert_eq!(writer.call(write), Reply::ok());
        fleet.settled();
        eventually("the value is read", || ask(&mut reader, "GET k") == Reply::bulk("1"));
        writer.call(change);
        told(&mut reader, Some("k"));
        eventually("the change is read", || ask(&mut reader, "GET k") != Reply::bulk("1"));
    }
    writer.call("FLUSHALL");
    told(&mut reader, None);
}

#[test]
fn the_near_cache_of_redis_py_keeps_nothing_that_another_node_has_changed() {
    let fleet = Fleet::start(&[]);
    redis_py_near(&[0, 1].map(|number| fleet.node(number).resp.port()));
}

#[test]
fn a_near_cache_that_listens_to_everything_hears_of_keys_that_it_never_read() {
    let fleet = Fleet::start(&[]);
    let mut listener = tracking_as(&fleet, 1, "ON BCAST PREFIX user:");
    let mut writer = fleet.client(0);
    for change in ["SET user:1 v", "DEL user:1", "TC.SET user:1 v TAGS 1 t"] {
        // Of no concern to it.
        assert_eq!(writer.call("SET other v"), Reply::ok());
        assert!(!matches!(writer.call(change), Reply::Error(_)), "{change}");
        writer.call("TC.FLUSH");
        told(&mut listener, Some("user:1"));
    }
    let filled = fill_of_the_fleet(&fleet, &mut writer, "user:2");
    told(&mut listener, Some(&filled));
    // Nobody knows which keys these are.
    for change in ["TC.INVALIDATE t", "FLUSHALL"] {
        writer.call(change);
        told(&mut listener, None);
    }
}

#[test]
fn a_near_cache_is_given_up_when_its_node_hears_of_no_changes_any_more() {
    let fleet = Fleet::start(&[]);
    let mut reader = tracking(&fleet, 1);
    fleet.client(0).call("SET k v");
    eventually("the value is read", || ask(&mut reader, "GET k") == Reply::bulk("v"));
    eventually("its last look was a while ago", || (250..400).contains(&fleet.extra(1, "leaseAgeMs")));
    fleet.redis.freeze();
    told(&mut reader, None);
    fleet.redis.thaw();
}
