//! What the tests of fleets share: the cluster with the operator installed, a namespace of its own for each test, a
//! client pod, and waiting for a condition with a limit.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::cluster::{Cluster, TOOLS_IMAGE, shared};

/// How often a condition is looked at while waiting for it.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// Where the operator is installed.
pub(crate) const OPERATOR_NAMESPACE: &str = "tieredcache-system";

/// A namespace with a client pod and whatever caches a test makes there; removed when dropped.
pub(crate) struct Fleet {
    pub(crate) cluster: &'static Cluster,
    pub(crate) namespace: String,
}

/// The shared cluster with the operator installed, once for all tests.
pub(crate) fn cluster() -> &'static Cluster {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    let cluster = shared();
    INSTALLED.get_or_init(|| install_operator(cluster));
    cluster
}

fn install_operator(cluster: &Cluster) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/tieredcache-operator");
    let output = cluster
        .helm_command()
        .expect("the cluster is up")
        .args(["upgrade", "--install", "tieredcache", &chart.to_string_lossy()])
        .args(["--namespace", OPERATOR_NAMESPACE, "--create-namespace"])
        .args(["--set", "image.repository=localhost/tieredcache/operator"])
        .args(["--set", "nodeImage.repository=localhost/tieredcache/cache-node"])
        .args(["--wait", "--timeout", "120s"])
        .output()
        .expect("helm runs");
    assert!(output.status.success(), "the chart installs: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until `look` gives a value, and says what was last seen if it does not within `limit`.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if started.elapsed() > limit => panic!("{what}: not within {limit:?}; last seen: {seen}"),
            Err(_) => thread::sleep(POLL_EVERY),
        }
    }
}

/// `Ok` if the two are equal; else what was seen.
pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(seen: T, wanted: T) -> Result<(), String> {
    if seen == wanted { Ok(()) } else { Err(format!("{seen:?} instead of {wanted:?}")) }
}

// === impl Fleet ===

impl Fleet {
    /// A namespace of this name, which enforces the restricted Pod Security Standard, with a client pod.
    pub(crate) fn new(namespace: &str) -> Self {
        let fleet = Self { cluster: cluster(), namespace: namespace.to_owned() };
        fleet
            .cluster
            .kubectl(["delete", "namespace", namespace, "--ignore-not-found", "--timeout=60s"])
            .expect("a clean start");
        fleet
            .cluster
            .apply(&format!(
                "apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {namespace}}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: client
      image: {TOOLS_IMAGE}
      command: [sleep, '86400']
      securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
"
            ))
            .expect("namespace and client pod are made");
        fleet.kubectl(&["wait", "pod/client", "--for=condition=Ready", "--timeout=60s"]);
        fleet
    }

    /// kubectl in the fleet's namespace; panics with its message when it fails.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|message| panic!("kubectl {}: {message}", arguments.join(" ")))
    }

    /// kubectl in the fleet's namespace.
    pub(crate) fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let all = ["-n", self.namespace.as_str()].into_iter().chain(arguments.iter().copied());
        self.cluster.kubectl(all).map(|output| output.trim_end().to_owned()).map_err(|error| error.to_string())
    }

    /// Applies a cache of this name whose spec is the given YAML, in braces.
    pub(crate) fn apply(&self, name: &str, spec: &str) {
        let namespace = &self.namespace;
        let manifest = format!(
            "apiVersion: tieredcache.io/v1alpha1\nkind: TieredCache\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        );
        self.cluster.apply(&manifest).expect("the cache is accepted");
    }

    /// The object as JSON.
    pub(crate) fn get(&self, object: &str) -> Result<Value, String> {
        let text = self.try_kubectl(&["get", object, "-o", "json"])?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// Status, reason and message of a condition of a cache.
    pub(crate) fn condition(&self, cache: &str, kind: &str) -> Result<(String, String, String), String> {
        let object = self.get(&format!("tc/{cache}"))?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions
            .iter()
            .find(|condition| condition["type"] == kind)
            .ok_or_else(|| format!("no condition {kind}"))?;
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason"), text("message")))
    }

    /// Waits until the cache is ready with so many nodes of its current generation.
    pub(crate) fn await_ready(&self, cache: &str, replicas: u64, limit: Duration) {
        eventually(&format!("{cache} is ready with {replicas} nodes"), limit, || {
            let object = self.get(&format!("tc/{cache}"))?;
            equal(object["status"]["observedGeneration"].clone(), object["metadata"]["generation"].clone())?;
            equal(object["status"]["readyReplicas"].as_u64().unwrap_or(0), replicas)?;
            let (status, reason, message) = self.condition(cache, "Ready")?;
            equal(status, "True".to_owned()).map_err(|_| format!("Ready is not True: {reason}: {message}"))
        });
    }

    /// redis-cli in the client pod; its answer without the line end.
    pub(crate) fn redis(&self, host: &str, arguments: &[&str]) -> String {
        let all = [&["exec", "client", "--", "redis-cli", "-h", host], arguments].concat();
        self.kubectl(&all)
    }

    /// Feeds commands, one a line, to redis-cli in the client pod; returns the answers, one a line.
    pub(crate) fn redis_script(&self, host: &str, commands: &str) -> Result<String, String> {
        let mut child = self
            .cluster
            .kubectl_command()
            .map_err(|error| error.to_string())?
            .args(["-n", &self.namespace, "exec", "-i", "client", "--", "redis-cli", "-h", host])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut input = child.stdin.take().expect("stdin is piped");
        let commands = commands.to_owned();
        // Writing from a thread: the answers would fill the pipe before all commands are written.
        let writer = thread::spawn(move || std::io::Write::write_all(&mut input, commands.as_bytes()));
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        drop(writer.join());
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Waits until the pod is another one than `uid` and ready.
    pub(crate) fn await_new_pod(&self, pod: &str, uid: &str, limit: Duration) {
        eventually(&format!("{pod} is back"), limit, || {
            let object = self.get(&format!("pod/{pod}"))?;
            if object["metadata"]["uid"] == uid {
                return Err("still the old pod".to_owned());
            }
            pod_ready(&object)
        });
    }

    /// UID of a pod.
    pub(crate) fn pod_uid(&self, pod: &str) -> String {
        let object = self.get(&format!("pod/{pod}")).expect("the pod exists");
        object["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
    }

    /// The process of the cache node in this pod, as the machine's process id.
    pub(crate) fn node_process(&self, pod: &str) -> u32 {
        let uid = self.pod_uid(pod);
        eventually(&format!("the process of {pod}"), Duration::from_secs(20), || process_of(&uid, "cache-node"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // A failed test leaves its namespace for whoever looks into it.
        if !thread::panicking() {
            drop(self.cluster.kubectl(["delete", "namespace", &self.namespace, "--wait=false"]));
        }
    }
}

/// The process that runs this program in the pod of this UID, as the machine's process id.
pub(crate) fn process_of(uid: &str, program: &str) -> Result<u32, String> {
    let found = Command::new("pgrep").args(["-x", program]).output().map_err(|error| error.to_string())?;
    String::from_utf8_lossy(&found.stdout)
        .lines()
        .filter_map(|line| line.parse().ok())
        .find(|pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroup| cgroup.contains(uid))
        })
        .ok_or_else(|| format!("no process {program} of pod {uid}"))
}

/// `Ok` if the pod's condition `Ready` is true.
pub(crate) fn pod_ready(pod: &Value) -> Result<(), String> {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if ready { Ok(()) } else { Err(format!("pod is not ready: {}", pod["status"]["phase"])) }
}
