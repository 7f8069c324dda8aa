//! The invalidation log, as the layer that keeps it tells it: what changed, in which order, and how sure that is.
//!
//! The log is a Redis stream. Its ids are the [`Position`]s of a cache: given by the store, never by a node's clock.

use std::{str::FromStr, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::{LayerError, Matching, TagRemoval};
use crate::{
    clock::Uptime,
    entry::{Key, Position, TagSet, Tags},
};

/// Processes of one node that a cursor remembers, should they end one after the other before they have caught up. Records
/// of older ones count as those of another node, which costs a miss.
const ORIGINS_MAX: usize = 16;

/// How far a node has followed the log, and by what it recognizes that it is still the same log. Kept inside L3 with the
/// effects of what it covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The last record that has taken effect.
    pub position: Position,
    /// How many records had been added to the log up to there.
    pub added: u64,
    /// The random token that was made with the log.
    pub epoch: String,
    /// The server's replication id, a new one for each history, of the newest history that is known to go on from there.
    pub history: String,
    /// When the node last knew all changes; none if that is not known.
    pub confirmed: Option<Uptime>,
    /// The newest record of this node, if its last process has ended with everything told.
    pub newest: Option<Position>,
    /// Processes of this node whose records may come after the position, the newest last; at most [`ORIGINS_MAX`].
    pub origins: Vec<String>,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place.
    pub position: Position,
    /// Who wrote it.
    pub author: Author,
    /// What changed.
    pub what: Recorded,
}

/// Who wrote a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// This process.
    Own,
    /// A process before it, on the same disk. What that one wrote the disk has, or the journal said that it has not.
    Before,
    /// Another node.
    Other,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The entry of this key was stored, replaced or removed.
    Key(Key),
    /// The entries with these tags were removed.
    Tagged(TagRemoval),
    /// Everything was removed.
    Cleared,
    /// Somebody waits until every node has come this far.
    Awaited,
    /// A node found that records were lost: nothing of before is certain. What this version does not know counts as that.
    Uncertain,
}

/// What one look at the log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What follows the cursor, in order, up to a limit.
    pub records: Vec<Record>,
    /// Whether that was all.
    pub is_all: bool,
    /// The log at that moment.
    pub state: LogState,
    /// Whether the record that the cursor stands on is still there.
    pub is_anchored: bool,
    /// A record that this node had written and had confirmed to it is not where it belongs, or the log ends before it.
    pub lost_own: bool,
}

/// The log at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The token of the log; none if there is no log.
    pub epoch: Option<String>,
    /// The id of the newest record, also if it is trimmed.
    pub last: Position,
    /// Records added since the log was made.
    pub added: u64,
    /// Records that are there now; the others were trimmed, the oldest first.
    pub length: u64,
    /// Whether the server is a master: a replica may be behind without knowing.
    pub is_master: bool,
    /// The server's replication id, another one after each restart and each change of the master.
    pub history: String,
}

/// Who follows the log, as far as it is known where the log is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The time there.
    pub now_ms: u64,
    /// Whether it is settled how the log goes on under the server's present history: that it does, or that it was begun
    /// anew.
    pub is_settled: bool,
    /// Since when, by that clock, every node that follows the log is in the list within a moment. None if not even that
    /// is known; what was said before may be lost.
    pub whole_since_ms: Option<u64>,
    /// The nodes, by name.
    pub members: Vec<Member>,
}

/// A node that follows the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the node.
    pub name: String,
    /// When it last said so, by the clock where the log is.
    pub seen_ms: u64,
    /// The history under which it has found all records that it knows of.
    pub history: String,
    /// The position up to which all records have taken effect there.
    pub position: Position,
    /// For how long it trusts what it holds without another look at the log.
    pub trusts_for: Duration,
}

/// Where the log can be read. One reader at a time.
#[async_trait]
pub trait Log: Send + 'static {
    /// What tells the records of this process from all others; one word.
    fn origin(&self) -> &str;

    /// From here on what is stored beside the log counts if the server has this history; with none, nothing counts.
    fn trust(&mut self, history: Option<&str>);

    /// Takes note of the processes before this one, and of the newest record that they are known to have written.
    fn know(&mut self, before: &[String], newest: Position);

    /// Returns once there may be a record after this one, or after half a second. May return early.
    ///
    /// # Errors
    /// [`LayerError`] if the log can not be reached.
    async fn wait(&mut self, after: Position) -> Result<(), LayerError>;

    /// What follows this record, and the state of the log at the same moment. After [`Position::LAST`] there is nothing:
    /// whoever asks for that begins at the head, and misses no record of before.
    ///
    /// # Errors
    /// [`LayerError`] if the log can not be read.
    async fn look(&mut self, after: Position) -> Result<Look, LayerError>;

    /// Makes the log, or begins it anew with a record that makes everything uncertain, above `seen`, the newest position
    /// known. Does nothing if another node has done that already for this history of the server, unless this node knows
    /// that records were `lost` since.
    ///
    /// # Errors
    /// [`LayerError`] if the log can not be written.
    async fn begin(&mut self, history: &str, seen: Position, lost: bool) -> Result<(), LayerError>;

    /// Has what follows begin with the next millisecond, unless it does already.
    ///
    /// # Errors
    /// [`LayerError`] if the log can not be written.
    async fn turn(&mut self, used_up: Position) -> Result<(), LayerError>;

    /// Notes that the log goes on whole although the server's history is another now.
    ///
    /// # Errors
    /// [`LayerError`] if that can not be noted.
    async fn go_on(&mut self, earlier: &str, history: &str) -> Result<(), LayerError>;

    /// Says that this node has found all records that it knows of under this history, that all up to the position have
    /// taken effect, and for how long the node trusts what it holds without another look.
    ///
    /// # Errors
    /// [`LayerError`] if that can not be noted; [`Full`](super::ErrorKind::Full) if nobody can note or change anything now.
    async fn beat(&mut self, history: &str, position: Position, trusts_for: Duration) -> Result<(), LayerError>;

    /// Who follows the log, and whether it is settled how it goes on under this history.
    ///
    /// # Errors
    /// [`LayerError`] if it can not be read.
    async fn census(&mut self, history: &str) -> Result<Census, LayerError>;
}

/// The text is no cursor that this version wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no cursor")]
pub struct CursorError;

// === impl Cursor ===

impl Cursor {
    /// The end of the log.
    pub fn at_head(state: &LogState) -> Self {
        Self {
            position: state.last,
            added: state.added,
            epoch: state.epoch.clone().unwrap_or_default(),
            history: state.history.clone(),
            confirmed: None,
            newest: None,
            origins: Vec::new(),
        }
    }

    /// Takes note of a process that goes on from here.
    pub fn add_origin(&mut self, origin: &str) {
        if self.origins.len() == ORIGINS_MAX {
            self.origins.remove(0);
        }
        self.origins.push(origin.to_owned());
    }

    /// As text, for a layer to keep.
    pub fn to_text(&self) -> String {
        let Self { position, added, epoch, history, confirmed, newest, origins } = self;
        let (boot, ms) = confirmed.as_ref().map_or(("-", 0), |confirmed| (confirmed.boot(), confirmed.ms()));
        let origins = origins.join(",");
        let newest = newest.map_or_else(|| "-".to_owned(), |newest| newest.to_bits().to_string());
        format!("2 {} {added} {epoch} {history} {boot} {ms} {newest} {origins}", position.to_bits())
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let words: Vec<&str> = text.split(' ').collect();
        let ["2", position, added, epoch, history, boot, ms, newest, origins] = words[..] else {
            return Err(CursorError);
        };
        let number = |text: &str| text.parse::<u64>().map_err(|_| CursorError);
        Ok(Self {
            position: Position::from_bits(number(position)?),
            added: number(added)?,
            epoch: epoch.to_owned(),
            history: history.to_owned(),
            confirmed: if boot == "-" { None } else { Uptime::from_parts(boot, number(ms)?) },
            newest: if newest == "-" { None } else { Some(Position::from_bits(number(newest)?)) },
            origins: origins.split(',').filter(|origin| !origin.is_empty()).map(str::to_owned).collect(),
        })
    }
}

// === impl Recorded ===

impl Recorded {
    /// Kinds of records, as they are written.
    pub const SET: &str = "s";
    /// A key was removed.
    pub const REMOVE: &str = "r";
    /// Tags were removed.
    pub const TAGS: &str = "t";
    /// Everything was removed.
    pub const CLEAR: &str = "c";
    /// Somebody waits until every node has come this far.
    pub const AWAIT: &str = "a";
    /// Records were lost.
    pub const GAP: &str = "g";

    /// From the kind and the subject of a record.
    pub fn parse(kind: &[u8], what: Bytes, position: Position) -> Self {
        let known = match kind {
            b"s" | b"r" => Key::new(what).ok().map(Self::Key),
            b"t" => parse_tags(&what, position).map(Self::Tagged),
            b"c" => Some(Self::Cleared),
            b"a" => Some(Self::Awaited),
            _ => None,
        };
        known.unwrap_or(Self::Uncertain)
    }
}

/// The subject of a record of tags.
pub fn write_tags(removal: &TagRemoval) -> Vec<u8> {
    let matching = match removal.matching {
        Matching::Any => b"1",
        Matching::All => b"*",
    };
    [matching, removal.tags.tags().packed()].concat()
}

fn parse_tags(what: &[u8], position: Position) -> Option<TagRemoval> {
    let (matching, packed) = what.split_first()?;
    let matching = match matching {
        b'1' => Matching::Any,
        b'*' => Matching::All,
        _ => return None,
    };
    let mut tags = TagSet::default();
    Tags::from_packed(packed).ok()?.iter().try_for_each(|tag| tags.add(tag)).ok()?;
    Some(TagRemoval { tags, matching, position })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_reads_back_as_itself_and_nothing_else_does() {
        let cursor = Cursor {
            position: Position::from_parts(1_800_000_000_000, 7),
            added: 12,
            epoch: "e5".to_owned(),
            history: "a".repeat(40),
            confirmed: Uptime::from_parts("b-1", 99),
            newest: Some(Position::from_parts(1_800_000_000_000, 9)),
            origins: vec!["o7".to_owned(), "o8".to_owned()],
        };
        assert_eq!(cursor.to_text().parse(), Ok(cursor.clone()));
        let unconfirmed = Cursor { confirmed: None, newest: None, origins: Vec::new(), ..cursor };
        assert_eq!(unconfirmed.to_text().parse(), Ok(unconfirmed));
        for text in [
            "",
            "2 2 3 e h",
            "1 1 1 e h b 1 o",
            "2 x 1 e h b 1 - o",
            "2 1 1 e h b x - o",
            "2 1 1 e h b 1 z o",
            "2 1 1 e h b 1 - o 1",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text}");
        }
    }

    #[test]
    fn records_of_tags_survive_whatever_bytes_their_tags_have() {
        for matching in [Matching::Any, Matching::All] {
            let mut tags = TagSet::default();
            tags.add(b"a\0 b").unwrap();
            tags.add(b"\xff").unwrap();
            let removal = TagRemoval { tags, matching, position: Position::from_parts(5, 1) };
            let parsed = Recorded::parse(b"t", write_tags(&removal).into(), removal.position);
            assert_eq!(parsed, Recorded::Tagged(removal));
        }
    }

    #[test]
    fn what_is_not_understood_makes_everything_uncertain() {
        let position = Position::from_parts(5, 1);
        for (kind, what) in [("g", ""), ("z", "k"), ("s", ""), ("t", "1x"), ("t", "?"), ("t", "")] {
            assert_eq!(Recorded::parse(kind.as_bytes(), what.into(), position), Recorded::Uncertain, "{kind} {what}");
        }
    }
}
