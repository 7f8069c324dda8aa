//! The disk layer keeps to the room and the memory that it is given.

use std::{
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use cache_node::{
    clock::Clock,
    context::{OperationContext, Origin, Trust},
    entry::{Entry, EntryMeta, Key},
    layer::{
        Change, Component, Layer, LayerResult,
        disk::{Disk, DiskOptions},
    },
};
use tempfile::tempdir;
use tokio::runtime;

use super::{folder_and_volume, value};
use crate::{
    program::{Node, PATIENCE, config_of_disk},
    resp::client::{Client, Reply, request},
};

/// More than the volume holds.
const KEYS: usize = 8_000;

pub(super) fn cx(clock: &Clock) -> OperationContext {
    OperationContext {
        id: 0,
        origin: Origin::Client,
        now: clock.now(),
        deadline: clock.monotonic() + PATIENCE,
        trust: Trust::Full,
    }
}

pub(super) fn number(disk: &Disk, name: &str) -> u64 {
    disk.stats().extras.iter().find(|(known, _)| *known == name).expect("a number of the layer").1
}

/// As the write queue does: again until it works.
async fn store(disk: &Disk, clock: &Clock, keys: Range<usize>, version: u64) {
    let entry = |key| Entry::new(format!("k{key}").as_bytes(), &value(key, version), EntryMeta::default());
    let changes: Vec<Change> = keys.map(|key| Change::Set(entry(key))).collect();
    let until = Instant::now() + PATIENCE;
    while let Err(error) = disk.apply(&cx(clock), &changes).await {
        assert!(Instant::now() < until, "{error}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether the key is there; it must be this version then.
async fn is_there(disk: &Disk, clock: &Clock, key: usize, version: u64) -> bool {
    let name = Key::new(format!("k{key}").into_bytes()).unwrap();
    match disk.get(&cx(clock), &name).await {
        Ok(LayerResult::Hit(entry)) => {
            assert!(entry.value() == value(key, version), "k{key} is not what was written last");
            true
        }
        _ => false,
    }
}

#[test]
fn database_that_fills_its_volume_gives_up_entries_and_takes_new_ones() {
    let (_folder, volume) = folder_and_volume();
    let clock = Clock::system();
    let options = DiskOptions {
        memory_bytes: 16 << 20,
        full_patience: Duration::from_secs(1),
        ..DiskOptions::at(&volume.path().join("data"))
    };
    runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let disk = Disk::open(options, clock.clone()).await.unwrap();
        // The first keys twice, so that there are older values that might come back.
        for (keys, version) in [(0..1000, 1), (0..KEYS, 2)] {
            for first in keys.step_by(50) {
                store(&disk, &clock, first..first + 50, version).await;
            }
        }
        assert!(number(&disk, "notWrittenDiskPressure") > 0, "the volume never filled");
        let given_up = || number(&disk, "trimmed") + number(&disk, "coldStarts");
        let until = Instant::now() + PATIENCE;
        // More and more: compaction drops the older values of the first keys, and that room goes first.
        for first in (KEYS..).step_by(50) {
            store(&disk, &clock, first..first + 50, 3).await;
            if given_up() > 0 && is_there(&disk, &clock, first, 3).await {
                break;
            }
            assert!(Instant::now() < until, "nothing new is written, or room came from nowhere");
            thread::sleep(Duration::from_millis(50));
        }
        for key in 0..KEYS {
            is_there(&disk, &clock, key, 2).await;
        }
        disk.shutdown(Instant::now() + PATIENCE).await;
    });
}

#[test]
fn memory_of_the_disk_layer_stays_within_its_setting() {
    let folder = tempdir().unwrap();
    let more = "memory: {capacity: 1Mi}\nwriteQueue: {capacity: 2Mi}\n\
                limits: {valueBytesMax: 64Ki, requestTimeout: 30s}";
    let node = Node::start(&config_of_disk(&folder, "memory: 16Mi", more));
    let resident = || node.metric("process_resident_memory_bytes").expect("always there");
    let mut client = Client::connect(node.resp);
    let before = resident();
    let (mut most, mut hits) = (before, 0);
    for first in (0..8000).step_by(50) {
        let sets: Vec<u8> = (first..first + 50)
            .flat_map(|key| request(&[&b"SET"[..], format!("k{key}").as_bytes(), &value(key, 1)]))
            .collect();
        client.pipeline(&sets, 50);
        let gets: Vec<u8> =
            (0..50).flat_map(|key| request(&["GET", &format!("k{}", key * 131 % (first + 1))])).collect();
        hits += client.pipeline(&gets, 50).iter().filter(|reply| matches!(reply, Reply::Bulk(_))).count();
        if first % 500 == 0 {
            node.flushed();
            most = most.max(resident());
        }
    }
    assert!(hits > 4000, "{hits} reads found something");
    let grown = (most - before) / f64::from(1 << 20);
    println!("grown by {grown:.0} MiB while 160 MB went through");
    // 19 MiB are settings; the rest is what the program needs to work at all, whatever the settings.
    assert!(grown < 19.0 + 32.0, "grown by {grown:.0} MiB");
}

#[test]
fn settings_decide_what_is_written_to_disk_and_how() {
    let folder = tempdir().unwrap();
    let disk = "minTtl: 2m, admission: SecondHit, dailyWriteBudget: 1Mi";
    let more = "compression: {algorithm: Zstd, threshold: 100}";
    let node = Node::start(&config_of_disk(&folder, disk, more));
    let number = |name: &str| node.metric(name).expect("always there");
    let not_written =
        |reason| number(&format!("tieredcache_disk_not_written_total{{layer=\"disk\",reason=\"{reason}\"}}"));
    let written = || number("tieredcache_disk_entry_bytes_total{layer=\"disk\"}");
    let mut client = Client::connect(node.resp);
    let mut set = |words: &[&[u8]]| {
        assert_eq!(client.call_args(words), Reply::ok());
        node.flushed();
    };
    set(&[b"SET", b"brief", b"v", b"EX", b"60"]);
    assert_eq!((not_written("short_lived"), written()), (1.0, 0.0));
    let text = "compressible ".repeat(1000);
    set(&[b"SET", b"k", text.as_bytes()]);
    assert_eq!((not_written("admission"), written()), (1.0, 0.0));
    set(&[b"SET", b"k", text.as_bytes()]);
    assert!(written() > 0.0 && written() < 1000.0, "{} bytes of {}", written(), text.len());
    // An hour's share of the budget is 43 kB.
    let large = [value(1, 1), value(2, 1), value(3, 1)].concat();
    (0..2).for_each(|_| set(&[b"SET", b"large", &large]));
    assert_eq!(not_written("budget"), 0.0);
    set(&[b"SET", b"large", &large]);
    assert_eq!((not_written("admission"), not_written("budget")), (2.0, 1.0));
}
