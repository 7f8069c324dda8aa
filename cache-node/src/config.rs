//! The configuration file and the environment → [`Config`], which is the proof that every limit was checked.
//!
//! This is the only reader of environment variables and of the configuration file.

mod redis;

use std::{
    collections::BTreeSet,
    env, fmt, fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::Duration,
};

use axum::http::uri::Authority;
use crds::{
    node_config::{
        CacheIdentity, ColdLayer, Compression, CompressionAlgorithm, Disk, DiskMode, Freshness, Limits, Listen, Log,
        Memory, NodeConfig, Otlp, Redis, RedisMode, Shutdown, SlowLog, TagIndex, Telemetry, WriteQueue, limits,
    },
    quantity::{ByteSize, HumanDuration},
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::entry::{
    KEY_BYTES_MAX,
    envelope::{self, Codec},
};

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

    /// The longest time that a copy of an entry stays in any one layer: a removal by tag older than that concerns nobody,
    /// because whatever is promoted later is checked then.
    pub fn copies_live_max(&self) -> Duration {
        let NodeConfig { memory, redis, disk, .. } = &self.effective;
        memory.max_ttl.0.max(redis.max_ttl.0).max(disk.max_ttl.0)
    }

    /// Removals by tag that are remembered one by one.
    pub fn removals_max(&self) -> usize {
        usize::try_from(self.effective.tag_index.removals_max).unwrap_or(usize::MAX)
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

    /// How the layers below memory write values: the setting `compression`.
    pub fn codec(&self) -> Codec {
        let Compression { algorithm, threshold } = &self.effective.compression;
        let compression = match algorithm {
            CompressionAlgorithm::None => envelope::Compression::None,
            CompressionAlgorithm::Lz4 => envelope::Compression::Lz4,
            CompressionAlgorithm::Zstd => envelope::Compression::Zstd,
        };
        Codec { compression, threshold_bytes: usize::try_from(threshold.0).unwrap_or(usize::MAX) }
    }

    /// Whether ordinary messages are wanted: a filter such as `warn` asks for silence while all is well.
    pub fn tells(&self) -> bool {
        let filter = EnvFilter::try_new(&self.effective.log.filter).ok();
        filter.and_then(|filter| filter.max_level_hint()).is_none_or(|most| most >= LevelFilter::INFO)
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
        let NodeConfig {
            cache,
            revision: _,
            listen,
            memory,
            redis,
            backplane,
            disk,
            compression,
            read_order,
            write_queue,
            tag_index,
            freshness,
            limits,
            slow_log,
            shutdown,
            log,
            telemetry,
        } = config;
        let mut checks = Self::default();
        checks.cache(cache);
        checks.listen(listen);
        checks.memory(memory);
        checks.redis(redis);
        checks.backplane(backplane);
        checks.disk(disk);
        checks.compression(compression);
        checks.write_queue(write_queue, disk.mode, limits.value_bytes_max);
        checks.read_order(read_order);
        checks.tag_index_and_freshness(tag_index, freshness);
        checks.limits(limits);
        checks.time_for_disk(redis, limits);
        checks.slow_log(slow_log);
        checks.shutdown_and_log(shutdown, log);
        checks.telemetry(telemetry);
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

    fn disk(&mut self, disk: &Disk) {
        let Disk { mode: _, path, max_ttl, memory, min_ttl, admission: _, daily_write_budget } = disk;
        self.require("disk.path", "\"\"", !path.as_os_str().is_empty(), || "names no folder".to_owned());
        self.within("disk.maxTtl", max_ttl, &limits::DISK_MAX_TTL);
        self.within("disk.memory", memory, &limits::DISK_MEMORY);
        self.within("disk.minTtl", min_ttl, &limits::DISK_MIN_TTL);
        if daily_write_budget.0 > 0 {
            self.within("disk.dailyWriteBudget", daily_write_budget, &limits::DISK_WRITE_BUDGET);
        }
    }

    fn compression(&mut self, Compression { algorithm: _, threshold }: &Compression) {
        self.within("compression.threshold", threshold, &limits::COMPRESSION_THRESHOLD);
    }

    fn write_queue(&mut self, queue: &WriteQueue, mode: DiskMode, value_bytes_max: ByteSize) {
        let WriteQueue { capacity, items_max, overflow: _ } = queue;
        self.within("writeQueue.capacity", capacity, &limits::QUEUE_CAPACITY);
        self.within("writeQueue.itemsMax", items_max, &limits::QUEUE_ITEMS);
        // Otherwise the largest value that a client may send could never be written, however long it waits.
        let largest = ByteSize(value_bytes_max.0.saturating_add(KEY_BYTES_MAX as u64));
        let fits = mode == DiskMode::Disabled || *capacity >= largest;
        self.require("writeQueue.capacity", capacity, fits, || {
            format!("is below {largest}, the size of the largest entry (limits.valueBytesMax is {value_bytes_max})")
        });
    }

    fn read_order(&mut self, order: &[ColdLayer]) {
        let each_once: BTreeSet<ColdLayer> = order.iter().copied().collect();
        self.require("readOrder", format!("{order:?}"), order.len() == 2 && each_once.len() == 2, || {
            "does not name Redis and Disk once each".to_owned()
        });
    }

    fn tag_index_and_freshness(&mut self, TagIndex { removals_max }: &TagIndex, freshness: &Freshness) {
        let Freshness { ttl_jitter_percent, soft_timeout, refresh_window, negative_ttl } = freshness;
        self.within("tagIndex.removalsMax", removals_max, &limits::TAG_REMOVALS);
        self.within("freshness.ttlJitterPercent", ttl_jitter_percent, &limits::TTL_JITTER_PERCENT);
        self.within("freshness.softTimeout", soft_timeout, &limits::SOFT_TIMEOUT);
        self.within("freshness.refreshWindow", refresh_window, &limits::REFRESH_WINDOW);
        self.within("freshness.negativeTtl", negative_ttl, &limits::NEGATIVE_TTL);
    }

    fn limits(&mut self, limits: &Limits) {
        let Limits { connections_max, value_bytes_max, request_timeout, partial_request_timeout, tracked_items_max } =
            limits;
        self.within("limits.connectionsMax", connections_max, &limits::CONNECTIONS);
        self.within("limits.valueBytesMax", value_bytes_max, &limits::VALUE_BYTES);
        self.within("limits.requestTimeout", request_timeout, &limits::REQUEST_TIMEOUT);
        self.within("limits.partialRequestTimeout", partial_request_timeout, &limits::PARTIAL_REQUEST_TIMEOUT);
        self.within("limits.trackedItemsMax", tracked_items_max, &limits::TRACKED_ITEMS);
    }

    /// A Redis that does not answer must leave time for the disk.
    fn time_for_disk(&mut self, redis: &Redis, limits: &Limits) {
        let most = HumanDuration(limits.request_timeout.0 / 2);
        let fits = redis.mode == RedisMode::Disabled || redis.timeout <= most;
        self.require("redis.timeout", redis.timeout, fits, || {
            format!(
                "is above {most}, half of limits.requestTimeout: a Redis that hangs would leave no time for the disk"
            )
        });
    }

    fn slow_log(&mut self, SlowLog { threshold, length_max }: &SlowLog) {
        self.within("slowLog.threshold", threshold, &limits::SLOW_LOG_THRESHOLD);
        self.within("slowLog.lengthMax", length_max, &limits::SLOW_LOG_LENGTH);
    }

    fn shutdown_and_log(&mut self, Shutdown { drain_timeout }: &Shutdown, Log { filter, format: _ }: &Log) {
        self.within("shutdown.drainTimeout", drain_timeout, &limits::DRAIN_TIMEOUT);
        if let Err(error) = EnvFilter::try_new(filter) {
            self.require("log.filter", format!("{filter:?}"), false, || format!("is no log filter: {error}"));
        }
    }

    fn telemetry(&mut self, Telemetry { otlp }: &Telemetry) {
        // Its share is within its range by its type; whether the file can be read is seen at the start.
        let Otlp { endpoint, sample_ratio: _, headers_file: _ } = otlp;
        let address = endpoint.trim_end_matches('/').strip_prefix("http://");
        let plain = address.is_some_and(|address| Authority::from_str(address).is_ok());
        self.require("telemetry.otlp.endpoint", format!("{endpoint:?}"), endpoint.is_empty() || plain, || {
            "is no address such as http://localhost:4318".to_owned()
        });
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
mod tests;
