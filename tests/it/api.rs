//! A real Kubernetes API for tests that need no pods: etcd, the API server and the controllers, shared by all tests of
//! this process.

use std::{
    io::{Seek, Write},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use tempfile::tempfile;
use tests::{
    cluster::{Cluster, Rest},
    program::output_of_fed_within,
};

/// An API server and the process that takes it down.
pub(crate) struct Api {
    pub(crate) cluster: Cluster,
    /// Waits until its standard input closes: when this is dropped, or when the process ends, however it does.
    caretaker: Child,
}

/// Longer than kubectl and helm wait for anything here.
const ENDS_WITHIN: Duration = Duration::from_secs(300);

/// Or why it could not be had: a test that asks again does not wait for it again.
static SHARED: OnceLock<Result<Api, String>> = OnceLock::new();
static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// The CustomResourceDefinition as committed.
pub(crate) const CRD: &str = include_str!("../../crds/tieredcaches.yaml");

/// The API server, up and with the resource installed.
pub(crate) fn api() -> &'static Api {
    let shared = SHARED.get_or_init(|| {
        let api = Api::try_start("")?;
        let applied = api.kubectl(&["apply", "--server-side", "-f", "-"], CRD);
        let established = ["wait", "crd/tieredcaches.tieredcache.io", "--for=condition=Established", "--timeout=120s"];
        let waited = api.kubectl(&established, "");
        if applied.ok && waited.ok { Ok(api) } else { Err(applied.text + &waited.text) }
    });
    shared.as_ref().unwrap_or_else(|error| panic!("there is no API server: {error}"))
}

/// The API server over HTTP.
pub(crate) fn rest() -> &'static Rest {
    static REST: OnceLock<Rest> = OnceLock::new();
    let api = api();
    REST.get_or_init(|| api.cluster.rest().expect("the API is up"))
}

/// A namespace of one test's own.
pub(crate) fn namespace(test: &str) -> String {
    let name = format!("{test}-{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
    let answer = kubectl(&["create", "namespace", &name], "");
    assert!(answer.ok, "{}", answer.text);
    name
}

/// Runs kubectl on the shared API with `input` and returns what it printed.
pub(crate) fn kubectl(args: &[&str], input: &str) -> Answer {
    api().kubectl(args, input)
}

/// Whether it becomes true while it is asked every 100 ms for 30 s and more.
pub(crate) fn eventually(mut look: impl FnMut() -> bool) -> bool {
    (0..300).any(|_| {
        look() || {
            thread::sleep(Duration::from_millis(100));
            false
        }
    })
}

/// What a program printed, both streams together, and whether it succeeded.
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) text: String,
}

// === impl Api ===

impl Api {
    /// Starts an API server without anything of ours in it.
    pub(crate) fn start(suffix: &str) -> Self {
        Self::try_start(suffix).expect("the API server starts")
    }

    fn try_start(suffix: &str) -> Result<Self, String> {
        // A name of this process's own: a run that begins while an earlier one is being cleared away does not meet it.
        let name = format!("it-{}{suffix}", std::process::id());
        let cluster = Cluster::named(&name).expect("the name is short");
        let caretaker = caretaker(&name, &cluster);
        let api = Self { cluster, caretaker };
        api.cluster.api_up().map_err(|error| error.to_string())?;
        Ok(api)
    }

    /// Runs kubectl as the administrator.
    pub(crate) fn kubectl(&self, args: &[&str], input: &str) -> Answer {
        answer(self.cluster.kubectl_command().expect("the API is up").args(args), input)
    }

    /// Runs helm as the administrator.
    pub(crate) fn helm(&self, args: &[&str]) -> Answer {
        // An API server alone does not need helm, so it may not have been built yet. Quick when it has been.
        tests::cluster::build_programs().expect("helm can be built");
        answer(self.cluster.helm_command().expect("the API is up").args(args), "")
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(self.caretaker.stdin.take());
        // Its failure would leave processes behind, which the tests of the cluster look for.
        let _ = self.caretaker.wait();
    }
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

fn answer(command: &mut Command, input: &str) -> Answer {
    let mut file = tempfile().expect("a scratch file can be made");
    file.write_all(input.as_bytes()).and_then(|()| file.rewind()).expect("a scratch file can be written");
    let output = output_of_fed_within(ENDS_WITHIN, command, file);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Answer { ok: output.status.success(), text }
}
