//! Brings spans to the collector, in batches, over OTLP/HTTP.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use tokio::{
    sync::mpsc::{Receiver, error::TryRecvError},
    time::{sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::spans::{Spans, State};
use crate::clock::Clock;

/// Spans of one request to the collector.
const BATCH_MAX: usize = 512;

/// How long spans gather.
const PERIOD: Duration = Duration::from_secs(1);

/// Longest pause while the collector does not answer; the first is [`PERIOD`], and each is twice as long as the last.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long the collector may take for one request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where spans go. `config.rs` fills it.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportOptions {
    /// The collector, such as `http://localhost:4318`.
    pub endpoint: String,
    /// Share of the operations that are sampled, from 0 to 1.
    pub share: f64,
    /// A file with one `name: value` a line, sent as headers with every request.
    pub headers_file: Option<PathBuf>,
    /// Name of the cache.
    pub cache: String,
    /// Name of the node.
    pub node: String,
}

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The headers can not be read.
    #[error("reading {}", path.display())]
    ReadHeaders {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of the headers is none.
    #[error("line {line} of {}: a header reads `name: value`", path.display())]
    ParseHeader {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The exporter does not take the endpoint.
    #[error("preparing the export of spans: {0}")]
    Build(String),
}

/// The task that exports spans.
#[derive(Debug)]
pub struct Export {
    task: TaskTracker,
    stop: CancellationToken,
    give_up: CancellationToken,
}

struct Courier {
    exporter: SpanExporter,
    state: Arc<State>,
    endpoint: String,
}

// === impl Export ===

impl Export {
    /// Opens the spans and their way to the collector, on the current runtime. A collector that does not answer is no
    /// error: it is tried again.
    ///
    /// # Errors
    /// [`ExportError`], by what is wrong with the options.
    pub fn open(options: &ExportOptions, clock: Clock) -> Result<(Arc<Spans>, Self), ExportError> {
        let headers = options.headers_file.as_deref().map(read_headers).transpose()?.unwrap_or_default();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", options.endpoint.trim_end_matches('/')))
            .with_timeout(TIMEOUT)
            .with_headers(headers)
            // A batch that fails is counted; the next attempt comes with the next batch.
            .with_retry_policy(RetryPolicy::disabled())
            .build();
        let mut exporter = exporter.map_err(|error| ExportError::Build(error.to_string()))?;
        exporter.set_resource(&resource(options));
        let (spans, waiting) = Spans::open(options.share, rand::random(), clock);
        let (stop, give_up) = (CancellationToken::new(), CancellationToken::new());
        let courier = Courier { exporter, state: spans.state(), endpoint: options.endpoint.clone() };
        let task = TaskTracker::new();
        task.spawn(courier.run(waiting, stop.clone(), give_up.clone()));
        task.close();
        Ok((spans, Self { task, stop, give_up }))
    }

    /// Sends what waits, until `deadline` at most.
    pub async fn shutdown(self, deadline: Instant) {
        self.stop.cancel();
        if timeout_at(deadline.into(), self.task.wait()).await.is_err() {
            tracing::warn!("the collector did not take the last spans in time");
            self.give_up.cancel();
            self.task.wait().await;
        }
    }
}

impl Drop for Export {
    /// The task ends with whoever opened it, also when the rest of the node could not be opened.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn resource(options: &ExportOptions) -> Resource {
    let attributes = [
        ("service.name", "cache-node"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.namespace", &options.cache),
        ("service.instance.id", &options.node),
    ];
    let attributes = attributes.map(|(name, value)| KeyValue::new(name, value.to_owned()));
    Resource::builder_empty().with_attributes(attributes).build()
}

fn read_headers(path: &Path) -> Result<HashMap<String, String>, ExportError> {
    let text = fs::read_to_string(path).map_err(|source| ExportError::ReadHeaders { path: path.to_owned(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let header = line.split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
            header
                .filter(|(name, _)| !name.is_empty())
                .ok_or_else(|| ExportError::ParseHeader { path: path.to_owned(), line: index + 1 })
        })
        .collect()
}

// === impl Courier ===

impl Courier {
    async fn run(self, waiting: Receiver<SpanData>, stop: CancellationToken, give_up: CancellationToken) {
        // What is cut off then is the wait for the collector, nothing else.
        give_up.run_until_cancelled(self.work(waiting, stop)).await;
    }

    async fn work(&self, mut waiting: Receiver<SpanData>, stop: CancellationToken) {
        let mut pause = PERIOD;
        loop {
            let stopping = stop.run_until_cancelled(sleep(pause)).await.is_none();
            if stopping {
                waiting.close();
            }
            if self.state.paused.swap(false, Ordering::Relaxed) && !stopping {
                // After a failure there is nothing to send: let one period's spans come.
                let _ = stop.run_until_cancelled(sleep(PERIOD)).await;
            }
            let failing = pause > PERIOD;
            pause = match self.deliver(&mut waiting).await {
                Ok(0) => pause,
                Ok(_) => {
                    if failing {
                        tracing::info!(endpoint = self.endpoint, "the collector takes spans again");
                    }
                    PERIOD
                }
                Err(error) => {
                    // Once, not as often as it is tried.
                    if !failing {
                        tracing::warn!(
                            endpoint = self.endpoint,
                            error,
                            "the collector takes no spans; it is tried again"
                        );
                    }
                    self.state.paused.store(true, Ordering::Relaxed);
                    (pause * 2).min(PAUSE_MAX)
                }
            };
            if stopping {
                return;
            }
        }
    }

    /// Sends what waits; answers how many spans that were. After a failure the rest of what waits is given up.
    async fn deliver(&self, waiting: &mut Receiver<SpanData>) -> Result<u64, String> {
        let mut sent = 0;
        let mut failure = None;
        loop {
            let mut batch = Vec::new();
            let more = loop {
                match waiting.try_recv() {
                    Ok(span) => batch.push(span),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break false,
                }
                if batch.len() == BATCH_MAX {
                    break true;
                }
            };
            let count = batch.len() as u64;
            if count > 0 && failure.is_none() {
                failure = self.exporter.export(batch).await.err().map(|error| error.to_string());
            }
            let counter = if failure.is_none() { &self.state.exported } else { &self.state.failed };
            counter.fetch_add(count, Ordering::Relaxed);
            sent += count;
            if !more {
                return failure.map_or(Ok(sent), Err);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;

    #[test]
    fn headers_are_one_a_line() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("headers");
        fs::write(&path, "authorization: Bearer a:b\n\nx-scope: team\n").unwrap();
        let headers = read_headers(&path).unwrap();
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["authorization"], "Bearer a:b");
        fs::write(&path, "x-scope: team\nnonsense\n").unwrap();
        let error = read_headers(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("line 2 of {}: a header reads `name: value`", path.display()));
    }
}
