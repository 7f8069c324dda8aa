//! What can be done to a running cluster's nodes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Pid;

use super::clock::wait_until;
use super::error::{ClusterError, Result};
use super::images::{self, Archive};
use super::network;
use super::node::Node;
use super::runtime::Runtime;
use super::{Cluster, Steps};

/// How long a booted machine may take to become a ready node.
const READY_WITHIN: Duration = Duration::from_secs(90);

// === impl Cluster ===

impl Cluster {
    /// Pulls the node's plug: nothing on it can reach or be reached by the rest, but all of it goes on running.
    ///
    /// # Errors
    /// `NotUp`, `NoSuchNode`, `Command`.
    pub fn cut(&self, node: u8) -> Result<()> {
        self.node(node)?;
        network::set_plugged(self.layout(), &self.layout().node(node), false)
    }

    /// Plugs a cut node in again.
    ///
    /// # Errors
    /// `NotUp`, `NoSuchNode`, `Command`.
    pub fn heal(&self, node: u8) -> Result<()> {
        self.node(node)?;
        network::set_plugged(self.layout(), &self.layout().node(node), true)
    }

    /// Cuts a node's power: all its processes end at once, and what was not synced to a volume is lost. Does nothing
    /// to a node that is down.
    ///
    /// # Errors
    /// `NotUp`, `NoSuchNode`, `Timeout`, `Command`, `Io`.
    pub fn crash(&self, node: u8) -> Result<()> {
        let _lock = self.lock()?;
        self.node(node)?.crash()
    }

    /// Boots a node afresh, crashing it first when it runs, and waits until it is ready again.
    ///
    /// # Errors
    /// `NotUp`, `NoSuchNode`, `Timeout`, `Command`, `Io`.
    pub fn restart(&self, node: u8) -> Result<()> {
        let _lock = self.lock()?;
        let machine = self.node(node)?;
        let last_seen = self.last_seen(&machine);
        machine.crash()?;
        machine.boot(&images::pause()?)?;
        machine.join()?;
        self.await_ready(&machine, &last_seen)
    }

    /// Loads only Redis and the tools.
    ///
    /// # Errors
    /// `NotUp`, `Command`, `Io`.
    pub fn load_companions(&self) -> Result<()> {
        self.import(&images::companions()?)
    }

    /// Loads archives of images onto every node that runs and does not have them yet.
    ///
    /// # Errors
    /// `NotUp`, `Command`, `Io`.
    pub fn import(&self, archives: &[Archive]) -> Result<()> {
        let shape = self.running_shape()?;
        let nodes = (1..=shape.nodes).map(|number| Node::new(self.layout(), number));
        let running: Vec<Node<'_>> = nodes.filter(Node::is_running).collect();
        std::thread::scope(|scope| {
            let imports: Vec<_> = running
                .iter()
                .map(|node| {
                    scope.spawn(move || archives.iter().try_for_each(|archive| node.import_once(&archive.path)))
                })
                .collect();
            imports.into_iter().try_for_each(|import| import.join().expect("importing does not panic"))
        })
    }

    /// Processes of the pods on a node, as seen from the host: for stopping and killing what runs in a pod.
    ///
    /// # Errors
    /// `NotUp`, `NoSuchNode`.
    pub fn pod_processes(&self, node: u8) -> Result<Vec<Pid>> {
        let name = self.node(node)?.name();
        Ok(Runtime::of(self.layout()).cgroup().processes_of(&name))
    }

    /// All processes of the cluster, as seen from the host.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        Runtime::of(self.layout()).cgroup().processes()
    }

    /// A command that runs a program of the host in a node's network: it reaches pods and services by address.
    ///
    /// # Errors
    /// `NotUp`, `NoSuchNode`.
    pub fn inside_node(&self, node: u8, program: impl AsRef<Path>) -> Result<Command> {
        self.node(node)?;
        let mut command = Command::new("nsenter");
        command.arg(network::inside(self.layout().node(node).network())).arg(program.as_ref());
        Ok(command)
    }

    /// Boots the machines that do not run.
    pub(super) fn boot_nodes(&self, nodes: u8, pause: &Path) -> Result<()> {
        let all = (1..=nodes).map(|number| Node::new(self.layout(), number));
        let down: Vec<Node<'_>> = all.filter(|node| !node.is_wanted()).collect();
        std::thread::scope(|scope| {
            let boots: Vec<_> = down
                .iter()
                .map(|node| {
                    scope.spawn(move || {
                        // A boot that was interrupted half-way left things in its place.
                        node.crash()?;
                        node.boot(pause)
                    })
                })
                .collect();
            boots.into_iter().try_for_each(|boot| boot.join().expect("booting does not panic"))
        })
    }

    /// Makes ready nodes of all machines, booting those that do not run.
    pub(super) fn complete_nodes(&self, nodes: u8, pause: &Path, steps: &Steps) -> Result<()> {
        self.boot_nodes(nodes, pause)?;
        for number in 1..=nodes {
            let node = Node::new(self.layout(), number);
            node.join()?;
        }
        for number in 1..=nodes {
            self.await_ready(&Node::new(self.layout(), number), "")?;
        }
        self.await_account()?;
        steps.done(&format!("{nodes} nodes are ready"));
        Ok(())
    }

    fn node(&self, number: u8) -> Result<Node<'_>> {
        let shape = self.running_shape()?;
        if (1..=shape.nodes).contains(&number) {
            return Ok(Node::new(self.layout(), number));
        }
        let name = self.layout().name().to_owned();
        Err(ClusterError::NoSuchNode { name, node: number, nodes: shape.nodes })
    }

    /// When the node last renewed its lease, in the API's words.
    fn last_seen(&self, node: &Node<'_>) -> String {
        let lease =
            ["get", "lease", "--namespace=kube-node-lease", "--output=jsonpath={.spec.renewTime}", &node.name()];
        self.kubectl(lease).unwrap_or_default()
    }

    /// Waits until a node is ready and was seen after `last_seen`: its last life may have ended as ready, too.
    fn await_ready(&self, node: &Node<'_>, last_seen: &str) -> Result<()> {
        let path = "--output=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let ready = wait_until(READY_WITHIN, Duration::from_millis(200), || {
            let status = self.kubectl(["get", "node", &node.name(), path]).unwrap_or_default();
            status == "True" && (last_seen.is_empty() || self.last_seen(node) != last_seen)
        });
        if ready {
            return Ok(());
        }
        let logs = self.layout().logs().display().to_string();
        Err(ClusterError::Timeout {
            what: format!("{} becoming ready", node.name()),
            limit: READY_WITHIN,
            hint: format!("see {logs}/{}-kubelet.log", node.name()),
        })
    }

    /// Waits until pods can be made in the default namespace: they need its service account.
    fn await_account(&self) -> Result<()> {
        let limit = Duration::from_secs(90);
        let there = wait_until(limit, Duration::from_millis(100), || {
            self.kubectl(["get", "serviceaccount", "default"]).is_ok()
        });
        if there {
            return Ok(());
        }
        let hint = format!("see {}", self.layout().logs().join("kube-controller-manager.log").display());
        Err(ClusterError::Timeout { what: "making the default service account".to_owned(), limit, hint })
    }
}
