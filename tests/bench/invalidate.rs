//! How long `TC.INVALIDATE` takes when a million entries carry tags: with nothing else to do, and while clients write.

use std::{io, sync::Arc, thread, time::Duration};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;

use crate::{
    clock::Clock,
    load::{self, Client},
    pair::load_keys,
    resp::{Blocking, Reply},
    server::{Kind, Programs, Server},
    workload::{Stored, Workload},
};

/// What the promise names.
const ENTRIES: usize = 1_000_000;
const VALUE_BYTES: usize = 100;
/// Removals that are timed, each of another tag.
const REMOVALS: usize = 1000;
/// What a removal may take, 99 of 100.
pub(crate) const LIMIT: Duration = Duration::from_millis(1);
/// Writes while removals are timed: as many a second as the other goals that are about a busy disk.
const WRITES: &str = "set-r40000";
/// Until the layers below have everything.
const SETTLING_MAX: Duration = Duration::from_secs(120);

/// Removals of one server in one situation.
pub(crate) struct Removals {
    pub(crate) kind: Kind,
    /// Whether clients wrote meanwhile.
    pub(crate) under_writes: bool,
    /// Nanoseconds.
    pub(crate) took: Histogram<u64>,
}

/// Loads the entries and removes by tag, first alone and then under writes.
///
/// # Errors
/// If the server refuses something, or does not bring what it has to the layers below.
pub(crate) fn measure(kind: Kind, programs: &Programs) -> anyhow::Result<Vec<Removals>> {
    let server = Server::start(kind, programs)?;
    load_keys(&server, ENTRIES, VALUE_BYTES, Stored::Tagged)?;
    let mut client = Blocking::open(server.address)?;
    let begun = Clock::start();
    // It answers an error for as long as there is more to write than its deadline allows.
    while client.ask(&[b"TC.FLUSH"]).is_err() {
        ensure!(Duration::from_nanos(begun.nanos()) < SETTLING_MAX, "{} does not come to rest", kind.label());
    }
    let held = client.ask(&[b"DBSIZE"])?;
    // An estimate, where a Redis that does not keep up with the loading has cost some.
    let is_full = matches!(held, Reply::Integer(held) if held >= ENTRIES as i64 / 100 * 95);
    ensure!(is_full, "{} holds {held:?} of {ENTRIES} entries", kind.label());
    let alone = Removals { kind, under_writes: false, took: remove(&mut client, 0)? };

    let workload: Workload = WRITES.parse()?;
    let mut writer = Client::open(server.address, &workload, &Arc::new(workload.ring(Stored::Tagged)))?;
    // A first slice, so that files of the disk are being written when the removals begin.
    writer.run(Duration::from_secs(2))?;
    let writing = thread::spawn(move || -> io::Result<u64> {
        let mut written = 0;
        for _ in 0..8 {
            written += writer.run(Duration::from_millis(500))?.tally.replies;
        }
        Ok(written)
    });
    let mut took = load::histogram();
    let mut first = REMOVALS;
    while !writing.is_finished() {
        took.add(remove(&mut client, first)?)?;
        first += REMOVALS;
    }
    let written = writing.join().map_err(|_| anyhow::anyhow!("the writing thread panicked"))??;
    ensure!(written > 100_000, "only {written} writes meanwhile");
    Ok(vec![alone, Removals { kind, under_writes: true, took }])
}

/// Removes by so many tags, one after the other.
fn remove(client: &mut Blocking, first: usize) -> anyhow::Result<Histogram<u64>> {
    let mut took = load::histogram();
    for number in first..first + REMOVALS {
        let tag = format!("owner:{:05}", number % 1000);
        let begun = Clock::start();
        let reply = client.ask(&[b"TC.INVALIDATE", tag.as_bytes()]).context("TC.INVALIDATE")?;
        took.record(begun.nanos())?;
        ensure!(reply == Reply::Simple("OK".to_owned()), "{reply:?}");
    }
    Ok(took)
}
