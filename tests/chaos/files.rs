//! Judges histories that clients of some other fleet wrote to files.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::{
    clock::nanos,
    history::History,
    judge::{Law, judge},
    records,
    run::{BOUND, Ended, FOUND_MIN, LATE, Writes, complaints},
};

/// What is to be judged.
#[derive(Args)]
pub(crate) struct Files {
    /// Histories of one run, by clients of any kind.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// When the nodes acknowledge writes.
    #[arg(long, value_enum)]
    writes: Writes,
    /// So many reads must have been answered in all.
    #[arg(long, default_value_t = 1)]
    reads: u64,
}

// === impl Files ===

impl Files {
    /// Judges what all the clients saw together.
    ///
    /// # Errors
    /// If a file is not what it must be.
    pub(crate) fn judge(&self) -> anyhow::Result<Ended> {
        let parts: Vec<(&PathBuf, History)> =
            self.files.iter().map(|path| Ok((path, records::read(path)?))).collect::<anyhow::Result<_>>()?;
        let ended = parts.iter().flat_map(|(_, part)| &part.notes).map(|note| note.at).max().unwrap_or_default();
        let mut silent = Vec::new();
        let mut all = History::default();
        for (path, part) in parts {
            let found = part.reads.iter().filter(|read| read.invoked >= ended).count() as u64;
            // What only tells of faults and starts is no client's.
            if part.answered() + part.unanswered > 0 && found < FOUND_MIN {
                silent.push(format!("{}: after the last fault only {found} reads found a value", path.display()));
            }
            all.absorb(part);
        }
        let history = records::in_order(all).context("the files are not of one run")?;
        let write_through = self.writes == Writes::Through;
        // These are of nodes that serve nothing while they are cut off.
        let law = Law { bound: nanos(BOUND), stale: 0, write_through, late: nanos(LATE) };
        let verdict = judge(&history, law);
        let mut complaints = complaints(&history);
        complaints.append(&mut silent);
        if verdict.checked < self.reads {
            complaints.push(format!("only {} reads were answered: too few to show anything", verdict.checked));
        }
        Ok(Ended { history, verdict, complaints })
    }
}

#[cfg(test)]
mod tests;
