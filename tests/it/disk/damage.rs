//! Damage to a database, as by a failing medium: at random, to one that holds removals by tag and blobs; and such that it
//! can not be opened.

use std::{fs, path::Path, time::Instant};

use cache_node::{
    clock::Clock,
    entry::{Entry, EntryMeta, Key, Position, TagSet},
    layer::{
        Change, Component, Layer, LayerResult, Matching, TagRemoval,
        disk::{Disk, DiskOptions},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use tempfile::tempdir;
use tokio::runtime;

use super::{
    VOLUME_BYTES, config, disk_health, folder_and_volume,
    room::{cx, number},
    store, wait_for,
};
use crate::{
    durability::damage::{copy, damage},
    program::{Node, PATIENCE, eventually},
    resp::client::{Client, Reply},
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

#[test]
fn database_that_does_not_open_is_put_aside_and_given_up_once_the_volume_fills() {
    let (folder, volume) = folder_and_volume();
    let file = config(&folder, &volume, "");
    let mut node = Node::start(&file);
    store(&mut Client::connect(node.resp), 0..20, 1);
    node.flushed();
    node.signal(Signal::TERM);
    node.wait();
    let data = volume.path().join("data");
    // The one line that says where everything else is.
    fs::write(data.join("db/CURRENT"), "nonsense").unwrap();

    let mut node = Node::start(&file);
    wait_for("StartedCold", || disk_health(&node));
    assert!(disk_health(&node).contains("it does not open"), "{}", disk_health(&node));
    assert_eq!(fs::read(data.join("aside/CURRENT")).unwrap(), b"nonsense", "somebody may want to look at it");
    let mut client = Client::connect(node.resp);
    assert_eq!(client.call("GET k1"), Reply::Null);
    store(&mut client, 0..20, 2);
    node.flushed();
    // Again, because RocksDB gives some room back meanwhile.
    eventually("the room is given back", || {
        volume.fill_but(VOLUME_BYTES / 10);
        !data.join("aside").exists()
    });
    fs::remove_file(volume.fill_but(VOLUME_BYTES / 10)).unwrap();
    node.signal(Signal::TERM);
    node.wait();
    let node = Node::start(&file);
    let found = Client::connect(node.resp).call("GET k1");
    assert!(found == Reply::Bulk(super::value(1, 2)), "the database in its place is as good as any");
}
