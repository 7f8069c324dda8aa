//! What `kubectl` shows: examples, columns, scale, conditions and documentation.

use std::fs;

use serde_json::json;

use super::{Stored, assert_says};
use crate::api::{kubectl, namespace};

#[test]
fn every_example_is_accepted() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/examples");
    let mut names: Vec<_> =
        fs::read_dir(folder).expect("examples exist").map(|entry| entry.expect("readable").path()).collect();
    names.sort();
    assert!(names.len() >= 7, "{names:?}");
    let namespace = namespace("examples");
    for path in names {
        let answer = kubectl(&["-n", &namespace, "apply", "-f", &path.to_string_lossy()], "");
        assert!(answer.ok && answer.text.contains("created"), "{}: {}", path.display(), answer.text);
    }
}

#[test]
fn what_the_readme_asks_for_is_accepted() {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```yaml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0));
    let caches: Vec<&str> = blocks.filter(|block| block.contains("kind: TieredCache")).collect();
    assert!(!caches.is_empty(), "the tutorial asks for a cache");
    for cache in caches {
        let answer = kubectl(&["-n", &namespace("readme"), "apply", "-f", "-"], cache);
        assert!(answer.ok && answer.text.contains("created"), "{cache}{}", answer.text);
    }
}

#[test]
fn kubectl_scale_sets_replicas_within_the_limit() {
    let stored = Stored::new("scale", "{}");
    let answer = stored.kubectl(&["scale", "tc/cache", "--replicas=5"]);
    assert!(answer.ok, "{}", answer.text);
    assert_eq!(stored.json()["spec"]["replicas"], 5);
    let refused = stored.kubectl(&["scale", "tc/cache", "--replicas=101"]);
    assert!(!refused.ok);
    assert_says(&refused, &["spec.replicas", "101", "less than or equal to 100"], "scaling");
}

#[test]
fn a_new_cache_says_that_nobody_has_looked_at_it() {
    let stored = Stored::new("unseen", "{}");
    assert_eq!(stored.json()["status"]["observedGeneration"], -1);
    let waits = stored.kubectl(&["wait", "tc/cache", "--for=condition=Ready", "--timeout=1s"]);
    assert!(!waits.ok, "{}", waits.text);
}

#[test]
fn kubectl_get_shows_the_state_at_a_glance() {
    let stored = Stored::new("columns", "{replicas: 3}");
    let status = r#"{"status": {"replicas": 3, "readyReplicas": 2, "updatedReplicas": 3, "version": "0.1.0",
        "selector": "app.kubernetes.io/instance=cache",
        "conditions": [{"type": "Ready", "status": "False", "reason": "NodesNotReady", "message": "1 of 3 nodes",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}],
        "layers": [{"name": "Memory", "health": "Healthy", "nodesHealthy": 2, "nodesTotal": 3},
            {"name": "Redis", "health": "Unavailable", "nodesHealthy": 0, "nodesTotal": 3},
            {"name": "Disk", "health": "Unknown", "nodesHealthy": 2, "nodesTotal": 3},
            {"name": "Backplane", "health": "Degraded", "nodesHealthy": 2, "nodesTotal": 3}],
        "nodes": [{"name": "cache-0", "ready": true, "unhealthyLayers": ["Disk"]}]}}"#;
    let answer = stored.kubectl(&["patch", "tc", "cache", "--subresource=status", "--type=merge", "-p", status]);
    assert!(answer.ok, "{}", answer.text);
    let table = stored.kubectl(&["get", "tc"]).text;
    let words = |line: usize| -> Vec<String> {
        table.lines().nth(line).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let columns = ["NAME", "READY", "DESIRED", "STATUS", "MEMORY", "REDIS", "DISK", "BACKPLANE", "VERSION", "AGE"];
    assert_eq!(words(0), columns);
    let row = ["cache", "2", "3", "NodesNotReady", "Healthy", "Unavailable", "Unknown", "Degraded", "0.1.0"];
    assert_eq!(words(1)[..9], row);
    let all = stored.kubectl(&["get", "all"]).text;
    assert!(all.contains("tieredcache.tieredcache.io/cache"), "{all}");
    let scale = stored.kubectl(&["get", "tc", "cache", "--subresource=scale", "-o", "jsonpath={.status}"]).text;
    assert!(scale.contains("\"selector\":\"app.kubernetes.io/instance=cache\""), "{scale}");
}

#[test]
fn conditions_of_two_writers_stand_side_by_side() {
    let stored = Stored::new("conditions", "{}");
    for (writer, condition) in [("one", "Ready"), ("two", "Audited")] {
        let manifest = json!({
            "apiVersion": "tieredcache.io/v1alpha1",
            "kind": "TieredCache",
            "metadata": {"name": "cache"},
            "status": {"conditions": [{"type": condition, "status": "True", "reason": "Because", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        let args = [
            "-n",
            &stored.namespace,
            "apply",
            "--server-side",
            "--subresource=status",
            "--field-manager",
            writer,
            "-f",
            "-",
        ];
        let answer = kubectl(&args, &manifest.to_string());
        assert!(answer.ok, "{}", answer.text);
    }
    let status = stored.json();
    let types: Vec<&str> = status["status"]["conditions"]
        .as_array()
        .expect("conditions are a list")
        .iter()
        .filter_map(|condition| condition["type"].as_str())
        .collect();
    assert_eq!(types, ["Ready", "Audited"]);
}

#[test]
fn kubectl_explain_reads_like_documentation() {
    for (path, words) in [
        ("tc", &["A fleet of layered cache servers"][..]),
        ("tc.spec", &["replicas", "Default 1", "restarts none", "L1, the memory layer"]),
        (
            "tc.spec.memory",
            &["`256Mi`", "1Mi to 1Ti", "Default 256Mi", "restarts the nodes one at a time", "TinyLfu", "`30m`"],
        ),
        (
            "tc.spec.disk",
            &["RocksDB", "may grow, not shrink", "Fixed when the cache is created", "Default 10Gi", "Default 168h"],
        ),
        ("tc.spec.redis", &["External", "Default 4h", "Valkey 7.2"]),
        (
            "tc.spec.backplane",
            &["Default 3s", "counted as stale", "half of `redis.managed.memory`", "`Queue` (default) answers `QUEUED`"],
        ),
        ("tc.spec.redis.external.credentialsSecretRef", &["Default `password`"]),
        ("tc.spec.disk.retention", &["Delete", "Retain", "starts cold"]),
        ("tc.spec.resources.limits", &["128Mi for the process", "Default: no limit"]),
        ("tc.status", &["conditions", "`Ready` is `True` when"]),
        ("tc.status.layers", &["The worst health"]),
    ] {
        // The text is wrapped for a terminal.
        let explained = kubectl(&["explain", path], "").text.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(explained.contains(word), "kubectl explain {path} should say {word:?}: {explained}");
        }
        assert!(!explained.contains("<no description>") && !explained.contains("<empty>"), "{path}: {explained}");
    }
}
