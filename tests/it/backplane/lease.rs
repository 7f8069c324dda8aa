//! One filler for a key in the whole fleet, and no fill of what is older than what any node has changed.

use std::{sync::Barrier, thread};

use super::*;

/// The word that an answer begins with, and what follows.
fn words(reply: Reply) -> (String, Vec<Reply>) {
    let Reply::Array(items) = reply else { panic!("an array: {reply:?}") };
    (items[0].text(), items[1..].to_vec())
}

/// The token of the lease that the client must get, once what was changed before is known everywhere.
pub(super) fn token(client: &mut Client, command: &str) -> String {
    let begun = Instant::now();
    loop {
        match words(client.call(command)) {
            (word, rest) if word == "lease" => match rest[0] {
                Reply::Integer(token @ 1..) => return token.to_string(),
                _ => panic!("a token: {rest:?}"),
            },
            other => assert!(begun.elapsed() < BOUND, "a lease: {other:?}"),
        }
    }
}

fn value(text: &str) -> Reply {
    Reply::Array(vec![Reply::bulk("value"), Reply::bulk(text)])
}

#[test]
fn of_a_thousand_clients_of_three_nodes_that_miss_a_key_one_is_to_fill_it() {
    const CLIENTS: usize = 1000;
    let fleet = Fleet::start(&[]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|number| fleet.client(number % 3)).collect();
    for round in 0..5 {
        let ask = format!("TC.GETLEASE k{round}\r\n");
        let together = Barrier::new(8);
        let answers: Vec<String> = thread::scope(|scope| {
            let threads: Vec<_> = clients
                .chunks_mut(CLIENTS / 8)
                .map(|some| {
                    let (together, ask) = (&together, &ask);
                    scope.spawn(move || {
                        together.wait();
                        some.iter_mut().for_each(|client| client.send(ask.as_bytes()));
                        some.iter_mut().map(|client| words(client.reply()).0).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let count = |word: &str| answers.iter().filter(|answer| *answer == word).count();
        assert_eq!((count("lease"), count("wait")), (1, CLIENTS - 1), "round {round}");
    }
    let of = |number: usize, result: &str| {
        fleet.node(number).metric(&format!("tieredcache_leases_total{{result=\"{result}\"}}")).unwrap()
    };
    let sum = |result: &str| (0..3).map(|number| of(number, result)).sum::<f64>();
    assert_eq!((sum("granted"), sum("granted_alone")), (5.0, 0.0));
}

#[test]
fn a_fill_that_began_before_a_change_on_another_node_is_refused() {
    let fleet = Fleet::start(&[]);
    let (mut filler, mut other) = (fleet.client(0), fleet.client(1));
    let changes = ["DEL k", "SET k newer", "TC.INVALIDATE red", "FLUSHALL", "TC.INVALIDATEALL red blue"];
    for round in 0..20 {
        let change = changes[round % changes.len()];
        let lease = token(&mut filler, "TC.GETLEASE k");
        other.call(change);
        // An overwrite ends the lease once it has left the queue.
        other.call("TC.FLUSH");
        if change.starts_with("TC.INVALIDATEALL") {
            // Redis can not tell; the node can once it has heard.
            fleet.settled();
        }
        let filled = filler.call(&format!("TC.FILL k {lease} older TAGS 2 red blue"));
        assert_eq!(filled, Reply::Null, "{change}, round {round}");
        fleet.settled();
        (0..3).for_each(|number| {
            assert_ne!(fleet.client(number).call("GET k"), Reply::bulk("older"), "{change} on node {number}");
        });
        other.call("DEL k");
        fleet.settled();
    }
}

#[test]
fn what_a_fill_brings_is_known_to_all_nodes_and_counts_as_a_change() {
    let fleet = Fleet::start(&[]);
    let (mut one, mut other) = (fleet.client(0), fleet.client(1));
    let lease = token(&mut one, "TC.GETLEASE k");
    assert_eq!(words(other.call("TC.GETLEASE k")).0, "wait");
    assert_eq!(one.call(&format!("TC.FILL k {lease} v PX 600000 TAGS 1 red")), Reply::ok());
    (0..3).for_each(|number| assert_eq!(fleet.client(number).call("TC.GETLEASE k"), value("v")));
    // The one who was sent for it may bring it to another node.
    fleet.client(2).call("TC.INVALIDATE red");
    fleet.settled();
    let lease = token(&mut one, "TC.GETLEASE k");
    assert_eq!(other.call(&format!("TC.FILL k {lease} w")), Reply::ok());
    assert_eq!(other.call(&format!("TC.FILL k {lease} twice")), Reply::Null);
    fleet.settled();
    (0..3).for_each(|number| assert_eq!(fleet.client(number).call("GET k"), Reply::bulk("w"), "node {number}"));
    let lease = token(&mut one, "TC.GETLEASE absent");
    assert_eq!(one.call_args(&["TC.FILL", "absent", &lease, "", "NEGATIVE"]), Reply::ok());
    let negative = Reply::Array(vec![Reply::bulk("value"), Reply::Null]);
    (0..3).for_each(|number| assert_eq!(fleet.client(number).call("TC.GETLEASE absent"), negative, "node {number}"));
}

#[test]
fn a_lease_ends_by_itself_when_its_holder_and_its_node_have_died() {
    let mut fleet = Fleet::start(&[]);
    let first = token(&mut fleet.client(0), "TC.GETLEASE k PX 3000");
    fleet.kill_node(0);
    let mut other = fleet.client(1);
    let (word, left) = words(other.call("TC.GETLEASE k"));
    assert!(word == "wait" && matches!(left[0], Reply::Integer(1..=3000)), "{word} {left:?}");
    let second = token(&mut other, "TC.GETLEASE k");
    assert_eq!(other.call(&format!("TC.FILL k {first} late")), Reply::Null);
    assert_eq!(other.call(&format!("TC.FILL k {second} v")), Reply::ok());
}

#[test]
fn without_redis_each_node_has_leases_of_its_own_and_what_they_bring_does_not_outlive_a_change() {
    let fleet = Fleet::start(&[]);
    fleet.client(0).call("SET first v");
    fleet.settled();
    fleet.redis.freeze();
    let mut one = fleet.client(0);
    let lease = token(&mut one, "TC.GETLEASE k");
    assert_eq!(words(one.call("TC.GETLEASE k")).0, "wait");
    token(&mut fleet.client(1), "TC.GETLEASE k");
    // The other node removes the key, and can tell nobody.
    assert_eq!(fleet.client(2).call("DEL k"), Reply::Integer(0));
    assert_eq!(one.call(&format!("TC.FILL k {lease} older")), Reply::ok());
    fleet.redis.thaw();
    eventually("the removal is known", || fleet.client(0).call("GET k") == Reply::Null);
    fleet.settled();
    (0..3).for_each(|number| assert_eq!(fleet.client(number).call("GET k"), Reply::Null, "node {number}"));
    assert_eq!(fleet.redis.cli(&["EXISTS", "{tc:local}:e:k"]), "0", "it never came to redis");
}
