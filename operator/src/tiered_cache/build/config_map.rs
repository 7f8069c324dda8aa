//! The node's configuration file.
//!
//! Its name carries the hash of its content, and it is immutable: a pod that is restarted in the middle of a rollout
//! comes back with the configuration it was made for, and going back to an earlier configuration is going back to an
//! earlier template.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use crds::{
    node_config::{self, DiskMode, NodeConfig},
    quantity::HumanDuration,
    tiered_cache::{Freshness, SlowLog, WriteQueue, memory_budget},
};
use k8s_openapi::api::core::v1::ConfigMap;

use super::{ADMIN_PORT, RESP_PORT, ValidCache, hash, metadata, redis, telemetry};
use crate::tiered_cache::validate::ValidBackplane;

/// Key of the file in the ConfigMap, and its name in the pod.
pub(super) const FILE: &str = "config.yaml";
/// Where the volume is mounted.
pub(super) const DATA_DIR: &str = "/var/lib/tieredcache";

/// Builds the ConfigMap, and the revision that nodes report when they run it.
pub(super) fn build(cache: &ValidCache) -> (ConfigMap, String) {
    let mut config = node_config(cache);
    let revision = hash(render(&config).as_bytes());
    config.revision.clone_from(&revision);
    let config_map = ConfigMap {
        metadata: metadata(&cache.identity, format!("{}-config-{revision}", cache.identity.name)),
        data: Some(BTreeMap::from([(FILE.to_owned(), render(&config))])),
        immutable: Some(true),
        ..ConfigMap::default()
    };
    (config_map, revision)
}

fn node_config(cache: &ValidCache) -> NodeConfig {
    let disk = match &cache.disk {
        Some(disk) => node_config::Disk {
            mode: DiskMode::RocksDb,
            path: PathBuf::from(format!("{DATA_DIR}/data")),
            max_ttl: disk.max_ttl,
            memory: memory_budget::ROCKSDB,
            min_ttl: disk.min_ttl,
            admission: disk.admission,
            daily_write_budget: disk.daily_write_budget.unwrap_or(node_config::Disk::default().daily_write_budget),
        },
        None => node_config::Disk { mode: DiskMode::Disabled, ..node_config::Disk::default() },
    };
    NodeConfig {
        // The node's own name comes from the pod, by the environment variable NODE_NAME: one file for all nodes.
        cache: node_config::CacheIdentity {
            name: cache.identity.name.clone(),
            uid: cache.identity.uid.clone(),
            node: None,
        },
        revision: String::new(),
        listen: node_config::Listen { resp: any(RESP_PORT), admin: any(ADMIN_PORT), threads: 0 },
        memory: node_config::Memory {
            capacity: cache.memory.capacity,
            policy: cache.memory.policy,
            max_ttl: cache.memory.max_ttl,
        },
        redis: redis::config(cache),
        backplane: cache.backplane.as_ref().map(backplane).unwrap_or_default(),
        disk,
        compression: node_config::Compression {
            algorithm: cache.compression.algorithm,
            threshold: cache.compression.threshold,
        },
        write_queue: write_queue(&cache.write_queue),
        tag_index: node_config::TagIndex::default(),
        freshness: freshness(&cache.freshness),
        read_order: cache.read_order.clone(),
        limits: limits(cache),
        slow_log: slow_log(&cache.slow_log),
        shutdown: node_config::Shutdown::default(),
        log: node_config::Log::default(),
        telemetry: telemetry::config(cache),
    }
}

fn backplane(asked: &ValidBackplane) -> node_config::Backplane {
    let ValidBackplane { max_staleness, when_disconnected, serve_stale_for, outbox, log_records } = *asked;
    node_config::Backplane { max_staleness, when_disconnected, serve_stale_for, log_records, outbox }
}

fn freshness(asked: &Freshness) -> node_config::Freshness {
    let Freshness { ttl_jitter_percent, soft_timeout, refresh_window, negative_ttl } = *asked;
    node_config::Freshness { ttl_jitter_percent, soft_timeout, refresh_window, negative_ttl }
}

/// One request has twice the time that a Redis has which hangs: the other half is for the disk.
fn limits(cache: &ValidCache) -> node_config::Limits {
    let limits = node_config::Limits::default();
    let of_redis = cache.redis.as_ref().map(|redis| redis.timeout.0).unwrap_or_default();
    node_config::Limits { request_timeout: HumanDuration(limits.request_timeout.0.max(2 * of_redis)), ..limits }
}

fn write_queue(asked: &WriteQueue) -> node_config::WriteQueue {
    let WriteQueue { capacity, overflow } = *asked;
    node_config::WriteQueue { capacity, overflow, ..node_config::WriteQueue::default() }
}

fn slow_log(asked: &SlowLog) -> node_config::SlowLog {
    let SlowLog { threshold, length_max } = *asked;
    node_config::SlowLog { threshold, length_max }
}

fn any(port: i32) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], u16::try_from(port).expect("ports are constants below 65536")))
}

fn render(config: &NodeConfig) -> String {
    serde_saphyr::to_string(config).expect("a configuration is plain data")
}
