//! A Redis of a cache's own: made, repaired, switched off.

use serde_json::{Value, json};

use super::{Lab, rest, within};

fn redis_set(lab: &Lab) -> Option<Value> {
    rest::get(&lab.path("/apis/apps/v1", "statefulsets/sessions-redis"))
}

fn secret(lab: &Lab) -> Option<Value> {
    rest::get(&lab.path("/api/v1", "secrets/sessions-redis"))
}

fn redis_pod(lab: &Lab) -> Option<Value> {
    rest::get(&lab.path("/api/v1", "pods/sessions-redis-0")).map(|pod| pod["metadata"]["uid"].clone())
}

#[test]
fn a_redis_of_its_own_is_made_and_goes_with_its_volume_once_no_node_uses_it() {
    let lab = Lab::new("own-redis");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2, "redis": {"mode": "Managed"}}));
    let cache = lab.until_ready("sessions");
    assert_eq!(cache["status"]["readyReplicas"], 2, "Redis is not counted as a node");
    let uid = &cache["metadata"]["uid"];
    let set = redis_set(&lab).expect("Redis is made");
    let password = secret(&lab).expect("its password is made");
    for object in [&set, &password] {
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], *uid, "{object}");
    }
    let claim = lab.path("/api/v1", "persistentvolumeclaims/data-sessions-redis-0");
    within(30, "the claim of Redis", || rest::get(&claim));
    // Which Secrets there are, or what they hold, it never asks.
    let writes = lab.writes();
    let of_secrets: Vec<&String> = writes.iter().filter(|write| write.contains("secrets")).collect();
    assert_eq!(of_secrets, ["create secrets/sessions-redis"]);

    lab.edit("sessions", &json!({"redis": {"mode": "Disabled"}}));
    lab.until_ready("sessions");
    within(30, "Redis to go", || redis_set(&lab).is_none().then_some(()));
    let service = lab.path("/api/v1", "services/sessions-redis");
    within(30, "its Service to go", || rest::get(&service).is_none().then_some(()));
    // The garbage collector learns of a new kind of owner within half a minute.
    within(90, "its volume to go", || rest::get(&claim).is_none().then_some(()));
    let nodes = lab.path("/api/v1", "persistentvolumeclaims/data-sessions-0");
    assert!(rest::get(&nodes).is_some(), "the nodes keep theirs");
}

#[test]
fn nodes_that_still_use_redis_keep_it() {
    let lab = Lab::new("kept-redis");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2, "redis": {"mode": "Managed"}}));
    lab.until_ready("sessions");
    // The new configuration comes with an image that is not there, so the second node keeps the old one.
    lab.kubelet.lose_image("nodes:none");
    lab.edit("sessions", &json!({"redis": {"mode": "Disabled"}, "image": "nodes:none"}));
    lab.until("sessions", "Stalled", "True ImageUnavailable");
    assert!(redis_set(&lab).is_some(), "a node still uses it");
    lab.edit("sessions", &json!({"image": null}));
    lab.until_ready("sessions");
    within(30, "Redis to go", || redis_set(&lab).is_none().then_some(()));
}

#[test]
fn a_deleted_password_is_made_anew_and_redis_starts_with_it() {
    let lab = Lab::new("password");
    let operator = lab.operator().start();
    lab.apply("sessions", json!({"redis": {"mode": "Managed"}}));
    lab.until_ready("sessions");
    let before = within(30, "the pod of Redis", || redis_pod(&lab));
    let password = secret(&lab).expect("its password is made")["data"]["password"].clone();
    drop(operator);
    assert!(rest::delete(&lab.path("/api/v1", "secrets/sessions-redis")));
    let _operator = lab.operator().start();
    within(60, "another password", || secret(&lab).filter(|secret| secret["data"]["password"] != password));
    within(60, "Redis to start anew", || redis_pod(&lab).filter(|uid| *uid != before));
}

#[test]
fn a_redis_that_can_not_start_is_told_and_a_good_image_heals_it() {
    let lab = Lab::new("ill-redis");
    let _operator = lab.operator().start();
    lab.kubelet.lose_image("redis:none");
    lab.apply("sessions", json!({"redis": {"mode": "Managed", "managed": {"image": "redis:none"}}}));
    let cache = lab.until("sessions", "Stalled", "True ImageUnavailable");
    let message = super::message(&cache, "Stalled");
    assert!(message.contains("sessions-redis-0") && message.contains("spec.redis.managed.image"), "{message}");
    assert_eq!(super::says(&cache, "Ready"), "True AllNodesReady", "nodes serve without it");
    lab.edit("sessions", &json!({"redis": {"managed": {"image": "redis:good"}}}));
    lab.until("sessions", "Stalled", "False AsExpected");
}
