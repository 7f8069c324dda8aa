//! The parts of a node and what the coordinator has counted, for reports.

use std::sync::Arc;

use super::{Answer, Answers, Coordinator};
use crate::{
    backplane::Backplane,
    clock::UnixMillis,
    layer::{Component, Health, HealthState, Latency, Layer, Stats, Verdict, memory::Memory},
    metrics::Histogram,
    tag_index::TagIndex,
    write_queue::WriteQueue,
};

/// One part of a node, for reports. Its times are taken from outside, by those who call it.
pub struct Part<'a> {
    component: &'a dyn Component,
    times: Vec<(&'static str, &'a Histogram)>,
}

// === impl Part ===

impl<'a> Part<'a> {
    fn new(component: &'a dyn Component, times: Vec<(&'static str, &'a Histogram)>) -> Self {
        Self { component, times }
    }

    /// Stable name, as in metrics and reports.
    pub fn name(&self) -> &'static str {
        self.component.name()
    }

    /// What was last observed.
    pub fn health(&self) -> Health {
        self.component.health()
    }

    /// What was counted, and how long it took.
    pub fn stats(&self) -> Stats {
        let mut stats = self.component.stats();
        stats.latency.extend(self.times.iter().map(|(operation, calls)| Latency::of(operation, calls)));
        stats
    }

    /// How long calls took, by the value of the metric label `operation`; those of cold layers export themselves.
    pub fn times(&self) -> &[(&'static str, &'a Histogram)] {
        &self.times
    }
}

// === impl Coordinator ===

impl Coordinator {
    /// L1, for reports.
    pub fn memory(&self) -> &Memory {
        &self.stores.memory
    }

    /// What this node tells other nodes and hears from them.
    pub fn backplane(&self) -> &Backplane {
        &self.stores.backplane
    }

    /// The write queue, for reports.
    pub fn write_queue(&self) -> &WriteQueue {
        &self.stores.write_queue
    }

    /// The tag index, for reports.
    pub fn tags(&self) -> &TagIndex {
        &self.stores.tags
    }

    /// The layers below memory, for reports, in the order in which they are read.
    pub fn cold(&self) -> impl Iterator<Item = &Arc<dyn Layer>> {
        self.stores.cold_in_order().map(|cold| &cold.layer)
    }

    /// Every part, from top to bottom, for reports.
    pub fn parts(&self) -> Vec<Part<'_>> {
        let times = &self.stores.times;
        let queue_times = [vec![("accept", &times.accept)], self.write_queue().waits()].concat();
        let mut parts = vec![
            Part::new(self.memory(), vec![("get", &times.memory_get), ("set", &times.memory_set)]),
            Part::new(self.tags(), vec![("remove", &times.tag_removal)]),
            Part::new(self.write_queue(), queue_times),
        ];
        if self.backplane().is_on() {
            parts.push(Part::new(self.backplane(), vec![("apply", self.backplane().applying())]));
        }
        parts.extend(self.cold().map(|layer| Part::new(layer.as_ref(), Vec::new())));
        parts
    }

    /// One verdict on the node: the worst of its parts, but never worse than `Degraded`, because what memory holds is
    /// served whatever else is out. Its reason is that of the worst part; its message names every part that is not well.
    pub fn health(&self) -> Health {
        let parts: Vec<(&str, Health)> = self.parts().iter().map(|part| (part.name(), part.health())).collect();
        verdict(&parts)
    }

    /// The node as a whole. Each read is counted once, by what the client got: a value, which may be stale, or none.
    /// Operations, bytes and errors are the sum over all parts. Entries are those that `DBSIZE` tells, since a sum would
    /// count copies; times are not added up.
    pub fn stats(&self) -> Stats {
        let parts: Vec<Stats> = self.parts().iter().map(Part::stats).collect();
        let mut sum = Stats {
            hits: self.answers.hits(),
            misses: self.answers.misses(),
            stale_hits: self.answers.count(Answer::Stale),
            entries: Some(self.entries()),
            bytes: Some(parts.iter().filter_map(|part| part.bytes).sum()),
            extras: vec![
                ("promotions", self.promotions()),
                ("promotionsRefused", self.promotions_refused()),
                ("servedStale", self.stale_hits()),
            ],
            ..Stats::default()
        };
        for part in &parts {
            sum.operations += part.operations;
            for &(kind, count) in &part.errors {
                match sum.errors.iter_mut().find(|(known, _)| *known == kind) {
                    Some((_, total)) => *total += count,
                    None => sum.errors.push((kind, count)),
                }
            }
        }
        sum
    }

    /// How the reads of clients ended. Whoever answers one notes it here.
    pub fn answers(&self) -> &Arc<Answers> {
        &self.answers
    }

    /// Values that were brought from a cold layer into memory.
    pub fn promotions(&self) -> u64 {
        self.stores.promotions()
    }

    /// Values from a cold layer that were kept out of memory because their key was written meanwhile.
    pub fn promotions_refused(&self) -> u64 {
        self.stores.promotions_refused()
    }

    /// Reads answered with a value past its expiry, within its stale life.
    pub fn stale_hits(&self) -> u64 {
        self.refreshes.stale_hits()
    }

    /// An estimate of the number of entries, for `DBSIZE`.
    pub fn entries(&self) -> u64 {
        self.stores.entries()
    }
}

/// The verdict on a node with these parts.
fn verdict(parts: &[(&str, Health)]) -> Health {
    let is_ill = |health: &Health| health.state >= HealthState::Degraded;
    let ill: Vec<&(&str, Health)> = parts.iter().filter(|(_, health)| is_ill(health)).collect();
    // Of equally ill ones the first, which is the nearest to clients.
    let worst = ill.iter().rev().max_by_key(|(_, health)| health.state);
    let Some((_, worst)) = worst else {
        let since = parts.iter().map(|(_, health)| health.since).max().unwrap_or(UnixMillis(0));
        let Verdict { state, reason, message } = Verdict::healthy();
        return Health { state, reason, message, since };
    };
    let told: Vec<String> = ill.iter().map(|(name, health)| format!("{name}: {}", health.message)).collect();
    Health {
        state: HealthState::Degraded,
        reason: worst.reason,
        message: told.join("; "),
        since: ill.iter().map(|(_, health)| health.since).min().unwrap_or(UnixMillis(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &'static str, state: HealthState, reason: &'static str, since: u64) -> (&'static str, Health) {
        (name, Health { state, reason, message: format!("{reason} it is"), since: UnixMillis(since) })
    }

    #[test]
    fn a_node_is_healthy_since_the_last_of_its_parts_is() {
        let well = |name, since| part(name, HealthState::Healthy, "AsExpected", since);
        let health = verdict(&[well("memory", 1), well("redis", 7), well("disk", 3)]);
        let told = (health.state, health.reason, health.message.as_str(), health.since);
        assert_eq!(told, (HealthState::Healthy, "AsExpected", "", UnixMillis(7)));
    }

    #[test]
    fn a_node_whose_redis_and_disk_are_out_is_degraded_because_memory_serves() {
        let health = verdict(&[
            part("memory", HealthState::Healthy, "AsExpected", 1),
            part("writeQueue", HealthState::Degraded, "FlushFails", 9),
            part("backplane", HealthState::Unavailable, "Fenced", 8),
            part("redis", HealthState::Unavailable, "Unreachable", 5),
            part("disk", HealthState::Unavailable, "NotOpen", 6),
        ]);
        assert_eq!((health.state, health.reason, health.since), (HealthState::Degraded, "Fenced", UnixMillis(5)));
        let message =
            "writeQueue: FlushFails it is; backplane: Fenced it is; redis: Unreachable it is; disk: NotOpen it is";
        assert_eq!(health.message, message);
    }

    #[test]
    fn a_layer_that_is_switched_off_makes_nothing_worse() {
        let parts =
            [part("memory", HealthState::Healthy, "AsExpected", 1), part("disk", HealthState::Disabled, "Off", 1)];
        assert_eq!(verdict(&parts).state, HealthState::Healthy);
    }
}
