//! Near caches: what clients keep themselves is told to be no longer good, in order and without exception.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use tempfile::{TempDir, tempdir};

use crate::{
    program::{Node, PATIENCE, Stop, config},
    resp::client::{Client, Reply, request},
};

fn node() -> (TempDir, Node) {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, ""));
    (folder, node)
}

/// A client that tracks, with these options.
fn tracking(node: &Node, options: &str) -> Client {
    let mut client = Client::connect(node.resp);
    assert!(matches!(client.call("HELLO 3"), Reply::Map(_)));
    assert_eq!(client.call(format!("CLIENT TRACKING ON {options}").trim_end()), Reply::ok());
    client
}

/// What a client is told about these keys.
fn invalid(keys: &[&str]) -> Reply {
    Reply::Push(vec![Reply::bulk("invalidate"), Reply::Array(keys.iter().map(|key| Reply::bulk(key)).collect())])
}

/// What a client is told when nothing is good any more.
fn all_invalid() -> Reply {
    Reply::Push(vec![Reply::bulk("invalidate"), Reply::Null])
}

/// Fails if the client was told anything: news come before the reply of a later command.
fn nothing_told(client: &mut Client) {
    assert_eq!(client.call("PING"), Reply::Simple("PONG".to_owned()));
}

// === what is told ===

#[test]
fn every_kind_of_change_of_a_key_that_was_read_is_told_once() {
    let (_folder, node) = node();
    let (mut reader, mut writer) = (tracking(&node, ""), Client::connect(node.resp));
    for change in [
        "SET k 1",
        "INCR k",
        "APPEND k 0",
        "EXPIRE k 100",
        "PERSIST k",
        "MSET x 1 k 2",
        "SET k 3 XX GET",
        "TC.SET k 4 TAGS 1 t",
        "SET k 5",
        "DEL k",
    ] {
        reader.call("GET k");
        writer.call(change);
        assert_eq!(reader.reply(), invalid(&["k"]), "{change}");
        writer.call("SET k 6 EX 1000");
        nothing_told(&mut reader);
    }
}

#[test]
fn every_command_that_reads_a_value_counts() {
    let (_folder, node) = node();
    let (mut reader, mut writer) = (tracking(&node, ""), Client::connect(node.resp));
    for read in ["GET k", "MGET a k", "STRLEN k", "EXISTS a k", "TTL k", "PTTL k", "TC.TAGS k"] {
        writer.call("SET k 1");
        reader.call(read);
        writer.call("SET k 2");
        assert_eq!(reader.reply(), invalid(&["k"]), "{read}");
    }
    reader.call("SET k 3");
    reader.call("TC.EXPLAIN k");
    writer.call("SET k 4");
    nothing_told(&mut reader);
}

#[test]
fn a_key_that_was_absent_is_told_when_it_comes() {
    let (_folder, node) = node();
    let mut reader = tracking(&node, "");
    assert_eq!(reader.call("GET none"), Reply::Null);
    Client::connect(node.resp).call("SET none 1");
    assert_eq!(reader.reply(), invalid(&["none"]));
}

#[test]
fn a_clear_makes_everything_invalid_for_every_client_that_tracks() {
    let (_folder, node) = node();
    let mut clients = [tracking(&node, ""), tracking(&node, "BCAST PREFIX a"), tracking(&node, "OPTIN NOLOOP")];
    Client::connect(node.resp).call("FLUSHALL");
    for client in &mut clients {
        assert_eq!(client.reply(), all_invalid());
    }
}

#[test]
fn the_end_of_a_life_is_told_without_anybody_asking() {
    let (_folder, node) = node();
    let mut reader = tracking(&node, "");
    reader.call("SET k v PX 1500");
    reader.call("GET k");
    let begun = Instant::now();
    assert_eq!(reader.reply(), invalid(&["k"]));
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(reader.call("GET k"), Reply::Null);
}

#[test]
fn a_removal_by_tag_is_told_for_keys_that_carry_it_and_no_others() {
    let (_folder, node) = node();
    let (mut reader, mut writer) = (tracking(&node, ""), Client::connect(node.resp));
    let mut follower = tracking(&node, "BCAST PREFIX a");
    writer.call("TC.SET both 1 TAGS 2 red blue");
    writer.call("TC.SET red 1 TAGS 1 red");
    writer.call("SET plain 1");
    reader.call("MGET both red plain");
    writer.call("TC.INVALIDATEALL red blue");
    assert_eq!(reader.reply(), invalid(&["both"]));
    assert_eq!(follower.reply(), all_invalid(), "nobody knows which keys it follows carry the tag");
    writer.call("TC.INVALIDATE red other");
    assert_eq!(reader.reply(), invalid(&["red"]));
    nothing_told(&mut reader);
}

// === order ===

#[test]
fn news_come_after_the_replies_of_reads_that_were_before_the_change() {
    let (_folder, node) = node();
    let mut client = tracking(&node, "");
    client.call("SET k old");
    let words: [&[&str]; 4] = [&["GET", "k"], &["SET", "k", "new"], &["GET", "k"], &["PING"]];
    client.send(&words.iter().flat_map(|words| request(words)).collect::<Vec<u8>>());
    let replies: Vec<Reply> = (0..5).map(|_| client.reply()).collect();
    let place =
        |wanted: &Reply| replies.iter().position(|reply| reply == wanted).unwrap_or_else(|| panic!("{replies:?}"));
    assert!(place(&Reply::bulk("old")) < place(&invalid(&["k"])), "{replies:?}");
}

/// Keeps what it reads and drops what it is told to, as a client library does: nothing but what was read or told.
struct NearCache {
    client: Client,
    kept: HashMap<String, Reply>,
}

impl NearCache {
    fn take(&mut self, told: Vec<Reply>) {
        match &told[1] {
            Reply::Array(keys) => keys.iter().for_each(|key| drop(self.kept.remove(&key.text()))),
            _ => self.kept.clear(),
        }
    }

    /// The reply of a command, with all news before it taken.
    fn call(&mut self, words: &[&str]) -> Reply {
        self.client.send(&request(words));
        loop {
            match self.client.reply() {
                Reply::Push(told) => self.take(told),
                reply => return reply,
            }
        }
    }

    fn read(&mut self, key: &str) {
        if !self.kept.contains_key(key) {
            let value = self.call(&["GET", key]);
            self.kept.insert(key.to_owned(), value);
        }
    }
}

/// Writers and readers race on few keys, with values so large that memory holds a few of them and most reads are cold.
fn race(more: &str, value_bytes: usize, writes: usize) {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, more));
    let keys: Vec<String> = (0..40).map(|number| format!("key-{number}")).collect();
    let padding = "x".repeat(value_bytes);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let stops = Stop(&done);
        let readers: Vec<_> = (0..4_usize)
            .map(|number| {
                let mut near = NearCache { client: tracking(&node, ""), kept: HashMap::new() };
                let (keys, done) = (&keys, &done);
                scope.spawn(move || {
                    let mut reads = number;
                    while !done.load(Ordering::SeqCst) {
                        near.read(&keys[reads * 7 % keys.len()]);
                        if reads.is_multiple_of(16) {
                            near.call(&["PING"]);
                        }
                        reads += 1;
                    }
                    near
                })
            })
            .collect();
        let writers: Vec<_> = (0..2_usize)
            .map(|number| {
                let (mut client, keys, padding) = (Client::connect(node.resp), &keys, &padding);
                scope.spawn(move || {
                    for round in 0..writes {
                        let key = &keys[(round * 11 + number) % keys.len()];
                        match round % 9 {
                            8 => drop(client.call_args(&["DEL", key])),
                            7 => drop(client.call_args(&["TC.INVALIDATE", "tag"])),
                            _ => {
                                let value = format!("{number}-{round}-{padding}");
                                client.call_args(&["TC.SET", key, &value, "TAGS", "1", "tag"]);
                            }
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        drop(stops);
        let mut plain = Client::connect(node.resp);
        let truth: HashMap<&str, Reply> =
            keys.iter().map(|key| (key.as_str(), plain.call_args(&["GET", key]))).collect();
        for reader in readers {
            let mut near = reader.join().unwrap();
            // News of removals by tag may take a moment.
            let begun = Instant::now();
            while near.kept.iter().any(|(key, value)| truth[key.as_str()] != *value) {
                assert!(begun.elapsed() < PATIENCE, "a value that is no longer good was kept");
                near.call(&["PING"]);
            }
        }
    });
}

#[test]
fn a_near_cache_never_keeps_an_older_value_when_reads_and_writes_race() {
    race("", 10, 6000);
}

#[test]
fn a_near_cache_never_keeps_an_older_value_of_cold_reads_either() {
    race("memory: {capacity: 1Mi}\nlimits: {requestTimeout: 30s}", 60_000, 1500);
}

// === modes ===

#[test]
fn prefixes_hear_of_keys_that_nobody_has_read() {
    let (_folder, node) = node();
    let (mut some, mut all) = (tracking(&node, "BCAST PREFIX user: PREFIX order:"), tracking(&node, "BCAST"));
    let mut writer = Client::connect(node.resp);
    writer.call("SET user:1 a");
    assert_eq!(some.reply(), invalid(&["user:1"]));
    assert_eq!(all.reply(), invalid(&["user:1"]));
    writer.call("SET other a");
    assert_eq!(all.reply(), invalid(&["other"]));
    nothing_told(&mut some);
    assert_eq!(some.call("CLIENT TRACKING ON BCAST PREFIX new:"), Reply::ok());
    writer.call("DEL new:1 order:1");
    let told = [some.reply()];
    let Reply::Push(items) = &told[0] else { panic!("{told:?}") };
    let Reply::Array(keys) = &items[1] else { panic!("{told:?}") };
    let mut seen = keys.len();
    while seen < 2 {
        let Reply::Push(items) = some.reply() else { panic!("news") };
        let Reply::Array(keys) = &items[1] else { panic!("keys") };
        seen += keys.len();
    }
    nothing_told(&mut some);
}

#[test]
fn a_client_is_spared_the_news_of_its_own_changes_if_it_wants() {
    let (_folder, node) = node();
    let (mut spared, mut all) = (tracking(&node, "NOLOOP"), tracking(&node, ""));
    for change in ["SET k 1", "INCR k", "DEL k"] {
        spared.call("GET k");
        all.call("GET k");
        spared.call(change);
        assert_eq!(all.reply(), invalid(&["k"]), "{change}");
        nothing_told(&mut spared);
    }
    spared.call("GET k");
    all.call("SET k 2");
    assert_eq!(spared.reply(), invalid(&["k"]));
    let mut follower = tracking(&node, "BCAST NOLOOP");
    follower.call("SET k 3");
    nothing_told(&mut follower);
}

#[test]
fn caching_chooses_the_reads_that_count() {
    let (_folder, node) = node();
    let mut writer = Client::connect(node.resp);
    let (mut opt_in, mut opt_out) = (tracking(&node, "OPTIN"), tracking(&node, "OPTOUT"));
    opt_in.call("GET plain");
    assert_eq!(opt_in.call("CLIENT CACHING YES"), Reply::ok());
    opt_in.call("GET kept");
    opt_in.call("GET after");
    assert_eq!(opt_out.call("CLIENT CACHING NO"), Reply::ok());
    opt_out.call("GET plain");
    opt_out.call("GET kept");
    writer.call("MSET plain 1 after 1 kept 1");
    assert_eq!(opt_in.reply(), invalid(&["kept"]));
    assert_eq!(opt_out.reply(), invalid(&["kept"]));
    nothing_told(&mut opt_in);
    nothing_told(&mut opt_out);
}

#[test]
fn a_client_can_ask_what_it_tracks_and_ends_it_when_it_wants() {
    let (_folder, node) = node();
    let info = |client: &mut Client| {
        let info = client.call("CLIENT TRACKINGINFO");
        let Reply::Set(flags) = info.field("flags") else { panic!("{info:?}") };
        let Reply::Array(prefixes) = info.field("prefixes") else { panic!("{info:?}") };
        let words = |items: &[Reply]| items.iter().map(Reply::text).collect::<Vec<_>>().join(" ");
        (words(&flags), info.field("redirect"), words(&prefixes))
    };
    let shown =
        |flags: &str, redirect, prefixes: &str| (flags.to_owned(), Reply::Integer(redirect), prefixes.to_owned());
    let mut client = tracking(&node, "OPTIN NOLOOP");
    assert_eq!(info(&mut client), shown("on optin noloop", 0, ""));
    client.call("CLIENT CACHING YES");
    assert_eq!(info(&mut client), shown("on optin caching-yes noloop", 0, ""));
    assert_eq!(client.call("CLIENT GETREDIR"), Reply::Integer(0));
    assert!(client.call("CLIENT INFO").text().contains(" flags=t "));
    assert_eq!(node.metric("tieredcache_tracking_clients"), Some(1.0));
    assert_eq!(client.call("CLIENT TRACKING OFF"), Reply::ok());
    assert_eq!(info(&mut client), shown("off", -1, ""));
    assert_eq!(client.call("CLIENT GETREDIR"), Reply::Integer(-1));
    assert_eq!(client.call("CLIENT TRACKING ON BCAST PREFIX a PREFIX b"), Reply::ok());
    assert_eq!(info(&mut client), shown("on bcast", 0, "a b"));
    // What can not be pushed is not promised.
    assert!(matches!(client.call("HELLO 2"), Reply::Array(_)));
    assert!(matches!(client.call("HELLO 3"), Reply::Map(_)));
    assert_eq!(info(&mut client), shown("off", -1, ""));
    assert_eq!(client.call("CLIENT TRACKING ON"), Reply::ok());
    client.call("GET k");
    assert_eq!(client.call("RESET"), Reply::Simple("RESET".to_owned()));
    Client::connect(node.resp).call("SET k 1");
    nothing_told(&mut client);
    assert_eq!(node.metric("tieredcache_tracking_clients"), Some(0.0));
    assert_eq!(node.metric("tieredcache_tracking_items"), Some(0.0));
}

#[test]
fn what_can_not_be_tracked_is_refused_with_the_reason() {
    let (_folder, node) = node();
    let mut client = Client::connect(node.resp);
    let refused = client.call("CLIENT TRACKING ON").text();
    assert!(refused.contains("HELLO 3"), "{refused}");
    assert_eq!(client.call("CLIENT TRACKING OFF"), Reply::ok());
    client.call("HELLO 3");
    for (command, text) in [
        ("CLIENT TRACKING", "wrong number of arguments for 'client|tracking'"),
        ("CLIENT TRACKING MAYBE", "syntax error"),
        ("CLIENT TRACKING ON WRONG", "syntax error"),
        ("CLIENT TRACKING ON REDIRECT 1", "REDIRECT is not supported"),
        ("CLIENT TRACKING ON PREFIX a", "PREFIX option requires BCAST"),
        ("CLIENT CACHING YES", "OPTIN or OPTOUT mode enabled"),
    ] {
        let refused = client.call(command).text();
        assert!(refused.contains(text), "{command}: {refused}");
    }
    client.call("CLIENT TRACKING ON OPTIN");
    assert!(client.call("CLIENT CACHING NO").text().contains("only valid when tracking is enabled in OPTOUT mode"));
}

// === bounds ===

#[test]
fn a_client_that_does_not_read_its_news_is_told_to_forget_everything() {
    let (_folder, node) = node();
    let mut client = tracking(&node, "BCAST");
    let mut writer = Client::connect(node.resp);
    // More than the socket's buffers take, of which the client reads nothing meanwhile.
    let name = |number: usize| format!("{number:-<2000}");
    for part in 0..20 {
        let writes: Vec<u8> =
            (0..1000).flat_map(|number| request(&["SET", &name(part * 1000 + number), "v"])).collect();
        assert!(writer.pipeline(&writes, 1000).iter().all(|reply| *reply == Reply::ok()));
    }
    client.send(&request(&["PING"]));
    let (mut keys, mut everything) = (0, 0);
    loop {
        match client.reply() {
            Reply::Push(told) => match &told[1] {
                Reply::Array(some) => keys += some.len(),
                _ => everything += 1,
            },
            reply => break assert_eq!(reply, Reply::Simple("PONG".to_owned())),
        }
    }
    assert!(keys < 20_000 && everything > 0, "{keys} keys and {everything} times everything");
}

#[test]
fn what_is_remembered_of_clients_is_bounded_and_counted() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, "limits: {trackedItemsMax: 1000}"));
    let mut client = tracking(&node, "");
    let reads: Vec<u8> = (0..5000).flat_map(|number| request(&["GET", &format!("k{number}")])).collect();
    client.send(&reads);
    let (mut replies, mut told) = (0, 0);
    while replies < 5000 {
        match client.reply() {
            Reply::Push(items) => {
                let Reply::Array(keys) = &items[1] else { panic!("keys: {items:?}") };
                told += keys.len();
            }
            _ => replies += 1,
        }
    }
    while told < 4000 {
        let Reply::Push(items) = client.reply() else { panic!("news") };
        let Reply::Array(keys) = &items[1] else { panic!("keys: {items:?}") };
        told += keys.len();
    }
    let kept = node.metric("tieredcache_tracking_keys").unwrap();
    assert!(kept <= 1000.0 && kept > 900.0, "{kept}");
    assert_eq!(node.metric("tieredcache_tracking_items_max"), Some(1000.0));
    assert!(node.metric("tieredcache_tracking_invalidations_total{reason=\"evicted\"}").unwrap() >= 4000.0);
}
