//! Clients with near caches, of a fleet: what they keep is as good as what their node knows.

use super::*;

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

/// Waits for this news, past others.
fn told(client: &mut Client, what: &Reply) {
    let wanted = Reply::Push(vec![Reply::bulk("invalidate"), what.clone()]);
    let begun = Instant::now();
    while client.reply() != wanted {}
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}

#[test]
fn a_near_cache_hears_of_what_another_node_changes() {
    let fleet = Fleet::start(&[]);
    let (mut writer, mut reader) = (fleet.client(0), tracking(&fleet, 1));
    let only = |key: &str| Reply::Array(vec![Reply::bulk(key)]);
    for (write, change) in [("SET k 1", "SET k 2"), ("SET k 1", "DEL k"), ("TC.SET k 1 TAGS 1 t", "TC.INVALIDATE t")] {
        assert_eq!(writer.call(write), Reply::ok());
        fleet.settled();
        eventually("the value is read", || ask(&mut reader, "GET k") == Reply::bulk("1"));
        writer.call(change);
        told(&mut reader, &only("k"));
        eventually("the change is read", || ask(&mut reader, "GET k") != Reply::bulk("1"));
    }
    writer.call("FLUSHALL");
    told(&mut reader, &Reply::Null);
}

#[test]
fn a_near_cache_that_listens_to_everything_hears_of_keys_that_it_never_read() {
    let fleet = Fleet::start(&[]);
    let mut listener = tracking_as(&fleet, 1, "ON BCAST PREFIX user:");
    let mut writer = fleet.client(0);
    let only = |key: &str| Reply::Array(vec![Reply::bulk(key)]);
    for change in ["SET user:1 v", "DEL user:1", "TC.SET user:1 v TAGS 1 t"] {
        // Of no concern to it.
        writer.call("SET other v");
        writer.call(change);
        writer.call("TC.FLUSH");
        told(&mut listener, &only("user:1"));
    }
    let Reply::Array(lease) = writer.call("TC.GETLEASE user:2") else { panic!("a lease") };
    let Reply::Integer(token) = lease[1] else { panic!("a token: {lease:?}") };
    assert_eq!(writer.call(&format!("TC.FILL user:2 {token} v")), Reply::ok());
    told(&mut listener, &only("user:2"));
    // Nobody knows which keys these are.
    for change in ["TC.INVALIDATE t", "FLUSHALL"] {
        writer.call(change);
        told(&mut listener, &Reply::Null);
    }
}

#[test]
fn a_near_cache_is_given_up_when_its_node_hears_of_no_changes_any_more() {
    let fleet = Fleet::start(&[]);
    let mut reader = tracking(&fleet, 1);
    fleet.client(0).call("SET k v");
    eventually("the value is read", || ask(&mut reader, "GET k") == Reply::bulk("v"));
    fleet.redis.freeze();
    told(&mut reader, &Reply::Null);
    fleet.redis.thaw();
}
