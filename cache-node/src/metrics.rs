//! The registry of metrics, and how numbers that the parts count themselves get into it.
//!
//! Hot parts count in striped counters of their own; [`Metrics::at_scrape`] sums them when somebody asks. Labels are
//! closed sets, never keys, addresses or texts of errors.

mod histogram;

use prometheus::{
    Encoder, IntCounterVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto,
};
use tikv_jemalloc_ctl::{epoch, stats};

pub use self::histogram::{Distribution, Histogram};

/// The metrics of one node. Cheap to clone; clones share the registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
}

/// A metric as the README documents it.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Full name.
    pub name: &'static str,
    /// What it counts, for people.
    pub help: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// Names of the labels that vary within one part.
    pub labels: &'static [&'static str],
}

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only up, from 0 at the start of the node.
    Counter,
    /// Up and down.
    Gauge,
    /// How often something took how long, from the start of the node.
    Histogram,
}

/// Takes the numbers of one scrape.
#[derive(Debug)]
pub struct Samples {
    definitions: &'static [Definition],
    constant: Vec<proto::LabelPair>,
    metrics: Vec<Vec<proto::Metric>>,
}

/// Reads numbers from a part when somebody asks.
struct AtScrape<R> {
    definitions: &'static [Definition],
    descriptions: Vec<Desc>,
    constant: Vec<proto::LabelPair>,
    read: R,
}

const ALLOCATED: Definition = Definition {
    name: "tieredcache_allocator_allocated_bytes",
    help: "Bytes that the program holds from the allocator.",
    kind: Kind::Gauge,
    labels: &[],
};
const RESIDENT: Definition = Definition {
    name: "tieredcache_allocator_resident_bytes",
    help: "Bytes that the allocator holds in physical memory.",
    kind: Kind::Gauge,
    labels: &[],
};
const ALLOCATOR: &[Definition] = &[ALLOCATED, RESIDENT];

const BUILD_INFO: Definition = Definition {
    name: "tieredcache_build_info",
    help: "Always 1; the label says which version runs.",
    kind: Kind::Gauge,
    labels: &["version"],
};
const CONFIG_INFO: Definition = Definition {
    name: "tieredcache_config_info",
    help: "Always 1; the label says which revision of the configuration runs.",
    kind: Kind::Gauge,
    labels: &["revision"],
};
const INFO: &[Definition] = &[BUILD_INFO, CONFIG_INFO];

// === impl Metrics ===

impl Metrics {
    /// A registry with the numbers of the process, the allocator, the program and its configuration.
    pub fn new(config_revision: &str) -> Self {
        let metrics = Self { registry: Registry::new() };
        metrics.register(ProcessCollector::for_self());
        metrics.at_scrape(&[], ALLOCATOR, |samples| {
            // The statistics are a snapshot that only a new epoch renews. Where another allocator is linked in,
            // there are none, and the two gauges are absent.
            if epoch::advance().is_ok()
                && let (Ok(allocated), Ok(resident)) = (stats::allocated::read(), stats::resident::read())
            {
                samples.put(&ALLOCATED, &[], allocated as f64);
                samples.put(&RESIDENT, &[], resident as f64);
            }
        });
        let revision = config_revision.to_owned();
        metrics.at_scrape(&[], INFO, move |samples| {
            samples.put(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
            samples.put(&CONFIG_INFO, &[&revision], 1.0);
        });
        metrics
    }

    /// Has `read` called at every scrape; it puts numbers for any of `definitions`, each with the labels `constant`.
    pub fn at_scrape(
        &self,
        constant: &[(&'static str, &'static str)],
        definitions: &'static [Definition],
        read: impl Fn(&mut Samples) + Send + Sync + 'static,
    ) {
        let describe = |definition: &Definition| {
            let labels = definition.labels.iter().map(|label| (*label).to_owned()).collect();
            let fixed = constant.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Desc::new(definition.name.to_owned(), definition.help.to_owned(), labels, fixed)
                .expect("names and labels are constants in the right form")
        };
        self.register(AtScrape {
            definitions,
            descriptions: definitions.iter().map(describe).collect(),
            constant: constant.iter().map(|(name, value)| pair(name, value)).collect(),
            read,
        });
    }

    /// Counters that the caller moves itself.
    pub fn counters(&self, constant: (&'static str, &'static str), definition: &Definition) -> IntCounterVec {
        assert_eq!(definition.kind, Kind::Counter, "{} is a counter", definition.name);
        let opts = Opts::new(definition.name, definition.help).const_label(constant.0, constant.1);
        let counters =
            IntCounterVec::new(opts, definition.labels).expect("names and labels are constants in the right form");
        self.register(counters.clone());
        counters
    }

    /// All metrics in the text format of Prometheus, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing into memory succeeds, and no family is empty after gathering");
        String::from_utf8(text).expect("names, labels and numbers are UTF-8")
    }

    fn register(&self, collector: impl Collector + 'static) {
        self.registry.register(Box::new(collector)).expect("each part registers once, under its own labels");
    }
}

// === impl Samples ===

impl Samples {
    /// Reports one number; `labels` in the order of the definition.
    pub fn put(&mut self, definition: &Definition, labels: &[&str], value: f64) {
        let mut metric = proto::Metric::default();
        match definition.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            Kind::Histogram => panic!("{} is no number", definition.name),
        }
        self.add(definition, labels, metric);
    }

    /// Reports one histogram; `labels` in the order of the definition.
    pub fn put_histogram(&mut self, definition: &Definition, labels: &[&str], histogram: &Histogram) {
        assert_eq!(definition.kind, Kind::Histogram, "{} is no histogram", definition.name);
        let Distribution { buckets, count, sum } = histogram.distribution();
        let buckets = buckets.into_iter().map(|(end, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(end);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut filled = proto::Histogram::default();
        filled.set_bucket(buckets.collect());
        filled.set_sample_count(count);
        filled.set_sample_sum(sum);
        let mut metric = proto::Metric::default();
        metric.set_histogram(filled);
        self.add(definition, labels, metric);
    }

    fn add(&mut self, definition: &Definition, labels: &[&str], mut metric: proto::Metric) {
        assert_eq!(labels.len(), definition.labels.len(), "{} has other labels", definition.name);
        let place = self.definitions.iter().position(|known| known.name == definition.name);
        let place = place.expect("only registered metrics are reported");
        let varying = definition.labels.iter().zip(labels).map(|(name, value)| pair(name, value));
        let mut pairs: Vec<_> = varying.chain(self.constant.iter().cloned()).collect();
        // By name, as the metrics that the library itself collects.
        pairs.sort_by(|a, b| a.name().cmp(b.name()));
        metric.set_label(pairs);
        self.metrics[place].push(metric);
    }
}

// === impl AtScrape ===

impl<R: Fn(&mut Samples) + Send + Sync> Collector for AtScrape<R> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut samples = Samples {
            definitions: self.definitions,
            constant: self.constant.clone(),
            metrics: self.definitions.iter().map(|_| Vec::new()).collect(),
        };
        (self.read)(&mut samples);
        let families = self.definitions.iter().zip(samples.metrics).map(|(definition, metrics)| {
            let mut family = proto::MetricFamily::default();
            family.set_name(definition.name.to_owned());
            family.set_help(definition.help.to_owned());
            family.set_field_type(match definition.kind {
                Kind::Counter => proto::MetricType::COUNTER,
                Kind::Gauge => proto::MetricType::GAUGE,
                Kind::Histogram => proto::MetricType::HISTOGRAM,
            });
            family.set_metric(metrics);
            family
        });
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

fn pair(name: &str, value: &str) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    const PIES: Definition =
        Definition { name: "pies_total", help: "Pies.", kind: Kind::Counter, labels: &["filling"] };

    #[test]
    fn numbers_are_read_at_each_scrape() {
        let metrics = Metrics { registry: Registry::new() };
        let baked = Arc::new(AtomicU64::new(1));
        let count = Arc::clone(&baked);
        metrics.at_scrape(&[("kitchen", "mine")], &[PIES], move |samples| {
            samples.put(&PIES, &["apple"], count.load(Ordering::Relaxed) as f64);
        });
        let text =
            "# HELP pies_total Pies.\n# TYPE pies_total counter\npies_total{filling=\"apple\",kitchen=\"mine\"} ";
        assert_eq!(metrics.render(), format!("{text}1\n"));
        baked.store(3, Ordering::Relaxed);
        assert_eq!(metrics.render(), format!("{text}3\n"));
    }

    #[test]
    fn parts_share_a_metric_under_their_own_labels() {
        let metrics = Metrics { registry: Registry::new() };
        for kitchen in ["mine", "yours"] {
            metrics.at_scrape(&[("kitchen", kitchen)], &[PIES], |samples| samples.put(&PIES, &["plum"], 2.0));
        }
        metrics.counters(("kitchen", "theirs"), &PIES).with_label_values(&["fish"]).inc();
        let text = metrics.render();
        assert_eq!(text.matches("# TYPE").count(), 1, "{text}");
        assert_eq!(text.matches("pies_total{").count(), 3, "{text}");
    }

    #[test]
    fn process_allocator_and_build_are_always_there() {
        let text = Metrics::new("r7").render();
        for line in [
            "process_resident_memory_bytes ",
            "process_open_fds ",
            "tieredcache_allocator_resident_bytes ",
            "tieredcache_config_info{revision=\"r7\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
