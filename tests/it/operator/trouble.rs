//! What goes wrong around a fleet: strangers' hands, strangers' objects, bad images, silent nodes, sick layers, objects
//! that can not be read.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{CHILDREN, Lab, message, says, within};
use crate::api::rest;

#[allow(clippy::disallowed_methods, reason = "tests of processes measure real time")]
fn now() -> Instant {
    Instant::now()
}

/// The parts of a fleet that may be deleted or edited by hand, with edits of each.
fn parts(lab: &Lab) -> Vec<(String, Vec<Value>)> {
    let selector = "labelSelector=app.kubernetes.io/instance%3Dsessions";
    let kinds = CHILDREN.iter().filter(|(_, collection)| *collection != "pods");
    let objects = kinds.flat_map(|(group, collection)| {
        let path = lab.path(group, collection);
        rest().list(&format!("{path}?{selector}")).into_iter().map(move |object| {
            let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
            let edits = match *collection {
                "serviceaccounts" => vec![json!({"automountServiceAccountToken": true})],
                // Immutable: its labels and owner are what can be edited.
                "configmaps" => vec![json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}})],
                "services" => vec![
                    json!({"spec": {"selector": {"app.kubernetes.io/instance": "other"}}}),
                    json!({"spec": {"selector": {"one": "more"}}}),
                ],
                "poddisruptionbudgets" => vec![
                    json!({"spec": {"maxUnavailable": 3}}),
                    json!({"spec": {"selector": {"matchLabels": {"one": "more"}}}}),
                ],
                _ => {
                    vec![json!({"spec": {"replicas": 9, "template": {"spec": {"terminationGracePeriodSeconds": 10}}}})]
                }
            };
            (format!("{path}/{name}"), edits)
        })
    });
    objects.collect()
}

/// Whether an object still has any of what an edit put into it.
fn has_any(object: &Value, edit: &Value) -> bool {
    match edit {
        Value::Object(fields) => fields.iter().any(|(key, edit)| has_any(&object[key], edit)),
        edit => object == edit,
    }
}

#[test]
fn what_is_deleted_or_edited_by_hand_is_repaired_within_five_seconds() {
    let lab = Lab::new("drift");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2}));
    lab.until_ready("sessions");
    let before = lab.state();
    let mut slowest = Duration::ZERO;
    let parts = parts(&lab);
    assert_eq!(parts.len(), 6);
    for (path, edits) in parts {
        let old = rest().get(&path).expect("it is there")["metadata"]["uid"].clone();
        rest().delete(&path);
        let deleted = now();
        within(20, &format!("{path} to be made again"), || {
            rest().get(&path).filter(|object| object["metadata"]["uid"] != old)
        });
        slowest = slowest.max(deleted.elapsed());
        for edit in edits {
            assert!(rest().merge(&path, &edit), "{path}");
            let edited = now();
            let repaired = |object: &Value| !has_any(object, &edit);
            within(20, &format!("{edit} of {path} to be repaired"), || rest().get(&path).filter(repaired));
            slowest = slowest.max(edited.elapsed());
        }
    }
    println!("slowest repair: {slowest:?}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    lab.until_ready("sessions");
    within(30, "the same end state", || (lab.state() == before).then_some(()));
}

#[test]
fn labels_and_annotations_of_others_are_left_alone() {
    let lab = Lab::new("others");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 1}));
    lab.until_ready("sessions");
    let set = lab.path("/apis/apps/v1", "statefulsets/sessions");
    rest().merge(&set, &json!({"metadata": {"labels": {"team": "blue"}, "annotations": {"note": "mine"}}}));
    lab.edit("sessions", &json!({"replicas": 2}));
    lab.until_ready("sessions");
    let set = rest().get(&set).unwrap();
    assert_eq!(set["metadata"]["labels"]["team"], "blue");
    assert_eq!(set["metadata"]["annotations"]["note"], "mine");
}

#[test]
fn an_object_of_somebody_else_is_never_touched_and_named() {
    let lab = Lab::new("foreign");
    let foreign = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "sessions", "labels": {"mine": "yes"}},
        "spec": {"ports": [{"port": 80}]},
    });
    let made = rest().create(&lab.path("/api/v1", "services"), &foreign);
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 1}));
    let cache = lab.until("sessions", "Ready", "False ResourceConflict");
    assert!(message(&cache, "Ready").contains("Service sessions belongs to nobody"), "{cache}");
    assert_eq!(says(&cache, "Stalled"), "True ResourceConflict");
    lab.until_event("ResourceConflict");
    assert_eq!(rest().get(&lab.path("/apis/apps/v1", "statefulsets/sessions")), None);
    lab.assert_silent_for(5);
    let path = lab.path("/api/v1", "services/sessions");
    assert_eq!(rest().get(&path).unwrap(), made);
    // The way out that the message names.
    rest().delete(&path);
    lab.until_ready("sessions");
}

#[test]
fn a_bad_image_stops_at_the_first_node_and_a_good_one_heals() {
    let lab = Lab::new("bad-image");
    let _operator = lab.operator().start();
    lab.kubelet.lose_image("nodes:none");
    lab.apply("sessions", json!({"replicas": 3, "image": "nodes:good"}));
    lab.until_ready("sessions");
    lab.kubelet.watch_ready();
    lab.edit("sessions", &json!({"image": "nodes:none"}));
    let cache = lab.until("sessions", "Ready", "False ImageUnavailable");
    assert!(message(&cache, "Degraded").contains("\"nodes:none\""), "{cache}");
    assert_eq!(says(&cache, "Stalled"), "True ImageUnavailable");
    assert!(message(&cache, "Progressing").contains("stopped at sessions-2"), "{}", message(&cache, "Progressing"));
    lab.assert_silent_for(10);
    lab.edit("sessions", &json!({"image": "nodes:good"}));
    lab.until_ready("sessions");
    assert_eq!(lab.kubelet.fewest_ready(), 2, "the other two served all the time");
}

#[test]
fn a_fleet_that_never_started_heals_too() {
    let lab = Lab::new("bad-start");
    let _operator = lab.operator().start();
    lab.kubelet.lose_image("nodes:none");
    lab.apply("sessions", json!({"replicas": 3, "image": "nodes:none"}));
    lab.until("sessions", "Ready", "False ImageUnavailable");
    lab.edit("sessions", &json!({"image": "nodes:good"}));
    lab.until_ready("sessions");
}

#[test]
fn a_node_that_a_quota_refuses_is_told_with_where_to_look() {
    let lab = Lab::new("pod-quota");
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "pods"}, "spec": {"hard": {"pods": "1"}},
    });
    rest().create(&lab.path("/api/v1", "resourcequotas"), &quota);
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2}));
    let cache = lab.until("sessions", "Stalled", "True PodNotCreated");
    let text = message(&cache, "Stalled");
    assert!(text.contains("sessions-1") && text.contains("`kubectl describe statefulset sessions`"), "{text}");
    assert_eq!(says(&cache, "Ready"), "False PodNotCreated");
    lab.edit("sessions", &json!({"replicas": 1}));
    lab.until_ready("sessions");
}

#[test]
fn a_silent_node_is_told_within_twenty_seconds_and_so_is_its_return() {
    let lab = Lab::new("silent");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 3}));
    lab.until_ready("sessions");
    lab.kubelet.silence("sessions-1", true);
    let cut = now();
    let cache = lab.until("sessions", "Ready", "False NodeUnreachable");
    assert!(cut.elapsed() < Duration::from_secs(20), "{:?}", cut.elapsed());
    assert_eq!(says(&cache, "DiskHealthy"), "Unknown NodeUnreachable");
    assert!(message(&cache, "Degraded").contains("sessions-1 does not answer"), "{cache}");
    assert_eq!(cache["status"]["readyReplicas"], 2);
    lab.kubelet.silence("sessions-1", false);
    let healed = now();
    lab.until_ready("sessions");
    assert!(healed.elapsed() < Duration::from_secs(20), "{:?}", healed.elapsed());
    println!("told after {:?}, healed after {:?}", healed - cut, healed.elapsed());
}

#[test]
fn a_sick_layer_is_told_with_the_nodes_own_reason() {
    let lab = Lab::new("sick");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2}));
    lab.until_ready("sessions");
    lab.kubelet.set_disk("sessions-1", "Degraded", "DiskFull");
    let cache = lab.until("sessions", "DiskHealthy", "False DiskFull");
    assert_eq!(message(&cache, "DiskHealthy"), "sessions-1: DiskFull it is");
    assert_eq!(says(&cache, "Degraded"), "True DiskDegraded");
    assert_eq!(says(&cache, "Ready"), "True AllNodesReady");
    lab.kubelet.set_disk("sessions-1", "Healthy", "AsExpected");
    lab.until("sessions", "DiskHealthy", "True AsExpected");
    ["Created", "LayerUnhealthy", "LayerRecovered"].iter().for_each(|reason| lab.until_event(reason));
}
