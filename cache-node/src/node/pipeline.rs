//! The layers of a node without its ports: what a server is built on, and what a Rust program can embed.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use crds::{
    node_config::{self, ColdLayer, DiskAdmission, DiskMode, MemoryPolicy, NodeConfig, RedisMode},
    quantity::ByteSize,
};

use crate::{
    clock::Clock,
    config::Config,
    context::{OperationContext, Origin, Trail},
    coordinator::{Confirmed, Coordinator, FreshnessOptions, Part, Parts, Peek, Reading, Wants, WriteError, WriteMode},
    entry::{Entry, Key, KeyError, TagError, TagSet},
    layer::{
        Health, Layer, LayerError, Matching, Stats,
        disk::{Admit, Disk, DiskOptions},
        followers::Followers,
        lease::SharedLeases,
        log::Log,
        memory::{Memory, MemoryOptions, Policy},
        metered::Metered,
        redis::Redis,
    },
    metrics::Metrics,
    tag_index::{TagIndex, TagOptions},
    telemetry::Spans,
    write_queue::{JournalPlace, Overflow, QueueOptions},
};

/// The layers of one node, opened from a configuration. Cloning is cheap; all clones are one pipeline.
#[derive(Clone)]
pub struct Pipeline {
    coordinator: Arc<Coordinator>,
    clock: Clock,
    request_timeout: Duration,
    drain_timeout: Duration,
    ttl_jitter_percent: u8,
    value_bytes_max: ByteSize,
}

/// Why a pipeline did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The disk layer could not be opened, not even empty.
    #[error("opening the disk layer")]
    Disk(#[source] LayerError),
    /// The bytes are no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The value is longer than `limits.valueBytesMax`.
    #[error("value has {bytes} bytes; limits.valueBytesMax is {bytes_max}")]
    ValueTooLarge {
        /// How long it is.
        bytes: usize,
        /// How long a value may be.
        bytes_max: ByteSize,
    },
    /// The bytes are no tag, or there are too many.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// The write was not accepted, or not confirmed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What comes with a value. An entry that says that there is no value can not be stored here: `freshness.negativeTtl` is
/// for clients alone (`TC.SET … NEGATIVE`).
#[derive(Clone, Copy, Debug, Default)]
pub struct SetOptions<'a> {
    /// How long the value is served, less what `freshness.ttlJitterPercent` takes of it; none is until it is evicted.
    pub ttl: Option<Duration>,
    /// How long after that it may be served while somebody fetches a fresh one.
    pub stale: Option<Duration>,
    /// Words by which it can be removed; at most 32.
    pub tags: &'a [&'a str],
}

/// What the nodes of a cache share besides entries.
struct Shared {
    log: Box<dyn Log>,
    leases: Arc<dyn SharedLeases>,
    followers: Arc<dyn Followers>,
}

// === impl Pipeline ===

impl Pipeline {
    /// Opens every layer of the configuration. Its tasks run on the current runtime, which needs a thread besides the one
    /// that blocks on this future. The counters go to `metrics`.
    ///
    /// # Errors
    /// [`PipelineError::Disk`]. A Redis that can not be reached is no error: it is connected to when it can be.
    pub async fn open(config: &Config, metrics: &Metrics, clock: Clock) -> Result<Self, PipelineError> {
        Self::open_traced(config, metrics, clock, None).await
    }

    /// The same, with spans of the calls of the cold layers.
    pub(super) async fn open_traced(
        config: &Config,
        metrics: &Metrics,
        clock: Clock,
        spans: Option<Arc<Spans>>,
    ) -> Result<Self, PipelineError> {
        let file = config.effective();
        let tags = Arc::new(TagIndex::open(tag_options(config), clock.clone()));
        let metered = |layer: Arc<dyn Layer>| {
            Arc::new(Metered::new(layer, metrics, clock.clone()).traced(spans.clone())) as Arc<dyn Layer>
        };
        let (cold, shared) = cold_layers(config, &tags, &clock, metered).await?;
        let (log, leases, followers) = match shared {
            Some(Shared { log, leases, followers }) => (Some((log, config.backplane())), Some(leases), Some(followers)),
            None => (None, None, None),
        };
        let parts = Parts {
            memory: Memory::open(memory_options(file), clock.clone()),
            queue: queue_options(file),
            cold,
            tags,
            freshness: FreshnessOptions {
                soft_timeout: file.freshness.soft_timeout.0,
                refresh_window: file.freshness.refresh_window.0,
            },
            write_mode: write_mode(file),
            journal: journal_place(config),
            log,
            leases,
            followers,
            outbox: config.outbox(),
        };
        Ok(Self {
            coordinator: Coordinator::open(parts, clock.clone()).await,
            clock,
            request_timeout: file.limits.request_timeout.0,
            drain_timeout: file.shutdown.drain_timeout.0,
            ttl_jitter_percent: file.freshness.ttl_jitter_percent,
            value_bytes_max: file.limits.value_bytes_max,
        })
    }

    /// The layers themselves, for what this interface leaves out.
    pub const fn coordinator(&self) -> &Arc<Coordinator> {
        &self.coordinator
    }

    /// The value of `key`, from the first layer that has it.
    ///
    /// # Errors
    /// [`PipelineError::Key`]. A layer that fails is a miss.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Vec<u8>>, PipelineError> {
        let (cx, key) = (self.context(), Key::new(key)?);
        let Reading { entry, trail } = match self.coordinator.get_now(&cx, key.as_bytes()) {
            Peek::Hit(entry) => Reading { entry: Some(entry), trail: Trail::default() },
            Peek::Absent => Reading { entry: None, trail: Trail::default() },
            Peek::Cold => self.coordinator.get(&cx, &key, Wants::Value).await,
        };
        self.coordinator.answers().note(&cx, entry.as_ref(), &trail);
        Ok(entry.map(|entry| entry.value().to_vec()))
    }

    /// Stores a value; says who knows of it.
    ///
    /// # Errors
    /// [`PipelineError`] by what was wrong; nothing is stored then, except after [`WriteError::Unconfirmed`].
    pub async fn set(&self, key: &[u8], value: &[u8], options: SetOptions<'_>) -> Result<Confirmed, PipelineError> {
        Key::check(key)?;
        if value.len() as u64 > self.value_bytes_max.0 {
            return Err(PipelineError::ValueTooLarge { bytes: value.len(), bytes_max: self.value_bytes_max });
        }
        let cx = self.context();
        let tags = tag_set(options.tags)?;
        let life = options.ttl.map(|ttl| Coordinator::jittered(ttl, key, self.ttl_jitter_percent));
        let expires_at = life.map(|life| cx.now.after(life));
        let meta = self.coordinator.meta(&cx, expires_at, options.stale, tags.tags());
        Ok(self.coordinator.set(&cx, Entry::new(key, value, meta)).await?)
    }

    /// Forgets a key in all layers; says whether there was a live value. Returns once no kill brings it back. A Redis that
    /// can not be reached is told later.
    ///
    /// # Errors
    /// [`PipelineError::Key`] or [`PipelineError::Write`].
    pub async fn remove(&self, key: impl Into<Bytes>) -> Result<bool, PipelineError> {
        let key = Key::new(key)?;
        Ok(self.coordinator.remove_many(&self.context(), &[key]).await?.live > 0)
    }

    /// Forgets all entries that carry one of the tags, in all layers; says who knows. Returns once no kill brings them
    /// back.
    ///
    /// # Errors
    /// [`PipelineError::Tag`] or [`PipelineError::Write`].
    pub async fn remove_by_tag(&self, tags: &[&str]) -> Result<Confirmed, PipelineError> {
        let tags = tag_set(tags)?;
        Ok(self.coordinator.remove_tagged(&self.context(), tags, Matching::Any).await?)
    }

    /// One verdict on all parts; `Degraded` at worst, because memory serves whatever else is out.
    pub fn health(&self) -> Health {
        self.coordinator.health()
    }

    /// The node as a whole: each read counts once, as a hit if it got a value from whatever layer, else as a miss.
    pub fn stats(&self) -> Stats {
        self.coordinator.stats()
    }

    /// Every part, in read order: its name, how well it does, and what it has counted.
    pub fn parts(&self) -> Vec<Part<'_>> {
        self.coordinator.parts()
    }

    /// Writes what is queued and closes the layers, within `shutdown.drainTimeout`. Nobody may use a clone any more.
    pub async fn shutdown(&self) {
        self.coordinator.shutdown(self.clock.monotonic() + self.drain_timeout).await;
    }

    fn context(&self) -> OperationContext {
        let begun = self.clock.monotonic();
        let trust = self.coordinator.backplane().trust(begun);
        OperationContext {
            id: self.coordinator.number(),
            origin: Origin::Client,
            now: self.clock.now(),
            deadline: begun + self.request_timeout,
            trust,
        }
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<&str> = self.coordinator.parts().iter().map(|part| part.name()).collect();
        f.debug_struct("Pipeline").field("parts", &parts).finish_non_exhaustive()
    }
}

fn tag_set(tags: &[&str]) -> Result<TagSet, TagError> {
    let mut set = TagSet::default();
    tags.iter().try_for_each(|tag| set.add(tag.as_bytes()))?;
    Ok(set)
}

// === configuration → options of the parts ===

async fn cold_layers(
    config: &Config,
    tags: &Arc<TagIndex>,
    clock: &Clock,
    metered: impl Fn(Arc<dyn Layer>) -> Arc<dyn Layer>,
) -> Result<(Vec<Arc<dyn Layer>>, Option<Shared>), PipelineError> {
    let file = config.effective();
    let mut cold: Vec<Arc<dyn Layer>> = Vec::new();
    let mut shared: Option<Shared> = None;
    for layer in &file.read_order {
        match layer {
            ColdLayer::Redis => {
                if let Some(options) = config.redis(config.codec()) {
                    let redis = Redis::open(options, clock.clone());
                    shared = Some(Shared {
                        log: Box::new(redis.log()),
                        leases: Arc::new(redis.leases()),
                        followers: Arc::new(redis.followers()),
                    });
                    cold.push(metered(Arc::new(redis)));
                }
            }
            ColdLayer::Disk if file.disk.mode == DiskMode::RocksDb => {
                let disk = Disk::open(disk_options(config, tags), clock.clone()).await;
                cold.push(metered(Arc::new(disk.map_err(PipelineError::Disk)?)));
            }
            ColdLayer::Disk => {}
        }
    }
    Ok((cold, shared))
}

fn memory_options(file: &NodeConfig) -> MemoryOptions {
    MemoryOptions {
        capacity_bytes: file.memory.capacity.0,
        policy: match file.memory.policy {
            MemoryPolicy::S3Fifo => Policy::S3Fifo,
            MemoryPolicy::TinyLfu => Policy::TinyLfu,
        },
        max_ttl: file.memory.max_ttl.0,
    }
}

fn queue_options(file: &NodeConfig) -> QueueOptions {
    QueueOptions {
        capacity_bytes: file.write_queue.capacity.0,
        items_max: u64::from(file.write_queue.items_max),
        overflow: match file.write_queue.overflow {
            node_config::Overflow::Block => Overflow::Block,
            node_config::Overflow::Reject => Overflow::Reject,
            node_config::Overflow::DropOldest => Overflow::DropOldest,
        },
    }
}

/// Without Redis there is nothing that another node could miss.
fn write_mode(file: &NodeConfig) -> WriteMode {
    match (file.redis.mode, file.redis.write_mode) {
        (RedisMode::External, node_config::WriteMode::WriteThrough) => WriteMode::Through,
        (RedisMode::External, node_config::WriteMode::WriteBehind) | (RedisMode::Disabled, _) => WriteMode::Behind,
    }
}

/// On the volume of the disk layer; without one there is nothing that outlives the process, except in Redis.
fn journal_place(config: &Config) -> Option<JournalPlace> {
    let file = config.effective();
    let owner = format!("cache {} node {}", file.cache.uid, config.node());
    (file.disk.mode == DiskMode::RocksDb).then(|| JournalPlace { path: file.disk.path.join("journal"), owner })
}

fn tag_options(config: &Config) -> TagOptions {
    TagOptions { removals_max: config.removals_max(), life_max: config.copies_live_max() }
}

fn disk_options(config: &Config, tags: &Arc<TagIndex>) -> DiskOptions {
    let file = config.effective();
    let tags = Arc::clone(tags);
    DiskOptions {
        memory_bytes: file.disk.memory.0,
        max_ttl: file.disk.max_ttl.0,
        removals_kept: config.copies_live_max(),
        removals_max: config.removals_max(),
        min_ttl: file.disk.min_ttl.0,
        admit: match file.disk.admission {
            DiskAdmission::All => Admit::All,
            DiskAdmission::SecondHit => Admit::SecondHit,
        },
        daily_write_bytes: Some(file.disk.daily_write_budget.0).filter(|bytes| *bytes > 0),
        codec: config.codec(),
        is_removed: Arc::new(move |of, position| tags.is_removed(of, position)),
        cache_uid: file.cache.uid.clone(),
        node: config.node().to_owned(),
        ..DiskOptions::at(&file.disk.path)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tempfile::tempdir;

    use super::*;
    use crate::{
        clock::UnixMillis,
        config::Environment,
        testing::{START, eventually, key},
    };

    fn config(yaml: &str) -> Config {
        Config::from_yaml(yaml, &Environment::read()).unwrap()
    }

    #[test]
    fn every_setting_of_the_write_queue_reaches_it() {
        let of = |section: &str| queue_options(config(&format!("writeQueue: {{{section}}}")).effective());
        for (word, overflow) in
            [("Block", Overflow::Block), ("Reject", Overflow::Reject), ("DropOldest", Overflow::DropOldest)]
        {
            let expected = QueueOptions { capacity_bytes: 100 << 20, items_max: 12_345, overflow };
            assert_eq!(of(&format!("capacity: 100Mi, itemsMax: 12345, overflow: {word}")), expected);
        }
    }

    #[test]
    fn the_tag_index_has_its_bound_and_remembers_for_the_longest_life_of_all_layers() {
        for (memory, redis, disk) in [(1, 2, 3), (3, 1, 2), (2, 3, 1)] {
            let lives =
                format!("memory: {{maxTtl: {memory}h}}\nredis: {{maxTtl: {redis}h}}\ndisk: {{maxTtl: {disk}h}}");
            let options = tag_options(&config(&format!("tagIndex: {{removalsMax: 1234}}\n{lives}")));
            assert_eq!(options, TagOptions { removals_max: 1234, life_max: Duration::from_secs(3 * 3600) }, "{lives}");
        }
    }

    /// What the disk holds of a key, served or not.
    async fn copy_on_disk(pipeline: &Pipeline, name: &str) -> Option<Entry> {
        let explanation = pipeline.coordinator().explain(&pipeline.context(), &key(name)).await;
        explanation.seen.into_iter().find(|seen| seen.part == "disk").and_then(|seen| seen.entry)
    }

    /// Dead entries that compaction has dropped.
    fn reclaimed(pipeline: &Pipeline) -> u64 {
        let parts = pipeline.parts();
        let stats = parts.iter().find(|part| part.name() == "disk").unwrap().stats();
        stats.extras.into_iter().find(|(name, _)| *name == "reclaimed").unwrap().1
    }

    #[test]
    fn compaction_is_told_which_entries_were_removed_by_tag() {
        let (config, clock) = (config(""), Clock::manual(START));
        let tags = Arc::new(TagIndex::open(tag_options(&config), clock.clone()));
        let options = disk_options(&config, &tags);
        let (red, blue) = (tag_set(&["red"]).unwrap(), tag_set(&["blue"]).unwrap());
        let before = tags.position(clock.now());
        tags.remove(clock.now(), red.clone(), Matching::Any);
        let after = tags.position(clock.now());
        let is_removed = |of: &TagSet, position| (options.is_removed)(of.tags(), position);
        assert!(is_removed(&red, before) && !is_removed(&red, after) && !is_removed(&blue, before));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn compaction_drops_from_disk_what_was_removed_by_tag() {
        let folder = tempdir().unwrap();
        let disk = format!("disk: {{path: '{}', memory: 16Mi}}", folder.path().display());
        let config = config(&format!("{disk}\nlimits: {{requestTimeout: 1m}}"));
        let pipeline = Pipeline::open(&config, &Metrics::new(""), Clock::system()).await.unwrap();
        let flush = async || pipeline.coordinator().flush(&pipeline.context()).await.unwrap();
        for word in ["red", "blue"] {
            pipeline.set(word.as_bytes(), b"v", SetOptions { tags: &[word], ..SetOptions::default() }).await.unwrap();
        }
        flush().await;
        pipeline.remove_by_tag(&["red"]).await.unwrap();
        assert!(copy_on_disk(&pipeline, "red").await.is_some(), "a removal is one position");
        // Nobody can order a compaction from here. RocksDB begins one by itself once four memtables of two MiB have
        // become files, whose keys overlap, or it would only rename them.
        for round in 0..40 {
            if reclaimed(&pipeline) > 0 {
                break;
            }
            for number in 0..250 {
                let name = format!("{number}-{round}");
                pipeline.set(name.as_bytes(), &[0; 3000], SetOptions::default()).await.unwrap();
            }
            flush().await;
        }
        eventually("compaction comes across it", || reclaimed(&pipeline) > 0).await;
        // What compaction leaves out is gone once it has ended.
        let gone = async {
            while copy_on_disk(&pipeline, "red").await.is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
        assert!(copy_on_disk(&pipeline, "blue").await.is_some());
        pipeline.shutdown().await;
    }

    /// When the entry of this key in memory ends.
    async fn end_of(pipeline: &Pipeline, name: &str) -> UnixMillis {
        let explanation = pipeline.coordinator().explain(&pipeline.context(), &key(name)).await;
        explanation.seen[0].entry.as_ref().and_then(Entry::expires_at).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_life_is_shortened_by_the_share_that_its_key_chooses() {
        let config = config("disk: {mode: Disabled}\nfreshness: {ttlJitterPercent: 50}");
        let clock = Clock::manual(START);
        let pipeline = Pipeline::open(&config, &Metrics::new(""), clock.clone()).await.unwrap();
        let asked = Duration::from_secs(1000);
        let options = SetOptions { ttl: Some(asked), ..SetOptions::default() };
        let mut lives = BTreeSet::new();
        for name in (0..50).map(|number| format!("k{number}")) {
            pipeline.set(name.as_bytes(), b"v", options).await.unwrap();
            let life = end_of(&pipeline, &name).await.since(clock.now());
            assert!((asked / 2..=asked).contains(&life), "{name}: {life:?}");
            clock.advance(Duration::from_secs(1));
            pipeline.set(name.as_bytes(), b"v", options).await.unwrap();
            assert_eq!(end_of(&pipeline, &name).await.since(clock.now()), life, "{name}, stored again");
            lives.insert(life);
        }
        assert!(lives.len() > 20, "{lives:?}");
        pipeline.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn settings_of_stale_values_and_of_time_limits_reach_the_layers() {
        let freshness = "freshness: {softTimeout: 123ms, refreshWindow: 45s}";
        let limits = "limits: {requestTimeout: 6s}\nshutdown: {drainTimeout: 7s}";
        let config = config(&format!("disk: {{mode: Disabled}}\n{freshness}\n{limits}"));
        let pipeline = Pipeline::open(&config, &Metrics::new(""), Clock::system()).await.unwrap();
        let expected =
            FreshnessOptions { soft_timeout: Duration::from_millis(123), refresh_window: Duration::from_secs(45) };
        assert_eq!(pipeline.coordinator().freshness_options(), expected);
        assert_eq!(pipeline.request_timeout, Duration::from_secs(6));
        assert_eq!(pipeline.drain_timeout, Duration::from_secs(7));
        pipeline.shutdown().await;
    }
}
