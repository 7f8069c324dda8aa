//! Histories in files, with and without a fault that was planted.

use std::fmt::Write as _;

use super::*;
use crate::{judge::Rule, story};

const MS: u64 = 1_000_000;

/// A run of a thousand writes by one client and as many removals and reads by another, told in two files and one of
/// faults, to which `more` is added.
fn judged(more: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let mut texts = [String::new(), String::new(), String::new()];
    for number in 0..1000_u64 {
        let (at, done) = (number * 10 * MS, number * 10 * MS + MS);
        let key = number % 500;
        let write = format!("\"id\": {}, \"key\": {key}, \"node\": 0, \"life\": 0, \"outcome\": \"ok\"", number * 2);
        let _ = writeln!(texts[0], "{{\"write\": {{{write}, \"invoked\": {at}, \"returned\": {done}}}}}");
        let read = format!("\"key\": {key}, \"write\": {}, \"node\": 1", number * 2);
        let (at, done) = (at + 2 * MS, at + 3 * MS);
        for text in &mut texts[..2] {
            let _ = writeln!(text, "{{\"read\": {{{read}, \"invoked\": {at}, \"returned\": {done}}}}}");
        }
        let removal = format!("\"target\": {{\"key\": {}}}, \"node\": 1, \"outcome\": \"ok\"", 10_000 + key);
        let _ = writeln!(texts[1], "{{\"removal\": {{{removal}, \"invoked\": {at}, \"returned\": {done}}}}}");
    }
    texts[2] = "{\"note\": {\"at\": 5000000000, \"text\": \"ends: cut\"}}\n".to_owned();
    texts[1] += more;
    let files: Vec<PathBuf> = (0..3).map(|number| folder.path().join(number.to_string())).collect();
    files.iter().zip(&texts).for_each(|(path, text)| std::fs::write(path, text).unwrap());
    Files { files, writes: Writes::Through, reads: 2000 }.judge().unwrap()
}

/// One read of node 1 that finds a write.
fn read(key: u64, write: u64, at: u64) -> String {
    let (at, done) = (at * MS, at * MS + MS);
    format!(
        "{{\"read\": {{\"key\": {key}, \"write\": {write}, \"node\": 1, \"invoked\": {at}, \"returned\": {done}}}}}\n"
    )
}

#[test]
fn history_of_several_files_is_judged_as_one() {
    let ended = judged("");
    assert!(ended.is_good(), "{:?} {:?}", ended.complaints, ended.verdict.violations);
    assert_eq!(ended.verdict.checked, 2000);
}

#[test]
fn planted_read_of_an_overwritten_value_is_found_and_told() {
    // Key 7 is overwritten at 5070 ms, and that is acknowledged at 5071 ms.
    let kept = judged(&read(7, 14, 8571));
    assert!(kept.is_good(), "{:?}", kept.verdict.violations);
    let broken = judged(&read(7, 14, 8572));
    assert!(!broken.is_good());
    assert_eq!(broken.verdict.violations.len(), 1);
    assert_eq!(broken.verdict.violations[0].rule, Rule::Fleet);
    let told = story::tell(&broken.history, &broken.verdict.violations[0]);
    assert!(told.contains("although node 0 stores w507, acknowledged 3.501 s before"), "{told}");
}

#[test]
fn planted_read_of_what_nobody_wrote_is_found() {
    assert_eq!(judged(&read(7, 15, 9000)).verdict.violations[0].rule, Rule::Foreign);
}

#[test]
fn too_few_reads_an_error_and_a_client_that_finds_nothing_any_more_are_complaints() {
    let complaint = |more: &str| judged(more).complaints.join("\n");
    assert!(complaint("{\"error\": \"ERR no\"}\n").contains("P8: 1 reads were answered with an error, such as ERR no"));
    let late = "{\"note\": {\"at\": 9500000000, \"text\": \"ends: cut\"}}\n";
    assert!(complaint(late).contains("after the last fault only 50 reads found a value"), "{}", complaint(late));
    let ended = Files { reads: 3000, writes: Writes::Through, files: Vec::new() }.judge().unwrap();
    assert!(ended.complaints.iter().any(|complaint| complaint.contains("only 0 reads were answered")));
}
