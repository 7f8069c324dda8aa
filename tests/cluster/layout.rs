//! Where a cluster keeps its things: every path and every name is derived from the cluster's name.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::ClusterError;

/// Folder of all clusters' state; `TIEREDCACHE_STATE` overrides it.
const STATE: &str = "/var/lib/tieredcache";

/// What `CLUSTER` says where it names none of these clusters but that of the reader's own kubectl context.
const OWN_CONTEXT: &str = "current";

/// A cluster's name: part of paths, namespaces and control groups, so short and plain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterName(String);

/// Paths and names of one cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    name: ClusterName,
    root: PathBuf,
}

/// Paths and names of one node of a cluster.
#[derive(Debug, Clone)]
pub struct NodeLayout {
    /// Number of the node, from 1.
    pub number: u8,
    root: PathBuf,
    network: String,
}

/// Folder of everything that is built once for all clusters: `TIEREDCACHE_CACHE`, else in the home folder's cache.
pub(crate) fn cache() -> PathBuf {
    if let Some(folder) = std::env::var_os("TIEREDCACHE_CACHE").filter(|folder| !folder.is_empty()) {
        return PathBuf::from(folder);
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    home.join(".cache/tieredcache")
}

// === impl ClusterName ===

impl FromStr for ClusterName {
    type Err = ClusterError;

    fn from_str(name: &str) -> Result<Self, ClusterError> {
        // A cluster of this name could be brought up, and the tour would go past it to the reader's own.
        if name == OWN_CONTEXT {
            return Err(ClusterError::ReservedName { name: name.to_owned() });
        }
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let begins_with_letter = name.starts_with(|first: char| first.is_ascii_lowercase());
        if plain && begins_with_letter && name.len() <= 20 {
            Ok(Self(name.to_owned()))
        } else {
            Err(ClusterError::BadName { name: name.to_owned() })
        }
    }
}

impl ClusterName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Layout ===

impl Layout {
    /// Paths of the cluster of this name.
    #[must_use]
    pub fn new(name: ClusterName) -> Self {
        let state = std::env::var_os("TIEREDCACHE_STATE").filter(|folder| !folder.is_empty());
        let root = state.map_or_else(|| PathBuf::from(STATE), PathBuf::from).join(name.as_str());
        Self { name, root }
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Folder of everything the cluster writes.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of the logs of every part; the only one that outlives the cluster.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// Held while the cluster is changed.
    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Certificates and keys.
    pub(crate) fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// Files that the control plane's programs read.
    pub(crate) fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    /// What the cluster is: written by the first `up`, read by every later command.
    pub(crate) fn shape(&self) -> PathBuf {
        self.root.join("shape.json")
    }

    /// What the cluster's supervisor shall run.
    pub(crate) fn control_plane(&self) -> PathBuf {
        self.root.join("control-plane")
    }

    /// Network namespace of the control plane.
    pub(crate) fn network(&self) -> String {
        format!("tc.{}.cp", self.name())
    }

    /// Names, on the host, of the cluster's network namespaces and of its wire.
    #[must_use]
    pub fn networks(&self) -> Vec<String> {
        let nodes = (1..=super::network::NODES_MAX).map(|number| self.node(number).network);
        let network = self.network();
        let wire = super::network::host_link(&network);
        nodes.chain([network, wire]).collect()
    }

    /// Control group of everything that belongs to the cluster, below each hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("tieredcache/{}", self.name())
    }

    /// Paths of one node.
    #[must_use]
    pub fn node(&self, number: u8) -> NodeLayout {
        NodeLayout {
            number,
            root: self.root.join(format!("node{number}")),
            network: format!("tc.{}.n{number}", self.name()),
        }
    }
}

// === impl NodeLayout ===

impl NodeLayout {
    /// The node's name in the cluster.
    #[must_use]
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Folder of everything the node writes.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Network namespace of the node.
    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    /// Socket of the node's container runtime.
    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.root.join("containerd.sock")
    }

    /// Files that the node's programs read.
    pub(crate) fn config(&self) -> PathBuf {
        self.root.join("config")
    }
}

#[cfg(test)]
mod tests {
    use super::{ClusterName, Layout};

    #[test]
    fn names_are_plain_and_short() {
        for good in ["a", "tieredcache", "e2e-2"] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in ["", "2a", "-a", "A", "a.b", "a/b", "twenty-one-characters"] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_word_for_the_readers_own_cluster_is_no_name() {
        let refused = "current".parse::<ClusterName>().unwrap_err().to_string();
        assert!(refused.contains("\"current\"") && refused.contains("your own kubectl context"), "{refused}");
        assert!("current-1".parse::<ClusterName>().is_ok());
    }

    #[test]
    fn no_name_of_one_cluster_is_that_of_another() {
        let one = Layout::new("a".parse().unwrap());
        let other = Layout::new("a-n1".parse().unwrap());
        assert_ne!(one.node(1).network(), other.network());
        assert!(!other.root().starts_with(one.root()));
    }
}
