//! The StatefulSet and its pods: non-root, read-only root, no capabilities, spread over machines and zones.

use std::collections::BTreeMap;

use crds::{node_config::Shutdown, tiered_cache::RetentionPolicy};
use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
        },
        core::v1::{
            ConfigMapVolumeSource, Container, HTTPGetAction, Lifecycle, LifecycleHandler, PersistentVolumeClaim,
            PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SleepAction, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{
    ADMIN_PORT, RESP_PORT, TEMPLATE_ANNOTATION, ValidCache, claim_template,
    config_map::{DATA_DIR, FILE},
    container_port, container_security, hash, label_selector, labels, metadata, pod_name_env, pod_security,
    pull_policy, redis, service, service_account, spread, telemetry,
};
use crate::tiered_cache::lineage;

/// Name of the volume with the database; claims are named after it.
pub(super) const DATA_VOLUME: &str = "data";
const CONFIG_VOLUME: &str = "config";
const CONFIG_DIR: &str = "/etc/tieredcache";
/// Time for Services to stop sending clients before the node is told to stop.
const PRE_STOP_SECONDS: i64 = 2;
/// Time for RocksDB to close after the queue is drained.
const CLOSE_SECONDS: i64 = 8;
/// How long a node may take to open its database before it is restarted.
const STARTUP_SECONDS: i32 = 120;
/// Templates kept by the StatefulSet controller; the operator itself needs none of them.
const REVISIONS_KEPT: i32 = 3;

/// Builds the StatefulSet, and the hash of its pod template.
pub(super) fn build(cache: &ValidCache, config_map: &str) -> (StatefulSet, String) {
    let (template, revision) = template(cache, config_map);
    let name = &cache.identity.name;
    let spec = StatefulSetSpec {
        replicas: Some(cache.replicas),
        service_name: Some(service::headless_name(name)),
        selector: label_selector(name),
        template,
        // Nodes do not wait for each other to start, and the operator itself decides which one is replaced when: the
        // controller's own rolling update never gets past a broken pod (kubernetes/kubernetes#67250).
        pod_management_policy: Some("Parallel".to_owned()),
        update_strategy: Some(StatefulSetUpdateStrategy {
            type_: Some("OnDelete".to_owned()),
            ..StatefulSetUpdateStrategy::default()
        }),
        revision_history_limit: Some(REVISIONS_KEPT),
        persistent_volume_claim_retention_policy: cache.disk.as_ref().map(|disk| {
            StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some(retention(disk.retention.when_deleted)),
                when_scaled: Some(retention(disk.retention.when_scaled)),
            }
        }),
        volume_claim_templates: claim_templates(cache),
        ..StatefulSetSpec::default()
    };
    let metadata = ObjectMeta { annotations: Some(lineage_of(cache)), ..metadata(&cache.identity, name.clone()) };
    (StatefulSet { metadata, spec, status: None }, revision)
}

/// Which data in Redis counts, for [`lineage`] to read again.
fn lineage_of(cache: &ValidCache) -> BTreeMap<String, String> {
    BTreeMap::from([(lineage::ANNOTATION.to_owned(), cache.lineage.text())])
}

fn retention(policy: RetentionPolicy) -> String {
    match policy {
        RetentionPolicy::Delete => "Delete".to_owned(),
        RetentionPolicy::Retain => "Retain".to_owned(),
    }
}

fn claim_templates(cache: &ValidCache) -> Option<Vec<PersistentVolumeClaim>> {
    let disk = cache.disk.as_ref()?;
    let asked = (disk.size, disk.storage_class_name.as_ref());
    Some(vec![claim_template(DATA_VOLUME, labels(&cache.identity.name), asked)])
}

fn template(cache: &ValidCache, config_map: &str) -> (PodTemplateSpec, String) {
    let mut metadata = ObjectMeta { labels: Some(labels(&cache.identity.name)), ..ObjectMeta::default() };
    let spec = Some(pod(cache, config_map));
    let unnamed = PodTemplateSpec { metadata: Some(metadata.clone()), spec };
    let revision = hash(&serde_json::to_vec(&unnamed).expect("a pod template is plain data"));
    // Another lineage is another configuration, by whose name it is part of the hash already.
    let mut annotations = lineage_of(cache);
    annotations.insert(TEMPLATE_ANNOTATION.to_owned(), revision.clone());
    metadata.annotations = Some(annotations);
    (PodTemplateSpec { metadata: Some(metadata), ..unnamed }, revision)
}

fn pod(cache: &ValidCache, config_map: &str) -> PodSpec {
    let config = Volume {
        name: CONFIG_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource { name: config_map.to_owned(), ..ConfigMapVolumeSource::default() }),
        ..Volume::default()
    };
    let secrets = secrets(cache).map(|(volume, _)| volume);
    let drain_seconds = i64::try_from(Shutdown::default().drain_timeout.0.as_secs()).unwrap_or(i64::MAX);
    PodSpec {
        service_account_name: Some(service_account::name(&cache.identity.name)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(PRE_STOP_SECONDS + drain_seconds + CLOSE_SECONDS),
        security_context: Some(pod_security()),
        topology_spread_constraints: Some(spread(&label_selector(&cache.identity.name))),
        containers: vec![container(cache)],
        volumes: Some([config].into_iter().chain(secrets).collect()),
        ..PodSpec::default()
    }
}

fn container(cache: &ValidCache) -> Container {
    let pre_stop =
        LifecycleHandler { sleep: Some(SleepAction { seconds: PRE_STOP_SECONDS }), ..LifecycleHandler::default() };
    Container {
        name: "cache-node".to_owned(),
        image: Some(cache.image.clone()),
        image_pull_policy: Some(pull_policy(cache.image_pull_policy)),
        args: Some(vec!["--config".to_owned(), format!("{CONFIG_DIR}/{FILE}")]),
        env: Some(vec![pod_name_env("NODE_NAME")]),
        ports: Some(vec![container_port("resp", RESP_PORT), container_port("admin", ADMIN_PORT)]),
        startup_probe: Some(Probe { failure_threshold: Some(STARTUP_SECONDS), ..probe("/livez", 1) }),
        readiness_probe: Some(probe("/readyz", 2)),
        liveness_probe: Some(probe("/livez", 10)),
        lifecycle: Some(Lifecycle { pre_stop: Some(pre_stop), ..Lifecycle::default() }),
        resources: Some(ResourceRequirements {
            requests: Some(cache.resources.requests.clone()),
            limits: Some(cache.resources.limits.clone()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(container_security()),
        // A node that refuses its configuration says why in its termination message; one that crashes, in its log.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(volume_mounts(cache)),
        ..Container::default()
    }
}

fn volume_mounts(cache: &ValidCache) -> Vec<VolumeMount> {
    let config = VolumeMount {
        name: CONFIG_VOLUME.to_owned(),
        mount_path: CONFIG_DIR.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let data = cache.disk.as_ref().map(|_| VolumeMount {
        name: DATA_VOLUME.to_owned(),
        mount_path: DATA_DIR.to_owned(),
        ..VolumeMount::default()
    });
    let secrets = secrets(cache).map(|(_, mount)| mount);
    [Some(config), data].into_iter().flatten().chain(secrets).collect()
}

/// Secrets that the node reads as files.
fn secrets(cache: &ValidCache) -> impl Iterator<Item = (Volume, VolumeMount)> {
    redis::volumes(cache).into_iter().chain(telemetry::volume(cache))
}

fn probe(path: &str, period_seconds: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}
