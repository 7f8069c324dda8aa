//! A real `redis-server` on loopback that a test can stop, freeze, empty and start again, with or without a memory.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{program::PATIENCE, resp::client::Client};

/// The server.
pub(crate) struct RedisServer {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Where it keeps what it has, if it does.
    folder: Option<TempDir>,
}

// === impl RedisServer ===

impl RedisServer {
    /// An empty server on a free port.
    pub(crate) fn start() -> Self {
        Self::start_in(None)
    }

    /// An empty server that has, when it comes back after its end, all that it had acknowledged.
    pub(crate) fn that_remembers() -> Self {
        Self::start_in(Some(TempDir::new().unwrap()))
    }

    fn start_in(folder: Option<TempDir>) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { child: spawn(free, folder.as_ref()), address: free, folder }
    }

    /// Ends it without a chance to say goodbye.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port: empty, unless it remembers.
    pub(crate) fn start_again(&mut self) {
        self.kill();
        self.child = spawn(self.address, self.folder.as_ref());
    }

    /// Stops it from running, or lets it go on.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a pid");
        kill_process(pid, signal).expect("the child is not reaped yet");
    }

    /// A connection to it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(address: SocketAddr, folder: Option<&TempDir>) -> Child {
    let port = address.port().to_string();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--auto-aof-rewrite-percentage", "0"]);
    match folder {
        // What it wrote before it answered is the kernel's, and outlives a kill.
        Some(folder) => command.args(["--appendonly", "yes", "--appendfsync", "no", "--dir"]).arg(folder.path()),
        None => command.args(["--appendonly", "no"]),
    };
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("redis-server is installed");
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < PATIENCE, "redis-server does not listen");
        sleep(Duration::from_millis(10));
    }
    child
}
