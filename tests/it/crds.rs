//! The schema of `TieredCache` against a real API server: every rule with what it accepts and what it refuses, and what
//! `kubectl` shows of it all.

use serde_json::{Value, json};

use crate::api::{Answer, kubectl, namespace, rest};

mod changes;
mod fields;
mod redis;
mod rules;
mod shown;
mod sums;

/// Asks the API server what it would do with a new cache of this name and spec (YAML in flow style).
fn create(name: &str, spec: &str) -> Answer {
    let kind = json!({"apiVersion": "tieredcache.io/v1alpha1", "kind": "TieredCache"});
    send("POST", &format!("{}?{DRY_RUN}", caches("default")), "application/json", &object(kind, name, spec))
}

/// As kubectl asks for it: misspelt fields are refused.
const DRY_RUN: &str = "dryRun=All&fieldValidation=Strict";

/// An object of this kind with this name and spec (YAML in flow style).
fn object(kind: Value, name: &str, spec: &str) -> Value {
    let mut object = kind;
    object["metadata"] = json!({"name": name});
    object["spec"] = yaml(spec);
    object
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn caches(namespace: &str) -> String {
    format!("/apis/tieredcache.io/v1alpha1/namespaces/{namespace}/tieredcaches")
}

/// Sends an object or a patch, which takes a tenth of the time of a run of kubectl; answers what became of it, or the
/// message that kubectl would show.
fn send(method: &str, path: &str, kind: &str, body: &Value) -> Answer {
    let (code, answer) = rest().call(method, path, Some((kind, body)));
    let ok = matches!(code, 200 | 201);
    let text = if ok { answer.to_string() } else { answer["message"].as_str().unwrap_or_default().to_owned() };
    Answer { ok, text }
}

/// What would become of the object at this path with this spec merged into its own.
fn patch(path: &str, spec: &str) -> Answer {
    let patch = json!({"spec": yaml(spec)});
    send("PATCH", &format!("{path}?{DRY_RUN}"), "application/merge-patch+json", &patch)
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
        patch(&format!("{}/cache", caches(&self.namespace)), spec)
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
