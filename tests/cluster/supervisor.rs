//! Keeps programs running: what a service manager is on a real machine.
//!
//! A supervisor is process 1 of its own process namespace. It looks at a folder of wanted parts, starts what is
//! missing, ends what is no longer wanted, restarts what died and reaps every orphan. When it dies, however it dies,
//! the kernel ends everything below it; nothing can be left behind, whatever was killed in which order.
//!
//! The folder is the whole interface: a part is started by writing its file and ended by removing it, so a caller
//! that is interrupted half-way leaves a state that the next one reads.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use serde::{Deserialize, Serialize};

use super::clock::{now, wait_until};
use super::error::{AtPath, ClusterError, Result};

/// How often the folder is looked at: the delay of a start, and of a restart's check.
const TICK: Duration = Duration::from_millis(50);
/// A part that died is started again after this long, like systemd's `RestartSec=1` for these programs.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// One program to keep running.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// Variables added to the environment.
    pub(crate) env: Vec<(String, String)>,
    /// File that its output is added to.
    pub(crate) log: PathBuf,
    /// Whether it is started again when it ends.
    pub(crate) restart: bool,
}

/// The folder of wanted and running parts, as callers use it.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    folder: PathBuf,
}

/// What the supervisor knows of one started part.
struct Started {
    part: Part,
    /// `None` once it ended.
    pid: Option<Pid>,
    ended: Instant,
}

struct Supervisor {
    parts: Parts,
    started: BTreeMap<String, Started>,
}

/// Keeps the parts of `folder` running until it is killed.
///
/// # Errors
/// `Io` when the folder can not be read or written.
pub(crate) fn supervise(folder: &Path) -> Result<()> {
    let parts = Parts::new(folder.to_owned());
    parts.forget_running()?;
    let mut supervisor = Supervisor { parts, started: BTreeMap::new() };
    loop {
        supervisor.reap();
        supervisor.end_unwanted()?;
        supervisor.start_wanted()?;
        std::thread::sleep(TICK);
    }
}

// === impl Parts ===

impl Parts {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Asks for a part to run; a changed part is not restarted, its file must be removed first.
    pub(crate) fn want(&self, name: &str, part: &Part) -> Result<()> {
        let wanted = self.folder.join("wanted");
        fs::create_dir_all(&wanted).at("creating", &wanted)?;
        let text = serde_json::to_string_pretty(part).expect("a part is plain data");
        // Renamed into place: the supervisor must never read half a file.
        let (draft, path) = (self.folder.join(format!("{name}.draft")), self.wanted_file(name));
        fs::write(&draft, text).at("writing", &draft)?;
        fs::rename(&draft, &path).at("writing", &path)
    }

    /// Asks for a part to end and waits until it has.
    pub(crate) fn end(&self, name: &str) -> Result<()> {
        let path = self.wanted_file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).at("removing", &path),
            _ => {}
        }
        let limit = Duration::from_secs(10);
        if wait_until(limit, Duration::from_millis(10), || !self.is_running(name)) {
            return Ok(());
        }
        let what = format!("ending {name}");
        Err(ClusterError::Timeout { what, limit, hint: "its supervisor may be gone".to_owned() })
    }

    /// Whether a part was asked for.
    pub(crate) fn is_wanted(&self, name: &str) -> bool {
        self.wanted_file(name).exists()
    }

    /// Whether a part was started and has not ended.
    pub(crate) fn is_running(&self, name: &str) -> bool {
        self.running_file(name).exists()
    }

    /// Names of the parts asked for, sorted.
    pub(crate) fn wanted(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join("wanted")).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_owned)).collect();
        names.sort();
        names
    }

    /// Forgets what ran under an earlier supervisor.
    pub(crate) fn forget_running(&self) -> Result<()> {
        let running = self.folder.join("running");
        if running.exists() {
            fs::remove_dir_all(&running).at("removing", &running)?;
        }
        fs::create_dir_all(&running).at("creating", &running)
    }

    /// Forgets what was asked for.
    pub(crate) fn forget_wanted(&self) -> Result<()> {
        let wanted = self.folder.join("wanted");
        if wanted.exists() {
            fs::remove_dir_all(&wanted).at("removing", &wanted)?;
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Option<Part> {
        let text = fs::read_to_string(self.wanted_file(name)).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn wanted_file(&self, name: &str) -> PathBuf {
        self.folder.join("wanted").join(format!("{name}.json"))
    }

    fn running_file(&self, name: &str) -> PathBuf {
        self.folder.join("running").join(name)
    }
}

// === impl Supervisor ===

impl Supervisor {
    /// Takes note of every child that ended, its own and those it inherited.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some((name, started)) = self.started.iter_mut().find(|(_, started)| started.pid == Some(pid)) else {
                continue;
            };
            started.pid = None;
            started.ended = now();
            // The file may be gone already; what counts is that it is not there.
            let _ = fs::remove_file(self.parts.running_file(name));
            note(&started.part, &ending(status));
        }
    }

    fn end_unwanted(&mut self) -> Result<()> {
        let unwanted: Vec<String> = self.started.keys().filter(|name| !self.parts.is_wanted(name)).cloned().collect();
        for name in unwanted {
            match self.started[&name].pid {
                // Reaped on a later round; a second signal in between does no harm.
                Some(pid) => kill_process(pid, Signal::KILL).at("ending", Path::new(&name))?,
                None => drop(self.started.remove(&name)),
            }
        }
        Ok(())
    }

    fn start_wanted(&mut self) -> Result<()> {
        for name in self.parts.wanted() {
            let due = match self.started.get(&name) {
                None => true,
                Some(Started { pid: Some(_), .. }) => false,
                Some(started) => started.part.restart && started.ended.elapsed() >= RESTART_AFTER,
            };
            let Some(part) = self.parts.read(&name).filter(|_| due) else { continue };
            let pid = start(&part);
            if pid.is_some() {
                let path = self.parts.running_file(&name);
                fs::write(&path, "").at("writing", &path)?;
            }
            self.started.insert(name, Started { part, pid, ended: now() });
        }
        Ok(())
    }
}

/// Starts a part; why it does not start goes to its log, and it is tried again like one that died.
fn start(part: &Part) -> Option<Pid> {
    let log = || fs::OpenOptions::new().create(true).append(true).open(&part.log);
    let (Ok(stdout), Ok(stderr)) = (log(), log()) else { return None };
    let spawned = Command::new(&part.program)
        .args(&part.args)
        .envs(part.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        // Its own group: a signal meant for one part's group reaches no other.
        .process_group(0)
        .spawn();
    match spawned {
        Ok(child) => i32::try_from(child.id()).ok().and_then(Pid::from_raw),
        Err(error) => {
            note(part, &format!("does not start: {error}"));
            None
        }
    }
}

/// Adds a line of the supervisor's own to a part's log.
fn note(part: &Part, what: &str) {
    use std::io::Write;
    if let Ok(mut log) = fs::OpenOptions::new().create(true).append(true).open(&part.log) {
        // Nobody can be told that a log is not writable.
        let _ = writeln!(log, "=== supervisor: {} {what}", part.program.display());
    }
}

fn ending(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => format!("changed state: {status:?}"),
    }
}
