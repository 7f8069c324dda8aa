//! What is told of single operations, in the spec: spans for a collector, and the slow log.

use std::ops::RangeInclusive;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};
use crate::{
    node_config::{self, limits},
    quantity::HumanDuration,
};

/// Longest slow log: one of full length stays a small part of what the process itself is given.
pub(super) const SLOW_LOG_LENGTH: RangeInclusive<u32> = *limits::SLOW_LOG_LENGTH.start()..=1_000;
/// Samples in a million operations: none to all.
pub(super) const SAMPLES_PER_MILLION: RangeInclusive<u32> = 0..=1_000_000;

/// Spans of operations that leave memory.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// The collector that spans are sent to, by OTLP over HTTP. Default: none, and no spans are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Otlp>,
}

/// A collector that speaks OpenTelemetry's protocol over HTTP.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Otlp {
    /// Where it listens, such as `http://collector.observability.svc:4318`; only `http`. A collector that does not answer
    /// slows nothing down. A change restarts the nodes one at a time.
    #[schemars(schema_with = "schema::otlp_endpoint")]
    pub endpoint: String,

    /// Of a million operations that leave memory, how many are sampled, 0 to 1000000. Default 10000, which is 1 %. A change
    /// restarts the nodes one at a time.
    #[serde(default = "defaults::samples_per_million")]
    #[schemars(schema_with = "schema::samples_per_million")]
    pub samples_per_million: u32,

    /// The Secret with headers for the collector. Default: none are sent. The pods mount it, the operator never reads it;
    /// what changes in the Secret holds from a node's next start on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_secret_ref: Option<HeadersSecret>,
}

/// The Secret with headers, in the namespace of the cache.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeadersSecret {
    /// Name of the Secret. A change restarts the nodes one at a time.
    #[schemars(schema_with = "schema::object_name")]
    pub name: String,

    /// Its key with the headers, one `name: value` a line. Default `headers`. A change restarts the nodes one at a time.
    #[serde(default = "defaults::headers_key")]
    #[schemars(schema_with = "schema::secret_key")]
    pub key: String,
}

/// The slow log: commands that took long, for `SLOWLOG GET` on each node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlowLog {
    /// Commands that take at least so long are kept. A duration such as `10ms`, 0s (every command) to 1h. Default 10ms. A
    /// change restarts the nodes one at a time.
    #[serde(default = "defaults::slow_log_threshold")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.slowLog.threshold", &limits::SLOW_LOG_THRESHOLD))]
    pub threshold: HumanDuration,

    /// How many are kept on each node, 0 (none) to 1000, each of at most 5 KiB; the oldest gives way. Default 128. A change
    /// restarts the nodes one at a time.
    #[serde(default = "defaults::slow_log_length")]
    #[schemars(schema_with = "schema::slow_log_length")]
    pub length_max: u32,
}

// === impl SlowLog ===

impl Default for SlowLog {
    fn default() -> Self {
        Self { threshold: defaults::slow_log_threshold(), length_max: defaults::slow_log_length() }
    }
}

/// The defaults of the schema are the cache node's own.
mod defaults {
    use super::{HumanDuration, node_config};

    pub(super) fn samples_per_million() -> u32 {
        node_config::Otlp::default().sample_ratio.0
    }

    pub(super) fn headers_key() -> String {
        "headers".to_owned()
    }

    pub(super) fn slow_log_threshold() -> HumanDuration {
        node_config::SlowLog::default().threshold
    }

    pub(super) fn slow_log_length() -> u32 {
        node_config::SlowLog::default().length_max
    }
}
