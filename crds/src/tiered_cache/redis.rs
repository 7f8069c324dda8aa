//! L2 in the spec: which Redis the nodes share, and how they reach it.

use std::ops::RangeInclusive;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};
use crate::{
    node_config::{self, RedisKind, WriteMode, limits},
    quantity::{ByteSize, HumanDuration},
};

/// Smallest and largest memory of a managed Redis.
const MANAGED_MEMORY: RangeInclusive<ByteSize> = ByteSize::mebibytes(16)..=ByteSize::mebibytes(1 << 20);
/// Smallest and largest volume of a managed Redis.
const MANAGED_STORAGE: RangeInclusive<ByteSize> = ByteSize::mebibytes(256)..=ByteSize::mebibytes(64 << 20);
/// So many times its memory is the volume of a managed Redis at least: its append-only file grows to twice what it
/// holds before it is written anew beside the old one.
pub const MANAGED_STORAGE_FACTOR: u64 = 4;

/// L2, the Redis layer.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::external_redis_is_named())]
pub struct Redis {
    /// `Disabled` (default): no Redis layer. `Managed`: the nodes share a Redis of their own, which the operator runs as
    /// `managed` says. `External`: they share one that exists already, which `external` names. A change restarts the nodes
    /// one at a time, to another Redis all at once, to a managed one when that runs; a managed Redis that is switched off goes
    /// with its volume once no node uses it.
    #[serde(default)]
    #[schemars(schema_with = "schema::redis_mode")]
    pub mode: RedisMode,

    /// How long an entry may stay in Redis, whatever its own time to live; it shortens, never extends. A duration such as
    /// `4h`, 1s to 87600h. Default 4h. A change restarts the nodes one at a time.
    #[serde(default = "defaults::max_ttl")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.redis.maxTtl", &limits::REDIS_MAX_TTL))]
    pub max_ttl: HumanDuration,

    /// How long one call to Redis may take. A duration such as `50ms`, 1ms to 10s. Default 50ms. A client's request has 1 s
    /// in all layers together, or twice this if that is longer, so that a Redis that hangs leaves time for the disk. A
    /// change restarts the nodes one at a time.
    #[serde(default = "defaults::timeout")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.redis.timeout", &limits::REDIS_TIMEOUT))]
    pub timeout: HumanDuration,

    /// When a write of a client is acknowledged. `WriteBehind` (default): once it is in memory and in the write queue, the
    /// fastest. `WriteThrough`: once Redis and the disk have it; while Redis is away, once the disk has it. A change
    /// restarts the nodes one at a time.
    #[serde(default)]
    #[schemars(schema_with = "schema::write_mode")]
    pub write_mode: WriteMode,

    /// The Redis of `mode: Managed`. Its password is in the Secret with the name of the cache and `-redis`: make it, or
    /// install the operator's chart with `rbac.managedRedisPasswords=true`.
    #[serde(default)]
    pub managed: ManagedRedis,

    /// The Redis of `mode: External`: Redis 7.0 or newer, or Valkey 7.2 or newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalRedis>,
}

/// Whether there is a Redis layer, and who runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum RedisMode {
    /// None.
    #[default]
    Disabled,
    /// One that the operator runs for this cache alone.
    Managed,
    /// One that exists already.
    External,
}

/// A Redis that the operator runs for this cache alone: pods with a volume each, from which they come back with their data.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::managed_storage_holds_the_memory())]
pub struct ManagedRedis {
    /// Its image: Redis 7.0 or newer, or Valkey 7.2 or newer, with `redis-server` and `redis-cli` on its path. Default
    /// `docker.io/library/redis:7.4`. It is pulled as `imagePullPolicy` says. A change restarts Redis, and no node.
    #[serde(default = "defaults::managed_image")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"))]
    pub image: String,

    /// Pods of Redis. 1 (default): while it is away, the nodes go on without it. 3: one is the master, the others have all
    /// it has, and the Sentinels beside them let one of those take its place within ten seconds; the image needs `sh`, too.
    /// Fixed as long as the mode is `Managed`.
    #[serde(default = "defaults::managed_replicas")]
    #[schemars(range(min = 1, max = 3))]
    #[x_kube(validation = rules::managed_replicas_are_one_or_three())]
    pub replicas: i32,

    /// Memory for entries and for the log of changes. A size such as `256Mi`, 16Mi to 1Ti. Default 256Mi. Entries give way
    /// when it is full, the log and removals never do. The pod may take half as much again and 64Mi. A change restarts
    /// Redis, and no node unless the length of the log follows it, which it does below 256Mi.
    #[serde(default = "defaults::managed_memory")]
    #[schemars(schema_with = "schema::size")]
    #[x_kube(validation = rules::size_within("spec.redis.managed.memory", &MANAGED_MEMORY))]
    pub memory: ByteSize,

    /// Size of the volume of each pod, such as `1Gi`, 256Mi to 64Ti and at least four times `memory`. Default 1Gi. It may grow, not
    /// shrink: the volume grows while Redis goes on, if its StorageClass allows it.
    #[serde(default = "defaults::managed_storage")]
    #[schemars(schema_with = "schema::size")]
    #[x_kube(validation = rules::size_within("spec.redis.managed.storage", &MANAGED_STORAGE))]
    pub storage: ByteSize,

    /// StorageClass of its volume. Default: the cluster's default class. Fixed as long as the mode is `Managed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,
}

/// A Redis that exists already.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::sentinels_have_a_master())]
pub struct ExternalRedis {
    /// What the endpoints are. `Standalone` (default): servers, of which the first that is a master is used. `Sentinel`:
    /// Sentinels, which know the master. A change restarts all nodes at once.
    #[serde(default)]
    #[schemars(schema_with = "schema::redis_kind")]
    pub kind: RedisKind,

    /// Where servers or Sentinels listen, as `host:port`, such as `redis.shop.svc:6379`; 1 to 16, tried in this order. A
    /// change restarts all nodes at once.
    #[schemars(schema_with = "schema::redis_endpoints")]
    pub endpoints: Vec<String>,

    /// What the Sentinels call the master. Needed for `kind: Sentinel`, and for that only. A change restarts all nodes
    /// at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub master_name: Option<String>,

    /// Number of the database, 0 to 1023. Default 0. A change restarts all nodes at once.
    #[serde(default)]
    #[schemars(schema_with = "schema::redis_database")]
    pub database: u16,

    /// The Secret with the user and password. Default: the nodes show neither. The pods mount it, the operator never reads
    /// it; what changes in the Secret is taken over without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<CredentialsSecret>,

    /// Encryption of the connections. Default: none. `{}` trusts the authorities of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
}

/// The Secret with the user and password, in the namespace of the cache.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsSecret {
    /// Name of the Secret. A change restarts the nodes one at a time.
    #[schemars(schema_with = "schema::object_name")]
    pub name: String,

    /// Its key with the user's name. Default: Redis's default user. A change restarts the nodes one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::secret_key")]
    pub username_key: Option<String>,

    /// Its key with the password. Default `password`. A change restarts the nodes one at a time.
    #[serde(default = "defaults::password_key")]
    #[schemars(schema_with = "schema::secret_key")]
    pub password_key: String,
}

/// Encryption of the connections to Redis.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisTls {
    /// The name that the server's certificate must have. Default: the host of the endpoint. A change restarts the nodes
    /// one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,

    /// The Secret with certificates. Default: the authorities of the image are trusted. Mounted and taken over as
    /// `credentialsSecretRef` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<TlsSecret>,
}

/// A Secret with certificates in PEM, in the namespace of the cache.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::certificate_has_its_key())]
pub struct TlsSecret {
    /// Name of the Secret. A change restarts the nodes one at a time.
    #[schemars(schema_with = "schema::object_name")]
    pub name: String,

    /// Its key with the authorities to trust. Default `ca.crt`. A change restarts the nodes one at a time.
    #[serde(default = "defaults::ca_key")]
    #[schemars(schema_with = "schema::secret_key")]
    pub ca_key: String,

    /// Its key with the certificate by which nodes show who they are, such as `tls.crt`; together with `keyKey`. Default:
    /// none. A change restarts the nodes one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::secret_key")]
    pub cert_key: Option<String>,

    /// Its key with the key of that certificate, such as `tls.key`. Default: none. A change restarts the nodes one at a
    /// time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::secret_key")]
    pub key_key: Option<String>,
}

// === impl Redis ===

impl Default for Redis {
    fn default() -> Self {
        Self {
            mode: RedisMode::default(),
            max_ttl: defaults::max_ttl(),
            timeout: defaults::timeout(),
            write_mode: WriteMode::default(),
            managed: ManagedRedis::default(),
            external: None,
        }
    }
}

// === impl ManagedRedis ===

impl Default for ManagedRedis {
    fn default() -> Self {
        Self {
            image: defaults::managed_image(),
            replicas: defaults::managed_replicas(),
            memory: defaults::managed_memory(),
            storage: defaults::managed_storage(),
            storage_class_name: None,
        }
    }
}

/// The defaults of the schema; those of the layer are the cache node's own.
mod defaults {
    use super::{ByteSize, HumanDuration, node_config};

    pub(super) fn managed_image() -> String {
        "docker.io/library/redis:7.4".to_owned()
    }

    pub(super) fn managed_replicas() -> i32 {
        1
    }

    pub(super) fn managed_memory() -> ByteSize {
        ByteSize::mebibytes(256)
    }

    pub(super) fn managed_storage() -> ByteSize {
        ByteSize::mebibytes(1 << 10)
    }

    pub(super) fn max_ttl() -> HumanDuration {
        node_config::Redis::default().max_ttl
    }

    pub(super) fn timeout() -> HumanDuration {
        node_config::Redis::default().timeout
    }

    pub(super) fn password_key() -> String {
        "password".to_owned()
    }

    pub(super) fn ca_key() -> String {
        "ca.crt".to_owned()
    }
}
