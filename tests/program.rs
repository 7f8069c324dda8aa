//! The cache node's program as a child process: start it, talk to it, end it.

#![allow(clippy::unwrap_used, reason = "a test that can not go on says so and ends")]
#![allow(clippy::disallowed_methods, reason = "real programs take real time")]

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here may take, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running node. Killed when dropped.
pub struct Node {
    /// The process.
    pub child: Child,
    /// Where it speaks RESP.
    pub resp: SocketAddr,
    /// Where it tells its health.
    pub admin: SocketAddr,
    log: Receiver<String>,
}

/// What a program that has ended left behind.
pub struct Ended {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// All of its standard output.
    pub out: String,
    /// All of its standard error.
    pub err: String,
}

/// An answer of the admin port.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

/// The release binary: `CACHE_NODE`, or the one in the same target folder as this test.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("CACHE_NODE") {
        return PathBuf::from(path);
    }
    let test = env::current_exe().expect("a program knows its path");
    let target = test.ancestors().nth(3).expect("tests lie in target/debug/deps");
    let binary = target.join("release/cache-node");
    assert!(binary.exists(), "{} is missing; `make build` makes it", binary.display());
    binary
}

/// Runs the program to its end, without the environment of the tests.
pub fn run(args: &[&str]) -> Ended {
    ended(command().args(args))
}

/// Runs a prepared command to its end.
///
/// # Panics
/// If it goes on for longer than [`PATIENCE`]; it is killed then.
pub fn ended(command: &mut Command) -> Ended {
    let output = output_within(PATIENCE, command);
    Ended {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The program, without the environment of the tests.
pub fn command() -> Command {
    let mut command = Command::new(binary());
    command.env_remove("RUST_LOG").env_remove("NODE_NAME").env("TERMINATION_LOG", "/nonexistent");
    command
}

/// Writes a configuration file with free ports and the folder's `data`, and `more` besides.
pub fn config(folder: &TempDir, more: &str) -> PathBuf {
    config_of_disk(folder, "", more)
}

/// The same with these settings of `disk`, such as `minTtl: 5s, memory: 16Mi`.
pub fn config_of_disk(folder: &TempDir, disk: &str, more: &str) -> PathBuf {
    let path = folder.path().join("node.yaml");
    let data = folder.path().join("data");
    let text = format!(
        "listen: {{resp: '127.0.0.1:0', admin: '127.0.0.1:0'}}\ndisk: {{path: '{}', {disk}}}\n{more}\n",
        data.display()
    );
    std::fs::write(&path, text).expect("a scratch folder can be written");
    path
}

// === impl Node ===

impl Node {
    /// Starts a node and waits until it serves.
    pub fn start(config: &Path) -> Self {
        Self::start_by(command().arg("--config").arg(config))
    }

    /// Starts a prepared command and waits until it says that it serves.
    pub fn start_by(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let stderr = child.stderr.take().expect("asked for as a pipe");
        let (sender, log) = channel();
        // Reads to the end, so that the node never waits for somebody to read its log.
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut node = Self { child, resp: ([0; 4], 0).into(), admin: ([0; 4], 0).into(), log };
        let serving = node.logged("serving");
        node.resp = address(&serving, "resp");
        node.admin = address(&serving, "admin");
        node
    }

    /// Waits for the log line with this message.
    pub fn logged(&self, message: &str) -> Value {
        let (mut seen, until) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            let Ok(line) = self.log.recv_timeout(until.saturating_duration_since(Instant::now())) else {
                panic!("no message {message:?} in the log:\n{}", seen.join("\n"));
            };
            match serde_json::from_str::<Value>(&line) {
                Ok(entry) if entry["message"] == message => return entry,
                _ => seen.push(line),
            }
        }
    }

    /// Sends a signal to the node. One that stops it has stopped it when this returns.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a child has a pid"), signal).expect("the child is not reaped yet");
        if signal == rustix::process::Signal::STOP {
            // Its threads stop once they have their turn, which takes a while on a busy machine.
            eventually("every thread of the node stops", || self.has_stopped());
        }
    }

    fn has_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the child is not reaped yet");
        threads.flatten().all(|thread| {
            // One that ended meanwhile does nothing any more.
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// With what it logged last if it goes on for longer than [`PATIENCE`].
    pub fn wait(&mut self) -> ExitStatus {
        status_within(PATIENCE, &mut self.child)
            .unwrap_or_else(|| panic!("the node does not end:\n{}", self.log.try_iter().collect::<Vec<_>>().join("\n")))
    }

    /// Asks the admin port.
    pub fn admin(&self, method: &str, path: &str) -> Answer {
        http(self.admin, method, path)
    }

    /// The report of `/v1/layers`.
    pub fn report(&self) -> Value {
        serde_json::from_str(&self.admin("GET", "/v1/layers").body).expect("the report is JSON")
    }

    /// The value of one metric by its name and labels as they are written, such as `a{b="c"}`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.admin("GET", "/metrics").body;
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until all layers have all writes.
    pub fn flushed(&self) {
        let queued = "tieredcache_layer_entries{layer=\"writeQueue\"}";
        eventually("the queue drains", || self.metric(queued) == Some(0.0));
    }

    /// A client connection.
    pub fn connect(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(self.resp).expect("the node accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a positive time");
        stream.set_write_timeout(Some(PATIENCE)).expect("a positive time");
        BufReader::new(stream)
    }

    /// Sends inline commands together, and returns the first line of each answer. Not for answers with bodies.
    pub fn ask(&self, commands: &[&str]) -> Vec<String> {
        let mut client = self.connect();
        client.get_mut().write_all((commands.join("\r\n") + "\r\n").as_bytes()).expect("the node reads");
        commands.iter().map(|_| line(&mut client)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until the condition holds.
///
/// # Panics
/// With `what` if it does not within [`PATIENCE`].
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "did not happen: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the end of a process; `None` if it goes on for longer than that.
pub fn status_within(limit: Duration, child: &mut Child) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        let status = child.try_wait().expect("the child is ours");
        if status.is_some() || begun.elapsed() >= limit {
            return status;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program without input to its end; what it printed.
///
/// # Panics
/// If it does not start, or goes on for longer than that; it is killed then.
pub fn output_within(limit: Duration, command: &mut Command) -> Output {
    output_of_fed_within(limit, command, Stdio::null())
}

/// The same with an input.
///
/// # Panics
/// As [`output_within`].
pub fn output_of_fed_within(limit: Duration, command: &mut Command, input: impl Into<Stdio>) -> Output {
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // Read on threads of their own: nobody ends who waits for somebody to read what it prints. They go on while a process
    // that it left behind keeps the pipe.
    let (stdout, stderr) = (read_aside(child.stdout.take()), read_aside(child.stderr.take()));
    let Some(status) = status_within(limit, &mut child) else {
        // It may have ended by now.
        let _ = child.kill();
        panic!("{command:?} does not end");
    };
    let all =
        |pipe: Receiver<Vec<u8>>| pipe.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{command:?} left a process"));
    Output { status, stdout: all(stdout), stderr: all(stderr) }
}

fn read_aside(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    let mut pipe = pipe.expect("asked for as a pipe");
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What can not be read is missing in what is looked for.
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// Sets a flag when it is dropped: the threads of a test that work until then also end when the test fails.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One line without its end.
pub fn line(client: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    client.read_line(&mut line).expect("the node answers");
    line.trim_end().to_owned()
}

/// One request on a connection of its own.
pub fn http(address: SocketAddr, method: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("the admin port accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a positive time");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").expect("the node reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the node answers");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("an answer has a status");
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// An empty file, as the kubelet mounts it for the last words of a container.
pub fn termination_log(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("termination-log");
    File::create(&path).expect("a scratch folder can be written");
    path
}

fn address(entry: &Value, field: &str) -> SocketAddr {
    entry[field].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {field} in {entry}"))
}
