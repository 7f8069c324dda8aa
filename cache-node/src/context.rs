//! The facts about one operation: read by every part, changed by none.

use std::time::{Duration, Instant};

use crate::clock::UnixMillis;

/// Who set an operation in motion.
///
/// Only `Client` operations are announced to other nodes; that is what keeps two nodes from echoing one
/// invalidation for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client of this node.
    Client,
    /// Another node, through the invalidation log.
    Backplane,
    /// Values on their way from one layer to another.
    Promotion,
    /// Writes that were accepted before, on their way from the write queue to a layer.
    Queue,
    /// A write found in a journal after an unclean stop.
    Replay,
}

/// Facts about one operation, passed first and by reference, as `cx`. Intent (life, tags, conditions) is in arguments.
#[derive(Clone, Copy, Debug)]
pub struct OperationContext {
    /// Tells operations apart in spans, `TC.EXPLAIN` and the slow log; counts up from the start of the node.
    pub id: u64,
    /// Who asked.
    pub origin: Origin,
    /// Read once per batch of commands, so that all expiry checks of one operation agree.
    pub now: UnixMillis,
    /// When the answer is no longer wanted; shared by all layers.
    pub deadline: Instant,
    /// How far what the node holds itself may be trusted; read once per batch of commands, like the time.
    pub trust: Trust,
}

/// How far what a node holds itself may be trusted: whether it knows what other nodes have changed. Most trust first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// It knows, or knew a moment ago, or there are no other nodes.
    Full,
    /// It does not know; what memory and disk hold may be served all the same, and counts as stale.
    Stale,
    /// It does not know: what memory and disk hold counts as missing.
    None,
}

/// One operation of so many has the time taken of what it does in memory: often enough for a histogram, too seldom to
/// be felt.
const TIMED_ONE_IN: u64 = 64;

/// Steps that one operation can have, in all: two layers read, two written, and the queue waited for, with one to spare.
const STEPS_MAX: usize = 6;

/// Which parts an operation asked, what they said and how long each took: for the span, the slow log and
/// `TC.EXPLAIN`. A hit in memory leaves no trail, because even the clock would cost more than the hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    steps: [Option<TrailStep>; STEPS_MAX],
}

/// One part asked, or told; all its calls of one operation together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrailStep {
    /// Which part, by its stable name.
    pub part: &'static str,
    /// What it said; of many keys, the best that it said of any.
    pub outcome: Outcome,
    /// How many keys it was asked for, or told of.
    pub keys: usize,
    /// For how many it had a value.
    pub hits: usize,
    /// For how many it failed, or gave no answer in time.
    pub failed: usize,
    /// How long it took; with many keys, all together.
    pub took: Duration,
}

/// What a part said: of reads, then of writes, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It had the value.
    Hit,
    /// It had the value, past its expiry but within its stale life.
    Stale,
    /// It knew that there is none, and whatever is below is stale.
    Stopped,
    /// It had none.
    Miss,
    /// It took no part.
    NotHandled,
    /// It failed.
    Failed,
    /// It had not answered when it was not waited for any longer.
    Late,
    /// It took the change.
    Written,
    /// It is away and has not got the change, which the queue keeps for it.
    Excused,
    /// It had no room for the change, and was waited for.
    Full,
    /// It had not taken the change when it was not waited for any longer.
    Unconfirmed,
}

// === impl OperationContext ===

impl OperationContext {
    /// Whether what it does in memory is timed. The first operation of a node is; work that no client asked for never is.
    #[inline]
    pub const fn is_timed(&self) -> bool {
        self.id % TIMED_ONE_IN == 1
    }
}

// === impl Trail ===

impl Trail {
    /// Adds a step. What the same part did before is told together with it; beyond the bound it is left out.
    pub fn add(&mut self, step: TrailStep) {
        self.merge(step, |before, now| before + now);
    }

    /// Adds the steps of work that went on at the same time.
    pub fn beside(&mut self, other: &Self) {
        other.steps().for_each(|step| self.merge(*step, Duration::max));
    }

    /// The parts in the order in which they were asked.
    pub fn steps(&self) -> impl Iterator<Item = &TrailStep> {
        self.steps.iter().flatten()
    }

    /// Whether a part that was asked failed, or gave no answer in time.
    pub fn has_failed(&self) -> bool {
        self.steps().any(|step| step.failed > 0)
    }

    /// How it ended: with the worst that a write came to, else with the best that a read did. None if no part was asked.
    pub fn outcome(&self) -> Option<Outcome> {
        let outcomes = || self.steps().map(|step| step.outcome);
        outcomes().filter(|outcome| outcome.is_of_write()).max().or_else(|| outcomes().min())
    }

    fn merge(&mut self, step: TrailStep, took: impl Fn(Duration, Duration) -> Duration) {
        let is_same =
            |known: &TrailStep| known.part == step.part && known.outcome.is_of_write() == step.outcome.is_of_write();
        let place = self.steps.iter_mut().find(|place| place.as_ref().is_none_or(is_same));
        match place {
            Some(Some(known)) => {
                // The best of what was read, the worst of what was written.
                let is_better = step.outcome < known.outcome;
                if is_better != step.outcome.is_of_write() {
                    known.outcome = step.outcome;
                }
                known.keys += step.keys;
                known.hits += step.hits;
                known.failed += step.failed;
                known.took = took(known.took, step.took);
            }
            Some(free) => *free = Some(step),
            None => {}
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// Stable word for logs and replies.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Stopped => "stopped",
            Self::Miss => "miss",
            Self::NotHandled => "not_handled",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::Written => "written",
            Self::Excused => "excused",
            Self::Full => "full",
            Self::Unconfirmed => "unconfirmed",
        }
    }

    /// Whether it is what a write came to.
    pub const fn is_of_write(self) -> bool {
        matches!(self, Self::Written | Self::Excused | Self::Full | Self::Unconfirmed)
    }
}

// === impl Origin ===

impl Origin {
    /// Stable word for spans and replies.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backplane => "backplane",
            Self::Promotion => "promotion",
            Self::Queue => "queue",
            Self::Replay => "replay",
        }
    }
}

// === impl Trust ===

impl Trust {
    /// Stable word for replies.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Stale => "stale",
            Self::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(part: &'static str, outcome: Outcome, took_ms: u64) -> TrailStep {
        TrailStep { part, outcome, keys: 1, hits: 0, failed: 0, took: Duration::from_millis(took_ms) }
    }

    fn shown(trail: &Trail) -> Vec<(&'static str, Outcome, usize, u128)> {
        trail.steps().map(|step| (step.part, step.outcome, step.keys, step.took.as_millis())).collect()
    }

    #[test]
    fn trail_keeps_the_order_and_is_bounded() {
        let mut trail = Trail::default();
        for part in ["a", "b", "c", "d", "e", "f", "g"] {
            trail.add(step(part, Outcome::Miss, 1));
        }
        let parts: Vec<&str> = trail.steps().map(|step| step.part).collect();
        assert_eq!(parts, ["a", "b", "c", "d", "e", "f"]);
    }

    #[test]
    fn all_calls_of_a_part_are_one_step_and_no_round_trip_is_left_out() {
        let mut trail = Trail::default();
        for round_trip in 0..100 {
            trail.add(step("redis", if round_trip == 50 { Outcome::Hit } else { Outcome::Miss }, 2));
            trail.add(step("disk", Outcome::Miss, 1));
        }
        trail.add(step("disk", Outcome::Written, 7));
        let expected =
            [("redis", Outcome::Hit, 100, 200), ("disk", Outcome::Miss, 100, 100), ("disk", Outcome::Written, 1, 7)];
        assert_eq!(shown(&trail), expected);
    }

    #[test]
    fn of_work_side_by_side_the_longest_counts() {
        let (mut trail, mut other) = (Trail::default(), Trail::default());
        trail.add(step("disk", Outcome::Miss, 5));
        other.add(step("disk", Outcome::Hit, 3));
        trail.beside(&other);
        assert_eq!(shown(&trail), [("disk", Outcome::Hit, 2, 5)]);
    }

    #[test]
    fn an_operation_ends_as_its_worst_write_or_its_best_read() {
        let mut trail = Trail::default();
        assert_eq!(trail.outcome(), None);
        trail.add(step("redis", Outcome::Failed, 1));
        trail.add(step("disk", Outcome::Hit, 1));
        assert_eq!(trail.outcome(), Some(Outcome::Hit));
        trail.add(step("disk", Outcome::Unconfirmed, 1));
        trail.add(step("disk", Outcome::Written, 1));
        assert_eq!(trail.outcome(), Some(Outcome::Unconfirmed));
    }
}
