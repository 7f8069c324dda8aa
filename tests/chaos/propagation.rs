//! How long an invalidation takes from its acknowledgement on one node until every other node has forgotten the value.

use std::{
    io,
    net::SocketAddr,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use anyhow::{anyhow, bail, ensure};
use hdrhistogram::Histogram;

use crate::{
    clock::{Clock, Nanos},
    fleet::{Fleet, Program, Shape},
    wire::{self, Connection, Reply},
};

/// Keys that are stored, read everywhere, removed and watched together.
const BATCH: usize = 200;
/// A value that another node still has after this is lost to it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What removes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A removal of its key.
    Key,
    /// A removal of a tag that it alone carries, so that there are as many removals as values.
    Tag,
}

/// Somebody who watches one node: is given keys, tells when each was seen to be gone.
struct Watcher {
    keys: Sender<Vec<String>>,
    gone: Receiver<io::Result<Vec<Nanos>>>,
}

/// What was measured, in microseconds.
pub(crate) struct Measured {
    by: By,
    latency: Histogram<u64>,
}

/// Removes so many values on the first node and watches the others.
///
/// # Errors
/// If a node fails, or keeps a value for longer than 20 s.
pub(crate) fn measure(program: Program, nodes: usize, removals: u64, by: By) -> anyhow::Result<Measured> {
    ensure!(nodes > 1, "propagation takes two nodes at least");
    let clock = Clock::start();
    let shape = Shape {
        nodes,
        program,
        write_through: true,
        disk_first: false,
        small_disk: false,
        clocks: false,
        redis_clock: false,
        serve_stale_for: None,
    };
    let fleet = Fleet::start(&shape, clock)?;
    fleet.members.iter().try_for_each(|member| await_redis(&mut Connection::open(member.resp)?, clock))?;
    let mut writer = Connection::open(fleet.members[0].resp)?;
    let watchers: Vec<Watcher> = fleet.members[1..].iter().map(|member| Watcher::start(member.resp, clock)).collect();
    let mut latency = Histogram::new_with_max(60_000_000, 3)?;
    let mut done = 0;
    while done < removals {
        let keys: Vec<String> = (0..BATCH as u64).map(|index| format!("p{}", done + index)).collect();
        store(&mut writer, &keys, by)?;
        watchers.iter().try_for_each(|watcher| watcher.keys.send(keys.clone()))?;
        // All have read every value, so all have it in memory.
        for watcher in &watchers {
            watcher.gone.recv()??;
        }
        let acknowledged = remove(&mut writer, &keys, clock, by)?;
        for watcher in &watchers {
            let gone = watcher.gone.recv()??;
            for (acknowledged, gone) in acknowledged.iter().zip(gone) {
                latency.saturating_record(gone.saturating_sub(*acknowledged) / 1000);
            }
        }
        done += BATCH as u64;
    }
    Ok(Measured { by, latency })
}

/// Waits until the node tells Redis of what it removes.
fn await_redis(connection: &mut Connection, clock: Clock) -> anyhow::Result<()> {
    let begun = clock.nanos();
    let mut command = Vec::new();
    wire::command(&mut command, &[b"TC.DEL", b"nothing"]);
    loop {
        connection.send(&command)?;
        let reply = connection.reply()?;
        if reply == Reply::Simple(b"OK") {
            return Ok(());
        }
        ensure!(clock.nanos() - begun < crate::clock::nanos(PATIENCE), "Redis is not told: {reply:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn store(writer: &mut Connection, keys: &[String], by: By) -> anyhow::Result<()> {
    let mut batch = Vec::new();
    for key in keys.iter().map(String::as_bytes) {
        match by {
            By::Key => wire::command(&mut batch, &[b"SET", key, b"value"]),
            By::Tag => wire::command(&mut batch, &[b"TC.SET", key, b"value", b"TAGS", b"1", key]),
        }
    }
    writer.send(&batch)?;
    for key in keys {
        let reply = writer.reply()?;
        ensure!(reply == Reply::Simple(b"OK"), "storing {key}: {reply:?}");
    }
    Ok(())
}

/// When each removal was acknowledged.
fn remove(writer: &mut Connection, keys: &[String], clock: Clock, by: By) -> anyhow::Result<Vec<Nanos>> {
    let mut batch = Vec::new();
    for key in keys.iter().map(String::as_bytes) {
        match by {
            By::Key => wire::command(&mut batch, &[b"DEL", key]),
            By::Tag => wire::command(&mut batch, &[b"TC.INVALIDATE", key]),
        }
    }
    writer.send(&batch)?;
    let mut acknowledged = Vec::with_capacity(keys.len());
    for key in keys {
        match (by, writer.reply()?) {
            (By::Key, Reply::Integer(_)) | (By::Tag, Reply::Simple(b"OK")) => acknowledged.push(clock.nanos()),
            (_, other) => bail!("removing {key}: {other:?}"),
        }
    }
    Ok(acknowledged)
}

// === impl Watcher ===

impl Watcher {
    fn start(node: SocketAddr, clock: Clock) -> Self {
        let (keys, batches) = channel();
        let (answers, gone) = channel();
        thread::spawn(move || {
            let Err(error) = watch(node, clock, &batches, &answers) else { return };
            let _ = answers.send(Err(error));
        });
        Self { keys, gone }
    }
}

/// For each batch answers twice: once every value was read, and once every value was seen to be gone.
fn watch(
    node: SocketAddr,
    clock: Clock,
    batches: &Receiver<Vec<String>>,
    answers: &Sender<io::Result<Vec<Nanos>>>,
) -> io::Result<()> {
    let mut connection = Connection::open(node)?;
    for keys in batches {
        until(&mut connection, &keys, clock, true)?;
        let _ = answers.send(Ok(Vec::new()));
        let gone = until(&mut connection, &keys, clock, false)?;
        let _ = answers.send(Ok(gone));
    }
    Ok(())
}

/// Reads all keys until each was seen to have a value, or to have none; when that was.
fn until(connection: &mut Connection, keys: &[String], clock: Clock, present: bool) -> io::Result<Vec<Nanos>> {
    let begun = clock.nanos();
    let mut seen = vec![None; keys.len()];
    while seen.contains(&None) {
        let open: Vec<usize> = (0..keys.len()).filter(|index| seen[*index].is_none()).collect();
        let names = open.iter().map(|index| keys[*index].as_bytes());
        let words: Vec<&[u8]> = std::iter::once(&b"MGET"[..]).chain(names).collect();
        let mut batch = Vec::new();
        wire::command(&mut batch, &words);
        connection.send(&batch)?;
        connection.reply()?;
        for index in open {
            if matches!(connection.reply()?, Reply::Bulk(_)) == present {
                seen[index] = Some(clock.nanos());
            }
        }
        if clock.nanos() - begun > crate::clock::nanos(PATIENCE) {
            return Err(io::Error::other(anyhow!(
                "node {node:?} still has removed values after {PATIENCE:?}",
                node = keys[0]
            )));
        }
        if !present {
            // Leaves the machine to those who are measured.
            thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(seen.into_iter().flatten().collect())
}

// === impl Measured ===

impl Measured {
    /// The figures in one line, in milliseconds.
    pub(crate) fn text(&self) -> String {
        let ms = |quantile: f64| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        let by = match self.by {
            By::Key => "key",
            By::Tag => "tag",
        };
        format!(
            "{} invalidations by {by} seen: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, longest {:.1} ms",
            self.latency.len(),
            ms(0.5),
            ms(0.99),
            ms(0.999),
            ms(1.0)
        )
    }

    /// Whether the goal of the fleet is met: 250 ms for 999 of 1000.
    pub(crate) fn is_good(&self) -> bool {
        self.latency.value_at_quantile(0.999) <= 250_000
    }
}
