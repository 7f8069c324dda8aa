//! A Redis that the operator runs, on a real Kubernetes: it loses its pod and its image, and comes back with its data.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::cluster::REDIS_IMAGE;

use crate::fleet::{Fleet, equal, eventually, pod_ready, process_of};

const READY_WITHIN: Duration = Duration::from_secs(90);
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// Without a disk layer, so that what one node wrote and the other reads has come by Redis.
const OWN: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {mode: Disabled}, redis: {mode: Managed, managed: \
                   {image: IMAGE, memory: 64Mi, storage: 512Mi}}}";

/// With a disk, so that a node that comes back has something that it must not trust.
const WITH_DISK: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 512Mi, retention: {whenScaled: Retain, \
                         whenDeleted: Delete}}, redis: {mode: Managed, managed: {image: IMAGE, memory: 64Mi, storage: 512Mi}}}";

fn with_image(image: &str) -> String {
    OWN.replace("IMAGE", image)
}

fn await_redis(fleet: &Fleet, wanted: &str, reason: Option<&str>, limit: Duration) -> String {
    eventually(&format!("RedisHealthy is {wanted}"), limit, || {
        let (status, seen, message) = fleet.condition("cache", "RedisHealthy")?;
        equal(status.as_str(), wanted).map_err(|status| format!("{status}: {seen}: {message}"))?;
        reason.map_or(Ok(()), |reason| equal(seen.as_str(), reason))?;
        Ok(message)
    })
}

/// Waits until the other node finds by Redis what this one has written.
fn await_value(fleet: &Fleet, node: &str, key: &str) {
    eventually(&format!("{node} finds {key}"), TOLD_WITHIN, || {
        equal(fleet.redis(&format!("{node}.cache-nodes"), &["get", key]).as_str(), "value")
    });
}

#[test]
fn a_redis_that_lost_its_pod_comes_back_with_its_data_and_the_status_tells() {
    let fleet = Fleet::new("own-redis");
    fleet.apply("cache", &with_image(REDIS_IMAGE));
    fleet.await_ready("cache", 2, READY_WITHIN);
    eventually("Redis runs", READY_WITHIN, || pod_ready(&fleet.get("pod/cache-redis-0")?));
    await_redis(&fleet, "True", None, READY_WITHIN);
    let keys = ["after-pod", "after-image"];
    for key in keys {
        assert_eq!(fleet.redis("cache-0.cache-nodes", &["set", key, "value", "ex", "3600"]), "OK");
    }
    assert_eq!(fleet.redis("cache-0.cache-nodes", &["tc.flush"]), "OK");
    let refused = fleet.redis("cache-redis", &["ping"]);
    assert!(refused.contains("NOAUTH"), "nobody without the password: {refused}");

    let uid = fleet.pod_uid("cache-redis-0");
    let killed = Instant::now();
    fleet.kubectl(&["delete", "pod", "cache-redis-0", "--grace-period=0", "--force"]);
    await_value(&fleet, "cache-1", keys[0]);
    println!("found again {:.1} s after the pod was killed", killed.elapsed().as_secs_f64());
    assert_ne!(fleet.pod_uid("cache-redis-0"), uid, "the value was there without Redis");

    fleet.apply("cache", &with_image("localhost/redis:none"));
    let message = await_redis(&fleet, "False", Some("ImageUnavailable"), TOLD_WITHIN);
    assert!(message.contains("cache-redis-0") && message.contains("spec.redis.managed.image"), "{message}");
    assert_eq!(fleet.condition("cache", "Ready").expect("a condition").0, "True", "nodes go on serving");
    assert_eq!(fleet.redis("cache-0.cache-nodes", &["set", "meanwhile", "value"]), "OK");

    fleet.apply("cache", &with_image(REDIS_IMAGE));
    await_redis(&fleet, "True", None, READY_WITHIN);
    await_value(&fleet, "cache-1", keys[1]);
    await_value(&fleet, "cache-1", "meanwhile");
}

/// Whether clients of the Service are sent to this pod.
fn is_given_clients(fleet: &Fleet, pod: &str) -> Result<bool, String> {
    let slices =
        fleet.try_kubectl(&["get", "endpointslices", "-l", "kubernetes.io/service-name=cache", "-o", "json"])?;
    let slices: Value = serde_json::from_str(&slices).map_err(|error| error.to_string())?;
    let endpoints = slices["items"].as_array().into_iter().flatten();
    let mut endpoints = endpoints.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    Ok(endpoints.any(|found| found["targetRef"]["name"] == pod && found["conditions"]["ready"] == true))
}

/// What a node waits for before it is ready, in its own words.
fn waits_for(fleet: &Fleet, pod: &str) -> Result<String, String> {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}:9090/proxy/v1/layers", fleet.namespace);
    let report = fleet.try_kubectl(&["get", "--raw", &path])?;
    let report: Value = serde_json::from_str(&report).map_err(|error| error.to_string())?;
    Ok(report["waitingFor"][0].as_str().unwrap_or_default().to_owned())
}

fn signal(process: u32, signal: &str) {
    let sent = Command::new("kill").args([signal, &process.to_string()]).status().expect("kill is a program");
    assert!(sent.success(), "kill {signal} {process}");
}

#[test]
fn a_node_that_does_not_know_yet_what_changed_while_it_was_away_is_given_no_clients() {
    let fleet = Fleet::new("caught-up");
    fleet.apply("cache", &WITH_DISK.replace("IMAGE", REDIS_IMAGE));
    fleet.await_ready("cache", 2, READY_WITHIN);
    await_redis(&fleet, "True", None, READY_WITHIN);
    assert_eq!(fleet.redis("cache-1.cache-nodes", &["set", "key", "old", "ex", "3600"]), "OK");
    assert_eq!(fleet.redis("cache-1.cache-nodes", &["tc.flush"]), "OK");
    assert!(is_given_clients(&fleet, "cache-1").expect("the slices are read"));
    fleet.kubectl(&["scale", "tc/cache", "--replicas=1"]);
    fleet.await_ready("cache", 1, READY_WITHIN);
    assert_eq!(fleet.redis("cache-0.cache-nodes", &["del", "key"]), "1");

    let redis = process_of(&fleet.pod_uid("cache-redis-0"), "redis-server").expect("Redis runs");
    signal(redis, "-STOP");
    fleet.kubectl(&["scale", "tc/cache", "--replicas=2"]);
    let waiting = eventually("cache-1 waits for the log", READY_WITHIN, || {
        let waiting = waits_for(&fleet, "cache-1")?;
        if waiting.contains("invalidation log") { Ok(waiting) } else { Err(waiting) }
    });
    let given = is_given_clients(&fleet, "cache-1");
    signal(redis, "-CONT");
    println!("cache-1: {waiting}");
    assert_eq!(given, Ok(false), "{waiting}");

    fleet.await_ready("cache", 2, READY_WITHIN);
    eventually("cache-1 is given clients", TOLD_WITHIN, || equal(is_given_clients(&fleet, "cache-1")?, true));
    assert_eq!(fleet.redis("cache-1.cache-nodes", &["get", "key"]), "", "its disk still had it");
}
