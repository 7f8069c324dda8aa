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

/// An object of somebody else.
struct Stranger {
    /// Kind and name, as the status has them.
    name: String,
    path: String,
}

// === impl Stranger ===

impl Stranger {
    fn make(lab: &Lab, (group, collection): (&str, &str), (kind, name): (&str, &str), spec: Option<Value>) -> Self {
        let version = group.trim_start_matches("/apis/").trim_start_matches("/api/");
        let mut object =
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": {"mine": "yes"}}});
        if let Some(spec) = spec {
            object["spec"] = spec;
        }
        rest().create(&lab.path(group, collection), &object);
        Self { name: format!("{kind} {name}"), path: format!("{}/{name}", lab.path(group, collection)) }
    }

    /// What its owner has made of it, without what controllers add.
    fn look(&self) -> Value {
        let mut object = rest().get(&self.path).expect("nobody has deleted it");
        let writers = object["metadata"]["managedFields"].to_string();
        assert!(!writers.contains("tieredcache-operator"), "{} was written to: {writers}", self.name);
        let fields = object.as_object_mut().expect("an object");
        fields.remove("status");
        let metadata = fields["metadata"].as_object_mut().expect("an object");
        for moved in ["resourceVersion", "managedFields"] {
            metadata.remove(moved);
        }
        object
    }
}

/// One for each object that a cache `sessions` needs, the StatefulSet last. Not for the ConfigMap: in its name is a hash
/// over the UID of the cache, so that nobody can have taken it before the cache is there.
fn strangers(lab: &Lab) -> Vec<Stranger> {
    let labels = json!({"mine": "yes"});
    let service = || Some(json!({"ports": [{"port": 80}]}));
    let budget = json!({"maxUnavailable": 0, "selector": {"matchLabels": labels}});
    let pod = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "other", "image": "other"}]}});
    let set = json!({"replicas": 0, "serviceName": "other", "selector": {"matchLabels": labels}, "template": pod});
    let services = ("/api/v1", "services");
    vec![
        Stranger::make(lab, ("/api/v1", "serviceaccounts"), ("ServiceAccount", "sessions-node"), None),
        Stranger::make(lab, services, ("Service", "sessions-nodes"), service()),
        Stranger::make(lab, services, ("Service", "sessions"), service()),
        Stranger::make(
            lab,
            ("/apis/policy/v1", "poddisruptionbudgets"),
            ("PodDisruptionBudget", "sessions"),
            Some(budget),
        ),
        Stranger::make(lab, ("/apis/apps/v1", "statefulsets"), ("StatefulSet", "sessions"), Some(set)),
    ]
}

#[test]
fn an_object_of_somebody_else_is_never_touched_and_named() {
    let lab = Lab::new("foreign");
    let strangers = strangers(&lab);
    let made: Vec<Value> = strangers.iter().map(Stranger::look).collect();
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2}));
    let cache = lab.until("sessions", "Ready", "False ResourceConflict");
    let (set, others) = strangers.split_last().expect("there are five");
    for stranger in others {
        let named = format!("{} belongs to nobody", stranger.name);
        assert!(message(&cache, "Ready").contains(&named), "{named}: {cache}");
    }
    assert_eq!(says(&cache, "Stalled"), "True ResourceConflict");
    lab.until_event("ResourceConflict");
    lab.assert_silent_for(5);
    assert_eq!(strangers.iter().map(Stranger::look).collect::<Vec<_>>(), made);
    // The way out that the message names. Nodes come last: as long as anything is in the way, nobody looks at theirs.
    others.iter().for_each(|stranger| assert!(rest().delete(&stranger.path)));
    within(60, "the StatefulSet to be named", || {
        let told = message(&lab.cache("sessions"), "Ready");
        told.contains("StatefulSet sessions belongs to nobody").then_some(())
    });
    assert_eq!(set.look(), made[others.len()]);
    assert_eq!(rest().list(&lab.path("/api/v1", "pods")), Vec::<Value>::new());
    rest().delete(&set.path);
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
