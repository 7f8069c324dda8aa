//! A real Kubernetes API for tests that need no pods: etcd, the API server and the controllers, shared by all tests of
//! this process.

use std::{
    env,
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use tests::cluster::Cluster;

/// The API and the process that takes it down.
struct Shared {
    cluster: Cluster,
    /// Waits for the end of this process, however it ends: its standard input closes then.
    _caretaker: Child,
}

static SHARED: OnceLock<Shared> = OnceLock::new();
static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// The CustomResourceDefinition as committed.
pub(crate) const CRD: &str = include_str!("../../crds/tieredcaches.yaml");

/// The API server, up and with the resource installed.
pub(crate) fn api() -> &'static Cluster {
    &SHARED.get_or_init(start).cluster
}

/// A namespace of one test's own.
pub(crate) fn namespace(test: &str) -> String {
    let name = format!("{test}-{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
    api().kubectl(["create", "namespace", &name]).expect("a namespace can be created");
    name
}

/// What a kubectl command said, and whether it succeeded.
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) text: String,
}

/// Runs kubectl with `input` and returns what it printed, both streams together.
pub(crate) fn kubectl(args: &[&str], input: &str) -> Answer {
    use std::io::Write;

    let mut command = api().kubectl_command().expect("the API is up");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("kubectl starts");
    let mut stdin = child.stdin.take().expect("asked for as a pipe");
    // kubectl may end without reading it all; its status then says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("kubectl ends");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Answer { ok: output.status.success(), text }
}

fn start() -> Shared {
    // A name of this process's own: a run that begins while an earlier one is being cleared away does not meet it.
    let name = format!("it-{}", std::process::id());
    let cluster = Cluster::named(&name).expect("the name is short");
    let caretaker = caretaker(&name, &cluster);
    cluster.api_up().expect("the API server starts");
    cluster.apply(CRD).expect("the API server takes the CRD");
    let established = ["wait", "crd/tieredcaches.tieredcache.io", "--for=condition=Established", "--timeout=30s"];
    cluster.kubectl(established).expect("the CRD is established");
    Shared { cluster, _caretaker: caretaker }
}

fn caretaker(name: &str, cluster: &Cluster) -> Child {
    let script = r#"read -r _; "$0" --name "$1" api down && rm -rf "$2""#;
    Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_cluster"), name])
        .arg(cluster.layout().root())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell starts")
}
