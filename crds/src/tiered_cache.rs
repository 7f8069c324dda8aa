//! The resource `TieredCache`: what a person asks for, and what the operator reports back.
//!
//! Doc comments here are what `kubectl explain` prints, so each says the unit, the default, the limits and what a change
//! does to running pods. Every static default lives in the schema: what `kubectl get -o yaml` shows is what runs.

#![expect(unreachable_pub, reason = "KubeSchema repeats each public struct inside a function")]

use std::ops::RangeInclusive;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{
    node_config::{ColdLayer, CompressionAlgorithm, DiskAdmission, DiskMode, MemoryPolicy, Overflow, limits},
    quantity::{ByteSize, HumanDuration},
};

pub use backplane::{Backplane, LOG_RECORD_BYTES, MANAGED_LOG_SHARE};
pub use freshness::Freshness;
pub use generate::{crd, yaml};
pub use redis::{
    CredentialsSecret, ExternalRedis, MANAGED_STORAGE_FACTOR, ManagedRedis, Redis, RedisMode, RedisTls, TlsSecret,
};
pub use resources::{ResourceLimits, ResourceRequests, Resources};
pub use status::{LayerStatus, NodeStatus, TieredCacheStatus};
pub use telemetry::{HeadersSecret, Otlp, SlowLog, Telemetry};

mod backplane;
#[cfg(test)]
mod checks;
mod freshness;
mod generate;
pub mod memory_budget;
mod redis;
mod resources;
mod rules;
mod schema;
mod status;
mod telemetry;

/// Most nodes of one cache.
pub const REPLICAS_MAX: i32 = 100;
/// Smallest and largest volume of a node.
const DISK_SIZE: RangeInclusive<ByteSize> = ByteSize::mebibytes(256)..=ByteSize::mebibytes(64 << 20);
/// Smallest and largest write queue: as the node has it, which must also hold the largest value and key.
const WRITE_QUEUE_CAPACITY: RangeInclusive<ByteSize> = ByteSize::mebibytes(17)..=*limits::QUEUE_CAPACITY.end();
/// Longest name of a cache: leaves room for what pods, Services and revision labels append within their 63 characters.
pub const NAME_LENGTH_MAX: usize = 40;
/// The version of the cache node that a new cache runs unless it says otherwise.
pub const VERSION_DEFAULT: &str = env!("CARGO_PKG_VERSION");

/// What the cache should be. An empty spec is a useful cache: one node, 256Mi of memory, a 10Gi volume.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tieredcache.io",
    version = "v1alpha1",
    kind = "TieredCache",
    doc = "A fleet of layered cache servers: memory, and below it, fed by a write queue, Redis, which is optional, and RocksDB on a persistent volume; spoken to by any Redis client.",
    namespaced,
    status = "TieredCacheStatus",
    derive = "PartialEq",
    shortname = "tc",
    category = "all",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Nodes that serve clients."),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas", description = "Nodes asked for."),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why the cache is ready, or why not."
    ),
    printcolumn(
        name = "Memory",
        type_ = "string",
        json_path = r#".status.layers[?(@.name=="Memory")].health"#,
        description = "Health of the memory layer, the worst of all nodes."
    ),
    printcolumn(
        name = "Redis",
        type_ = "string",
        json_path = r#".status.layers[?(@.name=="Redis")].health"#,
        description = "Health of the Redis layer, the worst of all nodes."
    ),
    printcolumn(
        name = "Disk",
        type_ = "string",
        json_path = r#".status.layers[?(@.name=="Disk")].health"#,
        description = "Health of the disk layer, the worst of all nodes."
    ),
    printcolumn(
        name = "Backplane",
        type_ = "string",
        json_path = r#".status.layers[?(@.name=="Backplane")].health"#,
        description = "Whether every node knows what the others change, the worst of all nodes."
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", description = "Lowest version that runs."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::name()
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::memory_fits_limit(),
    validation = rules::memory_request_within_limit(),
    validation = rules::cpu_request_within_limit(),
    validation = rules::disk_mode_is_fixed(),
    validation = rules::disk_size_only_grows(),
    validation = rules::storage_class_is_fixed(),
    validation = rules::managed_storage_only_grows(),
    validation = rules::managed_storage_class_is_fixed(),
    validation = rules::managed_replicas_are_fixed(),
    validation = rules::managed_log_fits_the_memory(),
    validation = rules::read_order_names_each_once()
)]
pub struct TieredCacheSpec {
    /// How many cache nodes run, 0 to 100. Default 1. `kubectl scale` and a HorizontalPodAutoscaler set it too. A change
    /// starts or stops nodes and restarts none; volumes of stopped nodes follow `disk.retention.whenScaled`.
    #[serde(default = "defaults::replicas")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: i32,

    /// Version of the cache node, such as `0.1.0`. Default: the version that was current when the cache was created, so
    /// that an upgrade of the operator restarts nothing. A change replaces the nodes one at a time.
    #[serde(default = "defaults::version")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$"))]
    pub version: String,

    /// Image of the cache node, such as `registry.example/cache-node:0.1.0`. Overrides `version`. Default: the operator's
    /// image repository with `version` as the tag. A change replaces the nodes one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"))]
    pub image: Option<String>,

    /// When a machine pulls the image: `IfNotPresent` (default), `Always` or `Never`. A change replaces the nodes one at a
    /// time.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// L1, the memory layer: answers most reads, and is empty after a restart.
    #[serde(default)]
    pub memory: Memory,

    /// L2, the Redis layer: what one node has fetched or stored, the others find there.
    #[serde(default)]
    pub redis: Redis,

    /// How the nodes learn of each other's changes: by a log in Redis, which every node follows. Without a Redis they do
    /// not, and nothing here has an effect.
    #[serde(default)]
    pub backplane: Backplane,

    /// L3, the disk layer: a database on a volume of each node's own, which makes a restarted node warm.
    #[serde(default)]
    pub disk: Disk,

    /// In which order the layers below memory are read. Default `[Redis, Disk]`: the shared layer first, because it may be
    /// newer. `[Disk, Redis]`: the shortest way first. A layer that is off takes no part. A change restarts the nodes one
    /// at a time.
    #[serde(default = "defaults::read_order")]
    #[schemars(schema_with = "schema::read_order")]
    pub read_order: Vec<ColdLayer>,

    /// The write queue: what was accepted and is not yet in the layers below memory.
    #[serde(default)]
    pub write_queue: WriteQueue,

    /// How values are compressed below memory.
    #[serde(default)]
    pub compression: Compression,

    /// Lives of entries: jitter, stale values, negative entries.
    #[serde(default)]
    pub freshness: Freshness,

    /// Which commands each node keeps as slow, for `SLOWLOG GET`.
    #[serde(default)]
    pub slow_log: SlowLog,

    /// Where the nodes send spans.
    #[serde(default)]
    pub telemetry: Telemetry,

    /// CPU and memory that each pod asks for and is held to.
    #[serde(default)]
    pub resources: Resources,
}

/// When the image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ImagePullPolicy {
    /// Only if the machine does not have it.
    #[default]
    IfNotPresent,
    /// At every start.
    Always,
    /// Not at all; the machine must have it.
    Never,
}

/// L1, the memory layer.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Memory for entries on each node: keys, values and their measured overhead. A size such as `256Mi` or `2Gi`, 1Mi to
    /// 1Ti. Default 256Mi. With what the rest of the process needs it must fit `resources.limits.memory`. A change
    /// restarts the nodes one at a time.
    #[serde(default = "defaults::memory_capacity")]
    #[schemars(schema_with = "schema::size")]
    #[x_kube(validation = rules::size_within("spec.memory.capacity", &limits::MEMORY_CAPACITY))]
    pub capacity: ByteSize,

    /// Which entries stay when memory is full. `S3Fifo` (default) is the fastest; `TinyLfu` keeps a better set under
    /// scans and is slower. A change restarts the nodes one at a time.
    #[serde(default)]
    #[schemars(schema_with = "schema::memory_policy")]
    pub policy: MemoryPolicy,

    /// How long an entry may stay in memory, whatever its own time to live; it shortens, never extends. A duration such as
    /// `30m` or `1h30m`, 1s to 87600h. Default 24h. A change restarts the nodes one at a time.
    #[serde(default = "defaults::memory_max_ttl")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.memory.maxTtl", &limits::MEMORY_MAX_TTL))]
    pub max_ttl: HumanDuration,
}

/// L3, the disk layer.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// `RocksDB` (default): each node has a volume and is warm after a restart. `Disabled`: memory only, no volume, cold
    /// after a restart. Fixed when the cache is created.
    #[serde(default)]
    #[schemars(schema_with = "schema::disk_mode")]
    pub mode: DiskMode,

    /// Size of each node's volume, such as `10Gi`, 256Mi to 64Ti. Default 10Gi. It may grow, not shrink: the volumes grow
    /// while the nodes go on, if their StorageClass allows it.
    #[serde(default = "defaults::disk_size")]
    #[schemars(schema_with = "schema::size")]
    #[x_kube(validation = rules::size_within("spec.disk.size", &DISK_SIZE))]
    pub size: ByteSize,

    /// StorageClass of the volumes. Default: the cluster's default class. Fixed when the cache is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,

    /// How long an entry may stay on disk, whatever its own time to live; it shortens, never extends. A duration such as
    /// `12h` or `168h`, 1s to 87600h. Default 168h. A change restarts the nodes one at a time.
    #[serde(default = "defaults::disk_max_ttl")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.disk.maxTtl", &limits::DISK_MAX_TTL))]
    pub max_ttl: HumanDuration,

    /// Entries with less life left than this are not written: they would be dead before a restart could use them. A
    /// duration such as `30s`, 0s to 24h. Default 1m. A change restarts the nodes one at a time.
    #[serde(default = "defaults::disk_min_ttl")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.disk.minTtl", &limits::DISK_MIN_TTL))]
    pub min_ttl: HumanDuration,

    /// Which entries are written. `All` (default); `SecondHit`: those that are stored or found for the second time within
    /// an hour, which spares the medium what is used once. A change restarts the nodes one at a time.
    #[serde(default)]
    #[schemars(schema_with = "schema::disk_admission")]
    pub admission: DiskAdmission,

    /// Bytes of entries that each node may write a day, such as `200Gi`, 1Mi to 1024Ti; up to an hour's share of it at
    /// once. Over it new values are not written and removals are. Default: no limit. A change restarts the nodes one at a
    /// time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::size")]
    #[x_kube(validation = rules::size_within("spec.disk.dailyWriteBudget", &limits::DISK_WRITE_BUDGET))]
    pub daily_write_budget: Option<ByteSize>,

    /// What becomes of volumes that no node uses any more.
    #[serde(default)]
    pub retention: Retention,
}

/// What becomes of volumes that no node uses any more.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// The volume of a node that scaling down removed: `Delete` (default) or `Retain`. A retained volume is used again,
    /// with what it held, when the cache is scaled up. Changes nothing about running pods.
    #[serde(default = "defaults::when_scaled")]
    pub when_scaled: RetentionPolicy,

    /// The volumes of a deleted cache: `Retain` (default) or `Delete`. A cache created again under the same name gets the
    /// retained volumes and starts cold on them. Changes nothing about running pods.
    #[serde(default = "defaults::when_deleted")]
    pub when_deleted: RetentionPolicy,
}

/// Keep a volume or remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum RetentionPolicy {
    /// The claim and its volume are deleted.
    Delete,
    /// The claim and its volume stay until a person deletes them.
    Retain,
}

/// The write queue.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WriteQueue {
    /// Memory for keys and values that wait on each node. A size such as `64Mi`, 17Mi (the largest entry fits) to 64Gi.
    /// Default 64Mi. It is part of what must fit `resources.limits.memory`. A change restarts the nodes one at a time.
    #[serde(default = "defaults::write_queue_capacity")]
    #[schemars(schema_with = "schema::size")]
    #[x_kube(validation = rules::size_within("spec.writeQueue.capacity", &WRITE_QUEUE_CAPACITY))]
    pub capacity: ByteSize,

    /// What becomes of a value that finds the queue full. `Block` (default): it waits, and is refused at its deadline.
    /// `Reject`: it is refused at once. `DropOldest`: the oldest queued values give way, each counted, and have no value in
    /// any layer then. Removals always wait. A change restarts the nodes one at a time.
    #[serde(default)]
    #[schemars(schema_with = "schema::overflow")]
    pub overflow: Overflow,
}

/// How values are compressed below memory.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Compression {
    /// By what: `None` (default), `Lz4` (fast) or `Zstd` (small). Values that do not become smaller stay as they are. A
    /// change restarts the nodes one at a time; values that are stored already stay readable.
    #[serde(default)]
    #[schemars(schema_with = "schema::compression_algorithm")]
    pub algorithm: CompressionAlgorithm,

    /// Shorter values stay as they are. A size such as `4Ki`, 64 bytes to 256Mi. Default 4Ki. A change restarts the nodes
    /// one at a time.
    #[serde(default = "defaults::compression_threshold")]
    #[schemars(schema_with = "schema::size")]
    #[x_kube(validation = rules::size_within("spec.compression.threshold", &limits::COMPRESSION_THRESHOLD))]
    pub threshold: ByteSize,
}

// === impl TieredCacheSpec ===

impl Default for TieredCacheSpec {
    /// The spec that the API server makes of an empty one.
    fn default() -> Self {
        Self {
            replicas: defaults::replicas(),
            version: defaults::version(),
            image: None,
            image_pull_policy: ImagePullPolicy::default(),
            memory: Memory::default(),
            redis: Redis::default(),
            backplane: Backplane::default(),
            disk: Disk::default(),
            read_order: defaults::read_order(),
            write_queue: WriteQueue::default(),
            compression: Compression::default(),
            freshness: Freshness::default(),
            slow_log: SlowLog::default(),
            telemetry: Telemetry::default(),
            resources: Resources::default(),
        }
    }
}

// === impl Memory ===

impl Default for Memory {
    fn default() -> Self {
        Self {
            capacity: defaults::memory_capacity(),
            policy: MemoryPolicy::default(),
            max_ttl: defaults::memory_max_ttl(),
        }
    }
}

// === impl Disk ===

impl Default for Disk {
    fn default() -> Self {
        Self {
            mode: DiskMode::default(),
            size: defaults::disk_size(),
            storage_class_name: None,
            max_ttl: defaults::disk_max_ttl(),
            min_ttl: defaults::disk_min_ttl(),
            admission: DiskAdmission::default(),
            daily_write_budget: None,
            retention: Retention::default(),
        }
    }
}

// === impl WriteQueue ===

impl Default for WriteQueue {
    fn default() -> Self {
        Self { capacity: defaults::write_queue_capacity(), overflow: Overflow::default() }
    }
}

// === impl Compression ===

impl Default for Compression {
    fn default() -> Self {
        Self { algorithm: CompressionAlgorithm::default(), threshold: defaults::compression_threshold() }
    }
}

// === impl Retention ===

impl Default for Retention {
    fn default() -> Self {
        Self { when_scaled: defaults::when_scaled(), when_deleted: defaults::when_deleted() }
    }
}

/// The defaults of the schema. Memory and disk agree with the cache node's own.
mod defaults {
    use super::{RetentionPolicy, VERSION_DEFAULT};
    use crate::{
        node_config::{self, ColdLayer, NodeConfig},
        quantity::{ByteSize, HumanDuration},
    };

    pub(super) fn replicas() -> i32 {
        1
    }

    pub(super) fn version() -> String {
        VERSION_DEFAULT.to_owned()
    }

    pub(super) fn memory_capacity() -> ByteSize {
        node_config::Memory::default().capacity
    }

    pub(super) fn memory_max_ttl() -> HumanDuration {
        node_config::Memory::default().max_ttl
    }

    pub(super) fn disk_size() -> ByteSize {
        ByteSize::mebibytes(10 << 10)
    }

    pub(super) fn disk_max_ttl() -> HumanDuration {
        node_config::Disk::default().max_ttl
    }

    pub(super) fn disk_min_ttl() -> HumanDuration {
        node_config::Disk::default().min_ttl
    }

    pub(super) fn read_order() -> Vec<ColdLayer> {
        NodeConfig::default().read_order
    }

    pub(super) fn write_queue_capacity() -> ByteSize {
        node_config::WriteQueue::default().capacity
    }

    pub(super) fn compression_threshold() -> ByteSize {
        node_config::Compression::default().threshold
    }

    pub(super) fn when_scaled() -> RetentionPolicy {
        RetentionPolicy::Delete
    }

    pub(super) fn when_deleted() -> RetentionPolicy {
        RetentionPolicy::Retain
    }
}
