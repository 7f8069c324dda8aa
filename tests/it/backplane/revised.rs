//! What a node makes of a value that it knows, while it can not hear that another node has removed it.

use super::{lease::token, *};
use crate::redis::wire::{Fault, Wire};

/// A fleet whose first node comes to Redis over a wire that can be cut.
fn behind_a_wire() -> (Fleet, Wire) {
    let mut fleet = Fleet::start(&[]);
    let wire = Wire::to(fleet.redis.address());
    fleet.kill_node(0);
    fleet.endpoints = format!("endpoints: ['{}']", wire.address);
    fleet.start_node(0);
    fleet.ready(0);
    (fleet, wire)
}

/// Cuts the first node off, right after it has looked at the log.
fn cut(fleet: &Fleet, wire: &Wire) {
    eventually("it has just looked at the log", || fleet.extra(0, "leaseAgeMs") < 100);
    wire.set(Fault::Silent);
}

fn gone_everywhere(fleet: &Fleet, keys: &[&str]) {
    fleet.settled();
    for key in keys {
        for number in 0..3 {
            assert_eq!(fleet.client(number).call(&format!("GET {key}")), Reply::Null, "{key} on node {number}");
        }
    }
}

#[test]
fn what_is_made_of_a_value_does_not_outlive_its_removal_by_another_node() {
    let (fleet, wire) = behind_a_wire();
    let (mut one, mut other) = (fleet.client(0), fleet.client(1));
    for set in ["SET e v", "SET p v EX 3600", "SET n 1", "SET a v", "SET kept v", "SET cleared v"] {
        assert_eq!(one.call(set), Reply::ok());
    }
    fleet.settled();
    for (key, value) in [("e", "v"), ("p", "v"), ("n", "1"), ("a", "v"), ("kept", "v")] {
        fleet.warm(key, value);
    }
    cut(&fleet, &wire);
    eventually("Redis is told", || other.call("TC.DEL e p n a") == Reply::ok());
    for (command, answer) in
        [("EXPIRE e 1800", 1), ("PERSIST p", 1), ("INCR n", 2), ("APPEND a w", 2), ("EXPIRE kept 1800", 1)]
    {
        assert_eq!(one.call(command), Reply::Integer(answer), "{command}");
    }
    wire.set(Fault::None);
    gone_everywhere(&fleet, &["e", "p", "n", "a"]);
    fleet.warm("kept", "v");
    let Reply::Integer(left) = fleet.client(2).call("TTL kept") else { panic!("a number") };
    assert!((1700..=1800).contains(&left), "{left} s: the change counts");

    cut(&fleet, &wire);
    eventually("Redis is told", || other.call("FLUSHALL") == Reply::ok());
    assert_eq!(one.call("EXPIRE cleared 1800"), Reply::Integer(1));
    wire.set(Fault::None);
    gone_everywhere(&fleet, &["cleared", "kept"]);
}

#[test]
fn what_is_counted_up_on_one_node_stays_however_often_and_however_much_others_write_meanwhile() {
    let fleet = Fleet::start(&[]);
    let (mut one, mut other) = (fleet.client(0), fleet.client(1));
    assert_eq!(one.call("SET n 0"), Reply::ok());
    for round in 1..=20 {
        for number in 0..500 {
            other.send(format!("SET other-{number} v\r\n").as_bytes());
        }
        assert_eq!(one.call("INCR n"), Reply::Integer(round));
        (0..500).for_each(|_| assert_eq!(other.reply(), Reply::ok()));
    }
    fleet.settled();
    fleet.warm("n", "20");
}

#[test]
fn a_fill_under_a_lease_of_the_nodes_own_does_not_beat_a_removal_by_another_node() {
    let (fleet, wire) = behind_a_wire();
    let (mut one, mut other) = (fleet.client(0), fleet.client(1));
    assert_eq!(one.call("SET k old"), Reply::ok());
    fleet.settled();
    cut(&fleet, &wire);
    assert_eq!(one.call("TC.DEL k"), Reply::Simple("QUEUED".to_owned()));
    let lease = token(&mut one, "TC.GETLEASE k");
    // What the database holds changes here.
    eventually("Redis is told", || other.call("TC.DEL k") == Reply::ok());
    assert_eq!(one.call(&format!("TC.FILL k {lease} old")), Reply::ok());
    wire.set(Fault::None);
    gone_everywhere(&fleet, &["k"]);
}
