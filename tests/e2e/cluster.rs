//! The test cluster's own tests: what the other tests build upon is really so.
#![allow(clippy::unwrap_used, reason = "a test that can not go on says where")]

mod footprint;
pub(crate) mod life;

use std::ffi::OsString;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, TOOLS_IMAGE, shared};

use crate::turn::{alone, beside, quiet};

/// An `up` that finds everything in its place takes a second; the rest is for a busy machine.
const UP_AGAIN_WITHIN: Duration = Duration::from_secs(15);

/// A namespace for one test, gone after it.
struct Namespace<'a> {
    cluster: &'a Cluster,
    name: &'static str,
}

/// A pod of the tools image.
struct Pod {
    name: &'static str,
    node: Option<u8>,
    claim: Option<&'static str>,
}

// === impl Namespace ===

impl<'a> Namespace<'a> {
    fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        // An interrupted run may have left it.
        cluster.kubectl(["delete", "namespace", name, "--ignore-not-found", "--timeout=180s"]).unwrap();
        cluster.kubectl(["create", "namespace", name]).unwrap();
        let account = || cluster.kubectl(["-n", name, "get", "serviceaccount", "default"]).is_ok();
        assert!(within(Duration::from_secs(60), account), "no service account in {name}");
        Self { cluster, name }
    }

    fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        self.cluster.kubectl([&["-n", self.name], args].concat()).map_err(|error| error.to_string())
    }

    fn apply(&self, manifest: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifest).unwrap();
        self.kubectl(&["apply", "-f", file.path().to_str().unwrap()]).unwrap();
    }

    fn claim(&self, name: &str, size: &str) {
        self.apply(&format!(
            r#"{{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {{"name": "{name}"}}, "spec":
            {{"accessModes": ["ReadWriteOnce"], "resources": {{"requests": {{"storage": "{size}"}}}}}}}}"#
        ));
    }

    /// Starts a pod and waits until it is ready.
    fn start(&self, pod: &Pod) {
        self.apply(&pod.manifest());
        self.kubectl(&["wait", "--for=condition=Ready", "--timeout=120s", &format!("pod/{}", pod.name)]).unwrap();
    }

    fn exec(&self, pod: &str, script: &str) -> Result<String, String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }

    fn value(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, &format!("--output=jsonpath={{{path}}}")]).unwrap()
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(["delete", "namespace", self.name, "--wait=false"]);
    }
}

// === impl Pod ===

impl Pod {
    /// A pod that Pod Security's strictest level admits.
    fn manifest(&self) -> String {
        let selector = |node| format!(r#""nodeSelector": {{"kubernetes.io/hostname": "node{node}"}},"#);
        let node = self.node.map(selector).unwrap_or_default();
        let (mounts, volumes) = self.claim.map_or((String::new(), String::new()), |claim| {
            let mounts = r#","volumeMounts": [{"name": "data", "mountPath": "/data"}]"#.to_owned();
            let source = format!(r#"{{"name": "data", "persistentVolumeClaim": {{"claimName": "{claim}"}}}}"#);
            (mounts, format!(r#","volumes": [{source}]"#))
        });
        let name = self.name;
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}", "labels": {{"app": "{name}"}}}},
            "spec": {{ {node} "terminationGracePeriodSeconds": 1,
            "securityContext": {{"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532,
                "seccompProfile": {{"type": "RuntimeDefault"}}}},
            "containers": [{{"name": "main", "image": "{TOOLS_IMAGE}", "imagePullPolicy": "Never",
            "securityContext": {{"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {{"drop": ["ALL"]}}}} {mounts} }}] {volumes} }} }}"#
        )
    }
}

#[expect(clippy::disallowed_methods, reason = "a real cluster takes real time")]
fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    true
}

fn readiness(cluster: &Cluster, node: u8) -> String {
    let path = "--output=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    cluster.kubectl(["get", "node", &format!("node{node}"), path]).unwrap()
}

/// The command line of the cluster, as a person uses it; what it printed.
fn command(cluster: &Cluster, args: &[&str]) -> Output {
    Command::new(program()).args(["--name", cluster.layout().name()]).args(args).output().unwrap()
}

fn program() -> OsString {
    std::env::var_os("CLUSTER_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_cluster").into())
}

/// A command that has to succeed.
fn succeed(cluster: &Cluster, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(cluster, args);
    assert!(status.success(), "cluster {args:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn everything_runs_and_a_second_up_changes_nothing() {
    let _turn = quiet();
    let cluster = shared();
    // Pods of tests before this one may still be ending.
    let parts = || life::running(cluster, &life::LASTING_PARTS);
    let before = parts();
    let started = Instant::now();
    cluster.up(u8::try_from(cluster.status().nodes.len()).unwrap()).unwrap();
    println!("a second up took {:.1} s", started.elapsed().as_secs_f64());
    assert!(started.elapsed() < UP_AGAIN_WITHIN, "{:?}", started.elapsed());
    let status = cluster.status();
    assert!(status.is_healthy(), "{status}");
    assert_eq!(parts(), before);
}

#[test]
fn a_pod_finds_a_service_by_name_on_every_node() {
    let _turn = beside();
    let space = Namespace::new(shared(), "dns");
    space.start(&Pod { name: "server", node: Some(1), claim: None });
    space.kubectl(&["expose", "pod", "server", "--port=8080"]).unwrap();
    let address = space.value("service/server", ".spec.clusterIP");
    for (node, name) in [(1, "near"), (2, "far")] {
        space.start(&Pod { name, node: Some(node), claim: None });
        let found = space.exec(name, "nslookup server.dns.svc.cluster.local").unwrap();
        assert!(found.contains(&address), "on node {node}: {found}");
        // By the resolver of the C library, which tries the search domains. Nobody listens behind the service.
        for short in ["server", "server.dns", "server.dns.svc"] {
            let answer = space.exec(name, &format!("redis-cli -h {short} -p 8080 ping 2>&1 || true")).unwrap();
            assert!(answer.contains("Connection refused"), "{short} on node {node}: {answer}");
        }
    }
}

#[test]
fn a_service_address_leads_to_its_pod_from_every_node() {
    let _turn = beside();
    let space = Namespace::new(shared(), "service");
    space.start(&Pod { name: "server", node: Some(1), claim: None });
    space
        .exec(
            "server",
            "mkdir /dev/shm/www && echo hello > /dev/shm/www/index.html && busybox httpd -p 8080 -h /dev/shm/www",
        )
        .unwrap();
    space.kubectl(&["expose", "pod", "server", "--port=80", "--target-port=8080"]).unwrap();
    for (node, name) in [(1, "near"), (2, "far")] {
        space.start(&Pod { name, node: Some(node), claim: None });
        let reached = || space.exec(name, "timeout 3 wget -q -O - http://server").is_ok_and(|body| body == "hello\n");
        assert!(within(Duration::from_secs(10), reached), "from node {node}");
    }
    // The pod itself, through its own service; its own name is its own address.
    assert_eq!(space.exec("server", "timeout 3 wget -q -O - http://server.service").unwrap(), "hello\n");
}

#[test]
fn a_claim_binds_where_its_pod_runs() {
    let _turn = beside();
    let space = Namespace::new(shared(), "bind");
    space.claim("data", "300Mi");
    assert_eq!(space.value("pvc/data", ".status.phase"), "Pending");
    space.start(&Pod { name: "user", node: None, claim: Some("data") });
    let volume = space.value("pvc/data", ".spec.volumeName");
    let bound = space.value(
        &format!("pv/{volume}"),
        ".spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].values[0]",
    );
    assert_eq!(bound, space.value("pod/user", ".spec.nodeName"));
}

#[test]
fn a_volume_is_full_at_its_size_and_grows_while_in_use() {
    let _turn = beside();
    let space = Namespace::new(shared(), "grow");
    space.claim("data", "300Mi");
    space.start(&Pod { name: "user", node: None, claim: Some("data") });
    let fill = "dd if=/dev/zero of=/data/fill bs=1M 2>&1; stat -c %s /data/fill";
    let full = space.exec("user", fill).unwrap();
    assert!(full.contains("No space left on device"), "{full}");
    let filled: u64 = full.lines().last().unwrap().parse().unwrap();
    assert!((200 << 20..300 << 20).contains(&filled), "{filled} bytes fitted");

    let request = r#"{"spec": {"resources": {"requests": {"storage": "600Mi"}}}}"#;
    space.kubectl(&["patch", "pvc", "data", "-p", request]).unwrap();
    let grown = || space.exec("user", "dd if=/dev/zero of=/data/more bs=1M count=200").is_ok();
    assert!(within(Duration::from_secs(60), grown), "the volume did not grow");
    assert!(within(Duration::from_secs(20), || space.value("pvc/data", ".status.capacity.storage") == "600Mi"));
    assert_eq!(space.value("pod/user", ".status.containerStatuses[0].restartCount"), "0");
}

#[test]
fn a_class_without_expansion_refuses_to_grow() {
    let _turn = beside();
    let space = Namespace::new(shared(), "fixed");
    space.apply(
        r#"{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec":
        {"storageClassName": "fixed", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "300Mi"}}}}"#,
    );
    space.start(&Pod { name: "user", node: None, claim: Some("data") });
    let request = r#"{"spec": {"resources": {"requests": {"storage": "600Mi"}}}}"#;
    let refused = space.kubectl(&["patch", "pvc", "data", "-p", request]).unwrap_err();
    assert!(refused.contains("must support resize"), "{refused}");
}

#[test]
fn a_volume_survives_its_pod_and_goes_with_its_claim() {
    let _turn = beside();
    let space = Namespace::new(shared(), "survive");
    space.claim("data", "300Mi");
    space.start(&Pod { name: "first", node: None, claim: Some("data") });
    space.exec("first", "echo kept > /data/file").unwrap();
    space.kubectl(&["delete", "pod", "first"]).unwrap();
    space.start(&Pod { name: "second", node: None, claim: Some("data") });
    assert_eq!(space.exec("second", "cat /data/file").unwrap(), "kept\n");

    let volume = space.value("pvc/data", ".spec.volumeName");
    space.kubectl(&["delete", "pod/second", "pvc/data"]).unwrap();
    let gone = || space.kubectl(&["get", "pv", &volume]).is_err_and(|error| error.contains("NotFound"));
    assert!(within(Duration::from_secs(30), gone), "volume {volume} stays");
    let files = Command::new("find").arg(space.cluster.layout().root().join("volumes")).output().unwrap();
    assert!(!String::from_utf8(files.stdout).unwrap().contains(&volume));
}

#[test]
fn pod_security_is_enforced() {
    let _turn = beside();
    let space = Namespace::new(shared(), "strict");
    space.kubectl(&["label", "namespace", "strict", "pod-security.kubernetes.io/enforce=restricted"]).unwrap();
    space.start(&Pod { name: "modest", node: None, claim: None });
    let privileged = ["run", "bold", "--image=localhost/tools:1", "--privileged"];
    let refused = space.kubectl(&privileged).unwrap_err();
    assert!(refused.contains("violates PodSecurity"), "{refused}");
}

#[test]
fn a_cut_node_is_not_ready_until_it_is_healed() {
    let _turn = alone();
    let cluster = shared();
    let space = Namespace::new(cluster, "cut");
    space.start(&Pod { name: "server", node: Some(2), claim: None });
    succeed(cluster, &["node", "cut", "2"]);
    let noticed = within(Duration::from_secs(20), || readiness(cluster, 2) == "Unknown");
    let pod_noticed = || space.value("pod/server", ".status.conditions[?(@.type==\"Ready\")].status") == "False";
    let pod_noticed = within(Duration::from_secs(5), pod_noticed);
    succeed(cluster, &["node", "heal", "2"]);
    assert!(noticed, "the node's loss was not noticed in 20 s");
    assert!(pod_noticed, "the pod still counts as ready");
    assert!(within(Duration::from_secs(20), || readiness(cluster, 2) == "True"), "not back in 20 s");
    let pod_back = || space.value("pod/server", ".status.conditions[?(@.type==\"Ready\")].status") == "True";
    assert!(within(Duration::from_secs(20), pod_back), "the pod is not back in 20 s");
    assert_eq!(space.value("pod/server", ".status.containerStatuses[0].restartCount"), "0");
}

#[test]
fn a_crashed_node_comes_back_with_what_was_synced() {
    let _turn = alone();
    let cluster = shared();
    let space = Namespace::new(cluster, "crash");
    space.claim("data", "300Mi");
    space.start(&Pod { name: "user", node: Some(3), claim: Some("data") });
    space.exec("user", "echo kept > /data/synced && sync && echo lost > /data/unsynced").unwrap();

    succeed(cluster, &["node", "crash", "3"]);
    let status = command(cluster, &["status"]);
    assert_eq!(status.status.code(), Some(1), "not all of it runs");
    assert!(String::from_utf8_lossy(&status.stdout).contains("node3    crashed"), "{status:?}");
    assert!(cluster.pod_processes(3).unwrap().is_empty());
    assert!(within(Duration::from_secs(20), || readiness(cluster, 3) == "Unknown"), "not noticed in 20 s");
    succeed(cluster, &["node", "restart", "3"]);
    assert_eq!(readiness(cluster, 3), "True");
    let found = || space.exec("user", "cat /data/synced").is_ok_and(|text| text == "kept\n");
    assert!(within(Duration::from_secs(60), found), "the pod did not come back with its volume");
    assert!(
        space.exec("user", "cat /data/unsynced").map_or(true, |text| text.is_empty()),
        "a write outlived the power"
    );
    assert_eq!(space.value("pod/user", ".status.containerStatuses[0].restartCount"), "1");
}

#[test]
fn a_killed_part_is_started_again() {
    let _turn = alone();
    let cluster = shared();
    let has = |program: &str| {
        cluster.processes().into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
            String::from_utf8_lossy(&line).split('\0').next().is_some_and(|path| path.ends_with(program))
        })
    };
    for program in ["/kube-controller-manager", "/kubelet", "/etcd"] {
        let killed = has(program).unwrap();
        rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
        let again = || has(program).is_some_and(|pid| pid != killed);
        assert!(within(Duration::from_secs(10), again), "{program} stays down");
    }
    assert!(within(Duration::from_secs(60), || cluster.status().is_healthy()), "{}", cluster.status());
    // A machine says that it is well before its kubelet can bring up pods again.
    let space = Namespace::new(cluster, "killed");
    for (node, name) in [(1, "one"), (2, "two"), (3, "three")] {
        space.claim(name, "300Mi");
        space.start(&Pod { name, node: Some(node), claim: Some(name) });
    }
}
