//! The configuration file and the environment → [`Config`], which is the proof that every limit was checked.
//!
//! This is the only reader of environment variables and of the configuration file.

use std::{
    collections::BTreeSet,
    env, fmt, fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    thread,
};

use crds::{
    node_config::{
        CacheIdentity, Disk, DiskMode, Limits, Listen, Log, Memory, NodeConfig, Shutdown, WriteQueue, limits,
    },
    quantity::ByteSize,
};
use tracing_subscriber::EnvFilter;

use crate::entry::KEY_BYTES_MAX;

/// A configuration that passed every check, with the environment applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    effective: NodeConfig,
    node: String,
    resp_threads: u16,
}

/// What the process finds around it besides the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `NODE_NAME`: the pod's name, used when the file does not name the node.
    pub node_name: Option<String>,
    /// `RUST_LOG`: overrides `log.filter`.
    pub log_filter: Option<String>,
    /// `TERMINATION_LOG`, default `/dev/termination-log`: where the last words go, so that `kubectl describe pod` shows
    /// them. Written only if the file exists.
    pub termination_log: PathBuf,
    /// Cores that the process may use, by affinity and cgroup quota; at least 1.
    pub cores: u16,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is not YAML, or has an unknown field or a value of the wrong kind.
    #[error("line {line} column {column}: {message}")]
    Parse {
        /// Counted from 1; 0 if not known.
        line: u64,
        /// Counted from 1; 0 if not known.
        column: u64,
        /// What is wrong there.
        message: String,
    },
    /// The file is readable and breaks limits: all of them, not only the first.
    #[error("{}", Violation::lines(.0))]
    Invalid(Vec<Violation>),
}

/// One broken limit: field, value and limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the file.
    pub field: &'static str,
    /// What it is set to.
    pub value: String,
    /// Which limit it breaks.
    pub problem: String,
}

/// Collects what is wrong.
#[derive(Default)]
struct Checks(Vec<Violation>);

// === impl Environment ===

impl Environment {
    /// That of this process.
    pub fn read() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            node_name: set("NODE_NAME"),
            log_filter: set("RUST_LOG"),
            termination_log: set("TERMINATION_LOG").unwrap_or_else(|| "/dev/termination-log".to_owned()).into(),
            cores: thread::available_parallelism().ok().and_then(|cores| u16::try_from(cores.get()).ok()).unwrap_or(1),
        }
    }

    /// Leaves a message where the kubelet picks it up; does nothing outside a pod.
    ///
    /// # Errors
    /// What the system said if the file exists and can not be written.
    pub fn write_last_words(&self, message: &str) -> io::Result<()> {
        // Never created: outside a pod the path means nothing, and /dev is no place for files of ours.
        if self.termination_log.exists() { fs::write(&self.termination_log, message) } else { Ok(()) }
    }
}

// === impl Config ===

impl Config {
    /// Reads and checks a file; without one, the default configuration.
    ///
    /// # Errors
    /// [`ConfigError`], by what is wrong.
    pub fn load(path: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Self::check(NodeConfig::default(), environment) };
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::from_yaml(&text, environment)
    }

    /// Checks a text. An empty one is the default configuration.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] or [`ConfigError::Invalid`].
    pub fn from_yaml(text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        let file = serde_saphyr::from_str(text).map_err(|error| {
            let error = error.without_snippet();
            let (line, column) = error.location().map_or((0, 0), |place| (place.line(), place.column()));
            let message = error.to_string();
            let place = format!(" at line {line}, column {column}");
            ConfigError::Parse { line, column, message: message.strip_suffix(&place).unwrap_or(&message).to_owned() }
        })?;
        Self::check(file, environment)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every broken limit.
    pub fn check(file: NodeConfig, environment: &Environment) -> Result<Self, ConfigError> {
        let mut effective = file;
        if let Some(filter) = &environment.log_filter {
            effective.log.filter.clone_from(filter);
        }
        let node = effective.cache.node.clone().or_else(|| environment.node_name.clone());
        let node = node.unwrap_or_else(|| "node".to_owned());
        effective.cache.node = Some(node.clone());
        let violations = Checks::of(&effective);
        if !violations.is_empty() {
            return Err(ConfigError::Invalid(violations));
        }
        let resp_threads = match effective.listen.threads {
            0 => environment.cores.clamp(1, *limits::THREADS.end()),
            threads => threads,
        };
        Ok(Self { effective, node, resp_threads })
    }

    /// The file with the environment applied.
    pub const fn effective(&self) -> &NodeConfig {
        &self.effective
    }

    /// Name of this node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Threads that serve RESP: `listen.threads`, or the number of cores; 1 to 64.
    pub const fn resp_threads(&self) -> u16 {
        self.resp_threads
    }

    /// What a person who starts a node by hand wants to know.
    pub fn welcome(&self) -> String {
        let NodeConfig { listen, memory, disk, .. } = &self.effective;
        let (host, port) = (listen.resp.ip(), listen.resp.port());
        let storage = match disk.mode {
            DiskMode::RocksDb => format!("{} of memory, then RocksDB in {}", memory.capacity, disk.path.display()),
            DiskMode::Disabled => format!("{} of memory", memory.capacity),
        };
        format!(
            "TieredCache {}, one node on this machine\n\
             \x20 connect   redis-cli -h {host} -p {port}\n\
             \x20 look      curl http://{}/v1/layers   (or /metrics, /readyz)\n\
             \x20 values    {storage}\n\
             \x20 stop      Ctrl-C\n",
            env!("CARGO_PKG_VERSION"),
            listen.admin,
        )
    }

    /// The effective configuration as a file, defaults and environment written out.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(&self.effective).expect("a tree of structs, numbers and texts is always YAML")
    }
}

// === impl Violation ===

impl Violation {
    fn lines(violations: &[Self]) -> String {
        violations.iter().map(Self::to_string).collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.field, self.value, self.problem)
    }
}

// === impl Checks ===

impl Checks {
    fn of(config: &NodeConfig) -> Vec<Violation> {
        // Destructured without `..`, here and below: a new field does not compile until somebody decides its limits.
        let NodeConfig { cache, revision: _, listen, memory, disk, write_queue, limits, shutdown, log } = config;
        let mut checks = Self::default();
        checks.cache(cache);
        checks.listen(listen);
        checks.memory(memory);
        checks.disk(disk);
        checks.write_queue(write_queue, disk.mode, limits.value_bytes_max);
        checks.limits(limits);
        checks.shutdown_and_log(shutdown, log);
        checks.0
    }

    fn cache(&mut self, CacheIdentity { name, uid, node }: &CacheIdentity) {
        self.name("cache.name", name);
        self.name("cache.uid", uid);
        self.name("cache.node", node.as_deref().unwrap_or_default());
    }

    fn listen(&mut self, Listen { resp, admin, threads }: &Listen) {
        self.within("listen.threads", threads, &limits::THREADS);
        // Port 0 asks the system for a free one, so two of them never collide.
        self.require("listen.admin", admin, resp != admin || admin.port() == 0, || "is also listen.resp".to_owned());
    }

    fn memory(&mut self, Memory { capacity, policy: _, max_ttl }: &Memory) {
        self.within("memory.capacity", capacity, &limits::MEMORY_CAPACITY);
        self.within("memory.maxTtl", max_ttl, &limits::MEMORY_MAX_TTL);
    }

    fn disk(&mut self, Disk { mode: _, path, max_ttl, memory }: &Disk) {
        self.require("disk.path", "\"\"", !path.as_os_str().is_empty(), || "names no folder".to_owned());
        self.within("disk.maxTtl", max_ttl, &limits::DISK_MAX_TTL);
        self.within("disk.memory", memory, &limits::DISK_MEMORY);
    }

    fn write_queue(&mut self, queue: &WriteQueue, mode: DiskMode, value_bytes_max: ByteSize) {
        let WriteQueue { capacity, items_max } = queue;
        self.within("writeQueue.capacity", capacity, &limits::QUEUE_CAPACITY);
        self.within("writeQueue.itemsMax", items_max, &limits::QUEUE_ITEMS);
        // Otherwise the largest value that a client may send could never be written, however long it waits.
        let largest = ByteSize(value_bytes_max.0.saturating_add(KEY_BYTES_MAX as u64));
        let fits = mode == DiskMode::Disabled || *capacity >= largest;
        self.require("writeQueue.capacity", capacity, fits, || {
            format!("is below {largest}, the size of the largest entry (limits.valueBytesMax is {value_bytes_max})")
        });
    }

    fn limits(&mut self, limits: &Limits) {
        let Limits { connections_max, value_bytes_max, request_timeout, partial_request_timeout } = limits;
        self.within("limits.connectionsMax", connections_max, &limits::CONNECTIONS);
        self.within("limits.valueBytesMax", value_bytes_max, &limits::VALUE_BYTES);
        self.within("limits.requestTimeout", request_timeout, &limits::REQUEST_TIMEOUT);
        self.within("limits.partialRequestTimeout", partial_request_timeout, &limits::PARTIAL_REQUEST_TIMEOUT);
    }

    fn shutdown_and_log(&mut self, Shutdown { drain_timeout }: &Shutdown, Log { filter, format: _ }: &Log) {
        self.within("shutdown.drainTimeout", drain_timeout, &limits::DRAIN_TIMEOUT);
        if let Err(error) = EnvFilter::try_new(filter) {
            self.require("log.filter", format!("{filter:?}"), false, || format!("is no log filter: {error}"));
        }
    }

    /// A name that can stand in a stamp, a label or a log line as it is.
    fn name(&mut self, field: &'static str, name: &str) {
        let (shortest, longest) = (limits::NAME_LEN.start(), limits::NAME_LEN.end());
        self.require(field, format!("{name:?}"), limits::NAME_LEN.contains(&name.len()), || {
            format!("has {} characters; {shortest} to {longest} are allowed", name.len())
        });
        let strange: BTreeSet<char> =
            name.chars().filter(|char| !char.is_ascii_alphanumeric() && !"-_.".contains(*char)).collect();
        self.require(field, format!("{name:?}"), strange.is_empty(), || {
            format!("has {strange:?}; only letters, digits, '-', '_' and '.' are allowed")
        });
    }

    fn within<T: PartialOrd + fmt::Display>(&mut self, field: &'static str, value: &T, range: &RangeInclusive<T>) {
        let (min, max) = (range.start(), range.end());
        self.require(field, value, value >= min, || format!("is below the minimum of {min}"));
        self.require(field, value, value <= max, || format!("is above the maximum of {max}"));
    }

    fn require(&mut self, field: &'static str, value: impl fmt::Display, holds: bool, problem: impl Fn() -> String) {
        if !holds {
            self.0.push(Violation { field, value: value.to_string(), problem: problem() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment { node_name: None, log_filter: None, termination_log: PathBuf::from("/nonexistent"), cores: 3 }
    }

    /// The message for a text that must not be accepted.
    fn refusal(text: &str) -> String {
        Config::from_yaml(text, &environment()).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_the_default_configuration() {
        let config = Config::from_yaml("", &environment()).unwrap();
        let default = Config::check(NodeConfig::default(), &environment()).unwrap();
        assert_eq!(config, default);
        assert_eq!(config.node(), "node");
        assert_eq!(config.resp_threads(), 3);
    }

    #[test]
    fn the_effective_configuration_reads_back_as_itself() {
        let config = Config::from_yaml("memory: {capacity: 5Mi, policy: TinyLfu}\nrevision: '12'", &environment());
        let config = config.unwrap();
        let yaml = config.to_yaml();
        assert!(yaml.contains("capacity: 5Mi"), "{yaml}");
        assert_eq!(Config::from_yaml(&yaml, &environment()).unwrap(), config);
    }

    #[test]
    fn every_limit_names_field_value_and_limit() {
        let long_name = format!("cache: {{name: {}}}", "n".repeat(254));
        let table = [
            ("memory: {capacity: 512Ki}", "memory.capacity: 512Ki is below the minimum of 1Mi"),
            ("memory: {capacity: 2Ti}", "memory.capacity: 2Ti is above the maximum of 1Ti"),
            ("memory: {maxTtl: 10ms}", "memory.maxTtl: 10ms is below the minimum of 1s"),
            ("disk: {maxTtl: 87601h}", "disk.maxTtl: 87601h is above the maximum of 87600h"),
            ("disk: {memory: 15Mi}", "disk.memory: 15Mi is below the minimum of 16Mi"),
            ("disk: {path: ''}", "disk.path: \"\" names no folder"),
            ("writeQueue: {capacity: 65Gi}", "writeQueue.capacity: 65Gi is above the maximum of 64Gi"),
            ("writeQueue: {itemsMax: 99}", "writeQueue.itemsMax: 99 is below the minimum of 100"),
            (
                "writeQueue: {capacity: 1Mi}\nlimits: {valueBytesMax: 1Mi}",
                "writeQueue.capacity: 1Mi is below 1056Ki, the size of the largest entry (limits.valueBytesMax is 1Mi)",
            ),
            ("limits: {connectionsMax: 0}", "limits.connectionsMax: 0 is below the minimum of 1"),
            ("limits: {valueBytesMax: 1}", "limits.valueBytesMax: 1 is below the minimum of 1Ki"),
            ("limits: {requestTimeout: 0s}", "limits.requestTimeout: 0s is below the minimum of 1ms"),
            ("limits: {partialRequestTimeout: 2h}", "limits.partialRequestTimeout: 2h is above the maximum of 1h"),
            ("shutdown: {drainTimeout: 61m}", "shutdown.drainTimeout: 1h1m is above the maximum of 1h"),
            ("listen: {threads: 65}", "listen.threads: 65 is above the maximum of 64"),
            (
                "listen: {resp: '127.0.0.1:7000', admin: '127.0.0.1:7000'}",
                "listen.admin: 127.0.0.1:7000 is also listen.resp",
            ),
            ("cache: {name: ''}", "cache.name: \"\" has 0 characters; 1 to 253 are allowed"),
            (&long_name, "has 254 characters; 1 to 253 are allowed"),
            ("cache: {uid: a/b}", "cache.uid: \"a/b\" has {'/'}; only letters, digits, '-', '_' and '.' are allowed"),
            ("log: {filter: 'a=b=c'}", "log.filter: \"a=b=c\" is no log filter"),
        ];
        for (text, message) in table {
            let refusal = refusal(text);
            assert!(refusal.contains(message), "for {text}\n got {refusal}\nwant {message}");
            assert_eq!(refusal.lines().count(), 1, "{refusal}");
        }
    }

    #[test]
    fn all_broken_limits_are_reported() {
        let refusal = refusal("memory: {capacity: 1Ki}\nlisten: {threads: 99}\nlimits: {connectionsMax: 0}");
        assert_eq!(refusal.lines().count(), 3, "{refusal}");
    }

    #[test]
    fn values_at_the_limits_are_accepted() {
        let text = "memory: {capacity: 1Mi, maxTtl: 1s}\ndisk: {memory: 16Mi, maxTtl: 87600h}\n\
                    writeQueue: {capacity: 1056Ki, itemsMax: 100}\nlisten: {threads: 64}\n\
                    limits: {connectionsMax: 1, valueBytesMax: 1Mi, requestTimeout: 1ms, partialRequestTimeout: 1h}\n\
                    shutdown: {drainTimeout: 0s}";
        let config = Config::from_yaml(text, &environment()).unwrap();
        assert_eq!(config.resp_threads(), 64);
    }

    #[test]
    fn without_a_disk_the_queue_need_not_hold_the_largest_entry() {
        Config::from_yaml("disk: {mode: Disabled}\nwriteQueue: {capacity: 1Mi}", &environment()).unwrap();
    }

    #[test]
    fn unknown_fields_are_refused_with_name_and_place() {
        let refusal = refusal("memory:\n  capacity: 5Mi\n  colour: red\n");
        assert!(refusal.starts_with("line 3 column 3: "), "{refusal}");
        assert!(refusal.contains("colour"), "{refusal}");
    }

    #[test]
    fn malformed_values_are_refused_with_value_and_place() {
        for (text, place, word) in [
            ("memory:\n  capacity: lots", "line 2 column 13: ", "\"lots\" is not a size"),
            ("limits:\n  requestTimeout: 5", "line 2 column 19: ", "\"5\" is not a duration"),
            ("disk:\n  mode: Tape", "line 2 column 9: ", "Tape"),
            ("listen:\n  resp: here", "line 2 column 9: ", "address"),
            ("memory: [1, 2", "line 1 ", ""),
        ] {
            let refusal = refusal(text);
            assert!(refusal.starts_with(place) && refusal.contains(word), "for {text}: {refusal}");
            assert_eq!(refusal.matches("line ").count(), 1, "{refusal}");
            assert_eq!(refusal.lines().count(), 1, "{refusal}");
        }
    }

    #[test]
    fn the_file_names_the_node_before_the_environment_does() {
        let pod = Environment { node_name: Some("sessions-1".to_owned()), ..environment() };
        assert_eq!(Config::from_yaml("", &pod).unwrap().node(), "sessions-1");
        assert_eq!(Config::from_yaml("cache: {node: mine}", &pod).unwrap().node(), "mine");
    }

    #[test]
    fn the_environment_overrides_the_log_filter() {
        let loud = Environment { log_filter: Some("debug".to_owned()), ..environment() };
        assert_eq!(Config::from_yaml("log: {filter: warn}", &loud).unwrap().effective().log.filter, "debug");
    }

    #[test]
    fn last_words_are_written_only_where_a_file_waits_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let pod = Environment { termination_log: folder.path().join("log"), ..environment() };
        pod.write_last_words("lost").unwrap();
        assert!(!pod.termination_log.exists());
        fs::write(&pod.termination_log, "").unwrap();
        pod.write_last_words("found").unwrap();
        assert_eq!(fs::read_to_string(&pod.termination_log).unwrap(), "found");
    }
}
