//! Pure: [`ValidCache`] → [`Desired`]. The same cache always gives the same objects, byte for byte.

mod config_map;
pub(super) mod managed_redis;
mod pdb;
mod redis;
mod secret;
mod service;
mod service_account;
mod stateful_set;
mod telemetry;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{
            Capabilities, ConfigMap, ContainerPort, EnvVar, EnvVarSource, ObjectFieldSelector, PersistentVolumeClaim,
            PersistentVolumeClaimSpec, PodSecurityContext, SeccompProfile, SecurityContext, Service, ServiceAccount,
            TopologySpreadConstraint, VolumeResourceRequirements,
        },
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
    },
};
use kube::Resource;

use super::{
    lineage::Lineage,
    validate::{Identity, ValidCache},
};
use crds::{
    quantity::ByteSize,
    tiered_cache::{ImagePullPolicy, TieredCache},
};

/// Port of RESP clients.
pub(super) const RESP_PORT: i32 = 6379;
/// Port of probes, metrics and reports.
pub(super) const ADMIN_PORT: i32 = 9090;
/// Annotation of pods: which template they were made from.
pub(super) const TEMPLATE_ANNOTATION: &str = "tieredcache.io/template";
/// Value of the label `app.kubernetes.io/managed-by` on everything that the operator makes.
pub(super) const MANAGED_BY: &str = "tieredcache-operator";
/// The label that tells which cache an object belongs to.
pub(super) const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// The user of pods, as `distroless/…:nonroot` has it.
const USER_ID: i64 = 65532;
/// The label by which everything of the operator is listed.
pub(super) const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Everything that should exist for one cache.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    pub(super) service_account: ServiceAccount,
    pub(super) config_map: ConfigMap,
    pub(super) headless_service: Service,
    pub(super) client_service: Service,
    /// `None` for caches of one node, which a budget could only block.
    pub(super) pdb: Option<PodDisruptionBudget>,
    /// `None` unless the cache has a Redis of its own.
    pub(super) redis: Option<managed_redis::DesiredRedis>,
    pub(super) stateful_set: StatefulSet,
    pub(super) revisions: Revisions,
}

/// What a node must run to be up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Revisions {
    /// Hash of the node's configuration; the node reports it.
    pub(super) config: String,
    /// Hash of the pod template, configuration included; the pod carries it.
    pub(super) template: String,
    /// Which data in Redis counts, and so which log is followed; the pod carries it.
    pub(super) lineage: Lineage,
}

/// Builds everything that should exist for the cache.
pub(crate) fn build(cache: &ValidCache) -> Desired {
    let (config_map, config) = config_map::build(cache);
    let (stateful_set, template) = stateful_set::build(cache, config_map.metadata.name.as_deref().unwrap_or_default());
    Desired {
        service_account: service_account::build(cache),
        config_map,
        headless_service: service::headless(cache),
        client_service: service::client(cache),
        pdb: pdb::build(cache),
        redis: managed_redis::build(cache),
        stateful_set,
        revisions: Revisions { config, template, lineage: cache.lineage.clone() },
    }
}

/// The label selector of the cache's pods, as text: `status.selector`.
pub(super) fn selector_text(cache_name: &str) -> String {
    selector_labels(cache_name).iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Name of the pod with this ordinal.
pub(super) fn pod_name(cache_name: &str, ordinal: i32) -> String {
    format!("{cache_name}-{ordinal}")
}

/// Name of the claim of the pod with this name.
pub(super) fn claim_name(pod_name: &str) -> String {
    format!("{}-{pod_name}", stateful_set::DATA_VOLUME)
}

// Selectors can never change, so they have only what can never need to.
fn selector_labels(cache_name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "tieredcache".to_owned()),
        (INSTANCE_LABEL.to_owned(), cache_name.to_owned()),
    ])
}

fn labels(cache_name: &str) -> BTreeMap<String, String> {
    let mut labels = selector_labels(cache_name);
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    labels.insert("app.kubernetes.io/component".to_owned(), "cache-node".to_owned());
    labels
}

fn label_selector(cache_name: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(cache_name)), ..LabelSelector::default() }
}

/// Metadata of an object that belongs to the cache and is removed with it.
fn metadata(identity: &Identity, name: String) -> ObjectMeta {
    let owner = OwnerReference {
        api_version: TieredCache::api_version(&()).into_owned(),
        kind: TieredCache::kind(&()).into_owned(),
        name: identity.name.clone(),
        uid: identity.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    ObjectMeta {
        name: Some(name),
        namespace: Some(identity.namespace.clone()),
        labels: Some(labels(&identity.name)),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    }
}

/// A template of claims. It can not change once it exists, so it has only what never needs to; labels let the operator see
/// the claims.
fn claim_template(
    volume: &str,
    labels: BTreeMap<String, String>,
    (size, class): (ByteSize, Option<&String>),
) -> PersistentVolumeClaim {
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
        storage_class_name: class.cloned(),
        resources: Some(VolumeResourceRequirements {
            requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(size.to_string()))])),
            ..VolumeResourceRequirements::default()
        }),
        ..PersistentVolumeClaimSpec::default()
    };
    let metadata = ObjectMeta { name: Some(volume.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
    PersistentVolumeClaim { metadata, spec: Some(spec), status: None }
}

/// Pods are spread over machines and zones if there is room; a cache that runs crowded is better than one that does not
/// run.
fn spread(selector: &LabelSelector) -> Vec<TopologySpreadConstraint> {
    let over = |topology_key: &str| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: topology_key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector.clone()),
        ..TopologySpreadConstraint::default()
    };
    ["kubernetes.io/hostname", "topology.kubernetes.io/zone"].map(over).to_vec()
}

/// An environment variable with the name of the pod.
fn pod_name_env(name: &str) -> EnvVar {
    let field_ref = ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: "metadata.name".to_owned() };
    let source = EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

/// A pod without rights, as the Pod Security Standard "restricted" asks.
fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER_ID),
        run_as_group: Some(USER_ID),
        fs_group: Some(USER_ID),
        // Without this the kubelet changes the owner of every file of a large volume at every start.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// A TCP port of a container.
fn container_port(name: &str, port: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// A container without rights.
fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

fn pull_policy(policy: ImagePullPolicy) -> String {
    match policy {
        ImagePullPolicy::IfNotPresent => "IfNotPresent".to_owned(),
        ImagePullPolicy::Always => "Always".to_owned(),
        ImagePullPolicy::Never => "Never".to_owned(),
    }
}

/// A short, stable name for content.
pub(super) fn hash(content: &[u8]) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(content))[..10].to_owned()
}

#[cfg(test)]
mod tests;
