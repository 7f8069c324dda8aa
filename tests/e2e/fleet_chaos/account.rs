//! What was done to the fleet and when, on the clock of the clients, in a file of the form that the judge reads.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use rustix::{
    param::clock_ticks_per_second,
    time::{ClockId, clock_gettime},
};
use serde_json::json;

/// Faults and starts of processes, in the order in which they were noted.
#[derive(Default)]
pub(super) struct Account(String);

// === impl Account ===

impl Account {
    /// What is being done.
    pub(super) fn note(&mut self, text: &str) {
        let _ = writeln!(self.0, "{}", json!({"note": {"at": nanos(ClockId::Monotonic), "text": text}}));
    }

    /// This process is the node's only one from now on at the latest.
    pub(super) fn started(&mut self, node: usize, process: u32) {
        let alone = nanos(ClockId::Monotonic);
        let Some(spawned) = made(process) else { return };
        let _ = writeln!(self.0, "{}", json!({"start": {"node": node, "spawned": spawned.min(alone), "alone": alone}}));
    }

    /// Writes the file.
    pub(super) fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("faults.jsonl");
        std::fs::write(&path, &self.0).expect("a scratch folder can be written");
        path
    }
}

/// When a process of this machine was made, by the monotonic clock; up to a tick of 10 ms early, never late. Without a
/// process none.
fn made(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Its name, in brackets, may have blanks. The moment is the 22nd field; the third is the first after the name.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let since_boot = ticks * (1_000_000_000 / clock_ticks_per_second());
    // The kernel counts it with the time in which the machine was asleep.
    let asleep = nanos(ClockId::Boottime).saturating_sub(nanos(ClockId::Monotonic));
    Some(since_boot.saturating_sub(asleep))
}

fn nanos(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[test]
fn a_process_was_made_between_before_and_after_it_was_started() {
    let before = nanos(ClockId::Monotonic);
    let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep is a program");
    let after = nanos(ClockId::Monotonic);
    let made = made(child.id());
    child.kill().expect("the child is ours");
    child.wait().expect("the child is ours");
    let made = made.expect("the process was there");
    assert!(made <= after && made + 20_000_000 > before, "{before} {made} {after}");
}
