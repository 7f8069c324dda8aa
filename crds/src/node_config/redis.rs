//! The section `redis`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{hours, milliseconds};
use crate::quantity::HumanDuration;

/// L2, the Redis layer: a Redis (7.0 or newer) or Valkey (7.2 or newer) that the nodes of a cache share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Redis {
    /// Whether there is a Redis layer. Default `Disabled`.
    pub mode: RedisMode,
    /// What the endpoints are. Default `Standalone`.
    pub kind: RedisKind,
    /// Where servers, or Sentinels, listen, as `host:port`; tried in this order. 1 to 16, unless disabled.
    pub endpoints: Vec<String>,
    /// What the Sentinels call the master. For `kind: Sentinel` only, and needed there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master_name: Option<String>,
    /// File with the user's name, read again when it changes. Default none: the default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username_file: Option<PathBuf>,
    /// File with the password, read again when it changes. Default none: no password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Encryption of the connections. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
    /// Number of the database. Default 0, at most 1023.
    pub database: u16,
    /// Which of this cache's data in Redis counts: part of the names of its keys. A cache that did without this Redis for
    /// a while gives another number, so that it finds nothing of what it has overwritten since. Default 0: none.
    pub lineage: u64,
    /// How long an entry may stay in Redis. Default 4h, at least 1s, at most 87600h.
    pub max_ttl: HumanDuration,
    /// How long one call may take; a write has as long again for each MiB. Default 50ms, at least 1ms, at most 10s.
    pub timeout: HumanDuration,
    /// Connections: one for writes, the others for reads. Default 3, at least 2, at most 64.
    pub connections: u16,
    /// Reads, and writes, under way at once. Four times as many may wait. Default 64, at least 1, at most 4096.
    pub concurrency: u16,
    /// When a write is acknowledged. Default `WriteBehind`.
    pub write_mode: WriteMode,
}

/// When a write of a client is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum WriteMode {
    /// Once it is in memory and in the write queue: the fastest.
    #[default]
    WriteBehind,
    /// Once Redis and the disk have it: other nodes see it at once, and each write waits for both.
    WriteThrough,
}

/// Whether there is a Redis layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum RedisMode {
    /// None.
    #[default]
    Disabled,
    /// One that exists already.
    External,
}

/// What the endpoints of Redis are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum RedisKind {
    /// Servers: the first that is a master is used.
    #[default]
    Standalone,
    /// Sentinels, which know the master and elect another.
    Sentinel,
}

/// TLS towards Redis. The files are read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RedisTls {
    /// Certificates of the authorities to trust, in PEM. Default none: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Certificate that shows who the node is, in PEM; with `keyFile`. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Key of that certificate, in PEM. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must have. Default none: the host of the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

// === defaults ===

impl Default for Redis {
    fn default() -> Self {
        Self {
            mode: RedisMode::default(),
            kind: RedisKind::default(),
            endpoints: Vec::new(),
            master_name: None,
            username_file: None,
            password_file: None,
            tls: None,
            database: 0,
            lineage: 0,
            max_ttl: hours(4),
            timeout: milliseconds(50),
            connections: 3,
            concurrency: 64,
            write_mode: WriteMode::default(),
        }
    }
}
