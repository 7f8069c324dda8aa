//! The commands as the node runs them, over layers that cost nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use cache_node::{
    clock::{Clock, UnixMillis},
    command::{Call, Commands, Identity, ServerFacts, Session, Settings, Step},
    config::{Config, Environment},
    context::OperationContext,
    coordinator::{Coordinator, Parts},
    entry::{Entry, EntryMeta, Key, Position},
    layer::{
        Answers, Change, Component, Health, HealthState, Layer, LayerError, LayerId, LayerResult, Stats, TagRemoval,
        memory::{Memory, MemoryOptions, Policy},
    },
    node::Node,
    protocol::{Parse, Replies, RequestLimits, RequestParser},
    slow_log::{SlowLog, SlowLogOptions},
    write_queue::{Overflow, QueueOptions},
};
use tokio::runtime::Runtime;

pub(crate) const LIMITS: RequestLimits = RequestLimits { argument_bytes_max: 1 << 20, request_bytes_max: 2 << 20 };
pub(crate) const MEMORY: MemoryOptions =
    MemoryOptions { capacity_bytes: 1 << 30, policy: Policy::S3Fifo, max_ttl: Duration::from_secs(86_400) };

pub(crate) struct Layered {
    commands: Commands,
    coordinator: Arc<Coordinator>,
    clock: Clock,
}

/// A layer that takes everything and has nothing, but for one key that takes a moment to find.
#[derive(Default)]
pub(crate) struct Sink {
    reads: Option<Arc<AtomicU64>>,
}

/// Runs the node until it is killed, with memory alone and one thread for clients.
pub(crate) fn serve(address: SocketAddr) {
    let yaml = format!(
        "listen: {{resp: '{address}', admin: '127.0.0.1:0', threads: 1}}\n\
         memory: {{capacity: 1Gi}}\n\
         disk: {{mode: Disabled}}"
    );
    let config = Config::from_yaml(&yaml, &Environment::read()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let _node = Node::open(config).await.unwrap();
        std::future::pending::<()>().await;
    });
}

// === impl Layered ===

impl Layered {
    pub(crate) fn open(runtime: &Runtime, below: Option<Arc<Sink>>) -> Self {
        runtime.block_on(async {
            match below {
                Some(sink) => Self::open_over(sink).await,
                None => Self::open_with(Vec::new()).await,
            }
        })
    }

    pub(crate) async fn open_over(below: Arc<Sink>) -> Self {
        Self::open_with(vec![below]).await
    }

    async fn open_with(cold: Vec<Arc<dyn Layer>>) -> Self {
        let clock = Clock::system();
        // Never full: what is measured is a write that need not wait.
        let queue = QueueOptions { capacity_bytes: 1 << 30, items_max: 1_000_000, overflow: Overflow::Block };
        let parts = Parts::new(Memory::open(MEMORY, clock.clone()), queue, cold, &clock);
        let coordinator = Coordinator::open(parts, clock.clone()).await;
        let slow_log = SlowLogOptions { threshold: Duration::from_millis(10), length_max: 128 };
        let settings = Settings {
            identity: Identity::default(),
            value_bytes_max: LIMITS.argument_bytes_max,
            request_timeout: Duration::from_secs(5),
            slow_log: Arc::new(SlowLog::new(slow_log)),
            ttl_jitter_percent: 5,
            negative_ttl: Duration::from_secs(5),
            follows_reads: false,
            tracked_items_max: 100_000,
        };
        let facts = Arc::new(ServerFacts::default);
        let commands = Commands::new(Arc::clone(&coordinator), clock.clone(), settings, facts);
        Self { commands, coordinator, clock }
    }

    pub(crate) const fn coordinator(&self) -> &Arc<Coordinator> {
        &self.coordinator
    }

    pub(crate) fn context(&self) -> OperationContext {
        self.commands.context()
    }

    /// Runs batches as one connection does.
    pub(crate) fn runner(&self) -> impl FnMut(&[u8], &mut Replies) {
        let nobody = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut session = Session::new(1, nobody, nobody, self.clock.now());
        let mut parser = RequestParser::new(LIMITS);
        move |batch, replies| {
            let cx = self.commands.context();
            let mut rest = batch;
            while let Ok(Parse::Complete(length)) = parser.parse(rest) {
                let args = parser.arguments(rest);
                let verb = self.commands.resolve(&args, replies).expect("a command that exists");
                let step = self.commands.run_now(&mut session, &Call { cx: &cx, verb, args, tracked: false }, replies);
                assert!(matches!(step, Step::Done), "it needs no layer below memory");
                parser.reset();
                rest = &rest[length..];
            }
        }
    }
}

// === impl Sink ===

impl Sink {
    /// With a value under every key, which counts how often it is read.
    pub(crate) fn holding(reads: Arc<AtomicU64>) -> Self {
        Self { reads: Some(reads) }
    }
}

#[async_trait]
impl Component for Sink {
    fn name(&self) -> &'static str {
        "sink"
    }

    fn health(&self) -> Health {
        let since = UnixMillis(0);
        Health { state: HealthState::Healthy, reason: "AsExpected", message: String::new(), since }
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    async fn shutdown(&self, _deadline: Instant) {}
}

#[async_trait]
impl Layer for Sink {
    fn id(&self) -> LayerId {
        LayerId::Disk
    }

    async fn get(&self, _cx: &OperationContext, key: &Key) -> Result<LayerResult, LayerError> {
        let Some(reads) = &self.reads else { return Ok(LayerResult::Miss) };
        reads.fetch_add(1, Ordering::SeqCst);
        // As long as a disk takes, so that all readers arrive meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(LayerResult::Hit(Entry::new(key.as_bytes(), b"value", EntryMeta::default())))
    }

    async fn get_many(&self, _cx: &OperationContext, keys: &[Key]) -> Answers {
        Ok(keys.iter().map(|_| Ok(LayerResult::Miss)).collect())
    }

    async fn apply(&self, _cx: &OperationContext, _changes: &[Change]) -> Result<Vec<Position>, LayerError> {
        Ok(Vec::new())
    }

    async fn clear(&self, _cx: &OperationContext) -> Result<(), LayerError> {
        Ok(())
    }

    async fn tag_removals(&self, _cx: &OperationContext) -> Result<Vec<TagRemoval>, LayerError> {
        Ok(Vec::new())
    }
}
