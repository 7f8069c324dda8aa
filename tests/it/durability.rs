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
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::tempdir;

use crate::program::{Node, config, config_of_disk, eventually};

const KEYS: usize = 10_000;
const ROUNDS: usize = 200;
/// Bounds the overwrites among which a kill comes after 20 ms: a second's worth at least.
const BATCHES_MAX: usize = 20_000;

/// What may be read under one key: usually one thing; more while the outcome of the last change is not known.
type Allowed = BTreeSet<Option<String>>;

/// A connection that is fast enough for many keys and forgives a server that dies.
struct Client(BufReader<TcpStream>);

/// Among which changes a node is killed.
enum Work {
    Removals,
    Overwrites,
    RemovalsByTag,
}

/// What the test knows of every key.
struct Known {
    random: StdRng,
    version: u64,
    allowed: Vec<Allowed>,
    /// Keys of which the last thing acknowledged is a value that may still be queued.
    queued: BTreeSet<usize>,
    /// Such values that were gone after the kill, so that it found them in the queue.
    lost: u64,
}

/// What was acknowledged among which a kill came.
#[derive(Debug, Default)]
struct Acknowledged {
    removals: usize,
    overwrites: usize,
    removals_by_tag: usize,
}

// === impl Work ===

impl Work {
    const fn of(round: usize) -> Self {
        match round % 4 {
            0 => Self::Overwrites,
            1 => Self::RemovalsByTag,
            _ => Self::Removals,
        }
    }
}

// === impl Known ===

impl Known {
    fn new(seed: u64) -> Self {
        let allowed = vec![BTreeSet::from([None]); KEYS];
        Self { random: StdRng::seed_from_u64(seed), version: 0, allowed, queued: BTreeSet::new(), lost: 0 }
    }

    /// Every key must be what it may be, and is that from now on.
    fn check(&mut self, values: Vec<Option<String>>, when: &str) {
        for (key, (value, allowed)) in values.into_iter().zip(&mut self.allowed).enumerate() {
            assert!(allowed.contains(&value), "{when}: k{key} is {value:?}, may be {allowed:?}");
            self.lost += u64::from(value.is_none() && self.queued.contains(&key));
            *allowed = BTreeSet::from([value]);
        }
        self.queued.clear();
    }

    /// New values for so many keys, or a few less.
    fn changes(&mut self, count: usize) -> Vec<(usize, String)> {
        let keys = some_keys(&mut self.random, KEYS, count);
        self.changes_of(keys)
    }

    fn changes_of(&mut self, keys: impl IntoIterator<Item = usize>) -> Vec<(usize, String)> {
        let change = |key| {
            self.version += 1;
            (key, value_of(self.version))
        };
        keys.into_iter().map(change).collect()
    }

    /// From now on only the new values may be read.
    fn on_disk(&mut self, changes: Vec<(usize, String)>) {
        for (key, value) in changes {
            self.allowed[key] = BTreeSet::from([Some(value)]);
        }
    }

    /// They may be lost with a kill, but then the key is absent.
    fn in_queue(&mut self, changes: &[(usize, String)]) {
        for (key, value) in changes {
            self.allowed[*key] = BTreeSet::from([None, Some(value.clone())]);
            self.queued.insert(*key);
        }
    }

    fn removed(&mut self, key: usize) {
        self.allowed[key] = BTreeSet::from([None]);
        self.queued.remove(&key);
    }

    /// Nobody said what became of a change of the key to this.
    fn in_doubt(&mut self, key: usize, value: Option<String>) {
        self.allowed[key].extend([None, value]);
        self.queued.remove(&key);
    }

    /// Removals until the node dies; how many were acknowledged.
    fn remove(&mut self, client: &mut Client) -> usize {
        let mut acknowledged = 0;
        for batch in some_keys(&mut self.random, KEYS, 500).chunks(20) {
            let done = client.remove(batch);
            batch[..done].iter().for_each(|key| self.removed(*key));
            batch[done..].iter().for_each(|key| self.in_doubt(*key, None));
            acknowledged += done;
            if done < batch.len() {
                break;
            }
        }
        acknowledged
    }

    /// The same of overwrites, of which there are more than any node takes before it is killed.
    fn overwrite(&mut self, client: &mut Client) -> usize {
        let mut acknowledged = 0;
        for _ in 0..BATCHES_MAX {
            let changes = self.changes(20);
            let done = client.overwrite(&changes);
            self.in_queue(&changes[..done]);
            changes[done..].iter().for_each(|(key, value)| self.in_doubt(*key, Some(value.clone())));
            acknowledged += done;
            if done < changes.len() {
                break;
            }
        }
        acknowledged
    }

    /// The same of removals by tag, each of which concerns these keys.
    fn remove_tagged(&mut self, client: &mut Client, tags: &[(String, Vec<usize>)]) -> usize {
        for (number, (tag, keys)) in tags.iter().enumerate() {
            if !client.remove_tagged(tag) {
                keys.iter().for_each(|key| self.in_doubt(*key, None));
                return number;
            }
            keys.iter().for_each(|key| self.removed(*key));
        }
        tags.len()
    }
}

#[test]
fn no_removed_and_no_overwritten_value_comes_back_after_a_kill() {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let folder = tempdir().unwrap();
    // A small memory, so that most reads are answered from disk, and patience with a busy machine.
    let config = config(&folder, "memory: {capacity: 1Mi}\nlimits: {valueBytesMax: 64Ki, requestTimeout: 30s}");
    let (mut known, mut acknowledged) = (Known::new(seed), Acknowledged::default());
    for round in 0..ROUNDS {
        let node = Node::start(&config);
        let mut client = Client::connect(&node);
        assert_eq!(disk_health(&node)["reason"], "AsExpected", "round {round}, seed {seed}: {}", disk_health(&node));
        known.check(client.values(KEYS), &format!("round {round}, seed {seed}"));

        // Overwrites that are flushed, the last of them with tags of this round.
        let changes = if round == 0 { known.changes_of(0..KEYS) } else { known.changes(1000) };
        client.set(&changes);
        known.on_disk(changes);
        let tagged = known.changes(100);
        let mut tags: Vec<(String, Vec<usize>)> = Vec::new();
        for (number, some) in tagged.chunks(5).enumerate() {
            let tag = format!("{round}-{number}");
            client.set_tagged(some, &tag);
            tags.push((tag, some.iter().map(|(key, _)| *key).collect()));
        }
        known.on_disk(tagged);
        node.flushed();

        // Right before the kill: overwrites that may still be queued, and then whatever the kill comes among.
        let late = known.changes(100);
        client.set(&late);
        known.in_queue(&late);
        // What has a value without tags by now does not go with a tag.
        tags.iter_mut().for_each(|(_, keys)| keys.retain(|key| late.iter().all(|(late, _)| late != key)));
        let delay = Duration::from_micros(known.random.random_range(0..20_000));
        let killer = kill_after(&node, delay);
        match Work::of(round) {
            Work::Removals => acknowledged.removals += known.remove(&mut client),
            Work::Overwrites => acknowledged.overwrites += known.overwrite(&mut client),
            Work::RemovalsByTag => acknowledged.removals_by_tag += known.remove_tagged(&mut client, &tags),
        }
        killer.join().unwrap();
    }
    let lost = known.lost;
    println!("{ROUNDS} kills, {acknowledged:?}: nothing came back; {lost} overwrites were in the queue and are absent");
    let Acknowledged { removals, overwrites, removals_by_tag } = acknowledged;
    assert!(removals > ROUNDS && overwrites > ROUNDS && removals_by_tag > 0, "the kills came too early");
    assert!(lost > 0, "no kill found an overwrite in the queue");
}

/// Kills the node after a while, whatever this thread does then.
fn kill_after(node: &Node, delay: Duration) -> thread::JoinHandle<()> {
    let pid = Pid::from_child(&node.child);
    thread::spawn(move || {
        thread::sleep(delay);
        kill_process(pid, Signal::KILL).unwrap();
    })
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
    let config = config(&folder, "limits: {requestTimeout: 30s}");
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

    /// The same with a tag.
    fn set_tagged(&mut self, changes: &[(usize, String)], tag: &str) {
        let mut bytes = Vec::new();
        for (key, value) in changes {
            request(&mut bytes, &["TC.SET", &format!("k{key}"), value, "TAGS", "1", tag]);
        }
        assert_eq!(self.done(&bytes, changes.len(), "+OK"), changes.len());
    }

    /// Removes all in one pipeline; answers how many removals were acknowledged before the node died.
    fn remove(&mut self, keys: &[usize]) -> usize {
        let mut bytes = Vec::new();
        keys.iter().for_each(|key| request(&mut bytes, &["DEL", &format!("k{key}")]));
        self.done(&bytes, keys.len(), ":")
    }

    /// The same of overwrites.
    fn overwrite(&mut self, changes: &[(usize, String)]) -> usize {
        let mut bytes = Vec::new();
        changes.iter().for_each(|(key, value)| request(&mut bytes, &["SET", &format!("k{key}"), value]));
        self.done(&bytes, changes.len(), "+OK")
    }

    /// Removes everything with the tag; answers whether that was acknowledged before the node died.
    fn remove_tagged(&mut self, tag: &str) -> bool {
        let mut bytes = Vec::new();
        request(&mut bytes, &["TC.INVALIDATE", tag]);
        self.done(&bytes, 1, "+OK") == 1
    }

    /// Sends so many requests together; answers how many replies began so before another did, or the node died.
    fn done(&mut self, requests: &[u8], count: usize, begins: &str) -> usize {
        if self.0.get_mut().write_all(requests).is_err() {
            return 0;
        }
        (0..count).take_while(|_| self.line().is_some_and(|line| line.starts_with(begins))).count()
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
