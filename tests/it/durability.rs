//! What survives a kill -9, and what a damaged volume may do: miss, never lie.

pub(crate) mod damage;
mod redis;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::tempdir;

use crate::program::{Node, config, config_of_disk, eventually};

const KEYS: usize = 10_000;
const ROUNDS: usize = 200;

/// What may be read under one key: usually one thing; more while the outcome of the last change is not known.
type Allowed = BTreeSet<Option<String>>;

/// A connection that is fast enough for many keys and forgives a server that dies.
struct Client(BufReader<TcpStream>);

#[test]
#[expect(clippy::too_many_lines, reason = "one story, told from the first write to the last look")]
fn no_removed_and_no_overwritten_value_comes_back_after_a_kill() {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempdir().unwrap();
    // A small memory, so that most reads are answered from disk, and patience with a busy machine.
    let config = config(&folder, "memory: {capacity: 1Mi}\nlimits: {valueBytesMax: 64Ki, requestTimeout: 30s}");
    let mut allowed: Vec<Allowed> = vec![BTreeSet::from([None]); KEYS];
    let mut version = 0;
    let (mut acknowledged, mut window, mut lost) = (0_u64, 0_u64, 0_u64);
    for round in 0..ROUNDS {
        let node = Node::start(&config);
        let mut client = Client::connect(&node);
        assert_eq!(disk_health(&node)["reason"], "AsExpected", "round {round}, seed {seed}: {}", disk_health(&node));
        for (key, (value, allowed)) in client.values(KEYS).into_iter().zip(&mut allowed).enumerate() {
            assert!(allowed.contains(&value), "round {round}, seed {seed}: k{key} is {value:?}, may be {allowed:?}");
            lost += u64::from(allowed.len() > 1 && value.is_none());
            *allowed = BTreeSet::from([value]);
        }

        // Overwrites that are flushed: from now on only the new value may be read.
        let count = if round == 0 { KEYS } else { 1000 };
        let keys: Vec<usize> = if round == 0 { (0..KEYS).collect() } else { some_keys(&mut random, KEYS, count) };
        let changes: Vec<(usize, String)> = keys
            .into_iter()
            .map(|key| {
                version += 1;
                (key, value_of(version))
            })
            .collect();
        client.set(&changes);
        node.flushed();
        for (key, value) in changes {
            allowed[key] = BTreeSet::from([Some(value)]);
        }

        // Right before the kill: overwrites that may still be queued, which may be lost, but then the key is absent; then
        // removals, of which those acknowledged count.
        let late: Vec<(usize, String)> = some_keys(&mut random, KEYS, 100)
            .into_iter()
            .map(|key| {
                version += 1;
                (key, value_of(version))
            })
            .collect();
        client.set(&late);
        window += late.len() as u64;
        for (key, value) in late {
            allowed[key] = BTreeSet::from([None, Some(value)]);
        }
        let removals = some_keys(&mut random, KEYS, 500);
        let pid = node.child.id();
        let delay = Duration::from_micros(random.random_range(0..20_000));
        let killer = thread::spawn(move || {
            thread::sleep(delay);
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        });
        let mut confirmed = 0;
        for batch in removals.chunks(20) {
            let done = client.remove(batch);
            for (index, &key) in batch.iter().enumerate() {
                if index < done {
                    allowed[key] = BTreeSet::from([None]);
                } else {
                    allowed[key].insert(None);
                }
            }
            confirmed += done as u64;
            if done < batch.len() {
                break;
            }
        }
        killer.join().unwrap();
        acknowledged += confirmed;
    }
    println!(
        "{ROUNDS} kills, {acknowledged} acknowledged removals: none came back; of {window} overwrites accepted less than \
         20 ms before none gave way to an older value, {lost} keys were absent"
    );
    assert!(acknowledged > ROUNDS as u64, "the kills came too early to show anything");
}

#[test]
fn value_read_from_disk_after_a_restart_has_its_remaining_life() {
    for signal in [Signal::KILL, Signal::TERM] {
        let folder = tempdir().unwrap();
        let config = config_of_disk(&folder, "minTtl: 5s", "");
        let mut node = Node::start(&config);
        let mut client = Client::connect(&node);
        let stored = Instant::now();
        assert_eq!(client.call(&["SET", "long", "v", "PX", "60000"]), "+OK");
        assert_eq!(client.call(&["SET", "short", "v", "PX", "6000"]), "+OK");
        node.flushed();
        node.signal(signal);
        node.wait();
        let node = Node::start(&config);
        let mut client = Client::connect(&node);
        let left: u64 = client.call(&["PTTL", "long"])[1..].parse().unwrap();
        let expected = 60_000 - u64::try_from(stored.elapsed().as_millis()).unwrap();
        assert!(left.abs_diff(expected) <= 1000, "{left} ms left, expected about {expected}");
        eventually("it is gone", || client.call(&["EXISTS", "short"]) == ":0");
        assert!(stored.elapsed() >= Duration::from_millis(6000), "expired early");
        assert_eq!(client.call(&["PTTL", "short"]), ":-2");
    }
}

#[test]
fn cleared_node_stays_empty_after_a_kill() {
    let folder = tempdir().unwrap();
    let config = config(&folder, "");
    for _ in 0..10 {
        let mut node = Node::start(&config);
        let mut client = Client::connect(&node);
        let changes: Vec<(usize, String)> = (0..KEYS).map(|key| (key, value_of(key as u64))).collect();
        client.set(&changes);
        assert_eq!(client.call(&["FLUSHALL"]), "+OK");
        node.signal(Signal::KILL);
        node.wait();
        let node = Node::start(&config);
        assert_eq!(Client::connect(&node).values(KEYS).into_iter().flatten().count(), 0);
    }
}

#[test]
fn volume_of_another_cache_or_node_starts_cold_and_says_so() {
    let folder = tempdir().unwrap();
    for (identity, value) in
        [("{uid: a, node: n-0}", None), ("{uid: b, node: n-0}", None), ("{uid: b, node: n-1}", None)]
    {
        let config = config(&folder, &format!("cache: {identity}"));
        let mut node = Node::start(&config);
        let mut client = Client::connect(&node);
        assert_eq!(client.values(KEYS)[0], value, "{identity}");
        client.set(&[(0, identity.to_owned())]);
        node.flushed();
        node.signal(Signal::TERM);
        node.wait();
    }
    let config = config(&folder, "cache: {uid: a, node: n-0}");
    let node = Node::start(&config);
    eventually("the disk layer starts cold", || disk_health(&node)["reason"] == "StartedCold");
    let health = disk_health(&node);
    assert!(health["message"].as_str().unwrap().contains("belongs to"), "{health}");
}

fn disk_health(node: &Node) -> Value {
    let report = node.report();
    let layers = report["layers"].as_array().expect("a list");
    layers.iter().find(|layer| layer["name"] == "Disk").expect("a disk layer")["health"].clone()
}

fn some_keys(random: &mut StdRng, of: usize, count: usize) -> Vec<usize> {
    (0..count).map(|_| random.random_range(0..of)).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Versions compare like their text; some are long enough for a blob file.
fn value_of(version: u64) -> String {
    format!("{version:010}{}", "x".repeat(if version.is_multiple_of(20) { 6000 } else { 90 }))
}

// === impl Client ===

impl Client {
    fn connect(node: &Node) -> Self {
        Self(node.connect())
    }

    /// One command; the first line of its reply.
    fn call(&mut self, args: &[&str]) -> String {
        self.send(args);
        self.line().expect("the node answers")
    }

    /// Stores all in one pipeline; all must be accepted.
    fn set(&mut self, changes: &[(usize, String)]) {
        for batch in changes.chunks(200) {
            let mut bytes = Vec::new();
            for (key, value) in batch {
                request(&mut bytes, &["SET", &format!("k{key}"), value]);
            }
            self.0.get_mut().write_all(&bytes).expect("the node reads");
            for _ in batch {
                assert_eq!(self.line().as_deref(), Some("+OK"));
            }
        }
    }

    /// Removes all in one pipeline; answers how many removals were acknowledged before the node died.
    fn remove(&mut self, keys: &[usize]) -> usize {
        let mut bytes = Vec::new();
        keys.iter().for_each(|key| request(&mut bytes, &["DEL", &format!("k{key}")]));
        if self.0.get_mut().write_all(&bytes).is_err() {
            return 0;
        }
        keys.iter().take_while(|_| self.line().is_some_and(|line| line.starts_with(':'))).count()
    }

    /// The values of this many keys, a multiple of 500.
    fn values(&mut self, keys: usize) -> Vec<Option<String>> {
        let mut values = Vec::new();
        for first in (0..keys).step_by(500) {
            let keys: Vec<String> = (first..first + 500).map(|key| format!("k{key}")).collect();
            let args: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
            assert_eq!(self.call(&args), "*500");
            values.extend((0..500).map(|_| self.bulk()));
        }
        values
    }

    fn bulk(&mut self) -> Option<String> {
        let line = self.line().expect("the node answers");
        let length: usize = line[1..].parse().ok()?;
        let mut body = vec![0; length + 2];
        self.0.read_exact(&mut body).expect("the node answers");
        body.truncate(length);
        Some(String::from_utf8(body).expect("only text was stored"))
    }

    fn send(&mut self, args: &[&str]) {
        let mut bytes = Vec::new();
        request(&mut bytes, args);
        self.0.get_mut().write_all(&bytes).expect("the node reads");
    }

    /// One line, unless the connection ended.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        line.ends_with("\r\n").then(|| line.trim_end().to_owned())
    }
}

fn request(bytes: &mut Vec<u8>, args: &[&str]) {
    bytes.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n{arg}\r\n", arg.len()).as_bytes());
    }
}
