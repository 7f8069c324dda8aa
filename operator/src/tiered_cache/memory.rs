//! What is remembered about a cache between passes. Losing it, as at every restart, costs a few reads and nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crds::{quantity::ByteSize, tiered_cache::TieredCacheStatus};
use tokio::time::Instant;

use super::{absent::Absences, apply::Settled, diagnose::Trouble, lineage::Lineage, observe::Polled};

/// The memories of all caches, by UID.
#[derive(Debug, Default)]
pub(super) struct Memories(Mutex<HashMap<String, Memory>>);

/// What is remembered about one cache.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Passes in a row that have failed.
    pub(super) failures: u32,
    /// Polls, by the UID of the pod.
    pub(super) polls: BTreeMap<String, Polled>,
    /// What became of the last write of each object, by kind and name.
    pub(super) settled: BTreeMap<(&'static str, String), Settled>,
    /// The status as last written, and the resourceVersion it got.
    pub(super) status: Option<(u64, TieredCacheStatus)>,
    /// Nodes that are missing.
    pub(super) absences: Absences,
    /// Pods of Redis that are missing.
    pub(super) redis_absences: Absences,
    /// The troubles as last told in events, by node.
    pub(super) troubles: BTreeMap<String, Trouble>,
    /// The last refusal to let a node's volume grow.
    pub(super) growth_refused: Option<GrowthRefused>,
    /// The last refusal to let the volume of Redis grow.
    pub(super) redis_growth_refused: Option<GrowthRefused>,
    /// Which data in Redis the nodes were last told to use: the watches may not show it yet.
    pub(super) lineage: Option<Lineage>,
    /// Which they are to be told to use.
    pub(super) planned: Option<Lineage>,
    /// What is known of the Secret with the password of Redis.
    pub(super) password: Password,
    /// When every object was last read from the API server itself.
    pub(super) read_directly: Option<Instant>,
}

/// What is known of the Secret with the password of Redis, which the operator can not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Password {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It is there.
    Known,
    /// The operator may not make it, and not see whether somebody else has; the API server says why.
    NotOurs(String),
}

/// A refusal to let a volume grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GrowthRefused {
    /// When it was refused.
    pub(super) at: Instant,
    /// Which size was asked for.
    pub(super) size: ByteSize,
    /// Why, and what to do.
    pub(super) message: String,
}

/// Longest wait after a failed pass.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Wait after the first failed pass; each further one doubles it.
const BACKOFF_MIN: Duration = Duration::from_millis(500);

// === impl Memories ===

impl Memories {
    /// Takes what is remembered, so that a pass owns it; a pass that never puts it back has forgotten it.
    pub(super) fn take(&self, uid: &str) -> Memory {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid).unwrap_or_default()
    }

    /// Puts back what a pass remembers.
    pub(super) fn put(&self, uid: &str, memory: Memory) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), memory);
    }

    /// Forgets the caches that are gone.
    pub(super) fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exists(uid));
    }

    /// Counts a failed pass and says how long to wait: doubling, at most [`BACKOFF_MAX`], with up to half of it taken
    /// off at random so that caches that failed together do not come back together.
    pub(super) fn failed(&self, uid: &str) -> Duration {
        let mut memories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = memories.entry(uid.to_owned()).or_default();
        memory.failures = memory.failures.saturating_add(1);
        backoff(memory.failures).mul_f64(rand::random_range(0.5..=1.0))
    }
}

fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute() {
        let waits: Vec<_> = [1, 2, 3, 7, 8, 1000].into_iter().map(backoff).collect();
        let expected = [500, 1000, 2000, 32_000, 60_000, 60_000].map(Duration::from_millis);
        assert_eq!(waits, expected);
    }

    #[test]
    fn caches_that_failed_together_come_back_apart_within_half_of_the_wait() {
        let memories = Memories::default();
        let waits: Vec<_> = (0..20).map(|cache| memories.failed(&cache.to_string())).collect();
        assert!(waits.iter().all(|wait| (BACKOFF_MIN / 2..=BACKOFF_MIN).contains(wait)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }

    #[test]
    fn a_successful_pass_forgets_the_failures() {
        let memories = Memories::default();
        for _ in 0..9 {
            memories.failed("a");
        }
        assert!(memories.failed("a") >= BACKOFF_MAX / 2);
        let mut memory = memories.take("a");
        memory.failures = 0;
        memories.put("a", memory);
        assert!(memories.failed("a") <= BACKOFF_MIN);
        assert!(memories.failed("b") <= BACKOFF_MIN);
    }
}
