//! Any cold layer, measured from outside: the layer itself stays free of counters.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use opentelemetry::KeyValue;
use prometheus::IntCounter;

use crate::{
    clock::Clock,
    context::OperationContext,
    entry::{Key, Position},
    layer::{
        Answers, Change, Component, Health, Latency, Layer, LayerError, LayerId, LayerResult, Stats, TagRemoval,
        log::Cursor,
    },
    metrics::{Definition, Histogram, Kind, Metrics},
    telemetry::{Operation, Spans},
};

/// What was asked of a layer and how it ended; memory reports its part of it too.
pub const REQUESTS: Definition = Definition {
    name: "tieredcache_layer_requests_total",
    help: "Keys asked for and changes written, by what was asked and how it ended.",
    kind: Kind::Counter,
    labels: &["operation", "result"],
};

/// Reads that found what may still be served while somebody brings a fresh value; memory reports its part of it too.
pub const STALE_READS: Definition = Definition {
    name: "tieredcache_layer_stale_reads_total",
    help: "Misses of the layer that found a value past its expiry which may still be served.",
    kind: Kind::Counter,
    labels: &[],
};

/// The time that a layer took; other parts report theirs too.
pub const LATENCY: Definition = Definition {
    name: "tieredcache_layer_latency_seconds",
    help: "Time that one call of a layer took, for any number of keys.",
    kind: Kind::Histogram,
    labels: &["operation"],
};

/// A layer with counters and clocks around it.
pub struct Metered {
    inner: Arc<dyn Layer>,
    clock: Clock,
    requests: Requests,
    times: Arc<Times>,
    spans: Option<Arc<Spans>>,
}

/// One call of a layer, from outside.
struct Measured<'a> {
    operation: &'static str,
    latency: &'a Histogram,
    keys: usize,
    start: Instant,
}

/// Handles, resolved once.
struct Requests {
    hit: IntCounter,
    miss: IntCounter,
    /// Those of the misses that found a stale value.
    stale: IntCounter,
    not_handled: IntCounter,
    stopped: IntCounter,
    read_failed: IntCounter,
    set: Written,
    fill: Written,
    remove: Written,
    remove_tagged: Written,
    clear: Written,
}

/// Handles of one kind of change.
struct Written {
    ok: IntCounter,
    failed: IntCounter,
}

/// How long calls took.
#[derive(Default)]
struct Times {
    get: Histogram,
    get_many: Histogram,
    apply: Histogram,
    clear: Histogram,
}

// === impl Metered ===

impl Metered {
    /// Measures `inner` under the label of its name.
    pub fn new(inner: Arc<dyn Layer>, metrics: &Metrics, clock: Clock) -> Self {
        let layer = ("layer", inner.name());
        let requests = metrics.counters(layer, &REQUESTS);
        let request = |operation, result| requests.with_label_values(&[operation, result]);
        let written = |operation| Written { ok: request(operation, "ok"), failed: request(operation, "error") };
        let times = Arc::<Times>::default();
        let timed = Arc::clone(&times);
        metrics.at_scrape(&[layer], &[LATENCY], move |samples| {
            timed.all().iter().for_each(|(operation, calls)| samples.put_histogram(&LATENCY, &[operation], calls));
        });
        Self {
            inner,
            clock,
            requests: Requests {
                hit: request("get", "hit"),
                miss: request("get", "miss"),
                stale: metrics.counters(layer, &STALE_READS).with_label_values::<&str>(&[]),
                not_handled: request("get", "not_handled"),
                stopped: request("get", "stopped"),
                read_failed: request("get", "error"),
                set: written("set"),
                fill: written("fill"),
                remove: written("remove"),
                remove_tagged: written("remove_tagged"),
                clear: written("clear"),
            },
            times,
            spans: None,
        }
    }

    /// Has spans made of its calls, if there are any.
    #[must_use]
    pub fn traced(mut self, spans: Option<Arc<Spans>>) -> Self {
        self.spans = spans;
        self
    }

    fn measure<'a>(&self, operation: &'static str, latency: &'a Histogram, keys: usize) -> Measured<'a> {
        Measured { operation, latency, keys, start: self.clock.monotonic() }
    }

    /// The call is over; what it said in a word, or why it failed.
    fn end(&self, cx: &OperationContext, call: &Measured<'_>, outcome: Result<&'static str, &LayerError>) {
        let took = self.clock.monotonic().saturating_duration_since(call.start);
        call.latency.observe(took, 1);
        let Some(spans) = &self.spans else { return };
        // Work that no client asked for has no number of its own.
        let number = if cx.id == 0 { spans.background() } else { cx.id };
        if !spans.samples(number) {
            return;
        }
        let layer = self.inner.name();
        let attributes = vec![
            KeyValue::new("tieredcache.layer", layer),
            KeyValue::new("tieredcache.outcome", outcome.unwrap_or("failed")),
            KeyValue::new("tieredcache.keys", i64::try_from(call.keys).unwrap_or(i64::MAX)),
            KeyValue::new("tieredcache.origin", cx.origin.label()),
        ];
        let operation = Operation {
            name: format!("{layer} {}", call.operation).into(),
            begun: call.start,
            took,
            attributes,
            failure: outcome.err().map(ToString::to_string),
        };
        if cx.id == 0 { spans.operation(number, operation) } else { spans.part(number, operation) }
    }

    fn read(&self, cx: &OperationContext, answer: Result<&LayerResult, &LayerError>) {
        match answer {
            Ok(LayerResult::Hit(entry)) if entry.is_live(cx.now) => &self.requests.hit,
            Ok(LayerResult::Hit(_)) => {
                self.requests.stale.inc();
                &self.requests.miss
            }
            Ok(LayerResult::Miss) => &self.requests.miss,
            Ok(LayerResult::NotHandled) => &self.requests.not_handled,
            Ok(LayerResult::StopWithoutValue) => &self.requests.stopped,
            Err(_) => &self.requests.read_failed,
        }
        .inc();
    }
}

// === impl Requests ===

impl Requests {
    /// Changes and clears, whether or not they worked.
    fn written(&self) -> u64 {
        let kinds = [&self.set, &self.fill, &self.remove, &self.remove_tagged, &self.clear];
        kinds.iter().map(|written| written.ok.get() + written.failed.get()).sum()
    }
}

// === impl Times ===

impl Times {
    /// By the value of the metric label `operation`.
    const fn all(&self) -> [(&'static str, &Histogram); 4] {
        [("get", &self.get), ("get_many", &self.get_many), ("apply", &self.apply), ("clear", &self.clear)]
    }
}

#[async_trait]
impl Component for Metered {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    /// What the layer holds and what failed is its own account; reads, writes and times are those seen from here.
    fn stats(&self) -> Stats {
        let requests = &self.requests;
        let (hits, misses) = (requests.hit.get(), requests.miss.get() + requests.stopped.get());
        Stats {
            hits,
            misses,
            stale_hits: requests.stale.get(),
            operations: hits + misses + requests.read_failed.get() + requests.written(),
            latency: self.times.all().map(|(operation, calls)| Latency::of(operation, calls)).into(),
            ..self.inner.stats()
        }
    }

    async fn shutdown(&self, deadline: Instant) {
        self.inner.shutdown(deadline).await;
    }
}

#[async_trait]
impl Layer for Metered {
    fn id(&self) -> LayerId {
        self.inner.id()
    }

    async fn get(&self, cx: &OperationContext, key: &Key) -> Result<LayerResult, LayerError> {
        let call = self.measure("get", &self.times.get, 1);
        let answer = self.inner.get(cx, key).await;
        self.end(cx, &call, answer.as_ref().map(LayerResult::label));
        self.read(cx, answer.as_ref());
        answer
    }

    fn get_now(&self, cx: &OperationContext, key: &[u8], is_last: bool) -> Option<LayerResult> {
        let call = self.measure("get", &self.times.get, 1);
        let result = self.inner.get_now(cx, key, is_last)?;
        // No span: like a hit in memory it is part of no operation that has one.
        call.latency.observe_since(call.start, self.clock.monotonic());
        self.read(cx, Ok(&result));
        Some(result)
    }

    fn is_away(&self) -> bool {
        self.inner.is_away()
    }

    async fn get_many(&self, cx: &OperationContext, keys: &[Key]) -> Answers {
        let call = self.measure("get_many", &self.times.get_many, keys.len());
        let answers = self.inner.get_many(cx, keys).await;
        self.end(cx, &call, answers.as_ref().map(|_| "ok"));
        match &answers {
            Ok(answers) => answers.iter().for_each(|answer| self.read(cx, answer.as_ref())),
            Err(_) => self.requests.read_failed.inc_by(keys.len() as u64),
        }
        answers
    }

    fn passed_over(&self, keys: usize) {
        self.requests.not_handled.inc_by(keys as u64);
        self.inner.passed_over(keys);
    }

    async fn apply(&self, cx: &OperationContext, changes: &[Change]) -> Result<Vec<Position>, LayerError> {
        let call = self.measure("apply", &self.times.apply, changes.len());
        let answer = self.inner.apply(cx, changes).await;
        self.end(cx, &call, answer.as_ref().map(|_| "ok"));
        for change in changes {
            let written = match change {
                Change::Set(_) | Change::Again(..) => &self.requests.set,
                Change::Fill(_) => &self.requests.fill,
                Change::Remove(_) => &self.requests.remove,
                Change::RemoveTagged(_) => &self.requests.remove_tagged,
                Change::Follow(_) => continue,
            };
            if answer.is_ok() { &written.ok } else { &written.failed }.inc();
        }
        answer
    }

    async fn clear(&self, cx: &OperationContext) -> Result<(), LayerError> {
        let call = self.measure("clear", &self.times.clear, 0);
        let answer = self.inner.clear(cx).await;
        self.end(cx, &call, answer.as_ref().map(|()| "ok"));
        let clear = &self.requests.clear;
        if answer.is_ok() { &clear.ok } else { &clear.failed }.inc();
        answer
    }

    async fn tag_removals(&self, cx: &OperationContext) -> Result<Vec<TagRemoval>, LayerError> {
        self.inner.tag_removals(cx).await
    }

    async fn newest_position(&self, cx: &OperationContext) -> Result<Position, LayerError> {
        self.inner.newest_position(cx).await
    }

    async fn cursor(&self) -> Result<Option<Cursor>, LayerError> {
        self.inner.cursor().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock::UnixMillis,
        context::{Origin, Trust},
        entry::{Entry, EntryMeta},
        layer::{ErrorKind, HealthState},
    };

    /// Has the key `here`, the key `stale` past its expiry, not the key `absent`, knows that `gone` is, takes no part for
    /// `away`, and fails on all others; takes 3 ms for every read.
    struct Scripted(Clock);

    fn failure() -> LayerError {
        LayerError::new(LayerId::Disk, ErrorKind::Corrupt, "bits flipped")
    }

    #[async_trait]
    impl Component for Scripted {
        fn name(&self) -> &'static str {
            "disk"
        }

        fn health(&self) -> Health {
            Health { state: HealthState::Degraded, reason: "Scripted", message: String::new(), since: UnixMillis(7) }
        }

        fn stats(&self) -> Stats {
            Stats::default()
        }

        async fn shutdown(&self, _deadline: Instant) {}
    }

    #[async_trait]
    impl Layer for Scripted {
        fn id(&self) -> LayerId {
            LayerId::Disk
        }

        async fn get(&self, _cx: &OperationContext, key: &Key) -> Result<LayerResult, LayerError> {
            self.0.advance(Duration::from_millis(3));
            match key.as_bytes() {
                b"here" => Ok(LayerResult::Hit(Entry::new(b"here", b"value", EntryMeta::default()))),
                b"stale" => {
                    let (ended, stale_until) = (Some(UnixMillis(0)), Some(UnixMillis(1000)));
                    let meta = EntryMeta { expires_at: ended, stale_until, ..EntryMeta::default() };
                    Ok(LayerResult::Hit(Entry::new(b"stale", b"value", meta)))
                }
                b"absent" => Ok(LayerResult::Miss),
                b"gone" => Ok(LayerResult::StopWithoutValue),
                b"away" => Ok(LayerResult::NotHandled),
                _ => Err(failure()),
            }
        }

        async fn get_many(&self, cx: &OperationContext, keys: &[Key]) -> Answers {
            let mut results = Vec::new();
            for key in keys {
                results.push(self.get(cx, key).await);
            }
            Ok(results)
        }

        async fn apply(&self, _cx: &OperationContext, changes: &[Change]) -> Result<Vec<Position>, LayerError> {
            if changes.iter().all(|change| change.key() != b"broken") { Ok(Vec::new()) } else { Err(failure()) }
        }

        async fn clear(&self, _cx: &OperationContext) -> Result<(), LayerError> {
            Ok(())
        }

        async fn tag_removals(&self, _cx: &OperationContext) -> Result<Vec<TagRemoval>, LayerError> {
            Ok(Vec::new())
        }
    }

    fn key(text: &'static str) -> Key {
        Key::new(text.as_bytes()).unwrap()
    }

    /// The metrics and the report of a measured layer after some of everything.
    async fn exercised() -> (String, Stats) {
        let clock = Clock::manual(UnixMillis(0));
        let metrics = Metrics::new("");
        let layer = Metered::new(Arc::new(Scripted(clock.clone())), &metrics, clock.clone());
        let cx = OperationContext {
            id: 0,
            origin: Origin::Client,
            now: clock.now(),
            deadline: clock.monotonic(),
            trust: Trust::Full,
        };
        for name in ["here", "here", "absent", "broken", "stale"] {
            let _ = layer.get(&cx, &key(name)).await;
        }
        let many = ["here", "absent", "gone", "gone", "away", "broken"].map(key);
        let _ = layer.get_many(&cx, &many).await;
        layer.passed_over(4);
        let set = Change::Set(Entry::new(b"here", b"value", EntryMeta::default()));
        layer.apply(&cx, &[set.clone(), set, Change::Remove(key("absent"))]).await.unwrap();
        layer.apply(&cx, &[Change::Remove(key("broken"))]).await.unwrap_err();
        layer.clear(&cx).await.unwrap();
        (metrics.render(), layer.stats())
    }

    #[tokio::test]
    async fn every_outcome_is_counted_once_under_its_labels() {
        let (text, _) = exercised().await;
        for (operation, result, count) in [
            ("get", "hit", 3),
            ("get", "miss", 3),
            ("get", "error", 2),
            ("get", "stopped", 2),
            ("get", "not_handled", 5),
            ("set", "ok", 2),
            ("remove", "ok", 1),
            ("remove", "error", 1),
            ("clear", "ok", 1),
        ] {
            let line = format!(
                "tieredcache_layer_requests_total{{layer=\"disk\",operation=\"{operation}\",result=\"{result}\"}} {count}\n"
            );
            assert!(text.contains(&line), "{line} in {text}");
        }
    }

    #[tokio::test]
    async fn time_is_measured_around_each_call() {
        let (text, _) = exercised().await;
        let bucket = |end: &str, count: u32| {
            format!(
                "tieredcache_layer_latency_seconds_bucket{{layer=\"disk\",operation=\"get\",le=\"{end}\"}} {count}\n"
            )
        };
        assert!(text.contains(&bucket("0.0025", 0)) && text.contains(&bucket("0.005", 5)), "{text}");
    }

    #[tokio::test]
    async fn the_report_has_what_was_seen_from_outside() {
        let (text, stats) = exercised().await;
        assert_eq!((stats.hits, stats.misses, stats.stale_hits, stats.operations), (3, 5, 1, 15));
        let get = stats.latency.iter().find(|latency| latency.operation == "get").unwrap();
        assert_eq!((get.count, get.mean_ns), (5, 3_000_000));
        assert!((2_500_000..=5_000_000).contains(&get.p99_ns), "{get:?}");
        assert!(text.contains("tieredcache_layer_stale_reads_total{layer=\"disk\"} 1\n"), "{text}");
    }
}
