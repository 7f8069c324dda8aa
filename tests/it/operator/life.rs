//! The ordinary life of a fleet: made, changed, scaled, deleted, at rest; and who may do it.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::{CHILDREN, Lab, within};
use crate::api::{api, kubectl, rest};

#[test]
fn a_cache_becomes_a_fleet_that_is_owned_and_then_left_alone() {
    let lab = Lab::new("made");
    let operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 3}));
    let cache = lab.until_ready("sessions");
    assert_eq!(cache["status"]["readyReplicas"], 3);
    assert_eq!(cache["status"]["nodes"].as_array().unwrap().len(), 3);
    for layer in cache["status"]["layers"].as_array().unwrap() {
        let is_off = layer["name"] == "Redis" || layer["name"] == "Backplane";
        let health = if is_off { "Disabled" } else { "Healthy" };
        assert_eq!(layer["health"], health, "{layer}");
    }
    for (group, collection) in CHILDREN.iter().filter(|(_, collection)| *collection != "pods") {
        let selector = "labelSelector=app.kubernetes.io/instance%3Dsessions";
        let objects = rest().list(&format!("{}?{selector}", lab.path(group, collection)));
        assert!(!objects.is_empty(), "no {collection}");
        for object in objects {
            let owner = &object["metadata"]["ownerReferences"][0];
            assert_eq!(owner["uid"], cache["metadata"]["uid"], "{object}");
            assert_eq!(owner["controller"], true);
        }
    }
    lab.assert_silent_for(20);
    assert_eq!(operator.metric(&["tieredcache_operator_api_requests_total", "refused"]), 0.0);
    assert_eq!(operator.admin("/livez").0, 200);
    assert_eq!(operator.admin("/readyz").0, 200);
}

#[test]
fn a_change_replaces_one_node_at_a_time_and_old_configurations_go() {
    let lab = Lab::new("changed");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 3}));
    lab.until_ready("sessions");
    let uids = |lab: &Lab| -> Vec<Value> {
        rest().list(&lab.path("/api/v1", "pods")).iter().map(|pod| pod["metadata"]["uid"].clone()).collect()
    };
    let before = uids(&lab);
    lab.kubelet.watch_ready();
    lab.edit("sessions", &json!({"memory": {"policy": "TinyLfu"}}));
    lab.until_ready("sessions");
    assert!(uids(&lab).iter().all(|uid| !before.contains(uid)), "every node was replaced");
    assert!(lab.kubelet.fewest_ready() >= 2, "{} ready at once", lab.kubelet.fewest_ready());
    ["ReplacingNode", "RolledOut"].iter().for_each(|reason| lab.until_event(reason));
    let selector = "labelSelector=app.kubernetes.io/instance%3Dsessions";
    let path = format!("{}?{selector}", lab.path("/api/v1", "configmaps"));
    within(30, "the old configuration to go", || (rest().list(&path).len() == 1).then_some(()));
}

#[test]
fn scaling_restarts_nothing_and_the_budget_follows() {
    let lab = Lab::new("scaled");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 1}));
    let first = lab.until_ready("sessions");
    let pod = lab.path("/api/v1", "pods/sessions-0");
    let budget = lab.path("/apis/policy/v1", "poddisruptionbudgets/sessions");
    let uid = rest().get(&pod).unwrap()["metadata"]["uid"].clone();
    assert_eq!(rest().get(&budget), None);
    assert_eq!(first["status"]["selector"], "app.kubernetes.io/instance=sessions,app.kubernetes.io/name=tieredcache");

    let scale = ["scale", "tieredcache/sessions", "--replicas=4", "-n", &lab.namespace];
    assert!(kubectl(&scale, "").ok);
    assert_eq!(lab.until_ready("sessions")["status"]["replicas"], 4);
    assert!(rest().get(&budget).is_some());

    lab.edit("sessions", &json!({"replicas": 1}));
    assert_eq!(lab.until_ready("sessions")["status"]["replicas"], 1);
    within(10, "the budget to go", || rest().get(&budget).is_none().then_some(()));
    assert_eq!(rest().get(&pod).unwrap()["metadata"]["uid"], uid, "the first node was not restarted");

    lab.edit("sessions", &json!({"replicas": 0}));
    lab.until("sessions", "Ready", "True ScaledToZero");
}

#[test]
fn a_deleted_cache_leaves_nothing_but_what_its_policy_keeps() {
    let lab = Lab::new("deleted");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 2}));
    lab.until_ready("sessions");
    lab.delete("sessions");
    // The garbage collector learns of a new kind of owner within half a minute.
    within(90, "everything to go", || lab.state().is_empty().then_some(()));
    let claims = rest().list(&lab.path("/api/v1", "persistentvolumeclaims"));
    assert_eq!(claims.len(), 2, "disk.retention.whenDeleted is Retain by default");
}

/// The chart's own Role, with the right to make passwords, and nothing else.
#[test]
fn the_role_of_the_chart_is_enough_in_one_namespace() {
    let lab = Lab::new("role");
    let (_folder, config) = as_permitted(&lab, &["--set", "rbac.managedRedisPasswords=true"]);
    let operator = lab.operator().with_kubeconfig(config).start();
    lab.apply("sessions", json!({"replicas": 3, "redis": {"mode": "Managed"}}));
    lab.until_ready("sessions");
    lab.edit("sessions", &json!({"redis": {"mode": "External", "external": {"endpoints": ["redis:6379"]}}}));
    lab.until_ready("sessions");
    lab.edit("sessions", &json!({"image": "nodes:2", "replicas": 2, "redis": {"mode": "Disabled"}}));
    lab.until_ready("sessions");
    lab.edit("sessions", &json!({"replicas": 1}));
    lab.until_ready("sessions");
    let budget = lab.path("/apis/policy/v1", "poddisruptionbudgets/sessions");
    within(10, "the budget to go", || rest().get(&budget).is_none().then_some(()));
    let redis = lab.path("/apis/apps/v1", "statefulsets/sessions-redis");
    within(30, "Redis to go", || rest().get(&redis).is_none().then_some(()));
    assert_eq!(operator.metric(&["tieredcache_operator_api_requests_total", "refused"]), 0.0, "{}", operator.log());
    assert!(operator.metric(&["tieredcache_operator_events_total"]) > 0.0);
}

#[test]
fn the_role_of_the_chart_is_for_the_lease_of_the_operator_alone() {
    let lab = Lab::new("own-lease");
    let (_folder, config) = as_permitted(&lab, &[]);
    let config = format!("--kubeconfig={}", config.display());
    let may = |verb: &str, name: &str| {
        let lease = format!("leases.coordination.k8s.io/{name}");
        let answer = kubectl(&[&config, "auth", "can-i", verb, &lease, "-n", &lab.namespace], "");
        answer.text.trim().to_owned()
    };
    for (name, answer) in [("tieredcache-operator", "yes"), ("another", "no")] {
        assert_eq!(["get", "update"].map(|verb| may(verb, name)), [answer; 2], "{name}");
    }
}

#[test]
fn without_any_right_on_secrets_the_password_is_left_to_people() {
    let lab = Lab::new("no-secrets");
    let (_folder, config) = as_permitted(&lab, &[]);
    let operator = lab.operator().with_kubeconfig(config).start();
    lab.apply("sessions", json!({"redis": {"mode": "Managed"}}));
    lab.until_ready("sessions");
    assert!(rest().get(&lab.path("/apis/apps/v1", "statefulsets/sessions-redis")).is_some(), "all else is made");
    assert_eq!(rest().get(&lab.path("/api/v1", "secrets/sessions-redis")), None);
    lab.assert_silent_for(5);
    // It asks once, and then now and then whether it may by now.
    assert_eq!(operator.metric(&["tieredcache_operator_api_requests_total", "refused"]), 1.0, "{}", operator.log());
}

/// A kubeconfig with nothing but the rights of the chart's Role in the namespace of the lab.
fn as_permitted(lab: &Lab, values: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let rendered = render(&lab.namespace, values);
    // Everything but what needs nodes; names and namespaces are the chart's.
    let documents = rendered.split("\n---").filter(|document| !document.contains("kind: Deployment"));
    let wanted =
        documents.filter(|document| document.contains("kind: Role") || document.contains("kind: ServiceAccount"));
    let wanted: Vec<&str> = wanted.filter(|document| !document.contains("kind: Cluster")).collect();
    let applied = kubectl(&["apply", "-n", &lab.namespace, "-f", "-"], &wanted.join("\n---\n"));
    assert!(applied.ok, "{}", applied.text);
    let account = wanted.iter().find(|document| document.contains("kind: ServiceAccount")).expect("an account");
    let account = account.lines().find_map(|line| line.strip_prefix("  name: ")).expect("a name");
    let token = kubectl(&["create", "token", account.trim(), "-n", &lab.namespace], "");
    assert!(token.ok, "{}", token.text);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kubeconfig");
    fs::write(&config, with_token(token.text.trim())).unwrap();
    (folder, config)
}

/// The manifests of the chart for one watched namespace.
fn render(namespace: &str, values: &[&str]) -> String {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/tieredcache-operator");
    let watched = format!("watchNamespaces={{{namespace}}}");
    // By this name the Lease is the operator's default one.
    let mut args = vec!["template", "tieredcache-operator", chart, "--namespace", namespace, "--set", &watched];
    args.extend(values);
    let answer = api().helm(&args);
    assert!(answer.ok, "{}", answer.text);
    answer.text
}

/// The administrator's kubeconfig with another user.
fn with_token(token: &str) -> String {
    let view = kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"], "");
    let mut config: Value = serde_json::from_str(&view.text).expect("kubectl prints JSON");
    config["users"][0]["user"] = json!({"token": token});
    config.to_string()
}

#[test]
fn a_wiped_status_comes_back_as_it_was() {
    let lab = Lab::new("wiped");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 1}));
    let before = lab.until_ready("sessions")["status"].clone();
    assert!(rest().merge(&format!("{}/sessions/status", lab.caches()), &json!({"status": null})));
    let after = lab.until_ready("sessions")["status"].clone();
    let timeless = |status: &Value| {
        let text = status.to_string();
        let pieces =
            text.split("\"lastTransitionTime\":\"").map(|piece| piece.split_once("Z\"").map_or(piece, |cut| cut.1));
        let text: String = pieces.collect();
        text.split("\"since\":\"").map(|piece| piece.split_once("Z\"").map_or(piece, |cut| cut.1)).collect::<String>()
    };
    assert_eq!(timeless(&before), timeless(&after));
}
