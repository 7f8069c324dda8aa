//! What every part of a node can be asked ([`Component`]) and what every store below memory can do ([`Layer`]).
//!
//! Memory (L1) is a [`Component`] with a synchronous interface of its own: an L1 hit never awaits, boxes or allocates
//! for dispatch. The stores below it are held as `Vec<Arc<dyn Layer>>`, because a call there costs micro- to
//! milliseconds anyway.

pub mod disk;
pub mod followers;
pub mod lease;
pub mod log;
pub mod memory;
pub mod metered;
pub(crate) mod newest_removals;
mod observed;
pub mod redis;

use std::{
    fmt,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde::Serialize;

use self::log::Cursor;
pub use self::observed::{Observed, Verdict};
use crate::{
    clock::UnixMillis,
    context::OperationContext,
    entry::{Entry, Key, Position, TagSet},
    metrics::Histogram,
};

/// Which layer. Declaration order is the default read order; there is no other priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum LayerId {
    /// L1.
    Memory,
    /// L2.
    Redis,
    /// L3.
    Disk,
}

/// What a layer answers to a read. Every variant has one meaning, one metric and one effect.
#[must_use]
#[derive(Clone, Debug)]
pub enum LayerResult {
    /// Here it is, within its life, stale life included. The search stops if it is fresh; a stale one counts as a miss
    /// that found one.
    Hit(Entry),
    /// The layer could hold it and does not. The search goes on; a later hit is promoted into this layer.
    Miss,
    /// The layer takes no part now (disabled, breaker open). The search goes on; nothing is promoted here.
    NotHandled,
    /// Known to be gone: whatever is below is stale. The search stops.
    StopWithoutValue,
}

/// A read or write of one layer that failed. Reads treat it as a slow miss; the coordinator decides, once.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{layer} {kind}: {message}")]
pub struct LayerError {
    /// Where it happened.
    pub layer: LayerId,
    /// What code branches on and what becomes a metric label.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
    /// It is certain that nothing was done of what was asked.
    pub untouched: bool,
}

/// The kinds of failure of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ErrorKind {
    /// No answer within the deadline.
    Timeout,
    /// The store can not be reached or opened.
    Unreachable,
    /// What was read is not what was written.
    Corrupt,
    /// No space left.
    Full,
    /// The store refused the operation.
    Refused,
}

/// What a layer answers for many keys: for each of them, or for none.
pub type Answers = Result<Vec<Result<LayerResult, LayerError>>, LayerError>;

/// How well a part does its work, what is wrong, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// The verdict.
    pub state: HealthState,
    /// A stable, CamelCase word for machines, such as `DiskFull`; `AsExpected` when healthy.
    pub reason: &'static str,
    /// One sentence for people; empty when healthy.
    pub message: String,
    /// When `state` last changed.
    #[serde(rename = "sinceUnixMs")]
    pub since: UnixMillis,
}

/// The verdict on a part, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum HealthState {
    /// Works as it should.
    Healthy,
    /// Switched off by configuration.
    Disabled,
    /// Works, with a restriction that the reason names.
    Degraded,
    /// Does not work.
    Unavailable,
}

/// What a part has counted since it was opened. `None` and empty where a number makes no sense for the part.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Reads answered with a value.
    pub hits: u64,
    /// Reads answered without one.
    pub misses: u64,
    /// Misses that had a value past its expiry which may still be served.
    pub stale_hits: u64,
    /// Reads, writes and removals in all.
    pub operations: u64,
    /// Failures, by kind.
    pub errors: Vec<(ErrorKind, u64)>,
    /// How long its calls took, by kind of call; measured from outside.
    pub latency: Vec<Latency>,
    /// Entries held now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Bytes held now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes that may be held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Numbers that only this part has, by stable name.
    pub extras: Vec<(&'static str, u64)>,
}

/// How long the calls of one kind took, since the part was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Stable word for the kind of call, as in the metric label `operation`.
    pub operation: &'static str,
    /// Calls that were timed.
    pub count: u64,
    /// Nanoseconds that they took on average.
    pub mean_ns: u64,
    /// Nanoseconds that 99 of 100 did not exceed, by the buckets of the metric: at most 2.5 times too many.
    pub p99_ns: u64,
}

/// Anything that is opened with the node and must be closed with it.
#[async_trait]
pub trait Component: Send + Sync + 'static {
    /// Stable name, as in metrics and reports.
    fn name(&self) -> &'static str;

    /// What was last observed. Does no I/O: probes call it.
    fn health(&self) -> Health;

    /// What was counted. Does no I/O.
    fn stats(&self) -> Stats;

    /// Finishes accepted work, or gives up at `deadline`.
    async fn shutdown(&self, deadline: Instant);
}

/// One change on its way into a cold layer.
#[derive(Clone, Debug)]
pub enum Change {
    /// Store the entry, whose key it carries.
    Set(Entry),
    /// The same, unless others have changed the key since this position: then the key is forgotten. The entry was made of
    /// the one that was known then, or attempts since may have been carried out, and others may have seen them.
    Again(Entry, Position),
    /// Store the entry, which was read from another layer, unless this layer has one of its key already.
    Fill(Entry),
    /// Forget the key.
    Remove(Key),
    /// Forget all entries that carry these tags, by keeping the removal: whoever reads compares positions.
    RemoveTagged(TagRemoval),
    /// Keep how far the log was followed, for [`Layer::cursor`]. A layer that keeps no cursor passes it over.
    Follow(Box<Cursor>),
}

/// The removal of all entries with certain tags that are older than its position. Removals commute: they take effect by
/// position, in whatever order they arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRemoval {
    /// Which tags; without any it concerns every entry that has some.
    pub tags: TagSet,
    /// Whether an entry must carry one of them or all.
    pub matching: Matching,
    /// Entries with this position or an older one are gone.
    pub position: Position,
}

/// How many of several tags an entry must carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Matching {
    /// At least one.
    Any,
    /// Every one.
    All,
}

/// A store below memory. Every call may do I/O and respects `cx.deadline`.
#[async_trait]
pub trait Layer: Component {
    /// Which layer this is.
    fn id(&self) -> LayerId;

    /// Looks one key up.
    async fn get(&self, cx: &OperationContext, key: &Key) -> Result<LayerResult, LayerError>;

    /// What [`Layer::get`] would answer, if that is known without I/O and settles the read: a live value, that there is
    /// none, or, of the last layer that a read asks, a miss. Else nothing, and the key does not count as looked up.
    fn get_now(&self, _cx: &OperationContext, _key: &[u8], _is_last: bool) -> Option<LayerResult> {
        None
    }

    /// Whether [`Layer::get`] would answer at once that the layer takes no part.
    fn is_away(&self) -> bool {
        false
    }

    /// Looks many keys up in one round trip; answers each as [`Layer::get`] would, in the order asked.
    async fn get_many(&self, cx: &OperationContext, keys: &[Key]) -> Answers;

    /// So many keys were looked up without asking this layer, because what it holds can not be trusted now. For whoever
    /// counts what it answers.
    fn passed_over(&self, _keys: usize) {}

    /// Applies the changes in the order given, all or none. Once it returns, they survive a kill -9 of this process.
    /// Answers the position of each change, if the layer is where positions come from; else nothing.
    async fn apply(&self, cx: &OperationContext, changes: &[Change]) -> Result<Vec<Position>, LayerError>;

    /// Forgets everything. Once it returns, nothing stored before comes back.
    async fn clear(&self, cx: &OperationContext) -> Result<(), LayerError>;

    /// The removals of tagged entries that the layer has been told of and that may still matter. Of very many the older
    /// ones may be one that concerns every tagged entry.
    async fn tag_removals(&self, cx: &OperationContext) -> Result<Vec<TagRemoval>, LayerError>;

    /// The newest position that any change had that the layer was given; none if it does not keep that. Changes from now
    /// on need newer ones, or a removal by tag would spare what was written before the clock was set back.
    async fn newest_position(&self, _cx: &OperationContext) -> Result<Position, LayerError> {
        Ok(Position::NONE)
    }

    /// The cursor that the layer was given last; none if it never was, or keeps none.
    async fn cursor(&self) -> Result<Option<Cursor>, LayerError> {
        Ok(None)
    }
}

// === impl Latency ===

impl Latency {
    /// What the calls of this kind came to so far.
    pub fn of(operation: &'static str, calls: &Histogram) -> Self {
        let calls = calls.distribution();
        let nanos = |took: Duration| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        Self { operation, count: calls.count, mean_ns: nanos(calls.mean()), p99_ns: nanos(calls.quantile(0.99)) }
    }
}

// === impl LayerError ===

impl LayerError {
    /// A failure of which it is not certain that nothing was done.
    pub fn new(layer: LayerId, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { layer, kind, message: message.into(), untouched: false }
    }
}

// === impl LayerResult ===

impl LayerResult {
    /// Stable word for spans.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Hit(_) => "hit",
            Self::Miss => "miss",
            Self::NotHandled => "not_handled",
            Self::StopWithoutValue => "stopped",
        }
    }
}

// === impl Change ===

impl Change {
    /// The key that changes; empty, which is no key, if it is not about one.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Set(entry) | Self::Again(entry, _) | Self::Fill(entry) => entry.key(),
            Self::Remove(key) => key.as_bytes(),
            Self::RemoveTagged(_) | Self::Follow(_) => &[],
        }
    }

    /// When it was made, if tags are concerned; nothing else is compared with positions.
    pub fn position(&self) -> Position {
        match self {
            Self::Set(entry) | Self::Again(entry, _) | Self::Fill(entry) => entry.position(),
            Self::Remove(_) | Self::Follow(_) => Position::NONE,
            Self::RemoveTagged(removal) => removal.position,
        }
    }

    /// Bytes of key and value, or of the tags.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Set(entry) | Self::Again(entry, _) | Self::Fill(entry) => entry.bytes(),
            Self::Remove(key) => key.as_bytes().len() as u64,
            Self::RemoveTagged(removal) => removal.tags.tags().packed().len() as u64,
            Self::Follow(_) => 0,
        }
    }
}

// === impl LayerId ===

impl LayerId {
    /// The value of the metric label `layer`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Disk => "disk",
        }
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

// === impl HealthState ===

impl HealthState {
    /// Every state, from best to worst.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Disabled, Self::Degraded, Self::Unavailable];

    /// The value of the metric label `state`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Disabled => "disabled",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
        }
    }
}

// === impl ErrorKind ===

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Timeout, Self::Unreachable, Self::Corrupt, Self::Full, Self::Refused];

    /// The value of the metric label `kind`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Corrupt => "corrupt",
            Self::Full => "full",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
