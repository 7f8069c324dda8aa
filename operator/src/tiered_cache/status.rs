//! What the operator reports: pure [`compose`], then one patch, only if something changed.
//!
//! | condition | `True` means |
//! |---|---|
//! | `Ready` | every node asked for serves clients and runs the configuration of this generation |
//! | `Progressing` | the fleet is on its way to what was asked for |
//! | `Degraded` | the fleet has less than was asked for, and not because a change is under way |
//! | `Stalled` | nothing gets better until a person changes something (the condition that kstatus reads as failed) |
//! | `MemoryHealthy`, `TagIndexHealthy`, `WriteQueueHealthy`, `RedisHealthy`, `DiskHealthy` | the layer works on every node that is up |
//! | `BackplaneHealthy` | every node that is up knows what the others change |

mod guarantee;
mod layers;

use crds::tiered_cache::{LayerStatus, NodeStatus, TieredCacheStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use self::layers::{condition_of, roll_up};
pub(super) use self::{
    guarantee::{Terms, listed},
    layers::{LAYERS, condition_type},
};
use super::{
    apply::Conflict,
    build::{Revisions, pod_name, selector_text},
    diagnose::{Trouble, TroubleKind},
    observe::Node,
    rollout::{Step, serves},
    storage::Growth,
    validate::Identity,
};
use crate::metrics::Outcome;

/// Longest message of a node or layer in the schema.
const MESSAGE_MAX: usize = 1024;
/// The reason of conditions that are as they should be.
const AS_EXPECTED: &str = "AsExpected";
/// The reason while nodes follow the log of another Redis.
const SWITCHING: &str = "SwitchingRedis";
/// The reason when a volume may not grow.
const VOLUME_NOT_GROWN: &str = "VolumeNotGrown";

/// Everything that a status is made of.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    pub(super) identity: &'a Identity,
    /// How many nodes are asked for.
    pub(super) replicas: i32,
    pub(super) nodes: &'a [Node],
    /// Nodes that are missing for too long, by name.
    pub(super) absent: &'a [(String, Trouble)],
    /// What keeps the cache's own Redis from running.
    pub(super) redis_trouble: Option<Trouble>,
    /// What nodes promise each other.
    pub(super) terms: Terms<'a>,
    pub(super) verdict: Verdict,
}

/// How the pass went.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// The spec can not be acted on.
    Refused(String),
    /// A call failed, again.
    Failed(String),
    /// The objects are as they should be, but for those in conflict.
    Applied { revisions: Revisions, conflicts: Vec<Conflict>, step: Step, growth: Growth },
}

/// Type, status, reason and message of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    kind: &'static str,
    status: &'static str,
    reason: String,
    message: String,
}

/// The fleet, sorted by what each node is doing.
#[derive(Debug, Default)]
struct Fleet<'a> {
    serving: usize,
    outdated: Vec<&'a str>,
    /// Outdated in that they follow the log of another Redis.
    strangers: Vec<&'a str>,
    /// Missing, on their way down, or on their way up.
    moving: Vec<String>,
    troubled: Vec<(&'a str, &'a Trouble)>,
    /// Beyond the size that is asked for.
    leaving: Vec<&'a str>,
}

// === impl Fleet ===

impl Fleet<'_> {
    /// The reason while there are outdated nodes.
    fn rolling(&self) -> &'static str {
        if self.strangers.is_empty() { "RollingOut" } else { SWITCHING }
    }

    /// Which outdated nodes are replaced in which way.
    fn how(&self) -> String {
        let others: Vec<&str> = self.outdated.iter().filter(|name| !self.strangers.contains(name)).copied().collect();
        let together = "all together, because they follow the log of another Redis";
        let ways = [(together, &self.strangers), ("one at a time", &others)];
        let told = ways.iter().filter(|(_, names)| !names.is_empty());
        told.map(|(way, names)| format!("{way}: {}", names.join(", "))).collect::<Vec<_>>().join("; ")
    }
}

// === impl Verdict ===

impl Verdict {
    /// The same as a metric.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_) => Outcome::Refused,
            Self::Failed(_) => Outcome::Failed,
            Self::Applied { conflicts, .. } if conflicts.is_empty() => Outcome::Applied,
            Self::Applied { .. } => Outcome::Refused,
        }
    }
}

// === impl View ===

impl View<'_> {
    fn revisions(&self) -> Option<&Revisions> {
        match &self.verdict {
            Verdict::Applied { revisions, .. } => Some(revisions),
            Verdict::Refused(_) | Verdict::Failed(_) => None,
        }
    }

    fn conflicts(&self) -> &[Conflict] {
        match &self.verdict {
            Verdict::Applied { conflicts, .. } => conflicts,
            Verdict::Refused(_) | Verdict::Failed(_) => &[],
        }
    }

    fn growth(&self) -> Option<&Growth> {
        match &self.verdict {
            Verdict::Applied { growth, .. } => Some(growth),
            Verdict::Refused(_) | Verdict::Failed(_) => None,
        }
    }

    /// Why volumes stay smaller than is asked for.
    fn growth_refused(&self) -> Option<&str> {
        self.growth()?.refused.as_deref()
    }

    /// Whether the node does what is asked for, as far as that is known.
    fn serves(&self, node: &Node) -> bool {
        self.revisions()
            .map_or_else(|| node.is_ready(), |revisions| node.is_of(&revisions.template) && serves(node, revisions))
    }

    fn is_outdated(&self, node: &Node) -> bool {
        self.revisions().is_some_and(|revisions| !node.is_of(&revisions.template))
    }

    /// Whether it is to be replaced together with others.
    fn is_stranger(&self, node: &Node) -> bool {
        self.is_outdated(node) && node.follows_another_log(self.terms.lineage)
    }

    fn fleet(&self) -> Fleet<'_> {
        let mut fleet = Fleet::default();
        for ordinal in 0..self.replicas {
            if self.nodes.iter().any(|node| node.ordinal == ordinal) {
                continue;
            }
            let name = pod_name(&self.identity.name, ordinal);
            match self.absent.iter().find(|(absent, _)| *absent == name) {
                Some((name, trouble)) => fleet.troubled.push((name, trouble)),
                None => fleet.moving.push(name),
            }
        }
        for node in self.nodes {
            if node.ordinal >= self.replicas {
                fleet.leaving.push(&node.name);
                continue;
            }
            if self.is_outdated(node) {
                fleet.outdated.push(&node.name);
            }
            if self.is_stranger(node) {
                fleet.strangers.push(&node.name);
            }
            match &node.trouble {
                _ if self.serves(node) => fleet.serving += 1,
                Some(trouble) => fleet.troubled.push((&node.name, trouble)),
                None if self.is_outdated(node) && !node.terminating => {}
                None => fleet.moving.push(node.name.clone()),
            }
        }
        fleet
    }

    /// What stands in the way of every change: reason and message.
    fn obstacle(&self) -> Option<(&'static str, String)> {
        if let Verdict::Refused(why) = &self.verdict {
            return Some(("InvalidSpec", why.clone()));
        }
        let named = |conflict: &Conflict| format!("{} belongs to {}", conflict.object, conflict.owner);
        let conflicts: Vec<String> = self.conflicts().iter().map(named).collect();
        (!conflicts.is_empty()).then(|| {
            let text = format!(
                "{}; it is left alone, and the fleet is not changed until it is deleted or renamed",
                conflicts.join("; ")
            );
            ("ResourceConflict", text)
        })
    }
}

/// Makes the status. Times of transitions are kept from `previous` where nothing changed, so that the same view gives
/// the same status for ever.
pub(super) fn compose(view: &View<'_>, previous: &TieredCacheStatus, now: Timestamp) -> TieredCacheStatus {
    let nodes: Vec<NodeStatus> = view.nodes.iter().map(|node| node_status(view, node)).collect();
    let layers = roll_up(view, &previous.layers, now);
    let fleet = view.fleet();
    let mut states = vec![
        ready(view, &fleet, &layers),
        progressing(view, &fleet),
        degraded(view, &fleet, &layers),
        stalled(view, &fleet),
    ];
    states.extend(layers.iter().filter_map(condition_of));
    let generation = Some(view.identity.generation);
    let conditions = states.into_iter().map(|state| condition(state, generation, previous, now)).collect();
    let is_updated = |node: &&Node| !node.terminating && !view.is_outdated(node);
    TieredCacheStatus {
        observed_generation: generation,
        replicas: count(view.nodes.len()),
        ready_replicas: count(nodes.iter().filter(|node| node.ready).count()),
        updated_replicas: count(view.nodes.iter().filter(is_updated).count()),
        selector: selector_text(&view.identity.name),
        version: lowest_version(view.nodes),
        conditions,
        layers,
        nodes,
    }
}

fn ready(view: &View<'_>, fleet: &Fleet<'_>, layers: &[LayerStatus]) -> State {
    let asked = usize::try_from(view.replicas).unwrap_or_default();
    let not = |reason: &str, message: String| State::new("Ready", "False", reason, message);
    if let Some((reason, message)) = view.obstacle() {
        return not(reason, message);
    }
    if let Verdict::Failed(why) = &view.verdict {
        return not("ApplyFailed", why.clone());
    }
    let so_far = format!("{} of {asked} nodes serve clients and run this generation", fleet.serving);
    if let Some((_, trouble)) = fleet.troubled.first() {
        return not(trouble.kind.reason(), format!("{so_far}; {}", trouble.message));
    }
    if !fleet.outdated.is_empty() {
        return not(fleet.rolling(), format!("{so_far}; {} to be replaced", fleet.outdated.join(", ")));
    }
    if !fleet.moving.is_empty() {
        return not("Starting", format!("{so_far}; waiting for {}", fleet.moving.join(", ")));
    }
    if !fleet.leaving.is_empty() {
        return not("ScalingDown", format!("{so_far}; {} to be stopped", fleet.leaving.join(", ")));
    }
    if let Some(layer) = layers.iter().find(|layer| layers::serves_nothing(layer)) {
        return not("MemoryUnavailable", layer.message.clone());
    }
    let reason = if asked == 0 { "ScaledToZero" } else { "AllNodesReady" };
    State::new("Ready", "True", reason, so_far)
}

fn progressing(view: &View<'_>, fleet: &Fleet<'_>) -> State {
    if let Some((reason, message)) = view.obstacle() {
        return State::new("Progressing", "False", reason, message);
    }
    let block = match &view.verdict {
        Verdict::Applied { step: Step::Blocked(block), .. } => format!("; {block}"),
        Verdict::Applied { .. } | Verdict::Failed(_) | Verdict::Refused(_) => String::new(),
    };
    let growing = view.growth().map(|growth| growth.growing.as_slice()).unwrap_or_default();
    let (reason, message) = if !fleet.outdated.is_empty() {
        (fleet.rolling(), format!("to be replaced, {}{block}", fleet.how()))
    } else if !fleet.leaving.is_empty() {
        ("ScalingDown", format!("to be stopped: {}", fleet.leaving.join(", ")))
    } else if !fleet.moving.is_empty() {
        ("Starting", format!("starting: {}", fleet.moving.join(", ")))
    } else if !growing.is_empty() {
        ("GrowingVolumes", format!("volumes grow: {}", growing.join(", ")))
    } else if !fleet.troubled.is_empty() {
        let message = "no change is under way; Degraded says what is wrong".to_owned();
        return State::new("Progressing", "False", "Waiting", message);
    } else {
        let message = "the fleet is as asked for".to_owned();
        return State::new("Progressing", "False", "Settled", message);
    };
    State::new("Progressing", "True", reason, message)
}

/// The message says what is wrong, and which guarantee holds now.
fn degraded(view: &View<'_>, fleet: &Fleet<'_>, layers: &[LayerStatus]) -> State {
    let holds = view.terms.now(view.nodes);
    let (reason, message) = if let Some((reason, message)) = view.obstacle() {
        // Who is refused may run by another spec than the one that says what should hold.
        return State::new("Degraded", "True", reason, message);
    } else if let Verdict::Failed(why) = &view.verdict {
        ("ApplyFailed".to_owned(), why.clone())
    } else if let Some((_, first)) = fleet.troubled.first() {
        let all: Vec<&str> = fleet.troubled.iter().map(|(_, trouble)| trouble.message.as_str()).collect();
        (first.kind.reason().to_owned(), all.join("; "))
    } else if let Some(why) = view.growth_refused() {
        (VOLUME_NOT_GROWN.to_owned(), why.to_owned())
    } else if let Some(first) = layers.iter().find(|layer| layers::is_worse(layer)) {
        let ill = layers.iter().filter(|layer| layers::is_worse(layer));
        let all: Vec<&str> = ill.map(|layer| layer.message.as_str()).collect();
        (format!("{:?}{:?}", first.name, first.health), all.join("; "))
    } else if let Some(trouble) = &view.redis_trouble {
        // The others do its work; with one more gone nobody would.
        (trouble.kind.reason().to_owned(), trouble.message.clone())
    } else {
        let so = if holds == view.terms.whole() { "nothing is wrong" } else { "a change is under way" };
        return State::new("Degraded", "False", AS_EXPECTED, format!("{so}: {holds}"));
    };
    State::new("Degraded", "True", &reason, format!("{message}. What holds: {holds}"))
}

fn stalled(view: &View<'_>, fleet: &Fleet<'_>) -> State {
    if let Some((reason, message)) = view.obstacle() {
        return State::new("Stalled", "True", reason, message);
    }
    let troubles = fleet.troubled.iter().map(|(_, trouble)| *trouble).chain(&view.redis_trouble);
    match troubles.into_iter().find(|trouble| trouble.kind.needs_a_person()) {
        Some(trouble) => State::new("Stalled", "True", trouble.kind.reason(), trouble.message.clone()),
        None => match view.growth_refused() {
            Some(why) => State::new("Stalled", "True", VOLUME_NOT_GROWN, why.to_owned()),
            None => State::new("Stalled", "False", AS_EXPECTED, "nothing waits for a person".to_owned()),
        },
    }
}

fn node_status(view: &View<'_>, node: &Node) -> NodeStatus {
    let report = node.report.clone().unwrap_or_default();
    let ready = node.is_ready();
    let message = match &node.trouble {
        _ if ready && view.is_stranger(node) => "is to be replaced: it follows the log of another Redis".to_owned(),
        _ if ready && view.is_outdated(node) => "is to be replaced".to_owned(),
        _ if ready => view.terms.of_node(&report),
        _ if node.terminating => "is stopping".to_owned(),
        // A node that says itself what it waits for, and how far it is, knows best.
        Some(trouble) if trouble.kind != TroubleKind::NotReady || report.waiting_for.is_empty() => {
            trouble.message.clone()
        }
        None if report.waiting_for.is_empty() => "is starting".to_owned(),
        _ => format!("is starting: {}", report.waiting_for.join(", ")),
    };
    NodeStatus {
        name: node.name.clone(),
        ready,
        version: cut(report.version.clone(), 64),
        config_revision: cut(report.config_revision.clone(), 64),
        unhealthy_layers: layers::unhealthy(&report),
        message: cut(message, MESSAGE_MAX),
    }
}

// === impl State ===

impl State {
    fn new(kind: &'static str, status: &'static str, reason: &str, message: String) -> Self {
        Self { kind, status, reason: reason.to_owned(), message }
    }
}

fn condition(state: State, generation: Option<i64>, previous: &TieredCacheStatus, now: Timestamp) -> Condition {
    let before = previous.conditions.iter().find(|before| before.type_ == state.kind && before.status == state.status);
    Condition {
        type_: state.kind.to_owned(),
        status: state.status.to_owned(),
        reason: state.reason,
        message: cut(state.message, 8 * MESSAGE_MAX),
        observed_generation: generation,
        last_transition_time: before.map_or_else(|| seconds(now), |before| before.last_transition_time.clone()),
    }
}

/// The API keeps whole seconds; anything finer would differ from what is read back.
fn seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max - 3).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

fn lowest_version(nodes: &[Node]) -> Option<String> {
    let versions = nodes.iter().filter_map(|node| node.report.as_ref()).map(|report| report.version.clone());
    let lowest = versions.filter(|version| !version.is_empty()).min_by_key(|version| version_order(version))?;
    Some(cut(lowest, 64))
}

/// `1.10.0` comes after `1.9.0`, and a pre-release before its release.
fn version_order(version: &str) -> (Vec<u64>, bool, String) {
    let (release, suffix) =
        version.split_once('-').map_or((version, None), |(release, suffix)| (release, Some(suffix)));
    let numbers = release.split('.').map(|part| part.parse().unwrap_or_default()).collect();
    (numbers, suffix.is_none(), suffix.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests;
