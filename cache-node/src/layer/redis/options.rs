//! How L2 is opened.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use crate::entry::envelope::Codec;

/// How L2 is opened. `config.rs` fills it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisOptions {
    /// Name of the node among those of its cache.
    pub node: String,
    /// What the endpoints are.
    pub topology: Topology,
    /// Servers or Sentinels, tried in this order; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Holds the user's name; none, or an empty file, is the default user.
    pub username_file: Option<PathBuf>,
    /// Holds the password; none, or an empty file, is no password.
    pub password_file: Option<PathBuf>,
    /// How to encrypt; none is not at all.
    pub tls: Option<TlsOptions>,
    /// Number of the database.
    pub database: u16,
    /// Identity of the cache, part of every key.
    pub cache_uid: String,
    /// How long an entry may stay in Redis without being written again.
    pub max_ttl: Duration,
    /// How long removals of tags are kept: as long as an entry can live in any layer of any node.
    pub removals_kept: Duration,
    /// Of how many of them one by one the layer tells.
    pub removals_max: usize,
    /// How long one call may take; writes get as much again for each MiB.
    pub timeout: Duration,
    /// Connections, at least two: one for writes, the others for reads.
    pub connections: usize,
    /// Reads, and writes, that may be under way at once; four times as many may wait.
    pub concurrency: usize,
    /// Where to write down who writes, so that the next process can have what a killed one has left on its way dropped;
    /// none is nowhere.
    pub writer_file: Option<PathBuf>,
    /// Records of the log that are kept, about; a node that was away for longer starts cold.
    pub log_records: u64,
    /// How envelopes are written.
    pub codec: Codec,
}

/// What the endpoints of L2 are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Servers: the first that is a master is used, else the first that answers, for reads only.
    Standalone,
    /// Sentinels, which know the master.
    Sentinel {
        /// What they call it.
        master_name: String,
    },
}

/// How connections to L2 are encrypted. The files are read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates of the authorities that are trusted; none is those of the system.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key that show who we are.
    pub client_files: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must have; none is the host of the endpoint.
    pub server_name: Option<String>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Why a text is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no host and port, such as redis.example:6379 or [::1]:6379")]
pub struct EndpointError;

// === impl Endpoint ===

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (host, port) = text.rsplit_once(':').ok_or(EndpointError)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(EndpointError)?;
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let plain = |host: &str| !host.contains([':', '[', ']', '/', '@', ' ']);
        match bracketed {
            Some(address) if address.contains(':') => Ok(Self { host: address.to_owned(), port }),
            None if !host.is_empty() && plain(host) => Ok(Self { host: host.to_owned(), port }),
            _ => Err(EndpointError),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_back_as_themselves() {
        for text in ["redis:6379", "redis-0.redis.cache.svc:1", "10.0.0.1:65535", "[::1]:6379", "[fd00::7]:7000"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_no_endpoints() {
        let texts =
            ["", "redis", "redis:", ":6379", "redis:0", "redis:70000", "::1:6379", "redis://a:1", "a@b:1", "[a]:1"];
        for text in texts {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError), "{text}");
        }
    }
}
