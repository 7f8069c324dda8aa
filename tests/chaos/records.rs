//! Histories in files, so that clients of any kind can write down what they saw: one JSON object a line.
//!
//! ```json
//! {"write": {"id": 12, "key": 7, "tag": 3, "node": 0, "outcome": "ok", "life": 0, "invoked": 100, "returned": 250}}
//! {"removal": {"target": {"key": 7}, "node": 1, "outcome": "queued", "invoked": 300, "returned": 400}}
//! {"read": {"key": 7, "write": 12, "node": 2, "invoked": 500, "returned": 510}}
//! {"flush": {"node": 0, "invoked": 600, "returned": 700}}
//! {"start": {"node": 2, "spawned": 800, "alone": 900}}
//! {"note": {"at": 1000, "text": "node 2 is cut off"}}
//! {"absent": 24}
//! {"unanswered": 1}
//! {"error": "ERR why a read failed"}
//! ```
//!
//! Moments are nanoseconds of the machine's monotonic clock. The numbers of writes are unique in all files of a run and
//! may have gaps. Outcomes are `ok`, `queued` and `unknown`; targets `{"key": …}`, `{"tag": …}` and `"all"`. What was
//! not answered has no `returned`, a value without a tag no `tag`, and a read of what nobody stored no `write`.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    clock::Nanos,
    history::{FOREIGN, Flush, History, NEVER, Note, Read, Removal, Start, Write, WriteId},
};

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Record {
    Write(Write),
    Removal(Removal),
    Read(Read),
    Flush(Flush),
    Start(Start),
    Note(Note),
    /// So many reads found nothing.
    Absent(u64),
    /// So many reads were not answered.
    Unanswered(u64),
    /// One read was answered with this error.
    Error(String),
}

/// Writes a history to a file, or over one.
///
/// # Errors
/// If the file can not be written.
pub(crate) fn write(history: &History, path: &Path) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
    let mut file = BufWriter::new(file);
    let History { writes, removals, reads, flushes, starts, notes, absent, unanswered, errors, error } = history;
    let records = (writes.iter().copied().map(Record::Write))
        .chain(removals.iter().copied().map(Record::Removal))
        .chain(reads.iter().copied().map(Record::Read))
        .chain(flushes.iter().copied().map(Record::Flush))
        .chain(starts.iter().copied().map(Record::Start))
        .chain(notes.iter().cloned().map(Record::Note))
        .chain([Record::Absent(*absent), Record::Unanswered(*unanswered)])
        .chain((0..*errors).map(|_| Record::Error(error.clone().unwrap_or_default())));
    for record in records {
        serde_json::to_writer(&mut file, &record)?;
        file.write_all(b"\n")?;
    }
    file.flush().with_context(|| format!("writing {}", path.display()))
}

/// Reads the history in one file, as it stands there.
///
/// # Errors
/// If the file can not be read or a line is none of the above.
pub(crate) fn read(path: &Path) -> anyhow::Result<History> {
    let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut history = History::default();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let at = || format!("{}:{}", path.display(), index + 1);
        match serde_json::from_str(&line.with_context(at)?).with_context(at)? {
            Record::Write(write) => history.writes.push(write),
            Record::Removal(removal) => history.removals.push(removal),
            Record::Read(read) => history.reads.push(read),
            Record::Flush(flush) => history.flushes.push(flush),
            Record::Start(start) => history.starts.push(start),
            Record::Note(note) => history.notes.push(note),
            Record::Absent(reads) => history.absent += reads,
            Record::Unanswered(reads) => history.unanswered += reads,
            Record::Error(text) => {
                history.errors += 1;
                history.error.get_or_insert(text);
            }
        }
    }
    Ok(history)
}

/// Brings what was read from all files into the form that the judge expects: time begins with the first operation, and
/// writes are numbered without gaps.
///
/// # Errors
/// If two writes have one number, or something is answered before it was sent.
pub(crate) fn in_order(mut history: History) -> anyhow::Result<History> {
    history.writes.sort_unstable_by_key(|write| write.id);
    let twice = history.writes.windows(2).find(|pair| pair[0].id == pair[1].id);
    ensure!(twice.is_none(), "two writes have the number {}", twice.map_or(0, |pair| pair[0].id));
    let mut numbers: HashMap<WriteId, WriteId> = HashMap::with_capacity(history.writes.len());
    for (write, number) in history.writes.iter_mut().zip(0..) {
        numbers.insert(write.id, number);
        write.id = number;
    }
    for read in &mut history.reads {
        read.write = numbers.get(&read.write).copied().unwrap_or(FOREIGN);
    }
    let spans = spans(&mut history);
    let backwards = spans.iter().find(|(invoked, returned)| **returned < **invoked);
    ensure!(backwards.is_none(), "something is answered before it was sent: {backwards:?}");
    let zero = spans.iter().map(|(invoked, _)| **invoked).min().unwrap_or_default();
    for (invoked, returned) in spans {
        *invoked -= zero;
        if *returned != NEVER {
            *returned -= zero;
        }
    }
    for start in &mut history.starts {
        start.spawned = start.spawned.saturating_sub(zero);
        start.alone = start.alone.saturating_sub(zero);
    }
    history.notes.iter_mut().for_each(|note| note.at = note.at.saturating_sub(zero));
    Ok(history)
}

/// The moments of every operation.
fn spans(history: &mut History) -> Vec<(&mut Nanos, &mut Nanos)> {
    let writes = history.writes.iter_mut().map(|write| (&mut write.invoked, &mut write.returned));
    let removals = history.removals.iter_mut().map(|removal| (&mut removal.invoked, &mut removal.returned));
    let reads = history.reads.iter_mut().map(|read| (&mut read.invoked, &mut read.returned));
    let flushes = history.flushes.iter_mut().map(|flush| (&mut flush.invoked, &mut flush.returned));
    writes.chain(removals).chain(reads).chain(flushes).collect()
}

#[cfg(test)]
mod tests;
