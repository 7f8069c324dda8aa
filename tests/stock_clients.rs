//! Stock Redis clients that are no program of the system: installed once, at a fixed version, under the cache folder
//! (`TIEREDCACHE_CACHE`, else `~/.cache/tieredcache`).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::program::output_of_fed_within;

/// Longer than any of them takes to come from its registry and to be compiled.
const ENDS_WITHIN: Duration = Duration::from_secs(300);

/// Version of redis-py.
pub const REDIS_PY: &str = "8.1.0";

/// The folder of redis-py, for `PYTHONPATH`; installed if it is not there.
///
/// # Panics
/// If it can not be installed; no test can go on then.
pub fn redis_py() -> PathBuf {
    let package = format!("redis=={REDIS_PY}");
    installed(&format!("redis-py-{REDIS_PY}"), |folder| pip_install(&package, folder))
}

/// The folder `name` of installed clients, made by `install` if it is not there. What is half made never gets the name.
///
/// # Panics
/// If it can not be made.
pub fn installed(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").expect("there is a home folder")).join(".cache/tieredcache");
    let clients = env::var_os("TIEREDCACHE_CACHE").map_or_else(home, PathBuf::from).join("clients");
    let folder = clients.join(name);
    if !folder.exists() {
        fs::create_dir_all(&clients).expect("the cache folder can be written");
        let half_made = tempfile::tempdir_in(&clients).expect("the cache folder can be written");
        install(half_made.path());
        // Another run of the tests may have been quicker; then its folder serves as well.
        let _ = fs::rename(half_made.path(), &folder);
    }
    assert!(folder.exists(), "{} was made", folder.display());
    folder
}

/// Installs a package for Python into the folder.
///
/// # Panics
/// If it can not be installed.
pub fn pip_install(package: &str, folder: &Path) {
    let venv = tempfile::tempdir().expect("a scratch folder can be made");
    succeed(Command::new("python3").args(["-m", "venv"]).arg(venv.path()));
    let install = ["-m", "pip", "install", "--quiet", "--no-deps", package, "--target"];
    succeed(Command::new(venv.path().join("bin/python")).args(install).arg(folder));
}

/// Runs a command that has to succeed, and returns what it printed.
///
/// # Panics
/// If it does not succeed, with what it said, or takes longer than five minutes.
pub fn succeed(command: &mut Command) -> String {
    succeed_fed(command, Stdio::null())
}

/// The same of a command with an input.
///
/// # Panics
/// As [`succeed`].
pub fn succeed_fed(command: &mut Command, input: impl Into<Stdio>) -> String {
    let Output { status, stdout, stderr } = output_of_fed_within(ENDS_WITHIN, command, input);
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?} ended with {status}\n{out}\n{err}");
    out.into_owned()
}
