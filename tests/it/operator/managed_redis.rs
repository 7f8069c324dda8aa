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

/// The lineage in the configuration that the nodes are given.
fn lineage(lab: &Lab) -> String {
    let set = rest::get(&lab.path("/apis/apps/v1", "statefulsets/sessions")).expect("the nodes are there");
    let volumes = set["spec"]["template"]["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let name = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str()).expect("a configuration");
    let config = rest::get(&lab.path("/api/v1", &format!("configmaps/{name}"))).expect("it is there");
    let text = config["data"]["config.yaml"].as_str().expect("a file").to_owned();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lineage: ")).expect("a lineage");
    line.to_owned()
}

#[test]
fn a_cache_that_comes_back_to_a_redis_trusts_nothing_in_it() {
    let lab = Lab::new("lineage");
    let external = json!({"redis": {"mode": "External", "external": {"endpoints": ["redis:6379"]}}});
    let operator = lab.operator().start();
    lab.apply("sessions", external.clone());
    lab.until_ready("sessions");
    let first = lineage(&lab);
    assert_ne!(first, "0");
    drop(operator);
    let _operator = lab.operator().start();
    lab.edit("sessions", &json!({"redis": {"timeout": "60ms"}}));
    lab.until_ready("sessions");
    assert_eq!(lineage(&lab), first, "another operator, and another setting, change nothing");

    lab.edit("sessions", &json!({"redis": {"mode": "Disabled"}}));
    lab.until_ready("sessions");
    assert_eq!(lineage(&lab), "0");
    lab.edit("sessions", &external);
    lab.until_ready("sessions");
    let second = lineage(&lab);
    assert!(second != "0" && second != first, "{first}, then {second}");
}
