//! The schema of `TieredCache` against a real API server: every rule with what it accepts and what it refuses, and what
//! `kubectl` shows of it all.

use serde_json::Value;

use crate::api::{Answer, kubectl, namespace};

mod changes;
mod fields;
mod redis;
mod shown;
mod sums;

/// Asks the API server what it would do with a new cache of this name and spec (YAML in flow style).
fn create(name: &str, spec: &str) -> Answer {
    // Refused names are given as they are, so they are quoted.
    let manifest = format!(
        "{{apiVersion: tieredcache.io/v1alpha1, kind: TieredCache, metadata: {{name: {name:?}}}, spec: {spec}}}"
    );
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
