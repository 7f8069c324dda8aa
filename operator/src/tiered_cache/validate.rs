//! Pure: object → [`ValidCache`]. All defaults that are not in the schema, and all rejections.
//!
//! The API server has already run the schema's rules. What is checked here again is what would build objects that
//! Kubernetes refuses, because an object may have been stored before a rule existed.

use std::collections::BTreeMap;

use crds::{
    node_config::{self, ColdLayer, DiskAdmission, DiskMode, MemoryPolicy, Outbox, WhenDisconnected, WriteMode},
    quantity::{ByteSize, HumanDuration},
    tiered_cache::{
        Backplane, Compression, Disk, ExternalRedis, Freshness, ImagePullPolicy, MANAGED_STORAGE_FACTOR, ManagedRedis,
        NAME_LENGTH_MAX, REPLICAS_MAX, Redis, RedisMode, Resources, Retention, SlowLog, Telemetry, TieredCacheSpec,
        WriteQueue, memory_budget::MemoryNeeds,
    },
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{Resource, ResourceExt};

use super::{Watched, amount, lineage::Lineage};

/// What the operator adds to every cache, from its flags.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Image of cache nodes without its tag.
    pub(crate) image_repository: String,
}

/// A cache that can be built: every choice made, every limit checked.
#[derive(Clone, Debug)]
pub(super) struct ValidCache {
    pub(super) identity: Identity,
    pub(super) replicas: i32,
    pub(super) image: String,
    pub(super) image_pull_policy: ImagePullPolicy,
    pub(super) memory: ValidMemory,
    pub(super) redis: Option<ValidRedis>,
    /// There is a log where there is a Redis.
    pub(super) backplane: Option<ValidBackplane>,
    /// Which data in Redis counts; known once it is known what the nodes use.
    pub(super) lineage: Lineage,
    pub(super) disk: Option<ValidDisk>,
    pub(super) read_order: Vec<ColdLayer>,
    pub(super) write_queue: WriteQueue,
    pub(super) compression: Compression,
    pub(super) freshness: Freshness,
    pub(super) slow_log: SlowLog,
    pub(super) telemetry: Telemetry,
    pub(super) resources: ValidResources,
}

/// Which object this is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) generation: i64,
}

/// L1.
#[derive(Clone, Debug)]
pub(super) struct ValidMemory {
    pub(super) capacity: ByteSize,
    pub(super) policy: MemoryPolicy,
    pub(super) max_ttl: HumanDuration,
}

/// L2.
#[derive(Clone, Debug)]
pub(super) struct ValidRedis {
    pub(super) max_ttl: HumanDuration,
    pub(super) timeout: HumanDuration,
    pub(super) write_mode: WriteMode,
    pub(super) source: RedisSource,
}

/// Who runs L2.
#[derive(Clone, Debug)]
pub(super) enum RedisSource {
    /// Somebody else.
    External(ExternalRedis),
    /// The operator, for this cache alone.
    Managed(ManagedRedis),
}

/// The log, and what nodes do without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ValidBackplane {
    pub(super) max_staleness: HumanDuration,
    pub(super) when_disconnected: WhenDisconnected,
    pub(super) serve_stale_for: HumanDuration,
    pub(super) outbox: Outbox,
    pub(super) log_records: u32,
}

/// L3 and its volume.
#[derive(Clone, Debug)]
pub(super) struct ValidDisk {
    pub(super) size: ByteSize,
    pub(super) storage_class_name: Option<String>,
    pub(super) max_ttl: HumanDuration,
    pub(super) min_ttl: HumanDuration,
    pub(super) admission: DiskAdmission,
    /// `None`: no limit.
    pub(super) daily_write_budget: Option<ByteSize>,
    pub(super) retention: Retention,
}

/// What each pod asks for and is held to.
#[derive(Clone, Debug)]
pub(super) struct ValidResources {
    pub(super) requests: BTreeMap<String, Quantity>,
    pub(super) limits: BTreeMap<String, Quantity>,
}

/// Why a cache can not be built. Each says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error("the object can not be read: {0}; correct the field with `kubectl edit`")]
    Unreadable(String),
    #[error("metadata.name {0:?} has {length} characters; at most {NAME_LENGTH_MAX} leave room for names of pods: create the cache under a shorter name", length = .0.len())]
    Name(String),
    #[error("spec.replicas is {0}; it must be between 0 and {REPLICAS_MAX}")]
    Replicas(i32),
    #[error("spec.redis.mode is External; spec.redis.external must then say where Redis is")]
    RedisUnnamed,
    #[error(
        "spec.redis.managed.storage is {storage}; it must be at least {MANAGED_STORAGE_FACTOR} times spec.redis.managed.memory, which is {memory}"
    )]
    RedisStorage { storage: ByteSize, memory: ByteSize },
    #[error("{field} is {value:?}, which is not an amount such as 500m or 1Gi")]
    NotAnAmount { field: &'static str, value: String },
    #[error(
        "spec.resources.limits.memory is {limit}; spec.memory.capacity {capacity} needs at least {needed}: raise the limit or lower the capacity"
    )]
    MemoryLimit { limit: String, capacity: ByteSize, needed: ByteSize },
    #[error("spec.resources.requests.{resource} is {request}; it must be at most the limit, which is {limit}")]
    RequestAboveLimit { resource: &'static str, request: String, limit: String },
}

/// Turns the object into a cache that can be built.
///
/// # Errors
/// If no objects can be built from it that Kubernetes would take; the running fleet is then left as it is.
pub(super) fn validate(cache: &Watched, settings: &Settings) -> Result<ValidCache, Rejection> {
    let identity = identity(cache);
    let cache = cache.0.as_ref().map_err(|invalid| Rejection::Unreadable(invalid.error.clone()))?;
    if identity.name.len() > NAME_LENGTH_MAX {
        return Err(Rejection::Name(identity.name));
    }
    let TieredCacheSpec {
        replicas,
        version,
        image,
        image_pull_policy,
        memory,
        redis,
        backplane,
        disk,
        read_order,
        write_queue,
        compression,
        freshness,
        slow_log,
        telemetry,
        resources,
    } = cache.spec.clone();
    if !(0..=REPLICAS_MAX).contains(&replicas) {
        return Err(Rejection::Replicas(replicas));
    }
    let image = image.unwrap_or_else(|| format!("{}:{version}", settings.image_repository));
    let needs = MemoryNeeds {
        capacity: memory.capacity,
        write_queue: write_queue.capacity,
        redis: redis.mode,
        disk: disk.mode,
    };
    let resources = resources_of(&resources, needs)?;
    let memory = ValidMemory { capacity: memory.capacity, policy: memory.policy, max_ttl: memory.max_ttl };
    let (redis, disk) = (redis_of(redis)?, disk_of(disk));
    let backplane = redis.as_ref().map(|redis| backplane_of(&backplane, &redis.source));
    Ok(ValidCache {
        identity,
        replicas,
        image,
        image_pull_policy,
        memory,
        redis,
        backplane,
        lineage: Lineage::default(),
        disk,
        read_order,
        write_queue,
        compression,
        freshness,
        slow_log,
        telemetry,
        resources,
    })
}

/// Which object this is about; known also of one whose spec can not be read.
pub(super) fn identity(cache: &Watched) -> Identity {
    Identity {
        name: cache.name_any(),
        namespace: cache.namespace().unwrap_or_default(),
        uid: cache.uid().unwrap_or_default(),
        generation: cache.meta().generation.unwrap_or_default(),
    }
}

fn redis_of(redis: Redis) -> Result<Option<ValidRedis>, Rejection> {
    let Redis { mode, max_ttl, timeout, write_mode, managed, external } = redis;
    let source = match (mode, external) {
        (RedisMode::Disabled, _) => return Ok(None),
        (RedisMode::External, Some(external)) => RedisSource::External(external),
        (RedisMode::External, None) => return Err(Rejection::RedisUnnamed),
        (RedisMode::Managed, _) if managed.storage.0 / MANAGED_STORAGE_FACTOR < managed.memory.0 => {
            return Err(Rejection::RedisStorage { storage: managed.storage, memory: managed.memory });
        }
        (RedisMode::Managed, _) => RedisSource::Managed(managed),
    };
    Ok(Some(ValidRedis { max_ttl, timeout, write_mode, source }))
}

fn backplane_of(asked: &Backplane, source: &RedisSource) -> ValidBackplane {
    let Backplane { max_staleness, when_disconnected, serve_stale_for, outbox, log_records } = *asked;
    let usual = match source {
        RedisSource::Managed(redis) => Backplane::log_records_within(redis.memory),
        RedisSource::External(_) => node_config::Backplane::default().log_records,
    };
    let log_records = log_records.unwrap_or(usual);
    ValidBackplane { max_staleness, when_disconnected, serve_stale_for, outbox, log_records }
}

fn disk_of(disk: Disk) -> Option<ValidDisk> {
    let Disk { mode, size, storage_class_name, max_ttl, min_ttl, admission, daily_write_budget, retention } = disk;
    match mode {
        DiskMode::RocksDb => {
            Some(ValidDisk { size, storage_class_name, max_ttl, min_ttl, admission, daily_write_budget, retention })
        }
        DiskMode::Disabled => None,
    }
}

fn resources_of(asked: &Resources, needs: MemoryNeeds) -> Result<ValidResources, Rejection> {
    let needed = needs.limit();
    let memory_limit = asked.limits.memory.clone().unwrap_or_else(|| Quantity(needed.to_string()));
    let limit_milli = milli("spec.resources.limits.memory", &memory_limit)?;
    if limit_milli < i128::from(needed.0) * 1000 {
        return Err(Rejection::MemoryLimit { limit: memory_limit.0, capacity: needs.capacity, needed });
    }
    let memory_request = asked.requests.memory.clone().unwrap_or_else(|| memory_limit.clone());
    if milli("spec.resources.requests.memory", &memory_request)? > limit_milli {
        let (request, limit) = (memory_request.0, memory_limit.0);
        return Err(Rejection::RequestAboveLimit { resource: "memory", request, limit });
    }
    let cpu_request = asked.requests.cpu.clone();
    let cpu_request_milli = milli("spec.resources.requests.cpu", &cpu_request)?;
    let mut limits = BTreeMap::from([("memory".to_owned(), memory_limit)]);
    if let Some(limit) = asked.limits.cpu.clone() {
        if cpu_request_milli > milli("spec.resources.limits.cpu", &limit)? {
            return Err(Rejection::RequestAboveLimit { resource: "cpu", request: cpu_request.0, limit: limit.0 });
        }
        limits.insert("cpu".to_owned(), limit);
    }
    let requests = BTreeMap::from([("cpu".to_owned(), cpu_request), ("memory".to_owned(), memory_request)]);
    Ok(ValidResources { requests, limits })
}

fn milli(field: &'static str, quantity: &Quantity) -> Result<i128, Rejection> {
    amount::milli(&quantity.0).ok_or_else(|| Rejection::NotAnAmount { field, value: quantity.0.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiered_cache::testing::{cache, settings};

    fn rejection(spec: &str) -> String {
        validate(&cache(spec), &settings()).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_spec_is_a_cache_of_one_node() {
        let valid = validate(&cache("{}"), &settings()).unwrap();
        assert_eq!(valid.replicas, 1);
        assert_eq!(valid.image, "nodes:0.1.0");
        assert_eq!(valid.resources.limits["memory"].0, "544Mi");
        assert_eq!(valid.resources.requests["memory"].0, "544Mi");
        assert_eq!(valid.resources.limits.get("cpu"), None);
    }

    #[test]
    fn an_image_overrides_the_version() {
        let valid = validate(&cache("{image: 'registry.example/own:1', version: 9.9.9}"), &settings()).unwrap();
        assert_eq!(valid.image, "registry.example/own:1");
    }

    #[test]
    fn a_limit_below_what_the_node_needs_names_both() {
        let text = rejection("{resources: {limits: {memory: 300Mi}}}");
        assert!(text.contains("limits.memory is 300Mi") && text.contains("at least 544Mi"), "{text}");
    }

    #[test]
    fn a_request_above_its_limit_is_rejected() {
        let text = rejection("{resources: {requests: {cpu: 1500m}, limits: {cpu: 1}}}");
        assert!(text.contains("requests.cpu is 1500m") && text.contains("limit, which is 1"), "{text}");
        let text = rejection("{resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}}");
        assert!(text.contains("requests.memory is 2Gi"), "{text}");
    }

    #[test]
    fn a_redis_without_endpoints_is_rejected_unless_it_is_switched_off() {
        assert!(rejection("{redis: {mode: External}}").contains("spec.redis.external must then say where"));
        let off = validate(&cache("{redis: {external: {endpoints: ['a:1']}}}"), &settings()).unwrap();
        assert!(off.redis.is_none());
    }

    #[test]
    fn a_volume_that_redis_would_fill_is_rejected() {
        let text = rejection("{redis: {mode: Managed, managed: {memory: 1Gi}}}");
        assert!(text.contains("storage is 1Gi; it must be at least 4 times") && text.contains("is 1Gi"), "{text}");
        assert!(validate(&cache("{redis: {mode: Managed}}"), &settings()).unwrap().redis.is_some());
    }

    #[test]
    fn replicas_out_of_range_are_rejected() {
        assert!(rejection("{replicas: 101}").contains("spec.replicas is 101"));
        assert!(rejection("{replicas: -1}").contains("between 0 and 100"));
    }

    #[test]
    fn an_object_that_can_not_be_read_is_rejected_with_the_reason() {
        let text = rejection("{memory: {capacity: heaps}}");
        assert!(text.contains("\"heaps\" is not a size"), "{text}");
    }

    #[test]
    fn an_amount_that_is_none_is_named() {
        assert!(rejection("{resources: {requests: {cpu: lots}}}").contains("requests.cpu is \"lots\""));
    }
}
