//! Signs of life of the parts that must never stand still; the source of `/livez`.
//!
//! A watch that is silently stuck is the classic way in which an operator stops working without anybody noticing: the
//! process is up, probes answer, and no change is acted on. So every watch and the lease leave a sign whenever they
//! make progress, and liveness is the age of the oldest sign. An API server that can not be reached is progress of a
//! sort: attempts go on, and a restart would not help.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::clock;

/// How long a watch may be without a byte, a bookmark or a new attempt. The API server sends a bookmark about every
/// minute, a watch that is silent for [`crate::client::WATCH_SILENCE_MAX`] is cut, and the next attempt comes within
/// 30 s of backoff: a part that is still silent after this is stuck.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(180);

/// The registry of all heartbeats. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heartbeats(Arc<Mutex<BTreeMap<String, Instant>>>);

/// A part that has been silent for too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overdue {
    part: String,
    silent: Duration,
}

// === impl Heartbeats ===

impl Heartbeats {
    /// A sign of life of `part`; the first one registers it.
    pub(crate) fn beat(&self, part: &str) {
        let mut beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match beats.get_mut(part) {
            Some(at) => *at = clock::monotonic(),
            None => {
                beats.insert(part.to_owned(), clock::monotonic());
            }
        }
    }

    /// Forgets a part that has ended on purpose.
    pub(crate) fn retire(&self, part: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    /// How long each part has been silent.
    pub(crate) fn ages(&self) -> Vec<(String, Duration)> {
        let now = clock::monotonic();
        let beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        beats.iter().map(|(part, at)| (part.clone(), now.duration_since(*at))).collect()
    }

    /// The parts that have been silent for longer than [`SILENCE_MAX`]; none when all is well.
    pub(crate) fn overdue(&self) -> Vec<Overdue> {
        let ages = self.ages().into_iter();
        ages.filter(|(_, silent)| *silent > SILENCE_MAX).map(|(part, silent)| Overdue { part, silent }).collect()
    }
}

// === impl Overdue ===

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} has made no progress for {} s (limit {} s)",
            self.part,
            self.silent.as_secs(),
            SILENCE_MAX.as_secs()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_stands_still_is_named_until_it_moves_again() {
        let beats = Heartbeats::default();
        beats.beat("watch Pod");
        beats.beat("lease");
        tokio::time::advance(SILENCE_MAX).await;
        beats.beat("lease");
        assert_eq!(beats.overdue(), []);
        tokio::time::advance(Duration::from_secs(1)).await;
        let overdue = beats.overdue();
        assert_eq!(overdue.len(), 1);
        assert_eq!(overdue[0].to_string(), "watch Pod has made no progress for 181 s (limit 180 s)");
        beats.beat("watch Pod");
        assert_eq!(beats.overdue(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_retired_part_is_not_missed() {
        let beats = Heartbeats::default();
        beats.beat("watch Pod");
        beats.retire("watch Pod");
        tokio::time::advance(SILENCE_MAX * 2).await;
        assert_eq!(beats.overdue(), []);
    }
}
