//! Pure: which nodes may be replaced now, and which named rule holds the rollout back.
//!
//! One node at a time. The next only when every other serves with its configuration, so that a bad image or
//! configuration stops at the first node. A node that does not work may always be replaced: going back to a good image
//! heals by itself, whatever state the bad one led to.
//!
//! Not to a Redis of the cache's own before that runs: the nodes would come back with none. Until then their
//! StatefulSet is left as it was ([`super::apply`]), so that one that is made anew meanwhile is like the others.
//!
//! All at once where they follow the log of another Redis. What is removed on a node of the one log is not heard by nodes
//! of the other, which would go on serving it for as long as a rollout of one after the other takes, while either kind
//! promises that all hear of it. That a node of the new kind serves is not waited for either: the moment it does, there
//! are two logs. So a bad image that comes with another Redis takes every node. To and from no Redis at all nodes go one
//! at a time: those without promise nothing of the kind, and the status says so.

use std::fmt;

use k8s_openapi::api::apps::v1::StatefulSet;

use super::{
    build::{Revisions, pod_name},
    observe::Node,
};

/// What the rollout does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Every node is of the current template.
    Settled,
    /// This node is to be replaced, if the disruption budget allows it.
    Replace(Replacement),
    /// These nodes, one or more, are to be replaced together, whatever the disruption budget says.
    Switch(Vec<Replacement>),
    /// A rule holds the rollout back.
    Blocked(Block),
}

/// A node to replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replacement {
    /// Name of the pod.
    pub(super) name: String,
    /// UID of the pod: its successor is not meant.
    pub(super) uid: String,
    /// Why it is this one's turn.
    pub(super) why: &'static str,
}

/// Why a node is replaced together with others.
const FOLLOWS_ANOTHER_LOG: &str = "it follows the log of another Redis";

/// What holds the rollout back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Which rule.
    pub(super) rule: Rule,
    /// Which node it is about, or which part of Redis.
    pub(super) node: String,
}

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// A node is on its way down or up.
    OneAtATime,
    /// A node of the new template does not serve.
    NewNodeMustServe,
    /// A node of the old template does not serve; with another one gone, two would be missing.
    OthersMustServe,
    /// The disruption budget allows no eviction now.
    DisruptionBudget,
    /// The StatefulSet controller has not seen the change; it would make the pod anew from the earlier template.
    ControllerMustSee,
    /// The cache's own Redis, to which the nodes are to come, does not run yet.
    RedisMustRun,
    /// Something of the Redis before it is still there, with volumes that it is not to have.
    EarlierRedisMustGo,
}

// === impl Step ===

impl Step {
    /// The node that is replaced first.
    fn first(&self) -> Option<&str> {
        match self {
            Self::Replace(pod) => Some(&pod.name),
            Self::Switch(pods) => pods.first().map(|pod| pod.name.as_str()),
            Self::Settled | Self::Blocked(_) => None,
        }
    }

    /// What a replacement becomes when the disruption budget refuses it.
    pub(super) fn budget_refuses(pod: &Replacement) -> Self {
        Self::Blocked(Block { rule: Rule::DisruptionBudget, node: pod.name.clone() })
    }
}

// === impl Block ===

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.node;
        match self.rule {
            Rule::OneAtATime => write!(f, "waiting for {node} to come back"),
            Rule::NewNodeMustServe => write!(f, "stopped at {node}, the first with the change, until it serves"),
            Rule::OthersMustServe => {
                write!(f, "waiting for {node}, which does not serve, before another one is stopped")
            }
            Rule::ControllerMustSee => {
                write!(f, "waiting for the StatefulSet controller to see the change, then {node}")
            }
            Rule::RedisMustRun => {
                write!(
                    f,
                    "waiting for {node} to run; until then the nodes keep the Redis, the settings and the number of before"
                )
            }
            Rule::EarlierRedisMustGo => {
                write!(f, "waiting for {node} of the Redis before to go; the next one begins empty")
            }
            Rule::DisruptionBudget => write!(f, "the disruption budget does not allow to stop {node} now"),
        }
    }
}

/// Decides the next step for a fleet whose StatefulSet has been applied.
pub(super) fn decide(nodes: &[Node], stateful_set: &StatefulSet, revisions: &Revisions) -> Step {
    let step = decide_for(nodes, stateful_set.spec.replicas.unwrap_or(1), revisions);
    let seen = stateful_set.status.as_ref().and_then(|status| status.observed_generation);
    match step.first() {
        Some(node) if seen < stateful_set.metadata.generation => {
            Step::Blocked(Block { rule: Rule::ControllerMustSee, node: node.to_owned() })
        }
        _ => step,
    }
}

fn decide_for(nodes: &[Node], replicas: i32, revisions: &Revisions) -> Step {
    let fleet: Vec<&Node> = nodes.iter().filter(|node| node.ordinal < replicas).collect();
    let (current, outdated): (Vec<&Node>, Vec<&Node>) = fleet.iter().partition(|node| node.is_of(&revisions.template));
    let Some(last) = outdated.iter().max_by_key(|node| node.ordinal) else { return Step::Settled };
    // Before everything else, and those that do not serve yet too: none may stand in the way, and none come later.
    let strangers = outdated.iter().filter(|node| !node.terminating && node.follows_another_log(&revisions.lineage));
    let strangers: Vec<Replacement> = strangers.map(|node| replacement(node, FOLLOWS_ANOTHER_LOG)).collect();
    if !strangers.is_empty() {
        return Step::Switch(strangers);
    }
    // Next, so that nothing that the old or the new template broke can stand in the way of its repair. The kubelet's
    // word counts here: nodes that only the operator can not reach may serve well.
    if let Some(broken) = outdated.iter().find(|node| !node.pod_ready && !node.terminating) {
        return Step::Replace(replacement(broken, "it does not serve, and is outdated"));
    }
    let blocked = |rule, node: &str| Step::Blocked(Block { rule, node: node.to_owned() });
    if let Some(leaving) = fleet.iter().find(|node| node.terminating) {
        return blocked(Rule::OneAtATime, &leaving.name);
    }
    let missing = (0..replicas).find(|ordinal| !fleet.iter().any(|node| node.ordinal == *ordinal));
    if let Some(ordinal) = missing {
        return blocked(Rule::OneAtATime, &fleet_name(last, ordinal));
    }
    if let Some(failing) = current.iter().find(|node| !serves(node, revisions)) {
        let rule = if failing.trouble.is_some() { Rule::NewNodeMustServe } else { Rule::OneAtATime };
        return blocked(rule, &failing.name);
    }
    if let Some(failing) = outdated.iter().find(|node| !node.is_ready()) {
        return blocked(Rule::OthersMustServe, &failing.name);
    }
    Step::Replace(replacement(last, "it runs an earlier image or configuration"))
}

/// Whether a node of the current template does its part.
pub(super) fn serves(node: &Node, revisions: &Revisions) -> bool {
    let runs = node.report.as_ref().is_some_and(|report| report.config_revision == revisions.config);
    node.is_ready() && runs
}

fn replacement(node: &Node, why: &'static str) -> Replacement {
    Replacement { name: node.name.clone(), uid: node.pod_uid.clone(), why }
}

fn fleet_name(sibling: &Node, ordinal: i32) -> String {
    let cache_name = sibling.name.rsplit_once('-').map_or("", |(cache_name, _)| cache_name);
    pod_name(cache_name, ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiered_cache::{
        lineage::Lineage,
        testing::{NodeFixture, from_yaml, revisions},
    };

    fn step(nodes: &[NodeFixture]) -> Step {
        let nodes: Vec<Node> = nodes.iter().map(NodeFixture::build).collect();
        decide_for(&nodes, 3, &revisions())
    }

    fn replaces(step: &Step) -> Option<&str> {
        match step {
            Step::Replace(pod) => Some(&pod.name),
            Step::Settled | Step::Switch(_) | Step::Blocked(_) => None,
        }
    }

    fn switches(step: &Step) -> Vec<&str> {
        match step {
            Step::Switch(pods) => pods.iter().map(|pod| pod.name.as_str()).collect(),
            Step::Settled | Step::Replace(_) | Step::Blocked(_) => Vec::new(),
        }
    }

    fn blocked_by(step: &Step) -> Option<(Rule, &str)> {
        match step {
            Step::Blocked(block) => Some((block.rule, &block.node)),
            Step::Settled | Step::Replace(_) | Step::Switch(_) => None,
        }
    }

    use NodeFixture as N;

    #[test]
    fn a_fleet_of_the_current_template_is_settled() {
        assert_eq!(step(&[N::current(0), N::current(1), N::current(2).starting()]), Step::Settled);
        assert_eq!(step(&[]), Step::Settled);
    }

    #[test]
    fn the_highest_outdated_node_goes_first() {
        assert_eq!(replaces(&step(&[N::outdated(0), N::outdated(1), N::outdated(2)])), Some("sessions-2"));
        assert_eq!(replaces(&step(&[N::outdated(0), N::outdated(1), N::current(2)])), Some("sessions-1"));
    }

    #[test]
    fn the_next_waits_until_the_last_serves_with_its_configuration() {
        for waiting in
            [N::current(2).starting(), N::current(2).with_other_configuration(), N::outdated(2).terminating()]
        {
            let step = step(&[N::outdated(0), N::outdated(1), waiting]);
            assert_eq!(blocked_by(&step), Some((Rule::OneAtATime, "sessions-2")));
        }
        assert_eq!(blocked_by(&step(&[N::outdated(0), N::outdated(2)])), Some((Rule::OneAtATime, "sessions-1")));
    }

    #[test]
    fn a_new_node_in_trouble_stops_the_rollout() {
        let step = step(&[N::outdated(0), N::outdated(1), N::current(2).in_trouble()]);
        assert_eq!(blocked_by(&step), Some((Rule::NewNodeMustServe, "sessions-2")));
    }

    #[test]
    fn a_broken_outdated_node_is_replaced_whatever_the_others_do() {
        let step = step(&[N::current(0).starting(), N::outdated(1).in_trouble(), N::current(2).terminating()]);
        assert_eq!(replaces(&step), Some("sessions-1"));
    }

    #[test]
    fn a_node_that_only_the_operator_can_not_reach_is_not_called_broken() {
        let step = step(&[N::outdated(0).unreachable(), N::outdated(1), N::outdated(2)]);
        assert_eq!(blocked_by(&step), Some((Rule::OthersMustServe, "sessions-0")));
    }

    #[test]
    fn nodes_beyond_the_fleet_are_left_to_the_stateful_set() {
        let nodes = [N::current(0), N::current(1), N::current(2), N::outdated(3), N::outdated(4).starting()];
        assert_eq!(step(&nodes), Step::Settled);
    }

    /// A node of before the change to another Redis.
    fn stranger(ordinal: i32) -> N {
        N::outdated(ordinal).following("external-a/1700000000")
    }

    #[test]
    fn nodes_that_follow_the_log_of_another_redis_are_replaced_all_at_once() {
        let all = [stranger(0), stranger(1), stranger(2)];
        let Step::Switch(pods) = step(&all) else { panic!("{:?}", step(&all)) };
        let found: Vec<(&str, &str)> = pods.iter().map(|pod| (pod.name.as_str(), pod.uid.as_str())).collect();
        assert_eq!(found, [("sessions-0", "uid-0"), ("sessions-1", "uid-1"), ("sessions-2", "uid-2")]);
        assert!(pods.iter().all(|pod| pod.why == "it follows the log of another Redis"));
        // Of a Redis before that one, or of the same one before it was left.
        let earlier = stranger(1).following("managed/1600000000");
        assert_eq!(switches(&step(&[stranger(0), earlier, stranger(2)])).len(), 3);
    }

    #[test]
    fn a_node_of_another_redis_goes_whatever_state_it_or_another_is_in() {
        let states: [fn(N) -> N; 4] = [N::starting, N::in_trouble, N::unreachable, N::terminating];
        for state in states {
            let others = [stranger(0), stranger(1), state(N::current(2))];
            assert_eq!(switches(&step(&others)), ["sessions-0", "sessions-1"]);
        }
        for state in [N::starting, N::in_trouble, N::unreachable] {
            assert_eq!(
                switches(&step(&[stranger(0), state(stranger(1)), N::current(2)])),
                ["sessions-0", "sessions-1"]
            );
        }
        // This one is going already.
        assert_eq!(switches(&step(&[stranger(0), stranger(1).terminating(), N::current(2)])), ["sessions-0"]);
    }

    #[test]
    fn a_bad_first_node_does_not_keep_nodes_of_another_redis() {
        let bad = [stranger(0), stranger(1), N::current(2).in_trouble()];
        assert_eq!(switches(&step(&bad)), ["sessions-0", "sessions-1"]);
        // Where nothing but the image is another, it stops the rollout.
        let step = step(&[N::outdated(0), N::outdated(1), N::current(2).in_trouble()]);
        assert_eq!(blocked_by(&step), Some((Rule::NewNodeMustServe, "sessions-2")));
    }

    #[test]
    fn nodes_of_the_same_redis_wait_for_those_of_another_and_then_go_one_at_a_time() {
        let both = |other: N| [N::outdated(0), N::outdated(1), other];
        assert_eq!(switches(&step(&both(stranger(2)))), ["sessions-2"]);
        for waiting in [stranger(2).terminating(), N::current(2).starting()] {
            assert_eq!(blocked_by(&step(&both(waiting))), Some((Rule::OneAtATime, "sessions-2")));
        }
        assert_eq!(replaces(&step(&both(N::current(2)))), Some("sessions-1"));
    }

    #[test]
    fn nodes_without_redis_and_nodes_that_do_not_say_go_one_at_a_time() {
        let alone = |ordinal| N::outdated(ordinal).following("none/0");
        assert_eq!(replaces(&step(&[alone(0), alone(1), alone(2)])), Some("sessions-2"));
        let silent = |ordinal| N::outdated(ordinal).without_lineage();
        assert_eq!(replaces(&step(&[silent(0), silent(1), silent(2)])), Some("sessions-2"));
        // The way back to none.
        let nodes = [stranger(0), stranger(1), stranger(2)].map(|node| node.build());
        let without = Revisions { lineage: Lineage::default(), ..revisions() };
        assert_eq!(replaces(&decide_for(&nodes, 3, &without)), Some("sessions-2"));
    }

    #[test]
    fn nothing_is_replaced_before_the_stateful_set_controller_has_seen_the_change() {
        let stateful_set = |seen: i64| -> StatefulSet {
            from_yaml(&format!(
                "{{metadata: {{generation: 2}}, spec: {{replicas: 3, selector: {{}}, serviceName: s, template: {{}}}}, \
                 status: {{observedGeneration: {seen}, replicas: 3}}}}"
            ))
        };
        for nodes in [[N::outdated(0), N::outdated(1), N::outdated(2)], [stranger(0), stranger(1), stranger(2)]] {
            let nodes = nodes.map(|node| node.build());
            let early = decide(&nodes, &stateful_set(1), &revisions());
            assert!(matches!(blocked_by(&early), Some((Rule::ControllerMustSee, _))), "{early:?}");
            let step = decide(&nodes, &stateful_set(2), &revisions());
            assert!(step.first().is_some(), "{step:?}");
        }
    }

    /// Runs a rollout to its end against every state a node can be in.
    #[test]
    fn at_most_one_ready_node_is_stopped_at_a_time() {
        let states = |ordinal| {
            [
                N::current(ordinal),
                N::current(ordinal).starting(),
                N::current(ordinal).in_trouble(),
                N::outdated(ordinal),
                N::outdated(ordinal).in_trouble(),
                N::outdated(ordinal).terminating(),
                N::outdated(ordinal).unreachable(),
            ]
        };
        for first in states(0) {
            for second in states(1) {
                for third in states(2) {
                    let nodes = [first.build(), second.build(), third.build()];
                    let Step::Replace(replaced) = decide_for(&nodes, 3, &revisions()) else { continue };
                    let serving = |node: &&Node| node.is_ready();
                    let hit = nodes.iter().find(|node| node.name == replaced.name).unwrap();
                    let all_serve = nodes.iter().filter(serving).count() == nodes.len();
                    assert!(!hit.pod_ready || all_serve, "{nodes:?}");
                }
            }
        }
    }
}
