//! Says of every read of a history whether the fleet's promises allow it. Knows nothing of how the fleet keeps them.
//!
//! A value is *gone* for a read if some change that is surely later than the value's write was acknowledged early
//! enough before the read was sent: on the same node at any time before; on another node by the bound, or before the
//! reading node's process was made, since a node that is ready has caught up. Where a node that is cut off goes on to serve
//! what it held, the bound is longer by that time, and is all that holds for a process that was made meanwhile. "Surely
//! later" is: sent after the write had its place in the order that all nodes share. Where an answer is not known, both
//! ways are allowed.
//!
//! Changes lie in lists, one for each key, tag and node, sorted by when they take effect, with the latest moment of
//! sending so far beside each: one binary search a list answers whether any of them makes a value gone.

use std::collections::HashMap;

use crate::{
    clock::Nanos,
    history::{FOREIGN, History, NEVER, NodeId, Outcome, Read, Removal, Target, Write},
};

/// What is held against the history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Law {
    /// How long after the acknowledgement of a change another node may serve what was there before.
    pub(crate) bound: Nanos,
    /// How much longer a node that is cut off may serve it, also if it is started again meanwhile; zero if such a node
    /// serves nothing.
    pub(crate) stale: Nanos,
    /// Whether an acknowledged write has its place in the order of all nodes. If not, it has it with the next flush.
    pub(crate) write_through: bool,
    /// How much later than its expiry a value may be served. [`NEVER`], while clocks are put wrong, allows any time.
    pub(crate) late: Nanos,
}

/// A promise, by its number in the fleet's list, that a read broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The value was never stored under this key, or is read before it was sent.
    Foreign,
    /// P1: it had expired.
    Expired,
    /// P2: the same node had acknowledged that it is gone.
    SameNode,
    /// P3 and P4: another node had acknowledged it, longer ago than the bound.
    Fleet,
    /// P5: another node had acknowledged it before this node's process began.
    Ready,
    /// A receipt had said that every node has carried it out.
    Told,
    /// P6: one of the above, and what was acknowledged is a removal by tag.
    Tag,
}

/// The change that makes a value gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Removal(Removal),
    Overwrite(Write),
}

/// One read that is not allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    pub(crate) read: Read,
    pub(crate) change: Option<Change>,
}

/// What the judge found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Reads that were judged, those without a value included.
    pub(crate) checked: u64,
    /// In the order of the reads.
    pub(crate) violations: Vec<Violation>,
}

/// Where a change stands in the history: its kind and its place among them.
#[derive(Clone, Copy, Debug)]
enum Source {
    Removal(u32),
    Write(u32),
}

/// One change in a list, and the latest-sent one up to it.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// When it takes effect.
    effect: Nanos,
    /// The latest moment of sending, of this one and all before it in the list.
    sent: Nanos,
    /// Which one that was.
    source: Source,
}

/// Changes that one node acknowledged and that concern the same values.
#[derive(Debug, Default)]
struct Line {
    /// By when this node itself must know.
    own: Vec<Mark>,
    /// From when on the bound of the others counts.
    fleet: Vec<Mark>,
    /// From when on a receipt says that all others know.
    told: Vec<Mark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Concern {
    Key(u32),
    Tag(u32),
    All,
}

struct Judge<'a> {
    history: &'a History,
    law: Law,
    lines: HashMap<(Concern, NodeId), Line>,
    nodes: NodeId,
    /// For each node from when on each of its processes answered alone, in order, and when it was made.
    spawned: Vec<Vec<(Nanos, Nanos)>>,
    /// For each node the flushes, by when they were sent, with the earliest answer of each and all later ones.
    flushed: Vec<Vec<(Nanos, Nanos)>>,
    /// The same of those among them that are receipts.
    told: Vec<Vec<(Nanos, Nanos)>>,
}

/// Judges every read. Takes n log n for n operations.
pub(crate) fn judge(history: &History, law: Law) -> Verdict {
    let judge = Judge::prepare(history, law);
    let violations = history.reads.iter().filter_map(|read| judge.broken(read)).collect();
    Verdict { checked: history.answered(), violations }
}

// === impl Judge ===

impl<'a> Judge<'a> {
    fn prepare(history: &'a History, law: Law) -> Self {
        let of_writes = history.writes.iter().map(|write| write.node);
        let of_removals = history.removals.iter().map(|removal| removal.node);
        let of_reads = history.reads.iter().map(|read| read.node);
        let nodes = of_writes.chain(of_removals).chain(of_reads).max().map_or(0, |highest| highest + 1);
        let mut judge = Self {
            history,
            law,
            lines: HashMap::new(),
            nodes,
            spawned: vec![Vec::new(); usize::from(nodes)],
            flushed: vec![Vec::new(); usize::from(nodes)],
            told: vec![Vec::new(); usize::from(nodes)],
        };
        judge.place_nodes();
        judge.place_changes();
        judge
    }

    fn place_nodes(&mut self) {
        for start in self.history.starts.iter().filter(|start| start.node < self.nodes) {
            self.spawned[usize::from(start.node)].push((start.alone, start.spawned));
        }
        self.spawned.iter_mut().for_each(|moments| moments.sort_unstable());
        for flush in self.history.flushes.iter().filter(|flush| flush.node < self.nodes) {
            let of = usize::from(flush.node);
            self.flushed[of].push((flush.invoked, flush.returned));
            if flush.everywhere {
                self.told[of].push((flush.invoked, flush.returned));
            }
        }
        for flushes in self.flushed.iter_mut().chain(&mut self.told) {
            flushes.sort_unstable();
            let mut earliest = NEVER;
            for flush in flushes.iter_mut().rev() {
                earliest = earliest.min(flush.1);
                flush.1 = earliest;
            }
        }
    }

    fn place_changes(&mut self) {
        for (index, removal) in self.history.removals.iter().enumerate() {
            if removal.outcome == Outcome::Unknown {
                continue;
            }
            let fleet = if removal.outcome == Outcome::Ok { removal.returned } else { NEVER };
            let source = Source::Removal(index as u32);
            let told = next(&self.told[usize::from(removal.node)], removal.returned);
            let line = self.lines.entry((concern(removal.target), removal.node)).or_default();
            line.add(removal.invoked, [removal.returned, fleet, told], source);
        }
        for write in self.history.writes.iter().filter(|write| write.outcome == Outcome::Ok) {
            let fleet = self.ordered(write);
            let told = next(&self.told[usize::from(write.node)], write.returned);
            let line = self.lines.entry((Concern::Key(write.key), write.node)).or_default();
            line.add(write.invoked, [write.returned, fleet, told], Source::Write(write.id));
        }
        self.lines.values_mut().for_each(Line::sort);
    }

    /// When the write surely had its place in the order of all nodes.
    fn ordered(&self, write: &Write) -> Nanos {
        if self.law.write_through || write.outcome != Outcome::Ok {
            return write.returned;
        }
        next(&self.flushed[usize::from(write.node)], write.returned)
    }

    /// The promise that the read breaks, if any.
    fn broken(&self, read: &Read) -> Option<Violation> {
        let violation = |rule, change| Some(Violation { rule, read: *read, change });
        let Some(write) = self.history.write(read.write).filter(|write| write.key == read.key) else {
            return violation(Rule::Foreign, None);
        };
        if read.write == FOREIGN || read.returned < write.invoked {
            return violation(Rule::Foreign, None);
        }
        if write.life > 0 && write.outcome == Outcome::Ok && self.law.late != NEVER {
            let end = write.returned.saturating_add(write.life).saturating_add(self.law.late);
            if read.invoked > end {
                return violation(Rule::Expired, None);
            }
        }
        if write.outcome != Outcome::Ok {
            return None;
        }
        let concerns = [Some(Concern::Key(write.key)), write.tag.map(Concern::Tag), Some(Concern::All)];
        for concern in concerns.into_iter().flatten() {
            for node in 0..self.nodes {
                if let Some((rule, source)) = self.gone(read, write, (concern, node)) {
                    let rule = if matches!(concern, Concern::Tag(_)) { Rule::Tag } else { rule };
                    return violation(rule, Some(self.change(source)));
                }
            }
        }
        None
    }

    /// Whether a change of this list makes the write's value gone for the read.
    fn gone(&self, read: &Read, write: &Write, list: (Concern, NodeId)) -> Option<(Rule, Source)> {
        let line = self.lines.get(&list)?;
        let node = list.1;
        // What one node acknowledged one after the other is in this order everywhere.
        let placed = if node == write.node { write.returned } else { self.ordered(write) };
        let later = |mark: Option<&Mark>| mark.filter(|mark| mark.sent > placed).map(|mark| mark.source);
        if node == read.node {
            return Some((Rule::SameNode, later(before(&line.own, read.invoked))?));
        }
        if let Some(source) = later(before(&line.told, read.invoked)) {
            return Some((Rule::Told, source));
        }
        let bound = read.invoked.saturating_sub(self.law.bound.saturating_add(self.law.stale));
        let spawned = self.spawned(read);
        // One that is started while it is cut off serves what it held without having caught up.
        let caught_up = if self.law.stale == 0 { spawned } else { spawned.min(bound) };
        if let Some(source) = later(before(&line.fleet, caught_up)) {
            return Some((Rule::Ready, source));
        }
        Some((Rule::Fleet, later(before(&line.fleet, bound))?))
    }

    /// When the process that answered the read was made, at the earliest.
    fn spawned(&self, read: &Read) -> Nanos {
        let moments = &self.spawned[usize::from(read.node)];
        let count = moments.partition_point(|(alone, _)| *alone <= read.invoked);
        count.checked_sub(1).map_or(0, |last| moments[last].1)
    }

    fn change(&self, source: Source) -> Change {
        match source {
            Source::Removal(index) => Change::Removal(self.history.removals[index as usize]),
            Source::Write(id) => Change::Overwrite(self.history.writes[id as usize]),
        }
    }
}

/// When the first of these was answered that were sent after the moment.
fn next(flushes: &[(Nanos, Nanos)], moment: Nanos) -> Nanos {
    let next = flushes.partition_point(|(invoked, _)| *invoked < moment);
    flushes.get(next).map_or(NEVER, |(_, returned)| *returned)
}

fn concern(target: Target) -> Concern {
    match target {
        Target::Key(key) => Concern::Key(key),
        Target::Tag(tag) => Concern::Tag(tag),
        Target::All => Concern::All,
    }
}

/// The last mark whose effect is before the moment.
fn before(marks: &[Mark], moment: Nanos) -> Option<&Mark> {
    let count = marks.partition_point(|mark| mark.effect < moment);
    count.checked_sub(1).map(|last| &marks[last])
}

// === impl Line ===

impl Line {
    /// `effects` are when the node itself must know, from when on the bound of the others counts, and from when on they
    /// must know at once.
    fn add(&mut self, sent: Nanos, effects: [Nanos; 3], source: Source) {
        for (marks, effect) in [&mut self.own, &mut self.fleet, &mut self.told].into_iter().zip(effects) {
            if effect != NEVER {
                marks.push(Mark { effect, sent, source });
            }
        }
    }

    fn sort(&mut self) {
        for marks in [&mut self.own, &mut self.fleet, &mut self.told] {
            marks.sort_unstable_by_key(|mark| mark.effect);
            for index in 1..marks.len() {
                let previous = marks[index - 1];
                if previous.sent > marks[index].sent {
                    let effect = marks[index].effect;
                    marks[index] = Mark { effect, ..previous };
                }
            }
        }
    }
}

// === impl Rule ===

impl Rule {
    /// The promise in words.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Foreign => "a read finds only what was stored under its key",
            Self::Expired => "P1: no value is served past its expiry",
            Self::SameNode => "P2: what a node has acknowledged as gone, it never serves again",
            Self::Fleet => "P3: what one node has acknowledged as gone, no other serves after the bound",
            Self::Ready => "P5: a node that serves has caught up with what was acknowledged before it started",
            Self::Told => "a receipt that says that all have carried it out is true at once",
            Self::Tag => "P6: a removal by tag concerns every entry that carries the tag",
        }
    }
}

#[cfg(test)]
mod tests;
