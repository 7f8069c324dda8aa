//! Layers that fail on a real Kubernetes: what the status says, how soon, and that it heals.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::fleet::{Fleet, equal, eventually, processes_of};
use crate::story::await_events;
use crate::turn::{beside, calm};

const READY_WITHIN: Duration = Duration::from_secs(120);
/// Until the status says that a volume is full, and that it is not any more: the node's own patience of 2 s and 10 s,
/// and the operator's look every 5 to 8 s.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// The storage driver and the kubelet grow a volume within this.
const GROWS_WITHIN: Duration = Duration::from_secs(90);
const WHOLE_DISK: &str = "{memory: {capacity: 64Mi}, disk: {size: 512Mi, retention: {whenDeleted: Delete}}}";

/// Waits until the condition of this layer has the status, and gives reason and message.
fn await_layer(fleet: &Fleet, kind: &str, wanted: &str, limit: Duration) -> (String, String) {
    eventually(&format!("{kind} is {wanted}"), limit, || {
        let (status, reason, message) = fleet.condition("cache", kind)?;
        equal(status.as_str(), wanted).map_err(|seen| format!("{seen}: {reason}: {message}"))?;
        Ok((reason, message))
    })
}

/// Fills the volume of the only node from outside, all but a hundredth of it, by a file of this name.
fn fill(fleet: &Fleet, name: &str) -> String {
    let folder = format!("/proc/{}/{}/var/lib/tieredcache", fleet.node_process("cache-0"), "root");
    let volume = rustix::fs::statvfs(folder.as_str()).expect("the volume is mounted in the pod");
    let bytes = volume.f_frsize * volume.f_bavail.saturating_sub(volume.f_blocks / 100);
    let file = format!("{folder}/{name}");
    let filled = Command::new("fallocate").args(["-l", &bytes.to_string(), &file]).status().expect("fallocate runs");
    assert!(filled.success(), "{bytes} bytes");
    file
}

#[test]
fn a_full_volume_is_told_and_heals_after_growth_and_after_reclaim() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "layer-disk");
    fleet.apply("cache", WHOLE_DISK);
    fleet.await_ready("cache", 1, READY_WITHIN);
    await_layer(&fleet, "DiskHealthy", "True", READY_WITHIN);
    let host = "cache-0.cache-nodes";
    assert_eq!(fleet.redis(host, &["set", "before", "value"]), "OK");
    let uid = fleet.pod_uid("cache-0");

    fill(&fleet, "ballast");
    let (reason, message) = await_layer(&fleet, "DiskHealthy", "False", TOLD_WITHIN);
    println!("{reason}: {message}");
    assert_eq!(reason, "DiskFull");
    assert_eq!(fleet.condition("cache", "Degraded").expect("a condition").1, "DiskDegraded");
    assert_eq!(fleet.condition("cache", "Ready").expect("a condition").0, "True", "nodes go on serving");
    assert_eq!(fleet.redis(host, &["get", "before"]), "value");
    assert_eq!(fleet.redis(host, &["set", "meanwhile", "value"]), "OK");

    fleet.apply("cache", &WHOLE_DISK.replace("512Mi", "1Gi"));
    eventually("the volume has grown", GROWS_WITHIN, || {
        let claim = fleet.get("pvc/data-cache-0")?;
        equal(claim["status"]["capacity"]["storage"].as_str(), Some("1Gi"))
    });
    await_layer(&fleet, "DiskHealthy", "True", TOLD_WITHIN);
    assert_eq!(fleet.pod_uid("cache-0"), uid, "growth restarts no node");

    let ballast = fill(&fleet, "more-ballast");
    assert_eq!(await_layer(&fleet, "DiskHealthy", "False", TOLD_WITHIN).0, "DiskFull");
    std::fs::remove_file(ballast).expect("the file is there");
    await_layer(&fleet, "DiskHealthy", "True", TOLD_WITHIN);
    assert_eq!(fleet.redis(host, &["get", "meanwhile"]), "value");
    await_events(&fleet, "cache", &["LayerUnhealthy", "GrowingVolume", "LayerRecovered"]);
}

/// On a busy machine a Redis that is back must not be taken for a slow one.
const SHARING: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenDeleted: Delete}}, redis: \
                       {mode: External, timeout: 500ms, external: {endpoints: ['redis:6379']}}}";
/// From the death of Redis to the status that says so, and from its return to the status that says that.
const ILL_WITHIN: Duration = Duration::from_secs(15);
const WELL_WITHIN: Duration = Duration::from_secs(30);

/// Since when the status has the Redis layer as it is, and how it is.
fn redis_layer(fleet: &Fleet) -> (String, String) {
    let object = fleet.get("tc/cache").expect("the cache is there");
    let layers = object["status"]["layers"].as_array().cloned().unwrap_or_default();
    let layer = layers.iter().find(|layer| layer["name"] == "Redis").cloned().unwrap_or_default();
    let text = |field: &str| layer[field].as_str().unwrap_or_default().to_owned();
    (text("health"), text("since"))
}

#[test]
fn the_status_says_within_15_s_that_redis_is_dead_and_within_30_s_that_it_is_back() {
    let turn = calm();
    let fleet = Fleet::on_quiet_machine(&turn, "layer-redis");
    fleet.start_redis();
    fleet.apply("cache", SHARING);
    fleet.await_ready("cache", 2, READY_WITHIN);
    await_layer(&fleet, "RedisHealthy", "True", READY_WITHIN);
    assert_eq!(fleet.redis("cache-0.cache-nodes", &["set", "shared", "value"]), "OK");
    eventually("the other node finds it in Redis and keeps it in memory", Duration::from_secs(30), || {
        equal(fleet.redis("cache-1.cache-nodes", &["get", "shared"]).as_str(), "value")?;
        let told = fleet.redis("cache-1.cache-nodes", &["tc.explain", "shared"]);
        if told.contains("answeredBy\nmemory") { Ok(()) } else { Err(told) }
    });
    let (_, well_since) = redis_layer(&fleet);

    let uid = fleet.pod_uid("redis");
    fleet.kubectl(&["delete", "pod", "redis", "--grace-period=0", "--force"]);
    eventually("Redis is dead", READY_WITHIN, || equal(processes_of(&uid, "redis-server")?, Vec::new()));
    let died = Instant::now();
    let (reason, message) = await_layer(&fleet, "RedisHealthy", "False", ILL_WITHIN);
    println!("told after {:.1} s: {reason}: {message}", died.elapsed().as_secs_f64());
    assert!(reason == "Unreachable" || reason == "Slow", "{reason}: {message}");
    assert!(message.starts_with("cache-"), "the node is named: {message}");
    let (health, ill_since) = redis_layer(&fleet);
    assert!(health == "Unavailable" && ill_since > well_since, "{health} since {ill_since}, well since {well_since}");
    assert_eq!(fleet.condition("cache", "Degraded").expect("a condition").1, "RedisUnavailable");
    assert_eq!(fleet.condition("cache", "Ready").expect("a condition").0, "True", "nodes go on serving");
    for node in ["cache-0.cache-nodes", "cache-1.cache-nodes"] {
        assert_eq!(fleet.redis(node, &["get", "shared"]), "value");
        assert_eq!(fleet.redis(node, &["set", "meanwhile", "value"]), "OK");
    }

    fleet.start_redis();
    let back = Instant::now();
    await_layer(&fleet, "RedisHealthy", "True", WELL_WITHIN);
    println!("well after {:.1} s", back.elapsed().as_secs_f64());
    assert!(redis_layer(&fleet).1 > ill_since);
}
