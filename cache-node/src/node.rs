//! The composition root: opens every part in order, closes them in reverse, and is the only file that names them all.

mod pipeline;

use std::{fmt, net::SocketAddr, num::NonZeroU16, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

pub use self::pipeline::{Pipeline, PipelineError, SetOptions};
use crate::{
    clock::Clock,
    command::Identity,
    config::Config,
    metrics::Metrics,
    server::{
        ServeError,
        admin::{About, Admin, Board, Stage, register_board, register_coordinator, register_resp, register_spans},
        resp,
    },
    slow_log::SlowLogOptions,
    telemetry::{Export, ExportError, ExportOptions},
};

/// How long the admin port may take to finish its answers once everything else is closed.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// How long the collector may take for the last spans.
const EXPORT_GRACE: Duration = Duration::from_secs(2);

/// One running cache node. Several can live in one process: nothing of a node is global.
pub struct Node {
    clock: Clock,
    drain_timeout: Duration,
    metrics: Metrics,
    board: Arc<Board>,
    admin: Admin,
    pipeline: Pipeline,
    resp: resp::Server,
    export: Option<Export>,
    stop_resp: CancellationToken,
}

/// Why a node could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A port or a thread could not be had.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The layers could not be opened.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// Spans can not be exported as configured.
    #[error(transparent)]
    Export(#[from] ExportError),
}

// === impl Node ===

impl Node {
    /// Opens every part, and returns when clients are served. The admin port answers from the beginning, so that a
    /// long opening is seen as alive and not ready.
    ///
    /// Its tasks run on the current runtime, which needs a thread besides the one that blocks on this future.
    ///
    /// # Errors
    /// [`NodeError`]; whatever was open is closed again.
    pub async fn open(config: Config) -> Result<Self, NodeError> {
        let clock = Clock::system();
        let metrics = Metrics::new(&config.effective().revision);
        let board = Arc::new(Board::new(about(&config, &clock), clock.clone()));
        register_board(&metrics, Arc::clone(&board));
        let admin = Admin::serve(config.effective().listen.admin, Arc::clone(&board), metrics.clone())?;

        let export = export_options(&config).map(|options| Export::open(&options, clock.clone())).transpose()?;
        let (spans, export) = export.unzip();
        register_spans(&metrics, spans.clone());

        board.announce(Stage::Opening("the disk layer"));
        let pipeline = Pipeline::open_traced(&config, &metrics, clock.clone(), spans.clone()).await?;
        let coordinator = pipeline.coordinator();
        register_coordinator(&metrics, coordinator);
        board.show(coordinator);

        board.announce(Stage::Opening("the RESP port"));
        let drain_timeout = config.effective().shutdown.drain_timeout.0;
        let stop_resp = CancellationToken::new();
        let options = resp::Options { spans, ..resp_options(&config, clock.clone(), stop_resp.clone()) };
        let resp = match resp::serve(Arc::clone(coordinator), options) {
            Ok(resp) => resp,
            Err(error) => {
                pipeline.shutdown().await;
                return Err(error.into());
            }
        };
        register_resp(&metrics, &resp);
        board.feel(resp.pulses());

        board.announce(Stage::Serving);
        tracing::info!(
            node = config.node(),
            cache = config.effective().cache.name,
            revision = config.effective().revision,
            resp = %resp.address(),
            admin = %admin.address(),
            "serving"
        );
        Ok(Self { clock, drain_timeout, metrics, board, admin, pipeline, resp, export, stop_resp })
    }

    /// Where clients connect.
    pub fn resp_address(&self) -> SocketAddr {
        self.resp.address()
    }

    /// Where health, metrics and reports are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// The text that `/metrics` answers.
    pub fn metrics(&self) -> String {
        self.metrics.render()
    }

    /// Closes everything, top to bottom, within `shutdown.drainTimeout`: no new clients, requests under way are
    /// answered, queued writes go to disk, the database is closed.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the queue undrained; what was acknowledged as removed is gone all the same.
    pub async fn shutdown(self) {
        let Self { clock, drain_timeout, metrics: _, board, admin, pipeline, resp, export, stop_resp } = self;
        let started = clock.monotonic();
        let deadline = started + drain_timeout;
        board.announce(Stage::Draining);
        tracing::info!(timeout_s = drain_timeout.as_secs_f64(), "draining");
        stop_resp.cancel();
        // Clients may use half of the time; the other half belongs to what they have written.
        resp.join(started + drain_timeout / 2).await;
        pipeline.coordinator().shutdown(deadline).await;
        if let Some(export) = export {
            export.shutdown(clock.monotonic() + EXPORT_GRACE).await;
        }
        let took = clock.monotonic().duration_since(started);
        tracing::info!(took_s = took.as_secs_f64(), "closed");
        admin.shutdown(clock.monotonic() + ADMIN_GRACE).await;
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("resp", &self.resp.address()).field("admin", &self.admin.address()).finish()
    }
}

// === configuration → options of the parts ===

fn about(config: &Config, clock: &Clock) -> About {
    let file = config.effective();
    About {
        cache: file.cache.name.clone(),
        cache_uid: file.cache.uid.clone(),
        node: config.node().to_owned(),
        config_revision: file.revision.clone(),
        started: clock.now(),
    }
}

fn resp_options(config: &Config, clock: Clock, stop: CancellationToken) -> resp::Options {
    let file = config.effective();
    resp::Options {
        address: file.listen.resp,
        threads: NonZeroU16::new(config.resp_threads()).expect("the configuration says at least 1"),
        limits: resp::Limits {
            connections_max: file.limits.connections_max,
            value_bytes_max: usize::try_from(file.limits.value_bytes_max.0).unwrap_or(usize::MAX),
            request_timeout: file.limits.request_timeout.0,
            partial_request_timeout: file.limits.partial_request_timeout.0,
            ttl_jitter_percent: file.freshness.ttl_jitter_percent,
            negative_ttl: file.freshness.negative_ttl.0,
            tracked_items_max: usize::try_from(file.limits.tracked_items_max).unwrap_or(usize::MAX),
        },
        identity: Identity {
            cache: file.cache.name.clone(),
            node: config.node().to_owned(),
            port: file.listen.resp.port(),
        },
        slow_log: SlowLogOptions {
            threshold: file.slow_log.threshold.0,
            length_max: usize::try_from(file.slow_log.length_max).unwrap_or(usize::MAX),
        },
        spans: None,
        clock,
        stop,
    }
}

/// Where spans go; none if nowhere.
fn export_options(config: &Config) -> Option<ExportOptions> {
    let otlp = &config.effective().telemetry.otlp;
    (!otlp.endpoint.is_empty()).then(|| ExportOptions {
        endpoint: otlp.endpoint.clone(),
        share: otlp.sample_ratio.as_f64(),
        headers_file: Some(otlp.headers_file.clone()).filter(|path| !path.as_os_str().is_empty()),
        cache: config.effective().cache.name.clone(),
        node: config.node().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::tempdir;
    use tikv_jemalloc_ctl::{Access, AsName};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{config::Environment, testing::eventually};

    fn config(folder: &Path, resp: &str) -> Config {
        let yaml = format!(
            "listen: {{resp: '{resp}', admin: '127.0.0.1:0', threads: 1}}\ndisk: {{path: '{}'}}",
            folder.display()
        );
        Config::from_yaml(&yaml, &Environment::read()).unwrap()
    }

    /// The first line that a node answers to an inline command.
    async fn ask(node: &Node, command: &str) -> String {
        let mut client = BufReader::new(TcpStream::connect(node.resp_address()).await.unwrap());
        client.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
        let mut line = String::new();
        client.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }

    #[test]
    fn every_setting_of_the_resp_port_reaches_it() {
        let yaml = "cache: {name: shop, node: n-7}\n\
                    listen: {resp: '127.0.0.1:7001', threads: 3}\n\
                    limits: {connectionsMax: 11, valueBytesMax: 2Mi, requestTimeout: 3s, partialRequestTimeout: 4s, \
                    trackedItemsMax: 5000}\n\
                    freshness: {ttlJitterPercent: 6, negativeTtl: 7s}\n\
                    slowLog: {threshold: 8ms, lengthMax: 9}";
        let config = Config::from_yaml(yaml, &Environment::read()).unwrap();
        let resp::Options { address, threads, limits, identity, slow_log, spans: _, clock: _, stop: _ } =
            resp_options(&config, Clock::system(), CancellationToken::new());
        assert_eq!((address, threads.get()), (([127, 0, 0, 1], 7001).into(), 3));
        let expected = resp::Limits {
            connections_max: 11,
            value_bytes_max: 2 << 20,
            request_timeout: Duration::from_secs(3),
            partial_request_timeout: Duration::from_secs(4),
            ttl_jitter_percent: 6,
            negative_ttl: Duration::from_secs(7),
            tracked_items_max: 5000,
        };
        assert_eq!(limits, expected);
        assert_eq!(identity, Identity { cache: "shop".to_owned(), node: "n-7".to_owned(), port: 7001 });
        assert_eq!(slow_log, SlowLogOptions { threshold: Duration::from_millis(8), length_max: 9 });
    }

    /// The settings of `.cargo/config.toml`, as the allocator of this build has them.
    #[test]
    fn the_allocator_soon_gives_back_what_it_does_not_use_and_keeps_no_spare_pages() {
        let decay_ms = |name: &str| -> isize { name.name().read().unwrap() };
        let spare_pages: bool = "opt.cache_oblivious\0".name().read().unwrap();
        assert_eq!((decay_ms("opt.dirty_decay_ms\0"), decay_ms("opt.muzzy_decay_ms\0")), (250, 0));
        assert!(!spare_pages);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_nodes_in_one_process_share_nothing() {
        let (one, other) = (tempdir().unwrap(), tempdir().unwrap());
        let one = Node::open(config(one.path(), "127.0.0.1:0")).await.unwrap();
        let other = Node::open(config(other.path(), "127.0.0.1:0")).await.unwrap();
        assert_eq!(ask(&one, "SET a b").await, "+OK");
        assert_eq!(ask(&one, "EXISTS a").await, ":1");
        assert_eq!(ask(&other, "EXISTS a").await, ":0");
        assert!(other.metrics().contains("tieredcache_resp_commands_total{command=\"set\"} 0\n"));
        one.shutdown().await;
        assert_eq!(ask(&other, "PING").await, "+PONG");
        other.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_can_not_have_its_port_closes_its_database() {
        let folder = tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = Node::open(config(folder.path(), &address)).await.unwrap_err();
        assert!(error.to_string().contains(&address), "{error}");
        // RocksDB allows one owner: this would fail if the first were still open.
        Node::open(config(folder.path(), "127.0.0.1:0")).await.unwrap().shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_can_not_be_opened_closes_its_admin_port() {
        let folder = tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let resp = taken.local_addr().unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let yaml = format!(
            "listen: {{resp: '{resp}', admin: '{admin}', threads: 1}}\ndisk: {{path: '{}'}}",
            folder.path().display()
        );
        Node::open(Config::from_yaml(&yaml, &Environment::read()).unwrap()).await.unwrap_err();
        eventually("the admin port is free", || std::net::TcpListener::bind(admin).is_ok()).await;
    }
}
