//! Receipts: which nodes have carried out everything that this one has accepted before.
//!
//! Whoever asks waits first until Redis has all changes of this node, then adds a record to the log that has every node
//! say how far it has come, and looks until all have come to that record. A node that has said nothing for longer than it
//! may trust what it holds is not waited for: it is gone, or fenced, and serves nothing that was removed, except what
//! [`crate::backplane::BackplaneOptions::serve_stale_for`] allows.
//!
//! Redis may have lost the list of the nodes, or may have got back an old one. So a list counts only while the node that
//! asks is itself in it and follows the same log, and for as long as a node could go on without a word after the list was
//! begun, a node that is not in it, or that has an old entry, may still be there.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Confirmed, Coordinator, Traced, WriteError};
use crate::{
    entry::Position,
    layer::log::{Census, Member},
};

/// By how much longer a node may trust what it holds than after what it said last: it says so twice a second, and each
/// time may get through late.
const SAID_LATE: Duration = Duration::from_secs(2);

/// Pauses between two looks at what the nodes have said.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Who has carried out everything up to a place in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The place; [`Position::NONE`] if there is no log, and no other node.
    pub position: Position,
    /// The nodes that have.
    pub applied: Vec<String>,
    /// The nodes that have not yet.
    pub behind: Vec<String>,
    /// The nodes that have said nothing for so long that they are gone or fenced.
    pub silent: Vec<String>,
}

/// Why the nodes that are known may not be all.
const NOT_WHOLE: &str = "redis has lost what the nodes said, or could not note it, and one that has not spoken again may \
                         still serve";

/// The pauses between looks, which grow.
struct Pauses {
    deadline: Instant,
    next: Duration,
}

/// What is known about nodes that are not in the list, or have said nothing for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Roll {
    /// They are gone or fenced, those too that have not been heard of since then.
    Whole { now_ms: u64, heard_since_ms: u64 },
    /// Nothing.
    Uncertain,
}

// === impl Coordinator ===

impl Coordinator {
    /// How long it takes at most until a node counts as silent that does not say how far it has come.
    pub fn silent_after(&self) -> Duration {
        let options = self.stores.backplane.options();
        options.map_or(Duration::ZERO, |options| options.max_staleness + SAID_LATE)
    }

    /// Waits until every node has carried out everything that `node`, this one, has accepted so far, or until the deadline;
    /// says who has. None if Redis can not be told of some of it now: it is queued.
    ///
    /// # Errors
    /// [`WriteError::Unflushed`] if Redis was not told before the deadline. [`WriteError::Unasked`] if the nodes could
    /// not be asked, or if it is not known which there are.
    pub async fn applied(&self, op: impl Into<Traced<'_>>, node: &str) -> Result<Option<Applied>, WriteError> {
        let op = &mut op.into();
        let cx = op.cx;
        let _turn = self.turn_to_wait(cx).await?;
        if self.flush_now(op).await? == Confirmed::Queued {
            return Ok(None);
        }
        let Some(followers) = &self.followers else {
            return Ok(Some(Applied { applied: vec![node.to_owned()], ..Applied::default() }));
        };
        let mut pauses = Pauses { deadline: cx.deadline, next: FIRST_PAUSE };
        // A Redis that was just restarted or emptied takes no question before the nodes know what it has.
        let position = loop {
            let asked = followers.ask(cx).await;
            match (asked, pauses.next(self.clock.monotonic())) {
                (Ok(position), _) => break position,
                (Err(error), None) => return Err(WriteError::Unasked(error.message)),
                (Err(_), Some(pause)) => sleep(pause).await,
            }
        };
        loop {
            let said = followers.census(cx).await;
            let pause = pauses.next(self.clock.monotonic());
            match said {
                Ok(census) => {
                    let roll = Roll::of(&census, self.silent_after());
                    let applied = Applied::of(position, &census, roll, node);
                    let is_known = roll.is_whole() || !applied.behind.is_empty();
                    if is_known && (pause.is_none() || applied.behind.is_empty()) {
                        return Ok(Some(applied));
                    }
                    if pause.is_none() {
                        return Err(WriteError::Unasked(NOT_WHOLE.to_owned()));
                    }
                }
                Err(error) if pause.is_none() => return Err(WriteError::Unasked(error.message)),
                Err(_) => {}
            }
            sleep(pause.unwrap_or_default()).await;
        }
    }
}

// === impl Pauses ===

impl Pauses {
    /// How long to wait before the next look; none if the deadline is earlier.
    fn next(&mut self, now: Instant) -> Option<Duration> {
        let pause = self.next;
        self.next = PAUSE_MAX.min(pause * 2);
        Some(pause).filter(|pause| now + *pause < self.deadline)
    }
}

// === impl Applied ===

impl Applied {
    /// How many nodes take part: all but the silent ones.
    pub fn nodes(&self) -> usize {
        self.applied.len() + self.behind.len()
    }

    /// What the nodes have said, against a place in the log. The node that asks is one of them also if the list lacks it.
    fn of(position: Position, census: &Census, roll: Roll, node: &str) -> Self {
        let mut all = Self { position, ..Self::default() };
        for member in &census.members {
            let names = if member.position >= position {
                &mut all.applied
            } else if roll.is_silent(member) && member.name != node {
                &mut all.silent
            } else {
                &mut all.behind
            };
            names.push(member.name.clone());
        }
        if !census.members.iter().any(|member| member.name == node) {
            all.behind.push(node.to_owned());
        }
        [&mut all.applied, &mut all.behind, &mut all.silent].into_iter().for_each(|names| names.sort());
        all
    }
}

// === impl Roll ===

impl Roll {
    fn of(census: &Census, silent_after: Duration) -> Self {
        let heard_since_ms = census.now_ms.saturating_sub(millis(silent_after));
        let whole_since_ms = census.whole_since_ms.filter(|_| census.is_settled);
        if whole_since_ms.is_some_and(|since_ms| since_ms <= heard_since_ms) {
            Self::Whole { now_ms: census.now_ms, heard_since_ms }
        } else {
            Self::Uncertain
        }
    }

    const fn is_whole(self) -> bool {
        matches!(self, Self::Whole { .. })
    }

    /// Whether a node is gone, or fenced: it may trust itself for longer than the one that asks.
    fn is_silent(self, member: &Member) -> bool {
        let fenced_ms = member.seen_ms.saturating_add(millis(member.trusts_for + SAID_LATE));
        matches!(self, Self::Whole { now_ms, heard_since_ms } if member.seen_ms < heard_since_ms && fenced_ms < now_ms)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT_AFTER: Duration = Duration::from_secs(5);

    fn at(sequence: u64) -> Position {
        Position::from_parts(1_800_000_000_000, sequence)
    }

    fn member(name: &str, seen_ms: u64, position: Position) -> Member {
        let (name, history, trusts_for) = (name.to_owned(), "h".to_owned(), SILENT_AFTER - SAID_LATE);
        Member { name, seen_ms, history, position, trusts_for }
    }

    fn census(whole_since_ms: Option<u64>) -> Census {
        let members = vec![
            member("late", 4999, at(9)),
            member("there", 9000, at(10)),
            member("past", 100, at(11)),
            member("here", 9000, at(10)),
            member("slow", 5000, at(9)),
        ];
        Census { now_ms: 10_000, is_settled: true, whole_since_ms, members }
    }

    fn applied(census: &Census, node: &str) -> Applied {
        Applied::of(at(10), census, Roll::of(census, SILENT_AFTER), node)
    }

    #[test]
    fn a_node_is_waited_for_until_it_has_come_so_far_or_can_not_trust_what_it_holds_any_more() {
        let applied = applied(&census(Some(5000)), "here");
        assert_eq!(applied.applied, ["here", "past", "there"]);
        assert_eq!((applied.behind, applied.silent), (vec!["slow".to_owned()], vec!["late".to_owned()]));
    }

    #[test]
    fn a_node_that_trusts_itself_for_longer_is_waited_for_longer() {
        let mut census = census(Some(0));
        census.members[0].trusts_for = Duration::from_secs(3600);
        assert_eq!(applied(&census, "here").behind, ["late", "slow"]);
    }

    #[test]
    fn nodes_are_those_that_are_not_silent() {
        let applied = applied(&census(Some(5000)), "here");
        assert_eq!((applied.nodes(), applied.position), (4, at(10)));
    }

    #[test]
    fn in_a_list_that_was_begun_a_moment_ago_nobody_is_silent() {
        for begun in [census(Some(5001)), census(None), Census { is_settled: false, ..census(Some(0)) }] {
            assert_eq!(Roll::of(&begun, SILENT_AFTER), Roll::Uncertain);
            let applied = applied(&begun, "here");
            assert_eq!((applied.behind, applied.silent), (vec!["late".to_owned(), "slow".to_owned()], vec![]));
        }
    }

    #[test]
    fn the_node_that_asks_is_behind_until_it_has_said_otherwise_itself() {
        assert_eq!(applied(&census(Some(0)), "late").behind, ["late", "slow"]);
        assert_eq!(applied(&census(Some(0)), "new").behind, ["new", "slow"]);
        let empty = Census { members: Vec::new(), ..census(Some(0)) };
        assert_eq!(applied(&empty, "new").behind, ["new"]);
    }
}
