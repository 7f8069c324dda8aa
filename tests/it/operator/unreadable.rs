//! Objects that an earlier version may have stored, before there were rules. On an API server of its own, whose resource
//! has no rules at all.

use serde_json::{Value, json};

use super::{Start, message, says, within};
use crate::api::{Api, CRD};

/// The API server without rules.
struct Lax(Api);

impl Lax {
    fn up() -> Self {
        let lax = Self(Api::start("-lax"));
        assert!(lax.0.kubectl(&["apply", "--server-side", "-f", "-"], CRD).ok);
        let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let patch = json!([
            {"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "value": anything},
            {"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/x-kubernetes-validations"},
        ]);
        let crd = "crd/tieredcaches.tieredcache.io";
        let patched = lax.0.kubectl(&["patch", crd, "--type=json", "-p", &patch.to_string()], "");
        assert!(patched.ok, "{}", patched.text);
        assert!(lax.0.kubectl(&["wait", crd, "--for=condition=Established", "--timeout=30s"], "").ok);
        lax
    }

    fn apply(&self, name: &str, spec: &Value) {
        let object = json!({
            "apiVersion": "tieredcache.io/v1alpha1", "kind": "TieredCache",
            "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        });
        // The rules may be in force for a moment after they were taken away.
        within(30, &format!("{name} to be taken"), || {
            self.0.kubectl(&["apply", "-f", "-"], &object.to_string()).ok.then_some(())
        });
    }

    fn until_ready_says(&self, name: &str, wanted: &str) -> Value {
        within(120, &format!("{name} to be {wanted}"), || {
            let text = self.0.kubectl(&["get", "tc", name, "-n", "default", "-o", "json"], "").text;
            serde_json::from_str::<Value>(&text).ok().filter(|cache| says(cache, "Ready") == wanted)
        })
    }
}

#[test]
fn objects_that_can_not_be_acted_on_are_told_why_and_stop_no_other() {
    let lax = Lax::up();
    lax.apply("unreadable", &json!({"memory": {"capacity": "heaps"}}));
    lax.apply("starved", &json!({"resources": {"limits": {"memory": "100Mi"}}}));
    // Cluster-wide: no namespace is named.
    let operator =
        Start::in_namespace("default").cluster_wide().with_kubeconfig(lax.0.cluster.kubeconfig_path()).start();
    lax.apply("good", &json!({"replicas": 1}));
    lax.until_ready_says("good", "False Starting");
    let cache = lax.until_ready_says("unreadable", "False InvalidSpec");
    assert!(message(&cache, "Ready").contains("\"heaps\" is not a size"), "{cache}");
    let cache = lax.until_ready_says("starved", "False InvalidSpec");
    assert!(message(&cache, "Ready").contains("needs at least 544Mi"), "{cache}");
    let events = || lax.0.kubectl(&["get", "events", "-n", "default", "-o", "jsonpath={.items[*].reason}"], "").text;
    within(10, "the event", || events().contains("InvalidSpec").then_some(()));
    let sets = lax.0.kubectl(&["get", "sts", "-n", "default", "-o", "name"], "");
    assert_eq!(sets.text.trim(), "statefulset.apps/good");
    // The way out that the message names.
    lax.apply("unreadable", &json!({"memory": {"capacity": "64Mi"}}));
    lax.until_ready_says("unreadable", "False Starting");
    assert_eq!(operator.admin("/livez").0, 200);
}
