//! The operator's program against a real API server, with the controllers of Kubernetes and a stand-in for kubelets.

mod chaos;
mod kstatus;
mod kubelet;
mod life;
mod managed_redis;
mod process;
mod real_nodes;
mod trouble;
mod unreadable;
mod volumes;

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::{kubelet::Kubelet, process::Start};
use crate::api::{api, namespace, rest};

/// A namespace with its stand-in for kubelets.
struct Lab {
    namespace: String,
    kubelet: Kubelet,
}

/// The kinds that the operator makes, by the paths of their collections under a namespace's.
const CHILDREN: [(&str, &str); 6] = [
    ("/api/v1", "serviceaccounts"),
    ("/api/v1", "configmaps"),
    ("/api/v1", "services"),
    ("/apis/policy/v1", "poddisruptionbudgets"),
    ("/apis/apps/v1", "statefulsets"),
    ("/api/v1", "pods"),
];

/// Polls until `look` gives something.
///
/// # Panics
/// With `what` if it has not after so many seconds.
#[allow(clippy::disallowed_methods, reason = "tests of processes measure real time")]
fn within<T>(seconds: u64, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(seconds), "waited {seconds} s for {what}");
        thread::park_timeout(Duration::from_millis(50));
    }
}

/// The cache as the API server has it.
fn cache(namespace: &str, name: &str) -> Option<Value> {
    rest().get(&format!("/apis/tieredcache.io/v1alpha1/namespaces/{namespace}/tieredcaches/{name}"))
}

/// A condition of a cache, as in `True AllNodesReady`.
fn says(cache: &Value, kind: &str) -> String {
    let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default();
    let word = |field: &str| found[field].as_str().unwrap_or("-").to_owned();
    format!("{} {}", word("status"), word("reason"))
}

/// The message of a condition.
fn message(cache: &Value, kind: &str) -> String {
    let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default();
    found["message"].as_str().unwrap_or_default().to_owned()
}

// === impl Lab ===

impl Lab {
    fn new(test: &str) -> Self {
        let namespace = namespace(test);
        let kubelet = Kubelet::of(&namespace);
        Self { namespace, kubelet }
    }

    /// Waits for an event of this reason.
    fn until_event(&self, reason: &str) {
        let events = || rest().list(&self.path("/apis/events.k8s.io/v1", "events"));
        within(10, reason, || events().iter().any(|event| event["reason"] == reason).then_some(()));
    }

    /// An operator for this namespace alone.
    fn operator(&self) -> Start {
        Start::in_namespace(&self.namespace)
    }

    /// Makes a cache.
    fn apply(&self, name: &str, spec: Value) {
        let path = self.caches();
        let kind = json!({"apiVersion": "tieredcache.io/v1alpha1", "kind": "TieredCache"});
        let mut object = kind;
        object["metadata"] = json!({"name": name});
        object["spec"] = spec;
        rest().create(&path, &object);
    }

    /// Changes the spec of a cache.
    fn edit(&self, name: &str, spec: &Value) {
        assert!(rest().merge(&format!("{}/{name}", self.caches()), &json!({"spec": spec})), "{name} is there");
    }

    /// Deletes a cache.
    fn delete(&self, name: &str) {
        assert!(rest().delete(&format!("{}/{name}", self.caches())), "{name} was there");
    }

    fn caches(&self) -> String {
        self.path("/apis/tieredcache.io/v1alpha1", "tieredcaches")
    }

    /// Path of a collection in this namespace.
    fn path(&self, group: &str, collection: &str) -> String {
        format!("{group}/namespaces/{}/{collection}", self.namespace)
    }

    /// The cache as the API server has it.
    fn cache(&self, name: &str) -> Value {
        cache(&self.namespace, name).expect("the cache is there")
    }

    /// Waits until a condition of the generation that is there now says so.
    fn until(&self, name: &str, kind: &str, wanted: &str) -> Value {
        let mut last = Value::Null;
        let look = || {
            last = self.cache(name);
            let current = last["status"]["observedGeneration"] == last["metadata"]["generation"];
            (current && says(&last, kind) == wanted).then(|| last.clone())
        };
        // The machine may be busy with other tests. What has a limit of its own is measured where it is tested.
        within(120, &format!("{kind} of {name} to be {wanted}"), look)
    }

    fn until_ready(&self, name: &str) -> Value {
        self.until(name, "Ready", "True AllNodesReady")
    }

    /// Everything that belongs to caches of this namespace, without what differs from run to run.
    fn state(&self) -> Vec<Value> {
        let lists = CHILDREN.iter().flat_map(|(group, collection)| {
            let selector = "labelSelector=app.kubernetes.io/managed-by%3Dtieredcache-operator";
            rest().list(&format!("{}?{selector}", self.path(group, collection)))
        });
        let mut objects: Vec<Value> = lists.map(canonical).collect();
        objects.sort_by_key(Value::to_string);
        objects
    }

    /// Writes to this namespace by the operator so far, the Lease aside, as `verb resource/name`.
    fn writes(&self) -> Vec<String> {
        let entries = api().cluster.writes_in(&self.namespace).expect("the API server keeps an audit log");
        let ours = entries.into_iter().filter(|entry| {
            let agent = entry["userAgent"].as_str().unwrap_or_default();
            agent.starts_with("tieredcache-operator/") && entry["objectRef"]["resource"] != "leases"
        });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let describe = |entry: Value| {
            let object = &entry["objectRef"];
            format!("{} {}/{}", text(&entry["verb"]), text(&object["resource"]), text(&object["name"]))
        };
        ours.map(describe).collect()
    }

    /// Asserts that nothing is written for so many seconds.
    fn assert_silent_for(&self, seconds: u64) {
        // The audit log is written in batches; what was written before must be in it before counting begins.
        thread::park_timeout(Duration::from_secs(2));
        let before = self.writes().len();
        #[allow(clippy::disallowed_methods, reason = "tests of processes measure real time")]
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(seconds) {
            let writes = self.writes();
            assert_eq!(writes.len(), before, "written in a steady state: {:?}", &writes[before..]);
            thread::park_timeout(Duration::from_secs(1));
        }
    }
}

/// Drops what Kubernetes makes up anew each time.
fn canonical(mut object: Value) -> Value {
    const MADE_UP: [&str; 14] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "generation",
        "clusterIP",
        "clusterIPs",
        "status",
        "selfLink",
        "namespace",
        "controller-revision-hash",
        "config.yaml",
        "tieredcache.io/template",
        "configMap",
    ];
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|key, _| !MADE_UP.contains(&key.as_str()));
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut object);
    // The name of a configuration carries a hash over the cache's UID.
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if let Some((stem, _)) = name.split_once("-config-") {
        object["metadata"]["name"] = json!(format!("{stem}-config"));
    }
    object
}
