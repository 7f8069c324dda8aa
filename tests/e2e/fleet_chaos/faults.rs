//! What is done to the fleet. Each fault shows that it really happened, and has ended when it returns.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{READY_WITHIN, account::Account};
use crate::fleet::{Fleet, equal, eventually, pod_ready, process_of};

/// A cut lasts longer than the bound of the judge, so that a read of what changed at its beginning is judged before its
/// end, and is over before Kubernetes gives the machine up.
const CUT_FOR: Duration = Duration::from_secs(7);
/// A process that is told to end may drain first.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
const REDIS: &str = "cache-redis-0";

/// One way to torment a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The pod is deleted without a word to its processes; the next one may be made while they still run.
    DeleteByForce,
    /// The machine's plug is pulled; pods on it go on.
    CutOff,
    /// The node's process is killed; its pod stays.
    Kill,
    /// The pod of Redis is deleted by force.
    DeleteRedis,
    /// The pod is deleted; its process may drain.
    Delete,
    /// What the node and Redis send each other is lost.
    CutFromRedis,
}

/// A fleet under faults.
pub(super) struct Storm<'a> {
    pub(super) fleet: &'a Fleet,
    /// The machine of each node.
    pub(super) machines: Vec<u8>,
    pub(super) account: Account,
}

// === impl Fault ===

impl Fault {
    pub(super) const ALL: [Self; 6] =
        [Self::DeleteByForce, Self::CutOff, Self::Kill, Self::DeleteRedis, Self::Delete, Self::CutFromRedis];
}

// === impl Storm ===

impl Storm<'_> {
    /// Brings the fault about and sees it to its end.
    pub(super) fn bring(&mut self, fault: Fault, node: usize) {
        self.account.note(&format!("begins: {fault:?} (node {node})"));
        let pod = format!("cache-{node}");
        match fault {
            Fault::DeleteByForce => self.replace(node, &["delete", "pod", &pod, "--grace-period=0", "--force"]),
            Fault::Delete => self.replace(node, &["delete", "pod", &pod, "--wait=false"]),
            Fault::Kill => self.kill(node),
            Fault::DeleteRedis => self.delete_redis(),
            Fault::CutOff => self.cut_off(node),
            Fault::CutFromRedis => self.cut_from_redis(node),
        }
        self.account.note(&format!("ends: {fault:?} (node {node})"));
    }

    /// Takes the node's pod away, and waits for the process of the next.
    fn replace(&mut self, node: usize, command: &[&str]) {
        let pod = format!("cache-{node}");
        let (uid, process) = (self.fleet.pod_uid(&pod), self.fleet.node_process(&pod));
        self.fleet.kubectl(command);
        self.await_next_process(node, process);
        assert_ne!(self.fleet.pod_uid(&pod), uid, "the pod is another one");
    }

    fn kill(&mut self, node: usize) {
        let process = self.fleet.node_process(&format!("cache-{node}"));
        let killed = Command::new("kill").args(["-9", &process.to_string()]).status().expect("kill is a program");
        assert!(killed.success(), "kill {process}");
        self.await_next_process(node, process);
    }

    /// Waits until the process has ended and the next one of the node serves.
    fn await_next_process(&mut self, node: usize, process: u32) {
        let pod = format!("cache-{node}");
        await_end(process);
        let fleet = self.fleet;
        let now = || {
            let object = fleet.get(&format!("pod/{pod}"))?;
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
            process_of(uid, "cache-node").map(|process| (process, pod_ready(&object)))
        };
        let next = eventually(&format!("{pod} has a process"), READY_WITHIN, || now().map(|(process, _)| process));
        self.account.started(node, next);
        let serving = eventually(&format!("{pod} serves"), READY_WITHIN, || {
            let (process, ready) = now()?;
            ready.map(|()| process)
        });
        // The first may have found the volume in use.
        if serving != next {
            self.account.started(node, serving);
        }
    }

    fn delete_redis(&self) {
        let uid = self.fleet.pod_uid(REDIS);
        let process = process_of(&uid, "redis-server").expect("Redis runs");
        self.fleet.kubectl(&["delete", "pod", REDIS, "--grace-period=0", "--force"]);
        await_end(process);
        self.fleet.await_new_pod(REDIS, &uid, READY_WITHIN);
    }

    fn cut_off(&self, node: usize) {
        let (machine, other) = (self.machines[node], self.machines[(node + 1) % self.machines.len()]);
        let address = self.address(&format!("cache-{node}"));
        eventually("the pod is reached before the cut", READY_WITHIN, || equal(self.reaches(other, &address), true));
        self.fleet.cluster.cut(machine).expect("the plug is pulled");
        let reached = self.reaches(other, &address);
        thread::sleep(CUT_FOR);
        self.fleet.cluster.heal(machine).expect("the plug is back");
        assert!(!reached, "the cut keeps others from node {node}");
        eventually("the pod is reached again", READY_WITHIN, || {
            if self.reaches(other, &address) { Ok(()) } else { Err(format!("{address} is silent")) }
        });
    }

    fn cut_from_redis(&self, node: usize) {
        let (pod, redis) = (self.address(&format!("cache-{node}")), self.address(REDIS));
        let rules = [[&*pod, &*redis], [&*redis, &*pod]];
        for [from, to] in rules {
            self.iptables(node, &["-I", "FORWARD", "-s", from, "-d", to, "-j", "DROP"]);
        }
        thread::sleep(CUT_FOR);
        let counted = self.iptables(node, &["-L", "FORWARD", "-v", "-n", "-x"]);
        for [from, to] in rules {
            self.iptables(node, &["-D", "FORWARD", "-s", from, "-d", to, "-j", "DROP"]);
        }
        let dropped = counted
            .lines()
            .any(|line| line.contains(&pod) && line.contains(&redis) && !line.trim_start().starts_with("0 "));
        assert!(dropped, "packets between the pod and Redis are lost:\n{counted}");
    }

    /// Runs iptables in the network of the node's machine.
    fn iptables(&self, node: usize, args: &[&str]) -> String {
        let mut command = self.fleet.cluster.inside_node(self.machines[node], "iptables").expect("the cluster is up");
        tests::stock_clients::succeed(command.arg("-w").args(args))
    }

    fn address(&self, pod: &str) -> String {
        let object = self.fleet.get(&format!("pod/{pod}")).expect("the pod exists");
        object["status"]["podIP"].as_str().expect("the pod has an address").to_owned()
    }

    /// Whether a client on this machine is accepted at this address.
    fn reaches(&self, machine: u8, address: &str) -> bool {
        let mut command = self.fleet.cluster.inside_node(machine, "timeout").expect("the cluster is up");
        let accepted = command.args(["1", "bash", "-c", &format!(": < /dev/tcp/{address}/6379")]);
        accepted.stderr(Stdio::null()).status().expect("nsenter is a program").success()
    }
}

/// Waits until there is no such process.
fn await_end(process: u32) {
    eventually(&format!("process {process} ends"), ENDS_WITHIN, || {
        if Path::new(&format!("/proc/{process}")).exists() { Err("it runs".to_owned()) } else { Ok(()) }
    });
}
