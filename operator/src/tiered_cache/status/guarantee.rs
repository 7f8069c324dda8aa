//! Which guarantee holds now, in plain words: one table of sentences, which README.md repeats.

use std::time::Duration;

use crds::{
    node_config::WhenDisconnected,
    node_report::{HealthState, LayerName, LayerReport, NodeReport},
    quantity::HumanDuration,
};

use super::{Node, layers::is_ill};
use crate::tiered_cache::{lineage::Lineage, validate::ValidBackplane};

/// Nodes named one by one; of more the number is told.
const NAMED_MAX: usize = 5;

/// What holds, from best to worst. Of nodes that are ill in several ways each is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holds {
    /// Every node knows what the others change.
    Whole,
    /// There is no log.
    Alone,
    /// They run a configuration of before there was one.
    NotYet,
    /// They follow another log than the others.
    Apart,
    Memory,
    TagIndex,
    WriteQueue,
    Redis,
    Disk,
    /// The nodes found that they missed records.
    LogGap,
    /// They hear late, and not too late.
    LogLags,
    /// They serve what they hold all the same.
    FencedStale,
    /// They do not, or not any more.
    FencedMiss,
    /// They have not got to the end of the log since their start.
    CatchingUp,
}

/// What the guarantee is about.
#[derive(Clone, Copy, Debug)]
pub(in crate::tiered_cache) struct Terms<'a> {
    /// What nodes promise each other where there is a log.
    pub(in crate::tiered_cache) backplane: Option<&'a ValidBackplane>,
    /// Which log.
    pub(in crate::tiered_cache) lineage: &'a Lineage,
}

// === impl Holds ===

impl Holds {
    /// Every row of the table.
    #[cfg(test)]
    const ALL: [Self; 14] = [
        Self::Whole,
        Self::Alone,
        Self::NotYet,
        Self::Apart,
        Self::Memory,
        Self::TagIndex,
        Self::WriteQueue,
        Self::Redis,
        Self::Disk,
        Self::LogGap,
        Self::LogLags,
        Self::FencedStale,
        Self::FencedMiss,
        Self::CatchingUp,
    ];

    /// The sentence, with the names of settings where [`Terms`] puts their values.
    const fn sentence(self) -> &'static str {
        match self {
            Self::Whole => {
                "invalidations reach every node within 250 ms; a node that is cut off stops trusting its copies after \
                 MAX_STALENESS, and THEN"
            }
            Self::Alone => {
                "nodes do not share invalidations: spec.redis.mode is Disabled, and spec.backplane has no effect"
            }
            Self::NotYet => "changes of other nodes are not known before the present configuration runs",
            Self::Apart => {
                "the log of another Redis is followed: invalidations do not reach all nodes until these are replaced"
            }
            Self::Memory => "reads go on with the layers below memory, and are slower",
            Self::TagIndex => "nothing wrong is served; more than was asked for may be gone",
            Self::WriteQueue => {
                "writes wait, or are refused or dropped and counted, as spec.writeQueue.overflow says; removals are not \
                 dropped"
            }
            Self::Redis => "reads and writes go on with memory and disk; what only other nodes wrote is a miss",
            Self::Disk => {
                "reads go on; a full disk takes no new values and still forgets the old ones; a restarted node may be cold"
            }
            Self::LogGap => "nothing older than the gap is served: memory and disk were given up, and fill again",
            Self::LogLags => "invalidations may take effect up to MAX_STALENESS late",
            Self::FencedStale => {
                "values that may be up to STALE_AT_MOST old are served, counted as stale; after that, as if absent"
            }
            Self::FencedMiss => "fenced: what memory and disk hold is answered as if absent",
            Self::CatchingUp => {
                "what memory and disk hold is answered as if absent until the log has been caught up with"
            }
        }
    }

    /// What the ill layer of a node leaves.
    fn of(layer: &LayerReport, terms: Terms<'_>) -> Option<Self> {
        Some(match (layer.name, layer.health.reason.as_str()) {
            (LayerName::Memory, _) => Self::Memory,
            (LayerName::TagIndex, _) => Self::TagIndex,
            (LayerName::WriteQueue, _) => Self::WriteQueue,
            (LayerName::Redis, _) => Self::Redis,
            (LayerName::Disk, _) => Self::Disk,
            (LayerName::Backplane, "LogGap") => Self::LogGap,
            (LayerName::Backplane, "CatchingUp") => Self::CatchingUp,
            (LayerName::Backplane, "Fenced") if terms.serves_stale(layer) => Self::FencedStale,
            (LayerName::Backplane, "Fenced") => Self::FencedMiss,
            // A word of a later version: the health says how bad it is.
            (LayerName::Backplane, _) if layer.health.state == HealthState::Degraded => Self::LogLags,
            (LayerName::Backplane, _) => Self::FencedMiss,
            (LayerName::Unknown, _) => return None,
        })
    }
}

// === impl Terms ===

impl Terms<'_> {
    /// What holds as long as every node is well.
    pub(super) fn whole(self) -> String {
        self.say(if self.backplane.is_some() { Holds::Whole } else { Holds::Alone })
    }

    /// What holds of a fleet, with the names of the nodes where it is less than the whole.
    pub(super) fn now(self, nodes: &[Node]) -> String {
        self.tell(self.less(nodes))
    }

    /// What holds of a fleet whose layers are all well.
    pub(super) fn of_change(self, nodes: &[Node]) -> String {
        let mut less = self.less(nodes);
        less.retain(|(holds, _)| matches!(holds, Holds::NotYet | Holds::Apart));
        self.tell(less)
    }

    /// The nodes that follow another log, if these nodes follow more than one.
    pub(super) fn apart<'n>(self, nodes: impl Iterator<Item = &'n Node> + Clone) -> Vec<&'n str> {
        let lineages = || nodes.clone().filter_map(|node| node.lineage.as_ref());
        let are_one = !lineages().any(|one| lineages().any(|other| one.is_another_log(other)));
        let strangers = nodes.clone().filter(|node| !are_one && node.follows_another_log(self.lineage));
        strangers.map(|node| node.name.as_str()).collect()
    }

    /// Where it is less than the whole.
    fn less(self, nodes: &[Node]) -> Vec<(Holds, &str)> {
        let reports = nodes.iter().filter(|node| !node.terminating);
        let reports = reports.filter_map(|node| Some((node.name.as_str(), node.report.as_ref()?)));
        let less = reports.flat_map(|(name, report)| self.less_on(report).map(move |holds| (holds, name)));
        // Also those on their way down: until they are gone they may answer.
        less.chain(self.apart(nodes.iter()).into_iter().map(|name| (Holds::Apart, name))).collect()
    }

    fn tell(self, mut less: Vec<(Holds, &str)>) -> String {
        less.sort_by_key(|(holds, _)| *holds);
        if less.is_empty() {
            return self.whole();
        }
        let groups = less.chunk_by(|(one, _), (other, _)| one == other);
        let told = groups.map(|group| {
            let names: Vec<&str> = group.iter().map(|(_, name)| *name).collect();
            format!("on {} {}", listed(&names), self.say(group[0].0))
        });
        told.collect::<Vec<_>>().join("; ")
    }

    /// Where a node has less than the whole.
    fn less_on(self, report: &NodeReport) -> impl Iterator<Item = Holds> {
        let follows =
            || report.layer(LayerName::Backplane).is_some_and(|layer| layer.health.state != HealthState::Disabled);
        let not_yet = (self.backplane.is_some() && report.ready && !follows()).then_some(Holds::NotYet);
        ill(report).filter_map(move |layer| Holds::of(layer, self)).chain(not_yet)
    }

    /// Whether nodes follow a log where there is to be one, and do not where there is not.
    pub(super) fn is_as_asked(self, health: HealthState) -> bool {
        health == if self.backplane.is_some() { HealthState::Healthy } else { HealthState::Disabled }
    }

    /// What a node that serves clients can not promise; empty if there is nothing.
    pub(super) fn of_node(self, report: &NodeReport) -> String {
        let backplane = ill(report).find(|layer| layer.name == LayerName::Backplane);
        let told = backplane.and_then(|layer| Some((Holds::of(layer, self)?, &layer.health)));
        told.map_or_else(String::new, |(holds, health)| format!("{}: {}", health.message, self.say(holds)))
    }

    fn say(self, holds: Holds) -> String {
        let Some(backplane) = self.backplane else { return holds.sentence().to_owned() };
        let then = match backplane.when_disconnected {
            WhenDisconnected::ServeStale => {
                format!("serves them as stale for at most {}", backplane.serve_stale_for)
            }
            WhenDisconnected::Miss => "answers as if they were absent".to_owned(),
        };
        let at_most = HumanDuration(self.stale_at_most());
        let sentence = holds.sentence().replace("MAX_STALENESS", &backplane.max_staleness.to_string());
        sentence.replace("STALE_AT_MOST", &at_most.to_string()).replace("THEN", &then)
    }

    /// How old a value may be that a fenced node serves.
    fn stale_at_most(self) -> Duration {
        let of = |backplane: &ValidBackplane| match backplane.when_disconnected {
            WhenDisconnected::ServeStale => backplane.max_staleness.0 + backplane.serve_stale_for.0,
            WhenDisconnected::Miss => backplane.max_staleness.0,
        };
        self.backplane.map(of).unwrap_or_default()
    }

    /// Whether a fenced node still serves what it holds.
    fn serves_stale(self, layer: &LayerReport) -> bool {
        let age = layer.stats.extras.get("leaseAgeMs").copied().unwrap_or(u64::MAX);
        u128::from(age) < self.stale_at_most().as_millis()
    }
}

fn ill(report: &NodeReport) -> impl Iterator<Item = &LayerReport> {
    report.layers.iter().filter(|layer| is_ill(report, layer))
}

/// Names in a sentence, as many as one still reads.
pub(in crate::tiered_cache) fn listed(names: &[&str]) -> String {
    match names.len().saturating_sub(NAMED_MAX) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..NAMED_MAX].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiered_cache::testing::{NodeFixture as N, backplane, lineage};

    fn now(whens: WhenDisconnected, nodes: &[N]) -> String {
        let backplane = ValidBackplane { when_disconnected: whens, ..backplane() };
        let terms = Terms { backplane: Some(&backplane), lineage: &lineage() };
        terms.now(&nodes.iter().map(N::build).collect::<Vec<_>>())
    }

    fn ill_backplane(ordinal: i32, state: HealthState, reason: &str) -> N {
        N::current(ordinal).with_layer(LayerName::Backplane, state, reason)
    }

    use HealthState::{Degraded, Unavailable};
    use WhenDisconnected::{Miss, ServeStale};

    #[test]
    fn every_sentence_is_in_the_readme() {
        let readme = include_str!("../../../README.md");
        let table = readme.split("### What then holds").nth(1).unwrap().split("\n## ").next().unwrap();
        let told = Holds::ALL.iter().filter(|holds| !table.contains(&format!("| {} |", holds.sentence())));
        assert_eq!(told.collect::<Vec<_>>(), Vec::<&Holds>::new());
    }

    #[test]
    fn every_reason_that_a_node_gives_is_in_the_readme() {
        let node = include_str!("../../../../cache-node/src/backplane/report.rs");
        let reasons =
            ["Verdict::unavailable(", "Verdict::degraded("].into_iter().flat_map(|call| node.split(call).skip(1));
        let reasons: Vec<&str> = reasons.map(|rest| rest.split('"').nth(1).unwrap()).collect();
        assert!(reasons.contains(&"Fenced") && reasons.len() >= 4, "{reasons:?}");
        let readme = include_str!("../../../README.md");
        let table = readme.split("`BackplaneHealthy` has these reasons").nth(1).unwrap().split("###").next().unwrap();
        let missing = reasons.into_iter().filter(|reason| !table.contains(&format!("| `{reason}` |")));
        assert_eq!(missing.collect::<Vec<_>>(), Vec::<&str>::new());
    }

    #[test]
    fn a_fleet_that_is_well_keeps_its_bound() {
        let text = now(ServeStale, &[N::current(0), N::current(1)]);
        assert_eq!(
            text,
            "invalidations reach every node within 250 ms; a node that is cut off stops trusting its copies after 3s, and \
             serves them as stale for at most 1m"
        );
        assert!(now(Miss, &[]).ends_with("after 3s, and answers as if they were absent"));
        let without = Terms { backplane: None, lineage: &Lineage::default() };
        assert_eq!(without.now(&[N::current(0).build()]), Holds::Alone.sentence());
    }

    #[test]
    fn a_fenced_node_serves_stale_values_for_as_long_as_the_spec_says() {
        let fenced = |age: u64| ill_backplane(1, Unavailable, "Fenced").with_extra("leaseAgeMs", age);
        let stale =
            "on sessions-1 values that may be up to 1m3s old are served, counted as stale; after that, as if absent";
        assert_eq!(now(ServeStale, &[N::current(0), fenced(3_000)]), stale);
        assert_eq!(now(ServeStale, &[fenced(62_999)]), stale);
        let absent = "on sessions-1 fenced: what memory and disk hold is answered as if absent";
        assert_eq!(now(ServeStale, &[fenced(63_000)]), absent);
        assert_eq!(now(ServeStale, &[ill_backplane(1, Unavailable, "Fenced")]), absent, "never confirmed");
        assert_eq!(now(Miss, &[fenced(3_000)]), absent);
    }

    #[test]
    fn nodes_are_named_by_what_holds_on_them() {
        let lags = |ordinal| ill_backplane(ordinal, Degraded, "LogLags");
        let sick = N::current(0).with_layer(LayerName::Redis, Unavailable, "Unreachable");
        let text = now(Miss, &[sick, lags(1), lags(2), ill_backplane(3, Degraded, "LogGap")]);
        let parts: Vec<&str> = text.split("; ").collect();
        assert_eq!(parts[0], "on sessions-0 reads and writes go on with memory and disk");
        assert!(parts[2].starts_with("on sessions-3 nothing older than the gap is served"), "{text}");
        assert_eq!(parts[3], "on sessions-1, sessions-2 invalidations may take effect up to 3s late");
        let many: Vec<N> = (0..7).map(lags).collect();
        assert!(
            now(Miss, &many).starts_with("on sessions-0, sessions-1, sessions-2, sessions-3, sessions-4 and 2 more ")
        );
    }

    #[test]
    fn a_node_that_catches_up_before_it_is_given_clients_is_on_its_way_and_a_fenced_one_is_not() {
        let ready = ill_backplane(1, Unavailable, "CatchingUp");
        assert_eq!(
            now(Miss, &[N::current(0), ready.clone()]),
            "on sessions-1 what memory and disk hold is answered as if absent until the log has been caught up with"
        );
        let waiting = ready.waiting_for("the invalidation log is being caught up with, 7 records are left");
        assert!(now(Miss, &[N::current(0), waiting]).starts_with("invalidations reach every node"));
    }

    #[test]
    fn a_node_that_does_not_follow_yet_is_not_said_to() {
        let off = ill_backplane(1, HealthState::Disabled, "Disabled");
        let words = "on sessions-1 changes of other nodes are not known before the present configuration runs";
        assert_eq!(now(Miss, &[N::current(0), off]), words);
        assert_eq!(now(Miss, &[N::current(1).without_layer(LayerName::Backplane)]), words);
    }

    #[test]
    fn while_there_are_two_logs_invalidations_are_not_said_to_reach_every_node() {
        let stranger = |ordinal| N::outdated(ordinal).following("external-a/1700000000");
        let words = "on sessions-0, sessions-1 the log of another Redis is followed: invalidations do not reach all nodes \
                     until these are replaced";
        for present in [N::current(2), N::current(2).starting()] {
            assert_eq!(now(Miss, &[stranger(0), stranger(1).terminating(), present]), words);
        }
        let two_earlier = [stranger(0), stranger(1).following("managed/1600000000")];
        assert_eq!(now(Miss, &two_earlier), words);
        // Before the first is replaced, and after the last, all of them hear of each other.
        for one in [[stranger(0), stranger(1)], [N::current(0), N::current(1)]] {
            assert!(now(Miss, &one).starts_with("invalidations reach every node"));
        }
        let nodes = [stranger(0), N::current(1).following("none/0")].map(|node| node.build());
        let without = Terms { backplane: None, lineage: &Lineage::default() };
        assert_eq!(without.now(&nodes), Holds::Alone.sentence());
    }

    #[test]
    fn a_word_of_a_later_version_is_taken_by_its_health() {
        assert!(now(Miss, &[ill_backplane(0, Degraded, "Odd")]).contains("late"));
        assert!(now(Miss, &[ill_backplane(0, Unavailable, "Odd")]).contains("as if absent"));
    }
}
