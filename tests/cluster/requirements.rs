//! What this machine must have, checked before anything is changed.

use std::fmt;
use std::path::Path;
use std::process::Command;

use super::command::{exists, output_of, run};
use super::error::{AtPath, ClusterError, Result};

/// A version of Go. A release candidate has no patch and so comes before the first release of its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoVersion {
    major: u32,
    minor: u32,
    patch: Option<u32>,
}

/// Programs that nodes need and that come from Debian's packages, and from which.
const FOR_NODES: [(&str, &str); 8] = [
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("mkfs.xfs", "xfsprogs"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("losetup", "mount"),
    ("setpriv", "util-linux"),
];
/// Files that nodes need.
const FILES_FOR_NODES: [(&str, &str); 1] = [("/usr/lib/cni/ptp", "containernetworking-plugins")];
/// Programs that make images, or lie in them.
const FOR_IMAGES: [(&str, &str); 3] =
    [("buildah", "buildah"), ("redis-benchmark", "redis-tools"), ("strip", "binutils")];
/// Files that lie in images.
const FILES_FOR_IMAGES: [(&str, &str); 3] = [
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    ("/usr/share/zoneinfo/UTC", "tzdata"),
    ("/bin/busybox", "busybox"),
];
/// File systems that the kernel must know.
const FILE_SYSTEMS: [&str; 2] = ["xfs", "overlay"];

/// How many files one user may have the kernel watch in how many ways. A node takes 18 of these, a control plane 22; of the
/// kernel's default, 128, there are not enough for two clusters of three nodes, and a kubelet that gets none waits for
/// changes that it never hears of.
const INOTIFY_INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";
const INOTIFY_INSTANCES_MIN: u32 = 1024;

/// Checks for root and control groups: all that an API server alone needs.
///
/// # Errors
/// `Missing` with what to do about it.
pub(crate) fn check_machine() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(missing("root", "run this as root: it makes network namespaces, mounts and control groups"));
    }
    if !Path::new("/sys/fs/cgroup").read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(missing("control groups", "mount the cgroup file system at /sys/fs/cgroup"));
    }
    Ok(())
}

/// Checks for everything that nodes need, and installs the Debian packages that are missing, telling `say` about it.
///
/// # Errors
/// `Missing` with what to do about it, `Command` when an installation fails.
pub(crate) fn check_all(say: &dyn Fn(&str)) -> Result<()> {
    check_machine()?;
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for name in FILE_SYSTEMS {
        let is_known = known.lines().any(|line| line.trim_start_matches("nodev").trim() == name);
        if !is_known && run("modprobe", &[name]).is_err() {
            return Err(missing(&format!("the kernel's {name} file system"), "use a kernel that has it"));
        }
    }
    if !Path::new("/dev/loop-control").exists() && run("modprobe", &["loop"]).is_err() {
        return Err(missing("loop devices", "use a kernel that has them, with /dev/loop-control"));
    }
    raise(INOTIFY_INSTANCES, INOTIFY_INSTANCES_MIN, say)?;
    let packages = [lacking(&FOR_NODES, &FILES_FOR_NODES), lacking(&FOR_IMAGES, &FILES_FOR_IMAGES)].concat();
    if packages.is_empty() { Ok(()) } else { install(&packages, say) }
}

/// Raises a limit of the kernel that is below `min`. It stays so: other clusters may count on it.
fn raise(limit: &str, min: u32, say: &dyn Fn(&str)) -> Result<()> {
    let path = Path::new(limit);
    let found = std::fs::read_to_string(path).at("reading", path)?;
    if found.trim().parse().is_ok_and(|found: u32| found >= min) {
        return Ok(());
    }
    say(&format!("raising {limit} from {} to {min}", found.trim()));
    std::fs::write(path, min.to_string()).at("writing", path)
}

/// Checks for everything that images are made with and of, and installs the Debian packages that are missing.
///
/// # Errors
/// `Missing` with what to do about it, `Command` when an installation fails.
pub(crate) fn check_images(say: &dyn Fn(&str)) -> Result<()> {
    let packages = lacking(&FOR_IMAGES, &FILES_FOR_IMAGES);
    if packages.is_empty() { Ok(()) } else { install(&packages, say) }
}

/// Checks that `go`, a command in the folder of a module, is `needed` or newer. There Go fetches that version by itself,
/// if it knows how to and may.
///
/// # Errors
/// `Missing` with what was found, what is needed and how to get it.
pub(crate) fn check_go(go: &mut Command, needed: GoVersion) -> Result<()> {
    if !exists("go") {
        return Err(go_missing("there is no `go` on the PATH", needed));
    }
    suffices(output_of(go.args(["env", "GOVERSION"])), needed)
}

/// Whether what Go answered to the question for its version is enough.
fn suffices(answer: Result<String>, needed: GoVersion) -> Result<()> {
    match answer {
        Ok(version) if GoVersion::parse(&version) >= Some(needed) => Ok(()),
        Ok(version) => Err(go_missing(&format!("the `go` on the PATH is {}", version.trim()), needed)),
        Err(ClusterError::Command { output, .. }) => {
            Err(go_missing(&format!("the `go` on the PATH says {output:?}"), needed))
        }
        Err(other) => Err(other),
    }
}

fn go_missing(found: &str, needed: GoVersion) -> ClusterError {
    let remedy = format!("{found}; get it from https://go.dev/dl and put its `bin` folder first on the PATH");
    missing(&format!("Go {needed} or newer"), &remedy)
}

/// Packages of the programs and files that are not there.
fn lacking(programs: &[(&str, &'static str)], files: &[(&str, &'static str)]) -> Vec<&'static str> {
    let programs = programs.iter().filter(|(program, _)| !is_installed(program));
    let files = files.iter().filter(|(file, _)| !Path::new(file).exists());
    programs.chain(files).map(|(_, package)| *package).collect()
}

fn is_installed(program: &str) -> bool {
    // The folders of system programs are not on everyone's path.
    exists(program) || ["/usr/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(program).exists())
}

fn install(packages: &[&str], say: &dyn Fn(&str)) -> Result<()> {
    let list = packages.join(" ");
    if !exists("apt-get") {
        return Err(missing(&list, "install these packages; without apt-get it can not be done from here"));
    }
    say(&format!("installing Debian packages: {list}"));
    let install = format!(
        "export DEBIAN_FRONTEND=noninteractive; \
         apt-get install -y --no-install-recommends {list} || \
         {{ apt-get update && apt-get install -y --no-install-recommends {list}; }}"
    );
    // Not ended with this process: half an installation would be worse than one that goes on alone.
    output_of(Command::new("sh").args(["-c", &install])).map(drop).map_err(|error| match error {
        ClusterError::Command { output, .. } => {
            missing(&list, &format!("install these packages; apt-get could not: {output}"))
        }
        other => other,
    })
}

fn missing(what: &str, remedy: &str) -> ClusterError {
    ClusterError::Missing { what: what.to_owned(), remedy: remedy.to_owned() }
}

// === impl GoVersion ===

impl GoVersion {
    /// The version in the `go` line of a `go.mod`.
    pub(crate) fn of_module(go_mod: &str) -> Option<Self> {
        go_mod.lines().find_map(|line| line.strip_prefix("go ")).and_then(Self::parse)
    }

    /// Reads what follows `go` in a `go.mod`, or what `go env GOVERSION` prints: `go1.26.6`, `go1.27rc1`, or
    /// `devel go1.27-0ab3f8` and a date.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches("devel ").trim_start_matches("go");
        let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(|number| number.parse().ok());
        Some(Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next().flatten() })
    }
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> GoVersion {
        GoVersion::parse(text).unwrap()
    }

    #[test]
    fn a_limit_is_raised_if_it_is_lower_and_never_lowered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("limit");
        for (found, after) in [("128\n", "1024"), ("1024\n", "1024\n"), ("8192\n", "8192\n")] {
            std::fs::write(&path, found).unwrap();
            raise(path.to_str().unwrap(), 1024, &|_| {}).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
        }
    }

    #[test]
    fn versions_of_go_are_in_the_order_of_their_numbers() {
        let ascending =
            ["go1.9.7", "go1.19.8", "go1.26rc1", "go1.26.0", "go1.26.6", "go1.26.10", "go1.27rc1", "go2.0.0"];
        assert!(ascending.map(version).is_sorted_by(|older, newer| older < newer));
        assert_eq!(version("go1.26.6 X:nodwarf5\n"), version("1.26.6"));
        assert_eq!(version("devel go1.27-0ab3f8 Tue Feb 3 10:00:00 2026"), version("1.27"));
        assert_eq!(["", "go", "go1", "gccgo", "6 months"].map(GoVersion::parse), [None; 5]);
    }

    #[test]
    fn a_module_needs_the_version_of_its_go_line() {
        let go_mod = "module example.com/go\n\nrequire example.com/go 1.99.0\n\ngo 1.26.6\n";
        assert_eq!(GoVersion::of_module(go_mod), Some(version("1.26.6")));
        assert_eq!(GoVersion::of_module("module example.com/go\n"), None);
    }

    #[test]
    fn a_go_that_is_new_enough_suffices() {
        for found in ["go1.26.6\n", "go1.26.10\n", "go1.27rc1\n"] {
            suffices(Ok(found.to_owned()), version("1.26.6")).unwrap();
        }
    }

    #[test]
    fn a_go_that_is_too_old_is_named_with_what_is_needed_and_where_it_is() {
        for found in ["go1.26.5", "go1.19.8", "go1.9.7"] {
            let error = suffices(Ok(format!("{found}\n")), version("1.26.6")).unwrap_err().to_string();
            assert!(error.starts_with("this machine lacks Go 1.26.6 or newer: "), "{error}");
            assert!(error.contains(&format!("is {found};")) && error.contains("https://go.dev/dl"), "{error}");
        }
    }

    #[test]
    fn a_go_that_can_not_fetch_a_newer_one_is_repeated() {
        let output = "go: download go1.26.6 for linux/amd64: toolchain not available".to_owned();
        let answer = Err(ClusterError::Command { command: "go".to_owned(), status: "1".to_owned(), output });
        let error = suffices(answer, version("1.26.6")).unwrap_err().to_string();
        assert!(error.contains("lacks Go 1.26.6") && error.contains("toolchain not available"), "{error}");
    }
}
