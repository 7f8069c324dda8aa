//! The chart: what it renders for several sets of values, what it refuses, and its life on a real API server.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::Value;

use crate::api::api;

mod documents;
mod life;
mod objects;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/tieredcache-operator");

/// Sets of values that people use, each as arguments of helm.
const VALUE_SETS: [(&str, &[&str]); 4] = [
    ("defaults", &[]),
    ("namespaced", &["--set", "watchNamespaces={team-a,team-b}", "--set", "rbac.aggregateToUserRoles=false"]),
    (
        "least",
        &[
            "--set",
            "replicas=1,crds.install=false,serviceAccount.create=false,serviceAccount.name=own,rbac.create=false",
            "--set",
            "rbac.aggregateToUserRoles=false,podDisruptionBudget.create=false,metricsService.create=false",
        ],
    ),
    (
        "most",
        &[
            "--set",
            "replicas=3,image.tag=1.2.3,image.pullPolicy=Always,imagePullSecrets[0].name=registry,concurrency=32",
            "--set",
            "log.format=text,crds.keep=false,priorityClassName=system-cluster-critical,podLabels.team=a",
            "--set",
            "podAnnotations.note=b,serviceAccount.annotations.role=c,metricsService.annotations.scrape=yes",
            "--set-json",
            r#"nodeSelector={"kubernetes.io/os":"linux"},tolerations=[{"key":"dedicated","operator":"Exists"}]"#,
            "--set-json",
            r#"affinity={"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[]}}"#,
        ],
    ),
];

/// The text that helm renders.
fn render(values: &[&str]) -> String {
    let mut args = vec!["template", "release", CHART, "--namespace", "operators"];
    args.extend(values);
    let answer = api().helm(&args);
    assert!(answer.ok, "{values:?}: {}", answer.text);
    answer.text
}

/// The rendered objects.
fn objects(values: &[&str]) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(&render(values)).expect("helm renders YAML");
    objects.into_iter().filter(|object| !object.is_null()).collect()
}

/// The only object of a kind.
fn object(objects: &[Value], kind: &str) -> Value {
    let found: Vec<&Value> = objects.iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "one {kind}");
    found[0].clone()
}

/// Kinds and names, sorted.
fn inventory(objects: &[Value]) -> BTreeSet<String> {
    let name = |object: &Value| {
        let namespace = object["metadata"]["namespace"].as_str().map_or(String::new(), |name| format!("{name}/"));
        format!("{} {namespace}{}", text(&object["kind"]), text(&object["metadata"]["name"]))
    };
    objects.iter().map(name).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn file(path: &str) -> String {
    let path = PathBuf::from(CHART).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
