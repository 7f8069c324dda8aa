//! The fleet's Redis: a server that keeps its data on disk, and its replica once one is wanted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use tests::{ports::free_port, redis_server::Server};

use super::{loopback, put_wrong};
use crate::proxy::Proxy;

/// Where Redis keeps its data, in its folder.
const DATA: &str = "appendonlydir";
/// How often it is looked whether the replica has caught up.
const POLL: Duration = Duration::from_millis(20);
/// A replica of so little data has caught up within this many looks.
const POLLS_MAX: u32 = 1500;

/// The servers. They end when dropped.
pub(crate) struct Store {
    master: Server,
    replica: Option<Replica>,
    /// What puts the clock of all servers wrong, and the file that says by how much.
    clock: Option<(PathBuf, PathBuf)>,
}

struct Replica {
    server: Server,
    /// What it hears of the master comes through here.
    link: Proxy,
}

// === impl Store ===

impl Store {
    /// Starts the master; with this library its clock, and that of its replica, can be put wrong.
    ///
    /// # Errors
    /// If the folder takes no file.
    pub(crate) fn start(clock_library: Option<&Path>, folder: &Path) -> anyhow::Result<Self> {
        let clock = clock_library.map(|library| (library.to_owned(), folder.join("clock-of-redis")));
        if let Some((_, file)) = &clock {
            fs::write(file, 0_i64.to_ne_bytes())?;
        }
        Ok(Self { master: server(clock.as_ref(), &[]), replica: None, clock })
    }

    /// Puts the wall clock of Redis wrong by so much.
    ///
    /// # Errors
    /// If the file that says so can not be written.
    pub(crate) fn step_clock(&self, seconds: i64) -> anyhow::Result<()> {
        let (_, file) = self.clock.as_ref().context("its clock can not be put wrong")?;
        put_wrong(file, seconds)
    }

    /// The server that takes writes.
    pub(crate) fn master(&self) -> &Server {
        &self.master
    }

    /// Kills the master as an out-of-memory killer would.
    pub(crate) fn kill(&mut self) {
        self.master.kill();
    }

    /// Starts it again, with what its folder has.
    pub(crate) fn restart(&mut self) {
        self.master.restart();
    }

    /// Removes its data. Its process has ended.
    ///
    /// # Errors
    /// If the folder can not be removed.
    pub(crate) fn wipe(&self) -> anyhow::Result<()> {
        Ok(fs::remove_dir_all(self.data())?)
    }

    /// Copies its data as it is now, as a backup does.
    ///
    /// # Errors
    /// If `cp` fails.
    pub(crate) fn copy(&self) -> anyhow::Result<()> {
        let _ = fs::remove_dir_all(self.backup());
        let status = Command::new("cp").arg("-r").arg(self.data()).arg(self.backup()).status()?;
        ensure!(status.success(), "cp fails");
        Ok(())
    }

    /// Puts the copy in the place of its data. Its process has ended.
    ///
    /// # Errors
    /// If there is no copy.
    pub(crate) fn restore(&self) -> anyhow::Result<()> {
        self.wipe()?;
        fs::rename(self.backup(), self.data()).context("restore the backup")
    }

    /// Gives the master a replica and waits until it has everything.
    ///
    /// # Errors
    /// If that takes too long.
    pub(crate) fn add_replica(&mut self) -> anyhow::Result<()> {
        let link = Proxy::to(loopback(self.master.port))?;
        let port = link.address.port().to_string();
        let replica = server(self.clock.as_ref(), &["--replicaof", "127.0.0.1", &port]);
        let up = || replica.cli(&["INFO", "replication"]).contains("master_link_status:up");
        let mut polls = 0;
        while !up() {
            polls += 1;
            ensure!(polls < POLLS_MAX, "the replica does not catch up");
            thread::sleep(POLL);
        }
        self.replica = Some(Replica { server: replica, link });
        Ok(())
    }

    /// From now on the replica hears nothing of the master.
    pub(crate) fn cut_replica(&self) {
        if let Some(replica) = &self.replica {
            replica.link.hold();
        }
    }

    /// Kills the master; the replica takes its place with what it has.
    pub(crate) fn fail_over(&mut self) {
        let Some(Replica { server, link }) = self.replica.take() else { return };
        self.master.kill();
        // What was held up dies with the link, as it does with the master's machine.
        server.cli(&["REPLICAOF", "NO", "ONE"]);
        drop(link);
        self.master = server;
    }

    fn data(&self) -> PathBuf {
        self.master.folder.path().join(DATA)
    }

    fn backup(&self) -> PathBuf {
        self.master.folder.path().join("backup")
    }
}

fn server(clock: Option<&(PathBuf, PathBuf)>, more: &[&str]) -> Server {
    let port = free_port();
    let text = port.to_string();
    let options = ["--port", &text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"];
    let replication = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
    let environment = clock.map(|(library, file)| {
        vec![("LD_PRELOAD".to_owned(), library.clone()), ("CLOCK_STEP_FILE".to_owned(), file.clone())]
    });
    Server::start_within(environment.unwrap_or_default(), port, [&options[..], &replication[..], more].concat())
}
