//! Random damage to a database that holds removals by tag and blobs, as by a failing medium.

use std::{path::Path, time::Instant};

use cache_node::{
    clock::Clock,
    entry::{Entry, EntryMeta, Key, Position, TagSet},
    layer::{
        Change, Component, Layer, LayerResult, Matching, TagRemoval,
        disk::{Disk, DiskOptions},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::tempdir;
use tokio::runtime;

use super::room::{cx, number};
use crate::{
    durability::damage::{copy, damage},
    program::PATIENCE,
};

const ROUNDS: usize = 100;
const KEYS: usize = 600;

fn red() -> TagSet {
    let mut tags = TagSet::default();
    tags.add(b"red").unwrap();
    tags
}

fn removal() -> TagRemoval {
    TagRemoval { tags: red(), matching: Matching::Any, position: Position::from_parts(u64::MAX, 5) }
}

/// Every fifth is long enough for a blob file.
fn value(key: usize, version: u64) -> Vec<u8> {
    let mut value = super::value(key, version);
    value.truncate(if key.is_multiple_of(5) { 6000 } else { 200 });
    value
}

/// Every third carries the tag, and is older than its removal.
fn entry(key: usize, version: u64) -> Entry {
    let (tags, name) = (red(), format!("k{key}"));
    let tags = if key.is_multiple_of(3) { tags.tags() } else { cache_node::entry::Tags::NONE };
    let meta = EntryMeta { tags, position: Position::from_parts(1, 0), ..EntryMeta::default() };
    Entry::new(name.as_bytes(), &value(key, version), meta)
}

async fn open(folder: &Path, clock: &Clock) -> Disk {
    Disk::open(DiskOptions { memory_bytes: 16 << 20, ..DiskOptions::at(folder) }, clock.clone()).await.unwrap()
}

#[test]
fn damaged_volume_never_forgets_a_removal_by_tag_while_it_serves_an_entry_that_carries_the_tag() {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let clock = Clock::system();
    let pristine = tempdir().unwrap();
    runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        // In three lives, so that each part lies in files of its own.
        for life in 1..=3 {
            let disk = open(pristine.path(), &clock).await;
            let changes = match life {
                1 | 2 => (0..KEYS).map(|key| Change::Set(entry(key, life))).collect(),
                _ => vec![Change::RemoveTagged(removal())],
            };
            disk.apply(&cx(&clock), &changes).await.unwrap();
            disk.shutdown(Instant::now() + PATIENCE).await;
        }
        let (mut cold, mut partial) = (0, 0);
        for round in 0..ROUNDS {
            let folder = tempdir().unwrap();
            copy(pristine.path(), folder.path());
            let what = damage(&mut random, folder.path());
            let disk = open(folder.path(), &clock).await;
            let removals = disk.tag_removals(&cx(&clock)).await.unwrap_or_default();
            let mut found = 0;
            for key in 0..KEYS {
                let name = Key::new(format!("k{key}").into_bytes()).unwrap();
                let Ok(LayerResult::Hit(hit)) = disk.get(&cx(&clock), &name).await else { continue };
                found += 1;
                assert_eq!(hit.value(), value(key, 2), "seed {seed}, round {round}, {what}: k{key}");
                assert!(
                    hit.tags().is_empty() || removals == [removal()],
                    "seed {seed}, round {round}, {what}: k{key} was removed by its tag, and only {removals:?} is known"
                );
            }
            cold += number(&disk, "coldStarts");
            partial += u64::from(found > 0 && found < KEYS);
            disk.shutdown(Instant::now() + PATIENCE).await;
        }
        println!("{ROUNDS} damaged volumes: {cold} started cold, {partial} with some misses, the others whole");
        assert!(cold > 0 && partial > 0, "nothing was damaged that mattered");
    });
}
