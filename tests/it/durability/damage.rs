//! Random damage to the files of a volume, as by a failing medium.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use tempfile::tempdir;

use super::{Client, KEYS, value_of};
use crate::program::{Node, config};

const ROUNDS: usize = 60;

/// Every key was written twice and every third then removed; the second version and the removals went to disk in a
/// later life of the node, so that tables, log, manifest and blobs all hold something that must not be forgotten.
#[test]
fn damaged_volume_misses_but_never_serves_an_older_or_a_removed_value() {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let pristine = tempdir().unwrap();
    let configuration = config(&pristine, "limits: {requestTimeout: 30s}");
    for (life, signal) in [(1, Signal::TERM), (2, Signal::TERM), (3, Signal::KILL)] {
        let mut node = Node::start(&configuration);
        let mut client = Client::connect(&node);
        match life {
            1 | 2 => {
                let changes: Vec<_> = (0..KEYS).map(|key| (key, version(key, life))).collect();
                client.set(&changes);
            }
            _ => {
                let removed: Vec<usize> = (0..KEYS).step_by(3).collect();
                removed.chunks(100).for_each(|keys| assert_eq!(client.remove(keys), keys.len()));
            }
        }
        node.flushed();
        node.signal(signal);
        node.wait();
    }

    let (mut cold, mut partial) = (0, 0);
    let live = KEYS - KEYS.div_ceil(3);
    for round in 0..ROUNDS {
        let folder = tempdir().unwrap();
        copy(&pristine.path().join("data"), &folder.path().join("data"));
        let damage = damage(&mut random, &folder.path().join("data"));
        let node = Node::start(&config(&folder, "limits: {requestTimeout: 30s}"));
        let mut client = Client::connect(&node);
        let values = client.values(KEYS);
        for (key, value) in values.iter().enumerate() {
            let current = (key % 3 != 0).then(|| version(key, 2));
            assert!(
                value.is_none() || *value == current,
                "seed {seed}, round {round}, {damage}: k{key} is {value:?}, not {current:?}"
            );
        }
        let found = values.iter().flatten().count();
        cold += usize::from(found == 0);
        partial += usize::from(found > 0 && found < live);
        assert!(
            found == live || told(&node),
            "seed {seed}, round {round}, {damage}: {found} of {live}, and no counter"
        );
        assert_eq!(client.call(&["SET", "alive", "yes"]), "+OK", "{damage}");
        assert_eq!(client.call(&["DEL", "alive"]), ":1", "{damage}");
    }
    println!("{ROUNDS} damaged volumes: {cold} started cold, {partial} with some misses, the others whole");
    assert!(cold > 0, "nothing was damaged that mattered");
}

/// Whether a counter says that something was lost.
fn told(node: &Node) -> bool {
    let text = node.admin("GET", "/metrics").body;
    text.lines().any(|line| {
        let (name, count) = line.rsplit_once(' ').expect("a name and a number");
        let is_error = name.starts_with("tieredcache_layer_errors_total{") && name.contains("layer=\"disk\"");
        let is_loss = ["tieredcache_disk_cold_starts_total{", "tieredcache_write_queue_clears_total{"];
        (is_error || is_loss.iter().any(|loss| name.starts_with(loss))) && count != "0"
    })
}

fn version(key: usize, life: u64) -> String {
    value_of(key as u64 * 10 + life)
}

/// Damages one file somehow; says what was done.
pub(crate) fn damage(random: &mut StdRng, folder: &Path) -> String {
    let mut files = Vec::new();
    list(folder, &mut files);
    // The log of RocksDB's messages and the locks hold nothing.
    files.retain(|file| !matches!(file.file_name().and_then(|name| name.to_str()), Some("LOG" | "LOCK" | "lock")));
    files.sort();
    let file = &files[random.random_range(0..files.len())];
    let length = fs::metadata(file).unwrap().len();
    let name = file.strip_prefix(folder).unwrap().display().to_string();
    match random.random_range(0..4) {
        0 => {
            let kept = random.random_range(0..=length.saturating_sub(1));
            fs::File::options().write(true).open(file).unwrap().set_len(kept).unwrap();
            format!("{name} cut from {length} to {kept} bytes")
        }
        1 => {
            fs::remove_file(file).unwrap();
            format!("{name} removed")
        }
        2 if length > 4096 => {
            let page = random.random_range(0..length / 4096) * 4096;
            let opened = fs::File::options().write(true).open(file).unwrap();
            opened.write_all_at(&[0; 4096], page).unwrap();
            format!("{name} zeroed from {page}")
        }
        _ => {
            let mut bytes = fs::read(file).unwrap();
            let flips = random.random_range(1..20);
            for _ in 0..flips.min(bytes.len()) {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
            fs::write(file, bytes).unwrap();
            format!("{name} with {flips} flipped bits")
        }
    }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
