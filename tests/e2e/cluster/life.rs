//! How clusters come, grow and go: beside each other, by command, and without a trace.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::cluster::{Cluster, shared};

use super::footprint::Footprint;
use super::{Namespace, Pod, command, program, succeed, within};

use crate::turn::{beside, quiet};

/// From nothing to three ready nodes, once everything is built: the best of the rounds.
const UP_WITHIN: Duration = Duration::from_secs(15);
/// Parts that run as long as the cluster does.
pub(super) const LASTING_PARTS: [&str; 9] = [
    "supervise",
    "boot-node",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "coredns",
    "containerd",
    "kubelet",
];
/// Parts that run as long as a pod does.
const PARTS_OF_PODS: [&str; 2] = ["containerd-shim-runc-v2", "pause"];

/// A cluster beside the shared one.
pub(crate) fn another(suffix: &str) -> Cluster {
    let shared = shared().layout().name();
    Cluster::named(&format!("{}-{suffix}", &shared[..shared.len().min(12)])).unwrap()
}

/// Takes a cluster down when its test ends, however it ends.
pub(crate) struct TakenDown(pub(crate) Cluster);

impl Drop for TakenDown {
    fn drop(&mut self) {
        let _ = self.0.down();
    }
}

/// Runs make as a person does, with the name of a cluster; whether it succeeded, and what it printed.
fn make(cluster: &str, args: &[&str]) -> (bool, String) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let cluster = format!("CLUSTER={cluster}");
    let output = Command::new("make").args(args).arg(cluster).current_dir(workspace).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn make_shows_the_cluster_and_reaches_it() {
    let _turn = beside();
    let name = shared().layout().name();
    let (found, path) = make(name, &["-s", "kubeconfig"]);
    assert_eq!((found, path.trim_end()), (true, shared().kubeconfig_path().to_str().unwrap()));
    let (is_healthy, status) = make(name, &["cluster-status"]);
    assert!(is_healthy, "{status}");
    for words in [&format!("cluster {name} is up"), "kube-apiserver", "node3    ready", "kubelet"] {
        assert!(status.contains(words), "{words} in {status}");
    }
    let (reached, nodes) = make(name, &["-s", "kubectl", "ARGS=get nodes -o name"]);
    assert!(reached && nodes.starts_with("node/node1\nnode/node2\nnode/node3\n"), "{nodes}");
    assert!(!make(name, &["-s", "kubectl", "ARGS=get nothing"]).0, "the exit code is kubectl's");
    let (is_healthy, status) = make("not-there", &["cluster-status"]);
    assert!(!is_healthy && status.contains("cluster not-there is down"), "{status}");
}

#[test]
fn images_are_built_and_named_without_a_cluster() {
    let _turn = beside();
    let nowhere = Cluster::named("not-there").unwrap();
    let printed = succeed(&nowhere, &["images"]);
    let version = env!("CARGO_PKG_VERSION");
    for image in ["operator", "cache-node"].map(|name| format!("localhost/tieredcache/{name}:{version}")) {
        let line = printed.lines().find(|line| line.starts_with(&image)).expect(&printed);
        let archive = line.split_whitespace().nth(1).unwrap();
        let tar = Command::new("tar").args(["-tf", archive]).output().unwrap();
        assert!(String::from_utf8_lossy(&tar.stdout).contains("index.json"), "{archive} is an OCI archive");
    }
    let refused = command(&nowhere, &["node", "cut", "1"]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn a_second_cluster_works_beside_grows_to_five_nodes_and_leaves_nothing() {
    let _turn = beside();
    let shared = shared();
    let second = TakenDown(another("two"));
    let before = Footprint::take(&second.0);
    second.0.up(1).unwrap();
    second.0.load_companions().unwrap();
    let space = Namespace::new(&second.0, "alone");
    space.claim("data", "300Mi");
    space.start(&Pod { name: "user", node: None, claim: Some("data") });
    space.exec("user", "echo here > /data/file").unwrap();
    let elsewhere = shared.kubectl(["get", "namespace", "alone"]).unwrap_err().to_string();
    assert!(elsewhere.contains("NotFound"), "{elsewhere}");

    for (nodes, name) in [(2, "second"), (5, "fifth")] {
        second.0.up(nodes).unwrap();
        await_health(&second.0);
        assert_eq!(second.0.status().nodes.len(), usize::from(nodes));
        second.0.load_companions().unwrap();
        space.claim(name, "300Mi");
        space.start(&Pod { name, node: Some(nodes), claim: Some(name) });
        space.exec(name, "echo here > /data/file").unwrap();
    }
    assert_eq!(space.value("pod/user", ".status.containerStatuses[0].restartCount"), "0");
    let fewer = second.0.up(3).unwrap_err().to_string();
    assert!(fewer.contains("5 nodes") && fewer.contains("3 nodes"), "{fewer}");
    drop(space);

    await_health(shared);
    assert!(!Footprint::take(&second.0).beyond(&before).is_empty());
    second.0.down().unwrap();
    assert_eq!(Footprint::take(&second.0).beyond(&before), Vec::<String>::new());
    second.0.down().unwrap();
    await_health(shared);
}

/// On a busy machine a part may be slow to say that it is well.
fn await_health(cluster: &Cluster) {
    assert!(within(Duration::from_secs(60), || cluster.status().is_healthy()), "{}", cluster.status());
}

/// The part that a process is.
fn part(pid: Pid) -> Option<String> {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).ok()?;
    let words: Vec<String> = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into()).collect();
    // Those that only start a supervisor and wait for it die with it.
    let supervisor = ["supervise", "boot-node"].into_iter().find(|name| words.iter().any(|word| word == name));
    let name = supervisor.map_or_else(|| words[0].rsplit('/').next().unwrap_or_default().to_owned(), str::to_owned);
    (!name.is_empty()).then_some(name)
}

/// Every process of the cluster, and the part that it is.
fn parts(cluster: &Cluster) -> Vec<(Pid, String)> {
    cluster.processes().into_iter().filter_map(|pid| Some((pid, part(pid)?))).collect()
}

/// The processes of the cluster that are one of these parts, sorted.
pub(super) fn running(cluster: &Cluster, wanted: &[&str]) -> BTreeSet<(i32, String)> {
    let all = parts(cluster).into_iter().map(|(pid, part)| (pid.as_raw_pid(), part));
    all.filter(|(_, part)| wanted.contains(&part.as_str())).collect()
}

/// In which round the part is killed: the cluster's supervisor takes all others along, a node's those of its node.
fn round_of(part: &str) -> usize {
    match part {
        "supervise" => 0,
        "boot-node" => 1,
        _ => 1 + part.bytes().map(usize::from).sum::<usize>() % 2,
    }
}

#[test]
fn down_leaves_nothing_after_any_part_was_killed() {
    let _turn = quiet();
    let cluster = TakenDown(another("dies"));
    let before = Footprint::take(&cluster.0);
    let mut killed = BTreeSet::new();
    let mut seen: Option<BTreeSet<String>> = None;
    let mut fastest = Duration::MAX;
    for round in 0..3 {
        let started = Instant::now();
        cluster.0.up(3).unwrap();
        fastest = fastest.min(started.elapsed());
        cluster.0.load_companions().unwrap();
        let space = Namespace::new(&cluster.0, "dying");
        space.claim("data", "300Mi");
        space.start(&Pod { name: "user", node: None, claim: Some("data") });
        let parts = parts(&cluster.0);
        for (pid, part) in parts.iter().filter(|(_, part)| round_of(part) == round) {
            killed.insert(part.clone());
            let _ = kill_process(*pid, Signal::KILL);
        }
        let names = parts.into_iter().map(|(_, part)| part).collect::<BTreeSet<_>>();
        seen = Some(seen.map_or_else(|| names.clone(), |seen| &seen & &names));
        std::mem::forget(space);
        cluster.0.down().unwrap();
        assert_eq!(Footprint::take(&cluster.0).beyond(&before), Vec::<String>::new(), "round {round}");
    }
    println!("from nothing to 3 nodes in {:.1} s; killed: {killed:?}", fastest.as_secs_f64());
    assert!(fastest < UP_WITHIN, "{fastest:?}");
    // What runs only for a moment may be there in one round and not in the other.
    let mut wanted = LASTING_PARTS.iter().chain(&PARTS_OF_PODS);
    assert!(seen.is_some_and(|seen| seen.is_subset(&killed)) && wanted.all(|part| killed.contains(*part)));
}

#[test]
fn down_leaves_nothing_after_an_interrupted_up_and_up_recovers() {
    let _turn = beside();
    let cluster = TakenDown(another("stops"));
    let before = Footprint::take(&cluster.0);
    let up = || Command::new(program()).args(["--name", cluster.0.layout().name(), "up", "--nodes=1"]).spawn().unwrap();
    for millis in [50, 150, 400, 700, 2_500, 5_000] {
        let mut up = up();
        std::thread::sleep(Duration::from_millis(millis));
        up.kill().unwrap();
        up.wait().unwrap();
        cluster.0.down().unwrap();
        assert_eq!(Footprint::take(&cluster.0).beyond(&before), Vec::<String>::new(), "after {millis} ms");
    }
    let mut up = up();
    std::thread::sleep(Duration::from_millis(1_500));
    up.kill().unwrap();
    up.wait().unwrap();
    cluster.0.up(1).unwrap();
    assert!(cluster.0.status().is_healthy(), "{}", cluster.0.status());
}

#[test]
fn an_api_server_alone_serves_and_leaves_nothing() {
    let _turn = beside();
    let cluster = TakenDown(another("api"));
    let before = Footprint::take(&cluster.0);
    cluster.0.api_up().unwrap();
    cluster.0.api_up().unwrap();
    cluster.0.kubectl(["create", "configmap", "one"]).unwrap();
    cluster.0.down().unwrap();
    assert_eq!(Footprint::take(&cluster.0).beyond(&before), Vec::<String>::new());
}
