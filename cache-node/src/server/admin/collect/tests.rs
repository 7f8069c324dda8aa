use std::collections::BTreeMap;

use super::*;
use crate::{
    clock::Clock,
    config::{Config, Environment},
    layer::{LayerId, metered::REQUESTS},
    node::{Pipeline, SetOptions},
};

/// Every part, with a Redis that can not be reached.
async fn pipeline(metrics: &Metrics) -> (tempfile::TempDir, Pipeline) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let yaml = format!("disk: {{path: '{}'}}\nredis: {{mode: External, endpoints: ['127.0.0.1:1']}}", data.display());
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
    let (_folder, pipeline) = pipeline(&Metrics::new("")).await;
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
        if export.name == QUEUE.name {
            // It reads nothing.
            numbers.retain(|(name, _)| !["hits", "misses", "staleHits"].contains(&name.as_str()));
        }
        let number = |name: &str| numbers.iter().find(|(known, _)| known == name).map_or(0, |(_, number)| *number);
        let lane = LaneReport {
            clears: number("clears"),
            lost: number("lostAtShutdown"),
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
            let is = |value: &f64| [1.0, 1e2, 1e3, 1e6].iter().any(|unit| (value * unit - *number as f64).abs() < 0.5);
            assert!(all.iter().any(is), "{name} of {} is in no metric: {told:#?}", export.name);
        }
        seen += numbers.len();
    }
    assert!(seen > 60, "{seen}");
    pipeline.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_writes_and_times_of_a_layers_report_are_those_of_its_metrics() {
    let metrics = Metrics::new("");
    let (_folder, pipeline) = pipeline(&metrics).await;
    register_coordinator(&metrics, pipeline.coordinator());
    let lives = |ttl| SetOptions { ttl: Some(std::time::Duration::from_secs(ttl)), ..SetOptions::default() };
    for number in 0..200 {
        pipeline.set(format!("k{number}").as_bytes(), b"value", lives(600)).await.unwrap();
    }
    pipeline.remove_by_tag(&["nobody"]).await.unwrap();
    pipeline.coordinator().memory().clear();
    for number in 150..250 {
        pipeline.get(format!("k{number}")).await.unwrap();
        pipeline.get("k0").await.unwrap();
    }
    let text = metrics.render();
    for part in pipeline.parts() {
        let (stats, series) = (part.stats(), series(&text, part.name()));
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
            "memory" => assert!(stats.hits >= 99 && stats.misses >= 100 && timed("get") && timed("set")),
            "disk" => assert!(stats.hits >= 50 && stats.misses >= 50 && timed("get") && timed("apply")),
            "writeQueue" => assert!(timed("accept") && timed("flush_to_disk"), "{stats:?}"),
            "tagIndex" => assert!(timed("remove")),
            "redis" => assert!(stats.extras.contains(&("notHandled", get("not_handled")))),
            _ => {}
        }
    }
    pipeline.shutdown().await;
}
