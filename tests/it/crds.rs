//! The schema of `TieredCache` against a real API server: every rule with what it accepts and what it refuses, and what
//! `kubectl` shows of it all.

use std::fs;

use serde_json::{Value, json};

use crate::api::{Answer, api, kubectl, namespace};

/// Asks the API server what it would do with a new cache of this name and spec (YAML in flow style).
fn create(name: &str, spec: &str) -> Answer {
    // Refused names are given as they are, so they are quoted.
    let manifest = format!(
        "{{apiVersion: tieredcache.io/v1alpha1, kind: TieredCache, metadata: {{name: {name:?}}}, spec: {spec}}}"
    );
    api();
    kubectl(&["create", "--dry-run=server", "-o", "json", "-f", "-"], &manifest)
}

fn assert_accepted(specs: &[&str]) {
    for spec in specs {
        let answer = create("cache", spec);
        assert!(answer.ok, "{spec} should be accepted: {}", answer.text);
    }
}

/// Each spec is refused, and the message names the field, the value and the limit.
fn assert_refused(cases: &[(&str, &[&str])]) {
    for (spec, words) in cases {
        let answer = create("cache", spec);
        assert!(!answer.ok, "{spec} should be refused");
        assert_says(&answer, words, spec);
    }
}

fn assert_says(answer: &Answer, words: &[&str], about: &str) {
    for word in words {
        assert!(answer.text.contains(word), "{about} should be answered with {word:?}: {}", answer.text);
    }
}

/// A stored cache, and what the API server says to merge patches of its spec.
struct Stored {
    namespace: String,
}

// === impl Stored ===

impl Stored {
    fn new(test: &str, spec: &str) -> Self {
        let namespace = namespace(test);
        let manifest = format!(
            "{{apiVersion: tieredcache.io/v1alpha1, kind: TieredCache, metadata: {{name: cache}}, spec: {spec}}}"
        );
        let answer = kubectl(&["-n", &namespace, "create", "-f", "-"], &manifest);
        assert!(answer.ok, "{}", answer.text);
        Self { namespace }
    }

    fn kubectl(&self, args: &[&str]) -> Answer {
        let mut all = vec!["-n", self.namespace.as_str()];
        all.extend(args);
        kubectl(&all, "")
    }

    fn patch(&self, spec: &str) -> Answer {
        let patch = format!("{{\"spec\": {spec}}}");
        self.kubectl(&["patch", "tc", "cache", "--type=merge", "--dry-run=server", "-p", &patch])
    }

    fn assert_patch_accepted(&self, spec: &str) {
        let answer = self.patch(spec);
        assert!(answer.ok, "{spec} should be accepted: {}", answer.text);
    }

    fn assert_patch_refused(&self, spec: &str, words: &[&str]) {
        let answer = self.patch(spec);
        assert!(!answer.ok, "{spec} should be refused");
        assert_says(&answer, words, spec);
    }

    fn json(&self) -> Value {
        let answer = self.kubectl(&["get", "tc", "cache", "-o", "json"]);
        serde_json::from_str(&answer.text).expect("kubectl prints JSON")
    }
}

#[test]
fn an_empty_spec_is_stored_with_every_default() {
    let stored = Stored::new("defaults", "{}");
    assert_eq!(
        stored.json()["spec"],
        json!({
            "replicas": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "imagePullPolicy": "IfNotPresent",
            "memory": {"capacity": "256Mi", "policy": "S3Fifo", "maxTtl": "24h"},
            "disk": {
                "mode": "RocksDB",
                "size": "10Gi",
                "maxTtl": "168h",
                "retention": {"whenScaled": "Delete", "whenDeleted": "Retain"},
            },
            "resources": {"requests": {"cpu": "100m"}, "limits": {}},
        })
    );
}

#[test]
fn an_explicit_null_means_the_default() {
    let answer = create(
        "cache",
        "{replicas: null, image: null, memory: {capacity: null}, disk: null, resources: {limits: {memory: null}}}",
    );
    assert!(answer.ok, "{}", answer.text);
    let made: Value = serde_json::from_str(&answer.text).expect("kubectl prints JSON");
    assert_eq!(made["spec"]["replicas"], 1);
    assert_eq!(made["spec"]["memory"]["capacity"], "256Mi");
    assert_eq!(made["spec"]["disk"]["size"], "10Gi");
    assert_eq!(made["spec"].get("image"), None);
    assert_eq!(made["spec"]["resources"]["limits"], json!({}));
}

#[test]
fn names_leave_room_for_names_of_pods() {
    let longest = "a".repeat(40);
    for name in ["a", "session-cache-2", &longest] {
        let answer = create(name, "{}");
        assert!(answer.ok, "{name}: {}", answer.text);
    }
    let too_long = "a".repeat(41);
    for name in ["1a", "a.b", &too_long] {
        let answer = create(name, "{}");
        assert!(!answer.ok, "{name} should be refused");
        assert_says(&answer, &["metadata.name is", name, "at most 40 characters"], name);
    }
}

#[test]
fn replicas_are_0_to_100() {
    assert_accepted(&["{replicas: 0}", "{replicas: 100}"]);
    assert_refused(&[
        ("{replicas: -1}", &["spec.replicas", "-1", "greater than or equal to 0"]),
        ("{replicas: 101}", &["spec.replicas", "101", "less than or equal to 100"]),
    ]);
}

#[test]
fn version_is_a_version() {
    assert_accepted(&["{version: 1.22.333}", "{version: 1.0.0-rc.1}"]);
    assert_refused(&[
        ("{version: latest}", &["spec.version", "latest", "^[0-9]+"]),
        ("{version: '1.0'}", &["spec.version", "1.0", "^[0-9]+"]),
        (&format!("{{version: 1.0.0-{}}}", "a".repeat(60)), &["spec.version", "may not be more than 64"]),
    ]);
}

#[test]
fn image_is_an_image_and_its_policy_one_of_three() {
    let digest = format!("{{image: 'registry.example:5000/a/b@sha256:{}'}}", "0".repeat(64));
    assert_accepted(&["{image: localhost/cache-node:dev}", &digest, "{imagePullPolicy: Never}"]);
    assert_refused(&[
        ("{image: ''}", &["spec.image", "at least 1 chars"]),
        ("{image: 'a b'}", &["spec.image", "a b", "should match"]),
        (&format!("{{image: {}}}", "a".repeat(513)), &["spec.image", "may not be more than 512"]),
        (
            "{imagePullPolicy: Sometimes}",
            &["spec.imagePullPolicy", "Sometimes", "\"IfNotPresent\", \"Always\", \"Never\""],
        ),
    ]);
}

#[test]
fn memory_capacity_is_a_size_from_1mi_to_1ti() {
    assert_accepted(&[
        "{memory: {capacity: 1Mi}}",
        "{memory: {capacity: '1048576'}}",
        "{memory: {capacity: 500M}}",
        "{memory: {capacity: 1Ti}}",
    ]);
    assert_refused(&[
        ("{memory: {capacity: 1048575}}", &["spec.memory.capacity", "must be of type string"]),
        ("{memory: {capacity: '1048575'}}", &["spec.memory.capacity is 1048575; it must be between 1Mi and 1Ti"]),
        ("{memory: {capacity: 1025Gi}}", &["spec.memory.capacity is 1025Gi; it must be between 1Mi and 1Ti"]),
        ("{memory: {capacity: 999999999999999Ti}}", &["spec.memory.capacity is 999999999999999Ti; it must be between"]),
        ("{memory: {capacity: 1.5Gi}}", &["spec.memory.capacity", "1.5Gi", "should match"]),
        ("{memory: {capacity: -1Gi}}", &["spec.memory.capacity", "-1Gi", "should match"]),
    ]);
}

#[test]
fn memory_policy_is_one_of_two() {
    assert_accepted(&["{memory: {policy: S3Fifo}}", "{memory: {policy: TinyLfu}}"]);
    assert_refused(&[("{memory: {policy: Lru}}", &["spec.memory.policy", "Lru", "\"S3Fifo\", \"TinyLfu\""])]);
}

#[test]
fn times_to_live_are_durations_from_1s_to_87600h() {
    for layer in ["memory", "disk"] {
        for good in ["1s", "1000ms", "1h30m", "87600h", "30m", "0h1s"] {
            assert_accepted(&[&format!("{{{layer}: {{maxTtl: {good}}}}}")]);
        }
        for (bad, limit) in [
            ("999ms", "it must be between 1s and 87600h"),
            ("0s", "it must be between 1s and 87600h"),
            ("87601h", "it must be between 1s and 87600h"),
            ("99999h99999h99999h99999h", "it must be between 1s and 87600h"),
            ("7d", "should match"),
            ("'5'", "should match"),
            ("1.5h", "should match"),
            ("999999h", "should match"),
        ] {
            let field = format!("spec.{layer}.maxTtl");
            let value = bad.trim_matches('\'');
            assert_refused(&[(&format!("{{{layer}: {{maxTtl: {bad}}}}}"), &[&field, value, limit])]);
        }
    }
}

#[test]
fn disk_mode_is_one_of_two() {
    assert_accepted(&["{disk: {mode: RocksDB}}", "{disk: {mode: Disabled}}"]);
    assert_refused(&[("{disk: {mode: Rocksdb}}", &["spec.disk.mode", "Rocksdb", "\"RocksDB\", \"Disabled\""])]);
}

#[test]
fn disk_size_is_a_size_from_256mi_to_64ti() {
    assert_accepted(&["{disk: {size: 256Mi}}", "{disk: {size: 64Ti}}"]);
    assert_refused(&[
        ("{disk: {size: 255Mi}}", &["spec.disk.size is 255Mi; it must be between 256Mi and 64Ti"]),
        ("{disk: {size: 65Ti}}", &["spec.disk.size is 65Ti; it must be between 256Mi and 64Ti"]),
        ("{disk: {size: big}}", &["spec.disk.size", "big", "should match"]),
    ]);
}

#[test]
fn storage_class_is_a_name() {
    assert_accepted(&["{disk: {storageClassName: fast.ssd-1}}"]);
    assert_refused(&[
        ("{disk: {storageClassName: ''}}", &["spec.disk.storageClassName", "at least 1 chars"]),
        ("{disk: {storageClassName: Fast_SSD}}", &["spec.disk.storageClassName", "Fast_SSD", "should match"]),
        (
            &format!("{{disk: {{storageClassName: {}}}}}", "a".repeat(254)),
            &["spec.disk.storageClassName", "may not be more than 253"],
        ),
    ]);
}

#[test]
fn retention_is_delete_or_retain() {
    assert_accepted(&[
        "{disk: {retention: {whenScaled: Retain, whenDeleted: Delete}}}",
        "{disk: {retention: {whenScaled: Delete, whenDeleted: Retain}}}",
    ]);
    for field in ["whenScaled", "whenDeleted"] {
        let path = format!("spec.disk.retention.{field}");
        assert_refused(&[(
            &format!("{{disk: {{retention: {{{field}: Recycle}}}}}}"),
            &[&path, "Recycle", "\"Delete\", \"Retain\""],
        )]);
    }
}

#[test]
fn resources_are_amounts_above_zero() {
    assert_accepted(&[
        "{resources: {requests: {cpu: 250m, memory: 544Mi}, limits: {cpu: 2, memory: 1.5Gi}}}",
        "{resources: {requests: {cpu: '0.5'}, limits: {memory: 2147483648}}}",
    ]);
    for (field, nested) in [
        ("requests.cpu", "requests: {cpu: VALUE}"),
        ("requests.memory", "requests: {memory: VALUE}"),
        ("limits.cpu", "limits: {cpu: VALUE}"),
        ("limits.memory", "limits: {memory: VALUE}"),
    ] {
        let path = format!("spec.resources.{field}");
        for (bad, limit) in [
            ("'0'", "it must be more than 0"),
            ("0", "it must be more than 0"),
            ("lots", "should match"),
            ("-1Gi", "should match"),
        ] {
            let spec = format!("{{resources: {{{}}}}}", nested.replace("VALUE", bad));
            assert_refused(&[(&spec, &[&path, bad.trim_matches('\''), limit])]);
        }
    }
}

#[test]
fn memory_limit_holds_capacity_an_eighth_the_process_and_the_disk_layer() {
    assert_accepted(&[
        // 256Mi + 32Mi + 128Mi + 64Mi + 64Mi
        "{resources: {limits: {memory: 544Mi}}}",
        "{disk: {mode: Disabled}, resources: {limits: {memory: 416Mi}}}",
        "{memory: {capacity: 8Gi}, resources: {limits: {memory: 9472Mi}}}",
    ]);
    assert_refused(&[
        (
            "{resources: {limits: {memory: 543Mi}}}",
            &[
                "spec.resources.limits.memory is 543Mi",
                "spec.memory.capacity 256Mi",
                "64Mi for RocksDB",
                "64Mi for the write queue",
                "need at least 544Mi",
            ],
        ),
        (
            "{disk: {mode: Disabled}, resources: {limits: {memory: 415Mi}}}",
            &[
                "spec.resources.limits.memory is 415Mi",
                "spec.memory.capacity 256Mi",
                "128Mi for the process need at least 416Mi",
            ],
        ),
        (
            "{memory: {capacity: 8Gi}, resources: {limits: {memory: 9471Mi}}}",
            &["spec.resources.limits.memory is 9471Mi", "spec.memory.capacity 8Gi", "need at least 9472Mi"],
        ),
    ]);
}

#[test]
fn memory_limit_still_holds_when_only_one_side_changes() {
    let stored = Stored::new("memory-sum", "{resources: {limits: {memory: 1Gi}}}");
    stored.assert_patch_accepted(r#"{"memory": {"capacity": "640Mi"}}"#);
    stored.assert_patch_refused(
        r#"{"memory": {"capacity": "1Gi"}}"#,
        &["spec.resources.limits.memory is 1Gi", "spec.memory.capacity 1Gi", "need at least 1408Mi"],
    );
    stored.assert_patch_accepted(r#"{"memory": {"capacity": "1Gi"}, "resources": {"limits": {"memory": null}}}"#);
}

#[test]
fn memory_request_is_at_most_the_limit_given_or_computed() {
    assert_accepted(&[
        "{resources: {requests: {memory: 1Gi}, limits: {memory: 1Gi}}}",
        "{resources: {requests: {memory: 544Mi}}}",
    ]);
    assert_refused(&[
        (
            "{resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}}",
            &["spec.resources.requests.memory is 2Gi; it must be at most spec.resources.limits.memory, which is 1Gi"],
        ),
        (
            "{resources: {requests: {memory: 545Mi}}}",
            &["spec.resources.requests.memory is 545Mi; it must be at most the memory limit, which is 544Mi"],
        ),
    ]);
}

#[test]
fn cpu_request_is_at_most_the_limit() {
    assert_accepted(&["{resources: {requests: {cpu: 2000m}, limits: {cpu: 2}}}", "{resources: {requests: {cpu: 64}}}"]);
    assert_refused(&[
        (
            "{resources: {requests: {cpu: 2001m}, limits: {cpu: 2}}}",
            &["spec.resources.requests.cpu is 2001m; it must be at most spec.resources.limits.cpu, which is 2"],
        ),
        // The default request counts too.
        ("{resources: {limits: {cpu: 50m}}}", &["spec.resources.requests.cpu is 100m", "which is 50m"]),
    ]);
}

#[test]
fn disk_mode_is_fixed() {
    let stored = Stored::new("mode", "{disk: {mode: Disabled}}");
    stored.assert_patch_accepted(r#"{"disk": {"mode": "Disabled"}, "replicas": 2}"#);
    let words = ["spec.disk.mode is Disabled and can not be changed to RocksDB", "create another cache"];
    stored.assert_patch_refused(r#"{"disk": {"mode": "RocksDB"}}"#, &words);
    // Taking the field away would bring the default, which is another mode.
    stored.assert_patch_refused(r#"{"disk": {"mode": null}}"#, &words);
    stored.assert_patch_refused(r#"{"disk": null}"#, &words);
}

#[test]
fn disk_size_is_fixed() {
    let stored = Stored::new("size", "{disk: {size: 2Gi}}");
    stored.assert_patch_accepted(r#"{"disk": {"size": "2048Mi"}}"#);
    stored.assert_patch_refused(
        r#"{"disk": {"size": "3Gi"}}"#,
        &["spec.disk.size is 2Gi and can not be changed to 3Gi", "create another cache"],
    );
    stored
        .assert_patch_refused(r#"{"disk": {"size": "1Gi"}}"#, &["spec.disk.size is 2Gi and can not be changed to 1Gi"]);
    stored
        .assert_patch_refused(r#"{"disk": {"size": null}}"#, &["spec.disk.size is 2Gi and can not be changed to 10Gi"]);
}

#[test]
fn storage_class_can_be_neither_added_nor_changed_nor_removed() {
    let without = Stored::new("class-without", "{}");
    without.assert_patch_accepted(r#"{"disk": {"maxTtl": "1h"}}"#);
    let words = ["spec.disk.storageClassName is the default class and can not be changed to fast"];
    without.assert_patch_refused(r#"{"disk": {"storageClassName": "fast"}}"#, &words);

    let with = Stored::new("class-with", "{disk: {storageClassName: fast}}");
    with.assert_patch_accepted(r#"{"disk": {"maxTtl": "1h"}}"#);
    with.assert_patch_refused(r#"{"disk": {"storageClassName": "slow"}}"#, &["is fast and can not be changed to slow"]);
    with.assert_patch_refused(
        r#"{"disk": {"storageClassName": null}}"#,
        &["is fast and can not be changed to the default class"],
    );
}

#[test]
fn misspelt_fields_are_refused_by_name() {
    assert_refused(&[
        ("{memory: {capcity: 1Gi}}", &["unknown field", "spec.memory.capcity"]),
        (
            "{resources: {limits: {ephemeral-storage: 1Gi}}}",
            &["unknown field", "spec.resources.limits.ephemeral-storage"],
        ),
    ]);
}

#[test]
fn every_example_is_accepted() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/examples");
    let mut names: Vec<_> =
        fs::read_dir(folder).expect("examples exist").map(|entry| entry.expect("readable").path()).collect();
    names.sort();
    assert!(names.len() >= 4, "{names:?}");
    let namespace = namespace("examples");
    for path in names {
        let answer = kubectl(&["-n", &namespace, "apply", "-f", &path.to_string_lossy()], "");
        assert!(answer.ok && answer.text.contains("created"), "{}: {}", path.display(), answer.text);
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
fn kubectl_get_shows_the_state_at_a_glance() {
    let stored = Stored::new("columns", "{replicas: 3}");
    let status = r#"{"status": {"replicas": 3, "readyReplicas": 2, "updatedReplicas": 3, "version": "0.1.0",
        "selector": "app.kubernetes.io/instance=cache",
        "conditions": [{"type": "Ready", "status": "False", "reason": "NodesNotReady", "message": "1 of 3 nodes",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}],
        "layers": [{"name": "Memory", "health": "Healthy", "nodesHealthy": 2, "nodesTotal": 3},
            {"name": "Disk", "health": "Unknown", "nodesHealthy": 2, "nodesTotal": 3}],
        "nodes": [{"name": "cache-0", "ready": true, "unhealthyLayers": ["Disk"]}]}}"#;
    let answer = stored.kubectl(&["patch", "tc", "cache", "--subresource=status", "--type=merge", "-p", status]);
    assert!(answer.ok, "{}", answer.text);
    let table = stored.kubectl(&["get", "tc"]).text;
    let words = |line: usize| -> Vec<String> {
        table.lines().nth(line).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(words(0), ["NAME", "READY", "DESIRED", "STATUS", "MEMORY", "DISK", "VERSION", "AGE"]);
    assert_eq!(words(1)[..7], ["cache", "2", "3", "NodesNotReady", "Healthy", "Unknown", "0.1.0"]);
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
    api();
    for (path, words) in [
        ("tc", &["A fleet of layered cache servers"][..]),
        ("tc.spec", &["replicas", "Default 1", "restarts none", "L1, the memory layer"]),
        (
            "tc.spec.memory",
            &["`256Mi`", "1Mi to 1Ti", "Default 256Mi", "restarts the nodes one at a time", "TinyLfu", "`30m`"],
        ),
        ("tc.spec.disk", &["RocksDB", "Fixed when the cache is created", "Default 10Gi", "Default 168h"]),
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
