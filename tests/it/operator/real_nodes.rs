//! What real nodes report, in the words of the status.

use serde_json::{Value, json};
use tests::{ports::free_port, redis_server::Server};

use super::{Lab, message, says};
use crate::redis::makes::Make;

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
