//! From the options to one connection that is known to work: authenticated, to a server that is new enough, with the
//! permission to read.

use std::{collections::HashMap, fmt, net::SocketAddr, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisConnectionInfo,
    RedisError, RedisFuture, RedisResult, Value,
    aio::MultiplexedConnection,
    io::{AsyncDNSResolver, tcp::TcpSettings},
};
use tokio::{net::lookup_host, time::timeout};

use super::{
    Endpoint, RedisOptions, Topology, keys::Keys, log::replication, secrets::Secrets, sentinel::find_master,
    trouble::Trouble,
};

/// For name, connection, TLS and handshake together.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The oldest Redis that has what the scripts need. Valkey begins at 7.2.
const VERSION_MIN: (u32, u32) = (7, 0);

/// A connection and whom it leads to.
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    pub(super) endpoint: Endpoint,
    pub(super) is_master: bool,
    /// Who we are there; none if we may not ask.
    pub(super) identity: Option<ClientIdentity>,
    /// The server's replication id: another one after each restart.
    pub(super) history: String,
}

/// A connection as the server knows it. Numbers begin again when a server restarts, so the address belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientIdentity {
    pub(super) id: u64,
    pub(super) address: String,
}

/// Resolves whatever name to one endpoint: the name in a certificate need not be the name in DNS.
struct Always(Endpoint);

// === connecting ===

/// As many connections as the options say, all to one server: a master if there is one.
///
/// # Errors
/// What is wrong with the last endpoint tried.
pub(super) async fn connect_all(
    options: &RedisOptions,
    keys: &Keys,
    secrets: &Secrets,
) -> Result<Vec<Connected>, Trouble> {
    let first = match &options.topology {
        Topology::Standalone => connect_first(options, keys, secrets).await?,
        Topology::Sentinel { master_name } => {
            let master = find_master(options, secrets, master_name).await?;
            let connected = connect(options, keys, secrets, &master).await?;
            if !connected.is_master {
                return Err(Trouble::refused("ReadOnly", format!("{master} is not a master yet")));
            }
            connected
        }
    };
    let endpoint = first.endpoint.clone();
    let others = (1..options.connections).map(|_| connect(options, keys, secrets, &endpoint));
    let mut all = vec![first];
    all.extend(futures::future::try_join_all(others).await?);
    Ok(all)
}

/// The first master among the endpoints, else the first replica.
async fn connect_first(options: &RedisOptions, keys: &Keys, secrets: &Secrets) -> Result<Connected, Trouble> {
    let mut replica = None;
    let mut trouble = Trouble::unreachable("no endpoint is configured");
    for endpoint in &options.endpoints {
        match connect(options, keys, secrets, endpoint).await {
            Ok(connected) if connected.is_master => return Ok(connected),
            Ok(connected) => replica = replica.or(Some(connected)),
            Err(error) => trouble = error,
        }
    }
    replica.ok_or(trouble)
}

/// A connection of its own to this server.
pub(super) async fn connect(
    options: &RedisOptions,
    keys: &Keys,
    secrets: &Secrets,
    endpoint: &Endpoint,
) -> Result<Connected, Trouble> {
    let connecting = async {
        let connection = dial(options, secrets, endpoint).await?;
        greet(options, keys, secrets, endpoint, connection).await
    };
    let late = || Trouble::unreachable("no connection within one second");
    let connected = timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(late()));
    connected.map_err(|trouble| Trouble { message: format!("{endpoint}: {}", trouble.message), ..trouble })
}

/// Opens a connection and says nothing.
pub(super) async fn dial(
    options: &RedisOptions,
    secrets: &Secrets,
    endpoint: &Endpoint,
) -> Result<MultiplexedConnection, Trouble> {
    let Endpoint { host, port } = endpoint.clone();
    let name = options.tls.as_ref().map(|tls| tls.server_name.clone().unwrap_or_else(|| host.clone()));
    let address = match name {
        None => ConnectionAddr::Tcp(host, port),
        Some(name) => ConnectionAddr::TcpTls { host: name, port, insecure: false, tls_params: None },
    };
    // Said by `greet`, so that a refusal is seen in the server's own words.
    let silent = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    let dialing = async {
        let info = address
            .into_connection_info()?
            .set_redis_settings(silent)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = match &secrets.tls {
            None => Client::open(info)?,
            Some(files) => Client::build_with_tls(info, files.certificates())?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_dns_resolver(Always(endpoint.clone()));
        client.get_multiplexed_async_connection_with_config(&config).await
    };
    dialing.await.map_err(|error: RedisError| Trouble::from(&error))
}

/// Says who we are, and asks who answers.
async fn greet(
    options: &RedisOptions,
    keys: &Keys,
    secrets: &Secrets,
    endpoint: &Endpoint,
    mut connection: MultiplexedConnection,
) -> Result<Connected, Trouble> {
    let mut greeting = Pipeline::new();
    if let Some(password) = &secrets.password {
        greeting.cmd("AUTH").arg(secrets.user.as_deref()).arg(password);
    }
    if options.database != 0 {
        greeting.cmd("SELECT").arg(options.database);
    }
    // The first refusal of what is needed counts; the last three may be refused.
    let needed = greeting.len() + 2;
    greeting.cmd("HELLO").cmd("MGET").arg(keys.floor());
    greeting.cmd("CLIENT").arg("INFO").cmd("CLIENT").arg("SETNAME").arg(format!("tieredcache:{}", options.cache_uid));
    greeting.cmd("INFO").arg("replication");
    let answers: Vec<RedisResult<Value>> =
        greeting.ignore_errors().query_async(&mut connection).await.map_err(|error| Trouble::from(&error))?;
    for (number, answer) in answers[..needed.min(answers.len())].iter().enumerate() {
        if let Err(error) = answer {
            let trouble = Trouble::from(error);
            let no_hello = number == needed - 2 && trouble.reason == "Refused";
            // From 6.2 on it may be asked without a version of the protocol.
            return Err(if no_hello { too_old("older than 6.2") } else { trouble });
        }
    }
    let mut answers = answers.into_iter().skip(needed - 2);
    let hello = answers.next().and_then(Result::ok).and_then(|value| redis::from_redis_value(value).ok());
    let hello: HashMap<String, Value> = hello.unwrap_or_default();
    let word = |name: &str| match hello.get(name) {
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    check_version(&word("version"))?;
    let identity = answers.nth(1).and_then(Result::ok).and_then(|value| ClientIdentity::of(&value));
    let info = answers.nth(1).and_then(Result::ok).and_then(|value| redis::from_redis_value::<String>(value).ok());
    let history = info.map(|info| replication(&info).history).unwrap_or_default();
    let is_master = word("role") == "master";
    Ok(Connected { connection, endpoint: endpoint.clone(), is_master, identity, history })
}

fn check_version(version: &str) -> Result<(), Trouble> {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= VERSION_MIN => Ok(()),
        _ => Err(too_old(version)),
    }
}

fn too_old(version: &str) -> Trouble {
    Trouble::refused("TooOld", format!("the server is {version}; Redis 7.0 or Valkey 7.2 are needed at least"))
}

// === impl ClientIdentity ===

impl ClientIdentity {
    /// From the answer to CLIENT INFO: `id=3 addr=127.0.0.1:50188 …`.
    fn of(info: &Value) -> Option<Self> {
        let Value::BulkString(bytes) = info else { return None };
        Self::parse(std::str::from_utf8(bytes).ok()?)
    }

    /// From such a text, or one that [`fmt::Display`] has made.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let word = |name: &str| text.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
        Some(Self { id: word("id=")?.parse().ok()?, address: word("addr=")?.to_owned() })
    }
}

impl fmt::Display for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id={} addr={}", self.id, self.address)
    }
}

impl AsyncDNSResolver for Always {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        _host: &'b str,
        _port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async {
            let found = lookup_host((self.0.host.as_str(), self.0.port)).await?;
            let found: Box<dyn Iterator<Item = SocketAddr> + Send + 'a> =
                Box::new(found.collect::<Vec<_>>().into_iter());
            Ok(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_too_old_are_told_from_others() {
        for version in ["7.0.0", "7.2.4", "8.0.1", "10.0"] {
            assert!(check_version(version).is_ok(), "{version}");
        }
        for version in ["6.2.14", "5.0", "", "seven", "7"] {
            assert_eq!(check_version(version).unwrap_err().reason, "TooOld", "{version}");
        }
    }

    #[test]
    fn identity_is_read_from_the_servers_own_words() {
        let info = Value::BulkString(b"id=30 addr=10.0.0.7:50188 laddr=10.0.0.1:6379 fd=8 name=".to_vec());
        let identity = ClientIdentity { id: 30, address: "10.0.0.7:50188".to_owned() };
        assert_eq!(ClientIdentity::parse(&identity.to_string()).as_ref(), Some(&identity));
        assert_eq!(ClientIdentity::of(&info), Some(identity));
        assert_eq!(ClientIdentity::of(&Value::BulkString(b"ERR".to_vec())), None);
    }
}
