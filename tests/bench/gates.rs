//! The goals, and when a measurement may say that one is met or missed. Noise never fails: it is "inconclusive".

use std::fmt;

use crate::{
    pair::{Metric, Outcome},
    server::Kind::{
        self, Fused, Layered, Node, NodeCold, NodeColdDeadRedis, NodeDeadRedis, NodeDisk, NodeRedis, NodeTagged, Redis,
    },
};

/// Fewer undisturbed pairs than this decide nothing.
pub(crate) const PAIRS_MIN: usize = 24;
/// What a pair of equal servers may differ by on a quiet machine; a gate is missed only beyond it.
const NOISE: f64 = 0.06;

/// One goal: a ratio of two servers on one workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// Its short name.
    pub(crate) id: &'static str,
    /// The yardstick.
    pub(crate) base: Kind,
    /// What is measured against it.
    pub(crate) candidate: Kind,
    pub(crate) workload: &'static str,
    pub(crate) metric: Metric,
    /// Missing it is a defect.
    pub(crate) gate: f64,
    /// Reaching it is worth telling.
    pub(crate) target: f64,
}

/// What a measurement says about a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// At least as good as the target.
    Target,
    /// At least as good as the gate.
    Gate,
    /// Worse than the gate beyond noise.
    Missed,
    /// Says nothing, because …
    Inconclusive(&'static str),
}

/// One goal with its measurement, and that of the base against itself.
pub(crate) struct Judged<'a> {
    pub(crate) goal: &'a Goal,
    pub(crate) outcome: &'a Outcome,
    pub(crate) control: &'a Outcome,
}

/// All goals that need only the RESP port: beside Redis (G1 to G6), what the layers (G7), the write queue and the disk
/// behind it (G17) and tags (G18) cost clients, and what a Redis that has died does to those who do not need it (L2).
pub(crate) const GOALS: [Goal; 17] = [
    goal("G1", (Redis, Node), "get-p1", Metric::Cpu, (1.00, 0.88)),
    goal("G2", (Redis, Node), "get-p16", Metric::Throughput, (1.25, 1.6)),
    goal("G3 CPU", (Redis, Node), "set-p1", Metric::Cpu, (1.05, 0.90)),
    goal("G3 ops", (Redis, Node), "set-p16", Metric::Throughput, (1.0, 1.65)),
    goal("G4 GET", (Redis, Node), "get4k-p16", Metric::Throughput, (1.15, 1.4)),
    goal("G4 SET", (Redis, Node), "set4k-p16", Metric::Throughput, (1.15, 1.4)),
    goal("G5", (Redis, Node), "mix-r80000", Metric::P99, (1.25, 1.0)),
    goal("G6", (Redis, Node), "get-p1-c900", Metric::P99, (1.25, 1.0)),
    goal("G7 GET P1", (Fused, Layered), "get-p1", Metric::Cpu, (1.06, 1.05)),
    goal("G7 SET P1", (Fused, Layered), "set-p1", Metric::Cpu, (1.06, 1.05)),
    goal("G7 GET P16", (Fused, Layered), "get-p16", Metric::Cpu, (1.10, 1.05)),
    goal("G7 SET P16", (Fused, Layered), "set-p16", Metric::Cpu, (1.10, 1.05)),
    goal("G17", (Node, NodeDisk), "set-r40000", Metric::Foreground, (1.15, 1.05)),
    goal("G18 SET", (Node, NodeTagged), "set-p16", Metric::Cpu, (1.5, 1.3)),
    goal("G18 GET", (Node, NodeTagged), "get-p16", Metric::Cpu, (1.03, 1.02)),
    goal("L2 dead, L1 hit", (NodeRedis, NodeDeadRedis), "get-p1", Metric::P99, (1.2, 1.2)),
    goal("L2 dead, L3 hit", (NodeCold, NodeColdDeadRedis), "get-p1-uniform", Metric::P99, (1.2, 1.2)),
];

/// Memory per entry against Redis (G11): gate and target.
pub(crate) const MEMORY_GATE: f64 = 1.05;
/// See [`MEMORY_GATE`].
pub(crate) const MEMORY_TARGET: f64 = 0.85;

const fn goal(
    id: &'static str,
    (base, candidate): (Kind, Kind),
    workload: &'static str,
    metric: Metric,
    (gate, target): (f64, f64),
) -> Goal {
    Goal { id, base, candidate, workload, metric, gate, target }
}

// === impl Goal ===

impl Goal {
    /// Whether the name is its own or that of its group, which is its first word.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.id == name || self.id.split(' ').next() == Some(name)
    }

    /// Judges a run; `control` is the same metric of the base against itself on the same workload.
    pub(crate) fn judge(&self, outcome: &Outcome, control: Option<f64>) -> Verdict {
        let Some(ratio) = outcome.ratio(self.metric) else { return Verdict::Inconclusive("no pair") };
        if !outcome.quiet() {
            return Verdict::Inconclusive("other processes disturbed the run");
        }
        if ratio.count < PAIRS_MIN {
            return Verdict::Inconclusive("fewer than 24 pairs");
        }
        match control {
            None => Verdict::Inconclusive("no control run"),
            Some(control) if (control - 1.0).abs() > NOISE => Verdict::Inconclusive("base against itself differs"),
            Some(_) => self.judge_ratio(ratio.median),
        }
    }

    fn judge_ratio(&self, median: f64) -> Verdict {
        // For throughput more is better: compare reciprocals.
        let cost = |ratio: f64| if self.metric == Metric::Throughput { 1.0 / ratio } else { ratio };
        judge_cost(cost(median), cost(self.gate), cost(self.target))
    }
}

/// Judges a ratio of which less is better.
pub(crate) fn judge_cost(cost: f64, gate: f64, target: f64) -> Verdict {
    if cost <= target {
        Verdict::Target
    } else if cost <= gate {
        Verdict::Gate
    } else if cost <= gate * (1.0 + NOISE) {
        Verdict::Inconclusive("within noise of the gate")
    } else {
        Verdict::Missed
    }
}

// === impl Verdict ===

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target => f.write_str("target met"),
            Self::Gate => f.write_str("gate met"),
            Self::Missed => f.write_str("MISSED"),
            Self::Inconclusive(reason) => write!(f, "inconclusive: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::Measure;

    /// A run of which every pair has the given throughput ratio.
    fn run(ratio: f64, pairs: usize, wait: f64) -> Outcome {
        let slice = |index: usize| Measure {
            requests_per_second: if index.is_multiple_of(2) { 1.0 } else { ratio },
            server_wait_share: wait,
            ..Measure::default()
        };
        Outcome {
            workload: "get-p16".parse().unwrap(),
            base: Kind::Redis,
            candidate: Kind::Node,
            slices: (0..=2 * pairs).map(slice).collect(),
            rounds: pairs,
        }
    }

    fn judge(ratio: f64) -> Verdict {
        GOALS[1].judge(&run(ratio, PAIRS_MIN, 0.0), Some(1.0))
    }

    #[test]
    fn every_goal_names_a_workload_and_a_target_at_or_beyond_its_gate() {
        for goal in GOALS {
            goal.workload.parse::<crate::workload::Workload>().unwrap();
            let better =
                if goal.metric == Metric::Throughput { goal.target > goal.gate } else { goal.target <= goal.gate };
            assert!(better, "{}", goal.id);
        }
    }

    #[test]
    fn a_goal_is_called_by_its_name_or_its_group() {
        let called = |name: &str| GOALS.iter().filter(|goal| goal.is_called(name)).count();
        assert_eq!((called("G1"), called("G3"), called("G3 CPU"), called("L2"), called("G")), (1, 2, 1, 2, 0));
    }

    #[test]
    fn a_goal_is_missed_only_beyond_the_noise() {
        assert_eq!(judge(1.7), Verdict::Target);
        assert_eq!(judge(1.3), Verdict::Gate);
        assert_eq!(judge(1.2), Verdict::Inconclusive("within noise of the gate"));
        assert_eq!(judge(1.1), Verdict::Missed);
    }

    #[test]
    fn a_disturbed_or_short_or_uncontrolled_run_decides_nothing() {
        let goal = GOALS[1];
        let inconclusive =
            |outcome: &Outcome, control| matches!(goal.judge(outcome, control), Verdict::Inconclusive(_));
        assert!(inconclusive(&run(0.5, PAIRS_MIN, 0.2), Some(1.0)), "disturbed");
        assert!(inconclusive(&run(0.5, PAIRS_MIN - 1, 0.0), Some(1.0)), "short");
        assert!(inconclusive(&run(0.5, PAIRS_MIN, 0.0), Some(1.2)), "control differs");
        assert!(inconclusive(&run(0.5, PAIRS_MIN, 0.0), None), "no control");
    }
}
