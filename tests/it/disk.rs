//! The disk layer on volumes that fill up, fail, and lose blocks: the node goes on, misses, and never lies.

mod damage;
mod room;
mod told;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::{TempDir, tempdir};
use tests::volume::Volume;

use crate::{
    program::{Node, PATIENCE},
    resp::client::{Client, Reply, request},
};

const VOLUME_BYTES: u64 = 96 << 20;
const KEYS: usize = 500;
const VALUE_BYTES: usize = 20_000;

#[test]
fn full_volume_brakes_writes_while_reads_go_on_and_heals_when_there_is_room() {
    let (folder, volume) = folder_and_volume();
    // A small memory, so that reads are answered by the disk.
    let config = config(&folder, &volume, "memory: {capacity: 1Mi}\nlimits: {requestTimeout: 30s}");
    let mut node = Node::start(&config);
    let mut client = Client::connect(node.resp);
    store(&mut client, 0..KEYS, 1);
    node.flushed();
    // All but what is kept for removals; again, because RocksDB gives some room back when it has flushed its log.
    wait_for("DiskFull", || {
        volume.fill_but(VOLUME_BYTES / 20);
        disk_health(&node)
    });
    store(&mut client, KEYS / 2..KEYS, 2);
    assert_eq!(client.call("DEL k0"), Reply::Integer(1), "removals are taken");
    let found = values(&mut client);
    assert_eq!(others_than(&found, 1..KEYS / 2, 1), [0; 0], "reads go on");
    for (key, found) in found.into_iter().enumerate() {
        assert!(found.is_none_or(|found| key != 0 && found == value(key, 1 + key as u64 / 250)), "k{key} is older");
    }

    // Not a byte left: it can be killed and starts again.
    let ballast = volume.fill_but(0);
    assert_eq!(client.call("GET k1"), Reply::Bulk(value(1, 1)), "reads still go on");
    node.signal(Signal::KILL);
    node.wait();
    let node = Node::start(&config);
    let mut client = Client::connect(node.resp);
    assert_eq!(client.call("GET k0"), Reply::Null, "an acknowledged removal holds");
    store(&mut client, KEYS..KEYS + 1, 1);
    wait_for("DiskFull", || disk_health(&node));

    fs::remove_file(ballast).unwrap();
    wait_for("Healthy", || disk_health(&node));
    let mut client = Client::connect(node.resp);
    store(&mut client, 0..KEYS, 3);
    node.flushed();
    assert_eq!(others_than(&values(&mut client), 0..KEYS, 3), [0; 0], "all are on disk again");
}

#[test]
fn device_that_fails_and_comes_back_gives_misses_and_never_a_removed_value() {
    let (folder, volume) = folder_and_volume();
    let config = config(&folder, &volume, "limits: {requestTimeout: 5s}");
    let mut node = Node::start(&config);
    let mut client = Client::connect(node.resp);
    store(&mut client, 0..KEYS, 1);
    node.flushed();
    volume.sync();
    for key in 0..20 {
        assert_eq!(client.call(&format!("DEL k{key}")), Reply::Integer(1));
    }
    // What the removals wrote is in the kernel's memory, and lost.
    volume.break_device();
    store(&mut client, 400..401, 2);
    wait_for("WritesFail NotOpen", || disk_health(&node));
    for (key, found) in values(&mut client).into_iter().enumerate() {
        let current = match key {
            0..20 => None,
            400 => Some(value(key, 2)),
            _ => Some(value(key, 1)),
        };
        assert_eq!(found, current, "memory answers as before, k{key}");
    }
    assert_eq!(node.admin("GET", "/livez").status, 200, "a restart would not heal it");

    volume.unmount();
    volume.mount();
    wait_for("StartedCold", || disk_health(&node));
    store(&mut client, 450..KEYS, 3);
    node.flushed();
    node.signal(Signal::TERM);
    node.wait();
    let node = Node::start(&config);
    let mut client = Client::connect(node.resp);
    for (key, found) in values(&mut client).into_iter().enumerate() {
        match key {
            0..20 => assert_eq!(found, None, "k{key} was removed"),
            400 => assert!(found.is_none_or(|found| found == value(key, 2)), "k{key} is an older value"),
            450.. => assert_eq!(found, Some(value(key, 3)), "k{key} was written after the repair"),
            _ => assert!(found.is_none_or(|found| found == value(key, 1)), "k{key} was never that"),
        }
    }
}

#[test]
fn lost_blocks_are_misses_that_are_counted_and_the_node_stays_up() {
    let (folder, volume) = folder_and_volume();
    let config = config(&folder, &volume, "memory: {capacity: 1Mi}\nlimits: {requestTimeout: 30s}");
    let mut node = Node::start(&config);
    let mut client = Client::connect(node.resp);
    store(&mut client, 0..KEYS, 1);
    node.flushed();
    node.signal(Signal::TERM);
    node.wait();
    let node = Node::start(&config);
    let files = files(&volume.path().join("data/db"));
    let largest = files.iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    assert!(largest.extension().is_some_and(|kind| kind == "blob"), "{files:?}");
    volume.lose_second_half_of(largest);

    let mut client = Client::connect(node.resp);
    let found = values(&mut client);
    for (key, found) in found.iter().enumerate() {
        assert!(found.as_ref().is_none_or(|found| *found == value(key, 1)), "k{key} is what it never was");
    }
    let missed = found.iter().filter(|found| found.is_none()).count();
    assert!(missed > 0 && missed < KEYS, "{missed} of {KEYS} were lost");
    let errors = ["unreachable", "corrupt"]
        .map(|kind| node.metric(&format!("tieredcache_layer_errors_total{{kind=\"{kind}\",layer=\"disk\"}}")));
    let errors: f64 = errors.into_iter().flatten().sum();
    assert!(errors >= 1.0, "{missed} misses and no error counted");
    store(&mut client, 0..KEYS, 2);
    // What was just stored may have come to lie in a lost block, too.
    let removed = client.call("DEL k7");
    assert!(matches!(removed, Reply::Integer(0 | 1)), "{removed:?}");
    for (key, found) in values(&mut client).into_iter().enumerate() {
        assert!(found.is_none_or(|found| key != 7 && found == value(key, 2)), "k{key} is an older value");
    }
}

fn folder_and_volume() -> (TempDir, Volume) {
    let folder = tempdir().unwrap();
    let volume = Volume::new(&folder, VOLUME_BYTES);
    (folder, volume)
}

fn config(folder: &TempDir, volume: &Volume, more: &str) -> PathBuf {
    let data = volume.path().join("data");
    let text = format!(
        "listen: {{resp: '127.0.0.1:0', admin: '127.0.0.1:0'}}\ndisk: {{path: '{}', memory: 16Mi}}\n{more}\n",
        data.display()
    );
    let path = folder.path().join("node.yaml");
    fs::write(&path, text).unwrap();
    path
}

/// Bytes that nothing can compress, the same for the same key and version (xorshift64, Marsaglia 2003).
fn value(key: usize, version: u64) -> Vec<u8> {
    let mut state = (key as u64 * 1000 + version).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(VALUE_BYTES / 8).flatten().collect()
}

fn store(client: &mut Client, keys: Range<usize>, version: u64) {
    for key in keys {
        let name = format!("k{key}").into_bytes();
        let reply = client.call_args(&[&b"SET"[..], &name, &value(key, version)]);
        assert_eq!(reply, Reply::ok(), "k{key}");
    }
}

fn values(client: &mut Client) -> Vec<Option<Vec<u8>>> {
    let mut requests = Vec::new();
    (0..KEYS).for_each(|key| requests.extend(request(&["GET", &format!("k{key}")])));
    let replies = client.pipeline(&requests, KEYS).into_iter();
    replies
        .map(|reply| match reply {
            Reply::Bulk(found) => Some(found),
            Reply::Null => None,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// Those of the keys whose value is not of this version.
fn others_than(found: &[Option<Vec<u8>>], keys: Range<usize>, version: u64) -> Vec<usize> {
    keys.filter(|&key| found[key].as_ref() != Some(&value(key, version))).collect()
}

/// State and reason of the layer, in one text.
fn disk_health(node: &Node) -> String {
    let report = node.report();
    let layers = report["layers"].as_array().expect("a list");
    let health: &Value = &layers.iter().find(|layer| layer["name"] == "Disk").expect("a disk layer")["health"];
    health.to_string()
}

/// Waits until the text has one of the words.
fn wait_for(words: &str, text: impl Fn() -> String) {
    let until = Instant::now() + PATIENCE;
    loop {
        let text = text();
        if words.split(' ').any(|word| text.contains(word)) {
            return;
        }
        assert!(Instant::now() < until, "none of {words:?}: {text}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|item| item.unwrap().path()).collect()
}
