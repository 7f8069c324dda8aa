//! Lives of entries in the spec.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};
use crate::{
    node_config::{self, limits},
    quantity::HumanDuration,
};

/// Lives of entries: jitter, stale values, negative entries.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Freshness {
    /// By how much of its life a value may expire earlier than asked, in percent, 0 to 50, so that values stored together
    /// do not expire together. Default 0, as Redis. A change restarts the nodes one at a time.
    #[serde(default = "defaults::ttl_jitter_percent")]
    #[schemars(schema_with = "schema::ttl_jitter_percent")]
    pub ttl_jitter_percent: u8,

    /// How long a reader of a stale value waits for the layers below to have a fresh one. A duration such as `20ms`, 0s to
    /// 10s. Default 20ms. A change restarts the nodes one at a time.
    #[serde(default = "defaults::soft_timeout")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.freshness.softTimeout", &limits::SOFT_TIMEOUT))]
    pub soft_timeout: HumanDuration,

    /// Of the readers of a stale value, one in each such time is told that there is none, so that it brings a fresh one. A
    /// duration such as `2s`, 10ms to 1h. Default 2s. A change restarts the nodes one at a time.
    #[serde(default = "defaults::refresh_window")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.freshness.refreshWindow", &limits::REFRESH_WINDOW))]
    pub refresh_window: HumanDuration,

    /// How long a negative entry (`TC.SET … NEGATIVE`) holds if the client does not say. A duration such as `30s`, 1s to
    /// 24h. Default 30s. A change restarts the nodes one at a time.
    #[serde(default = "defaults::negative_ttl")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.freshness.negativeTtl", &limits::NEGATIVE_TTL))]
    pub negative_ttl: HumanDuration,
}

// === impl Freshness ===

impl Default for Freshness {
    fn default() -> Self {
        Self {
            ttl_jitter_percent: defaults::ttl_jitter_percent(),
            soft_timeout: defaults::soft_timeout(),
            refresh_window: defaults::refresh_window(),
            negative_ttl: defaults::negative_ttl(),
        }
    }
}

/// The defaults of the schema are the cache node's own.
mod defaults {
    use super::{HumanDuration, node_config};

    pub(super) fn ttl_jitter_percent() -> u8 {
        node_config::Freshness::default().ttl_jitter_percent
    }

    pub(super) fn soft_timeout() -> HumanDuration {
        node_config::Freshness::default().soft_timeout
    }

    pub(super) fn refresh_window() -> HumanDuration {
        node_config::Freshness::default().refresh_window
    }

    pub(super) fn negative_ttl() -> HumanDuration {
        node_config::Freshness::default().negative_ttl
    }
}
