//! What the operator counts about itself. Labels are closed enums, never names of objects: a fleet of a thousand
//! caches has the same number of series as one.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// Buckets of a reconcile pass and of an API call, in seconds: from a pass without a write to one that ran into every
/// timeout.
const SECONDS_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How a pass over one object ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The cluster matches the spec, or is on its way.
    Applied,
    /// The spec can not be acted on until a person changes something.
    Refused,
    /// A call failed; it is tried again.
    Failed,
}

/// How a call to the API server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallOutcome {
    /// 2xx.
    Ok,
    /// 404.
    NotFound,
    /// 409: somebody else was faster, or the object is not the one meant.
    Conflict,
    /// 429.
    Throttled,
    /// Any other 4xx.
    Refused,
    /// 5xx.
    ServerError,
    /// No answer in time.
    Timeout,
    /// No connection.
    Unreachable,
    /// Not sent, because this replica is not sure to be the leader.
    Fenced,
}

/// Every metric of the operator. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    reconcile_seconds: HistogramVec,
    api_requests: IntCounterVec,
    api_seconds: HistogramVec,
    node_polls: IntCounterVec,
    events: IntCounterVec,
    silence_seconds: GaugeVec,
    leader: IntGauge,
    caches: IntGauge,
    caches_ready: IntGauge,
}

// === impl Outcome ===

impl Outcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

// === impl CallOutcome ===

impl CallOutcome {
    /// The outcome that a status code stands for.
    pub(crate) const fn of_status(code: u16) -> Self {
        match code {
            404 => Self::NotFound,
            409 => Self::Conflict,
            429 => Self::Throttled,
            400..=499 => Self::Refused,
            500..=599 => Self::ServerError,
            _ => Self::Ok,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Throttled => "throttled",
            Self::Refused => "refused",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Fenced => "fenced",
        }
    }
}

// === impl Metrics ===

impl Metrics {
    /// Makes and registers every metric.
    ///
    /// # Errors
    /// If two metrics share a name, which is a mistake in this file.
    pub(crate) fn register() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            let opts = HistogramOpts::new(name, help).buckets(SECONDS_BUCKETS.to_vec());
            let histogram = HistogramVec::new(opts, labels)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let silence_seconds = GaugeVec::new(
            Opts::new(
                "tieredcache_operator_silence_seconds",
                "Time since each watch or the lease last made progress; liveness fails at 180",
            ),
            &["part"],
        )?;
        registry.register(Box::new(silence_seconds.clone()))?;
        Ok(Self {
            reconciles: counter("tieredcache_operator_reconciles_total", "Passes over one object", &["outcome"])?,
            reconcile_seconds: histogram(
                "tieredcache_operator_reconcile_seconds",
                "Duration of a pass over one object",
                &["outcome"],
            )?,
            api_requests: counter(
                "tieredcache_operator_api_requests_total",
                "Calls to the API server",
                &["verb", "kind", "outcome"],
            )?,
            api_seconds: histogram(
                "tieredcache_operator_api_request_seconds",
                "Duration of calls to the API server, watches aside",
                &["verb"],
            )?,
            node_polls: counter("tieredcache_operator_node_polls_total", "Reports asked of cache nodes", &["outcome"])?,
            events: counter("tieredcache_operator_events_total", "Events written", &["reason"])?,
            silence_seconds,
            leader: gauge("tieredcache_operator_leader", "1 if this replica acts, 0 if it stands by")?,
            caches: gauge("tieredcache_operator_caches", "TieredCache objects watched")?,
            caches_ready: gauge("tieredcache_operator_caches_ready", "TieredCache objects whose Ready is True")?,
            registry,
        })
    }

    /// A pass has ended.
    pub(crate) fn reconciled(&self, outcome: Outcome, took: Duration) {
        self.reconciles.with_label_values(&[outcome.label()]).inc();
        self.reconcile_seconds.with_label_values(&[outcome.label()]).observe(took.as_secs_f64());
    }

    /// A call to the API server has been answered, or given up.
    pub(crate) fn called(&self, verb: &'static str, kind: &'static str, outcome: CallOutcome) {
        self.api_requests.with_label_values(&[verb, kind, outcome.label()]).inc();
    }

    /// How long a call that is not a watch took.
    pub(crate) fn call_took(&self, verb: &'static str, took: Duration) {
        self.api_seconds.with_label_values(&[verb]).observe(took.as_secs_f64());
    }

    /// A node has been asked for its report.
    pub(crate) fn polled(&self, answered: bool) {
        self.node_polls.with_label_values(&[if answered { "ok" } else { "failed" }]).inc();
    }

    /// An event has been written.
    pub(crate) fn event(&self, reason: &'static str) {
        self.events.with_label_values(&[reason]).inc();
    }

    /// Whether this replica acts.
    pub(crate) fn set_leader(&self, leader: bool) {
        self.leader.set(i64::from(leader));
    }

    /// How many caches there are, and how many of them are ready.
    pub(crate) fn set_caches(&self, all: usize, ready: usize) {
        self.caches.set(i64::try_from(all).unwrap_or(i64::MAX));
        self.caches_ready.set(i64::try_from(ready).unwrap_or(i64::MAX));
    }

    /// The text that Prometheus reads. `silences` are the ages of the heartbeats.
    ///
    /// # Errors
    /// If a metric can not be written as text.
    pub(crate) fn render(&self, silences: &[(String, Duration)]) -> Result<String, prometheus::Error> {
        self.silence_seconds.reset();
        for (part, silent) in silences {
            self.silence_seconds.with_label_values(&[part]).set(silent.as_secs_f64());
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_rendered_under_its_name() {
        let metrics = Metrics::register().unwrap();
        metrics.reconciled(Outcome::Applied, Duration::from_millis(3));
        metrics.called("patch", "StatefulSet", CallOutcome::of_status(409));
        metrics.set_leader(true);
        let text = metrics.render(&[("lease".to_owned(), Duration::from_secs(2))]).unwrap();
        assert!(text.contains(r#"tieredcache_operator_reconciles_total{outcome="applied"} 1"#), "{text}");
        let call = r#"api_requests_total{kind="StatefulSet",outcome="conflict",verb="patch"} 1"#;
        assert!(text.contains(call), "{text}");
        assert!(text.contains(r#"tieredcache_operator_silence_seconds{part="lease"} 2"#), "{text}");
        assert!(text.contains("tieredcache_operator_leader 1"), "{text}");
    }
}
