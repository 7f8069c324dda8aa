use super::*;
use crate::history::{Outcome, Target};

fn sample() -> History {
    let write =
        Write { id: 7, key: 5, tag: Some(3), node: 0, outcome: Outcome::Ok, life: 1000, invoked: 100, returned: 110 };
    let unknown = Write { id: 4, tag: None, outcome: Outcome::Unknown, returned: NEVER, ..write };
    let removal = |target| Removal { target, node: 1, outcome: Outcome::Queued, invoked: 120, returned: NEVER };
    let read = Read { key: 5, write: 7, node: 2, invoked: 130, returned: 140 };
    History {
        writes: vec![write, unknown],
        removals: [Target::Key(5), Target::Tag(3), Target::All].map(removal).to_vec(),
        reads: vec![read, Read { write: FOREIGN, ..read }],
        flushes: vec![Flush { node: 0, invoked: 150, returned: 160, everywhere: false }],
        starts: vec![Start { node: 2, spawned: 170, alone: 180 }],
        notes: vec![Note { at: 190, text: "begins: \"cut\"".to_owned() }],
        absent: 2,
        unanswered: 3,
        errors: 2,
        error: Some("ERR".to_owned()),
    }
}

/// What is read from a file with these lines.
fn parse(lines: &str) -> anyhow::Result<History> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    read(file.path())
}

#[test]
fn history_is_read_as_it_was_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&sample(), file.path()).unwrap();
    assert_eq!(format!("{:?}", read(file.path()).unwrap()), format!("{:?}", sample()));
}

#[test]
fn lines_of_the_documentation_are_read() {
    let lines = include_str!("../records.rs").lines().filter_map(|line| line.strip_prefix("//! {"));
    let lines: String = lines.map(|line| format!("{{{line}\n")).collect();
    let history = parse(&lines).unwrap();
    assert_eq!((history.writes.len(), history.removals.len(), history.reads.len()), (1, 1, 1));
    assert_eq!((history.flushes.len(), history.starts.len(), history.notes.len()), (1, 1, 1));
    assert_eq!((history.absent, history.unanswered, history.errors), (24, 1, 1));
}

#[test]
fn line_that_is_none_is_refused_with_its_place() {
    for wrong in ["{}", "{\"read\": {}}", "{\"absent\": 1, \"unanswered\": 1}", "{\"absent\": -1}", ""] {
        let error = format!("{:#}", parse(&format!("{{\"absent\": 1}}\n{wrong}\n")).unwrap_err());
        assert!(error.contains(":2"), "{wrong}: {error}");
    }
}

#[test]
fn writes_are_numbered_without_gaps_and_time_begins_with_the_first_operation() {
    let history = in_order(sample()).unwrap();
    assert_eq!(history.writes.iter().map(|write| write.id).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((history.reads[0].write, history.reads[1].write), (1, FOREIGN), "the write had the number 7");
    assert_eq!((history.writes[1].invoked, history.writes[1].returned), (0, 10));
    assert_eq!((history.writes[0].returned, history.removals[0].invoked), (NEVER, 20));
    assert_eq!((history.starts[0].spawned, history.starts[0].alone, history.notes[0].at), (70, 80, 90));
}

#[test]
fn what_can_not_be_of_one_run_is_refused() {
    let mut twice = sample();
    twice.writes[1].id = 7;
    assert!(in_order(twice).is_err());
    let mut backwards = sample();
    backwards.reads[0].returned = 1;
    assert!(in_order(backwards).is_err());
}
