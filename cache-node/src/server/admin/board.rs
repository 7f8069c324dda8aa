//! What the node says about itself while it opens, serves and drains.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crds::node_report::{HealthReport, HealthState, LatencyReport, LayerName, LayerReport, NodeReport, StatsReport};

use crate::{
    clock::{Clock, UnixMillis},
    coordinator::{Coordinator, Part},
    layer::{self, Component, Health, Latency, LayerId, Stats},
    server::pulse::Pulses,
};

/// The reason of a part that the configuration has switched off.
const DISABLED: &str = "DisabledByConfiguration";

/// The notice board of one node: written as it opens and closes, read by probes and the operator.
#[derive(Debug)]
pub struct Board {
    about: About,
    clock: Clock,
    stage: Mutex<(Stage, UnixMillis)>,
    /// Weak, so that a report never keeps a closed node's database open.
    coordinator: OnceLock<Weak<Coordinator>>,
    pulses: OnceLock<Pulses>,
}

/// What does not change while the node runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Name of the cache.
    pub cache: String,
    /// UID of the cache's resource.
    pub cache_uid: String,
    /// Name of the node.
    pub node: String,
    /// Revision of the configuration.
    pub config_revision: String,
    /// When the node was started.
    pub started: UnixMillis,
}

/// Where the node is between its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not ready: this is being opened.
    Opening(&'static str),
    /// Ready.
    Serving,
    /// Not ready any more: clients are leaving and the queue is being written.
    Draining,
}

// === impl Board ===

impl Board {
    /// The board of a node that has just begun to open.
    pub fn new(about: About, clock: Clock) -> Self {
        Self {
            stage: Mutex::new((Stage::Opening("configuration"), clock.now())),
            about,
            clock,
            coordinator: OnceLock::new(),
            pulses: OnceLock::new(),
        }
    }

    /// Announces the next stage, which begins now.
    pub fn announce(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = (stage, self.clock.now());
    }

    /// From now on the parts of this coordinator are reported. Only the first one counts.
    pub fn show(&self, coordinator: &Arc<Coordinator>) {
        let _ = self.coordinator.set(Arc::downgrade(coordinator));
    }

    /// From now on `/livez` fails when one of these stands still. Only the first call counts.
    pub fn feel(&self, pulses: Pulses) {
        let _ = self.pulses.set(pulses);
    }

    /// Takes the pulse of the event loops once, if there are any yet.
    pub(super) fn look(&self) {
        if let Some(pulses) = self.pulses.get() {
            pulses.look();
        }
    }

    /// Why a restart would help; none if it would not.
    pub fn trouble(&self) -> Option<String> {
        self.pulses.get().and_then(Pulses::trouble)
    }

    /// What the node waits for before it is ready; empty when it is.
    pub fn waiting_for(&self) -> Vec<String> {
        match self.stage().0 {
            Stage::Opening(part) => vec![format!("{part} is being opened")],
            Stage::Serving => self.behind().into_iter().collect(),
            Stage::Draining => vec!["the node is stopping".to_owned()],
        }
    }

    /// Why a node that serves must not be given clients yet: it does not know what other nodes have changed.
    fn behind(&self) -> Option<String> {
        self.coordinator.get().and_then(Weak::upgrade)?.backplane().keeps_from_ready()
    }

    /// The verdict on the node as a whole.
    pub fn health(&self) -> HealthReport {
        let coordinator = self.coordinator.get().and_then(Weak::upgrade);
        self.judge(coordinator.as_deref(), &self.waiting_for())
    }

    /// The report for `/v1/layers`.
    pub fn report(&self) -> NodeReport {
        let waiting_for = self.waiting_for();
        let About { cache, cache_uid, node, config_revision, started } = self.about.clone();
        let coordinator = self.coordinator.get().and_then(Weak::upgrade);
        let coordinator = coordinator.as_deref();
        NodeReport {
            node,
            cache,
            cache_uid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_revision,
            ready: waiting_for.is_empty(),
            health: self.judge(coordinator, &waiting_for),
            stats: coordinator.map(|coordinator| stats(coordinator.stats())).unwrap_or_default(),
            waiting_for,
            started_unix_ms: started.0,
            layers: coordinator.map(|coordinator| self.layers(coordinator)).unwrap_or_default(),
        }
    }

    /// The verdict on the node: it can not serve while clients are kept from it or an event loop hangs; else its parts
    /// say how well it does.
    fn judge(&self, coordinator: Option<&Coordinator>, waiting_for: &[String]) -> HealthReport {
        let unable = |reason: &str, message: String| HealthReport {
            state: HealthState::Unavailable,
            reason: reason.to_owned(),
            message,
            since_unix_ms: self.stage().1.0,
        };
        if let Some(trouble) = self.trouble() {
            return unable("EventLoopHangs", trouble);
        }
        match (self.stage().0, coordinator) {
            (Stage::Draining, _) => unable("Stopping", waiting_for.join("; ")),
            (Stage::Serving, Some(coordinator)) if waiting_for.is_empty() => health(coordinator.health()),
            (Stage::Opening(_) | Stage::Serving, _) => unable("Starting", waiting_for.join("; ")),
        }
    }

    fn stage(&self) -> (Stage, UnixMillis) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layers(&self, coordinator: &Coordinator) -> Vec<LayerReport> {
        let parts = coordinator.parts();
        // Without a layer to write to, the queue only gives writes their order and keeps none.
        let has_queue = coordinator.cold().next().is_some();
        let report = |(layer, name): (LayerName, &str)| match parts.iter().find(|part| part.name() == name) {
            Some(part) if layer != LayerName::WriteQueue || has_queue => report_of(layer, part),
            _ => self.disabled(layer),
        };
        let names = [
            (LayerName::Memory, LayerId::Memory.label()),
            (LayerName::TagIndex, coordinator.tags().name()),
            (LayerName::WriteQueue, coordinator.write_queue().name()),
            (LayerName::Backplane, coordinator.backplane().name()),
            (LayerName::Redis, LayerId::Redis.label()),
            (LayerName::Disk, LayerId::Disk.label()),
        ];
        names.into_iter().map(report).collect()
    }

    fn disabled(&self, name: LayerName) -> LayerReport {
        let health = HealthReport {
            state: HealthState::Disabled,
            reason: DISABLED.to_owned(),
            message: String::new(),
            since_unix_ms: self.about.started.0,
        };
        LayerReport { name, health, stats: StatsReport::default() }
    }
}

fn report_of(name: LayerName, part: &Part<'_>) -> LayerReport {
    LayerReport { name, health: health(part.health()), stats: stats(part.stats()) }
}

fn health(Health { state, reason, message, since }: Health) -> HealthReport {
    let state = match state {
        layer::HealthState::Healthy => HealthState::Healthy,
        layer::HealthState::Disabled => HealthState::Disabled,
        layer::HealthState::Degraded => HealthState::Degraded,
        layer::HealthState::Unavailable => HealthState::Unavailable,
    };
    HealthReport { state, reason: reason.to_owned(), message, since_unix_ms: since.0 }
}

fn stats(stats: Stats) -> StatsReport {
    let Stats { hits, misses, stale_hits, operations, errors, latency, entries, bytes, capacity_bytes, extras } = stats;
    let times = |Latency { operation, count, mean_ns, p99_ns }: Latency| {
        (operation.to_owned(), LatencyReport { count, mean_ns, p99_ns })
    };
    StatsReport {
        hits,
        misses,
        stale_hits,
        operations,
        latency: latency.into_iter().map(times).collect(),
        errors: errors.into_iter().map(|(kind, count)| (kind.label().to_owned(), count)).collect(),
        entries,
        bytes,
        capacity_bytes,
        extras: extras.into_iter().map(|(name, number)| (name.to_owned(), number)).collect(),
    }
}
