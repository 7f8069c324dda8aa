//! Resident memory per entry: a million entries of 16-byte keys and 100-byte values, each with a time to live, as a
//! cache has them.

use anyhow::{Context, ensure};

use crate::{
    pair::load_keys,
    resp::{Blocking, Reply},
    server::{Kind, Programs, Server},
    workload::Stored,
};

/// Enough that fixed costs vanish.
pub(crate) const ENTRIES: usize = 1_000_000;
/// Bytes of every value; with the key 116 bytes of payload an entry.
const VALUE_BYTES: usize = 100;
/// An hour, longer than any run.
const LIFE_MS: &[u8] = b"3600000";

/// Bytes of resident memory that one entry adds to a server of this kind.
///
/// # Errors
/// If the server does not hold all entries afterwards.
pub(crate) fn bytes_per_entry(kind: Kind, programs: &Programs) -> anyhow::Result<f64> {
    let server = Server::start(kind, programs)?;
    let before = server.resident_bytes()?;
    load_keys(&server, ENTRIES, VALUE_BYTES, Stored::Until(LIFE_MS))?;
    let after = server.resident_bytes()?;
    let held = Blocking::open(server.address)?.ask(&[b"DBSIZE"]).context("DBSIZE")?;
    ensure!(held == Reply::Integer(ENTRIES as i64), "{} holds {held:?} of {ENTRIES} entries", kind.label());
    Ok(after.saturating_sub(before) as f64 / ENTRIES as f64)
}
