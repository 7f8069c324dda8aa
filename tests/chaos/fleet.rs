//! The fleet under test: real nodes on data of their own, a real Redis, and a network between them that can be broken.

mod store;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use ::tests::{ports::free_port, program::Node, volume::Volume};
use anyhow::{Context, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

pub(crate) use self::store::Store;
use crate::{
    clock::Clock,
    history::{NodeId, Note, Start},
    proxy::Proxy,
};

/// What all caches of a run are called; their keys in Redis carry it.
pub(crate) const CACHE: &str = "chaos";
/// Room for the disk layer of a node whose disk fills up.
const VOLUME_BYTES: u64 = 128 << 20;

/// What is to be started.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) program: Program,
    pub(crate) write_through: bool,
    /// Whether the disk is asked before Redis.
    pub(crate) disk_first: bool,
    /// Whether the first node's disk is one that can fill up.
    pub(crate) small_disk: bool,
    /// Whether clocks of nodes can be put wrong.
    pub(crate) clocks: bool,
    /// The same of the clock of Redis.
    pub(crate) redis_clock: bool,
    /// For how long a fenced node serves what it holds; none if not at all.
    pub(crate) serve_stale_for: Option<Duration>,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// A cache node by this binary.
    CacheNode(PathBuf),
    /// The plain pattern, by this program itself.
    Plain,
}

/// Nodes, network and Redis. All of it ends when dropped.
pub(crate) struct Fleet {
    clock: Clock,
    program: Program,
    pub(crate) members: Vec<Member>,
    pub(crate) store: Store,
    pub(crate) starts: Vec<Start>,
    pub(crate) notes: Vec<Note>,
    /// What puts clocks wrong, if that is wanted.
    clock_library: Option<PathBuf>,
    _folder: TempDir,
}

/// One node, its way to Redis, and what it keeps from one process to the next.
pub(crate) struct Member {
    pub(crate) resp: SocketAddr,
    pub(crate) to_redis: Proxy,
    pub(crate) volume: Option<Volume>,
    config: PathBuf,
    clock_file: PathBuf,
    process: Option<Node>,
}

// === impl Fleet ===

impl Fleet {
    /// Starts everything and waits until every node serves.
    ///
    /// # Errors
    /// If a program is missing, or no port is free.
    pub(crate) fn start(shape: &Shape, clock: Clock) -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        let library = (shape.clocks || shape.redis_clock).then(|| clock_library(folder.path())).transpose()?;
        let store = Store::start(library.as_deref().filter(|_| shape.redis_clock), folder.path())?;
        let clock_library = library.filter(|_| shape.clocks);
        let members: anyhow::Result<Vec<Member>> =
            (0..shape.nodes).map(|node| Member::prepare(shape, node, (&store, folder.path()))).collect();
        let mut fleet = Self {
            clock,
            program: shape.program.clone(),
            members: members?,
            store,
            starts: Vec::new(),
            notes: Vec::new(),
            clock_library,
            _folder: folder,
        };
        (0..shape.nodes).for_each(|node| fleet.start_node(node));
        Ok(fleet)
    }

    /// Writes down what is being done, for whoever reads the history.
    pub(crate) fn note(&mut self, text: String) {
        self.notes.push(Note { at: self.clock.nanos(), text });
    }

    /// Starts the node's process on the data of the one before, and waits until it serves.
    pub(crate) fn start_node(&mut self, node: usize) {
        let member = &mut self.members[node];
        let mut command = match &self.program {
            Program::CacheNode(binary) => {
                let mut command = Command::new(binary);
                command.arg("--config").arg(&member.config);
                command
            }
            Program::Plain => {
                let mut command = Command::new(std::env::current_exe().expect("a program knows its path"));
                let (listen, redis) = (member.resp.to_string(), member.to_redis.address.to_string());
                command.args(["plain", "--listen", &listen, "--redis", &redis]);
                command
            }
        };
        command.env_remove("NODE_NAME").env("RUST_LOG", "info").env("TERMINATION_LOG", "/nonexistent");
        if let Some(library) = &self.clock_library {
            command.env("LD_PRELOAD", library).env("CLOCK_STEP_FILE", &member.clock_file);
        }
        // The process before it is waited for when it is killed.
        let spawned = self.clock.nanos();
        self.starts.push(Start { node: node as NodeId, spawned, alone: spawned });
        member.process = Some(Node::start_by(&mut command));
    }

    /// Ends the node's process as an out-of-memory killer would.
    pub(crate) fn kill_node(&mut self, node: usize) {
        // Killed and waited for when dropped; also one that is stopped.
        self.members[node].process = None;
    }

    /// Whether the node has a process.
    pub(crate) fn runs(&self, node: usize) -> bool {
        self.members[node].process.is_some()
    }

    /// Sends the node's process a signal, if it has one.
    pub(crate) fn signal_node(&self, node: usize, signal: Signal) {
        if let Some(process) = &self.members[node].process {
            process.signal(signal);
        }
    }

    /// Puts the node's wall clock wrong by so much.
    ///
    /// # Errors
    /// If the file that says so can not be written.
    pub(crate) fn step_clock(&self, node: usize, seconds: i64) -> anyhow::Result<()> {
        put_wrong(&self.members[node].clock_file, seconds)
    }

    /// Leads all nodes to the server that is the master now.
    pub(crate) fn follow_master(&self) {
        let master = loopback(self.store.master().port);
        self.members.iter().for_each(|member| member.to_redis.lead_to(master));
    }
}

/// Loopback with this port.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Has processes whose clock follows this file see another time.
fn put_wrong(file: &Path, seconds: i64) -> anyhow::Result<()> {
    // The same file, so that the process sees it in its memory.
    let file = fs::File::options().write(true).open(file)?;
    Ok(rustix::io::pwrite(&file, &seconds.to_ne_bytes(), 0).map(|_| ())?)
}

/// Compiles what puts clocks wrong.
fn clock_library(folder: &Path) -> anyhow::Result<PathBuf> {
    let (source, library) = (folder.join("clock_step.c"), folder.join("clock_step.so"));
    fs::write(&source, include_str!("clock_step.c"))?;
    let mut compiler = Command::new("clang");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
    let status = compiler.status().context("clang is installed")?;
    ensure!(status.success(), "clang fails on clock_step.c");
    Ok(library)
}

// === impl Member ===

impl Member {
    fn prepare(shape: &Shape, node: usize, (store, folder): (&Store, &Path)) -> anyhow::Result<Self> {
        let folder = folder.join(format!("node-{node}"));
        fs::create_dir(&folder)?;
        let volume = if shape.small_disk && node == 0 { Some(Volume::new(&folder, VOLUME_BYTES)) } else { None };
        let data = volume.as_ref().map_or(folder.as_path(), Volume::path).join("data");
        let to_redis = Proxy::to(loopback(store.master().port))?;
        let (resp, admin) = (loopback(free_port()), loopback(free_port()));
        let (config, clock_file) = (folder.join("node.yaml"), folder.join("clock"));
        fs::write(&clock_file, 0_i64.to_ne_bytes())?;
        // Memory of every kind: hardly any keys fit, a part does, all do.
        let memory = ["1Mi", "2Mi", "64Mi"][node % 3];
        let (redis, write_mode) = (to_redis.address, if shape.write_through { "WriteThrough" } else { "WriteBehind" });
        let order = if shape.disk_first { "[Disk, Redis]" } else { "[Redis, Disk]" };
        let fenced = shape.serve_stale_for.map_or_else(
            || "whenDisconnected: Miss".to_owned(),
            |span| format!("whenDisconnected: ServeStale, serveStaleFor: {}s", span.as_secs()),
        );
        let text = format!(
            "cache: {{name: {CACHE}, uid: {CACHE}, node: node-{node}}}\n\
             listen: {{resp: '{resp}', admin: '{admin}', threads: 1}}\n\
             memory: {{capacity: {memory}}}\n\
             redis: {{mode: External, endpoints: ['{redis}'], timeout: 250ms, writeMode: {write_mode}}}\n\
             disk: {{path: '{data}', minTtl: 0s, memory: 16Mi}}\n\
             backplane: {{{fenced}}}\n\
             readOrder: {order}\n",
            data = data.display(),
        );
        fs::write(&config, text)?;
        Ok(Self { resp, to_redis, volume, config, clock_file, process: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_of_one_process_is_put_wrong() {
        let folder = TempDir::new().unwrap();
        let library = clock_library(folder.path()).unwrap();
        let file = folder.path().join("clock");
        let told = |seconds: i64| {
            fs::write(&file, seconds.to_ne_bytes()).unwrap();
            let output =
                Command::new("date").arg("+%s").env("LD_PRELOAD", &library).env("CLOCK_STEP_FILE", &file).output();
            String::from_utf8(output.unwrap().stdout).unwrap().trim().parse::<i64>().unwrap()
        };
        let now = told(0);
        assert!((3590..=3610).contains(&(told(3600) - now)));
        assert!((3590..=3610).contains(&(now - told(-3600))));
    }
}
