//! The programs built from Go modules: Kubernetes itself and what a node needs beside it.
//!
//! Each module in `go/` pins its versions in `go.mod` and `go.sum`. What is built from it is kept outside the clone
//! under a name that is a hash of the module's files and flags, so that a changed version is built anew and an old
//! clone still finds its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use xxhash_rust::xxh3::xxh3_64;

use super::clock::now;
use super::command::mortal;
use super::error::{AtPath, ClusterError, Result};
use super::layout::cache;
use super::requirements::{GoVersion, check_go};

/// How often a long build says that it goes on.
const PROGRESS_EVERY: Duration = Duration::from_secs(20);

/// One Go module and what is built from it.
#[derive(Debug)]
pub(crate) struct Module {
    /// Folder in `go/`, and name in messages.
    name: &'static str,
    /// Packages to build.
    packages: &'static [&'static str],
    /// Names that the linker sets.
    set: &'static [(&'static str, &'static str)],
    /// Programs that come out.
    programs: &'static [&'static str],
    /// Names by which the first program is also started.
    links: &'static [&'static str],
    /// Time of a cold build on two cores, for the message.
    takes: &'static str,
}

/// Kubernetes and etcd, in one program.
pub(crate) const KUBERNETES: Module = Module {
    name: "kubernetes",
    packages: &["."],
    set: &[
        ("k8s.io/component-base/version.gitVersion", "v1.37.2"),
        ("k8s.io/component-base/version.gitMajor", "1"),
        ("k8s.io/component-base/version.gitMinor", "37"),
        ("k8s.io/component-base/version.gitTreeState", "clean"),
    ],
    programs: &["kubernetes"],
    links: &["etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"],
    takes: "6 minutes",
};

/// The container runtime.
pub(crate) const CONTAINERD: Module = Module {
    name: "containerd",
    packages: &[
        "github.com/containerd/containerd/v2/cmd/containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/ctr",
    ],
    set: &[("github.com/containerd/containerd/v2/version.Version", "v2.4.2")],
    programs: &["containerd", "containerd-shim-runc-v2", "ctr"],
    links: &[],
    takes: "1 minute",
};

/// Cluster DNS.
pub(crate) const COREDNS: Module = Module {
    name: "coredns",
    packages: &["github.com/coredns/coredns"],
    set: &[],
    programs: &["coredns"],
    links: &[],
    takes: "2 minutes",
};

/// The package manager for charts.
pub(crate) const HELM: Module = Module {
    name: "helm",
    packages: &["helm.sh/helm/v3/cmd/helm"],
    set: &[
        ("helm.sh/helm/v3/internal/version.version", "v3.22.0"),
        // What `helm lint` and `helm template` take for the cluster's version.
        ("helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor", "1"),
        ("helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor", "37"),
        ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor", "1"),
        ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor", "37"),
    ],
    programs: &["helm"],
    links: &[],
    takes: "1 minute",
};

/// Turns claims into calls of the storage driver.
pub(crate) const CSI_PROVISIONER: Module = Module {
    name: "csi-provisioner",
    packages: &["github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"],
    set: &[],
    programs: &["csi-provisioner"],
    links: &[],
    takes: "2 minutes",
};

/// Turns grown claims into calls of the storage driver.
pub(crate) const CSI_RESIZER: Module = Module {
    name: "csi-resizer",
    packages: &["github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"],
    set: &[],
    programs: &["csi-resizer"],
    links: &[],
    takes: "2 minutes",
};

/// The storage driver: one XFS file system in a file per volume.
pub(crate) const CSI_DRIVER: Module = Module {
    name: "csi-driver",
    packages: &["."],
    set: &[],
    programs: &["csi-driver"],
    links: &[],
    takes: "half a minute",
};

/// The program that holds a pod's namespaces.
pub(crate) const PAUSE: Module =
    Module { name: "pause", packages: &["."], set: &[], programs: &["pause"], links: &[], takes: "a few seconds" };

/// Everything that a cluster with nodes needs.
pub(crate) const ALL: [&Module; 8] =
    [&KUBERNETES, &CONTAINERD, &PAUSE, &CSI_DRIVER, &CSI_PROVISIONER, &CSI_RESIZER, &COREDNS, &HELM];

/// Builds what is missing of `modules`, telling `say` about it.
///
/// # Errors
/// `Missing` without a Go that is new enough, `Command` when a build fails, `Io`.
pub(crate) fn build(modules: &[&Module], say: &dyn Fn(&str)) -> Result<()> {
    let is_complete = || modules.iter().all(|module| module.is_built());
    if is_complete() {
        return Ok(());
    }
    let folder = cache().join("programs");
    fs::create_dir_all(&folder).at("creating", &folder)?;
    let path = folder.join("lock");
    let lock = fs::File::create(&path).at("creating", &path)?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        say("waiting for another build of the same programs");
        flock(&lock, FlockOperation::LockExclusive).at("locking", &path)?;
    }
    // Whoever held the lock before may have built all of it.
    if is_complete() {
        return Ok(());
    }
    let start = now();
    let scratch = Scratch::open(&folder)?;
    // Asked of the most demanding module and before the first build: Go fetches itself only in the version that the
    // module it is in needs, and a build takes minutes.
    if let Some((needed, module)) = most_demanding(modules) {
        check_go(scratch.go().current_dir(module.source()), needed)?;
    }
    for (index, module) in modules.iter().enumerate().filter(|(_, module)| !module.is_built()) {
        say(&format!("building {} ({} of {}), about {}", module.name, index + 1, modules.len(), module.takes));
        module.build(&scratch, say)?;
    }
    say(&format!("built in {} s", start.elapsed().as_secs()));
    Ok(())
}

/// Where each program is, or will be, and whether it is there: one line each.
pub(crate) fn list() -> Vec<String> {
    let state = |module: &Module| if module.is_built() { "built  " } else { "missing" };
    ALL.iter().map(|module| format!("{} {}", state(module), module.built().display())).collect()
}

/// The module that needs the newest Go, and which that is.
fn most_demanding<'a>(modules: &[&'a Module]) -> Option<(GoVersion, &'a Module)> {
    let needs = modules.iter().filter_map(|module| Some((module.go_needed()?, *module)));
    needs.max_by_key(|(needed, _)| *needed)
}

// === impl Module ===

impl Module {
    /// Path of one of the module's programs or links.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.built().join(name)
    }

    /// Folder of what is built.
    pub(crate) fn built(&self) -> PathBuf {
        cache().join("programs").join(format!("{}-{:016x}", self.name, self.fingerprint()))
    }

    fn is_built(&self) -> bool {
        self.is_whole(&self.built())
    }

    /// Whether the folder has every program under all its names. One alone may have been lost since it was built.
    fn is_whole(&self, folder: &Path) -> bool {
        self.programs.iter().chain(self.links).all(|name| folder.join(name).is_file())
    }

    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/go").join(self.name)
    }

    fn go_needed(&self) -> Option<GoVersion> {
        GoVersion::of_module(&fs::read_to_string(self.source().join("go.mod")).ok()?)
    }

    /// Changes with every source file and flag.
    fn fingerprint(&self) -> u64 {
        let mut files: Vec<PathBuf> =
            fs::read_dir(self.source()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        let mut content = format!("{:?}{:?}{:?}", self.packages, self.linker_flags(), self.links).into_bytes();
        for file in files {
            content.extend(file.file_name().map(|name| name.as_encoded_bytes().to_vec()).unwrap_or_default());
            content.extend(fs::read(&file).unwrap_or_default());
        }
        xxh3_64(&content)
    }

    fn linker_flags(&self) -> String {
        let set = self.set.iter().map(|(name, value)| format!(" -X {name}={value}"));
        format!("-s -w{}", set.collect::<String>())
    }

    fn build(&self, scratch: &Scratch, say: &dyn Fn(&str)) -> Result<()> {
        let out = scratch.folder.join(format!("out-{}", self.name));
        fs::create_dir_all(&out).at("creating", &out)?;
        // A package "." would be named after its folder's module; a trailing slash keeps the programs' own names.
        let mut go = scratch.go();
        go.current_dir(self.source())
            .args(["build", "-trimpath", "-tags", "no_btrfs no_devmapper no_zfs", "-ldflags"])
            .arg(self.linker_flags())
            .arg("-o")
            .arg(format!("{}/", out.display()))
            .args(self.packages);
        run_with_progress(&mut go, &scratch.folder.join("log"), &|elapsed| {
            say(&format!("building {}: {} s so far, about {}", self.name, elapsed.as_secs(), self.takes));
        })?;
        self.move_into_place(&out, &self.built())
    }

    /// Moves what was built to where it is looked for, under all its names.
    fn move_into_place(&self, out: &Path, built: &Path) -> Result<()> {
        for link in self.links {
            let path = out.join(link);
            std::os::unix::fs::symlink(self.programs[0], &path).at("linking", &path)?;
        }
        for program in self.programs {
            let path = out.join(program);
            fs::metadata(&path).at("looking for the built", &path)?;
        }
        // What is there lacks something, or this would not have been built; it would stand in the way.
        if built.exists() {
            fs::remove_dir_all(built).at("removing", built)?;
        }
        fs::rename(out, built).at("moving into place", built)
    }
}

/// Go's caches for one build: they grow to 12 GB and go away with it.
struct Scratch {
    folder: PathBuf,
}

// === impl Scratch ===

impl Scratch {
    /// Opens an empty scratch folder in `parent`; whatever an interrupted build left there goes first.
    fn open(parent: &Path) -> Result<Self> {
        let folder = parent.join("scratch");
        if folder.exists() {
            fs::remove_dir_all(&folder).at("removing", &folder)?;
        }
        for name in ["cache", "modules", "tmp"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).at("creating", &path)?;
        }
        Ok(Self { folder })
    }

    fn go(&self) -> Command {
        let mut go = mortal("go");
        go.env("GOCACHE", self.folder.join("cache"))
            .env("GOMODCACHE", self.folder.join("modules"))
            .env("GOTMPDIR", self.folder.join("tmp"))
            // Modules are writable, so that they can be deleted again.
            .env("GOFLAGS", "-modcacherw -buildvcs=false -mod=readonly")
            .env("GOWORK", "off")
            .env("CGO_ENABLED", "0");
        go
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can not be removed now is removed by the next build.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Runs a long command with its output in `log`, reporting the time it has taken so far.
fn run_with_progress(command: &mut Command, log: &Path, report: &dyn Fn(Duration)) -> Result<()> {
    let file = fs::File::create(log).at("creating", log)?;
    let errors = file.try_clone().at("sharing", log)?;
    let mut child: Child =
        command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().at("starting", Path::new("go"))?;
    let (start, mut reported) = (now(), Duration::ZERO);
    let status = loop {
        if let Some(status) = child.try_wait().at("waiting for", Path::new("go"))? {
            break status;
        }
        if start.elapsed() >= reported + PROGRESS_EVERY {
            reported = start.elapsed();
            report(reported);
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    if status.success() {
        return Ok(());
    }
    let output = fs::read_to_string(log).unwrap_or_default();
    let from = output.ceil_char_boundary(output.len().saturating_sub(4_000));
    let command = format!("go build in {}", command.get_current_dir().unwrap_or(Path::new(".")).display());
    Err(ClusterError::Command { command, status: status.to_string(), output: output[from..].to_owned() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{ALL, most_demanding};

    #[test]
    fn the_newest_go_that_any_module_needs_is_asked_for() {
        assert!(ALL.iter().all(|module| module.go_needed().is_some()));
        let newest = ALL.iter().filter_map(|module| module.go_needed()).max();
        let (needed, module) = most_demanding(&ALL).unwrap();
        assert_eq!((Some(needed), Some(needed)), (newest, module.go_needed()));
    }

    #[test]
    fn a_folder_that_lost_a_program_or_a_link_is_not_built_and_gives_way_to_the_next_build() {
        let folder = tempfile::tempdir().unwrap();
        for module in ALL {
            let (out, built) = (folder.path().join("out"), folder.path().join(module.name));
            assert!(!module.is_whole(&built), "{} was never built", module.name);
            for lost in module.programs.iter().chain(module.links) {
                fs::create_dir(&out).unwrap();
                module.programs.iter().for_each(|program| fs::write(out.join(program), "").unwrap());
                module.move_into_place(&out, &built).unwrap();
                assert!(module.is_whole(&built), "{} is built", module.name);
                fs::remove_file(built.join(lost)).unwrap();
                assert!(!module.is_whole(&built), "{} lacks {lost}", module.name);
            }
        }
    }
}
