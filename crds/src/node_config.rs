//! The configuration file of a cache node: written by the operator, read by the node, one struct for both.

mod backplane;
pub mod limits;
mod redis;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::backplane::{Backplane, Outbox, WhenDisconnected};
pub use self::redis::{Redis, RedisKind, RedisMode, RedisTls, WriteMode};
use crate::quantity::{ByteSize, HumanDuration, Share};

/// The configuration of one cache node, in YAML.
///
/// Every field has a default, so an empty file is a useful single node. Unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Which cache this node belongs to.
    pub cache: CacheIdentity,
    /// The revision of this configuration, which the node reports so that the operator knows what it runs.
    pub revision: String,
    /// Where the node listens.
    pub listen: Listen,
    /// L1.
    pub memory: Memory,
    /// L2.
    pub redis: Redis,
    /// How the changes of other nodes are followed. Without L2 there is nobody to follow.
    pub backplane: Backplane,
    /// L3.
    pub disk: Disk,
    /// How values are compressed below memory.
    pub compression: Compression,
    /// In which order the layers below memory are read. Default `[Redis, Disk]`: the shared layer first, because it may
    /// be newer; `[Disk, Redis]` for the shortest way. A layer that is off takes no part.
    pub read_order: Vec<ColdLayer>,
    /// Writes accepted but not yet on disk.
    pub write_queue: WriteQueue,
    /// Removals by tag.
    pub tag_index: TagIndex,
    /// Lives: jitter, stale values, negative entries.
    pub freshness: Freshness,
    /// Bounds on what clients may send.
    pub limits: Limits,
    /// Which commands are kept as slow.
    pub slow_log: SlowLog,
    /// How the node stops.
    pub shutdown: Shutdown,
    /// What the node writes to its log.
    pub log: Log,
    /// Where the node sends spans.
    pub telemetry: Telemetry,
}

/// The identity stamped on the volume: a volume with another stamp starts cold. Names have 1 to 253 letters, digits,
/// `-`, `_` or `.`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CacheIdentity {
    /// Name of the cache. Default `local`.
    pub name: String,
    /// UID of the cache's resource. Default `local`.
    pub uid: String,
    /// Name of this node. Default: the environment variable `NODE_NAME` (the pod's name), else `node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Addresses to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Listen {
    /// RESP clients. Default `127.0.0.1:6379`.
    pub resp: SocketAddr,
    /// Health, metrics and layer reports. Default `127.0.0.1:9090`.
    pub admin: SocketAddr,
    /// Threads that serve RESP, each with its own event loop. At most 64. Default 0: one per core that the node may use.
    pub threads: u16,
}

/// L1, the memory layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Memory {
    /// Bytes of keys, values and their measured overhead. Default 256Mi, at least 1Mi, at most 1Ti.
    pub capacity: ByteSize,
    /// Which entries stay when memory is full. Default `S3Fifo`.
    pub policy: MemoryPolicy,
    /// How long an entry may stay in memory without being read again from a lower layer. Default 24h, at least 1s, at
    /// most 87600h.
    pub max_ttl: HumanDuration,
}

/// The eviction policy of L1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum MemoryPolicy {
    /// Simple, scalable FIFO queues (Yang et al., SOSP 2023); the fastest.
    #[default]
    S3Fifo,
    /// TinyLFU admission (Einziger et al., 2017); better hit ratio under scans, slower.
    TinyLfu,
}

/// L3, the disk layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Disk {
    /// Whether there is a disk layer. Default `RocksDB`.
    pub mode: DiskMode,
    /// Folder of the database. Default `./tieredcache-data`.
    pub path: PathBuf,
    /// How long an entry may stay on disk. Default 168h, at least 1s, at most 87600h.
    pub max_ttl: HumanDuration,
    /// Memory of RocksDB: block cache and memtables together. Default 64Mi, at least 16Mi, at most 1Ti.
    pub memory: ByteSize,
    /// Entries with less life left than this are not written: they would be dead before a restart could use them. A tenth
    /// of it, and a second at least, of tolerance, so that an entry stored with exactly this life is written. Default 60s, at most 24h.
    pub min_ttl: HumanDuration,
    /// Which entries are written. Default `All`.
    pub admission: DiskAdmission,
    /// Bytes of entries that may be written a day, up to an hour's share of it at once; over it new values are not
    /// written and removals are. Default 0: no limit. Else at least 1Mi, at most 1024Ti.
    pub daily_write_budget: ByteSize,
}

/// Which entries are worth a write to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum DiskAdmission {
    /// Every one.
    #[default]
    All,
    /// Those that are stored or found for the second time within an hour; spares the medium what is used once.
    SecondHit,
}

/// How values are compressed in the layers below memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Compression {
    /// By what. Default `None`.
    pub algorithm: CompressionAlgorithm,
    /// Shorter values stay as they are. Default 4Ki, at least 64, at most 256Mi.
    pub threshold: ByteSize,
}

/// How a value is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum CompressionAlgorithm {
    /// Not at all.
    #[default]
    None,
    /// Fast.
    Lz4,
    /// Small.
    Zstd,
}

/// Whether there is a disk layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum DiskMode {
    /// Entries survive a restart of the node on its volume.
    #[default]
    #[serde(rename = "RocksDB")]
    RocksDb,
    /// Memory only; a restarted node is cold.
    Disabled,
}

/// The write queue: accepted, not yet on disk, visible to reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WriteQueue {
    /// Bytes of queued keys and values. Default 64Mi, at least 1Mi, at most 64Gi, and room for the largest entry: one
    /// key of 32Ki and one value of `limits.valueBytesMax`.
    pub capacity: ByteSize,
    /// Number of queued writes. Default 100000, at least 100, at most 10000000.
    pub items_max: u32,
    /// What happens to a value that finds the queue full. Default `Block`.
    pub overflow: Overflow,
}

/// What happens to a value that finds the write queue full. Removals always wait for room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum Overflow {
    /// It waits until its deadline, and is refused then.
    #[default]
    Block,
    /// It is refused at once.
    Reject,
    /// The oldest queued values give way, and their keys are removed from all layers.
    DropOldest,
}

/// A layer below memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum ColdLayer {
    /// L2.
    Redis,
    /// L3.
    Disk,
}

/// The tag index: which tagged entries were removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TagIndex {
    /// Removals remembered one by one, about 100 bytes each. Over it the older half becomes one: all tagged entries of
    /// before are gone. Default 1000000, at least 1000, at most 100000000.
    pub removals_max: u32,
}

/// Lives of entries: jitter, stale values, negative entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Freshness {
    /// By how much of its life a value may expire earlier than asked, in percent, so that values stored together do not
    /// expire together. The key decides how much. Expiries given as a moment are kept. Default 0, as Redis; at most 50.
    pub ttl_jitter_percent: u8,
    /// How long a reader of a stale value waits for the layers below to have a fresh one. Default 20ms, at least 0ms, at
    /// most 10s.
    pub soft_timeout: HumanDuration,
    /// Of the readers of a stale value, one in each such time is told that there is none, so that it brings a fresh one.
    /// Default 2s, at least 10ms, at most 1h.
    pub refresh_window: HumanDuration,
    /// How long `TC.SET … NEGATIVE` holds if the client does not say. Default 30s, at least 1s, at most 24h.
    pub negative_ttl: HumanDuration,
}

/// Bounds on what clients may send and hold open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Client connections at once. Default 10000, at least 1, at most 1000000.
    pub connections_max: u32,
    /// Largest value. Default 16Mi, at least 1Ki, at most 256Mi.
    pub value_bytes_max: ByteSize,
    /// How long a request may take in all layers together. Default 1s, at least 1ms, at most 10m.
    pub request_timeout: HumanDuration,
    /// How long a connection that has begun a request may stay silent before it is closed. Default 30s, at least 1s, at
    /// most 1h.
    pub partial_request_timeout: HumanDuration,
    /// What is remembered of keys that clients hold in caches of their own (`CLIENT TRACKING`): each key once for each
    /// client, and its tags; about 180 bytes each. Over it keys are told to their clients as if they had changed. Default
    /// 250000, at least 1000, at most 100000000.
    pub tracked_items_max: u32,
}

/// The slow log: commands that took long, for `SLOWLOG GET`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SlowLog {
    /// Commands that take at least so long are kept. Default 10ms, at most 1h; 0s keeps every command.
    pub threshold: HumanDuration,
    /// Entries kept, each of at most 5 KiB; the oldest gives way. Default 128, at most 10000; 0 keeps none.
    pub length_max: u32,
}

/// How the node stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Shutdown {
    /// How long connections may finish and the queue may drain after SIGTERM. Default 20s, at most 1h.
    pub drain_timeout: HumanDuration,
}

/// What the node writes to its log, which is standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Log {
    /// Which messages: a level, or `tracing` directives such as `info,cache_node::layer=debug`. The environment variable
    /// `RUST_LOG` overrides it. Default `info`.
    pub filter: String,
    /// In which form. Default `Auto`.
    pub format: LogFormat,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// `Text` on a terminal, `Json` otherwise.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Spans of operations that leave memory, for a collector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telemetry {
    /// The collector, by OTLP over HTTP.
    pub otlp: Otlp,
}

/// A collector that speaks OpenTelemetry's protocol over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Otlp {
    /// Where it listens, such as `http://localhost:4318`; only `http`. Default empty: no spans are made.
    pub endpoint: String,
    /// Share of the operations that are sampled, from 0 to 1. Default 0.01.
    pub sample_ratio: Share,
    /// File with one `name: value` a line, sent as headers; read at the start. Default empty: none.
    pub headers_file: PathBuf,
}

// === defaults ===

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            cache: CacheIdentity::default(),
            revision: String::new(),
            listen: Listen::default(),
            memory: Memory::default(),
            redis: Redis::default(),
            backplane: Backplane::default(),
            disk: Disk::default(),
            compression: Compression::default(),
            read_order: vec![ColdLayer::Redis, ColdLayer::Disk],
            write_queue: WriteQueue::default(),
            tag_index: TagIndex::default(),
            freshness: Freshness::default(),
            limits: Limits::default(),
            slow_log: SlowLog::default(),
            shutdown: Shutdown::default(),
            log: Log::default(),
            telemetry: Telemetry::default(),
        }
    }
}

impl Default for TagIndex {
    fn default() -> Self {
        Self { removals_max: 250_000 }
    }
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            ttl_jitter_percent: 0,
            soft_timeout: milliseconds(20),
            refresh_window: seconds(2),
            negative_ttl: seconds(30),
        }
    }
}

impl Default for CacheIdentity {
    fn default() -> Self {
        Self { name: "local".to_owned(), uid: "local".to_owned(), node: None }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            resp: SocketAddr::from(([127, 0, 0, 1], 6379)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            threads: 0,
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { capacity: ByteSize::mebibytes(256), policy: MemoryPolicy::default(), max_ttl: hours(24) }
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            mode: DiskMode::default(),
            path: PathBuf::from("./tieredcache-data"),
            max_ttl: hours(168),
            memory: ByteSize::mebibytes(64),
            min_ttl: seconds(60),
            admission: DiskAdmission::default(),
            daily_write_budget: ByteSize(0),
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self { algorithm: CompressionAlgorithm::default(), threshold: ByteSize(4 << 10) }
    }
}

impl Default for WriteQueue {
    fn default() -> Self {
        Self { capacity: ByteSize::mebibytes(64), items_max: 100_000, overflow: Overflow::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            value_bytes_max: ByteSize::mebibytes(16),
            request_timeout: seconds(1),
            partial_request_timeout: seconds(30),
            tracked_items_max: 250_000,
        }
    }
}

impl Default for SlowLog {
    fn default() -> Self {
        Self { threshold: milliseconds(10), length_max: 128 }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain_timeout: seconds(20) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::default() }
    }
}

impl Default for Otlp {
    fn default() -> Self {
        Self { endpoint: String::new(), sample_ratio: Share(10_000), headers_file: PathBuf::new() }
    }
}

const fn milliseconds(count: u64) -> HumanDuration {
    HumanDuration(Duration::from_millis(count))
}

const fn seconds(count: u64) -> HumanDuration {
    HumanDuration(Duration::from_secs(count))
}

const fn hours(count: u64) -> HumanDuration {
    seconds(count * 3600)
}
