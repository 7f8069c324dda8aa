//! What a cluster may leave on the machine, to compare before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tests::cluster::{Cluster, Layout};

/// Everything on this machine that a cluster makes, by kind, except for what belongs to other clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footprint {
    networks: BTreeSet<String>,
    links: BTreeSet<String>,
    routes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    loop_devices: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    processes: BTreeSet<String>,
}

// === impl Footprint ===

impl Footprint {
    /// Looks at the machine, for `cluster`.
    pub(super) fn take(cluster: &Cluster) -> Self {
        let others = others(cluster);
        // Other tests have volumes in scratch folders, which no cluster uses.
        let scratch = format!("{}/.tmp", std::env::temp_dir().display());
        let foreign = |line: &str| line.contains(&scratch) || others.iter().any(|other| belongs_to(other, line));
        let lines = |text: String| text.lines().map(str::to_owned).filter(|line| !foreign(line)).collect();
        Self {
            networks: lines(output("ip", &["netns", "list"])),
            links: lines(output("ip", &["-o", "-br", "link"])),
            routes: lines(output("ip", &["route"])),
            mounts: lines(fs::read_to_string("/proc/self/mounts").unwrap())
                .into_iter()
                // Made by the first network namespace ever, whoever makes it.
                .filter(|line: &String| !line.contains(" /run/netns "))
                .collect(),
            loop_devices: lines(output("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"])),
            cgroups: cgroups(&others),
            processes: processes(cluster, &others),
        }
    }

    /// What is here and was not there before.
    pub(super) fn beyond(&self, before: &Self) -> Vec<String> {
        let pairs = [
            ("network", &self.networks, &before.networks),
            ("link", &self.links, &before.links),
            ("route", &self.routes, &before.routes),
            ("mount", &self.mounts, &before.mounts),
            ("loop device", &self.loop_devices, &before.loop_devices),
            ("control group", &self.cgroups, &before.cgroups),
            ("process", &self.processes, &before.processes),
        ];
        let new = |(kind, after, before): (&str, &BTreeSet<String>, &BTreeSet<String>)| {
            after.difference(before).map(|item| format!("{kind}: {item}")).collect::<Vec<_>>()
        };
        pairs.into_iter().flat_map(new).collect()
    }
}

/// The other clusters on this machine, which may come and go meanwhile.
fn others(cluster: &Cluster) -> Vec<Layout> {
    let state = cluster.layout().root().parent().unwrap();
    let names = fs::read_dir(state).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let others = names.filter(|name| name != cluster.layout().name());
    others.filter_map(|name| Some(Layout::new(name.parse().ok()?))).collect()
}

fn belongs_to(other: &Layout, line: &str) -> bool {
    let root = format!("{}/", other.root().display());
    line.contains(&root) || other.networks().iter().any(|network| line.contains(network.as_str()))
}

fn cgroups(others: &[Layout]) -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.insert(entry.path().display().to_string());
                walk(&entry.path(), found);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(Path::new("/sys/fs/cgroup"), &mut found);
    let foreign =
        |path: &String| others.iter().any(|other| format!("{path}/").contains(&format!("/{}/", other.cgroup())));
    // The folder above all clusters' groups is there as long as any of them is.
    found.into_iter().filter(|path| path.contains("tieredcache/")).filter(|path| !foreign(path)).collect()
}

/// Processes that have to do with a cluster: in a namespace of their own, or with its paths in their command line.
fn processes(cluster: &Cluster, others: &[Layout]) -> BTreeSet<String> {
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap();
    let root = format!("{}/", cluster.layout().root().display());
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let folder = entry.path();
        let Ok(own) = fs::read_link(folder.join("ns/pid")) else { continue };
        if !is_running(&folder) {
            continue;
        }
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let group = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        // Ended while it was looked at.
        if group.is_empty() {
            continue;
        }
        let foreign = others.iter().any(|other| {
            format!("{group}\n").lines().any(|of| format!("{of}/").contains(&format!("/{}/", other.cgroup())))
        });
        if !foreign && (own != namespace || line.contains(&root)) {
            found.insert(format!("{} {line}", folder.display()));
        }
    }
    // One that is ending has left its control group; it is no longer there when looked at again.
    if !found.is_empty() {
        thread::sleep(Duration::from_millis(500));
    }
    found.retain(|of| is_running(Path::new(of.split(' ').next().unwrap_or_default())));
    found
}

/// Whether the process of this folder of `/proc` has not ended. A zombie has; it waits for its parent, which may be the
/// machine's first process, to notice.
fn is_running(folder: &Path) -> bool {
    let state = fs::read_to_string(folder.join("status")).unwrap_or_default();
    !(state.is_empty() || state.contains("State:\tZ") || state.contains("State:\tX"))
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
