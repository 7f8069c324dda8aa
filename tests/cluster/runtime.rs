//! Starting a cluster's supervisor, finding it again, and removing all that it left.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, getppid, setsid, waitpid};

use super::cgroup::Cgroup;
use super::clock::wait_until;
use super::command::{output_of, run};
use super::error::{AtPath, ClusterError, Result};
use super::layout::Layout;
use super::network;
use super::supervisor::{Parts, supervise};

/// Control group of the cluster's own programs, as against its nodes' pods.
const OWN_GROUP: &str = "parts";

/// Kernel settings that a kubelet writes when it starts.
const KUBELET_SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Variables of whoever brings a cluster up that its programs get; no other.
///
/// A login or a service has some that lead programs astray which outlive it or see another `/run`: runc keeps its files
/// in `XDG_RUNTIME_DIR`, and the user's proxy knows no way to the pods.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "CLUSTER_BIN", "TIEREDCACHE_CACHE", "TIEREDCACHE_STATE"];

/// The running processes of one cluster.
pub(crate) struct Runtime<'a> {
    layout: &'a Layout,
    cgroup: Cgroup,
}

/// Becomes the supervisor of a cluster: leaves the caller's session, joins the cluster's control group and enters a
/// process namespace of its own. Returns only when that fails, or when `caller`, a process id, is gone.
///
/// # Errors
/// `Io` with what could not be done.
pub fn contain(layout: &Layout, caller: i32) -> Result<()> {
    // A terminal that closes must not take the cluster along.
    let _ = setsid();
    std::env::set_current_dir("/").at("entering", Path::new("/"))?;
    Cgroup::new(layout.cgroup()).enter(OWN_GROUP)?;
    // On the roll first, then the question: a caller that dies later is followed by a `down` that finds this process;
    // one that is dead by now may have been followed by a `down` that did not.
    if getppid().map(Pid::as_raw_pid) != Some(caller) {
        return Ok(());
    }
    // File descriptors that the caller passed on by accident, such as those of make's job server or of a pipe, would
    // keep the reader at their other end waiting for as long as the cluster lives.
    let script = "exec \"$@\" 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-";
    let executable = executable()?;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", "unshare", "--pid", "--fork", "--kill-child=KILL"]);
    command.arg(executable).arg("supervise").arg(layout.control_plane());
    Err(command.exec()).at("becoming", Path::new("unshare"))
}

/// Becomes the supervisor of a node, as the first process of its namespaces: gives the node its own folders where
/// programs expect them, then keeps its parts running.
///
/// # Errors
/// `Io` and `Command` with what could not be done.
pub fn boot_node(root: &Path) -> Result<()> {
    run("mount", &["--make-rshared", "/"])?;
    // A fresh /run, as after every boot: the container runtime must not find the pods of an earlier life.
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
    for (own, usual) in [("kubelet", "/var/lib/kubelet"), ("cni", "/var/lib/cni"), ("log", "/var/log")] {
        let own = root.join(own);
        for folder in [own.as_path(), Path::new(usual)] {
            fs::create_dir_all(folder).at("creating", folder)?;
        }
        run("mount", &[Path::new("--bind"), &own, Path::new(usual)])?;
    }
    // The kubelet insists on setting the machine's panic and memory behaviour, which is not the cluster's to change:
    // it gets copies to write to.
    for setting in KUBELET_SETTINGS {
        let real = Path::new("/proc/sys").join(setting);
        let copy = Path::new("/run").join(setting.replace('/', "."));
        let value = fs::read_to_string(&real).at("reading", &real)?;
        fs::write(&copy, value).at("writing", &copy)?;
        run("mount", &[Path::new("--bind"), &copy, &real])?;
    }
    supervise(root)
}

/// The program that this crate builds, for starting supervisors: `CLUSTER_BIN`, this program itself, or the one beside
/// this test.
pub(crate) fn executable() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CLUSTER_BIN").filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().at("finding", Path::new("this program"))?;
    if own.file_name().is_some_and(|name| name == "cluster") {
        return Ok(own);
    }
    // A test lies in `deps/`, one below the programs.
    let folders = own.ancestors().skip(1).take(2);
    folders.map(|folder| folder.join("cluster")).find(|path| path.is_file()).ok_or_else(|| ClusterError::Missing {
        what: "the program `cluster`".to_owned(),
        remedy: "build it with `cargo build -p tests --bin cluster`, or name it in CLUSTER_BIN".to_owned(),
    })
}

// === impl Runtime ===

impl<'a> Runtime<'a> {
    pub(crate) fn of(layout: &'a Layout) -> Self {
        Self { layout, cgroup: Cgroup::new(layout.cgroup()) }
    }

    /// Control groups of the cluster.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Whether the cluster's supervisor lives.
    pub(crate) fn is_up(&self) -> bool {
        // A number alone proves nothing, it may be another program's by now; being on the cluster's roll does.
        self.supervisor_pid().is_some_and(|pid| self.cgroup.processes().contains(&pid))
    }

    /// Starts the supervisor.
    pub(crate) fn start(&self) -> Result<()> {
        self.cgroup.create(OWN_GROUP)?;
        let parts = Parts::new(self.layout.control_plane());
        parts.forget_wanted()?;
        let log = self.layout.logs().join("supervisor.log");
        let output = fs::File::create(&log).at("creating", &log)?;
        let errors = output.try_clone().at("sharing", &log)?;
        let executable = executable()?;
        let inherited = INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let child = Command::new(&executable)
            .args(["contain", self.layout.name(), &std::process::id().to_string()])
            .env_clear()
            .envs(inherited)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .at("starting", &executable)?;
        let path = self.pid_file();
        fs::write(&path, child.id().to_string()).at("writing", &path)?;
        let limit = Duration::from_secs(10);
        if wait_until(limit, Duration::from_millis(10), || self.cgroup.processes().len() >= 2) {
            return Ok(());
        }
        let what = "starting the supervisor".to_owned();
        Err(ClusterError::Timeout { what, limit, hint: format!("see {}", log.display()) })
    }

    /// Ends every process of the cluster and removes what it had in the kernel; safe at any time.
    pub(crate) fn sweep(&self) -> Result<()> {
        self.cgroup.kill(self.supervisor_pid())?;
        if let Some(pid) = self.supervisor_pid() {
            // Reaps it where it is this process's own child; elsewhere its parent does.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        network::remove_all(self.layout)?;
        self.unmount()?;
        self.free_loop_devices()?;
        self.cgroup.remove("")
    }

    /// Unmounts whatever is mounted below the cluster's folder on the host: nothing, unless someone entered it.
    fn unmount(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = format!("{}/", self.layout.root().display());
        let mut points: Vec<&str> =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&root)).collect();
        // The innermost first.
        points.sort_by_key(|at| std::cmp::Reverse(at.len()));
        points.into_iter().try_for_each(|at| run("umount", &["--lazy", at]).map(drop))
    }

    /// Waits until the kernel has freed the volumes' loop devices, which it does some time after the last unmount.
    fn free_loop_devices(&self) -> Result<()> {
        let limit = Duration::from_secs(10);
        let gone = wait_until(limit, Duration::from_millis(20), || self.loop_devices().is_empty());
        if gone {
            return Ok(());
        }
        self.loop_devices().iter().try_for_each(|device| run("losetup", &["-d", device]).map(drop))
    }

    fn loop_devices(&self) -> Vec<String> {
        let root = format!("{}/", self.layout.root().display());
        let mut list = Command::new("losetup");
        let listed = output_of(list.args(["--list", "--noheadings", "--output", "NAME,BACK-FILE"])).unwrap_or_default();
        let ours = listed.lines().filter(|line| line.contains(&root));
        ours.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    }

    fn supervisor_pid(&self) -> Option<Pid> {
        Pid::from_raw(fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?)
    }

    fn pid_file(&self) -> PathBuf {
        self.layout.root().join("supervisor.pid")
    }
}
