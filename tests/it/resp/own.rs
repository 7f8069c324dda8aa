//! The commands under `TC.`, as any client can send them.

use std::{
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;

use super::{
    client::{Client, Reply},
    node,
};
use crate::program::{Node, config};

fn values(client: &mut Client, keys: &str) -> Vec<Option<String>> {
    let Reply::Array(values) = client.call(&format!("MGET {keys}")) else { panic!("an array") };
    values.into_iter().map(|value| if value == Reply::Null { None } else { Some(value.text()) }).collect()
}

#[test]
fn entries_are_removed_by_any_or_by_all_of_their_tags() {
    let (_folder, _node, mut client) = node();
    assert_eq!(client.call("TC.SET apple 1 TAGS 2 red round"), Reply::ok());
    assert_eq!(client.call("TC.SET brick 2 PX 60000 TAGS 1 red"), Reply::ok());
    assert_eq!(client.call("TC.SET lemon 3 TAGS 2 yellow round"), Reply::ok());
    assert_eq!(client.call("SET plain 4"), Reply::ok());
    assert_eq!(client.call("TC.TAGS apple"), Reply::Array(vec![Reply::bulk("red"), Reply::bulk("round")]));
    assert_eq!((client.call("TC.TAGS plain"), client.call("TC.TAGS none")), (Reply::Array(vec![]), Reply::Null));
    assert_eq!(client.call("TC.INVALIDATEALL red round"), Reply::ok());
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(values(&mut client, "apple brick lemon plain"), [None, some("2"), some("3"), some("4")]);
    assert_eq!(client.call("TC.INVALIDATE round nobody"), Reply::ok());
    assert_eq!(values(&mut client, "apple brick lemon plain"), [None, some("2"), None, some("4")]);
    assert_eq!(client.call("TC.SET apple 5 TAGS 1 round"), Reply::ok());
    assert_eq!(client.call("GET apple"), Reply::bulk("5"), "written after the removal");
}

#[test]
fn info_has_a_line_for_each_layer() {
    let (_folder, _node, mut client) = node();
    client.call("SET k value");
    client.call("GET k");
    client.call("GET absent");
    let text = client.call("INFO layers").text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "# Layers");
    let names: Vec<&str> = lines[1..].iter().filter_map(|line| Some(line.split_once(':')?.0)).collect();
    assert_eq!(names, ["node", "memory", "tagIndex", "writeQueue", "disk"]);
    assert_eq!(lines[1], "node:state=healthy,reason=AsExpected");
    assert!(lines[2].starts_with("memory:state=healthy,entries=1,bytes="), "{text}");
    assert!(lines[2].ends_with(",hits=1,misses=1"), "{text}");
    assert!(client.call("INFO").text().contains("\r\n# Layers\r\n"));
}

#[test]
fn the_way_to_each_cold_layer_is_measured() {
    let (_folder, node, mut client) = node();
    client.call("SET k value EX 600");
    client.call("TC.FLUSH");
    client.call("DEL k");
    client.call("FLUSHALL");
    for (name, expected) in [
        ("tieredcache_write_queue_accepted_total{layer=\"writeQueue\"}", 2.0),
        ("tieredcache_write_queue_lane_entries{layer=\"writeQueue\",to=\"disk\"}", 0.0),
        ("tieredcache_write_queue_lane_oldest_seconds{layer=\"writeQueue\",to=\"disk\"}", 0.0),
        ("tieredcache_write_queue_clears_total{layer=\"writeQueue\",to=\"disk\"}", 1.0),
        ("tieredcache_write_queue_lost_total{layer=\"writeQueue\",to=\"disk\"}", 0.0),
        ("tieredcache_disk_entries_written_total{layer=\"disk\"}", 1.0),
        ("tieredcache_disk_entries_removed_total{layer=\"disk\"}", 1.0),
        ("tieredcache_memory_too_large_total{layer=\"memory\"}", 0.0),
    ] {
        assert_eq!(node.metric(name), Some(expected), "{name}");
    }
}

#[test]
fn removal_by_tag_holds_after_a_kill() {
    let (folder, node, mut client) = node();
    for number in 0..100 {
        client.call(&format!("TC.SET k{number} v TAGS 1 t{}", number % 2));
    }
    assert_eq!(client.call("TC.FLUSH"), Reply::ok());
    assert_eq!(client.call("TC.INVALIDATE t0"), Reply::ok());
    node.signal(Signal::KILL);
    drop(node);
    let node = Node::start(&config(&folder, ""));
    let mut client = Client::connect(node.resp);
    for number in 0..100 {
        let expected = if number % 2 == 0 { Reply::Null } else { Reply::bulk("v") };
        assert_eq!(client.call(&format!("GET k{number}")), expected, "k{number}");
    }
    client.call("TC.SET k0 new TAGS 1 t0");
    assert_eq!(client.call("GET k0"), Reply::bulk("new"));
}

#[test]
fn stale_value_goes_to_all_but_one_reader() {
    let (_folder, _node, mut client) = node();
    assert_eq!(client.call("TC.SET k v PX 1000 STALE 60000"), Reply::ok());
    assert_eq!(client.call("GET k"), Reply::bulk("v"));
    sleep(Duration::from_millis(1050));
    assert_eq!((client.call("EXISTS k"), client.call("PTTL k")), (Reply::Integer(0), Reply::Integer(-2)));
    assert_eq!(client.call("GET k"), Reply::Null, "the one that is to bring a fresh value");
    assert_eq!((client.call("GET k"), client.call("GET k")), (Reply::bulk("v"), Reply::bulk("v")));
    client.call("DEL k");
    assert_eq!((client.call("GET k"), client.call("GET k")), (Reply::Null, Reply::Null), "removed is never stale");
}

#[test]
fn negative_entry_is_absent() {
    let (_folder, _node, mut client) = node();
    client.call("SET k v");
    assert_eq!(client.call_args(&["TC.SET", "k", "", "NEGATIVE"]), Reply::ok());
    assert_eq!((client.call("GET k"), client.call("EXISTS k")), (Reply::Null, Reply::Integer(0)));
    assert_eq!(client.call("SET k v NX"), Reply::ok());
    assert_eq!(client.call("GET k"), Reply::bulk("v"));
}

#[test]
fn explanation_tells_who_answers_and_what_each_layer_has() {
    let (_folder, _node, mut client) = node();
    client.call("HELLO 3");
    client.call("TC.SET k value PX 60000 TAGS 1 red STALE 1000");
    client.call("TC.FLUSH");
    let told = client.call("TC.EXPLAIN k");
    assert_eq!((told.field("key"), told.field("answeredBy")), (Reply::bulk("k"), Reply::bulk("memory")));
    assert_eq!((told.field("origin"), told.field("trust")), (Reply::bulk("client"), Reply::bulk("full")));
    assert!(matches!(told.field("deadlineMs"), Reply::Integer(1..=1_000)), "{told:?}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let Reply::Integer(then) = told.field("now") else { panic!("a number: {told:?}") };
    assert!(now.abs_diff(then.try_into().unwrap()) < 10_000, "{told:?}");
    let Reply::Array(layers) = told.field("layers") else { panic!("an array: {told:?}") };
    let said: Vec<(Reply, Reply)> = layers.iter().map(|layer| (layer.field("layer"), layer.field("outcome"))).collect();
    let bulks = |name, outcome| (Reply::bulk(name), Reply::bulk(outcome));
    assert_eq!(said, [bulks("memory", "hit"), bulks("writeQueue", "miss"), bulks("disk", "hit")]);
    let disk = &layers[2];
    assert_eq!(disk.field("tags"), Reply::Array(vec![Reply::bulk("red")]));
    assert_eq!(disk.field("bytes"), Reply::Integer(5));
    assert!(matches!(disk.field("ttlMs"), Reply::Integer(50_000..=60_000)), "{disk:?}");
    assert!(matches!(disk.field("staleMs"), Reply::Integer(51_000..=61_000)), "{disk:?}");
    assert_eq!(client.call("TC.EXPLAIN none").field("answeredBy"), Reply::bulk("none"));
}

#[test]
fn layers_tell_their_health_and_counters() {
    let (_folder, _node, mut client) = node();
    client.call("HELLO 3");
    client.call("TC.SET k v PX 1 STALE 600000");
    sleep(Duration::from_millis(5));
    client.call("SET l v EX 600");
    client.call("GET k");
    client.call("GET l");
    client.call("TC.FLUSH");
    let Reply::Array(layers) = client.call("TC.LAYERS") else { panic!("an array") };
    let names: Vec<String> = layers.iter().map(|layer| layer.field("layer").text()).collect();
    assert_eq!(names, ["node", "memory", "tagIndex", "writeQueue", "disk"]);
    assert!(layers.iter().all(|layer| layer.field("health") == Reply::bulk("Healthy")));
    let [node, memory, .., disk] = &layers[..] else { panic!("{names:?}") };
    assert_eq!((memory.field("hits"), memory.field("staleHits")), (Reply::Integer(1), Reply::Integer(1)));
    assert_eq!((node.field("hits"), node.field("misses")), (Reply::Integer(1), Reply::Integer(1)), "each read once");
    let Reply::Integer(mean) = disk.field("latency").field("apply").field("meanNs") else { panic!("{disk:?}") };
    assert!((1000..5_000_000_000).contains(&mean), "{disk:?}");
    assert!(matches!(disk.field("latency").field("apply").field("p99Ns"), Reply::Integer(1000..)), "{disk:?}");
    assert!(matches!(disk.field("errors"), Reply::Map(_)), "by kind: {disk:?}");
}

#[test]
fn wrong_options_are_told_with_field_value_and_limit() {
    let (_folder, _node, mut client) = node();
    for (command, error) in [
        ("TC.SET k v TAGS 33 a", "ERR number of TAGS is '33'; it must be 1 to 32"),
        ("TC.SET k v TAGS 0", "ERR number of TAGS is '0'; it must be 1 to 32"),
        ("TC.SET k v TAGS 2 a", "ERR TAGS announces 2 tags, and fewer follow"),
        ("TC.SET k v PX 5 STALE 0", "ERR STALE is '0'; it must be 1 to 2592000000 ms"),
        ("TC.SET k v STALE 5", "ERR STALE begins at the expiry, so it needs EX, PX, EXAT or PXAT"),
        ("TC.SET k v NEGATIVE", "ERR NEGATIVE says that there is no value, so the value must be empty"),
        ("TC.SET k v PX 0", "ERR invalid expire time in 'tc.set' command"),
        ("TC.SET k v KEEPTTL", "ERR syntax error"),
        ("TC.SET k v NX XX", "ERR syntax error"),
        ("TC.INVALIDATE", "ERR wrong number of arguments for 'tc.invalidate' command"),
    ] {
        assert_eq!(client.call(command), Reply::error(error), "{command}");
    }
    let long = "x".repeat(257);
    let error = Reply::error("ERR tag has 257 bytes; a tag has 1 to 256 bytes");
    assert_eq!(client.call(&format!("TC.INVALIDATE {long}")), error);
    assert_eq!(client.call("GET k"), Reply::Null, "nothing was stored");
}

#[test]
fn jitter_shortens_a_life_by_at_most_its_share_and_the_same_for_the_same_key() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(&config(&folder, "freshness: {ttlJitterPercent: 10}"));
    let mut client = Client::connect(node.resp);
    let mut stored = || -> Vec<i64> {
        let life = |number: u32| {
            client.call(&format!("SET k{number} v PX 1000000"));
            let Reply::Integer(life) = client.call(&format!("PTTL k{number}")) else { panic!("a life") };
            life
        };
        (0..50).map(life).collect()
    };
    let (first, again) = (stored(), stored());
    for (number, (life, again)) in first.iter().zip(again).enumerate() {
        assert!((899_000..=1_000_000).contains(life), "k{number}: {life}");
        // Some time passes between a SET and its PTTL; another share would be 33 s away on average.
        assert!(life.abs_diff(again) < 5_000, "k{number}: {life}, and {again} when it is stored again");
    }
    let mut lives: Vec<i64> = first.into_iter().map(|life| life / 1000).collect();
    lives.sort_unstable();
    lives.dedup();
    assert!(lives.len() > 20, "{lives:?}");
}
