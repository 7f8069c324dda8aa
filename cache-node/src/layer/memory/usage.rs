//! Whether memory is too small for what is asked of it, judged by what happened lately.

use std::sync::{Mutex, PoisonError};

/// Below these numbers a share says nothing: the window grows until it says something.
const EVICTIONS_MIN: u64 = 1000;
const READS_MIN: u64 = 1000;

/// Counters of memory, from the start or over a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) reads: u64,
    pub(super) misses: u64,
    pub(super) evicted: u64,
    pub(super) evicted_unread: u64,
}

/// The window since the last judgement.
#[derive(Default)]
pub(super) struct Judge(Mutex<Judgement>);

#[derive(Default)]
struct Judgement {
    at: Usage,
    too_small: bool,
}

// === impl Judge ===

impl Judge {
    /// Too small means: entries are given up before anybody has read them, *and* readers do not find what they ask
    /// for. Either alone is no harm: S3-FIFO gives up entries that nobody reads on purpose.
    pub(super) fn is_too_small(&self, now: Usage) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Usage { reads, misses, evicted, evicted_unread } = now.since(last.at);
        if reads >= READS_MIN && evicted >= EVICTIONS_MIN {
            *last = Judgement { at: now, too_small: evicted_unread * 2 > evicted && misses * 2 > reads };
        } else if reads >= READS_MIN && evicted == 0 {
            // Read and nothing given up: whatever it was is over.
            *last = Judgement { at: now, too_small: false };
        }
        last.too_small
    }
}

// === impl Usage ===

impl Usage {
    const fn since(self, before: Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            misses: self.misses - before.misses,
            evicted: self.evicted - before.evicted,
            evicted_unread: self.evicted_unread - before.evicted_unread,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn usage(reads: u64, misses: u64, evicted: u64, evicted_unread: u64) -> Usage {
        Usage { reads, misses, evicted, evicted_unread }
    }

    #[test]
    fn memory_is_too_small_when_it_gives_up_unread_entries_and_readers_miss() {
        assert!(Judge::default().is_too_small(usage(2000, 1500, 2000, 1500)));
        assert!(!Judge::default().is_too_small(usage(2000, 100, 2000, 2000)), "readers find what they want");
        assert!(!Judge::default().is_too_small(usage(2000, 1500, 2000, 500)), "what is given up was of use");
        assert!(!Judge::default().is_too_small(usage(900, 900, 2000, 2000)), "too few reads to judge");
    }

    #[test]
    fn judgement_stands_until_there_is_a_new_one() {
        let judge = Judge::default();
        assert!(judge.is_too_small(usage(2000, 1500, 2000, 1500)));
        assert!(judge.is_too_small(usage(2500, 1500, 2000, 1500)));
        assert!(!judge.is_too_small(usage(4000, 1600, 2000, 1500)));
    }
}
