//! Stock clients on every machine of the cluster: redis-py, and the Rust crate `redis`, which is the verb `client` of the
//! program `chaos`. They talk to the node of their own machine, which they also reach while the machine is cut off, and
//! find it by the name of its pod.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tests::stock_clients::redis_py;

use crate::fleet::{Fleet, eventually};

/// Address of the cluster's DNS.
const RESOLVER: &str = "nameserver 198.18.128.10\noptions timeout:1 attempts:2\n";
/// Runs what follows with another file in the place of `/etc/resolv.conf`, which only its own processes see.
const WITH_RESOLVER: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
/// An answer that is still waited for is given up after 2.5 s; then the history is written.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// Clients of each node.
const KINDS: usize = 2;

/// Running clients. They end when their standard input does, so none outlives the test.
pub(super) struct Clients {
    running: Vec<(Child, PathBuf)>,
}

// === impl Clients ===

impl Clients {
    /// Starts a client of each kind on the machine of each node.
    pub(super) fn start(fleet: &Fleet, machines: &[u8], folder: &Path, seed: u64) -> Self {
        let resolver = folder.join("resolv.conf");
        fs::write(&resolver, RESOLVER).expect("a scratch folder can be written");
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("chaos/redis_py.py");
        let python: Vec<PathBuf> = vec!["python3".into(), python];
        let rust: Vec<PathBuf> = vec![env!("CARGO_BIN_EXE_chaos").into(), "client".into()];
        let mut running = Vec::new();
        for (node, machine) in machines.iter().enumerate() {
            for (name, program) in [("redis-py", &python), ("redis-rs", &rust)] {
                let place = running.len();
                let file = folder.join(format!("node-{node}-{name}.jsonl"));
                let log = File::create(file.with_extension("log")).expect("a scratch folder can be written");
                let mut command = fleet.cluster.inside_node(*machine, "unshare").expect("the cluster is up");
                command.args(["--mount", "sh", "-c", WITH_RESOLVER]).arg(&resolver).args(program);
                command
                    .env("PYTHONPATH", redis_py())
                    .args(["--node", &node.to_string(), "--name", &format!("cache-{node}")])
                    .args(["--host", &format!("cache-{node}.cache-nodes.{}.svc.cluster.local", fleet.namespace)])
                    .args(["--place", &place.to_string(), "--clients", &(KINDS * machines.len()).to_string()])
                    .args(["--seed", &seed.wrapping_add(place as u64).to_string()])
                    .arg(&file);
                running.push((start(command, log), file));
            }
        }
        Self { running }
    }

    /// Ends all of them; the files with what they saw.
    pub(super) fn stop(self) -> Vec<PathBuf> {
        let mut running = self.running;
        for (client, _) in &mut running {
            drop(client.stdin.take());
        }
        running.into_iter().map(|(client, file)| ended(client, file)).collect()
    }
}

fn start(mut command: Command, log: File) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().expect("nsenter is a program")
}

fn ended(mut client: Child, file: PathBuf) -> PathBuf {
    let status = eventually("a client ends", ENDS_WITHIN, || {
        client.try_wait().map_err(|error| error.to_string())?.ok_or_else(|| format!("{} runs", file.display()))
    });
    let said = fs::read_to_string(file.with_extension("log")).unwrap_or_default();
    assert!(status.success(), "the client that writes {} ended with {status}: {said}", file.display());
    file
}
