//! The test cluster: a real Kubernetes of several nodes on one machine, without a container engine.
//!
//! ```no_run
//! use tests::cluster::Cluster;
//!
//! let cluster = Cluster::named("example")?;
//! cluster.up(3)?;
//! cluster.kubectl(["get", "nodes"])?;
//! cluster.cut(2)?;
//! cluster.down()?;
//! # Ok::<(), tests::cluster::ClusterError>(())
//! ```
//!
//! Everything runs below one supervisor, in namespaces of its own; see [`Layout`] for where things lie. Clusters of
//! different names work beside each other.

mod error;

mod clock;

mod command;

mod layout;

mod requirements;
mod rest;

mod programs;

mod cgroup;

mod network;

mod supervisor;

mod runtime;

mod certificates;

mod storage;

mod audit;

mod control_plane;

mod dns;

mod node;

mod images;

mod nodes;

mod status;

mod shared;

use std::cell::Cell;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

pub use audit::OPERATOR_USER;
pub use error::{ClusterError, Result};
pub use images::{Archive, CACHE_NODE_IMAGE, OPERATOR_IMAGE, REDIS_IMAGE, TOOLS_IMAGE, Wanted, build_images};
pub use layout::{ClusterName, Layout, NodeLayout};
pub use network::NODES_MAX;
pub use rest::Rest;
pub use runtime::{boot_node, contain};
pub use shared::shared;
pub use status::{NodeStatus, Status};

use clock::{now, wait_until};
use control_plane::{ControlPlane, Endpoints};
use error::AtPath;
use runtime::Runtime;
use supervisor::Parts;

/// How long a program goes on whose parent was killed: those that make namespaces take a few milliseconds.
const ORPHAN_PATIENCE: std::time::Duration = std::time::Duration::from_millis(150);

/// How long the API server may take to answer after its start.
const API_STARTS_WITHIN: Duration = Duration::from_secs(180);

/// A cluster, running or not.
#[derive(Debug, Clone)]
pub struct Cluster {
    layout: Layout,
    say: fn(&str),
}

/// What a running cluster is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Shape {
    /// How many nodes; none means an API server alone.
    nodes: u8,
    endpoints: Endpoints,
}

/// Keeps parts running; the body of a supervisor process.
///
/// # Errors
/// `Io` when the folder can not be read or written.
pub fn supervise(folder: &Path) -> Result<()> {
    supervisor::supervise(folder)
}

/// Builds every program that a cluster needs and that is not built yet, telling about it on standard error.
///
/// # Errors
/// `Missing` without Go, `Command` when a build fails, `Io`.
pub fn build_programs() -> Result<()> {
    programs::build(&programs::ALL, &|line| eprintln!("{line}"))
}

/// Where each built program is, and whether it is there: one line each.
#[must_use]
pub fn list_programs() -> Vec<String> {
    programs::list()
}

// === impl Cluster ===

impl Cluster {
    /// The cluster of this name, whether it runs or not; it tells about its steps on standard error.
    ///
    /// # Errors
    /// `BadName`, `ReservedName`.
    pub fn named(name: &str) -> Result<Self> {
        Ok(Self { layout: Layout::new(name.parse()?), say: |line| eprintln!("{line}") })
    }

    /// The cluster that the variable `CLUSTER` names, else `default`.
    ///
    /// # Errors
    /// `BadName`, `ReservedName`.
    pub fn from_env(default: &str) -> Result<Self> {
        let name = std::env::var("CLUSTER").ok().filter(|name| !name.is_empty());
        Self::named(name.as_deref().unwrap_or(default))
    }

    /// Where the cluster keeps its things.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Path of the administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// Whether the cluster is up with nodes.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.running_shape().is_ok_and(|shape| shape.nodes > 0)
    }

    /// Brings an API server with etcd and the controllers up, on the loopback, without nodes: for tests that need a
    /// real API and no pods. Does nothing when it is up.
    ///
    /// # Errors
    /// `Missing`, `OtherShape`, `Timeout`, `Command`, `Io`.
    pub fn api_up(&self) -> Result<()> {
        requirements::check_machine()?;
        programs::build(&[&programs::KUBERNETES], &self.say)?;
        let _lock = self.lock()?;
        if self.is_up_as(0)? {
            return Ok(());
        }
        self.begin()?;
        let shape = Shape { nodes: 0, endpoints: Endpoints::loopback() };
        self.start_supervisor(&shape)?;
        self.start_api(&shape)?;
        self.write_shape(&shape)
    }

    /// Brings a cluster of so many nodes up, building and installing what is missing; only adds nodes when it is up
    /// with fewer. Takes about ten seconds once everything is built.
    ///
    /// # Errors
    /// `Missing`, `OtherShape`, `Timeout`, `Command`, `Io`.
    pub fn up(&self, nodes: u8) -> Result<()> {
        assert!((1..=NODES_MAX).contains(&nodes), "a cluster has 1 to {NODES_MAX} nodes");
        requirements::check_all(&self.say)?;
        programs::build(&programs::ALL, &self.say)?;
        let pause = images::pause()?;
        let _lock = self.lock()?;
        let steps = Steps::new(self.say);
        if let Some(shape) = self.shape().filter(|_| Runtime::of(&self.layout).is_up()) {
            if shape.nodes == 0 || shape.nodes > nodes {
                return Err(self.other_shape(shape.nodes, nodes));
            }
            self.write_shape(&Shape { nodes, ..shape })?;
            return self.complete_nodes(nodes, &pause, &steps);
        }
        self.begin()?;
        let wire = network::create_control_plane(&self.layout)?;
        let shape = Shape { nodes, endpoints: Endpoints::inside(wire) };
        let booted = std::thread::scope(|scope| {
            self.start_supervisor(&shape)?;
            // The machines boot while the API server does.
            let boot = scope.spawn(|| self.boot_nodes(nodes, &pause));
            let api = self.start_api(&shape);
            let booted = boot.join().expect("booting does not panic");
            api.and(booted)
        });
        booted?;
        steps.done("API server answers, machines are booted");
        self.start_services(&shape)?;
        steps.done("scheduler, storage and DNS started");
        // Only now: a shape on disk says that the control plane is complete.
        self.write_shape(&shape)?;
        self.complete_nodes(nodes, &pause, &steps)
    }

    /// Takes everything down that the cluster started or made, except for its logs. Safe to call at any time.
    ///
    /// # Errors
    /// `Timeout` with what is still there, `Command`, `Io`.
    pub fn down(&self) -> Result<()> {
        if !self.layout.root().exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.wipe()?;
        // The program that a killed `up` was running ends by itself, and may have made its namespace only now.
        std::thread::sleep(ORPHAN_PATIENCE);
        network::remove_all(&self.layout)
    }

    /// Runs kubectl as the administrator and returns what it prints.
    ///
    /// # Errors
    /// `NotUp`, `Command`.
    pub fn kubectl<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        command::output_of(self.kubectl_command()?.args(args))
    }

    /// Applies manifests, in YAML or JSON.
    ///
    /// # Errors
    /// `NotUp`, `Command`.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        command::feed_to(self.kubectl_command()?.args(["apply", "-f", "-"]), manifests)
    }

    /// A command that runs kubectl as the administrator.
    ///
    /// # Errors
    /// `NotUp`.
    pub fn kubectl_command(&self) -> Result<Command> {
        self.client(&programs::KUBERNETES.program("kubectl"))
    }

    /// A command that runs helm as the administrator.
    ///
    /// # Errors
    /// `NotUp`.
    pub fn helm_command(&self) -> Result<Command> {
        self.client(&programs::HELM.program("helm"))
    }

    fn client(&self, program: &Path) -> Result<Command> {
        if !self.layout.kubeconfig().exists() {
            return Err(ClusterError::NotUp { name: self.layout.name().to_owned() });
        }
        let mut command = Command::new(program);
        command
            .env("KUBECONFIG", self.layout.kubeconfig())
            // What it remembers of the API must not outlive this cluster: the next may have the same address.
            .env("KUBECACHEDIR", self.layout.root().join("client-cache"));
        Ok(command)
    }

    /// Whether the cluster is up with as many nodes; an error when it is up in another shape.
    fn is_up_as(&self, nodes: u8) -> Result<bool> {
        let Some(shape) = self.shape().filter(|_| Runtime::of(&self.layout).is_up()) else { return Ok(false) };
        if shape.nodes == nodes { Ok(true) } else { Err(self.other_shape(shape.nodes, nodes)) }
    }

    fn other_shape(&self, running: u8, asked: u8) -> ClusterError {
        let name = self.layout.name().to_owned();
        ClusterError::OtherShape { name, running: shape_name(running), asked: shape_name(asked) }
    }

    /// The shape of the running cluster.
    fn running_shape(&self) -> Result<Shape> {
        let shape = self.shape().filter(|_| Runtime::of(&self.layout).is_up());
        shape.ok_or_else(|| ClusterError::NotUp { name: self.layout.name().to_owned() })
    }

    /// Makes room for a fresh start: whatever an interrupted or killed life left is removed first.
    fn begin(&self) -> Result<()> {
        if self.layout.logs().exists() || self.layout.pki().exists() {
            self.wipe()?;
        }
        let logs = self.layout.logs();
        if logs.exists() {
            fs::remove_dir_all(&logs).at("removing", &logs)?;
        }
        fs::create_dir_all(&logs).at("creating", &logs)
    }

    /// Makes the files that all programs need and starts what keeps them running.
    fn start_supervisor(&self, shape: &Shape) -> Result<()> {
        let control_plane = ControlPlane::new(&self.layout, &shape.endpoints);
        control_plane.create_certificates(NODES_MAX)?;
        control_plane.write_config()?;
        Runtime::of(&self.layout).start()
    }

    /// Starts etcd, the API server and the controllers, and waits until the API answers.
    fn start_api(&self, shape: &Shape) -> Result<()> {
        let control_plane = ControlPlane::new(&self.layout, &shape.endpoints);
        let parts = self.parts();
        parts.want("etcd", &control_plane.etcd())?;
        parts.want("kube-apiserver", &control_plane.api_server())?;
        self.await_api(&shape.endpoints)?;
        parts.want("kube-controller-manager", &control_plane.controller_manager())
    }

    /// Starts what a cluster with nodes has beyond an API.
    fn start_services(&self, shape: &Shape) -> Result<()> {
        let control_plane = ControlPlane::new(&self.layout, &shape.endpoints);
        let parts = self.parts();
        parts.want("kube-scheduler", &control_plane.scheduler())?;
        self.apply(&(storage::manifest() + &dns::manifest()))?;
        parts.want("coredns", &control_plane.dns())?;
        let volumes = storage::volumes(&self.layout);
        fs::create_dir_all(&volumes).at("creating", &volumes)?;
        control_plane.storage().iter().try_for_each(|(name, part)| parts.want(name, part))
    }

    fn await_api(&self, endpoints: &Endpoints) -> Result<()> {
        let address = SocketAddr::from((endpoints.api, endpoints.api_port));
        let ready = wait_until(API_STARTS_WITHIN, Duration::from_millis(100), || {
            // The port first: it costs nothing to ask.
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
                && self.kubectl(["get", "--raw=/readyz"]).is_ok()
        });
        if ready {
            return Ok(());
        }
        Err(ClusterError::Timeout {
            what: "starting the API server".to_owned(),
            limit: API_STARTS_WITHIN,
            hint: format!("see {}", self.layout.logs().join("kube-apiserver.log").display()),
        })
    }

    fn parts(&self) -> Parts {
        Parts::new(self.layout.control_plane())
    }

    /// Removes everything but the logs and the lock.
    fn wipe(&self) -> Result<()> {
        Runtime::of(&self.layout).sweep()?;
        let root = self.layout.root();
        for entry in fs::read_dir(root).at("reading", root)?.flatten() {
            let path = entry.path();
            if path == self.layout.logs() || path == self.layout.lock() {
                continue;
            }
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.at("removing", &path)?;
        }
        Ok(())
    }

    fn shape(&self) -> Option<Shape> {
        serde_json::from_str(&fs::read_to_string(self.layout.shape()).ok()?).ok()
    }

    fn write_shape(&self, shape: &Shape) -> Result<()> {
        let path = self.layout.shape();
        let text = serde_json::to_string_pretty(shape).expect("a shape is plain data");
        fs::write(&path, text).at("writing", &path)
    }

    /// Holds off every other change of this cluster until it is dropped.
    fn lock(&self) -> Result<fs::File> {
        let root = self.layout.root();
        fs::create_dir_all(root).at("creating", root)?;
        let path = self.layout.lock();
        let lock = fs::File::create(&path).at("creating", &path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            (self.say)("waiting for another command on the same cluster");
            flock(&lock, FlockOperation::LockExclusive).at("locking", &path)?;
        }
        Ok(lock)
    }
}

/// Tells how long each step took.
struct Steps {
    say: fn(&str),
    start: Instant,
    last: Cell<Instant>,
}

// === impl Steps ===

impl Steps {
    fn new(say: fn(&str)) -> Self {
        let start = now();
        Self { say, start, last: Cell::new(start) }
    }

    /// Reports a step that ends now.
    fn done(&self, what: &str) {
        let took = self.last.replace(now()).elapsed();
        (self.say)(&format!("{:5.1} s  {what} ({:.1} s)", self.start.elapsed().as_secs_f64(), took.as_secs_f64()));
    }
}

fn shape_name(nodes: u8) -> String {
    if nodes == 0 { "an API server without nodes".to_owned() } else { format!("{nodes} nodes") }
}
