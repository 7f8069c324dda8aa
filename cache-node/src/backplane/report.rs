//! What the backplane says of itself.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{Backplane, Gap, Notice, What, micros};
use crate::{
    context::{Origin, Trust},
    entry::Position,
    layer::{Component, Health, Stats, Verdict},
    metrics::Histogram,
};

/// How long a gap shows in health.
const GAP_SHOWS: Duration = Duration::from_secs(60);

/// How long a node that is started waits for a log that can not be reached.
const STARTS_FENCED_AFTER: Duration = Duration::from_secs(5);

/// Without a confirmation for so long the node is called degraded.
const LAG_DEGRADED: Duration = Duration::from_secs(1);

// === impl Backplane ===

impl Backplane {
    /// Observes health, and tells the listeners when what they keep can not be confirmed any more. To be called a few
    /// times a second.
    pub(crate) fn tick(&self) {
        if self.is_on() {
            self.observed.observe(self.verdict());
            self.tell_of_distrust();
        }
    }

    /// Nobody outside hears of changes while the node does not, so what they keep counts no more than what it keeps.
    fn tell_of_distrust(&self) {
        let trust = self.trust(self.clock.monotonic());
        let before = std::mem::replace(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner), trust);
        if trust > before {
            let (origin, position) = (Origin::Backplane, Position::NONE);
            self.tell(&Notice { origin, operation: 0, position, what: What::Everything });
        }
    }

    /// How long ago the node last knew all changes; none if it does not know since when.
    pub fn confirmed_ago(&self) -> Option<Duration> {
        let confirmed = self.confirmed_us.load(Ordering::Acquire);
        let now = self.micros(self.clock.monotonic());
        (confirmed > 0).then(|| Duration::from_micros(now.saturating_sub(confirmed)))
    }

    /// How often records were missing for this reason.
    pub fn gaps(&self, gap: Gap) -> u64 {
        self.counts.gaps[gap as usize].load(Ordering::Relaxed)
    }

    /// How long it took from the reading of records until they had taken effect.
    pub fn applying(&self) -> &Histogram {
        &self.applying
    }

    /// What a node that has not caught up yet waits for, in words; none once it has.
    pub fn waits_for(&self) -> Option<String> {
        if self.is_caught_up() {
            return None;
        }
        let behind = self.counts.behind.load(Ordering::Relaxed);
        Some(match &self.known().trouble {
            Some(trouble) => format!("the invalidation log can not be followed: {trouble}"),
            None => format!("the invalidation log is being caught up with, {behind} records are left"),
        })
    }

    /// Why the node must not be given clients yet. A node whose Redis can not be reached starts fenced after a while,
    /// because it is of more use than none.
    pub fn keeps_from_ready(&self) -> Option<String> {
        let now = self.clock.monotonic();
        let known = self.known().clone();
        // One look that fails is no reason to serve clients before the log was caught up with.
        let lost = known.lost_since.is_some_and(|since| now.saturating_duration_since(since) >= STARTS_FENCED_AFTER);
        let is_alone = known.trouble.is_some() && lost;
        if is_alone { None } else { self.waits_for() }
    }

    fn verdict(&self) -> Verdict {
        let known = self.known().clone();
        if !self.is_caught_up() {
            return Verdict::unavailable("CatchingUp", self.waits_for().unwrap_or_default());
        }
        let trouble = known.trouble.unwrap_or_else(|| "no look at the log has found its end".to_owned());
        if self.trust(self.clock.monotonic()) != Trust::Full {
            return Verdict::unavailable("Fenced", format!("what other nodes change is not known: {trouble}"));
        }
        if self.confirmed_ago().unwrap_or_default() > LAG_DEGRADED {
            // Without a number that moves: each would be news to whoever writes it down.
            return Verdict::degraded("LogLags", format!("not confirmed for more than {LAG_DEGRADED:?}: {trouble}"));
        }
        match known.gap {
            Some((gap, at)) if self.clock.now().since(at) < GAP_SHOWS => Verdict::degraded(
                "LogGap",
                format!("memory and disk were given up, because {} ({})", gap.sentence(), gap.label()),
            ),
            _ => Verdict::healthy(),
        }
    }
}

#[async_trait]
impl Component for Backplane {
    fn name(&self) -> &'static str {
        "backplane"
    }

    fn health(&self) -> Health {
        self.observed.health()
    }

    fn stats(&self) -> Stats {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        let mut extras = vec![
            ("published", count(&counts.published)),
            ("received", count(&counts.received)),
            ("own", count(&counts.own)),
            ("applied", count(&counts.applied)),
            ("behind", count(&counts.behind)),
            ("lagMs", count(&counts.lag_ms)),
            ("failures", count(&counts.failures)),
            ("servedStale", count(&counts.stale)),
            ("leaseAgeMs", self.confirmed_ago().map_or(u64::MAX, |ago| micros(ago) / 1000)),
            ("positionMs", self.position().millis()),
        ];
        let names = ["gapsTrimmed", "gapsEpochChanged", "gapsRolledBack", "gapsHistoryChanged", "gapsLostWrites"];
        let names = names.into_iter().chain(["gapsAnnounced"]);
        extras.extend(names.zip(Gap::ALL).map(|(name, gap)| (name, self.gaps(gap))));
        Stats { operations: count(&counts.received), extras, ..Stats::default() }
    }

    /// Its task is the coordinator's.
    async fn shutdown(&self, _deadline: Instant) {}
}
