//! What a cluster is and how it is, for a person to read.

use std::fmt;

use super::Cluster;
use super::node::Node;
use super::runtime::Runtime;

/// The state of a cluster.
#[derive(Debug, Clone)]
pub struct Status {
    /// The cluster's name.
    pub name: String,
    /// Whether its supervisor lives.
    pub is_up: bool,
    /// Parts of the control plane, and whether each runs.
    pub parts: Vec<(String, bool)>,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
}

/// The state of one node.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// The node's name.
    pub name: String,
    /// Whether its machine runs.
    pub is_running: bool,
    /// What the API says of its readiness: `True`, `False`, `Unknown`, or nothing.
    pub ready: String,
    /// Its parts, and whether each runs.
    pub parts: Vec<(String, bool)>,
}

// === impl Cluster ===

impl Cluster {
    /// Looks at the cluster.
    #[must_use]
    pub fn status(&self) -> Status {
        let is_up = Runtime::of(self.layout()).is_up();
        let nodes = self.shape().filter(|_| is_up).map_or(0, |shape| shape.nodes);
        let parts = self.parts();
        let of_nodes: Vec<NodeStatus> =
            (1..=nodes).map(|number| self.node_status(&Node::new(self.layout(), number))).collect();
        let own = parts.wanted().into_iter().filter(|name| of_nodes.iter().all(|node| node.name != *name));
        Status {
            name: self.layout().name().to_owned(),
            is_up,
            parts: own.map(|name| (name.clone(), is_up && parts.is_running(&name))).collect(),
            nodes: of_nodes,
        }
    }

    fn node_status(&self, node: &Node<'_>) -> NodeStatus {
        let path = "--output=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let (is_running, parts) = (node.is_running(), node.parts());
        NodeStatus {
            name: node.name(),
            is_running,
            ready: self.kubectl(["get", "node", &node.name(), "--request-timeout=3s", path]).unwrap_or_default(),
            parts: parts
                .wanted()
                .into_iter()
                .map(|name| (name.clone(), is_running && parts.is_running(&name)))
                .collect(),
        }
    }
}

// === impl Status ===

impl Status {
    /// Whether everything runs that should, and every node is ready.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let all_run = |parts: &[(String, bool)]| parts.iter().all(|(_, runs)| *runs);
        self.is_up
            && all_run(&self.parts)
            && self.nodes.iter().all(|node| node.is_running && node.ready == "True" && all_run(&node.parts))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_up {
            return writeln!(out, "cluster {} is down", self.name);
        }
        writeln!(out, "cluster {} is up", self.name)?;
        writeln!(out, "  control plane   {}", listed(&self.parts))?;
        for node in &self.nodes {
            let state = match (node.is_running, node.ready.as_str()) {
                (false, _) => "crashed",
                (true, "True") => "ready",
                (true, _) => "not ready",
            };
            writeln!(out, "  {:<8} {state:<9}{}", node.name, listed(&node.parts))?;
        }
        Ok(())
    }
}

fn listed(parts: &[(String, bool)]) -> String {
    let words = parts.iter().map(|(name, runs)| if *runs { name.clone() } else { format!("{name} (not running)") });
    words.collect::<Vec<_>>().join(", ")
}
