//! How reads of clients ended, over all layers: each is counted once, by who answers the client.

use crate::{
    context::{OperationContext, Trail, Trust},
    entry::Entry,
    tally::Tally,
};

/// How a read of one key ended for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a live value.
    Hit,
    /// With a value past its expiry that was allowed to be served, or one for which a fenced node can not vouch.
    Stale,
    /// Without a value.
    Miss,
    /// Without a value, and a layer that could have had one failed.
    Failed,
}

/// The counts of one node.
#[derive(Default)]
pub struct Answers {
    tally: Tally<{ Answer::ALL.len() }>,
}

// === impl Answer ===

impl Answer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Hit, Self::Stale, Self::Miss, Self::Failed];

    /// The value of the metric label `result`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Miss => "miss",
            Self::Failed => "failed",
        }
    }

    #[inline]
    fn of(cx: &OperationContext, entry: Option<&Entry>, trail: &Trail) -> Self {
        match entry {
            Some(entry) if entry.is_live(cx.now) && cx.trust != Trust::Stale => Self::Hit,
            Some(_) => Self::Stale,
            None if trail.has_failed() => Self::Failed,
            None => Self::Miss,
        }
    }
}

// === impl Answers ===

impl Answers {
    /// How many reads ended so.
    pub fn count(&self, answer: Answer) -> u64 {
        self.tally.sum(answer as usize)
    }

    /// Reads that ended with a value, be it stale.
    pub fn hits(&self) -> u64 {
        self.count(Answer::Hit) + self.count(Answer::Stale)
    }

    /// Reads that ended without one.
    pub fn misses(&self) -> u64 {
        self.count(Answer::Miss) + self.count(Answer::Failed)
    }

    /// A read has ended with this.
    #[inline]
    pub fn note(&self, cx: &OperationContext, entry: Option<&Entry>, trail: &Trail) {
        self.tally.add(Answer::of(cx, entry, trail) as usize, 1);
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(Answer::ALL.map(|answer| (answer.label(), self.count(answer)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock::{Clock, UnixMillis},
        context::{Outcome, TrailStep},
        testing::{START, cx, entry, entry_until},
    };

    #[test]
    fn a_read_counts_by_what_the_client_got() {
        let answers = Answers::default();
        let mut failed = Trail::default();
        failed.add(TrailStep {
            part: "disk",
            outcome: Outcome::Failed,
            keys: 1,
            hits: 0,
            failed: 1,
            took: Duration::ZERO,
        });
        let (live, old) = (entry("k", "v"), entry_until("k", "v", UnixMillis(START.0 - 1)));
        let cx = cx(&Clock::manual(START));
        answers.note(&cx, Some(&live), &failed);
        answers.note(&cx, Some(&old), &Trail::default());
        answers.note(&OperationContext { trust: Trust::Stale, ..cx }, Some(&live), &Trail::default());
        // What a node that trusts nothing of its own has got comes from Redis.
        answers.note(&OperationContext { trust: Trust::None, ..cx }, Some(&live), &Trail::default());
        answers.note(&cx, None, &Trail::default());
        answers.note(&cx, None, &failed);
        answers.note(&cx, None, &failed);
        assert_eq!(Answer::ALL.map(|answer| answers.count(answer)), [2, 2, 1, 2]);
        assert_eq!((answers.hits(), answers.misses()), (4, 3));
    }
}
