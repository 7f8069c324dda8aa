//! Each promise with a history that keeps it and one, as near to it as can be, that breaks it.

use super::*;
use crate::history::{Flush, Start};

const SECOND: Nanos = 1_000_000_000;
const MS: Nanos = 1_000_000;
/// The bound of these histories.
const BOUND: Nanos = 3500 * MS;
/// What is held against them, if nothing else is said.
const LAW: Law = Law { bound: BOUND, stale: 0, write_through: true, late: 20 * MS };
/// The same of nodes that serve what they held for 5 s while they are cut off.
const SERVES_STALE: Law = Law { stale: 5 * SECOND, ..LAW };

/// A history told in milliseconds, of key 0 and tag 0.
#[derive(Default)]
struct Told(History);

impl Told {
    fn wrote(mut self, node: NodeId, at: Nanos) -> Self {
        self.push(node, at, Outcome::Ok);
        self
    }

    fn wrote_for(mut self, node: NodeId, at: Nanos, life: Nanos) -> Self {
        self.push(node, at, Outcome::Ok).life = life * MS;
        self
    }

    fn wrote_tagged(mut self, node: NodeId, at: Nanos) -> Self {
        self.push(node, at, Outcome::Ok).tag = Some(0);
        self
    }

    fn may_have_written(mut self, node: NodeId, at: Nanos) -> Self {
        self.push(node, at, Outcome::Unknown).returned = NEVER;
        self
    }

    /// Takes 2 ms from `at` on, as every change here.
    fn push(&mut self, node: NodeId, at: Nanos, outcome: Outcome) -> &mut Write {
        let id = self.0.writes.len() as u32;
        let (invoked, returned) = (at * MS, (at + 2) * MS);
        self.0.writes.push(Write { id, key: 0, tag: None, node, outcome, life: 0, invoked, returned });
        self.0.writes.last_mut().unwrap()
    }

    fn removed(self, node: NodeId, at: Nanos) -> Self {
        self.removal(Target::Key(0), node, at, Outcome::Ok)
    }

    fn removal(mut self, target: Target, node: NodeId, at: Nanos, outcome: Outcome) -> Self {
        self.0.removals.push(Removal { target, node, outcome, invoked: at * MS, returned: (at + 2) * MS });
        self
    }

    fn started(mut self, node: NodeId, at: Nanos) -> Self {
        self.0.starts.push(Start { node, spawned: at * MS, alone: at * MS });
        self
    }

    /// Made at `at`, while the process before it still answers until `alone`.
    fn started_beside(mut self, node: NodeId, at: Nanos, alone: Nanos) -> Self {
        self.0.starts.push(Start { node, spawned: at * MS, alone: alone * MS });
        self
    }

    fn flushed(mut self, node: NodeId, at: Nanos) -> Self {
        self.0.flushes.push(Flush { node, invoked: at * MS, returned: (at + 2) * MS, everywhere: false });
        self
    }

    fn receipt(mut self, node: NodeId, at: Nanos) -> Self {
        self.0.flushes.push(Flush { node, invoked: at * MS, returned: (at + 2) * MS, everywhere: true });
        self
    }

    /// Finds the value of this write, in 1 ms from `at` on.
    fn read(mut self, node: NodeId, at: Nanos, write: u32) -> Self {
        self.0.reads.push(Read { key: 0, write, node, invoked: at * MS, returned: (at + 1) * MS });
        self
    }

    fn broken(&self) -> Vec<Rule> {
        self.broken_under(LAW)
    }

    fn broken_under(&self, law: Law) -> Vec<Rule> {
        judge(&self.0, law).violations.iter().map(|violation| violation.rule).collect()
    }
}

fn told() -> Told {
    Told::default()
}

#[test]
fn value_is_read_anywhere_while_nothing_happens_to_it() {
    assert_eq!(told().wrote(0, 10).read(0, 12, 0).read(1, 60_000, 0).broken(), []);
}

#[test]
fn value_of_another_key_or_of_nobody_is_foreign() {
    let mut other = told().wrote(0, 10).read(0, 20, 0);
    other.0.reads[0].key = 1;
    assert_eq!(other.broken(), [Rule::Foreign]);
    assert_eq!(told().wrote(0, 10).read(0, 20, FOREIGN).broken(), [Rule::Foreign]);
}

#[test]
fn value_is_not_read_before_it_was_sent() {
    assert_eq!(told().wrote(0, 10).read(0, 9, 0).broken(), [], "answered when it was sent");
    assert_eq!(told().wrote(0, 10).read(0, 8, 0).broken(), [Rule::Foreign]);
}

#[test]
fn value_is_not_read_past_its_life() {
    assert_eq!(told().wrote_for(0, 10, 1000).read(1, 1032, 0).broken(), [], "20 ms late");
    assert_eq!(told().wrote_for(0, 10, 1000).read(1, 1033, 0).broken(), [Rule::Expired]);
    let wrong_clocks = Law { late: NEVER, ..LAW };
    assert_eq!(told().wrote_for(0, 10, 1000).read(1, 1033, 0).broken_under(wrong_clocks), []);
}

#[test]
fn removed_value_is_not_read_on_the_same_node_once_that_is_acknowledged() {
    let removed = || told().wrote(0, 10).removed(0, 20);
    assert_eq!(removed().read(0, 22, 0).broken(), [], "sent in the moment of the answer");
    assert_eq!(removed().read(0, 23, 0).broken(), [Rule::SameNode]);
    // Also by a later process on the same data.
    assert_eq!(removed().started(0, 30).read(0, 40, 0).broken(), [Rule::SameNode]);
}

#[test]
fn overwritten_value_is_not_read_on_the_same_node_once_that_is_acknowledged() {
    let overwritten = || told().wrote(0, 10).wrote(0, 20);
    assert_eq!(overwritten().read(0, 22, 0).read(0, 30, 1).broken(), []);
    assert_eq!(overwritten().read(0, 23, 0).broken(), [Rule::SameNode]);
}

#[test]
fn change_that_was_sent_before_the_value_was_acknowledged_may_have_come_first() {
    assert_eq!(told().wrote(0, 10).removed(0, 12).read(0, 50_000, 0).broken(), []);
    assert_eq!(told().wrote(0, 10).removed(0, 13).read(0, 50_000, 0).broken(), [Rule::SameNode]);
}

#[test]
fn removed_value_is_read_on_other_nodes_within_the_bound_only() {
    let removed = || told().wrote(0, 10).removed(0, 20);
    assert_eq!(removed().read(1, 22 + 3500, 0).broken(), []);
    assert_eq!(removed().read(1, 23 + 3500, 0).broken(), [Rule::Fleet]);
}

#[test]
fn overwritten_value_is_read_on_other_nodes_within_the_bound_only() {
    let overwritten = || told().wrote(0, 10).wrote(2, 20);
    assert_eq!(overwritten().read(1, 22 + 3500, 0).read(1, 10_000, 1).broken(), []);
    assert_eq!(overwritten().read(1, 23 + 3500, 0).broken(), [Rule::Fleet]);
}

#[test]
fn node_that_starts_after_a_removal_knows_of_it_at_once() {
    let removed = || told().wrote(0, 10).removed(0, 20);
    assert_eq!(removed().started(1, 22).read(1, 200, 0).broken(), [], "made in the moment of the answer");
    assert_eq!(removed().started(1, 23).read(1, 200, 0).broken(), [Rule::Ready]);
    assert_eq!(removed().started(1, 5).started(1, 500).read(1, 200, 0).broken(), [], "the process before");
    let beside = || removed().started_beside(1, 23, 300);
    assert_eq!(beside().read(1, 299, 0).broken(), [], "the process before may have answered");
    assert_eq!(beside().read(1, 300, 0).broken(), [Rule::Ready]);
}

#[test]
fn value_that_a_node_serves_while_it_is_cut_off_has_that_much_longer_and_no_time_where_it_serves_none() {
    let removed = || told().wrote(0, 10).removed(0, 20);
    assert_eq!(removed().read(1, 22 + 8500, 0).broken_under(SERVES_STALE), []);
    assert_eq!(removed().read(1, 23 + 8500, 0).broken_under(SERVES_STALE), [Rule::Fleet]);
    assert_eq!(removed().read(1, 23 + 3500, 0).broken(), [Rule::Fleet]);
    let tagged = || told().wrote_tagged(0, 10).removal(Target::Tag(0), 0, 20, Outcome::Ok);
    assert_eq!(tagged().read(1, 22 + 8500, 0).broken_under(SERVES_STALE), []);
    assert_eq!(tagged().read(1, 23 + 8500, 0).broken_under(SERVES_STALE), [Rule::Tag]);
}

#[test]
fn node_that_is_started_while_it_is_cut_off_serves_no_longer_than_if_it_had_gone_on() {
    let started = || told().wrote(0, 10).removed(0, 20).started(1, 23);
    assert_eq!(started().read(1, 200, 0).broken_under(SERVES_STALE), []);
    assert_eq!(started().read(1, 22 + 8500, 0).broken_under(SERVES_STALE), []);
    assert_eq!(started().read(1, 23 + 8500, 0).broken_under(SERVES_STALE), [Rule::Ready]);
    assert_eq!(started().read(1, 200, 0).broken(), [Rule::Ready], "it serves nothing before it has caught up");
    // Made long after: the bound is what counts.
    let late = told().wrote(0, 10).removed(0, 20).started(1, 20_000).read(1, 20_100, 0);
    assert_eq!(late.broken_under(SERVES_STALE), [Rule::Ready]);
}

#[test]
fn values_that_nodes_serve_while_they_are_cut_off_excuse_no_other_promise() {
    let removed = || told().wrote(0, 10).removed(0, 20);
    assert_eq!(removed().read(0, 23, 0).broken_under(SERVES_STALE), [Rule::SameNode]);
    assert_eq!(removed().receipt(0, 30).read(1, 33, 0).broken_under(SERVES_STALE), [Rule::Told]);
    assert_eq!(told().wrote_for(0, 10, 1000).read(1, 1033, 0).broken_under(SERVES_STALE), [Rule::Expired]);
    assert_eq!(told().wrote(0, 10).read(0, 20, FOREIGN).broken_under(SERVES_STALE), [Rule::Foreign]);
}

#[test]
fn removal_by_tag_concerns_what_carries_the_tag() {
    let tagged = || told().wrote_tagged(0, 10).removal(Target::Tag(0), 0, 20, Outcome::Ok);
    assert_eq!(tagged().read(1, 3000, 0).broken(), []);
    assert_eq!(tagged().read(1, 4000, 0).broken(), [Rule::Tag]);
    assert_eq!(told().wrote(0, 10).removal(Target::Tag(0), 0, 20, Outcome::Ok).read(1, 4000, 0).broken(), []);
}

#[test]
fn clear_concerns_everything_written_before() {
    let cleared = || told().wrote(0, 10).removal(Target::All, 1, 20, Outcome::Ok);
    assert_eq!(cleared().wrote(2, 30).read(0, 4000, 1).broken(), []);
    assert_eq!(cleared().read(0, 4000, 0).broken(), [Rule::Fleet]);
    assert_eq!(cleared().read(1, 4000, 0).broken(), [Rule::SameNode]);
}

#[test]
fn queued_removal_holds_on_its_own_node_only() {
    let queued = || told().wrote(0, 10).removal(Target::Key(0), 0, 20, Outcome::Queued);
    assert_eq!(queued().read(1, 10_000, 0).broken(), []);
    assert_eq!(queued().read(0, 10_000, 0).broken(), [Rule::SameNode]);
}

#[test]
fn change_of_unknown_outcome_forbids_nothing_and_may_come_at_any_time() {
    let unknown = told().wrote(0, 10).removal(Target::Key(0), 0, 20, Outcome::Unknown);
    assert_eq!(unknown.read(0, 10_000, 0).broken(), []);
    assert_eq!(told().wrote(0, 10).may_have_written(0, 20).read(0, 30, 0).broken(), []);
    assert_eq!(told().may_have_written(0, 10).removed(0, 20).read(0, 10_000, 0).broken(), []);
}

#[test]
fn queued_write_has_its_place_for_others_only_once_it_is_flushed() {
    let behind = Law { write_through: false, late: 0, ..LAW };
    let removed = |told: Told| told.removed(1, 50).read(2, 10_000, 0).broken_under(behind);
    assert_eq!(removed(told().wrote(0, 10)), [], "may have left the queue after the removal");
    assert_eq!(removed(told().wrote(0, 10).flushed(0, 11)), [], "flushed before it was acknowledged");
    assert_eq!(removed(told().wrote(0, 10).flushed(0, 60)), []);
    assert_eq!(removed(told().wrote(0, 10).flushed(0, 40)), [Rule::Fleet]);
    // On one node the order is that of the acknowledgements, flushed or not.
    assert_eq!(told().wrote(0, 10).removed(0, 20).read(2, 10_000, 0).broken_under(behind), [Rule::Fleet]);
}

#[test]
fn queued_overwrite_reaches_the_others_only_once_it_is_flushed() {
    let behind = Law { write_through: false, late: 0, ..LAW };
    let overwritten = || told().wrote(0, 10).flushed(0, 13).wrote(1, 20);
    assert_eq!(overwritten().read(2, 10_000, 0).broken_under(behind), []);
    assert_eq!(overwritten().read(1, 10_000, 0).broken_under(behind), [Rule::SameNode]);
    assert_eq!(overwritten().flushed(1, 30).read(2, 3500, 0).broken_under(behind), []);
    assert_eq!(overwritten().flushed(1, 30).read(2, 3533, 0).broken_under(behind), [Rule::Fleet]);
}

#[test]
fn early_acknowledgement_of_a_late_removal_is_found_behind_a_slow_one() {
    // The first is sent first and answered last; the second is what makes the value gone.
    let mut told = told().removal(Target::Key(0), 0, 5, Outcome::Ok).wrote(0, 10).removed(0, 20).read(0, 100, 0);
    told.0.removals[0].returned = 90 * MS;
    assert_eq!(told.broken(), [Rule::SameNode]);
}

#[test]
fn violation_names_the_change_that_forbids_the_read() {
    let told = told().wrote(0, 10).removed(1, 20).removed(1, 5000).read(2, 9000, 0);
    let verdict = judge(&told.0, LAW);
    assert_eq!(verdict.violations[0].change, Some(Change::Removal(told.0.removals[1])));
    assert_eq!(verdict.checked, 1);
}

#[test]
fn a_million_reads_of_few_keys_are_judged_in_linear_memory() {
    let mut told = told();
    for at in 0..20_000 {
        told = if at % 2 == 0 { told.wrote(0, at * 10) } else { told.removed(1, at * 10) };
    }
    let last = told.0.writes.len() as u32;
    for read in 0..1_000_000_u64 {
        let at = (read % 200_000).max(3);
        // The newest write that was sent by then: never older than the bound allows.
        let write = u32::try_from(at / 20).unwrap().min(last - 1);
        told.0.reads.push(Read { key: 0, write, node: 2, invoked: at * MS, returned: (at + 1) * MS });
    }
    assert_eq!(told.broken(), []);
    assert!(told.0.reads.iter().all(|read| read.returned < 201 * SECOND));
}

#[test]
fn a_receipt_leaves_no_other_node_any_time() {
    let gone = || told().wrote(0, 10).removed(0, 20).receipt(0, 30);
    assert_eq!(gone().read(1, 32, 0).broken(), [], "sent when the receipt was answered");
    assert_eq!(gone().read(1, 33, 0).broken(), [Rule::Told]);
    assert_eq!(told().wrote(0, 10).removed(0, 20).flushed(0, 30).read(1, 33, 0).broken(), []);
}

#[test]
fn a_receipt_is_about_what_its_own_node_had_accepted_before() {
    assert_eq!(told().wrote(0, 10).removed(0, 20).receipt(1, 30).read(2, 40, 0).broken(), []);
    assert_eq!(told().wrote(0, 10).removed(0, 20).receipt(0, 21).read(1, 40, 0).broken(), [], "sent too early");
    let queued = told().wrote(0, 10).removal(Target::Key(0), 0, 20, Outcome::Queued).receipt(0, 30);
    assert_eq!(queued.read(1, 40, 0).broken(), [Rule::Told]);
}
