//! Whether what a look at the log found follows what this node knows.

use crate::layer::log::{Cursor, Look};

/// Why a node can not know all that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gap {
    /// The node was away for longer than the log keeps records.
    Trimmed,
    /// It is another log: Redis was emptied.
    EpochChanged,
    /// The log is shorter than it was.
    RolledBack,
    /// Redis was restarted, or a replica took over, and not every node has found all that it had written.
    HistoryChanged,
    /// A record of this node was confirmed and is not in the log.
    LostWrites,
    /// Another node has found that records were lost.
    Announced,
}

// === impl Gap ===

impl Gap {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Trimmed, Self::EpochChanged, Self::RolledBack, Self::HistoryChanged, Self::LostWrites, Self::Announced];

    /// Stable word for health and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::EpochChanged => "epoch_changed",
            Self::RolledBack => "rolled_back",
            Self::HistoryChanged => "history_changed",
            Self::LostWrites => "lost_writes",
            Self::Announced => "announced",
        }
    }

    /// What happened, for people.
    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Self::Trimmed => "the node was away for longer than the log keeps records",
            Self::EpochChanged => "redis was emptied",
            Self::RolledBack => "the log is shorter than it was",
            Self::HistoryChanged => "redis was restarted, or a replica took over, and it may lack records",
            Self::LostWrites => "a record that redis had confirmed is gone",
            Self::Announced => "another node found that records were lost",
        }
    }

    /// Whether the store itself may hold entries that were removed, so that all nodes must be told.
    pub(super) const fn concerns_all(self) -> bool {
        !matches!(self, Self::Trimmed | Self::Announced)
    }

    /// Whether this node knows of a loss that another one, which had less, may not see.
    pub(super) const fn is_certain(self) -> bool {
        matches!(self, Self::LostWrites | Self::RolledBack)
    }
}

/// How far the log is followed after this look. It may be that of a server with another history, as far as this node can
/// tell whole; whether it is, all nodes have to say.
///
/// # Errors
/// [`Gap`] unless it is the same log, nothing of it was lost, and no record between the cursor and the look is missing.
pub(super) fn judge(cursor: &Cursor, look: &Look) -> Result<Cursor, Gap> {
    let Look { records, is_all, state, is_anchored, lost_own } = look;
    if state.epoch.as_deref() != Some(&cursor.epoch) {
        return Err(Gap::EpochChanged);
    }
    if state.last < cursor.position || state.added < cursor.added {
        return Err(Gap::RolledBack);
    }
    // The record after the cursor, were it there, must not be among those that were trimmed.
    if state.added - state.length > cursor.added && state.added > cursor.added {
        // Under another history the store may lack more than this node missed.
        return Err(if state.history == cursor.history { Gap::Trimmed } else { Gap::HistoryChanged });
    }
    if state.history != cursor.history && !is_anchored {
        return Err(Gap::HistoryChanged);
    }
    let added = cursor.added + records.len() as u64;
    if *is_all && added != state.added {
        return Err(Gap::RolledBack);
    }
    if *lost_own {
        return Err(Gap::LostWrites);
    }
    let last = records.last().map_or(cursor.position, |record| record.position);
    Ok(Cursor { position: if *is_all { state.last } else { last }, added, ..cursor.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        entry::Position,
        layer::log::{Author, LogState, Record, Recorded},
    };

    fn at(sequence: u64) -> Position {
        Position::from_parts(1_800_000_000_000, sequence)
    }

    fn cursor() -> Cursor {
        Cursor { position: at(10), added: 10, epoch: "e".to_owned(), history: "h1".to_owned(), ..Cursor::default() }
    }

    /// A look that finds the records up to `last`, of a log that was never trimmed.
    fn look(last: u64) -> Look {
        let record = |sequence| Record { position: at(sequence), author: Author::Other, what: Recorded::Cleared };
        let state = LogState {
            epoch: Some("e".to_owned()),
            last: at(last),
            added: last,
            length: last,
            is_master: true,
            history: "h1".to_owned(),
        };
        Look { records: (11..=last).map(record).collect(), is_all: true, state, is_anchored: true, lost_own: false }
    }

    #[test]
    fn what_follows_is_accepted() {
        for last in [10, 11, 15] {
            let next = judge(&cursor(), &look(last)).unwrap();
            assert_eq!((next.position, next.added), (at(last), last));
        }
        let mut part = look(15);
        part.records.truncate(3);
        part.is_all = false;
        assert_eq!(judge(&cursor(), &part).unwrap().position, at(13));
    }

    #[test]
    fn another_log_or_none_is_a_gap() {
        for epoch in [None, Some("other".to_owned())] {
            let mut look = look(12);
            look.state.epoch = epoch;
            assert_eq!(judge(&cursor(), &look), Err(Gap::EpochChanged));
        }
    }

    #[test]
    fn a_shorter_log_is_a_gap_also_if_it_has_grown_again() {
        let mut shorter = look(10);
        shorter.state.last = at(9);
        assert_eq!(judge(&cursor(), &shorter), Err(Gap::RolledBack));
        let mut fewer = look(10);
        (fewer.state.added, fewer.state.length) = (9, 9);
        assert_eq!(judge(&cursor(), &fewer), Err(Gap::RolledBack));
        // It lost two and got three others, so that one is found where one more than before should be three.
        let mut grown = look(13);
        grown.records.remove(0);
        assert_eq!(judge(&cursor(), &grown), Err(Gap::RolledBack));
    }

    #[test]
    fn a_record_that_was_trimmed_before_it_was_read_is_a_gap_and_one_that_was_read_is_not() {
        let mut just = look(15);
        just.state.length = 5;
        assert!(judge(&cursor(), &just).is_ok());
        let mut missed = look(15);
        missed.state.length = 4;
        missed.records.remove(0);
        assert_eq!(judge(&cursor(), &missed), Err(Gap::Trimmed));
        let mut all_read = look(10);
        all_read.state.length = 0;
        assert!(judge(&cursor(), &all_read).is_ok(), "nothing after the cursor was there to be missed");
        missed.is_all = false;
        assert_eq!(judge(&cursor(), &missed), Err(Gap::Trimmed), "also in the middle of catching up");
        missed.state.history = "h2".to_owned();
        assert_eq!(judge(&cursor(), &missed), Err(Gap::HistoryChanged), "the store may lack more than this node");
    }

    #[test]
    fn another_history_is_accepted_only_with_all_that_was_seen() {
        let mut restarted = look(12);
        restarted.state.history = "h2".to_owned();
        let next = judge(&cursor(), &restarted).unwrap();
        assert_eq!((next.position, next.history.as_str()), (at(12), "h1"), "whether it goes on, all have to say");
        let fewer = Look { records: restarted.records[1..].to_vec(), ..restarted.clone() };
        assert_eq!(judge(&cursor(), &fewer), Err(Gap::RolledBack));
        restarted.is_anchored = false;
        assert_eq!(judge(&cursor(), &restarted), Err(Gap::HistoryChanged));
    }

    #[test]
    fn a_lost_record_of_this_node_is_a_gap() {
        let lost = Look { lost_own: true, ..look(12) };
        assert_eq!(judge(&cursor(), &lost), Err(Gap::LostWrites));
    }
}
