//! Container images, built from what is on this machine: there is no registry to pull from.

use std::fs;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::clock::wall;
use super::command::{feed, run};
use super::error::{AtPath, ClusterError, Result};
use super::layout::cache;
use super::node::PAUSE_IMAGE;
use super::programs::PAUSE;
use super::requirements;

/// Image of the operator, without its tag.
pub const OPERATOR_IMAGE: &str = "localhost/tieredcache/operator";
/// Image of the cache node, without its tag.
pub const CACHE_NODE_IMAGE: &str = "localhost/tieredcache/cache-node";
/// Image of Redis.
pub const REDIS_IMAGE: &str = "localhost/redis:7";
/// Image of clients in pods: `sh` and the usual commands, `redis-cli`, `redis-benchmark`.
pub const TOOLS_IMAGE: &str = "localhost/tools:1";

/// Which images are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The operator and the cache node from their release builds, Redis and the tools.
    All,
    /// Redis and the tools, which need no build of this workspace.
    Companions,
}

/// An image in a file, in the format of the Open Container Initiative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Name of the image, with its tag.
    pub image: String,
    /// Where the file is.
    pub path: PathBuf,
}

/// How many versions of one image's archive are kept.
const ARCHIVES_KEPT: usize = 3;

/// Debian packages whose files are the base image: the counterpart of a distroless C++ image.
const BASE_PACKAGES: [&str; 6] = ["base-files", "libc6", "libgcc-s1", "libstdc++6", "ca-certificates", "tzdata"];
/// Files of these packages that no program in an image needs.
const BASE_WITHOUT: [&str; 4] =
    ["/usr/share/doc", "/usr/share/man", "/usr/share/lintian", "/usr/lib/x86_64-linux-gnu/gconv"];
/// Base images have the certificates in one file that no package lists.
const BASE_EXTRA: [&str; 1] = ["/etc/ssl/certs/ca-certificates.crt"];
const BASE_USERS: &str =
    "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
const BASE_GROUPS: &str = "root:x:0:\nnonroot:x:65532:\n";

/// An image to build.
struct Recipe<'a> {
    /// Name with tag.
    image: &'a str,
    /// Its Containerfile.
    containerfile: String,
    /// Host files that make its content, each with its path in the build's folder.
    files: Vec<(PathBuf, &'a str)>,
    /// Other content that changes it.
    salt: String,
    /// Whether it stands on the base image.
    on_base: bool,
}

/// Builds the images whose content has changed, and says where each is. Needs no cluster.
///
/// # Errors
/// `Missing` without a release build or a package, `Command`, `Io`.
pub fn build_images(wanted: Wanted) -> Result<Vec<Archive>> {
    requirements::check_images(&|line| eprintln!("{line}"))?;
    let mut archives = companions()?;
    if wanted == Wanted::All {
        archives.extend(products()?);
    }
    Ok(archives)
}

/// The archive of the image that every pod needs.
pub(crate) fn pause() -> Result<PathBuf> {
    let recipe = Recipe {
        image: PAUSE_IMAGE,
        containerfile: "FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT [\"/pause\"]\n".to_owned(),
        files: vec![(PAUSE.program("pause"), "pause")],
        salt: String::new(),
        on_base: false,
    };
    Ok(recipe.archive(&|folder| copy(&PAUSE.program("pause"), &folder.join("pause")))?.path)
}

/// The archives of Redis and of the tools.
pub(crate) fn companions() -> Result<Vec<Archive>> {
    let redis = Recipe {
        image: REDIS_IMAGE,
        containerfile: "ARG BASE\nFROM ${BASE}\nCOPY root /\nUSER 65532:65532\nWORKDIR /data\n\
                        CMD [\"redis-server\", \"--protected-mode\", \"no\", \"--dir\", \"/data\"]\n"
            .to_owned(),
        // One program, which acts by the name it is started by.
        // And a shell, by which Sentinels are started.
        files: vec![
            ("/usr/bin/redis-check-rdb".into(), "usr/bin/redis-server"),
            cli(),
            ("/bin/busybox".into(), "usr/bin/sh"),
        ],
        salt: "2".to_owned(),
        on_base: true,
    };
    let tools = Recipe {
        image: TOOLS_IMAGE,
        containerfile: "ARG BASE\nFROM ${BASE}\nCOPY root /\nUSER 65532:65532\nWORKDIR /tmp\n\
                        CMD [\"/bin/sh\", \"-c\", \"trap exit TERM; while :; do sleep 1; done\"]\n"
            .to_owned(),
        files: vec![
            ("/bin/busybox".into(), "usr/bin/busybox"),
            ("/usr/bin/redis-benchmark".into(), "usr/bin/redis-benchmark"),
            cli(),
        ],
        salt: "2".to_owned(),
        on_base: true,
    };
    [redis, tools].iter().map(|recipe| recipe.archive(&|folder| fill_root(folder, &recipe.files))).collect()
}

/// The archives of this workspace's own programs, from their release build.
fn products() -> Result<Vec<Archive>> {
    [("operator", OPERATOR_IMAGE), ("cache-node", CACHE_NODE_IMAGE)]
        .iter()
        .map(|(name, image)| product(name, image))
        .collect()
}

fn product(name: &str, image: &str) -> Result<Archive> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let program = workspace.join(target).join("release").join(name);
    if !program.is_file() {
        let remedy = format!("build it with `cargo build --release -p {name}`");
        return Err(ClusterError::Missing { what: program.display().to_string(), remedy });
    }
    let containerfile = workspace.join(name).join("Containerfile");
    let recipe = Recipe {
        image: &format!("{image}:{}", env!("CARGO_PKG_VERSION")),
        containerfile: fs::read_to_string(&containerfile).at("reading", &containerfile)?,
        files: vec![(program.clone(), name)],
        salt: String::new(),
        on_base: true,
    };
    recipe.archive(&|folder| {
        // Symbols stay, for backtraces; the rest of the debug information is most of the file.
        let stripped = folder.join(name);
        run("strip", &["--strip-debug".as_ref(), "-o".as_ref(), stripped.as_os_str(), program.as_os_str()]).map(drop)
    })
}

fn cli() -> (PathBuf, &'static str) {
    ("/usr/bin/redis-cli".into(), "usr/bin/redis-cli")
}

// === impl Recipe ===

impl Recipe<'_> {
    /// The image's archive; builds it when its content changed.
    fn archive(&self, fill: &dyn Fn(&Path) -> Result<()>) -> Result<Archive> {
        let base = if self.on_base { Some(base()?) } else { None };
        let mut content = format!("{}{}{}{base:?}", self.image, self.containerfile, self.salt).into_bytes();
        for (file, _) in &self.files {
            content.extend(fs::read(file).at("reading", file)?);
        }
        let name = self.image.rsplit('/').next().unwrap_or(self.image).replace(':', "-");
        let path = kept(&name, &content, |folder, archive| {
            let context = folder.join("context");
            fs::create_dir_all(&context).at("creating", &context)?;
            fill(&context)?;
            let containerfile = folder.join("Containerfile");
            fs::write(&containerfile, &self.containerfile).at("writing", &containerfile)?;
            let mut args: Vec<String> =
                base.iter().map(|base| format!("BASE=oci-archive:{}", base.display())).collect();
            args.extend(self.files.first().map(|(_, at)| format!("BINARY={at}")));
            buildah(folder, self.image, &args, archive)
        })?;
        Ok(Archive { image: self.image.to_owned(), path })
    }
}

/// The archive of the base image.
fn base() -> Result<PathBuf> {
    let mut list = String::new();
    for package in BASE_PACKAGES {
        let files = run("dpkg", &["-L", package])?;
        let wanted = files.lines().filter(|line| line.starts_with('/') && *line != "/.");
        let wanted = wanted.filter(|line| !BASE_WITHOUT.iter().any(|without| line.starts_with(without)));
        wanted.for_each(|line| list += &format!("{line}\n"));
    }
    BASE_EXTRA.iter().for_each(|line| list += &format!("{line}\n"));
    let mut content = list.clone().into_bytes();
    content.extend(run("dpkg-query", &[&["-W"], &BASE_PACKAGES[..]].concat())?.into_bytes());
    content.extend([BASE_USERS, BASE_GROUPS, "2"].concat().into_bytes());
    kept("base", &content, |folder, archive| {
        let root = folder.join("context");
        // Where Debian's links from /bin, /lib and so on lead; they are unpacked before what lies behind them.
        for target in ["etc", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"] {
            fs::create_dir_all(root.join(target)).at("creating", &root)?;
        }
        let tarball = folder.join("base.tar");
        // Names from a list on standard input; folders themselves, not all that happens to lie in them.
        let pack = ["-c", "--no-recursion", "--ignore-failed-read", "-T", "-", "-f"].map(str::to_owned);
        feed("tar", &[pack.as_slice(), &[tarball.display().to_string()]].concat(), &list)?;
        let unpack = ["-x", "-C", &root.display().to_string(), "-f"].map(str::to_owned);
        run("tar", &[unpack.as_slice(), &[tarball.display().to_string()]].concat())?;
        for (name, text) in [("etc/passwd", BASE_USERS), ("etc/group", BASE_GROUPS)] {
            let path = root.join(name);
            fs::write(&path, text).at("writing", &path)?;
        }
        let containerfile = folder.join("Containerfile");
        let text = "FROM scratch\nCOPY . /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
                    USER 65532:65532\nWORKDIR /\n";
        fs::write(&containerfile, text).at("writing", &containerfile)?;
        fs::remove_file(&tarball).at("removing", &tarball)?;
        buildah(folder, "localhost/base:1", &[], archive)
    })
}

/// The kept archive for this content, made by `make` in a scratch folder when there is none.
fn kept(name: &str, content: &[u8], make: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
    kept_in(&cache().join("images"), name, content, make)
}

/// The same, with the folder of all archives.
fn kept_in(
    folder: &Path,
    name: &str,
    content: &[u8],
    make: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let archive = folder.join(format!("{name}-{:016x}.tar", xxh3_64(content)));
    if let Ok(file) = fs::File::open(&archive) {
        // What is used counts as new, or another clone could prune it before it is loaded. Without the right to do this
        // it can be used all the same.
        let _ = file.set_modified(wall());
        return Ok(archive);
    }
    fs::create_dir_all(folder).at("creating", folder)?;
    // One for each call: threads that make the same archive would take each other's away. It ends in the process, by
    // which `prune` tells what was left behind.
    let scratch = tempfile::Builder::new()
        .prefix(&format!("scratch-{name}-"))
        .suffix(&format!("-{}", std::process::id()))
        .tempdir_in(folder)
        .at("creating a scratch folder in", folder)?;
    let draft = scratch.path().join("archive.tar");
    make(scratch.path(), &draft)?;
    fs::rename(&draft, &archive).at("moving into place", &archive)?;
    // Before the others: it is about as large as the archive.
    drop(scratch);
    prune(folder, name);
    Ok(archive)
}

/// Removes all but the newest archives of one image, and the scratch folders of processes that are gone.
fn prune(folder: &Path, name: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let process = file.strip_prefix("scratch-").and_then(|rest| rest.rsplit('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Somebody else may prune as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{name}-");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut archives: Vec<_> = entries
        .filter(|entry| {
            let file = entry.file_name().to_string_lossy().into_owned();
            // Sixteen digits and ".tar" after the name: not the archives of a longer name.
            file.starts_with(&prefix) && file.len() == prefix.len() + 20
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    archives.sort();
    let excess = archives.len().saturating_sub(ARCHIVES_KEPT);
    for (_, path) in &archives[..excess] {
        // Somebody else may prune as well.
        let _ = fs::remove_file(path);
    }
}

/// Puts programs and the libraries they load below `root/` of the build's folder.
fn fill_root(folder: &Path, programs: &[(PathBuf, &str)]) -> Result<()> {
    let root = folder.join("root");
    for (program, at) in programs {
        copy(program, &root.join(at))?;
        // A static program has none, which ldd calls a failure.
        let libraries = run("ldd", &[program]).unwrap_or_default();
        for library in libraries.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))) {
            // The C library is the base image's.
            let is_base =
                ["libc.so", "libm.so", "ld-linux", "libgcc_s", "libstdc++"].iter().any(|name| library.contains(name));
            if !is_base {
                let at = library.trim_start_matches('/');
                // Debian's /lib is a link; a folder of that name would take its place.
                let at = if at.starts_with("lib") { format!("usr/{at}") } else { at.to_owned() };
                copy(Path::new(library), &root.join(at))?;
            }
        }
        if at.ends_with("busybox") {
            for command in run(program, &["--list"])?.lines() {
                let path = root.join("usr/bin").join(command);
                if command != "busybox" {
                    std::os::unix::fs::symlink("busybox", &path).at("linking", &path)?;
                }
            }
        }
    }
    for folder in ["data", "tmp"] {
        let path = root.join(folder);
        fs::create_dir_all(&path).at("creating", &path)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).at("opening up", &path)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).at("creating", parent)?;
    fs::copy(from, to).at("copying", from).map(drop)
}

/// Builds `folder/context` by `folder/Containerfile` and writes the image as an archive.
fn buildah(folder: &Path, image: &str, args: &[String], archive: &Path) -> Result<()> {
    let path = |name: &str| folder.join(name).display().to_string();
    let storage = [
        "--storage-driver".to_owned(),
        "vfs".to_owned(),
        "--root".to_owned(),
        path("storage"),
        "--runroot".to_owned(),
        path("run"),
    ];
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut build = storage.to_vec();
    build.extend(words(&["build", "--isolation", "chroot", "--quiet", "--format", "oci", "--tag", image]));
    build.extend(args.iter().flat_map(|arg| words(&["--build-arg", arg])));
    build.extend(words(&["--file", &path("Containerfile"), &path("context")]));
    run("buildah", &build)?;
    let mut push = storage.to_vec();
    // Uncompressed: it is read back on this machine only, by every node.
    push.extend(words(&["push", "--quiet", "--disable-compression", image]));
    push.push(format!("oci-archive:{}:{image}", archive.display()));
    run("buildah", &push).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, SystemTime};

    use super::{ARCHIVES_KEPT, kept_in};

    /// The archive of this content, of an image that is called `image-1`.
    fn archive(folder: &Path, content: &str) -> PathBuf {
        let make = |_: &Path, draft: &Path| {
            fs::write(draft, content).unwrap();
            Ok(())
        };
        kept_in(folder, "image-1", content.as_bytes(), make).unwrap()
    }

    #[test]
    fn two_that_make_the_same_archive_at_once_have_a_folder_each() {
        let folder = tempfile::tempdir().unwrap();
        let made = kept_in(folder.path(), "image-1", b"content", |scratch, draft| {
            archive(folder.path(), "content");
            assert!(scratch.is_dir(), "the other one took only its own away");
            fs::write(draft, "content").unwrap();
            Ok(())
        });
        let left: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [made.unwrap()]);
    }

    #[test]
    fn folders_of_processes_that_are_gone_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        // No process has this number.
        let left_behind = folder.path().join("scratch-image-1-abcdef-0");
        fs::create_dir_all(left_behind.join("context")).unwrap();
        archive(folder.path(), "content");
        assert!(!left_behind.exists());
    }

    #[test]
    fn an_archive_that_is_used_outlives_those_that_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let made: Vec<PathBuf> = (0..ARCHIVES_KEPT).map(|number| archive(folder.path(), &number.to_string())).collect();
        // Long ago, one after the other.
        for (second, path) in (0..).zip(&made) {
            let then = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            fs::File::open(path).unwrap().set_modified(then).unwrap();
        }
        assert_eq!(archive(folder.path(), "0"), made[0]);
        archive(folder.path(), "another");
        assert_eq!([made[0].exists(), made[1].exists()], [true, false]);
    }
}
