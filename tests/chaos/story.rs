//! A violation told so that a person can follow it: what happened to this key, in order, and what the network did.

use std::fmt::Write as _;

use crate::{
    clock::Nanos,
    history::{FOREIGN, History, NEVER, Outcome, Target, Write},
    judge::{Change, Violation},
    plan::{key, tag},
};

/// Longest story; from the middle of longer ones lines are left out.
const LINES_MAX: usize = 60;
/// How much earlier than the write, and later than the read, a story reaches.
const AROUND: Nanos = 1_000_000_000;

/// One line of a story and when it happened.
type Line = (Nanos, String);

/// The history of the key around the violation.
pub(crate) fn tell(history: &History, violation: &Violation) -> String {
    let read = violation.read;
    let mut out = format!("VIOLATION  {}\n", violation.rule.text());
    let name = key(read.key);
    let value = if read.write == FOREIGN { "what nobody stored".to_owned() } else { format!("w{}", read.write) };
    let _ = writeln!(out, "  node {} answered {value} for {name}, asked at {}", read.node, seconds(read.invoked));
    if let Some(change) = violation.change {
        let (told, returned) = match change {
            Change::Removal(removal) => (target_text(removal.target, removal.node), removal.returned),
            Change::Overwrite(write) => (write_text(&write), write.returned),
        };
        let late = read.invoked.saturating_sub(returned);
        let _ = writeln!(out, "  although {told}, acknowledged {} before", span(late));
    }
    let lines = lines(history, violation);
    let left_out = lines.len().saturating_sub(LINES_MAX);
    for (index, (at, text)) in lines.iter().enumerate() {
        if left_out > 0 && index == LINES_MAX / 2 {
            let _ = writeln!(out, "  … {left_out} lines …");
        }
        if left_out == 0 || index < LINES_MAX / 2 || index >= LINES_MAX / 2 + left_out {
            let _ = writeln!(out, "  {}  {text}", seconds(*at));
        }
    }
    out
}

fn lines(history: &History, violation: &Violation) -> Vec<Line> {
    let read = violation.read;
    let written = history.write(read.write).filter(|write| write.key == read.key);
    let from = written.map_or(read.invoked, |write| write.invoked).saturating_sub(AROUND);
    let within = |at: Nanos| (from..read.returned.saturating_add(AROUND)).contains(&at);
    let mut lines: Vec<Line> = Vec::new();
    for write in history.writes.iter().filter(|write| write.key == read.key && within(write.invoked)) {
        lines.push((
            write.invoked,
            format!("{} → {}", write_text(write), answer(write.outcome, write.invoked, write.returned)),
        ));
    }
    for removal in &history.removals {
        let concerned = written.map_or(removal.target == Target::Key(read.key), |write| removal.target.concerns(write));
        if concerned && within(removal.invoked) {
            let answer = answer(removal.outcome, removal.invoked, removal.returned);
            lines.push((removal.invoked, format!("{} → {answer}", target_text(removal.target, removal.node))));
        }
    }
    // Of many equal reads the first and the last that a node answered say enough.
    let mut previous = None;
    for other in history.reads.iter().filter(|other| other.key == read.key && within(other.invoked)) {
        let same = previous.replace((other.node, other.write)) == Some((other.node, other.write));
        if !same || *other == read {
            let mark = if *other == read { "   ← this one" } else { "" };
            lines.push((other.invoked, format!("node {} answers w{}{mark}", other.node, other.write)));
        }
    }
    for start in history.starts.iter().filter(|start| within(start.spawned)) {
        lines.push((start.spawned, format!("node {} starts", start.node)));
    }
    for note in history.notes.iter().filter(|note| within(note.at)) {
        lines.push((note.at, format!("--- {}", note.text)));
    }
    lines.sort();
    lines
}

fn write_text(write: &Write) -> String {
    let tag = write.tag.map_or_else(String::new, |id| format!(" with {}", tag(id)));
    let life = if write.life == 0 { String::new() } else { format!(" for {}", span(write.life)) };
    format!("node {} stores w{}{tag}{life}", write.node, write.id)
}

fn target_text(target: Target, node: u8) -> String {
    match target {
        Target::Key(id) => format!("node {node} removes {}", key(id)),
        Target::Tag(id) => format!("node {node} removes everything with {}", tag(id)),
        Target::All => format!("node {node} removes everything"),
    }
}

fn answer(outcome: Outcome, invoked: Nanos, returned: Nanos) -> String {
    let took = if returned == NEVER { String::new() } else { format!(" after {}", span(returned - invoked)) };
    match outcome {
        Outcome::Ok => format!("ok{took}"),
        Outcome::Queued => format!("queued{took}"),
        Outcome::Unknown => format!("not known{took}"),
    }
}

/// A moment of the run.
fn seconds(at: Nanos) -> String {
    format!("{:>10.4} s", at as f64 / 1e9)
}

fn span(length: Nanos) -> String {
    if length < 1_000_000_000 {
        format!("{:.1} ms", length as f64 / 1e6)
    } else {
        format!("{:.3} s", length as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        history::{Note, Read, Removal},
        judge::{Law, judge},
    };

    #[test]
    fn story_tells_the_key_the_change_the_fault_and_the_read_in_order() {
        let ms = 1_000_000;
        let write = Write {
            id: 0,
            key: 7,
            tag: Some(3),
            node: 0,
            outcome: Outcome::Ok,
            life: 0,
            invoked: 10 * ms,
            returned: 12 * ms,
        };
        let removal =
            Removal { target: Target::Tag(3), node: 1, outcome: Outcome::Ok, invoked: 20 * ms, returned: 22 * ms };
        let read = Read { key: 7, write: 0, node: 2, invoked: 5000 * ms, returned: 5001 * ms };
        let note = Note { at: 15 * ms, text: "begins: cut (node 2)".to_owned() };
        let history = History {
            writes: vec![write, Write { id: 1, key: 8, ..write }],
            removals: vec![removal],
            reads: vec![read],
            notes: vec![note],
            ..History::default()
        };
        let verdict = judge(&history, Law { bound: 3500 * ms, stale: 0, write_through: true, late: 0 });
        let story = tell(&history, &verdict.violations[0]);
        let expected = "VIOLATION  P6: a removal by tag concerns every entry that carries the tag\n  \
             node 2 answered w0 for k7, asked at     5.0000 s\n  \
             although node 1 removes everything with t3, acknowledged 4.978 s before\n      \
             0.0100 s  node 0 stores w0 with t3 → ok after 2.0 ms\n      \
             0.0150 s  --- begins: cut (node 2)\n      \
             0.0200 s  node 1 removes everything with t3 → ok after 2.0 ms\n      \
             5.0000 s  node 2 answers w0   ← this one\n";
        assert_eq!(story, expected);
    }

    #[test]
    fn long_story_leaves_out_its_middle() {
        let read = Read { key: 0, write: 0, node: 0, invoked: 0, returned: 1 };
        let note = |at| Note { at, text: String::new() };
        let history = History { reads: vec![read], notes: (0..1000).map(note).collect(), ..History::default() };
        let violation = Violation { rule: crate::judge::Rule::Foreign, read, change: None };
        let story = tell(&history, &violation);
        assert!(story.contains("… 941 lines …"), "{story}");
        assert_eq!(story.lines().count(), 2 + LINES_MAX + 1);
    }
}
