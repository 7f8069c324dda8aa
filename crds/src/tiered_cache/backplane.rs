//! How nodes learn of each other's changes, in the spec.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};
use crate::{
    node_config::{self, Outbox, WhenDisconnected, limits},
    quantity::{ByteSize, HumanDuration},
};

/// What a record of the log takes in Redis, with a key of up to a hundred bytes: measured on Redis 7.0 with
/// `MEMORY USAGE`, a record takes thirty bytes, its key, and the name of the node that wrote it.
pub const LOG_RECORD_BYTES: u64 = 128;
/// The log takes at most one part in so many of the memory of a managed Redis: it never gives way, and entries must have
/// room beside it.
pub const MANAGED_LOG_SHARE: u64 = 2;

/// The invalidation log, through which the nodes of a cache know of each other's changes. It lies in Redis.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backplane {
    /// How long a node that can not confirm that it knows all changes goes on as before; then it is fenced: it does not
    /// trust what its memory and disk hold. A duration such as `3s`, 1s to 1h. Default 3s. A change restarts the nodes one
    /// at a time.
    #[serde(default = "defaults::max_staleness")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.backplane.maxStaleness", &limits::MAX_STALENESS))]
    pub max_staleness: HumanDuration,

    /// What a fenced node does with what its memory and disk hold. `ServeStale` (default): it is served for at most
    /// `serveStaleFor`, counted as stale, and then counts as missing. `Miss`: it counts as missing at once. A change
    /// restarts the nodes one at a time.
    #[serde(default = "defaults::when_disconnected")]
    #[schemars(schema_with = "schema::when_disconnected")]
    pub when_disconnected: WhenDisconnected,

    /// For how long a fenced node serves what it holds, with `whenDisconnected: ServeStale`. A duration such as `60s`, 1s
    /// to 24h. Default 1m. A change restarts the nodes one at a time.
    #[serde(default = "defaults::serve_stale_for")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.backplane.serveStaleFor", &limits::SERVE_STALE_FOR))]
    pub serve_stale_for: HumanDuration,

    /// What a client is told whose removal Redis can not be told of: `Queue` (default) answers `QUEUED`, `Refuse` an error
    /// that begins with `UNAVAILABLE` and says why. Either way the removal holds on the node that took it, is kept (on its
    /// disk, if it has one), and Redis and the other nodes are told once Redis is back. A change restarts the nodes one at
    /// a time.
    #[serde(default = "defaults::outbox")]
    #[schemars(schema_with = "schema::outbox")]
    pub outbox: Outbox,

    /// Records of the log that Redis keeps, 1000 to 100000000: a node that was away while more were written starts cold.
    /// Default 1000000; in a managed Redis at most so many as take half of `redis.managed.memory`, of 128 bytes each,
    /// because the log never gives way. A change restarts the nodes one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::log_records")]
    pub log_records: Option<u32>,
}

// === impl Backplane ===

impl Backplane {
    /// The records that are kept in a managed Redis with this memory if the spec does not say.
    pub fn log_records_within(memory: ByteSize) -> u32 {
        let room = memory.0 / MANAGED_LOG_SHARE / LOG_RECORD_BYTES;
        let usual = node_config::Backplane::default().log_records;
        u32::try_from(room).unwrap_or(usual).clamp(*limits::LOG_RECORDS.start(), usual)
    }
}

impl Default for Backplane {
    fn default() -> Self {
        Self {
            max_staleness: defaults::max_staleness(),
            when_disconnected: defaults::when_disconnected(),
            serve_stale_for: defaults::serve_stale_for(),
            outbox: defaults::outbox(),
            log_records: None,
        }
    }
}

/// The defaults of the schema.
mod defaults {
    use super::{HumanDuration, Outbox, WhenDisconnected, node_config};

    pub(super) fn max_staleness() -> HumanDuration {
        node_config::Backplane::default().max_staleness
    }

    pub(super) fn when_disconnected() -> WhenDisconnected {
        WhenDisconnected::ServeStale
    }

    pub(super) fn serve_stale_for() -> HumanDuration {
        node_config::Backplane::default().serve_stale_for
    }

    pub(super) fn outbox() -> Outbox {
        node_config::Backplane::default().outbox
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_takes_at_most_half_of_a_managed_redis() {
        let within = |mebibytes| Backplane::log_records_within(ByteSize::mebibytes(mebibytes));
        assert_eq!((within(256), within(1 << 20)), (1_000_000, 1_000_000));
        assert_eq!(within(64), 262_144);
        assert_eq!(u64::from(within(16)) * LOG_RECORD_BYTES, 8 << 20);
        assert_eq!(Backplane::log_records_within(ByteSize(1)), 1000, "what the node accepts");
    }
}
