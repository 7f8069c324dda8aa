//! What real nodes report, in the words of the status, and what they do with the configuration that they are given.

use std::{fs, iter::successors};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use tests::{ports::free_port, redis_server::Server};

use super::{Lab, message, says};
use crate::{
    api::rest,
    program::{Node, command, eventually, run},
    redis::makes::Make,
    resp::client::{Client, Reply},
};

const NOT_ADMITTED: &str = "tieredcache_disk_not_written_total{layer=\"disk\",reason=\"admission\"}";
const WRITTEN_BYTES: &str = "tieredcache_disk_entry_bytes_total{layer=\"disk\"}";

fn spec(port: u16) -> Value {
    json!({
        "disk": {"mode": "Disabled"},
        "backplane": {"whenDisconnected": "Miss"},
        "redis": {
            "mode": "External",
            "timeout": "1s",
            "external": {"endpoints": [format!("127.0.0.1:{port}")]},
        },
    })
}

#[test]
fn each_way_in_which_a_redis_is_of_no_use_has_its_reason_in_the_status() {
    let lab = Lab::new("redis-reasons");
    lab.kubelet.run_nodes();
    let _operator = lab.operator().start();
    let locked = Server::start(&["--requirepass", "right"]);
    let evicting = Server::start(&["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]);
    let old = Make::OldRedis.start(&[]);
    let mut with_password = spec(locked.port);
    with_password["redis"]["external"]["credentialsSecretRef"] = json!({"name": "users"});
    for (name, spec, reason, words) in [
        ("absent", spec(free_port()), "Unreachable", "127.0.0.1"),
        ("locked", with_password, "WrongPassword", "password"),
        ("old", spec(old.port), "TooOld", "Redis 7.0"),
        ("evicting", spec(evicting.port), "EvictsAll", "volatile-lru"),
    ] {
        lab.apply(name, spec);
        let cache = lab.until(name, "RedisHealthy", &format!("False {reason}"));
        let text = message(&cache, "RedisHealthy");
        assert!(text.starts_with(&format!("{name}-0: ")) && text.contains(words), "{name}: {text}");
        let health = if reason == "EvictsAll" { "Degraded" } else { "Unavailable" };
        let cache = lab.until(name, "Degraded", &format!("True Redis{health}"));
        assert_eq!(says(&cache, "Ready"), "True AllNodesReady", "it is served without Redis");
        let layers = cache["status"]["layers"].as_array().expect("layers");
        let redis = layers.iter().find(|layer| layer["name"] == "Redis").expect("Redis is a layer");
        assert_eq!((redis["health"].as_str(), redis["reason"].as_str()), (Some(health), Some(reason)));
    }
    // What they can not follow they do not trust; a Redis that works is followed all the same.
    let absent = lab.until("absent", "BackplaneHealthy", "False CatchingUp");
    let holds = "What holds: on absent-0 reads and writes go on with memory and disk; what only other nodes wrote is a \
                 miss; on absent-0 what memory and disk hold is answered as if absent until";
    assert!(message(&absent, "Degraded").contains(holds), "{}", message(&absent, "Degraded"));
    lab.until("evicting", "BackplaneHealthy", "True AsExpected");
}

#[test]
fn a_fence_is_told_with_what_it_means_and_so_is_its_end() {
    let lab = Lab::new("fence");
    lab.kubelet.run_nodes();
    let _operator = lab.operator().start();
    let redis = Server::start(&[]);
    let mut spec = spec(redis.port);
    spec["backplane"] = json!({"serveStaleFor": "1h"});
    lab.apply("sessions", spec);
    lab.until_ready("sessions");
    let well = lab.until("sessions", "BackplaneHealthy", "True AsExpected");
    let promise =
        "invalidations reach every node within 250 ms; a node that is cut off stops trusting its copies after 3s";
    for kind in ["BackplaneHealthy", "Degraded"] {
        assert!(message(&well, kind).contains(promise), "{}", message(&well, kind));
    }
    redis.freeze();
    let fenced = lab.until("sessions", "BackplaneHealthy", "False Fenced");
    let stale = "values that may be up to 1h3s old are served, counted as stale";
    assert!(message(&fenced, "Degraded").contains(stale), "{}", message(&fenced, "Degraded"));
    let node = &fenced["status"]["nodes"][0];
    assert!(node["message"].as_str().is_some_and(|text| text.contains(stale)), "{node}");
    assert_eq!(says(&fenced, "Ready"), "True AllNodesReady");
    redis.thaw();
    lab.until("sessions", "BackplaneHealthy", "True AsExpected");
    lab.until("sessions", "Degraded", "False AsExpected");
}

/// A node with the configuration that the operator has made for this cache, on ports and a volume of its own; and what the
/// program makes of the file.
fn started(lab: &Lab, cache: &str) -> (TempDir, Node, String) {
    let selector = format!("labelSelector=app.kubernetes.io/instance%3D{cache}");
    let found = rest().list(&format!("{}?{selector}", lab.path("/api/v1", "configmaps")));
    assert_eq!(found.len(), 1, "{found:?}");
    let folder = tempdir().unwrap();
    let text = found[0]["data"]["config.yaml"].as_str().expect("a file");
    let text = text.replace("0.0.0.0:6379", "127.0.0.1:0").replace("0.0.0.0:9090", "127.0.0.1:0");
    let text = text.replace("/var/lib/tieredcache", folder.path().to_str().expect("a plain name"));
    let file = folder.path().join("config.yaml");
    fs::write(&file, text).unwrap();
    let checked = run(&["check-config", file.to_str().expect("a plain name")]);
    let node = Node::start_by(command().arg("--config").arg(&file).env("NODE_NAME", format!("{cache}-0")));
    let name = found[0]["metadata"]["name"].as_str().expect("a name");
    assert_eq!(node.report()["configRevision"], name.rsplit('-').next().expect("a hash"), "it runs this one");
    (folder, node, checked.out)
}

#[test]
fn a_node_reads_its_layers_in_the_order_of_the_spec() {
    let lab = Lab::new("read-order");
    let _operator = lab.operator().start();
    // A layer that is away has its place all the same.
    let mut spec = spec(free_port());
    spec["disk"] = json!({});
    spec["readOrder"] = json!(["Disk", "Redis"]);
    lab.apply("catalogue", spec);
    lab.until_ready("catalogue");
    let (_folder, node, _) = started(&lab, "catalogue");
    let mut client = Client::connect(node.resp);
    client.call("HELLO 3");
    let Reply::Array(layers) = client.call("TC.EXPLAIN k").field("layers") else { panic!("an array") };
    let parts: Vec<String> = layers.iter().map(|layer| layer.field("layer").text()).collect();
    assert_eq!(parts, ["memory", "writeQueue", "disk", "redis"]);
}

/// Digits at random, of which each carries four bits: a half is left of them by a code for digits, and nearly all of them
/// by a search for repetitions (xorshift64, Marsaglia 2003).
fn digits(count: usize) -> String {
    let next = |state: &u64| {
        let state = state ^ (state << 13);
        let state = state ^ (state >> 7);
        Some(state ^ (state << 17))
    };
    successors(Some(0x9e37_79b9_7f4a_7c15), next).take(count / 16).map(|word| format!("{word:016x}")).collect()
}

#[test]
fn what_a_spec_says_of_values_and_their_lives_holds_on_a_node_with_its_configuration() {
    let lab = Lab::new("settings");
    let _operator = lab.operator().start();
    let spec = json!({
        "disk": {"maxTtl": "10s", "minTtl": "0s", "admission": "SecondHit"},
        "compression": {"algorithm": "Zstd"},
        "writeQueue": {"overflow": "DropOldest"},
        "freshness": {"ttlJitterPercent": 50},
    });
    lab.apply("catalogue", spec);
    lab.until_ready("catalogue");
    let (_folder, node, checked) = started(&lab, "catalogue");
    // What it does then is tested where the queue is.
    assert!(checked.contains("overflow: DropOldest"), "{checked}");

    let number = |name: &str| node.metric(name).expect("always there");
    let mut client = Client::connect(node.resp);
    let text = digits(20_000);
    let mut store = || {
        assert_eq!(client.call(&format!("SET k {text}")), Reply::ok());
        node.flushed();
    };
    store();
    assert_eq!((number(NOT_ADMITTED), number(WRITTEN_BYTES)), (1.0, 0.0), "seen for the first time");
    store();
    // Lz4 would leave more than nine tenths of it.
    let written = number(WRITTEN_BYTES);
    assert!(written > 9_000.0 && written < 12_000.0, "{written} bytes of {}", text.len());

    client.call("HELLO 3");
    let mut on_disk = || {
        let Reply::Array(layers) = client.call("TC.EXPLAIN k").field("layers") else { panic!("an array") };
        let disk = layers.into_iter().find(|layer| layer.field("layer").text() == "disk").expect("there is one");
        disk.field("outcome").text()
    };
    assert_eq!(on_disk(), "hit");
    eventually("the disk keeps it no longer", || on_disk() == "miss");
    assert_eq!(client.call("GET k"), Reply::bulk(&text), "memory does");

    let lives = (0..10).map(|key| {
        assert_eq!(client.call(&format!("SET j{key} v EX 1000")), Reply::ok());
        let Reply::Integer(left_ms) = client.call(&format!("PTTL j{key}")) else { panic!("a life") };
        left_ms
    });
    let lives: Vec<i64> = lives.collect();
    assert!(lives.iter().all(|left_ms| (440_000..=1_000_000).contains(left_ms)), "{lives:?}");
    assert!(lives.iter().any(|left_ms| *left_ms < 900_000), "all live as long as was asked: {lives:?}");
}
