//! What the operator reports about a cache.

#![expect(unreachable_pub, reason = "KubeSchema repeats each public struct inside a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use crate::node_report::{HealthState, LayerName};

/// What the operator last saw of the cache.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TieredCacheStatus {
    /// The generation of the spec that this status is about; -1 until the operator has seen the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub observed_generation: Option<i64>,

    /// Pods that exist.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub replicas: i32,

    /// Pods that serve clients.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready_replicas: i32,

    /// Pods that run the current image and configuration.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub updated_replicas: i32,

    /// Label selector of the pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub selector: String,

    /// The lowest version that a node runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,

    /// The state in the form that `kubectl wait` reads. `Ready` is `True` when every node asked for serves clients and runs
    /// the configuration of this generation; `Progressing` while the fleet is on its way there; `Degraded` when it has less
    /// than is asked for, and not because of a change, with the guarantee that holds now; `Stalled` when nothing gets better until a person acts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,

    /// The layers, each as all nodes together have it, and `Backplane`: whether every node knows what the others change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub layers: Vec<LayerStatus>,

    /// The nodes, in the order of their ordinals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub nodes: Vec<NodeStatus>,
}

/// One layer, as all nodes together have it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerStatus {
    /// Which layer.
    #[schemars(schema_with = "schema::layer_name")]
    pub name: LayerName,

    /// The worst health that any node reports; `Unknown` when a node did not answer and none is worse.
    #[schemars(schema_with = "schema::health_state")]
    pub health: HealthState,

    /// Nodes on which the layer is healthy.
    #[schemars(range(min = 0))]
    pub nodes_healthy: i32,

    /// Nodes that should have the layer.
    #[schemars(range(min = 0))]
    pub nodes_total: i32,

    /// Why the health is what it is: a stable CamelCase word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub reason: String,

    /// The same as a sentence, naming the node it is about.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,

    /// Since when the health is what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub since: Option<Time>,
}

/// One node, as it reports itself.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name of the pod.
    #[schemars(length(max = 253))]
    pub name: String,

    /// Whether it serves clients.
    pub ready: bool,

    /// Version of the program it runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub version: String,

    /// Revision of the configuration it runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub config_revision: String,

    /// Layers that do not work as they should.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::layer_names")]
    pub unhealthy_layers: Vec<LayerName>,

    /// Why the node is not ready, or what it can not promise; absent when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}
