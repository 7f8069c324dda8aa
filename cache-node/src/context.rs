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
    /// A value on its way up from a lower layer.
    Promotion,
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

/// Parts that one operation can ask, in all.
const STEPS_MAX: usize = 4;

/// Which parts an operation asked, what they said and how long each took: for the span, the slow log and
/// `TC.EXPLAIN`. A hit in memory leaves no trail, because even the clock would cost more than the hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    steps: [Option<TrailStep>; STEPS_MAX],
}

/// One part asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrailStep {
    /// Which part, by its stable name.
    pub part: &'static str,
    /// What it said; of many keys, the best that it said of any.
    pub outcome: Outcome,
    /// How many keys it was asked for.
    pub keys: usize,
    /// For how many it had a value.
    pub hits: usize,
    /// How long it took; with many keys, all together.
    pub took: Duration,
}

/// What a part said, best first.
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
    /// Adds a part; beyond as many as there are layers it is left out.
    pub fn add(&mut self, step: TrailStep) {
        if let Some(free) = self.steps.iter_mut().find(|place| place.is_none()) {
            *free = Some(step);
        }
    }

    /// The parts in the order in which they were asked.
    pub fn steps(&self) -> impl Iterator<Item = &TrailStep> {
        self.steps.iter().flatten()
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trail_keeps_the_order_and_is_bounded() {
        let mut trail = Trail::default();
        for number in 0..6 {
            let took = Duration::from_millis(number);
            trail.add(TrailStep { part: "disk", outcome: Outcome::Miss, keys: 1, hits: 0, took });
        }
        let took: Vec<u128> = trail.steps().map(|step| step.took.as_millis()).collect();
        assert_eq!(took, [0, 1, 2, 3]);
    }
}
