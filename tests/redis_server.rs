//! A real `redis-server`, or a server like it, and a person at `redis-cli`.

#![allow(clippy::unwrap_used, reason = "a test that can not go on says so and ends")]
#![allow(clippy::disallowed_methods, reason = "real programs take real time")]

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    ports::free_port,
    program::{PATIENCE, eventually, output_within},
};

/// Makes a command that runs a server, to which only its options are added.
pub type Program = fn() -> Command;

/// A server with a folder of its own. Killed when dropped.
pub struct Server {
    program: Program,
    child: Child,
    /// Where it listens, on loopback.
    pub port: u16,
    args: Vec<String>,
    environment: Vec<(String, PathBuf)>,
    /// How `redis-cli` gets in.
    pub cli_args: Vec<String>,
    /// Where it keeps what it keeps.
    pub folder: TempDir,
}

// === impl Server ===

impl Server {
    /// Starts a server that keeps nothing on disk, with more options.
    pub fn start(more: &[&str]) -> Self {
        Self::start_of(redis, more)
    }

    /// Starts a server that has, after its end and a restart, all that it had acknowledged.
    pub fn that_remembers() -> Self {
        // What it wrote before it answered is the kernel's, and outlives a kill.
        Self::start(&["--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "0"])
    }

    /// The same of another make.
    pub fn start_of(program: Program, more: &[&str]) -> Self {
        let port = free_port();
        let text = port.to_string();
        let plain = ["--bind", "127.0.0.1", "--port", &text, "--save", "", "--appendonly", "no"];
        Self::start_of_as(program, port, [&plain[..], more].concat())
    }

    /// Starts a server with these options alone, of which one must be the port.
    pub fn start_as(port: u16, args: Vec<&str>) -> Self {
        Self::start_of_as(redis, port, args)
    }

    /// The same with more in its environment.
    pub fn start_within(environment: Vec<(String, PathBuf)>, port: u16, args: Vec<&str>) -> Self {
        Self::begin((redis, environment), port, args)
    }

    /// The same of another make.
    pub fn start_of_as(program: Program, port: u16, args: Vec<&str>) -> Self {
        Self::begin((program, Vec::new()), port, args)
    }

    fn begin((program, environment): (Program, Vec<(String, PathBuf)>), port: u16, args: Vec<&str>) -> Self {
        let folder = TempDir::new().unwrap();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let child = run(program, &environment, &args, folder.path());
        let cli_args = vec!["-h".to_owned(), "127.0.0.1".to_owned(), "-p".to_owned(), port.to_string()];
        let server = Self { program, child, port, args, environment, cli_args, folder };
        server.wait();
        server
    }

    /// Kills it as an out-of-memory killer would.
    pub fn kill(&mut self) {
        // A stopped process dies, too.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port, with what its folder still has; kills it before if it runs.
    pub fn restart(&mut self) {
        self.kill();
        self.child = run(self.program, &self.environment, &self.args, self.folder.path());
        self.wait();
    }

    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Stops it in the middle of whatever it does: it neither answers nor closes its connections.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Runs one command, given word by word, and gives back what `redis-cli` prints.
    pub fn cli(&self, words: &[&str]) -> String {
        let output = output_within(PATIENCE, Command::new("redis-cli").args(&self.cli_args).args(words));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    fn wait(&self) {
        eventually("the server accepts connections", || TcpStream::connect(self.address()).is_ok());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn redis() -> Command {
    Command::new("redis-server")
}

fn run(program: Program, environment: &[(String, PathBuf)], args: &[String], folder: &Path) -> Child {
    let mut command = program();
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.args(args).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
