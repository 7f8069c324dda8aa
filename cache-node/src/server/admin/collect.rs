//! What is summed at each scrape: the parts' own counters, under the names that the README documents.

mod backplane;
mod disk;
mod memory;
mod near;
mod redis;
mod tags;
mod write_queue;

use std::sync::{Arc, Weak};

use crds::node_report;

use self::{
    backplane::BACKPLANE,
    disk::DISK,
    memory::MEMORY,
    near::{LEASE, NEAR, leases, near},
    redis::REDIS,
    tags::TAGS,
    write_queue::QUEUE,
};
use super::Board;
use crate::{
    coordinator::{Answer, Coordinator},
    layer::{ErrorKind, HealthState, Stats, metered::LATENCY},
    metrics::{Definition, Kind, Metrics, Samples},
    server::resp::{Class, Server},
    telemetry::{SpanCounts, Spans},
    write_queue::LaneReport,
};

/// The numbers of one part and how they are told.
struct Export {
    /// Its name, the value of the label `layer`.
    name: &'static str,
    definitions: &'static [Definition],
    /// What it has beyond what all parts have.
    read: fn(&Facts<'_>, &mut Samples),
}

/// What numbers are read from, at one moment.
struct Facts<'a> {
    stats: &'a Stats,
    lanes: &'a [LaneReport],
    promotions: u64,
    promotions_refused: u64,
}

/// Every part.
const EXPORTS: &[Export] = &[MEMORY, TAGS, QUEUE, BACKPLANE, REDIS, DISK];

const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Definition {
    Definition { name, help, kind: Kind::Gauge, labels }
}

const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Definition {
    Definition { name, help, kind: Kind::Counter, labels }
}

const NODE_HEALTH: Definition = gauge(
    "tieredcache_node_health",
    "1 for the state that the node as a whole is in, else 0: degraded with its worst part, unavailable only if it can not serve.",
    &["state"],
);
const READY: Definition = gauge("tieredcache_ready", "1 while the node serves clients, else 0.", &[]);

const HEALTH: Definition =
    gauge("tieredcache_layer_health", "1 for the state that the layer is in, else 0.", &["state"]);
const ERRORS: Definition = counter("tieredcache_layer_errors_total", "Operations that failed, by kind.", &["kind"]);
const ENTRIES: Definition =
    gauge("tieredcache_layer_entries", "Entries held; for the write queue, writes not on disk yet.", &[]);
const BYTES: Definition = gauge("tieredcache_layer_bytes", "Bytes held.", &[]);
const CAPACITY: Definition = gauge("tieredcache_layer_capacity_bytes", "Bytes that may be held.", &[]);
const EXPIRED: Definition = counter(
    "tieredcache_layer_expired_total",
    "Dead entries reclaimed without having been asked for: expired, or removed by a tag.",
    &[],
);
const OPEN: Definition = gauge("tieredcache_resp_connections", "Client connections open.", &[]);
const OPEN_MAX: Definition = gauge("tieredcache_resp_connections_max", "Client connections that may be open.", &[]);
const CONNECTIONS: Definition = counter(
    "tieredcache_resp_connections_total",
    "Client connections that were accepted or rejected as too many.",
    &["result"],
);
const CLOSED: Definition = counter(
    "tieredcache_resp_connections_aborted_total",
    "Client connections that the node closed: client too slow, not RESP, or a fault of the node.",
    &["reason"],
);
const COMMANDS: Definition =
    counter("tieredcache_resp_commands_total", "Commands received; unknown names count as unknown.", &["command"]);
const ERROR_REPLIES: Definition =
    counter("tieredcache_resp_error_replies_total", "Commands answered with an error.", &[]);
const TRAFFIC: Definition = counter("tieredcache_resp_bytes_total", "Bytes from and to clients.", &["direction"]);
const RESP_LATENCY: Definition = Definition {
    name: "tieredcache_resp_latency_seconds",
    help: "Time from the receipt of a command to its reply; commands of a pipeline that run together took as long as all.",
    kind: Kind::Histogram,
    labels: &["class"],
};
const SLOW: Definition = counter("tieredcache_resp_slow_commands_total", "Commands that the slow log has taken.", &[]);
const ANSWERS: Definition = counter(
    "tieredcache_requests_total",
    "Keys read by clients, by how that ended over all layers: with a value, one that is stale or was served by a fenced node, none, or none because a layer failed.",
    &["result"],
);
const RESP: &[Definition] =
    &[OPEN, OPEN_MAX, CONNECTIONS, CLOSED, COMMANDS, ERROR_REPLIES, TRAFFIC, RESP_LATENCY, SLOW];

const SPANS: Definition = counter(
    "tieredcache_spans_total",
    "Spans, by what became of them: the collector has them, did not take them, or too many waited for it.",
    &["result"],
);

/// The states of a node, with the value of the label `state`.
const NODE_STATES: [(node_report::HealthState, &str); 3] = [
    (node_report::HealthState::Healthy, HealthState::Healthy.label()),
    (node_report::HealthState::Degraded, HealthState::Degraded.label()),
    (node_report::HealthState::Unavailable, HealthState::Unavailable.label()),
];

/// What became of spans; nothing if none are made.
pub fn register_spans(metrics: &Metrics, spans: Option<Arc<Spans>>) {
    metrics.at_scrape(&[], &[SPANS], move |samples| {
        let counts = spans.as_ref().map_or_else(SpanCounts::default, |spans| spans.counts());
        samples.put(&SPANS, &["exported"], counts.exported as f64);
        samples.put(&SPANS, &["failed"], counts.failed as f64);
        samples.put(&SPANS, &["dropped"], counts.dropped as f64);
    });
}

/// Readiness and the verdict on the node as metrics.
pub fn register_board(metrics: &Metrics, board: Arc<Board>) {
    metrics.at_scrape(&[], &[READY, NODE_HEALTH], move |samples| {
        samples.put(&READY, &[], f64::from(u8::from(board.waiting_for().is_empty())));
        let state = board.health().state;
        for (one, label) in NODE_STATES {
            samples.put(&NODE_HEALTH, &[label], f64::from(u8::from(one == state)));
        }
    });
}

/// The layers of a coordinator and what they answered. It is held weakly, so that a scrape never keeps a closed node's database open.
pub fn register_coordinator(metrics: &Metrics, coordinator: &Arc<Coordinator>) {
    let answers = Arc::clone(coordinator.answers());
    metrics.at_scrape(&[], &[ANSWERS], move |samples| {
        for answer in Answer::ALL {
            samples.put(&ANSWERS, &[answer.label()], answers.count(answer) as f64);
        }
    });
    let leasing = Arc::downgrade(coordinator);
    metrics.at_scrape(&[], LEASE, move |samples| {
        if let Some(coordinator) = Weak::upgrade(&leasing) {
            leases(&coordinator, samples);
        }
    });
    for export in EXPORTS.iter().filter(|export| export.is_of(coordinator)) {
        let coordinator = Arc::downgrade(coordinator);
        metrics.at_scrape(&[("layer", export.name)], export.definitions, move |samples| {
            if let Some(coordinator) = Weak::upgrade(&coordinator) {
                collect(export, &coordinator, samples);
            }
        });
    }
}

fn collect(export: &Export, coordinator: &Coordinator, samples: &mut Samples) {
    let parts = coordinator.parts();
    let Some(part) = parts.iter().find(|part| part.name() == export.name) else { return };
    let facts = Facts {
        stats: &part.stats(),
        lanes: &coordinator.write_queue().lanes(),
        promotions: coordinator.promotions(),
        promotions_refused: coordinator.promotions_refused(),
    };
    let state = part.health().state;
    HealthState::ALL.iter().for_each(|one| samples.put(&HEALTH, &[one.label()], f64::from(u8::from(*one == state))));
    part.times().iter().for_each(|(operation, calls)| samples.put_histogram(&LATENCY, &[operation], calls));
    held(samples, facts.stats);
    (export.read)(&facts, samples);
}

/// The RESP server.
pub fn register_resp(metrics: &Metrics, server: &Server) {
    let (counters, meter) = (server.counters(), server.meter());
    metrics.at_scrape(&[], RESP, move |samples| {
        let totals = counters.totals();
        samples.put(&OPEN, &[], f64::from(totals.connections_open));
        samples.put(&OPEN_MAX, &[], f64::from(totals.connections_max));
        samples.put(&CONNECTIONS, &["accepted"], totals.connections_accepted as f64);
        samples.put(&CONNECTIONS, &["rejected"], totals.connections_rejected as f64);
        samples.put(&CLOSED, &["timeout"], totals.connections_timed_out as f64);
        samples.put(&CLOSED, &["protocol"], totals.protocol_errors as f64);
        samples.put(&CLOSED, &["panic"], totals.panics as f64);
        for command in &totals.commands {
            samples.put(&COMMANDS, &[command.command], command.count as f64);
        }
        samples.put(&ERROR_REPLIES, &[], totals.error_replies as f64);
        samples.put(&TRAFFIC, &["in"], totals.bytes_in as f64);
        samples.put(&TRAFFIC, &["out"], totals.bytes_out as f64);
        for class in Class::ALL {
            samples.put_histogram(&RESP_LATENCY, &[class.label()], meter.latency(class));
        }
        samples.put(&SLOW, &[], meter.slow_log().recorded() as f64);
    });
    let near_caches = server.near_caches();
    metrics.at_scrape(&[], NEAR, move |samples| near(&near_caches, samples));
}

// === impl Export ===

impl Export {
    /// Whether there is such a part. Without a layer to write to, the queue only gives writes their order.
    fn is_of(&self, coordinator: &Coordinator) -> bool {
        let is_there = coordinator.parts().iter().any(|part| part.name() == self.name);
        is_there && (self.name != QUEUE.name || coordinator.cold().next().is_some())
    }
}

/// What every layer below memory has.
fn errors(samples: &mut Samples, stats: &Stats) {
    for kind in ErrorKind::ALL {
        let count = stats.errors.iter().find(|(known, _)| *known == kind).map_or(0, |(_, count)| *count);
        samples.put(&ERRORS, &[kind.label()], count as f64);
    }
}

/// What a part holds, if that makes sense for it.
fn held(samples: &mut Samples, stats: &Stats) {
    for (definition, number) in [(&ENTRIES, stats.entries), (&BYTES, stats.bytes), (&CAPACITY, stats.capacity_bytes)] {
        if let Some(number) = number {
            samples.put(definition, &[], number as f64);
        }
    }
}

/// A number that only this part has, by the name that the report gives it.
fn extra(stats: &Stats, name: &str) -> f64 {
    let found = stats.extras.iter().find(|(known, _)| *known == name);
    debug_assert!(found.is_some(), "{name} is none of {:?}", stats.extras);
    found.map_or(0.0, |(_, number)| *number as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        clock::Clock,
        config::{Config, Environment},
        layer::{LayerId, metered::REQUESTS},
        node::{Pipeline, SetOptions},
        testing::eventually,
    };

    /// With a Redis that can not be reached there is every part.
    const NO_REDIS: &str = "";
    const DEAD_REDIS: &str = "redis: {mode: External, endpoints: ['127.0.0.1:1']}";

    async fn pipeline(metrics: &Metrics, redis: &str) -> (tempfile::TempDir, Pipeline) {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let yaml = format!("disk: {{path: '{}'}}\nshutdown: {{drainTimeout: 0s}}\n{redis}", data.display());
        let config = Config::from_yaml(&yaml, &Environment::read()).unwrap();
        let pipeline = Pipeline::open(&config, metrics, Clock::system()).await.unwrap();
        (folder, pipeline)
    }

    /// The series of a layer in a scrape: name, its other labels, value.
    fn series(text: &str, layer: &str) -> Vec<(String, String, f64)> {
        let mut found = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let own = format!("layer=\"{layer}\"");
            let labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
            if labels.contains(&own.as_str()) {
                let others: Vec<&str> = labels.into_iter().filter(|label| *label != own).collect();
                found.push((name.to_owned(), others.join(","), value.parse().unwrap()));
            }
        }
        found
    }

    /// The sum of the series of this name that have one of these labels, or of all.
    fn sum(series: &[(String, String, f64)], name: &str, labels: &[&str]) -> f64 {
        let fits = |others: &str| labels.is_empty() || labels.iter().any(|label| others.contains(label));
        series.iter().filter(|(known, others, _)| known == name && fits(others)).map(|(_, _, value)| value).sum()
    }

    /// The same report with a number of its own in every place, and which is where. The first is the largest.
    fn numbered(mut stats: Stats, is_cold: bool) -> (Stats, Vec<(String, u64)>) {
        let mut numbers = Vec::new();
        let mut next = |name: &str| {
            let number = 1_900_000 - 7919 * numbers.len() as u64;
            numbers.push((name.to_owned(), number));
            number
        };
        if is_cold {
            stats.errors = ErrorKind::ALL.map(|kind| (kind, next(kind.label()))).into();
        } else if stats.entries.is_some() && stats.capacity_bytes.is_some() {
            stats.hits = next("hits");
            stats.misses = next("misses");
            stats.stale_hits = next("staleHits");
        }
        for (name, number) in
            [("entries", &mut stats.entries), ("bytes", &mut stats.bytes), ("capacity", &mut stats.capacity_bytes)]
        {
            *number = number.map(|_| next(name));
        }
        // Counted from outside, as the reads of a cold layer are.
        for (name, number) in stats.extras.iter_mut().filter(|(name, _)| *name != "notHandled") {
            *number = next(name);
        }
        if !is_cold {
            stats.operations = 5_000_011;
            numbers.push(("operations".to_owned(), stats.operations));
        }
        (stats, numbers)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_number_of_a_layers_report_is_a_metric() {
        let (_folder, pipeline) = pipeline(&Metrics::new(""), DEAD_REDIS).await;
        let mut seen = 0;
        for part in pipeline.parts() {
            let export = EXPORTS.iter().find(|export| export.name == part.name()).unwrap();
            let is_cold = [LayerId::Redis, LayerId::Disk].map(LayerId::label).contains(&part.name());
            let (mut stats, mut numbers) = numbered(part.stats(), is_cold);
            if [TAGS.name, BACKPLANE.name].contains(&export.name) {
                // Their operations are one of their own numbers.
                let (_, first) =
                    numbers.iter().find(|(name, _)| ["removals", "received"].contains(&name.as_str())).unwrap();
                stats.operations = *first;
                numbers.retain(|(name, _)| name != "operations");
            }
            let number = |name: &str| numbers.iter().find(|(known, _)| known == name).map_or(0, |(_, number)| *number);
            let lane = LaneReport {
                clears: number("clears"),
                lost: number("lostAtShutdown"),
                removals: number("queuedRemovals"),
                replayed: number("replayedRemovals"),
                ..pipeline.coordinator().write_queue().lanes()[0]
            };
            let metrics = Metrics::new("");
            metrics.at_scrape(&[("layer", export.name)], export.definitions, move |samples| {
                held(samples, &stats);
                let facts = Facts { stats: &stats, lanes: &[lane], promotions: 0, promotions_refused: 0 };
                (export.read)(&facts, samples);
            });
            let mut told: BTreeMap<String, Vec<f64>> = BTreeMap::new();
            for (name, _, value) in series(&metrics.render(), export.name) {
                told.entry(name).or_default().push(value);
            }
            // As it is, in other units, or summed over the labels of a metric.
            let all = told.values().flat_map(|values| values.iter().copied().chain([values.iter().sum()]));
            let all: Vec<f64> = all.collect();
            for (name, number) in &numbers {
                let is =
                    |value: &f64| [1.0, 1e2, 1e3, 1e6].iter().any(|unit| (value * unit - *number as f64).abs() < 0.5);
                assert!(all.iter().any(is), "{name} of {} is in no metric: {told:#?}", export.name);
            }
            seen += numbers.len();
        }
        assert!(seen > 60, "{seen}");
        pipeline.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_read_counts_once_for_the_node_whatever_layer_answers_it() {
        let metrics = Metrics::new("");
        let (_folder, pipeline) = pipeline(&metrics, NO_REDIS).await;
        register_coordinator(&metrics, pipeline.coordinator());
        pipeline.set(b"k", b"value", SetOptions::default()).await.unwrap();
        // Acknowledged once the disk has it, and with it what was queued before.
        pipeline.remove_by_tag(&["nobody"]).await.unwrap();
        let queue = pipeline.coordinator().write_queue();
        eventually("the disk has it", || queue.items() == 0).await;
        pipeline.coordinator().memory().clear();
        let counted = |stats: &Stats| (stats.hits, stats.misses);
        assert!(pipeline.get("k").await.unwrap().is_some());
        let layers: Vec<_> = pipeline.parts().iter().map(|part| (part.name(), counted(&part.stats()))).collect();
        assert_eq!(layers, [("memory", (0, 1)), ("tagIndex", (0, 0)), ("writeQueue", (0, 1)), ("disk", (1, 0))]);
        assert_eq!(counted(&pipeline.stats()), (1, 0));
        assert!(pipeline.get("k").await.unwrap().is_some() && pipeline.get("absent").await.unwrap().is_none());
        assert_eq!(counted(&pipeline.stats()), (2, 1));
        let text = metrics.render();
        for (result, count) in [("hit", 2), ("miss", 1), ("stale", 0), ("failed", 0)] {
            let line = format!("{}{{result=\"{result}\"}} {count}\n", ANSWERS.name);
            assert!(text.contains(&line), "{line} in {text}");
        }
        pipeline.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn reads_writes_and_times_of_a_layers_report_are_those_of_its_metrics() {
        compare(NO_REDIS).await;
        compare(DEAD_REDIS).await;
    }

    async fn compare(redis: &str) {
        let metrics = Metrics::new("");
        let (_folder, pipeline) = pipeline(&metrics, redis).await;
        register_coordinator(&metrics, pipeline.coordinator());
        let lives = |ttl| SetOptions { ttl: Some(std::time::Duration::from_secs(ttl)), ..SetOptions::default() };
        for number in 0..200 {
            pipeline.set(format!("k{number}").as_bytes(), b"value", lives(600)).await.unwrap();
        }
        // Acknowledged once the disk has it, and with it what was queued before.
        pipeline.remove_by_tag(&["nobody"]).await.unwrap();
        assert!(pipeline.remove("k199").await.unwrap());
        eventually("the disk has all", || {
            let queue = pipeline.coordinator().write_queue();
            // What is on its way to the disk is answered by the queue; what a Redis lacks that is away stays there.
            let is_empty = crate::layer::Component::stats(queue).entries == Some(0);
            is_empty || (redis != NO_REDIS && queue.lanes().iter().any(|lane| lane.items == 0))
        })
        .await;
        pipeline.coordinator().memory().clear();
        for number in 150..250 {
            pipeline.get(format!("k{number}")).await.unwrap();
            pipeline.get("k0").await.unwrap();
        }
        // A Redis that is away is tried again now and then: both are to be of one moment.
        let operations = || pipeline.parts().iter().map(|part| part.stats().operations).collect::<Vec<_>>();
        let (text, stats) = loop {
            let before = operations();
            let seen = (metrics.render(), pipeline.parts().iter().map(|part| part.stats()).collect::<Vec<_>>());
            if before == operations() {
                break seen;
            }
        };
        for (part, stats) in pipeline.parts().iter().zip(stats) {
            let series = series(&text, part.name());
            let get =
                |result: &str| sum(&series, REQUESTS.name, &[&format!("operation=\"get\",result=\"{result}\"")]) as u64;
            if series.iter().any(|(name, ..)| name == REQUESTS.name) {
                assert_eq!(stats.hits, get("hit"), "{}", part.name());
                assert_eq!(stats.misses, get("miss") + get("stopped"), "{}", part.name());
                let all = sum(&series, REQUESTS.name, &[]) as u64;
                assert_eq!(stats.operations, all - get("not_handled"), "{}", part.name());
            }
            for latency in &stats.latency {
                let name = format!("{}_count", LATENCY.name);
                let label = format!("operation=\"{}\"", latency.operation);
                assert_eq!(latency.count, sum(&series, &name, &[&label]) as u64, "{} {label}", part.name());
            }
            let timed = |operation| stats.latency.iter().any(|one| one.operation == operation && one.count > 0);
            match part.name() {
                "memory" if redis == NO_REDIS => {
                    assert!(stats.hits >= 99 && stats.misses >= 100 && timed("get") && timed("set"))
                }
                // While Redis lacks writes, the queue answers for them.
                "disk" if redis == NO_REDIS => {
                    assert!(stats.hits >= 49 && stats.misses >= 50 && timed("get"), "{stats:?}")
                }
                "memory" => assert!(timed("get") && timed("set")),
                "disk" => assert!(timed("apply")),
                "writeQueue" => {
                    let answers = if redis == NO_REDIS { stats.misses >= 100 } else { stats.hits >= 49 };
                    assert!(answers && timed("accept") && timed("flush_to_disk"), "{stats:?}")
                }
                "tagIndex" => assert!(timed("remove")),
                "redis" => assert!(stats.extras.contains(&("notHandled", get("not_handled")))),
                _ => {}
            }
        }
        pipeline.shutdown().await;
    }
}
