//! A Redis of a cache's own: made, repaired, switched off.

use serde_json::{Value, json};

use super::{Lab, message, within};
use crate::api::rest;

fn redis_set(lab: &Lab) -> Option<Value> {
    rest().get(&lab.path("/apis/apps/v1", "statefulsets/sessions-redis"))
}

fn secret(lab: &Lab) -> Option<Value> {
    rest().get(&lab.path("/api/v1", "secrets/sessions-redis"))
}

fn redis_pod(lab: &Lab) -> Option<Value> {
    rest().get(&lab.path("/api/v1", "pods/sessions-redis-0")).map(|pod| pod["metadata"]["uid"].clone())
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
    within(30, "the claim of Redis", || rest().get(&claim));
    // Two events of one reason, because they say different things.
    let events = || rest().list(&lab.path("/apis/events.k8s.io/v1", "events"));
    for made in
        ["made StatefulSet sessions-redis and what belongs to it", "made StatefulSet sessions and what belongs to it"]
    {
        within(10, made, || events().iter().any(|event| event["note"] == made).then_some(()));
    }
    // Which Secrets there are, or what they hold, it never asks.
    let writes = lab.writes();
    let of_secrets: Vec<&String> = writes.iter().filter(|write| write.contains("secrets")).collect();
    assert_eq!(of_secrets, ["create secrets/sessions-redis"]);

    lab.edit("sessions", &json!({"redis": {"mode": "Disabled"}}));
    lab.until_ready("sessions");
    within(30, "Redis to go", || redis_set(&lab).is_none().then_some(()));
    let service = lab.path("/api/v1", "services/sessions-redis");
    within(30, "its Service to go", || rest().get(&service).is_none().then_some(()));
    // The garbage collector learns of a new kind of owner within half a minute.
    within(90, "its volume to go", || rest().get(&claim).is_none().then_some(()));
    let nodes = lab.path("/api/v1", "persistentvolumeclaims/data-sessions-0");
    assert!(rest().get(&nodes).is_some(), "the nodes keep theirs");
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

fn at(host: &str) -> Value {
    json!({"mode": "External", "external": {"endpoints": [format!("{host}:6379")]}})
}

#[test]
fn nodes_of_another_redis_are_all_stopped_at_once_and_the_budget_does_not_hold_them() {
    let lab = Lab::new("another-redis");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 3, "redis": at("first")}));
    lab.until_ready("sessions");
    // From now on it would let go of one.
    within(60, "the budget to count all three", || {
        let budget = rest().get(&lab.path("/apis/policy/v1", "poddisruptionbudgets/sessions"))?;
        (budget["status"]["currentHealthy"] == 3 && budget["status"]["disruptionsAllowed"] == 1).then_some(())
    });
    let uids = || -> Vec<Value> {
        rest().list(&lab.path("/api/v1", "pods")).iter().map(|pod| pod["metadata"]["uid"].clone()).collect()
    };
    let before = uids();
    lab.edit("sessions", &json!({"redis": at("second")}));
    lab.until_ready("sessions");
    assert!(uids().iter().all(|uid| !before.contains(uid)), "every node was replaced");
    let nodes = ["sessions-0", "sessions-1", "sessions-2"].map(|node| format!("delete pods/{node}"));
    // A status is written in each pass that finds a node gone: in between there was none.
    let first_three = within(30, "the deletions in the audit log", || {
        let writes =
            lab.writes().into_iter().filter(|write| write.contains(" pods/") || write.contains(" tieredcaches/"));
        let writes: Vec<String> = writes.skip_while(|write| !write.contains(" pods/")).take(3).collect();
        (writes.len() == 3).then_some(writes)
    });
    assert!(nodes.iter().all(|deleted| first_three.contains(deleted)), "{first_three:?}");
    lab.until_event("SwitchingRedis");

    lab.kubelet.watch_ready();
    lab.edit("sessions", &json!({"redis": {"mode": "Disabled"}}));
    lab.until_ready("sessions");
    assert_eq!(lab.kubelet.fewest_ready(), 2, "without a log there are no two of them: one at a time");
}

#[test]
fn a_bad_image_that_comes_with_another_redis_takes_all_nodes_and_a_good_one_heals_them() {
    let lab = Lab::new("bad-switch");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2, "redis": at("first")}));
    lab.until_ready("sessions");
    lab.kubelet.lose_image("nodes:none");
    lab.edit("sessions", &json!({"redis": at("second"), "image": "nodes:none"}));
    let cache = lab.until("sessions", "Stalled", "True ImageUnavailable");
    assert_eq!(cache["status"]["readyReplicas"], 0, "none follows the log of the first");
    lab.edit("sessions", &json!({"image": null}));
    lab.until_ready("sessions");
}

/// UIDs of the nodes that are there.
fn nodes(lab: &Lab) -> Vec<Value> {
    let pods = rest().list(&lab.path("/api/v1", "pods"));
    let is_node = |pod: &&Value| pod["metadata"]["labels"]["app.kubernetes.io/component"] == "cache-node";
    pods.iter().filter(is_node).map(|pod| pod["metadata"]["uid"].clone()).collect()
}

#[test]
fn a_service_of_somebody_else_by_the_name_of_redis_stops_no_node() {
    let lab = Lab::new("foreign-redis");
    let foreign = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "sessions-redis"},
        "spec": {"ports": [{"port": 6379}]},
    });
    let made = rest().create(&lab.path("/api/v1", "services"), &foreign);
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2, "redis": at("sessions-redis")}));
    lab.until_ready("sessions");
    let before = nodes(&lab);
    lab.edit("sessions", &json!({"redis": {"mode": "Managed"}}));
    let cache = lab.until("sessions", "Stalled", "True ResourceConflict");
    let text = message(&cache, "Stalled");
    assert!(text.contains("Service sessions-redis belongs to nobody") && text.contains("is not changed"), "{text}");
    lab.assert_silent_for(5);
    assert_eq!(nodes(&lab), before, "they follow the log of the stranger's Redis, as they did");
    assert_eq!((redis_set(&lab), secret(&lab)), (None, None), "nothing is made for it");
    let path = lab.path("/api/v1", "services/sessions-redis");
    assert_eq!(rest().get(&path).unwrap(), made);
    // The way out that the message names.
    rest().delete(&path);
    lab.until_ready("sessions");
    assert!(nodes(&lab).iter().all(|uid| !before.contains(uid)), "they follow their own now");
}

#[test]
fn nodes_keep_the_redis_of_before_until_their_own_runs() {
    let lab = Lab::new("held-switch");
    let _operator = lab.operator().start();
    lab.kubelet.lose_image("redis:none");
    lab.apply("sessions", json!({"replicas": 2, "redis": at("first")}));
    lab.until_ready("sessions");
    let (before, first) = (nodes(&lab), lineage(&lab));
    let managed = |image: &str| json!({"redis": {"mode": "Managed", "managed": {"image": image}}});
    lab.edit("sessions", &managed("redis:none"));
    let cache = lab.until("sessions", "Stalled", "True ImageUnavailable");
    let text = message(&cache, "Progressing");
    assert!(text.contains("waiting for sessions-redis to run"), "{text}");
    lab.assert_silent_for(5);
    assert_eq!(cache["status"]["readyReplicas"], 2);
    // One that is lost meanwhile comes back as it was.
    assert!(rest().delete(&lab.path("/api/v1", "pods/sessions-1")));
    within(60, "the node to be back", || (nodes(&lab).len() == 2 && nodes(&lab) != before).then_some(()));
    assert_eq!(lineage(&lab), first);
    // Taken back, nothing has happened.
    let kept = nodes(&lab);
    lab.edit("sessions", &json!({"redis": {"mode": "External"}}));
    lab.until_ready("sessions");
    assert_eq!((nodes(&lab), lineage(&lab)), (kept.clone(), first.clone()));
    within(60, "Redis to go", || redis_set(&lab).is_none().then_some(()));
    lab.edit("sessions", &managed("redis:good"));
    lab.until_ready("sessions");
    assert!(nodes(&lab).iter().all(|uid| !kept.contains(uid)) && lineage(&lab) != first);
}

#[test]
fn nodes_without_redis_go_on_without_until_their_own_runs() {
    let lab = Lab::new("held-first");
    let _operator = lab.operator().start();
    lab.kubelet.lose_image("redis:none");
    lab.apply("sessions", json!({"replicas": 2}));
    lab.until_ready("sessions");
    let before = nodes(&lab);
    lab.edit("sessions", &json!({"redis": {"mode": "Managed", "managed": {"image": "redis:none"}}}));
    let cache = lab.until("sessions", "Stalled", "True ImageUnavailable");
    let text = message(&cache, "Progressing");
    assert!(text.contains("one at a time") && text.contains("waiting for sessions-redis to run"), "{text}");
    lab.assert_silent_for(5);
    assert_eq!(nodes(&lab), before);
    lab.edit("sessions", &json!({"redis": {"managed": {"image": "redis:good"}}}));
    lab.until_ready("sessions");
    assert!(nodes(&lab).iter().all(|uid| !before.contains(uid)));
}

#[test]
fn a_change_that_never_came_to_the_nodes_is_taken_back_without_stopping_one() {
    let lab = Lab::new("taken-back");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2, "redis": at("first")}));
    lab.until_ready("sessions");
    let (before, first) = (nodes(&lab), lineage(&lab));
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "services"}, "spec": {"hard": {"services": "2"}},
    });
    let quotas = lab.path("/api/v1", "resourcequotas");
    rest().create(&quotas, &quota);
    within(60, "the quota to be in force", || {
        let used = rest().get(&format!("{quotas}/services"))?["status"]["used"]["services"].clone();
        (used == "2").then_some(())
    });
    lab.edit("sessions", &json!({"redis": {"mode": "Managed"}}));
    let cache = lab.until("sessions", "Ready", "False ApplyFailed");
    assert!(message(&cache, "Ready").contains("Service sessions-redis"), "{cache}");
    lab.edit("sessions", &json!({"redis": {"mode": "External"}}));
    lab.until_ready("sessions");
    lab.assert_silent_for(5);
    assert_eq!((nodes(&lab), lineage(&lab)), (before, first), "none had left the first");
}

#[test]
fn a_redis_that_comes_back_in_another_class_begins_empty_and_holds_up_no_node() {
    let lab = Lab::new("redis-class");
    let _operator = lab.operator().start();
    let managed = |class: Value, replicas: u32| {
        let redis = json!({"mode": "Managed", "managed": {"storageClassName": class, "replicas": replicas}});
        json!({"replicas": 2, "image": null, "redis": redis})
    };
    lab.apply("sessions", managed(json!("one"), 1));
    lab.until_ready("sessions");
    let claim = || rest().get(&lab.path("/api/v1", "persistentvolumeclaims/data-sessions-redis-0"));
    within(60, "the claim to belong to Redis", || {
        claim().filter(|claim| !claim["metadata"]["ownerReferences"].is_null())
    });
    for (class, replicas) in [(json!("two"), 3), (Value::Null, 1)] {
        let before = redis_set(&lab).expect("Redis is there")["metadata"]["uid"].clone();
        let old = claim().expect("its claim is there")["metadata"]["uid"].clone();
        // With an image that is not there one node still uses Redis, which so is still there too.
        lab.kubelet.lose_image("nodes:none");
        lab.edit("sessions", &json!({"redis": {"mode": "Disabled"}, "image": "nodes:none"}));
        lab.until("sessions", "Stalled", "True ImageUnavailable");
        lab.edit("sessions", &managed(class.clone(), replicas));
        lab.until_ready("sessions");
        // The garbage collector learns of a new kind of owner within half a minute.
        let set = within(120, "another Redis", || redis_set(&lab).filter(|set| set["metadata"]["uid"] != before));
        let template = &set["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"];
        assert_eq!((template, &set["spec"]["replicas"]), (&class, &json!(replicas)));
        within(60, "another claim", || claim().filter(|claim| claim["metadata"]["uid"] != old));
    }
}

#[test]
fn redis_scaled_by_hand_keeps_its_volume() {
    let lab = Lab::new("redis-scaled");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"redis": {"mode": "Managed"}}));
    lab.until_ready("sessions");
    let before = redis_set(&lab).expect("Redis is made")["metadata"]["uid"].clone();
    assert!(rest().merge(&lab.path("/apis/apps/v1", "statefulsets/sessions-redis"), &json!({"spec": {"replicas": 0}})));
    let repaired = |set: &Value| set["spec"]["replicas"] == 1 && set["metadata"]["generation"].as_u64() > Some(1);
    let set = within(20, "it to be repaired", || redis_set(&lab).filter(repaired));
    assert_eq!(set["metadata"]["uid"], before);
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
    assert!(rest().delete(&lab.path("/api/v1", "secrets/sessions-redis")));
    let _operator = lab.operator().start();
    within(60, "another password", || secret(&lab).filter(|secret| secret["data"]["password"] != password));
    within(60, "Redis to start anew", || redis_pod(&lab).filter(|uid| *uid != before));
}

#[test]
fn three_redises_have_a_budget_which_does_not_keep_the_old_password_alive() {
    let lab = Lab::new("three-redises");
    let operator = lab.operator().start();
    lab.apply("sessions", json!({"redis": {"mode": "Managed", "managed": {"replicas": 3}}}));
    lab.until_ready("sessions");
    let budget = || rest().get(&lab.path("/apis/policy/v1", "poddisruptionbudgets/sessions-redis"));
    // From now on it would let go of one.
    within(60, "the budget to count all three", || {
        budget().filter(|budget| budget["status"]["currentHealthy"] == 3 && budget["status"]["disruptionsAllowed"] == 1)
    });
    let uids = || -> Vec<Value> {
        let uid = |ordinal| {
            let pod = rest().get(&lab.path("/api/v1", &format!("pods/sessions-redis-{ordinal}")))?;
            Some(pod["metadata"]["uid"].clone())
        };
        (0..3).filter_map(uid).collect()
    };
    let before = uids();
    assert_eq!(before.len(), 3);
    drop(operator);
    assert!(rest().delete(&lab.path("/api/v1", "secrets/sessions-redis")));
    let _operator = lab.operator().start();
    within(60, "all to start anew", || {
        let now = uids();
        (now.len() == 3 && now.iter().all(|uid| !before.contains(uid))).then_some(())
    });
    within(30, "their budget to be back", budget);
}

#[test]
fn a_budget_of_somebody_else_does_not_keep_the_old_password_alive() {
    let lab = Lab::new("strict-budget");
    let operator = lab.operator().start();
    lab.apply("sessions", json!({"redis": {"mode": "Managed"}}));
    lab.until_ready("sessions");
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "nobody-leaves"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app.kubernetes.io/name": "tieredcache-redis"}}},
    });
    let budgets = lab.path("/apis/policy/v1", "poddisruptionbudgets");
    rest().create(&budgets, &budget);
    within(60, "the budget to count it", || {
        let budget = rest().get(&format!("{budgets}/nobody-leaves"))?;
        (budget["status"]["currentHealthy"] == 1).then_some(())
    });
    let before = within(30, "the pod of Redis", || redis_pod(&lab));
    drop(operator);
    assert!(rest().delete(&lab.path("/api/v1", "secrets/sessions-redis")));
    let _operator = lab.operator().start();
    within(60, "another password", || secret(&lab));
    within(60, "Redis to start anew", || redis_pod(&lab).filter(|uid| *uid != before));
}

#[test]
fn a_redis_that_can_not_start_is_told_and_a_good_image_heals_it() {
    let lab = Lab::new("ill-redis");
    let _operator = lab.operator().start();
    lab.kubelet.lose_image("redis:none");
    lab.apply("sessions", json!({"redis": {"mode": "Managed", "managed": {"image": "redis:none"}}}));
    let cache = lab.until("sessions", "Stalled", "True ImageUnavailable");
    let text = message(&cache, "Stalled");
    assert!(text.contains("sessions-redis-0") && text.contains("spec.redis.managed.image"), "{text}");
    // Nodes serve without it.
    lab.until_ready("sessions");
    lab.edit("sessions", &json!({"redis": {"managed": {"image": "redis:good"}}}));
    lab.until("sessions", "Stalled", "False AsExpected");
}

/// The lineage in the configuration that the nodes are given.
fn lineage(lab: &Lab) -> String {
    let set = rest().get(&lab.path("/apis/apps/v1", "statefulsets/sessions")).expect("the nodes are there");
    let volumes = set["spec"]["template"]["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let name = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str()).expect("a configuration");
    let config = rest().get(&lab.path("/api/v1", &format!("configmaps/{name}"))).expect("it is there");
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
