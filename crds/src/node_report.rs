//! What a cache node says about itself at `/v1/layers`: written by the node, read by the operator, one struct for both.
//!
//! An operator reads reports of older and newer nodes during an upgrade. So every field has a default, unknown fields
//! are ignored, and unknown words become `Unknown` instead of failing the whole report.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer of `GET /v1/layers` on a node's admin port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeReport {
    /// Name of the node, which is the name of its pod.
    pub node: String,
    /// Name of the cache it belongs to.
    pub cache: String,
    /// UID of the cache's resource. A report with another UID is not about this cache.
    pub cache_uid: String,
    /// Version of the program, such as `0.1.0`.
    pub version: String,
    /// `revision` of the configuration file that the node runs.
    pub config_revision: String,
    /// Whether clients are served: the same answer as `/readyz`.
    pub ready: bool,
    /// What `ready` waits for, in words; empty when ready.
    pub waiting_for: Vec<String>,
    /// One verdict on the node: the worst of its parts, but `Degraded` at worst while the node serves, because memory
    /// does so whatever else is out; `Unavailable` only while it can not serve.
    pub health: HealthReport,
    /// The node as a whole: each read counts once, as a hit if it got a value from whatever part, else as a miss.
    pub stats: StatsReport,
    /// When the node was started, in milliseconds since 1970-01-01T00:00:00Z.
    pub started_unix_ms: u64,
    /// Every part, also those that configuration has switched off, in read order. A part that is not open yet has no
    /// entry here and is named in `waiting_for`.
    pub layers: Vec<LayerReport>,
}

/// One part of a node: how well it works and what it has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LayerReport {
    /// Which part.
    pub name: LayerName,
    /// How well it does its work.
    pub health: HealthReport,
    /// What it has counted since the node was started.
    pub stats: StatsReport,
}

/// The parts of a node, in read order unless the node's configuration swaps L2 and L3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LayerName {
    /// L1.
    Memory,
    /// Which tagged entries were removed.
    TagIndex,
    /// Writes accepted and not yet in the layers below memory.
    WriteQueue,
    /// How far the changes of other nodes are known.
    Backplane,
    /// L2.
    Redis,
    /// L3.
    Disk,
    /// A part that this version of the reader does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// How well a part does its work, what is wrong, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthReport {
    /// The verdict.
    pub state: HealthState,
    /// A stable, CamelCase word for machines, such as `DiskFull`; `AsExpected` when healthy.
    pub reason: String,
    /// One sentence for people; empty when healthy.
    pub message: String,
    /// When `state` last changed, in milliseconds since 1970-01-01T00:00:00Z.
    pub since_unix_ms: u64,
}

/// The verdict on a part, from best to worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HealthState {
    /// Works as it should.
    Healthy,
    /// Switched off by configuration.
    Disabled,
    /// Works, with a restriction that the reason names.
    Degraded,
    /// Does not work.
    Unavailable,
    /// The node could not be asked, or answered with a word that this version of the reader does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What a part has counted since the node was started. Absent where a number makes no sense for the part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatsReport {
    /// Reads answered with a value.
    pub hits: u64,
    /// Reads answered without one.
    pub misses: u64,
    /// Misses that had a value past its expiry which may still be served; of the node, hits that got such a value.
    pub stale_hits: u64,
    /// Reads, writes and removals in all.
    pub operations: u64,
    /// Failures by kind: `timeout`, `unreachable`, `corrupt`, `full`, `refused`.
    pub errors: BTreeMap<String, u64>,
    /// How long calls took, by kind of call, such as `get` or `apply`.
    pub latency: BTreeMap<String, LatencyReport>,
    /// Entries held now; for the write queue, writes that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Bytes held now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes that may be held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Numbers that only this part has, by stable name, such as `evictions` or `oldestMs`.
    pub extras: BTreeMap<String, u64>,
}

/// How long the calls of one kind took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LatencyReport {
    /// Calls that were timed. In memory those of one operation in 64 are.
    pub count: u64,
    /// Nanoseconds that they took on average.
    pub mean_ns: u64,
    /// Nanoseconds that 99 of 100 did not exceed, by the buckets of the metric: at most 2.5 times too many.
    pub p99_ns: u64,
}

// === impl NodeReport ===

impl NodeReport {
    /// What the report says about one part; `None` if it says nothing.
    pub fn layer(&self, name: LayerName) -> Option<&LayerReport> {
        self.layers.iter().find(|layer| layer.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_documented() {
        let report = NodeReport {
            node: "sessions-0".to_owned(),
            layers: vec![LayerReport {
                name: LayerName::WriteQueue,
                health: HealthReport { state: HealthState::Degraded, since_unix_ms: 5, ..HealthReport::default() },
                stats: StatsReport { capacity_bytes: Some(7), ..StatsReport::default() },
            }],
            ..NodeReport::default()
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["configRevision"], "");
        assert_eq!(json["layers"][0]["name"], "WriteQueue");
        assert_eq!(json["layers"][0]["health"]["state"], "Degraded");
        assert_eq!(json["layers"][0]["health"]["sinceUnixMs"], 5);
        assert_eq!(json["layers"][0]["stats"]["capacityBytes"], 7);
        assert_eq!(json["layers"][0]["stats"].get("bytes"), None);
        assert_eq!(serde_json::from_value::<NodeReport>(json).unwrap(), report);
    }

    #[test]
    fn a_report_of_another_version_is_still_read() {
        let json = r#"{"node": "a", "ready": true, "mood": "fine", "layers": [
            {"name": "Quantum", "health": {"state": "Entangled", "reason": "NotLookedAt"}},
            {"name": "Disk", "health": {"state": "Healthy"}}]}"#;
        let report: NodeReport = serde_json::from_str(json).unwrap();
        assert!(report.ready);
        assert_eq!(report.layers[0].name, LayerName::Unknown);
        assert_eq!(report.layers[0].health.state, HealthState::Unknown);
        assert_eq!(report.layer(LayerName::Disk).unwrap().health.state, HealthState::Healthy);
        assert_eq!(report.layer(LayerName::Memory), None);
    }
}
