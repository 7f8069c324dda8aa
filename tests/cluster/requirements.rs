//! What this machine must have, checked before anything is changed.

use std::path::Path;
use std::process::Command;

use super::command::{exists, output_of, run};
use super::error::{ClusterError, Result};

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
    let packages = [lacking(&FOR_NODES, &FILES_FOR_NODES), lacking(&FOR_IMAGES, &FILES_FOR_IMAGES)].concat();
    if packages.is_empty() { Ok(()) } else { install(&packages, say) }
}

/// Checks for everything that images are made with and of, and installs the Debian packages that are missing.
///
/// # Errors
/// `Missing` with what to do about it, `Command` when an installation fails.
pub(crate) fn check_images(say: &dyn Fn(&str)) -> Result<()> {
    let packages = lacking(&FOR_IMAGES, &FILES_FOR_IMAGES);
    if packages.is_empty() { Ok(()) } else { install(&packages, say) }
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
