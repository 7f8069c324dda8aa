//! What the tests of fleets share: the cluster with the operator installed, a namespace of its own for each test,
//! a stock client, and waiting for a condition with a limit.

use std::{
    process::{Command, Output, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::cluster::{Cluster, REDIS_IMAGE, Rest, shared};

use crate::turn::Turn;

/// How often a condition is looked at while waiting for it.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// For how long nothing is written for a fleet that is as its spec says, and how often it is looked whether anything was.
const SILENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where the operator is installed.
pub(crate) const OPERATOR_NAMESPACE: &str = "tieredcache-system";
/// What runs it there.
pub(crate) const OPERATOR: &str = "deployment/tieredcache-operator";

/// The operator's chart, and the images that the cluster has.
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/tieredcache-operator");
pub(crate) const IMAGES: &str =
    "image.repository=localhost/tieredcache/operator,nodeImage.repository=localhost/tieredcache/cache-node";
/// The one right that the chart does not grant by default, and that tests expect the operator to have.
pub(crate) const PASSWORDS: &str = ",rbac.managedRedisPasswords=true";

/// Where the API has each kind of object of a namespace, by the names that kubectl knows them by.
const COLLECTIONS: [(&[&str], &str, &str); 11] = [
    (&["tc"], "apis/tieredcache.io/v1alpha1", "tieredcaches"),
    (&["sts"], "apis/apps/v1", "statefulsets"),
    (&["pod", "pods"], "api/v1", "pods"),
    (&["pvc"], "api/v1", "persistentvolumeclaims"),
    (&["svc"], "api/v1", "services"),
    (&["cm", "configmap"], "api/v1", "configmaps"),
    (&["sa"], "api/v1", "serviceaccounts"),
    (&["pdb"], "apis/policy/v1", "poddisruptionbudgets"),
    (&["endpointslices"], "apis/discovery.k8s.io/v1", "endpointslices"),
    (&["lease"], "apis/coordination.k8s.io/v1", "leases"),
    (&["roles"], "apis/rbac.authorization.k8s.io/v1", "roles"),
];

/// A Redis of the cluster, without persistence, behind a Service.
const REDIS: &str = "
apiVersion: v1
kind: Service
metadata: {name: redis, namespace: NAMESPACE}
spec: {selector: {app: redis}, ports: [{port: 6379}]}
---
apiVersion: v1
kind: Pod
metadata: {name: redis, namespace: NAMESPACE, labels: {app: redis}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: redis
      image: IMAGE
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
";

/// A namespace with whatever caches a test makes there; removed when dropped.
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
    let looked = cluster.kubectl(["-n", OPERATOR_NAMESPACE, "get", OPERATOR, "--ignore-not-found", "-o", "name"]);
    let was_there = !looked.expect("the cluster is up").is_empty();
    let output = cluster
        .helm_command()
        .expect("the cluster is up")
        .args(["upgrade", "--install", "tieredcache", CHART])
        .args(["--namespace", OPERATOR_NAMESPACE, "--create-namespace"])
        .args(["--set", &format!("{IMAGES}{PASSWORDS}"), "--wait", "--timeout", "120s"])
        .output()
        .expect("helm runs");
    assert!(output.status.success(), "the chart installs: {}", String::from_utf8_lossy(&output.stderr));
    if was_there {
        restart_operator(cluster);
    }
}

/// Replaces the pods of an operator that an earlier run on this cluster has installed. An image that was built since has
/// the tag of before, so that nothing has changed for Helm.
fn restart_operator(cluster: &Cluster) {
    let rollout = |action: &[&str]| {
        let arguments = [&["-n", OPERATOR_NAMESPACE, "rollout"], action].concat();
        cluster.kubectl(arguments).expect("the operator starts again");
    };
    rollout(&["restart", OPERATOR]);
    rollout(&["status", OPERATOR, "--timeout=120s"]);
}

/// The API server of the shared cluster, for whoever looks at something again and again.
pub(crate) fn rest() -> &'static Rest {
    static REST: OnceLock<Rest> = OnceLock::new();
    REST.get_or_init(|| shared().rest().expect("the cluster is up"))
}

/// An object of this namespace as kubectl would name it, such as `pod/client`, or a list, such as `pods`.
pub(crate) fn object(namespace: &str, object: &str) -> Result<Value, String> {
    listed(namespace, object, "")
}

fn listed(namespace: &str, object: &str, selector: &str) -> Result<Value, String> {
    let kind = object.split('/').next().unwrap_or_default();
    let (_, group, collection) = COLLECTIONS
        .iter()
        .find(|(kinds, ..)| kinds.contains(&kind))
        .unwrap_or_else(|| panic!("add {kind} to the collections"));
    let name = &object[kind.len()..];
    let path = format!("/{group}/namespaces/{namespace}/{collection}{name}{selector}");
    match rest().call("GET", &path, None) {
        (200, found) => Ok(found),
        (code, answer) => Err(format!("GET {path}: {code} {answer}")),
    }
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
    /// A namespace of this name, which enforces the restricted Pod Security Standard.
    pub(crate) fn new(_turn: &Turn, namespace: &str) -> Self {
        let fleet = Self { cluster: cluster(), namespace: namespace.to_owned() };
        fleet
            .cluster
            .kubectl(["delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s"])
            .expect("a clean start");
        fleet
            .cluster
            .apply(&format!(
                "apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
"
            ))
            .expect("the namespace is made");
        eventually("pods can be made", Duration::from_secs(60), || fleet.get("sa/default").map(drop));
        fleet
    }

    /// The same, once all that tests before this one have left is taken down, which keeps the machine busy.
    pub(crate) fn on_quiet_machine(turn: &Turn, namespace: &str) -> Self {
        let fleet = Self::new(turn, namespace);
        eventually("the namespaces of earlier tests are gone", Duration::from_secs(180), || {
            let phases = ["get", "namespaces", "-o", "jsonpath={.items[*].status.phase}"];
            let phases = fleet.cluster.kubectl(phases).map_err(|error| error.to_string())?;
            if phases.contains("Terminating") { Err(phases) } else { Ok(()) }
        });
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

    /// Starts a Redis that is no cache's own, at `redis:6379`; again, if its pod is gone.
    pub(crate) fn start_redis(&self) {
        let manifest = REDIS.replace("NAMESPACE", &self.namespace).replace("IMAGE", REDIS_IMAGE);
        self.cluster.apply(&manifest).expect("Redis is made");
        self.kubectl(&["wait", "pod/redis", "--for=condition=Ready", "--timeout=180s"]);
    }

    /// The object as JSON.
    pub(crate) fn get(&self, object: &str) -> Result<Value, String> {
        self::object(&self.namespace, object)
    }

    /// The names of all objects of these kinds with these labels, as in `pods/client`.
    pub(crate) fn names(&self, kinds: &[&str], labels: &str) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        for kind in kinds {
            let list = listed(&self.namespace, kind, &format!("?labelSelector={}", labels.replace('/', "%2F")))?;
            let items = list["items"].as_array().into_iter().flatten();
            names.extend(items.map(|item| format!("{kind}/{}", item["metadata"]["name"].as_str().unwrap_or_default())));
        }
        Ok(names)
    }

    /// What was written to this namespace so far, by the API server's audit log: by the operator, and by others because of
    /// it, but for the events of others.
    pub(crate) fn writes(&self) -> Vec<String> {
        let writes = self.cluster.writes_in(&self.namespace).expect("the API server keeps an audit log");
        writes.iter().map(|entry| format!("{} {} {}", entry["userAgent"], entry["verb"], entry["objectRef"])).collect()
    }

    /// Waits until nothing was written to this namespace for 60 s. What still settles (endpoints, late events of the kubelet)
    /// ends soon; after that nothing may be written, but for a status that tells of a node that was too busy to answer.
    pub(crate) fn await_silence(&self) {
        let mut since = Instant::now();
        let mut last = self.writes().len();
        assert!(last > 0, "the audit log tells the operator's writes");
        eventually("60 s without a write", SILENCE * 5, || {
            thread::sleep(LOOK_EVERY);
            let writes = self.writes();
            if writes.len() != last {
                println!("after {:.0} s: {:?}", since.elapsed().as_secs_f64(), &writes[last..]);
                (since, last) = (Instant::now(), writes.len());
            }
            if since.elapsed() >= SILENCE { Ok(()) } else { Err(format!("silent for {:?}", since.elapsed())) }
        });
    }

    /// What a node says on its admin port.
    pub(crate) fn admin(&self, pod: &str, path: &str) -> Result<String, String> {
        rest().text(&format!("/api/v1/namespaces/{}/pods/{pod}:9090/proxy{path}", self.namespace))
    }

    /// Status, reason and message of a condition of a cache.
    pub(crate) fn condition(&self, cache: &str, kind: &str) -> Result<(String, String, String), String> {
        condition_of(&self.get(&format!("tc/{cache}"))?, kind)
    }

    /// Waits until the cache is ready with so many nodes of its current generation.
    pub(crate) fn await_ready(&self, cache: &str, replicas: u64, limit: Duration) {
        eventually(&format!("{cache} is ready with {replicas} nodes"), limit, || {
            let object = self.get(&format!("tc/{cache}"))?;
            equal(object["status"]["observedGeneration"].clone(), object["metadata"]["generation"].clone())?;
            equal(object["status"]["readyReplicas"].as_u64().unwrap_or(0), replicas)?;
            let (status, reason, message) = condition_of(&object, "Ready")?;
            equal(status, "True".to_owned()).map_err(|_| format!("Ready is not True: {reason}: {message}"))
        });
    }

    /// What a stock client is answered by a Service (`cache`) or by one pod (`cache-0.cache-nodes`), without the line end.
    pub(crate) fn redis(&self, host: &str, arguments: &[&str]) -> String {
        self.try_redis(host, arguments).unwrap_or_else(|message| panic!("{host} {}: {message}", arguments.join(" ")))
    }

    /// The same; an error if nobody answers within 3 s.
    pub(crate) fn try_redis(&self, host: &str, arguments: &[&str]) -> Result<String, String> {
        let answered = self.redis_cli(host, "3")?.args(arguments).output().map_err(|error| error.to_string())?;
        said(answered).map(|answer| answer.trim_end().to_owned())
    }

    /// Feeds commands, one a line, to a stock client; returns the answers, one a line.
    pub(crate) fn redis_script(&self, host: &str, commands: &str) -> Result<String, String> {
        let mut command = self.redis_cli(host, "240")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let mut input = child.stdin.take().expect("stdin is piped");
        let commands = commands.to_owned();
        // Writing from a thread: the answers would fill the pipe before all commands are written.
        let writer = thread::spawn(move || std::io::Write::write_all(&mut input, commands.as_bytes()));
        let answered = child.wait_with_output().map_err(|error| error.to_string())?;
        drop(writer.join());
        said(answered)
    }

    /// `redis-cli` on the first machine of the cluster, which reaches all pods and Services. By address, because only pods
    /// know the names.
    fn redis_cli(&self, host: &str, seconds: &str) -> Result<Command, String> {
        let address = match host.split_once('.') {
            Some((pod, _)) => self.get(&format!("pod/{pod}"))?["status"]["podIP"].clone(),
            None => self.get(&format!("svc/{host}"))?["spec"]["clusterIP"].clone(),
        };
        let address = address.as_str().ok_or_else(|| format!("{host} has no address"))?;
        let mut command = self.cluster.inside_node(1, "timeout").map_err(|error| error.to_string())?;
        command.args([seconds, "redis-cli", "-h", address]);
        Ok(command)
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

/// Status, reason and message of a condition of this cache.
pub(crate) fn condition_of(cache: &Value, kind: &str) -> Result<(String, String, String), String> {
    let mut conditions = cache["status"]["conditions"].as_array().into_iter().flatten();
    let found = conditions.find(|condition| condition["type"] == kind).ok_or_else(|| format!("no condition {kind}"))?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason"), text("message")))
}

/// What a program has printed; its complaint if it failed.
pub(crate) fn said(output: Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stdout) + &text(&output.stderr)) }
}

/// The process that runs this program in the pod of this UID, as the machine's process id.
pub(crate) fn process_of(uid: &str, program: &str) -> Result<u32, String> {
    processes_of(uid, program)?.first().copied().ok_or_else(|| format!("no process {program} of pod {uid}"))
}

/// All processes of this program in the pod.
pub(crate) fn processes_of(uid: &str, program: &str) -> Result<Vec<u32>, String> {
    let found = Command::new("pgrep").args(["-x", program]).output().map_err(|error| error.to_string())?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    let is_of_pod =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroup| cgroup.contains(uid));
    Ok(found.lines().filter_map(|line| line.parse().ok()).filter(is_of_pod).collect())
}

/// How long the process has used a processor.
pub(crate) fn processor_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process runs");
    // After the name, which may contain anything: the 12th and 13th field, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number of ticks");
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// `Ok` if the pod's condition `Ready` is true.
pub(crate) fn pod_ready(pod: &Value) -> Result<(), String> {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if ready { Ok(()) } else { Err(format!("pod is not ready: {}", pod["status"]["phase"])) }
}
