//! Control groups: the kubelets' parents, and the roll of every process that belongs to a cluster.
//!
//! Each process of a cluster is in a group below the cluster's own, whoever started it and whoever its parent is now.
//! That is how `down` finds what it must end, by process id, after any crash.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::clock::wait_until;
use super::error::{AtPath, ClusterError, Result};

const MOUNTED_AT: &str = "/sys/fs/cgroup";
/// Hierarchies of version 1 that can keep the roll, best first.
const ROLL_HIERARCHIES: [&str; 4] = ["pids", "freezer", "memory", "cpu"];

/// Controllers of version 2 that a kubelet limits pods with.
const FOR_PODS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// The control groups of one cluster.
pub(crate) struct Cgroup {
    /// Path below each hierarchy.
    path: String,
}

// === impl Cgroup ===

impl Cgroup {
    pub(crate) fn new(path: String) -> Self {
        Self { path }
    }

    /// Makes the group in every hierarchy, ready for processes and for children.
    pub(crate) fn create(&self, child: &str) -> Result<()> {
        let wanted = format!("{}/{child}", self.path);
        for hierarchy in hierarchies() {
            let mut group = hierarchy.clone();
            for step in wanted.split('/') {
                let parent = group.clone();
                group.push(step);
                if version_2() {
                    delegate(&parent);
                }
                fs::create_dir_all(&group).at("creating", &group)?;
                inherit_cpuset(&parent, &group)?;
            }
        }
        Ok(())
    }

    /// Makes the group as [`Self::create`] does, and makes sure that pods in it can be limited.
    pub(crate) fn create_for_pods(&self, child: &str) -> Result<()> {
        self.create(child)?;
        if !version_2() {
            return Ok(());
        }
        let path = self.roll()?.join(child).join("cgroup.controllers");
        let there = fs::read_to_string(&path).at("reading", &path)?;
        let lacking = lacking(&there);
        if lacking.is_empty() {
            return Ok(());
        }
        Err(ClusterError::Missing {
            what: format!("the controllers {} below {MOUNTED_AT}", lacking.join(", ")),
            remedy: format!(
                "the kernel has to have them and {MOUNTED_AT}/cgroup.subtree_control to take them; in a container it \
                 does not while processes are in the topmost group: share the host's control groups with it \
                 (--cgroupns=host)"
            ),
        })
    }

    /// Moves the calling process into a child group that was created.
    pub(crate) fn enter(&self, child: &str) -> Result<()> {
        let procs = self.roll()?.join(child).join("cgroup.procs");
        // "0" is the writer itself.
        fs::write(&procs, "0").at("writing", &procs)
    }

    /// Processes in the cluster's groups, as seen from here.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let Ok(roll) = self.roll() else { return Vec::new() };
        processes_below(&roll)
    }

    /// Processes in one child group, as seen from here.
    pub(crate) fn processes_of(&self, child: &str) -> Vec<Pid> {
        let Ok(roll) = self.roll() else { return Vec::new() };
        processes_below(&roll.join(child))
    }

    /// Kills every process of the cluster and waits until none is left; `parent` only if it does not end by itself
    /// once its children are gone, so that it can bury them.
    pub(crate) fn kill(&self, parent: Option<Pid>) -> Result<()> {
        let limit = Duration::from_secs(20);
        let pause = Duration::from_millis(20);
        let kill_all_but = |spared: Option<Pid>| {
            let left = self.processes();
            for pid in left.iter().filter(|pid| Some(**pid) != spared) {
                // It may have ended by itself meanwhile.
                let _ = kill_process(*pid, Signal::KILL);
            }
            left.is_empty()
        };
        let buried = wait_until(Duration::from_secs(2), pause, || kill_all_but(parent));
        if buried || wait_until(limit, pause, || kill_all_but(None)) {
            return Ok(());
        }
        let what = format!("ending processes {:?}", self.processes());
        Err(ClusterError::Timeout { what, limit, hint: "they may hang in the kernel".to_owned() })
    }

    /// Removes a child group (all of them with an empty name) and everything below it, in every hierarchy.
    pub(crate) fn remove(&self, child: &str) -> Result<()> {
        let limit = Duration::from_secs(10);
        for hierarchy in hierarchies() {
            let group = hierarchy.join(&self.path).join(child);
            // A group whose last process was just killed is busy until the kernel has buried it.
            if !wait_until(limit, Duration::from_millis(20), || remove_tree(&group)) {
                let what = format!("removing {}", group.display());
                return Err(ClusterError::Timeout { what, limit, hint: "a process may still be in it".to_owned() });
            }
            // The folder above is shared with other clusters: gone only with the last one.
            let shared = group.parent().filter(|parent| parent.ends_with("tieredcache"));
            let _ = shared.map(fs::remove_dir);
        }
        Ok(())
    }

    fn roll(&self) -> Result<PathBuf> {
        let root = Path::new(MOUNTED_AT);
        if version_2() {
            return Ok(root.join(&self.path));
        }
        let hierarchy = ROLL_HIERARCHIES.iter().map(|name| root.join(name)).find(|path| path.is_dir());
        let hierarchy = hierarchy.ok_or_else(|| ClusterError::Missing {
            what: "control groups".to_owned(),
            remedy: format!("mount the cgroup file system at {MOUNTED_AT}"),
        })?;
        Ok(hierarchy.join(&self.path))
    }
}

/// Whether this machine has the unified hierarchy only.
pub(crate) fn version_2() -> bool {
    Path::new(MOUNTED_AT).join("cgroup.controllers").exists()
}

fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(MOUNTED_AT);
    if version_2() {
        return vec![root];
    }
    let entries = fs::read_dir(&root).into_iter().flatten().flatten();
    // `cpu,cpuacct` is one hierarchy with links by its other names.
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}

/// Version 2: lets the children of `group` use every controller that the group has.
fn delegate(group: &Path) {
    let read = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();
    // Everywhere but at the machine's own top, only some controllers can be delegated past processes, and then no
    // group below can take any.
    if group.join("cgroup.type").exists() && !read("cgroup.procs").is_empty() {
        return;
    }
    for controller in read("cgroup.controllers").split_whitespace() {
        // One by one: a controller that can not be delegated must not keep the others away.
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Which of the controllers that pods need are not `there`.
fn lacking(there: &str) -> Vec<&'static str> {
    let has = |wanted: &str| there.split_whitespace().any(|controller| controller == wanted);
    FOR_PODS.into_iter().filter(|wanted| !has(wanted)).collect()
}

/// Version 1: a new cpuset group has no processors and no memory until somebody says which.
fn inherit_cpuset(parent: &Path, group: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = group.join(file);
        let is_empty = || fs::read_to_string(&path).is_ok_and(|text| text.trim().is_empty());
        if !version_2() && path.exists() && is_empty() {
            let inherited = fs::read_to_string(parent.join(file)).at("reading", parent)?;
            fs::write(&path, inherited.trim()).at("writing", &path)?;
        }
    }
    Ok(())
}

fn processes_below(group: &Path) -> Vec<Pid> {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<Pid> = listed.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect();
    for child in children(group) {
        pids.extend(processes_below(&child));
    }
    pids
}

fn remove_tree(group: &Path) -> bool {
    let children_gone = children(group).iter().all(|child| remove_tree(child));
    children_gone && (fs::remove_dir(group).is_ok() || !group.exists())
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::lacking;

    #[test]
    fn controllers_that_pods_need_are_told_by_whole_names() {
        assert_eq!(lacking("cpuset cpu io memory hugetlb pids rdma misc\n"), [""; 0]);
        assert_eq!(lacking("cpuset io pids"), ["cpu", "memory"]);
        assert_eq!(lacking("\n"), ["cpu", "cpuset", "memory", "pids"]);
    }
}
