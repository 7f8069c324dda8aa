//! The section `backplane`.

use serde::{Deserialize, Serialize};

use super::seconds;
use crate::quantity::HumanDuration;

/// The invalidation log, through which the nodes of a cache know of each other's changes. It lies in L2, and is on when
/// L2 is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Backplane {
    /// How long a node that can not confirm that it knows all changes goes on as before; then it is fenced. Default 3s,
    /// at least 1s, at most 1h.
    pub max_staleness: HumanDuration,
    /// What a fenced node does with what memory and disk hold. Default `ServeStale`.
    pub when_disconnected: WhenDisconnected,
    /// For how long after `maxStaleness` a fenced node serves what it holds, with `whenDisconnected: ServeStale`. Default
    /// 1m, at least 1s, at most 24h.
    pub serve_stale_for: HumanDuration,
    /// Records of the log that Redis keeps, about 100 bytes and a key each; a node that was away for longer starts cold.
    /// Default 1000000, at least 1000, at most 100000000.
    pub log_records: u32,
    /// What becomes of a removal of which Redis can not be told. Default `Queue`.
    pub outbox: Outbox,
}

/// What becomes of a removal of which Redis can not be told. Either way it holds on the node, and Redis is told once it
/// is back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outbox {
    /// The client is told that it is queued.
    #[default]
    Queue,
    /// The client is told an error.
    Refuse,
}

/// What a fenced node does with what memory and disk hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum WhenDisconnected {
    /// It counts as missing.
    Miss,
    /// It is served for `serveStaleFor`, and counted as stale; then it counts as missing.
    #[default]
    ServeStale,
}

// === defaults ===

impl Default for Backplane {
    fn default() -> Self {
        Self {
            max_staleness: seconds(3),
            when_disconnected: WhenDisconnected::default(),
            serve_stale_for: seconds(60),
            log_records: 1_000_000,
            outbox: Outbox::default(),
        }
    }
}
