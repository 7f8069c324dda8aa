//! A whole node with L1, the write queue, a real Redis as L2 and RocksDB as L3, and what happens when one of them is gone.

mod away;
mod batch;
pub(crate) mod network;
mod order;
mod overflow;
mod secrets;
mod slow;
mod together;
mod trails;

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::{TempDir, tempdir};
use tests::redis_server::Server;

use crate::{
    program::{Node, PATIENCE, Stop, config_of_disk, eventually, output_within},
    resp::client::{Client, Reply},
};

struct Pipeline {
    folder: TempDir,
    redis: Server,
    node: Node,
}

// === impl Pipeline ===

impl Pipeline {
    fn start(more: &str) -> Self {
        Self::start_with(Server::start(&[]), more)
    }

    fn start_with(redis: Server, more: &str) -> Self {
        let folder = tempdir().unwrap();
        let node = start(&folder, &redis, more);
        Self { folder, redis, node }
    }

    fn start_without_disk(redis: Server, more: &str) -> Self {
        let folder = tempdir().unwrap();
        let node = start_without_disk(&folder, &redis, more);
        Self { folder, redis, node }
    }

    fn client(&self) -> Client {
        Client::connect(self.node.resp)
    }

    /// Restarts the node after a kill -9; with an empty volume if asked for.
    fn restart(&mut self, empty: bool, more: &str) {
        self.node.signal(Signal::KILL);
        self.node.wait();
        if empty {
            fs::remove_dir_all(self.folder.path().join("data")).unwrap();
        }
        self.node = start(&self.folder, &self.redis, more);
    }

    /// Which parts said what about the key, in read order.
    fn outcomes(&self, key: &str) -> Vec<(String, String)> {
        let mut client = self.client();
        client.call("HELLO 3");
        let told = client.call(&format!("TC.EXPLAIN {key}"));
        let Reply::Array(layers) = told.field("layers") else { panic!("an array: {told:?}") };
        layers.iter().map(|layer| (layer.field("layer").text(), layer.field("outcome").text())).collect()
    }

    /// Waits until the node knows what other nodes have changed.
    fn is_ready(&self) {
        eventually("ready", || self.node.admin("GET", "/readyz").status == 200);
    }

    /// Waits until Redis can be used.
    fn redis_is_used(&self) {
        eventually("Redis takes part", || {
            self.outcomes("probe")
                .iter()
                .any(|(layer, outcome)| layer == "redis" && outcome != "not_handled" && outcome != "failed")
        });
    }
}

fn start(folder: &TempDir, redis: &Server, more: &str) -> Node {
    let redis = format!("redis: {{mode: External, endpoints: ['{}'], timeout: 500ms{more}}}", redis.address());
    // What does not reach a Redis that is away is not to be waited for.
    let stop = "shutdown: {drainTimeout: 2s}\nlimits: {requestTimeout: 10s}";
    Node::start(&config_of_disk(folder, "minTtl: 1s", &format!("{redis}\n{stop}")))
}

fn start_without_disk(folder: &TempDir, redis: &Server, more: &str) -> Node {
    let redis = format!("redis: {{mode: External, endpoints: ['{}'], timeout: 500ms{more}}}", redis.address());
    Node::start(&config_of_disk(folder, "mode: Disabled", &format!("{redis}\nshutdown: {{drainTimeout: 2s}}")))
}

#[test]
fn a_write_reaches_both_cold_layers_and_a_restart_with_an_empty_volume_reads_it_from_redis() {
    let mut pipeline = Pipeline::start("");
    pipeline.redis_is_used();
    pipeline.is_ready();
    let mut client = pipeline.client();
    client.call("TC.SET k v PX 600000 TAGS 1 red");
    client.call("SET forever x");
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    let hits = |outcomes: &[(String, String)]| -> Vec<String> {
        outcomes.iter().filter(|(_, outcome)| outcome == "hit").map(|(layer, _)| layer.clone()).collect()
    };
    assert_eq!(hits(&pipeline.outcomes("k")), ["memory", "redis", "disk"]);
    pipeline.restart(true, "");
    pipeline.redis_is_used();
    // Until then it does not know whether what has tags was removed.
    pipeline.is_ready();
    assert_eq!(hits(&pipeline.outcomes("k")), ["redis"]);
    let mut client = pipeline.client();
    assert_eq!(client.call("GET k"), Reply::bulk("v"));
    let Reply::Integer(life) = client.call("PTTL k") else { panic!("a life") };
    assert!((540_000..600_000).contains(&life), "the remaining life, not a fresh one: {life}");
    eventually("it is promoted into the layers that missed it", || {
        hits(&pipeline.outcomes("k")) == ["memory", "redis", "disk"]
    });
    eventually("Redis is told", || client.call("TC.INVALIDATE red") == Reply::ok());
    pipeline.restart(true, "");
    pipeline.redis_is_used();
    pipeline.is_ready();
    let mut client = pipeline.client();
    assert_eq!(client.call("GET k"), Reply::Null, "Redis remembers the removal by tag");
    assert_eq!(client.call("GET forever"), Reply::bulk("x"));
}

#[test]
fn a_removal_is_gone_from_every_layer() {
    let mut pipeline = Pipeline::start("");
    pipeline.redis_is_used();
    let mut client = pipeline.client();
    client.call("SET k v");
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    assert_eq!(client.call("DEL k"), Reply::Integer(1));
    eventually("it is acknowledged", || client.call("TC.DEL k") == Reply::ok());
    let mut redis = Client::connect(pipeline.redis.address());
    assert_eq!(redis.call("KEYS *:e:*"), Reply::Array(vec![]), "acknowledged only once Redis has it");
    client.call("SET a 1");
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    eventually("Redis is told", || client.call("FLUSHALL") == Reply::ok());
    client.call("SET b 2");
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    pipeline.restart(true, "");
    pipeline.redis_is_used();
    let mut client = pipeline.client();
    assert_eq!((client.call("GET k"), client.call("GET a")), (Reply::Null, Reply::Null));
    assert_eq!(client.call("GET b"), Reply::bulk("2"));
}

#[test]
fn a_dead_redis_is_a_miss_that_costs_nothing_and_it_is_used_again_when_it_is_back() {
    // Of memory there is less than the values take, so that most of them are read from disk.
    let stale = "}\nbackplane: {whenDisconnected: ServeStale}\nmemory: {capacity: 1Mi";
    let mut pipeline = Pipeline::start(stale);
    pipeline.redis_is_used();
    pipeline.is_ready();
    let mut client = pipeline.client();
    let large = "x".repeat(20_000);
    for number in 0..200 {
        client.call(&format!("SET k{number} {large}"));
    }
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    pipeline.redis.kill();
    client.call("GET k0");
    let begun = Instant::now();
    for number in 0..200 {
        assert_eq!(client.call(&format!("GET k{number}")), Reply::bulk(&large), "{number}, from disk");
        assert_eq!(client.call(&format!("SET n{number} v")), Reply::ok());
    }
    // With Redis waited for each time it would be a minute.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(client.call("DEL k1"), Reply::Integer(1), "a removal does not wait for what is away");
    pipeline.redis.restart();
    pipeline.redis_is_used();
    eventually("Redis has all writes", || client.call("TC.FLUSH") == Reply::ok());
    // A Redis that comes back empty is the beginning of a new log, of which the node may not know everything yet.
    // One of the first writes may have been on its way to Redis when it died, and is removed where nobody can say whether it
    // arrived.
    eventually("what was written meanwhile is there, and what was removed is not", || {
        assert_eq!(client.call("GET k1"), Reply::Null);
        client.call("GET n150") == Reply::bulk("v")
    });
    eventually("Redis has what was written while it was away", || {
        pipeline.outcomes("n150").iter().any(|(layer, outcome)| layer == "redis" && outcome == "hit")
    });
}

#[test]
fn a_frozen_redis_never_brings_an_overwritten_or_removed_value_back() {
    let pipeline = Pipeline::start("");
    pipeline.redis_is_used();
    let mut client = pipeline.client();
    for number in 0..100 {
        client.call(&format!("SET k{number} old"));
    }
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    pipeline.redis.freeze();
    for number in 0..100 {
        let change = if number % 2 == 0 { format!("SET k{number} new") } else { format!("DEL k{number}") };
        let reply = client.call(&change);
        assert!(!matches!(reply, Reply::Error(_)), "{change}: {reply:?}");
    }
    pipeline.redis.thaw();
    pipeline.redis_is_used();
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    for number in 0..100 {
        let expected = if number % 2 == 0 { Reply::bulk("new") } else { Reply::Null };
        assert_eq!(client.call(&format!("GET k{number}")), expected, "k{number}");
    }
    eventually(
        "the removed are gone from Redis, too",
        || matches!(Client::connect(pipeline.redis.address()).call("KEYS *:e:*"), Reply::Array(keys) if keys.len() == 50),
    );
}

#[test]
fn what_redis_has_evicted_is_filled_again_by_promotion() {
    let mut pipeline = Pipeline::start("");
    pipeline.redis_is_used();
    let mut client = pipeline.client();
    pipeline.is_ready();
    client.call("SET k v");
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    Client::connect(pipeline.redis.address()).call("DEL {tc:local}:e:k");
    pipeline.restart(false, "");
    pipeline.redis_is_used();
    pipeline.is_ready();
    let mut client = pipeline.client();
    assert_eq!(client.call("GET k"), Reply::bulk("v"));
    eventually("Redis has it", || {
        pipeline.outcomes("k").iter().any(|(layer, outcome)| layer == "redis" && outcome == "hit")
    });
}

#[test]
fn a_write_through_is_in_redis_when_it_is_acknowledged() {
    let pipeline = Pipeline::start(", writeMode: WriteThrough");
    pipeline.redis_is_used();
    let mut client = pipeline.client();
    let mut redis = Client::connect(pipeline.redis.address());
    let mut entries = || match redis.call("KEYS *:e:*") {
        Reply::Array(keys) => keys.len(),
        other => panic!("keys: {other:?}"),
    };
    for number in 0..50 {
        assert_eq!(client.call(&format!("SET k{number} v")), Reply::ok());
        assert_eq!(entries(), number + 1);
    }
    assert_eq!(client.call("INCR n"), Reply::Integer(1));
    assert_eq!(entries(), 51);
}
