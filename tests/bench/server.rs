//! The servers under test: started pinned to one core, asked by the kernel's own counters, ended with the run.

mod kind;

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use ::tests::{ports::free_port, program::http};
use anyhow::{Context, bail, ensure};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_setaffinity},
};

use self::kind::Place;
pub(crate) use self::kind::{Kind, Programs};
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
/// The layers below memory must have all that is stored within this time.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Reads that find nothing, more than it takes a node to give a dead Redis up.
const VAIN_READS: usize = 20;

/// A running server. Dropping it ends the process and removes its folder.
#[derive(Debug)]
pub(crate) struct Server {
    kind: Kind,
    process: Process,
    /// Where it speaks RESP.
    pub(crate) address: SocketAddr,
    /// The Redis below it.
    redis: Option<Process>,
    _folder: tempfile::TempDir,
}

/// A process that ends with its owner.
#[derive(Debug)]
struct Process(Child);

/// What the kernel counted for one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU of all threads.
    pub(crate) cpu: Duration,
    /// CPU of the threads that serve clients: those of the name `resp-*`, or else the first.
    pub(crate) foreground_cpu: Duration,
    /// CPU of the busiest thread.
    pub(crate) busiest_cpu: Duration,
    /// How long the busiest thread was ready and not running.
    pub(crate) busiest_wait: Duration,
}

// === impl Server ===

impl Server {
    /// Starts a server on [`SERVER_CORE`] and waits until it answers.
    ///
    /// # Errors
    /// If a program is missing, ends or does not answer within 20 s.
    pub(crate) fn start(kind: Kind, programs: &Programs) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let redis = kind.has_redis().then(|| Self::start_redis(folder.path())).transpose()?;
        let (redis, redis_at) = redis.unzip();
        let (port, admin) = (free_port(), free_port());
        let place = Place { folder: folder.path(), port, admin, redis: redis_at };
        let process = Process::start(kind.command(programs, &place)?)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self { kind, process, address, redis, _folder: folder };
        server.process.wait_answer(address)?;
        if kind.has_redis() {
            // What it takes before it has caught up it may not keep.
            wait_ready(SocketAddr::from((Ipv4Addr::LOCALHOST, admin)))?;
        }
        Ok(server)
    }

    fn start_redis(folder: &Path) -> anyhow::Result<(Process, SocketAddr)> {
        let place = Place { folder, port: free_port(), admin: free_port(), redis: None };
        let mut process = Process::start(kind::redis(&place))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, place.port));
        process.wait_answer(address)?;
        Ok((process, address))
    }

    /// Once everything is stored: waits until the layers below memory have it, and takes away what this kind loses.
    ///
    /// # Errors
    /// If the server fails a command.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        let mut client = Blocking::open(self.address)?;
        if self.kind.is_layered_below() {
            let clock = Clock::start();
            // Each waits for as long as a request may take.
            while let Err(error) = client.ask(&[b"TC.FLUSH"]) {
                ensure!(!clock.passed(SETTLE_TIMEOUT), "the layers do not take what is stored: {error}");
            }
        }
        if let Some(redis) = self.redis.as_ref().filter(|_| self.kind.loses_redis()) {
            kill_process(redis.pid()?, Signal::STOP)?;
            for _ in 0..VAIN_READS {
                client.ask(&[b"GET", b"nothing"])?;
            }
        }
        Ok(())
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
        Path::new("/proc").join(self.process.0.id().to_string())
    }
}

/// Waits until a node says that it may be given clients.
fn wait_ready(admin: SocketAddr) -> anyhow::Result<()> {
    let clock = Clock::start();
    loop {
        let answer = http(admin, "GET", "/readyz");
        if answer.status == 200 {
            return Ok(());
        }
        ensure!(!clock.passed(START_TIMEOUT), "the node is not ready: {}", answer.body);
        thread::sleep(Duration::from_millis(20));
    }
}

// === impl Process ===

impl Process {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // Affinity is inherited: the child starts on its core without a program in between, whose pid would be another.
        pin(SERVER_CORE)?;
        let child = command.spawn();
        pin(CLIENT_CORE)?;
        Ok(Self(child.with_context(|| format!("start {}", command.get_program().display()))?))
    }

    fn wait_answer(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let clock = Clock::start();
        loop {
            if let Some(status) = self.0.try_wait()? {
                bail!("the server ended while starting: {status}");
            }
            let answer = Blocking::open(address).and_then(|mut client| client.ask(&[b"PING"]));
            match answer {
                Ok(reply) if reply == Reply::Simple("PONG".to_owned()) => return Ok(()),
                answer if clock.passed(START_TIMEOUT) => bail!("the server did not answer PING: {answer:?}"),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        Pid::from_raw(i32::try_from(self.0.id())?).context("a process has a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing a benchmark stored is worth a clean stop; both calls fail only if the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
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
        let mut of_first = Duration::ZERO;
        for task in fs::read_dir(folder.join("task"))? {
            let task = task?.path();
            // A thread may end between the listing and the reading.
            let read = |file: &str| fs::read_to_string(task.join(file));
            let (Ok(text), Ok(name)) = (read("schedstat"), read("comm")) else { continue };
            let (cpu, wait) = parse_schedstat(&text).ok_or(io::ErrorKind::InvalidData)?;
            usage.cpu += cpu;
            if name.starts_with("resp-") {
                usage.foreground_cpu += cpu;
            }
            // The first thread has the number of the process.
            if task.file_name() == folder.file_name() {
                of_first = cpu;
            }
            if cpu > usage.busiest_cpu {
                (usage.busiest_cpu, usage.busiest_wait) = (cpu, wait);
            }
        }
        if usage.foreground_cpu.is_zero() {
            usage.foreground_cpu = of_first;
        }
        Ok(usage)
    }

    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            foreground_cpu: self.foreground_cpu.saturating_sub(earlier.foreground_cpu),
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

/// Runs what starts a program of several threads, which is to have every core.
///
/// # Errors
/// If this process can not change its cores.
pub(crate) fn on_all_cores<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    let mut cores = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|core| cores.set(core));
    // Those that the machine has not got are left out.
    sched_setaffinity(None, &cores)?;
    let started = start();
    pin(CLIENT_CORE)?;
    Ok(started)
}

/// Keeps this process and what it starts from now on, on one core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
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
        let usage = Usage { cpu: second * 3, busiest_cpu: second * 2, busiest_wait: second, ..Usage::default() };
        assert_eq!(usage.foreign_wait(), Duration::ZERO);
        let usage = Usage { busiest_wait: second * 4, ..usage };
        assert_eq!(usage.foreign_wait(), second * 3);
    }
}
