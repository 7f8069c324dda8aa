//! The cluster's own network: one namespace for the control plane, one for each node, and a wire from the host.
//!
//! ```text
//!   host ── 198.19.K.0/30 ── control plane (bridge 198.19.255.1)
//!                              ├── node1 198.19.255.11, pods 198.18.1.0/24
//!                              ├── node2 198.19.255.12, pods 198.18.2.0/24
//!                              └── …
//! ```
//!
//! All addresses are from 198.18.0.0/15, which is set aside for tests (RFC 2544). They exist inside the namespaces
//! only, so every cluster uses the same; just the wire's K is chosen free. Nothing routes to the outside.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::command::{feed, run};
use super::error::{AtPath, ClusterError, Result};
use super::layout::{Layout, NodeLayout};

/// Addresses of services.
pub(crate) const SERVICES: &str = "198.18.128.0/17";
/// The API server's service address: the first of the range.
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(198, 18, 128, 1);
/// The service address of the cluster's DNS.
pub(crate) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(198, 18, 128, 10);
/// Addresses of pods, of all nodes together.
pub(crate) const PODS: &str = "198.18.0.0/17";
/// The control plane's address towards nodes and pods.
pub(crate) const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
/// The most nodes that a cluster can have.
pub const NODES_MAX: u8 = 5;

/// The wire between the host and a control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wire {
    third_byte: u8,
}

/// Address of a node.
pub(crate) fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 19, 255, 10 + number)
}

/// Addresses of a node's pods.
pub(crate) fn pods_of(number: u8) -> String {
    format!("198.18.{number}.0/24")
}

/// The arguments that make `nsenter` run a program in a network namespace.
///
/// Not `ip netns exec`: that remounts `/sys` and hides the control groups from the kubelet.
pub(crate) fn inside(network: &str) -> String {
    format!("--net=/run/netns/{network}")
}

// === impl Wire ===

impl Wire {
    /// The host's end.
    fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.third_byte, 1)
    }

    /// The control plane's end: where the API server is reached from outside.
    pub(crate) fn control_plane(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.third_byte, 2)
    }

    /// The first wire whose addresses nobody on this host uses.
    fn free() -> Result<Self> {
        let used = run("ip", &["-4", "-o", "address"])?;
        (0..=254)
            .map(|third_byte| Self { third_byte })
            .find(|wire| !used.contains(&format!(" 198.19.{}.", wire.third_byte)))
            .ok_or_else(|| ClusterError::Missing {
                what: "a free address in 198.19.0.0/16".to_owned(),
                remedy: "take other clusters down".to_owned(),
            })
    }
}

/// Makes the control plane's namespace, its bridge and the wire.
pub(crate) fn create_control_plane(layout: &Layout) -> Result<Wire> {
    // Two clusters that come up at once must not choose the same wire.
    let path = layout.root().with_file_name("network.lock");
    let lock = fs::File::create(&path).at("creating", &path)?;
    flock(&lock, FlockOperation::LockExclusive).at("locking", &path)?;
    let wire = Wire::free()?;
    let network = layout.network();
    run("ip", &["netns", "add", &network])?;
    let host_link = host_link(&network);
    feed(
        "ip",
        &["-batch", "-"],
        &format!(
            "link add {host_link} type veth peer name host netns {network}\n\
             address add {}/30 dev {host_link}\n\
             link set {host_link} up\n",
            wire.host()
        ),
    )?;
    feed(
        "ip",
        &["-n", &network, "-batch", "-"],
        &format!(
            "link set lo up\n\
             address add {}/30 dev host\n\
             link set host up\n\
             link add bridge type bridge forward_delay 0\n\
             address add {CONTROL_PLANE}/24 dev bridge\n\
             link set bridge up\n",
            wire.control_plane()
        ),
    )?;
    forward(&network)?;
    Ok(wire)
}

/// Makes a node's namespace and plugs it into the control plane's bridge.
pub(crate) fn create_node(layout: &Layout, node: &NodeLayout) -> Result<()> {
    let (control_plane, network, name) = (layout.network(), node.network(), node.name());
    let address = node_address(node.number);
    run("ip", &["netns", "add", network])?;
    feed(
        "ip",
        &["-n", &control_plane, "-batch", "-"],
        &format!(
            "link add {name} type veth peer name eth0 netns {network}\n\
             link set {name} master bridge\n\
             link set {name} up\n\
             route replace {} via {address}\n",
            pods_of(node.number)
        ),
    )?;
    let mut batch = format!(
        "link set lo up\n\
         address add {address}/24 dev eth0\n\
         link set eth0 up\n\
         route add default via {CONTROL_PLANE}\n"
    );
    for other in (1..=NODES_MAX).filter(|other| *other != node.number) {
        batch += &format!("route add {} via {}\n", pods_of(other), node_address(other));
    }
    feed("ip", &["-n", network, "-batch", "-"], &batch)?;
    forward(network)
}

/// Unplugs a node from the bridge, or plugs it in again.
pub(crate) fn set_plugged(layout: &Layout, node: &NodeLayout, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    run("ip", &["-n", &layout.network(), "link", "set", &node.name(), state]).map(drop)
}

/// Removes a node's namespace, if there is one.
pub(crate) fn remove_node(layout: &Layout, node: &NodeLayout) -> Result<()> {
    if exists(node.network()) {
        // The wire goes first, by name: a namespace's death takes its wires along only some time later.
        let _ = run("ip", &["-n", &layout.network(), "link", "delete", &node.name()]);
        run("ip", &["netns", "delete", node.network()])?;
    }
    Ok(())
}

/// Removes every namespace and wire of the cluster.
pub(crate) fn remove_all(layout: &Layout) -> Result<()> {
    for number in 1..=NODES_MAX {
        remove_node(layout, &layout.node(number))?;
    }
    let network = layout.network();
    let host_link = host_link(&network);
    if Path::new("/sys/class/net").join(&host_link).exists() {
        run("ip", &["link", "delete", &host_link])?;
    }
    if exists(&network) {
        run("ip", &["netns", "delete", &network])?;
    }
    Ok(())
}

fn exists(network: &str) -> bool {
    Path::new("/run/netns").join(network).exists()
}

/// Name of the host's end of the wire of a control plane's namespace: at most 15 characters, so a hash instead of the cluster's name.
pub(crate) fn host_link(network: &str) -> String {
    format!("tc{:08x}", xxhash_rust::xxh3::xxh3_64(network.as_bytes()) >> 32)
}

fn forward(network: &str) -> Result<()> {
    // `/proc/sys/net` shows the namespace of the process that opens it.
    let script = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    run("nsenter", &[&inside(network), "sh", "-c", script]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{API_SERVICE, DNS_SERVICE, NODES_MAX, host_link, node_address, pods_of};

    #[test]
    fn addresses_of_nodes_and_pods_are_distinct() {
        assert_eq!(node_address(1).to_string(), "198.19.255.11");
        assert_eq!(pods_of(NODES_MAX), "198.18.5.0/24");
        assert_ne!(API_SERVICE, DNS_SERVICE);
    }

    #[test]
    fn names_of_links_fit_the_kernel() {
        assert!(host_link("tc.twenty-characters-xx.cp").len() <= 15);
    }
}
