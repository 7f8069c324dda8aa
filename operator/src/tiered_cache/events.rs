//! Events: what a person would ask "why" or "when" about. Told once, when it happens; the status says what is.

use std::collections::BTreeMap;

use crds::{quantity::ByteSize, tiered_cache::TieredCacheStatus};
use kube::runtime::events::{Event, EventType};

use super::{
    apply::Write,
    diagnose::Trouble,
    observe::{Node, ordinal},
    rollout::Replacement,
    status::{LAYERS, condition_type, listed},
};

/// The reasons of events. README.md has a table of them, which a test compares with this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Created,
    ScaledUp,
    ScaledDown,
    ReplacingNode,
    SwitchingRedis,
    RolledOut,
    GrowingVolume,
    VolumeNotGrown,
    Repaired,
    InvalidSpec,
    ResourceConflict,
    ApplyFailed,
    NodeUnhealthy,
    NodeRecovered,
    LayerUnhealthy,
    LayerRecovered,
}

/// What to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tale {
    pub(super) reason: Reason,
    pub(super) note: String,
}

/// Longest note that the API takes.
const NOTE_MAX: usize = 1000;

// === impl Reason ===

impl Reason {
    /// Every reason.
    #[cfg(test)]
    pub(super) const ALL: [Self; 16] = [
        Self::Created,
        Self::ScaledUp,
        Self::ScaledDown,
        Self::ReplacingNode,
        Self::SwitchingRedis,
        Self::RolledOut,
        Self::GrowingVolume,
        Self::VolumeNotGrown,
        Self::Repaired,
        Self::InvalidSpec,
        Self::ResourceConflict,
        Self::ApplyFailed,
        Self::NodeUnhealthy,
        Self::NodeRecovered,
        Self::LayerUnhealthy,
        Self::LayerRecovered,
    ];

    /// The reason as it is written.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::ScaledUp => "ScaledUp",
            Self::ScaledDown => "ScaledDown",
            Self::ReplacingNode => "ReplacingNode",
            Self::SwitchingRedis => "SwitchingRedis",
            Self::RolledOut => "RolledOut",
            Self::GrowingVolume => "GrowingVolume",
            Self::VolumeNotGrown => "VolumeNotGrown",
            Self::Repaired => "Repaired",
            Self::InvalidSpec => "InvalidSpec",
            Self::ResourceConflict => "ResourceConflict",
            Self::ApplyFailed => "ApplyFailed",
            Self::NodeUnhealthy => "NodeUnhealthy",
            Self::NodeRecovered => "NodeRecovered",
            Self::LayerUnhealthy => "LayerUnhealthy",
            Self::LayerRecovered => "LayerRecovered",
        }
    }

    /// Whether it is bad news.
    pub(super) const fn is_warning(self) -> bool {
        match self {
            Self::Created
            | Self::ScaledUp
            | Self::ScaledDown
            | Self::ReplacingNode
            | Self::SwitchingRedis
            | Self::RolledOut
            | Self::GrowingVolume
            | Self::NodeRecovered
            | Self::LayerRecovered => false,
            Self::VolumeNotGrown
            | Self::Repaired
            | Self::InvalidSpec
            | Self::ResourceConflict
            | Self::ApplyFailed
            | Self::NodeUnhealthy
            | Self::LayerUnhealthy => true,
        }
    }

    /// What was done, in the verb form that the API asks for.
    const fn action(self) -> &'static str {
        match self {
            Self::Created | Self::Repaired | Self::ApplyFailed | Self::ResourceConflict => "Apply",
            Self::ScaledUp | Self::ScaledDown => "Scale",
            Self::ReplacingNode | Self::SwitchingRedis | Self::RolledOut => "RollOut",
            Self::GrowingVolume | Self::VolumeNotGrown => "Grow",
            Self::InvalidSpec => "Validate",
            Self::NodeUnhealthy | Self::NodeRecovered | Self::LayerUnhealthy | Self::LayerRecovered => "Observe",
        }
    }
}

// === impl Tale ===

impl Tale {
    fn new(reason: Reason, note: String) -> Self {
        Self { reason, note }
    }

    /// The event in the form of the API.
    pub(super) fn event(&self) -> Event {
        let note = self.note.chars().take(NOTE_MAX).collect();
        Event {
            type_: if self.reason.is_warning() { EventType::Warning } else { EventType::Normal },
            reason: self.reason.label().to_owned(),
            note: Some(note),
            action: self.reason.action().to_owned(),
            secondary: None,
        }
    }
}

/// What the writes of a pass tell.
pub(super) fn of_writes(writes: &[Write]) -> Vec<Tale> {
    let tell = |write: &Write| match write {
        Write::Created(object) if object.starts_with("StatefulSet") => {
            Some(Tale::new(Reason::Created, format!("made {object} and what belongs to it")))
        }
        Write::Scaled { from, to } if to > from => {
            Some(Tale::new(Reason::ScaledUp, format!("from {from} to {to} nodes")))
        }
        Write::Scaled { from, to } => Some(Tale::new(Reason::ScaledDown, format!("from {from} to {to} nodes"))),
        Write::Repaired(object) => Some(Tale::new(
            Reason::Repaired,
            format!("{object} had been changed or deleted by somebody else and is as the spec asks again"),
        )),
        Write::Created(_) | Write::Changed(_) | Write::Deleted(_) => None,
    };
    writes.iter().filter_map(tell).collect()
}

/// What the replacement of a node tells.
pub(super) fn of_replacement(pod: &Replacement) -> Tale {
    Tale::new(Reason::ReplacingNode, format!("{}: {}", pod.name, pod.why))
}

/// What the replacement of several nodes together tells.
pub(super) fn of_switch(pods: &[Replacement]) -> Tale {
    let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    let note = format!("{}: replaced together, because each follows the log of another Redis", listed(&names));
    Tale::new(Reason::SwitchingRedis, note)
}

/// What asking for a larger volume tells.
pub(super) fn of_growth(claim: &str, has: &str, size: ByteSize) -> Tale {
    Tale::new(Reason::GrowingVolume, format!("{claim} is asked to grow from {has} to {size}"))
}

/// What the change from one status to the next tells.
pub(super) fn of_change(before: &TieredCacheStatus, after: &TieredCacheStatus) -> Vec<Tale> {
    let mut tales = Vec::new();
    let reason_of = |status: &TieredCacheStatus, kind: &str| {
        let condition = status.conditions.iter().find(|condition| condition.type_ == kind)?;
        Some((condition.reason.clone(), condition.message.clone()))
    };
    let told_by = [
        ("Ready", &[Reason::InvalidSpec, Reason::ResourceConflict, Reason::ApplyFailed][..]),
        ("Stalled", &[Reason::VolumeNotGrown][..]),
    ];
    for (kind, told) in told_by {
        let (was, is) = (reason_of(before, kind), reason_of(after, kind));
        if let Some((reason, message)) = is.filter(|is| Some(&is.0) != was.as_ref().map(|was| &was.0)) {
            let told = told.iter().find(|told| told.label() == reason);
            tales.extend(told.map(|told| Tale::new(*told, message)));
        }
    }
    let rolling = |status| reason_of(status, "Progressing").is_some_and(|(reason, _)| reason == "RollingOut");
    if rolling(before) && !rolling(after) && before.observed_generation == after.observed_generation {
        let note = format!("{} nodes run the current image and configuration", after.updated_replicas);
        tales.push(Tale::new(Reason::RolledOut, note));
    }
    for kind in LAYERS.into_iter().filter_map(condition_type) {
        let state = |status: &TieredCacheStatus| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == kind);
            condition.map(|condition| (condition.status.clone(), condition.message.clone()))
        };
        let was_bad = state(before).is_some_and(|(status, _)| status == "False");
        match state(after) {
            Some((status, message)) if status == "False" && !was_bad => {
                tales.push(Tale::new(Reason::LayerUnhealthy, message));
            }
            Some((status, _)) if status == "True" && was_bad => {
                tales.push(Tale::new(Reason::LayerRecovered, format!("{kind} is True again")));
            }
            _ => {}
        }
    }
    tales
}

/// What became of the troubles of so many nodes, of those that are there and of those that are missing, since they were last
/// told; `told` is brought up to date.
pub(super) fn of_nodes(
    replicas: i32,
    nodes: &[Node],
    absent: &[(String, Trouble)],
    told: &mut BTreeMap<String, Trouble>,
) -> Vec<Tale> {
    let mut tales = Vec::new();
    let missing = absent.iter().map(|(name, trouble)| (name, Some(trouble), false));
    let all = nodes.iter().map(|node| (&node.name, node.trouble.as_ref(), node.is_ready())).chain(missing);
    for (name, trouble, is_ready) in all.clone() {
        match (trouble, told.get(name)) {
            (Some(trouble), before) if before.map(|before| before.kind) != Some(trouble.kind) => {
                tales.push(Tale::new(Reason::NodeUnhealthy, trouble.message.clone()));
                told.insert(name.clone(), trouble.clone());
            }
            (None, Some(before)) if is_ready => {
                let note = format!("{name} serves clients again (it was {})", before.kind.reason());
                tales.push(Tale::new(Reason::NodeRecovered, note));
                told.remove(name);
            }
            _ => {}
        }
    }
    // One that is being replaced has no pod for a moment.
    let is_wanted = |name: &str| ordinal(name).is_some_and(|ordinal| ordinal < replicas);
    told.retain(|name, _| is_wanted(name) || all.clone().any(|(found, ..)| found == name));
    tales
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiered_cache::{
        diagnose::TroubleKind,
        testing::{NodeFixture as N, at, from_yaml},
    };

    #[test]
    fn every_reason_is_in_the_readme_and_the_reverse() {
        let readme = include_str!("../../README.md");
        let table = readme.split("## Events").nth(1).unwrap().split("\n## ").next().unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let documented: Vec<&str> = rows.collect();
        assert_eq!(documented, Reason::ALL.map(Reason::label));
    }

    #[test]
    fn a_trouble_is_told_once_and_so_is_its_end() {
        let mut told = BTreeMap::new();
        let nodes = |node: N| [N::current(0).build(), node.build()];
        let labels = |tales: Vec<Tale>| tales.into_iter().map(|tale| tale.reason).collect::<Vec<_>>();
        assert_eq!(labels(of_nodes(2, &nodes(N::current(1)), &[], &mut told)), []);
        assert_eq!(labels(of_nodes(2, &nodes(N::current(1).in_trouble()), &[], &mut told)), [Reason::NodeUnhealthy]);
        assert_eq!(labels(of_nodes(2, &nodes(N::current(1).in_trouble()), &[], &mut told)), []);
        assert_eq!(labels(of_nodes(2, &nodes(N::current(1).starting()), &[], &mut told)), []);
        assert_eq!(labels(of_nodes(2, &nodes(N::current(1)), &[], &mut told)), [Reason::NodeRecovered]);
        assert_eq!(labels(of_nodes(2, &nodes(N::current(1)), &[], &mut told)), []);
        assert_eq!(labels(of_nodes(2, &nodes(N::current(1).in_trouble()), &[], &mut told)), [Reason::NodeUnhealthy]);
        // Its pod is replaced, or it is not wanted any more.
        assert_eq!(labels(of_nodes(2, &[N::current(0).build()], &[], &mut told)), []);
        assert_eq!(labels(of_nodes(2, &nodes(N::current(1)), &[], &mut told)), [Reason::NodeRecovered]);
        assert_eq!(labels(of_nodes(2, &nodes(N::current(1).in_trouble()), &[], &mut told)), [Reason::NodeUnhealthy]);
        assert_eq!(labels(of_nodes(1, &[N::current(0).build()], &[], &mut told)), []);
        assert!(told.is_empty());
    }

    #[test]
    fn a_node_that_is_missing_for_too_long_is_told_once_and_so_is_its_return() {
        let (mut told, nodes) = (BTreeMap::new(), [N::current(0).build(), N::current(1).build()]);
        let trouble = Trouble { kind: TroubleKind::PodNotCreated, message: "no room".to_owned() };
        let absent = [("sessions-1".to_owned(), trouble)];
        let told_of = |nodes: &[Node], absent: &[(String, Trouble)], told: &mut BTreeMap<String, Trouble>| {
            of_nodes(2, nodes, absent, told).into_iter().map(|tale| tale.reason).collect::<Vec<_>>()
        };
        assert_eq!(told_of(&nodes[..1], &absent, &mut told), [Reason::NodeUnhealthy]);
        assert_eq!(told_of(&nodes[..1], &absent, &mut told), []);
        assert_eq!(told_of(&nodes, &[], &mut told), [Reason::NodeRecovered]);
    }

    #[test]
    fn a_volume_that_does_not_grow_is_told_when_that_becomes_so() {
        let status = |reason: &str| -> TieredCacheStatus {
            from_yaml(&format!(
                "{{conditions: [{{type: Stalled, status: 'True', reason: {reason}, message: too small, lastTransitionTime: \
                 '{}'}}]}}",
                at(0)
            ))
        };
        let reasons = |was, is| {
            of_change(&status(was), &status(is)).into_iter().map(|tale| (tale.reason, tale.note)).collect::<Vec<_>>()
        };
        let told = (Reason::VolumeNotGrown, "too small".to_owned());
        assert_eq!(reasons("AsExpected", "VolumeNotGrown"), [told]);
        assert_eq!(reasons("VolumeNotGrown", "VolumeNotGrown"), []);
    }

    #[test]
    fn nodes_that_are_replaced_together_are_told_together() {
        let pod = |ordinal| Replacement {
            name: format!("sessions-{ordinal}"),
            uid: format!("uid-{ordinal}"),
            why: "it follows the log of another Redis",
        };
        let told = |pods: i32| of_switch(&(0..pods).map(pod).collect::<Vec<_>>()).note;
        assert_eq!(told(2), "sessions-0, sessions-1: replaced together, because each follows the log of another Redis");
        assert!(told(100).contains("sessions-4 and 95 more: "), "{}", told(100));
    }

    #[test]
    fn writes_tell_what_a_person_would_ask_about() {
        let writes = [
            Write::Created("Service sessions".to_owned()),
            Write::Created("StatefulSet sessions".to_owned()),
            Write::Scaled { from: 3, to: 5 },
            Write::Scaled { from: 5, to: 2 },
            Write::Repaired("Service sessions".to_owned()),
            Write::Changed("StatefulSet sessions".to_owned()),
        ];
        let reasons: Vec<_> = of_writes(&writes).into_iter().map(|tale| tale.reason).collect();
        assert_eq!(reasons, [Reason::Created, Reason::ScaledUp, Reason::ScaledDown, Reason::Repaired]);
    }
}
