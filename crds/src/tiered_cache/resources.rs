//! CPU and memory in the spec.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};

/// CPU and memory of each pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler reserves for each pod.
    #[serde(default)]
    pub requests: ResourceRequests,

    /// What each pod is held to.
    #[serde(default)]
    pub limits: ResourceLimits,
}

/// What the scheduler reserves for each pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceRequests {
    /// CPU, such as `500m` or `2`. Default 100m. A change restarts the nodes one at a time.
    #[serde(default = "cpu_request")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::is_positive_quantity("spec.resources.requests.cpu"))]
    pub cpu: Quantity,

    /// Memory, such as `1Gi`. Default: the same as the memory limit, so that a node never runs on memory it may lose. A
    /// change restarts the nodes one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::is_positive_quantity("spec.resources.requests.memory"))]
    pub memory: Option<Quantity>,
}

/// What each pod is held to.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceLimits {
    /// CPU, such as `2`. Default: no limit. A change restarts the nodes one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::is_positive_quantity("spec.resources.limits.cpu"))]
    pub cpu: Option<Quantity>,

    /// Memory, such as `1Gi`; beyond it the kernel kills the node. At least `memory.capacity` and an eighth, 128Mi for the
    /// process, with a disk layer 64Mi for RocksDB, and with any layer below memory `writeQueue.capacity`. Default:
    /// exactly that. A change restarts the nodes one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = rules::is_positive_quantity("spec.resources.limits.memory"))]
    pub memory: Option<Quantity>,
}

// === impl Resources ===

impl Default for ResourceRequests {
    fn default() -> Self {
        Self { cpu: cpu_request(), memory: None }
    }
}

impl ResourceRequests {
    /// The requests as a pod template has them, with memory where it is asked for.
    pub fn to_map(&self) -> BTreeMap<String, Quantity> {
        let memory = self.memory.iter().map(|memory| ("memory".to_owned(), memory.clone()));
        memory.chain([("cpu".to_owned(), self.cpu.clone())]).collect()
    }
}

fn cpu_request() -> Quantity {
    Quantity("100m".to_owned())
}
