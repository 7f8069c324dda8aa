//! The servers under test: started pinned to one core, asked by the kernel's own counters, ended with the run.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{
    clock::Clock,
    resp::{Blocking, Reply},
};

/// The core servers run on; everything they start stays there.
pub(crate) const SERVER_CORE: usize = 0;
/// The core the client runs on.
pub(crate) const CLIENT_CORE: usize = 1;
/// A server must answer PING within this time.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// `redis-server`, persistence off, otherwise as installed.
    Redis,
    /// `cache-node`, memory only, one thread.
    Node,
    /// `cache-node` with its disk layer, one thread.
    NodeDisk,
}

/// A running server. Dropping it ends the process and removes its folder.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where it speaks RESP.
    pub(crate) address: SocketAddr,
    _folder: tempfile::TempDir,
}

/// What the kernel counted for one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU of all threads.
    pub(crate) cpu: Duration,
    /// CPU of the busiest thread.
    pub(crate) busiest_cpu: Duration,
    /// How long the busiest thread was ready and not running.
    pub(crate) busiest_wait: Duration,
}

// === impl Kind ===

impl Kind {
    /// The name in tables.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Node => "node (L1)",
            Self::NodeDisk => "node (L1+L3)",
        }
    }

    fn command(self, node: &Path, folder: &Path, port: u16) -> anyhow::Result<Command> {
        if self == Self::Redis {
            let mut command = Command::new("redis-server");
            command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--logfile", "", "--dir"]);
            command.arg(folder).arg("--port").arg(port.to_string());
            return Ok(command);
        }
        let mode = if self == Self::NodeDisk { "RocksDB" } else { "Disabled" };
        let (admin, data) = (free_port()?, folder.join("data"));
        let config = format!(
            "listen: {{ resp: \"127.0.0.1:{port}\", admin: \"127.0.0.1:{admin}\", threads: 1 }}\n\
             memory: {{ capacity: 1Gi }}\n\
             disk: {{ mode: {mode}, path: {:?} }}\n",
            data.display().to_string()
        );
        let file = folder.join("node.yaml");
        fs::write(&file, config)?;
        let mut command = Command::new(node);
        command.arg("--config").arg(file).env("TIEREDCACHE_LOG", "warn");
        Ok(command)
    }

    /// The first line of the program's own `--version`.
    pub(crate) fn version(self, node: &Path) -> anyhow::Result<String> {
        let program = if self == Self::Redis { Path::new("redis-server") } else { node };
        let output =
            Command::new(program).arg("--version").output().with_context(|| format!("start {}", program.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
    }
}

// === impl Server ===

impl Server {
    /// Starts a server on [`SERVER_CORE`] and waits until it answers.
    ///
    /// # Errors
    /// If the program is missing, ends or does not answer within 20 s.
    pub(crate) fn start(kind: Kind, node: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let mut command = kind.command(node, folder.path(), port)?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // Affinity is inherited: the child starts on its core without a program in between, whose pid would be another.
        pin(SERVER_CORE)?;
        let child = command.spawn();
        pin(CLIENT_CORE)?;
        let child = child.with_context(|| format!("start {}", command.get_program().display()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self { child, address, _folder: folder };
        server.wait_ready()?;
        Ok(server)
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let clock = Clock::start();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended while starting: {status}");
            }
            let answer = Blocking::open(self.address).and_then(|mut client| client.ask(&[b"PING"]));
            match answer {
                Ok(reply) if reply == Reply::Simple("PONG".to_owned()) => return Ok(()),
                answer if clock.passed(START_TIMEOUT) => bail!("the server did not answer PING: {answer:?}"),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// What the kernel counted so far.
    ///
    /// # Errors
    /// If the process is gone.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        Usage::read(self.folder())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// If the process is gone.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(self.folder().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kibibytes * 1024)
    }

    fn folder(&self) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing a benchmark stored is worth a clean stop; both calls fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Usage ===

impl Usage {
    /// Of this process.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub(crate) fn of_client() -> io::Result<Self> {
        Self::read("/proc/self".into())
    }

    /// Sums `task/*/schedstat` of a process folder.
    fn read(folder: PathBuf) -> io::Result<Self> {
        let mut usage = Self::default();
        for task in fs::read_dir(folder.join("task"))? {
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let (cpu, wait) = parse_schedstat(&text).ok_or(io::ErrorKind::InvalidData)?;
            usage.cpu += cpu;
            if cpu > usage.busiest_cpu {
                (usage.busiest_cpu, usage.busiest_wait) = (cpu, wait);
            }
        }
        Ok(usage)
    }

    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            busiest_cpu: self.busiest_cpu.saturating_sub(earlier.busiest_cpu),
            busiest_wait: self.busiest_wait.saturating_sub(earlier.busiest_wait),
        }
    }

    /// How long the busiest thread waited for *other* processes: a process's own threads may take turns on its core,
    /// and that is part of what is measured.
    pub(crate) fn foreign_wait(self) -> Duration {
        self.busiest_wait.saturating_sub(self.cpu.saturating_sub(self.busiest_cpu))
    }
}

/// `cpu_ns wait_ns slices`.
fn parse_schedstat(text: &str) -> Option<(Duration, Duration)> {
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok().map(Duration::from_nanos));
    Some((numbers.next()??, numbers.next()??))
}

/// Keeps this process and what it starts from now on, on one core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

/// A port nobody listens on now.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_is_cpu_then_wait() {
        let expected = Some((Duration::from_nanos(33), Duration::from_nanos(7)));
        assert_eq!(parse_schedstat("33 7 92\n"), expected);
        assert_eq!(parse_schedstat("33\n"), None);
        assert_eq!(parse_schedstat("x y z\n"), None);
    }

    #[test]
    fn work_shows_as_cpu_of_this_process() {
        let before = Usage::of_client().unwrap();
        let clock = Clock::start();
        // The kernel books time when it looks, which a virtual machine that stands still puts off: hence the limit.
        while !clock.passed(Duration::from_secs(10)) {
            let used = Usage::of_client().unwrap().since(before);
            if used.cpu + used.busiest_wait >= Duration::from_millis(5) {
                return;
            }
        }
        panic!("ten seconds of work do not show");
    }

    #[test]
    fn waiting_for_the_own_threads_is_no_disturbance() {
        let second = Duration::from_secs(1);
        let usage = Usage { cpu: second * 3, busiest_cpu: second * 2, busiest_wait: second };
        assert_eq!(usage.foreign_wait(), Duration::ZERO);
        let usage = Usage { busiest_wait: second * 4, ..usage };
        assert_eq!(usage.foreign_wait(), second * 3);
    }
}
