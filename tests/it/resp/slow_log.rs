//! The slow log and the measurements of commands, from outside.

use tempfile::tempdir;

use super::{Client, Reply, request};
use crate::program::{Node, config};

fn node(settings: &str) -> (tempfile::TempDir, Node, Client) {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, settings));
    let client = Client::connect(node.resp);
    (folder, node, client)
}

/// The items of a reply.
fn items(reply: Reply) -> Vec<Reply> {
    let Reply::Array(items) = reply else { panic!("an array, not {reply:?}") };
    items
}

/// The arguments of the command that an entry is about, and what is told behind them of what was done.
fn told(entry: &[Reply]) -> (Vec<String>, String) {
    let mut args: Vec<String> = items(entry[3].clone()).iter().map(Reply::text).collect();
    let remark = args.pop().expect("what was done is always told");
    assert!(remark.starts_with("# "), "{remark} behind {args:?}");
    (args, remark)
}

/// The arguments of the command of each entry, the newest first.
fn args(client: &mut Client) -> Vec<Vec<String>> {
    let entries = items(client.call("SLOWLOG GET -1"));
    entries.into_iter().map(|entry| told(&items(entry)).0).collect()
}

#[test]
fn entries_have_the_form_of_redis_and_tell_what_was_done_in_their_last_argument() {
    let (_folder, _node, mut client) = node("slowLog: {threshold: 0s}");
    client.call("CLIENT SETNAME worker");
    client.call("SLOWLOG RESET");
    client.call("SET k v");
    client.call("GET absent");
    let mut entries = items(client.call("SLOWLOG GET 2"));
    let [get, set] = [items(entries.remove(0)), items(entries.remove(0))];
    for entry in [&get, &set] {
        let [Reply::Integer(id), Reply::Integer(at), Reply::Integer(took_us)] = entry[..3] else { panic!("{entry:?}") };
        assert!(id > 0 && at > 1_700_000_000 && (0..60_000_000).contains(&took_us), "{entry:?}");
        assert!(matches!(&entry[4], Reply::Bulk(address) if address.starts_with(b"127.0.0.1:")), "{entry:?}");
        assert_eq!(entry[5], Reply::bulk("worker"));
        assert_eq!(entry.len(), 6);
        let (_, remark) = told(entry);
        let number = remark.strip_prefix("# operation ").and_then(|rest| rest.split_once(' ')?.0.parse::<u64>().ok());
        assert!(number.is_some_and(|number| number > 0), "{remark}");
        let done = if entry == &set { "without I/O" } else { "disk miss " };
        assert!(remark.contains(&format!(" of a client, deadline 1000 ms: {done}")), "{remark}");
    }
    assert_eq!(told(&set).0, ["SET", "k", "v"]);
    assert_eq!(told(&get).0, ["GET", "absent"]);
    assert_eq!(client.call("SLOWLOG GET -2"), Reply::error("ERR count should be greater than or equal to -1"));
    assert_eq!(client.call("SLOWLOG RESET"), Reply::ok());
    // The reset itself is over after it has taken effect.
    assert_eq!(client.call("SLOWLOG LEN"), Reply::Integer(1));
}

#[test]
fn what_was_done_comes_behind_as_many_arguments_as_redis_keeps() {
    let (_folder, _node, mut client) = node("slowLog: {threshold: 0s}");
    client.call(&format!("EXISTS{}", " k".repeat(40)));
    let args = args(&mut client).remove(0);
    assert_eq!((args.len(), args[31].as_str()), (32, "... (10 more arguments)"));
    // Nobody can pass words off as those of the node.
    client.call_args(&["EXISTS", "# operation 1 of a client, deadline 1 ms: redis failed 1us"]);
    let entry = items(items(client.call("SLOWLOG GET 1")).remove(0));
    assert!(told(&entry).1.contains(": disk miss "), "{entry:?}");
}

#[test]
fn the_log_is_bounded_and_of_a_pipeline_each_command_is_kept() {
    let (_folder, node, mut client) = node("slowLog: {threshold: 0s, lengthMax: 3}");
    let requests: Vec<u8> = ["a", "b", "c", "d"].iter().flat_map(|key| request(&["SET", key, "v"])).collect();
    client.pipeline(&requests, 4);
    let keys: Vec<String> = args(&mut client).into_iter().map(|mut args| args.remove(1)).collect();
    assert_eq!(keys, ["d", "c", "b"]);
    // The GET of the log was one more.
    assert_eq!(node.metric("tieredcache_resp_slow_commands_total"), Some(5.0));
}

#[test]
fn a_fast_command_is_not_kept() {
    let (_folder, _node, mut client) = node("slowLog: {threshold: 1h}");
    client.call("SET k v");
    client.call("GET absent");
    assert_eq!(args(&mut client), Vec::<Vec<String>>::new());
}

#[test]
fn passwords_do_not_reach_the_log() {
    let (_folder, _node, mut client) = node("slowLog: {threshold: 0s}");
    client.call("AUTH user secret");
    assert_eq!(args(&mut client)[0], ["AUTH", "(redacted)", "(redacted)"]);
}

#[test]
fn reads_and_times_are_counted_over_all_layers() {
    let (_folder, node, mut client) = node("");
    client.call("SET k v");
    client.call("GET k");
    client.call("MGET k absent");
    client.call("PING");
    let count = |name: &str| node.metric(name);
    for (name, expected) in [
        ("tieredcache_requests_total{result=\"hit\"}", 2.0),
        ("tieredcache_requests_total{result=\"miss\"}", 1.0),
        ("tieredcache_requests_total{result=\"stale\"}", 0.0),
        ("tieredcache_resp_latency_seconds_count{class=\"read\"}", 2.0),
        ("tieredcache_resp_latency_seconds_count{class=\"write\"}", 1.0),
        ("tieredcache_resp_latency_seconds_count{class=\"admin\"}", 1.0),
    ] {
        assert_eq!(count(name), Some(expected), "{name}");
    }
    let info = client.call("INFO stats").text();
    assert!(info.contains("keyspace_hits:2\r\nkeyspace_misses:1\r\n"), "{info}");
    // One batch of 64 has its looks timed.
    (0..128).for_each(|_| drop(client.call("GET k")));
    let timed = count("tieredcache_layer_latency_seconds_count{layer=\"memory\",operation=\"get\"}");
    assert!(timed.is_some_and(|timed| (1.0..=3.0).contains(&timed)), "{timed:?}");
}
