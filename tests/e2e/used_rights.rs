//! What the chart grants the operator is what the operator uses, no more and no less. It comes last, so that what the other
//! tests made the operator ask for counts too.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use tests::cluster::{OPERATOR_USER, REDIS_IMAGE};

use crate::fleet::{Fleet, OPERATOR_NAMESPACE, cluster, equal, eventually};
use crate::turn::last;

const READY_WITHIN: Duration = Duration::from_secs(90);
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// The audit log is written in batches.
const TOLD_WITHIN: Duration = Duration::from_secs(15);
/// Two nodes with a volume each and a Redis of their own.
const LARGE: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 512Mi, retention: {whenDeleted: Delete}}, redis: \
                     {mode: Managed, managed: {image: IMAGE, memory: 64Mi, storage: 512Mi}}}";
/// One node with a larger volume: without Redis, budget and the configuration of before.
const SMALL: &str = "{replicas: 1, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenDeleted: Delete}}}";

/// A right, as in `create pods/eviction.` or `patch statefulsets.apps`.
type Right = String;

fn right(verb: &str, resource: &str, group: &str) -> Right {
    format!("{verb} {resource}.{group}")
}

fn list(arguments: &[&str]) -> Vec<Value> {
    let text = cluster().kubectl([arguments, &["-o", "json"]].concat()).expect("kubectl answers");
    let list: Value = serde_json::from_str(&text).expect("kubectl prints JSON");
    list["items"].as_array().cloned().expect("a list")
}

fn words(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Everything that a role bound to the operator's account grants, by the API server's own objects.
fn granted() -> BTreeSet<Right> {
    let is_bound = |binding: &Value| {
        binding["subjects"].as_array().into_iter().flatten().any(|subject| {
            let (namespace, name) = (subject["namespace"].as_str(), subject["name"].as_str());
            format!("system:serviceaccount:{}:{}", namespace.unwrap_or_default(), name.unwrap_or_default())
                == OPERATOR_USER
        })
    };
    let bindings = list(&["get", "clusterrolebindings,rolebindings", "-A"]);
    let bound: Vec<Value> = bindings.into_iter().filter(is_bound).map(|binding| binding["roleRef"].clone()).collect();
    let roles = list(&["get", "clusterroles,roles", "-A"]).into_iter().filter(|role| {
        bound.iter().any(|bound| bound["kind"] == role["kind"] && bound["name"] == role["metadata"]["name"])
    });
    let rules = roles.flat_map(|role| role["rules"].as_array().cloned().unwrap_or_default());
    let mut granted = BTreeSet::new();
    for rule in rules {
        assert_eq!(words(&rule["nonResourceURLs"]).count(), 0, "{rule}");
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                granted.extend(words(&rule["verbs"]).map(|verb| right(verb, resource, group)));
            }
        }
    }
    granted
}

/// What the operator has asked this cluster for: what it was given, and what was denied.
fn asked() -> (BTreeSet<Right>, BTreeSet<Right>) {
    // A cluster of the same name before this one may have left its log.
    let born = cluster().kubectl(["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.creationTimestamp}"]);
    let born = born.expect("kubectl answers").trim_end_matches('Z').to_owned();
    let requests = cluster().requests_of(OPERATOR_USER).expect("the API server keeps an audit log");
    let (mut given, mut denied) = (BTreeSet::new(), BTreeSet::new());
    for request in requests.iter().filter(|request| request["requestReceivedTimestamp"].as_str() >= Some(&born)) {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (verb, object) = (word(&request["verb"]), &request["objectRef"]);
        let resource = match object["subresource"].as_str() {
            Some(subresource) => format!("{}/{subresource}", word(&object["resource"])),
            None => word(&object["resource"]),
        };
        let group = word(&object["apiGroup"]);
        let is_denied = request["annotations"]["authorization.k8s.io/decision"] == "forbid";
        let rights = if is_denied { &mut denied } else { &mut given };
        if object.is_null() {
            // What is not an object, such as the version, everybody may ask for.
            if is_denied {
                rights.insert(format!("{verb} {}", word(&request["requestURI"])));
            }
            continue;
        }
        // A server-side apply that makes the object needs both rights.
        if verb == "patch" && request["responseStatus"]["code"] == 201 {
            rights.insert(right("create", &resource, &group));
        }
        rights.insert(right(&verb, &resource, &group));
    }
    (given, denied)
}

/// Has the operator begin anew, without the Lease that it had, and takes a cache through all that needs a right.
fn provoke_every_use(fleet: &Fleet) {
    let system =
        |args: &[&str]| cluster().kubectl([&["-n", OPERATOR_NAMESPACE], args].concat()).expect("kubectl answers");
    let operator = "deployment/tieredcache-operator";
    system(&["delete", "lease", "tieredcache-operator", "--ignore-not-found"]);
    system(&["rollout", "restart", operator]);
    system(&["rollout", "status", operator, "--timeout=60s"]);
    fleet.apply("cache", &LARGE.replace("IMAGE", REDIS_IMAGE));
    fleet.await_ready("cache", 2, READY_WITHIN);
    // The second time it is the same event, which is counted up.
    for _ in 0..2 {
        let change = r#"{"spec":{"publishNotReadyAddresses":false}}"#;
        fleet.kubectl(&["patch", "svc/cache-nodes", "--type=merge", "-p", change]);
        eventually("the Service is repaired", SETTLES_WITHIN, || {
            equal(fleet.get("svc/cache-nodes")?["spec"]["publishNotReadyAddresses"].as_bool(), Some(true))
        });
    }
    let other = r#"{"spec":{"redis":{"mode":"External","external":{"endpoints":["nowhere:6379"]}}}}"#;
    fleet.kubectl(&["patch", "tc/cache", "--type=merge", "-p", other]);
    fleet.await_ready("cache", 2, READY_WITHIN);
    fleet.apply("cache", SMALL);
    fleet.await_ready("cache", 1, READY_WITHIN);
    eventually("what is not wanted any more is gone", SETTLES_WITHIN, || {
        equal(fleet.names(&["pdb", "sts"], "")?, vec!["sts/cache".to_owned()])
    });
}

#[test]
fn the_operator_uses_every_right_that_the_chart_grants_it_and_asks_for_no_other() {
    let turn = last();
    let fleet = Fleet::new(&turn, "used-rights");
    let granted = granted();
    provoke_every_use(&fleet);
    eventually("every right is used", TOLD_WITHIN, || {
        let (given, denied) = asked();
        // While the chart is removed the operator may still ask for what it has just lost.
        let beyond: Vec<&Right> = given.union(&denied).filter(|right| !granted.contains(*right)).collect();
        assert!(beyond.is_empty(), "it asked for what it is not granted: {beyond:?}");
        let unused: Vec<&Right> = granted.difference(&given).collect();
        if unused.is_empty() { Ok(()) } else { Err(format!("granted and never used: {unused:?}")) }
    });
    println!("{} rights are granted, and used: {granted:?}", granted.len());
}
