//! A Redis that the operator runs, on a real Kubernetes: it loses its pod and its image, and comes back with its data.

use std::time::{Duration, Instant};

use tests::cluster::REDIS_IMAGE;

use crate::fleet::{Fleet, equal, eventually, pod_ready};

const READY_WITHIN: Duration = Duration::from_secs(90);
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// Without a disk layer, so that what one node wrote and the other reads has come by Redis.
const OWN: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {mode: Disabled}, redis: {mode: Managed, managed: \
                   {image: IMAGE, memory: 64Mi, storage: 512Mi}}}";

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
