//! The operator's program as a child process.

use std::{
    env,
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::within;
use crate::{api::api, program::http};

/// A running operator. Killed when dropped.
pub(crate) struct Operator {
    child: Child,
    folder: TempDir,
}

/// How an operator is started.
pub(crate) struct Start {
    lease_namespace: String,
    watched: Vec<String>,
    pod_name: String,
    kubeconfig: PathBuf,
}

// === impl Start ===

impl Start {
    /// In one namespace, with the Lease there too: so that operators of different tests never meet.
    pub(crate) fn in_namespace(namespace: &str) -> Self {
        let kubeconfig = api().cluster.kubeconfig_path();
        let (lease_namespace, watched) = (namespace.to_owned(), vec![namespace.to_owned()]);
        Self { lease_namespace, watched, pod_name: "operator-a".to_owned(), kubeconfig }
    }

    /// In all namespaces.
    pub(crate) fn cluster_wide(mut self) -> Self {
        self.watched.clear();
        self
    }

    /// As another replica.
    pub(crate) fn named(mut self, pod_name: &str) -> Self {
        pod_name.clone_into(&mut self.pod_name);
        self
    }

    /// With other credentials, or another way to the API server.
    pub(crate) fn with_kubeconfig(mut self, kubeconfig: PathBuf) -> Self {
        self.kubeconfig = kubeconfig;
        self
    }

    /// Starts it, and again whenever it has lost the lease, as the kubelet does. On a machine that is busy with other
    /// tests the API server may well leave it hanging for that long.
    pub(crate) fn start(&self) -> Operator {
        let again = r#"while setpriv --pdeathsig KILL "$@"; [ $? = 3 ]; do :; done"#;
        self.spawn(&["sh", "-c", again, "sh"])
    }

    /// Starts it once: for tests of how it ends.
    pub(crate) fn start_once(&self) -> Operator {
        self.spawn(&[])
    }

    fn spawn(&self, wrapper: &[&str]) -> Operator {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let log = File::create(folder.path().join("log")).expect("a scratch folder can be written");
        // The kernel ends it with the thread of the test that started it, whatever becomes of that.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(wrapper).arg(binary());
        command.args(["run", "--admin-address=127.0.0.1:0", "--node-image-repository=nodes"]);
        command.arg(format!("--lease-namespace={}", self.lease_namespace)).arg(format!("--pod-name={}", self.pod_name));
        command.args(self.watched.iter().map(|namespace| format!("--watch-namespace={namespace}")));
        command.env("KUBECONFIG", &self.kubeconfig).env_remove("LOG_FORMAT").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        Operator { child: command.spawn().expect("setpriv is part of util-linux"), folder }
    }
}

// === impl Operator ===

impl Operator {
    /// Everything it has written so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("the log is there")
    }

    /// Waits until it has logged a message.
    pub(crate) fn logged(&self, message: &str) -> Value {
        let entry = || {
            let log = self.log();
            // The last one: it may have been started again.
            let mut entries = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            entries.find(|entry| entry["message"] == message)
        };
        within(60, &format!("the operator to log {message:?}"), entry)
    }

    /// Asks one of its routes; status and body.
    pub(crate) fn admin(&self, path: &str) -> (u16, String) {
        let address: SocketAddr = self.logged("serving probes and metrics")["address"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("the operator logs its address");
        let answer = http(address, "GET", path);
        (answer.status, answer.body)
    }

    /// The sum of all series whose name and labels contain every one of `words`.
    pub(crate) fn metric(&self, words: &[&str]) -> f64 {
        let (_, text) = self.admin("/metrics");
        let lines = text.lines().filter(|line| !line.starts_with('#') && words.iter().all(|word| line.contains(word)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a pid");
        kill_process(pid, signal).expect("the child is not reaped yet");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        within(60, "the operator to end", || self.child.try_wait().expect("the child is ours"))
    }

    /// Power cut.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the operator's log:\n{}", self.log());
        }
    }
}

/// The release binary: `OPERATOR`, or the one in the same target folder as this test.
fn binary() -> PathBuf {
    if let Some(path) = env::var_os("OPERATOR") {
        return PathBuf::from(path);
    }
    let test = env::current_exe().expect("a program knows its path");
    let target = test.ancestors().nth(3).expect("tests lie in target/debug/deps");
    let binary = target.join("release/operator");
    assert!(binary.exists(), "{} is missing; `make build` makes it", binary.display());
    binary
}
