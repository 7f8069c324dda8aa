//! L2 in the spec: which Redis the nodes share, and how they reach it.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};
use crate::{
    node_config::{self, RedisKind, RedisMode, WriteMode, limits},
    quantity::HumanDuration,
};

/// L2, the Redis layer.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::external_redis_is_named())]
pub struct Redis {
    /// `Disabled` (default): no Redis layer. `External`: the nodes share a Redis that exists already, which `external`
    /// names. A change restarts the nodes one at a time.
    #[serde(default)]
    #[schemars(schema_with = "schema::redis_mode")]
    pub mode: RedisMode,

    /// How long an entry may stay in Redis, whatever its own time to live; it shortens, never extends. A duration such as
    /// `4h`, 1s to 87600h. Default 4h. A change restarts the nodes one at a time.
    #[serde(default = "defaults::max_ttl")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.redis.maxTtl", &limits::REDIS_MAX_TTL))]
    pub max_ttl: HumanDuration,

    /// How long one call to Redis may take. A duration such as `50ms`, 1ms to 10s. Default 50ms. A change restarts the
    /// nodes one at a time.
    #[serde(default = "defaults::timeout")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = rules::duration_within("spec.redis.timeout", &limits::REDIS_TIMEOUT))]
    pub timeout: HumanDuration,

    /// When a write of a client is acknowledged. `WriteBehind` (default): once it is in memory and in the write queue, the
    /// fastest. `WriteThrough`: once Redis and the disk have it. A change restarts the nodes one at a time.
    #[serde(default)]
    #[schemars(schema_with = "schema::write_mode")]
    pub write_mode: WriteMode,

    /// The Redis of `mode: External`: Redis 7.0 or newer, or Valkey 7.2 or newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalRedis>,
}

/// A Redis that exists already.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::sentinels_have_a_master())]
pub struct ExternalRedis {
    /// What the endpoints are. `Standalone` (default): servers, of which the first that is a master is used. `Sentinel`:
    /// Sentinels, which know the master. A change restarts the nodes one at a time.
    #[serde(default)]
    #[schemars(schema_with = "schema::redis_kind")]
    pub kind: RedisKind,

    /// Where servers or Sentinels listen, as `host:port`, such as `redis.shop.svc:6379`; 1 to 16, tried in this order. A
    /// change restarts the nodes one at a time.
    #[schemars(schema_with = "schema::redis_endpoints")]
    pub endpoints: Vec<String>,

    /// What the Sentinels call the master. Needed for `kind: Sentinel`, and for that only. A change restarts the nodes one
    /// at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub master_name: Option<String>,

    /// Number of the database, 0 to 1023. Default 0. A change restarts the nodes one at a time.
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
            external: None,
        }
    }
}

/// The defaults of the schema; those of the layer are the cache node's own.
mod defaults {
    use super::{HumanDuration, node_config};

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
