//! What is gone, and for how long that is known.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use shuttle::thread;

use super::*;
use crate::{
    layer::HealthState,
    testing::{START, in_every_order},
};

fn set(tags: &[&str]) -> TagSet {
    let mut set = TagSet::default();
    tags.iter().for_each(|tag| set.add(tag.as_bytes()).unwrap());
    set
}

fn index(removals_max: usize) -> (TagIndex, Clock) {
    let clock = Clock::manual(START);
    let options = TagOptions { removals_max, life_max: Duration::from_secs(3600) };
    (TagIndex::open(options, clock.clone()), clock)
}

#[test]
fn removal_concerns_what_was_written_before_and_nothing_after() {
    let (index, _) = index(100);
    let before = index.position(START);
    index.remove(START, set(&["red", "blue"]), Matching::Any);
    let after = index.position(START);
    for tags in [set(&["red"]), set(&["green", "blue"])] {
        assert!(index.is_removed(tags.tags(), before));
        assert!(!index.is_removed(tags.tags(), after));
    }
    assert!(!index.is_removed(set(&["green"]).tags(), before));
    assert!(!index.is_removed(Tags::NONE, before), "untagged entries are never concerned");
}

#[test]
fn what_is_written_after_a_removal_that_the_log_has_not_placed_yet_is_newer() {
    let index = TagIndex::open(TagOptions::default(), Clock::manual(UnixMillis(1000)));
    index.follow_log();
    index.see_in_log(Position::from_parts(500, 3));
    let (before, now) = (index.position(UnixMillis(1000)), UnixMillis(1000));
    let tags = index.remove(now, set(&["t"]), Matching::Any).tags;
    assert!(index.is_removed(tags.tags(), before) && !index.is_removed(tags.tags(), index.position(now)));
}

#[test]
fn entry_of_unknown_freshness_is_gone_with_its_tag() {
    let (index, _) = index(100);
    index.remove(START, set(&["red"]), Matching::Any);
    assert!(index.is_removed(set(&["red"]).tags(), Position::NONE));
}

#[test]
fn removal_by_all_tags_concerns_only_entries_with_all() {
    let (index, _) = index(100);
    let before = index.position(START);
    index.remove(START, set(&["b", "a"]), Matching::All);
    assert!(index.is_removed(set(&["a", "x", "b"]).tags(), before));
    assert!(!index.is_removed(set(&["a", "x"]).tags(), before));
    assert!(!index.is_removed(set(&["b"]).tags(), before));
    assert!(!index.is_removed(set(&["a", "b"]).tags(), index.position(START)));
}

#[test]
fn same_removal_again_takes_no_more_room() {
    let (index, _) = index(100);
    for _ in 0..50 {
        index.remove(START, set(&["a"]), Matching::Any);
        index.remove(START, set(&["a", "b"]), Matching::All);
        index.remove(START, set(&["b", "a"]), Matching::All);
    }
    assert_eq!(index.stats().entries, Some(2));
}

#[test]
fn over_the_bound_too_much_is_gone_but_never_too_little() {
    let (index, clock) = index(100);
    let entries: Vec<(TagSet, Position)> =
        (0..1000).map(|number| (set(&[&format!("t{number}")]), index.position(START))).collect();
    let late = index.position(START);
    for (tags, _) in &entries {
        index.remove(START, tags.clone(), Matching::Any);
    }
    assert!(index.stats().entries.unwrap() <= 100);
    assert!(entries.iter().all(|(tags, position)| index.is_removed(tags.tags(), *position)));
    assert!(index.is_removed(set(&["other"]).tags(), late), "below the floor");
    assert!(!index.is_removed(set(&["other"]).tags(), index.position(START)));
    for _ in 0..5 {
        index.tick();
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!((index.health().state, index.health().reason), (HealthState::Degraded, "TooManyRemovals"));
}

/// `make mutants` plants bugs that only this test sees, such as a look at the floor before the table.
#[test]
fn no_order_of_removals_spares_what_was_removed_or_takes_what_is_newer() {
    in_every_order(|| {
        let index = Arc::new(index(4).0);
        let before = index.position(START);
        let first = index.remove(START, set(&["red"]), Matching::Any);
        let after = index.position(START);
        assert!(before < first.position && first.position < after);
        let taken = Arc::new(Mutex::new(HashSet::new()));
        let remove = |names: &'static [&'static str]| {
            let (index, taken) = (Arc::clone(&index), Arc::clone(&taken));
            thread::spawn(move || {
                for name in names {
                    let removal = index.remove(START, set(&[name]), Matching::Any);
                    assert!(index.is_removed(set(&[name]).tags(), removal.position), "{name}");
                    assert!(taken.lock().unwrap().insert(removal.position), "one position for two changes");
                    assert!(index.position(START) > removal.position);
                }
                index.tick();
            })
        };
        let removers = [remove(&["a", "b", "c"]), remove(&["d", "e"])];
        for _ in 0..3 {
            assert!(index.is_removed(set(&["red"]).tags(), before));
        }
        removers.into_iter().for_each(|remover| remover.join().unwrap());
        assert!(index.is_removed(set(&["red"]).tags(), before));
        assert!(!index.is_removed(set(&["red"]).tags(), index.position(START)));
    });
}

#[test]
fn the_bound_is_one_of_bytes_too() {
    let (index, _) = index(1000);
    let before = index.position(START);
    let long = |number: u32, matching| {
        let tags: Vec<String> = (0..8).map(|tag| format!("{number}-{tag}-{}", "x".repeat(100))).collect();
        index.remove(START, set(&tags.iter().map(String::as_str).collect::<Vec<_>>()), matching);
    };
    for number in 0..500 {
        long(number, if number % 2 == 0 { Matching::Any } else { Matching::All });
        let bytes = index.stats().bytes.unwrap();
        assert!(bytes <= 1000 * REMOVAL_BYTES as u64, "{bytes} bytes after {number}");
    }
    assert!(index.is_removed(set(&["other"]).tags(), before), "below the floor");
}

#[test]
fn a_removal_without_tags_concerns_every_tagged_entry_of_before() {
    let (index, _) = index(100);
    let before = index.position(START);
    let floor = index.position(START);
    index.record(&TagRemoval { tags: TagSet::default(), matching: Matching::All, position: floor });
    assert!(index.is_removed(set(&["any"]).tags(), before));
    assert!(!index.is_removed(set(&["any"]).tags(), index.position(START)));
    assert!(!index.is_removed(Tags::NONE, before), "untagged entries are never concerned");
}

#[test]
fn removal_is_forgotten_after_the_longest_life_and_the_day_that_clocks_may_be_apart() {
    let (index, clock) = index(100);
    index.remove(START, set(&["a"]), Matching::Any);
    index.remove(START, set(&["a", "b"]), Matching::All);
    clock.advance(Duration::from_secs(3600) + CLOCKS_APART_MAX);
    index.tick();
    assert_eq!(index.stats().entries, Some(2));
    clock.advance(Duration::from_millis(1));
    index.tick();
    assert_eq!(index.stats().entries, Some(0));
}

#[test]
fn removals_that_another_list_lacks_or_has_older_are_told() {
    let (index, _) = index(100);
    let removal = |words: &[&str], matching| index.remove(START, set(words), matching);
    let (a, ab) = ([removal(&["a"], Matching::Any)], [removal(&["b", "a"], Matching::All)]);
    assert_eq!(index.missing_from(&[a.clone(), ab.clone()].concat()), []);
    assert_eq!(index.missing_from(&ab), a);
    assert_eq!(index.missing_from(&a), ab);
    let newer = [removal(&["a"], Matching::Any), removal(&["a", "b"], Matching::All)];
    let missing = index.missing_from(&[a, ab].concat());
    assert_eq!(missing.len(), 2);
    assert!(missing.iter().zip(newer).all(|(missing, newer)| missing.position == newer.position), "{missing:?}");
}

#[test]
fn removals_kept_by_a_layer_hold_again_and_new_entries_are_newer() {
    let (old, _) = index(100);
    let before = old.position(START);
    let late = UnixMillis(START.0 + 3_600_000);
    let kept = old.remove(late, set(&["a"]), Matching::Any);
    // The clock of the next start is an hour behind.
    let (new, _) = index(100);
    new.record(&kept);
    assert!(new.is_removed(set(&["a"]).tags(), before));
    assert!(!new.is_removed(set(&["a"]).tags(), new.position(START)));
}
