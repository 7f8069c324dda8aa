//! The layers, each as all nodes together have it.

use crds::{
    node_report::{HealthState, LayerName, LayerReport, NodeReport},
    tiered_cache::LayerStatus,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{AS_EXPECTED, MESSAGE_MAX, Node, State, TroubleKind, View, count, cut, guarantee::listed, seconds};

/// Causes before their effects: where Redis is ill, nodes can not follow its log either.
pub(in crate::tiered_cache) const LAYERS: [LayerName; 6] = [
    LayerName::Memory,
    LayerName::TagIndex,
    LayerName::WriteQueue,
    LayerName::Redis,
    LayerName::Disk,
    LayerName::Backplane,
];

/// What one node says about one layer.
enum Answer<'a> {
    Report(&'a LayerReport),
    /// It is up and has no such layer.
    Lacks,
    /// It should answer, and does not.
    Silent,
    /// It is on its way up or down; that is no news about its layers.
    NotYet,
}

/// Joins what the nodes say about each layer. Of a Redis that does not run they only see that it does not answer; what
/// keeps it from running says more. Of one that runs they know more.
pub(super) fn roll_up(view: &View<'_>, previous: &[LayerStatus], now: Timestamp) -> Vec<LayerStatus> {
    let mut layers: Vec<LayerStatus> = LAYERS.into_iter().map(|name| layer(name, view.nodes, previous, now)).collect();
    // Those on their way up or down are no news. Where nodes of two logs serve side by side each follows its own well, and
    // none knows what all others change.
    let apart = view.terms.apart(view.nodes.iter().filter(|node| node.is_ready()));
    for layer in &mut layers {
        match (layer.name, &view.redis_trouble) {
            (LayerName::Redis, Some(trouble)) if is_worse(layer) && trouble.kind != TroubleKind::NotReady => {
                layer.reason = trouble.kind.reason().to_owned();
                layer.message = cut(trouble.message.clone(), MESSAGE_MAX);
            }
            (LayerName::Backplane, _) if !apart.is_empty() && !is_worse(layer) => {
                layer.health = HealthState::Degraded;
                layer.reason = "AnotherLog".to_owned();
                layer.message = cut(format!("{}: the log of another Redis is followed", listed(&apart)), MESSAGE_MAX);
                layer.since = since(layer.name, layer.health, previous, now);
            }
            (LayerName::Backplane, _) if view.terms.is_as_asked(layer.health) => {
                layer.message = cut(view.terms.of_change(view.nodes), MESSAGE_MAX);
            }
            _ => {}
        }
    }
    layers
}

/// Whether the fleet has less of the layer than was asked for.
pub(super) fn is_worse(layer: &LayerStatus) -> bool {
    matches!(layer.health, HealthState::Degraded | HealthState::Unavailable)
}

/// Whether nothing can be served at all: without memory there is no cache.
pub(super) fn serves_nothing(layer: &LayerStatus) -> bool {
    layer.name == LayerName::Memory && layer.health == HealthState::Unavailable
}

/// The layers of one node that do not work as they should.
pub(super) fn unhealthy(report: &NodeReport) -> Vec<LayerName> {
    let is_unhealthy = |name: &LayerName| {
        let state = report.layer(*name).map(|layer| layer.health.state);
        state.is_some_and(|state| !matches!(state, HealthState::Healthy | HealthState::Disabled))
    };
    LAYERS.into_iter().filter(is_unhealthy).collect()
}

/// Whether a node has less of the layer than was asked for, and not because it is on its way up.
pub(super) fn is_ill(report: &NodeReport, layer: &LayerReport) -> bool {
    matches!(layer.health.state, HealthState::Degraded | HealthState::Unavailable) && !is_on_its_way(report, layer)
}

/// A node that reads the log before it is given clients does what it should.
fn is_on_its_way(report: &NodeReport, layer: &LayerReport) -> bool {
    layer.name == LayerName::Backplane && !report.ready
}

/// Type of the condition about the layer.
pub(in crate::tiered_cache) const fn condition_type(name: LayerName) -> Option<&'static str> {
    match name {
        LayerName::Memory => Some("MemoryHealthy"),
        LayerName::TagIndex => Some("TagIndexHealthy"),
        LayerName::WriteQueue => Some("WriteQueueHealthy"),
        LayerName::Backplane => Some("BackplaneHealthy"),
        LayerName::Redis => Some("RedisHealthy"),
        LayerName::Disk => Some("DiskHealthy"),
        LayerName::Unknown => None,
    }
}

/// The condition about the layer.
pub(super) fn condition_of(layer: &LayerStatus) -> Option<State> {
    let kind = condition_type(layer.name)?;
    let status = match layer.health {
        HealthState::Healthy | HealthState::Disabled => "True",
        HealthState::Degraded | HealthState::Unavailable => "False",
        HealthState::Unknown => "Unknown",
    };
    Some(State::new(kind, status, &layer.reason, layer.message.clone()))
}

fn layer(name: LayerName, nodes: &[Node], previous: &[LayerStatus], now: Timestamp) -> LayerStatus {
    let answers: Vec<(&Node, Answer<'_>)> = nodes.iter().map(|node| (node, answer(node, name))).collect();
    let reports = || answers.iter().filter_map(|(node, answer)| report(answer).map(|report| (*node, report)));
    let healthy = reports().filter(|(_, report)| report.health.state == HealthState::Healthy).count();
    // The worst first; among equals the first node, so that the message stays the same.
    let worst = reports().rev().max_by_key(|(_, report)| severity(report.health.state));
    let silent = answers.iter().find(|(_, answer)| matches!(answer, Answer::Silent)).map(|(node, _)| *node);
    let (health, reason, message) = match (worst, silent) {
        (Some((node, report)), _) if severity(report.health.state) > severity(HealthState::Unknown) => {
            let message = format!("{}: {}", node.name, report.health.message);
            (report.health.state, word(&report.health.reason), message)
        }
        (_, Some(node)) => {
            let message = format!("{} does not answer, so its {} is not known", node.name, words(name));
            (HealthState::Unknown, "NodeUnreachable".to_owned(), message)
        }
        (None, None) if answers.iter().any(|(_, answer)| matches!(answer, Answer::Lacks)) => {
            let message = "the layer is switched off, or unknown to the version that runs".to_owned();
            (HealthState::Disabled, "Disabled".to_owned(), message)
        }
        (None, None) => (HealthState::Unknown, "NoReport".to_owned(), "no node has reported yet".to_owned()),
        (Some((_, report)), None) if report.health.state == HealthState::Disabled => {
            let message = "the layer is switched off by the spec".to_owned();
            (HealthState::Disabled, "Disabled".to_owned(), message)
        }
        (Some((_, report)), None) if report.health.state == HealthState::Unknown => {
            let message = "a node reports a state that this operator does not know".to_owned();
            (HealthState::Unknown, "UnknownState".to_owned(), message)
        }
        (Some(_), None) => (HealthState::Healthy, AS_EXPECTED.to_owned(), "works on every node that is up".to_owned()),
    };
    LayerStatus {
        name,
        health,
        nodes_healthy: count(healthy),
        nodes_total: count(nodes.len()),
        reason,
        message: cut(message, MESSAGE_MAX),
        since: since(name, health, previous, now),
    }
}

fn since(name: LayerName, health: HealthState, previous: &[LayerStatus], now: Timestamp) -> Option<Time> {
    let before = previous.iter().find(|before| before.name == name && before.health == health);
    before.map_or_else(|| Some(seconds(now)), |before| before.since.clone())
}

fn answer(node: &Node, name: LayerName) -> Answer<'_> {
    match &node.report {
        _ if node.terminating => Answer::NotYet,
        Some(report) => match report.layer(name) {
            Some(layer) if is_on_its_way(report, layer) => Answer::NotYet,
            Some(layer) => Answer::Report(layer),
            // A part that is not open yet is missing too, while the node waits for it.
            None if report.ready => Answer::Lacks,
            None => Answer::NotYet,
        },
        None if node.pod_ready || node.is_unreachable() => Answer::Silent,
        None => Answer::NotYet,
    }
}

fn report<'a>(answer: &Answer<'a>) -> Option<&'a LayerReport> {
    match answer {
        Answer::Report(report) => Some(report),
        Answer::Lacks | Answer::Silent | Answer::NotYet => None,
    }
}

fn severity(state: HealthState) -> u8 {
    match state {
        HealthState::Disabled => 0,
        HealthState::Healthy => 1,
        HealthState::Unknown => 2,
        HealthState::Degraded => 3,
        HealthState::Unavailable => 4,
    }
}

/// Conditions refuse an empty reason and anything but a word; a node of another version may send either.
fn word(reason: &str) -> String {
    let is_word = !reason.is_empty() && reason.len() <= 128 && reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let starts_well = reason.starts_with(|first: char| first.is_ascii_alphabetic());
    if is_word && starts_well { reason.to_owned() } else { "ReportedByNode".to_owned() }
}

fn words(name: LayerName) -> &'static str {
    match name {
        LayerName::Memory => "memory",
        LayerName::TagIndex => "tag index",
        LayerName::WriteQueue => "write queue",
        LayerName::Backplane => "backplane",
        LayerName::Redis => "Redis",
        LayerName::Disk => "disk",
        LayerName::Unknown => "part",
    }
}
