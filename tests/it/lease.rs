//! Leases: of all who miss a key, one fetches its value.

use std::{sync::Barrier, thread, time::Instant};

use tempfile::{TempDir, tempdir};

use crate::{
    program::{Node, PATIENCE, config},
    resp::client::{Client, Reply},
};

fn node() -> (TempDir, Node, Client) {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, ""));
    let client = Client::connect(node.resp);
    (folder, node, client)
}

/// The word that an answer begins with, and what follows.
fn words(reply: Reply) -> (String, Vec<Reply>) {
    let Reply::Array(items) = reply else { panic!("an array: {reply:?}") };
    (items[0].text(), items[1..].to_vec())
}

/// The token of the lease that the client must get.
fn token(client: &mut Client, key: &str) -> String {
    match words(client.call(&format!("TC.GETLEASE {key}"))) {
        (word, rest) if word == "lease" => match rest[..] {
            [Reply::Integer(token @ 1..), Reply::Integer(10_000)] => token.to_string(),
            _ => panic!("a token and ten seconds: {rest:?}"),
        },
        other => panic!("a lease: {other:?}"),
    }
}

fn value(text: &str) -> Reply {
    Reply::Array(vec![Reply::bulk("value"), Reply::bulk(text)])
}

#[test]
fn of_a_thousand_connections_that_miss_a_key_one_is_to_fill_it() {
    const CLIENTS: usize = 1000;
    let (_folder, node, mut client) = node();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(node.resp)).collect();
    let together = Barrier::new(8);
    let answers: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = clients
            .chunks_mut(CLIENTS / 8)
            .map(|some| {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    some.iter_mut().for_each(|client| client.send(b"TC.GETLEASE k\r\n"));
                    some.iter_mut().map(|client| words(client.reply()).0).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let count = |word: &str| answers.iter().filter(|answer| *answer == word).count();
    assert_eq!((count("lease"), count("wait")), (1, CLIENTS - 1));
    assert_eq!(node.metric("tieredcache_leases_total{result=\"granted\"}"), Some(1.0));
    assert_eq!(node.metric("tieredcache_leases_total{result=\"waited\"}"), Some(999.0));
    assert_eq!(node.metric("tieredcache_leases"), Some(1.0));
    // Removed, it may be fetched again: what the first one fetches may be of before the removal.
    client.call("DEL k");
    token(&mut client, "k");
}

#[test]
fn a_fill_stores_with_life_and_tags_and_answers_null_once_the_key_has_changed() {
    let (_folder, node, mut client) = node();
    let lease = token(&mut client, "k");
    assert_eq!(client.call(&format!("TC.FILL k {lease} v PX 60000 TAGS 2 red blue")), Reply::ok());
    assert_eq!(client.call("TC.GETLEASE k"), value("v"));
    assert!(matches!(client.call("PTTL k"), Reply::Integer(1..=60_000)));
    assert!(matches!(client.call("TC.TAGS k"), Reply::Array(tags) if tags.len() == 2));
    assert_eq!(client.call(&format!("TC.FILL k {lease} again")), Reply::Null);
    for (number, change) in ["SET k{} 1", "DEL k{}", "FLUSHALL", "INCR k{}", "TC.INVALIDATE red"].iter().enumerate() {
        let key = format!("k{number}");
        let lease = token(&mut client, &key);
        Client::connect(node.resp).call(&change.replace("{}", &number.to_string()));
        assert_eq!(client.call(&format!("TC.FILL {key} {lease} older TAGS 1 red")), Reply::Null, "{change}");
        assert_ne!(client.call(&format!("GET {key}")), Reply::bulk("older"), "{change}");
    }
}

#[test]
fn a_fill_is_told_to_near_caches_and_a_leased_read_is_tracked() {
    let (_folder, node, mut filler) = node();
    let mut near = Client::connect(node.resp);
    near.call("HELLO 3");
    near.call("CLIENT TRACKING ON");
    let lease = token(&mut filler, "k");
    assert!(matches!(near.call("TC.GETLEASE k"), Reply::Array(_)));
    filler.call(&format!("TC.FILL k {lease} v"));
    let told = Reply::Push(vec![Reply::bulk("invalidate"), Reply::Array(vec![Reply::bulk("k")])]);
    assert_eq!(near.reply(), told);
    assert_eq!(near.call("TC.GETLEASE k"), value("v"));
    filler.call("SET k w");
    assert_eq!(near.reply(), told);
}

#[test]
fn a_negative_fill_sends_nobody_any_more() {
    let (_folder, _node, mut client) = node();
    let lease = token(&mut client, "k");
    assert_eq!(client.call_args(&["TC.FILL", "k", &lease, "", "NEGATIVE"]), Reply::ok());
    assert_eq!(client.call("TC.GETLEASE k"), Reply::Array(vec![Reply::bulk("value"), Reply::Null]));
}

#[test]
fn a_lease_ends_by_itself() {
    let (_folder, _node, mut client) = node();
    let (word, rest) = words(client.call("TC.GETLEASE k PX 30"));
    assert_eq!((word.as_str(), &rest[1]), ("lease", &Reply::Integer(30)));
    let first = match &rest[0] {
        Reply::Integer(token) => token.to_string(),
        other => panic!("a token: {other:?}"),
    };
    let begun = Instant::now();
    let second = loop {
        assert!(begun.elapsed() < PATIENCE, "the lease goes on");
        match words(client.call("TC.GETLEASE k")) {
            (word, rest) if word == "wait" => assert!(matches!(rest[0], Reply::Integer(1..=30)), "{rest:?}"),
            (_, rest) => break rest,
        }
    };
    assert_ne!(second[0], rest[0]);
    assert_eq!(client.call(&format!("TC.FILL k {first} late")), Reply::Null);
}

#[test]
fn what_is_no_lease_is_refused_with_the_reason() {
    let (_folder, _node, mut client) = node();
    for (command, text) in [
        ("TC.GETLEASE", "wrong number of arguments"),
        ("TC.GETLEASE k PX", "syntax error"),
        ("TC.GETLEASE k PX 0", "PX is '0'; a lease has 1 to 60000 ms"),
        ("TC.GETLEASE k PX 60001", "a lease has 1 to 60000 ms"),
        ("TC.FILL k 1", "wrong number of arguments"),
        ("TC.FILL k x v", "not an integer"),
        ("TC.FILL k 1 v NX", "syntax error"),
        ("TC.FILL k 1 v TAGS 0", "number of TAGS is '0'"),
        ("TC.FILL k 1 v PX 0", "invalid expire time in 'tc.fill'"),
    ] {
        let refused = client.call(command).text();
        assert!(refused.contains(text), "{command}: {refused}");
    }
    assert_eq!(client.call("TC.FILL k 1 v"), Reply::Null);
}
