//! What clients saw: every operation with the moments it was sent and answered, as small as it can be.

use serde::{Deserialize, Serialize};

use crate::clock::Nanos;

/// Place of a key in the run's list of keys.
pub(crate) type KeyId = u32;
/// Place of a tag in the run's list of tags.
pub(crate) type TagId = u32;
/// Place of a node in the fleet.
pub(crate) type NodeId = u8;
/// Unique number of a write, and its place in [`History::writes`].
pub(crate) type WriteId = u32;

/// The moment of an answer that never came.
pub(crate) const NEVER: Nanos = Nanos::MAX;
/// Stands for a value that no write of this key can have stored.
pub(crate) const FOREIGN: WriteId = WriteId::MAX;

/// What a client was told of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Outcome {
    /// It is done.
    Ok,
    /// This node has it and will bring it to the others.
    Queued,
    /// An error or nothing: it may be done, now or later, or never.
    Unknown,
}

/// One value stored under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Write {
    pub(crate) id: WriteId,
    pub(crate) key: KeyId,
    pub(crate) tag: Option<TagId>,
    pub(crate) node: NodeId,
    pub(crate) outcome: Outcome,
    /// The life it was given; 0 for none.
    pub(crate) life: Nanos,
    pub(crate) invoked: Nanos,
    #[serde(default = "never", skip_serializing_if = "is_never")]
    pub(crate) returned: Nanos,
}

/// What a removal concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Target {
    Key(KeyId),
    Tag(TagId),
    All,
}

/// One removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Removal {
    pub(crate) target: Target,
    pub(crate) node: NodeId,
    pub(crate) outcome: Outcome,
    pub(crate) invoked: Nanos,
    #[serde(default = "never", skip_serializing_if = "is_never")]
    pub(crate) returned: Nanos,
}

/// One read that found a value. Reads that find none are never wrong, so they are only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Read {
    pub(crate) key: KeyId,
    /// Whose value it was, or [`FOREIGN`].
    #[serde(default = "foreign", skip_serializing_if = "is_foreign")]
    pub(crate) write: WriteId,
    pub(crate) node: NodeId,
    pub(crate) invoked: Nanos,
    pub(crate) returned: Nanos,
}

/// One life of a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Start {
    pub(crate) node: NodeId,
    /// Right before the process was made.
    pub(crate) spawned: Nanos,
    /// From when on no process before it answers: not earlier than `spawned`, and later where a new process is made
    /// while the one before it still ends.
    pub(crate) alone: Nanos,
}

/// A moment at which a node had brought everything accepted before to where the other nodes find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Flush {
    pub(crate) node: NodeId,
    pub(crate) invoked: Nanos,
    pub(crate) returned: Nanos,
    /// Whether it was a receipt that says that all nodes have carried it out.
    #[serde(default)]
    pub(crate) everywhere: bool,
}

/// Something done to the fleet, for whoever reads a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Note {
    pub(crate) at: Nanos,
    pub(crate) text: String,
}

/// Everything that one client, or all of them, saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) writes: Vec<Write>,
    pub(crate) removals: Vec<Removal>,
    pub(crate) reads: Vec<Read>,
    pub(crate) flushes: Vec<Flush>,
    pub(crate) starts: Vec<Start>,
    pub(crate) notes: Vec<Note>,
    /// Reads that found nothing.
    pub(crate) absent: u64,
    /// Reads that were not answered, because the connection broke.
    pub(crate) unanswered: u64,
    /// Reads that were answered with an error.
    pub(crate) errors: u64,
    /// The first of these errors.
    pub(crate) error: Option<String>,
}

fn never() -> Nanos {
    NEVER
}

fn is_never(moment: &Nanos) -> bool {
    *moment == NEVER
}

fn foreign() -> WriteId {
    FOREIGN
}

fn is_foreign(write: &WriteId) -> bool {
    *write == FOREIGN
}

// === impl Target ===

impl Target {
    /// Whether it concerns what this write stored.
    pub(crate) fn concerns(self, write: &Write) -> bool {
        match self {
            Self::Key(key) => key == write.key,
            Self::Tag(tag) => write.tag == Some(tag),
            Self::All => true,
        }
    }
}

// === impl History ===

impl History {
    /// Takes over what another client saw.
    pub(crate) fn absorb(&mut self, other: Self) {
        let Self { writes, removals, reads, flushes, starts, notes, absent, unanswered, errors, error } = other;
        self.writes.extend(writes);
        self.removals.extend(removals);
        self.reads.extend(reads);
        self.flushes.extend(flushes);
        self.starts.extend(starts);
        self.notes.extend(notes);
        self.absent += absent;
        self.unanswered += unanswered;
        self.errors += errors;
        self.error = self.error.take().or(error);
    }

    /// The write of this number. Writes lie in the order of their numbers, from 0 without a gap.
    pub(crate) fn write(&self, id: WriteId) -> Option<&Write> {
        self.writes.get(id as usize)
    }

    /// How many writes and how many removals were acknowledged as done.
    pub(crate) fn acknowledged(&self) -> (usize, usize) {
        let stored = self.writes.iter().filter(|write| write.outcome == Outcome::Ok).count();
        (stored, self.removals.iter().filter(|removal| removal.outcome == Outcome::Ok).count())
    }

    /// How many reads were answered, with a value or without.
    pub(crate) fn answered(&self) -> u64 {
        self.reads.len() as u64 + self.absent
    }
}
