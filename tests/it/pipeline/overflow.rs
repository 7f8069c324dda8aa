//! A write queue that is full, because the disk takes nothing: what clients are told, what they read meanwhile, and what is
//! there once the disk goes on.

use std::{
    ops::Range,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use tests::volume::{Frozen, Volume};

use super::*;
use crate::resp::client::request;

/// Writes that the queue has room for. Its 64 parts have some 60 each, of which the oldest give way to what comes into
/// the same part.
const ROOM: usize = 4000;
/// All keys: few more than there is room for, so that each part has more to give up than it is given.
const KEYS: usize = ROOM + 100;

const VOLUME_BYTES: u64 = 96 << 20;

const FULL: &str = "OOM the write queue is full; the layers below do not keep up";

const QUEUED: &str = "tieredcache_layer_entries{layer=\"writeQueue\"}";
const FOR_DISK: &str = "tieredcache_write_queue_lane_entries{layer=\"writeQueue\",to=\"disk\"}";
const REFUSED: &str = "tieredcache_write_queue_refused_total{layer=\"writeQueue\"}";
const DROPPED: &str = "tieredcache_write_queue_dropped_total{layer=\"writeQueue\",reason=\"overflow\"}";
const READ_FROM_QUEUE: &str = "tieredcache_layer_requests_total{layer=\"writeQueue\",operation=\"get\",result=\"hit\"}";

/// A node whose volume has an old value of every key, and can be frozen. There is no Redis: a queue that is full stays so
/// as long as its only layer hangs.
struct Stuck {
    node: Node,
    volume: Volume,
    folder: TempDir,
}

// === impl Stuck ===

impl Stuck {
    fn start(overflow: &str, request_timeout: &str) -> Self {
        let folder = tempdir().unwrap();
        let volume = Volume::new(&folder, VOLUME_BYTES);
        let data = volume.path().join("data");
        fs::create_dir(&data).unwrap();
        // The journal lies elsewhere: it is mapped into memory, and whoever touches a page of it in a frozen volume hangs,
        // which is another trouble than a disk that takes nothing.
        symlink(folder.path().join("journal"), data.join("journal.next")).unwrap();
        let node = Node::start(&config(folder.path(), &data, overflow, request_timeout));
        let mut client = Client::connect(node.resp);
        for first in (0..KEYS).step_by(500) {
            write(&mut client, first..KEYS.min(first + 500), "old");
            node.flushed();
        }
        Self { node, volume, folder }
    }

    fn client(&self) -> Client {
        Client::connect(self.node.resp)
    }

    /// Freezes the volume and gives the queue as much as it takes.
    fn fill(&self) -> Frozen<'_> {
        let frozen = self.volume.freeze();
        let mut client = self.client();
        // The batch in which the disk hangs has this one alone: everything behind it waits in the queue.
        write(&mut client, 0..1, "new");
        eventually("the disk is given a batch", || self.node.metric(FOR_DISK) == Some(0.0));
        write(&mut client, 1..ROOM, "new");
        assert_eq!(self.node.metric(QUEUED), Some(ROOM as f64), "none of it is on disk");
        frozen
    }

    /// What the keys have once the disk goes on, from the database alone: memory is empty after a restart.
    fn stored(&mut self) -> Vec<String> {
        self.node.flushed();
        self.node.signal(Signal::TERM);
        self.node.wait();
        self.node = Node::start(&config(self.folder.path(), &self.volume.path().join("data"), "Block", "30s"));
        read(&mut self.client())
    }
}

/// The file that configures the node.
fn config(folder: &Path, data: &Path, overflow: &str, request_timeout: &str) -> PathBuf {
    let text = format!(
        "listen: {{resp: '127.0.0.1:0', admin: '127.0.0.1:0'}}\ndisk: {{path: '{}', memory: 16Mi}}\n\
         memory: {{capacity: 1Mi}}\nwriteQueue: {{itemsMax: {ROOM}, overflow: {overflow}}}\n\
         limits: {{requestTimeout: {request_timeout}}}\n",
        data.display()
    );
    let path = folder.join("node.yaml");
    fs::write(&path, text).unwrap();
    path
}

/// So long that memory has no room for all of them together.
fn value(version: &str) -> String {
    version.to_owned() + &"x".repeat(1000)
}

/// Gives the keys this version, a word of three letters, each of which must be accepted.
fn write(client: &mut Client, keys: Range<usize>, version: &str) {
    let (count, value) = (keys.len(), value(version));
    let requests: Vec<u8> = keys.flat_map(|key| request(&["SET", &format!("k{key}"), &value])).collect();
    for (number, answer) in client.pipeline(&requests, count).into_iter().enumerate() {
        assert_eq!(answer, Reply::ok(), "{number} of {count}");
    }
}

/// The version that each key has; `nil` for none.
fn read(client: &mut Client) -> Vec<String> {
    let requests: Vec<u8> = (0..KEYS).flat_map(|key| request(&["GET", &format!("k{key}")])).collect();
    let answers = client.pipeline(&requests, KEYS).into_iter();
    answers.map(|answer| if answer == Reply::Null { "nil".to_owned() } else { answer.text()[..3].to_owned() }).collect()
}

/// The first key that has another version than it should.
fn wrong(found: &[String], right: impl Fn(usize) -> &'static str) -> Option<(usize, &String)> {
    found.iter().enumerate().find(|(key, found)| **found != right(*key))
}

#[test]
fn with_block_a_write_that_finds_the_queue_full_waits_until_there_is_room() {
    let mut stuck = Stuck::start("Block", "30s");
    let frozen = stuck.fill();
    let mut client = stuck.client();
    client.send(&request(&["SET", &format!("k{ROOM}"), &value("now")]));
    eventually("it has found the queue full", || stuck.node.metric(REFUSED).is_some_and(|count| count >= 1.0));
    drop(frozen);
    assert_eq!(client.reply(), Reply::ok(), "the disk goes on, and there is room");
    let right = |key: usize| match key {
        ROOM => "now",
        0..ROOM => "new",
        _ => "old",
    };
    assert_eq!(wrong(&stuck.stored(), right), None);
}

#[test]
fn with_block_a_write_that_finds_no_room_is_refused_at_its_deadline_and_what_is_queued_stays() {
    let mut stuck = Stuck::start("Block", "1s");
    let frozen = stuck.fill();
    let mut client = stuck.client();
    let begun = Instant::now();
    assert_eq!(client.call_args(&["SET", &format!("k{ROOM}"), &value("now")]), Reply::error(FULL));
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(900) && waited < PATIENCE / 2, "{waited:?} of one second");
    // It takes the place of the one that waits.
    write(&mut client, 7..8, "now");
    drop(frozen);
    let right = |key: usize| match key {
        7 => "now",
        key if key < ROOM => "new",
        _ => "old",
    };
    assert_eq!(wrong(&stuck.stored(), right), None, "all that was accepted has arrived, and nothing else");
}

#[test]
fn with_reject_a_write_that_finds_the_queue_full_is_refused_at_once() {
    let mut stuck = Stuck::start("Reject", "50s");
    let frozen = stuck.fill();
    let mut client = stuck.client();
    let begun = Instant::now();
    assert_eq!(client.call_args(&["SET", &format!("k{ROOM}"), &value("now")]), Reply::error(FULL));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(stuck.node.metric(REFUSED).is_some_and(|count| count >= 1.0));
    drop(frozen);
    let right = |key: usize| if key < ROOM { "new" } else { "old" };
    assert_eq!(wrong(&stuck.stored(), right), None, "all that was accepted has arrived, and nothing else");
}

#[test]
fn with_drop_oldest_the_oldest_values_give_way_are_counted_and_their_keys_have_no_value_in_any_layer() {
    let mut stuck = Stuck::start("DropOldest", "30s");
    let frozen = stuck.fill();
    let mut client = stuck.client();
    assert_eq!(stuck.node.metric(DROPPED), Some(0.0), "there was room for all");
    write(&mut client, ROOM..KEYS, "new");
    let more = KEYS - ROOM;
    assert_eq!(stuck.node.metric(DROPPED), Some(more as f64), "one for each that came");
    let found = read(&mut client);
    assert!(found.iter().all(|version| version != "old"), "nothing older is served in the place of what gave way");
    let gone: Vec<usize> = (0..KEYS).filter(|key| found[*key] == "nil").collect();
    assert!(gone.len() == more && gone.iter().all(|key| *key < ROOM), "what came last stays: {gone:?} gave way");
    assert!(stuck.node.metric(READ_FROM_QUEUE).is_some_and(|count| count > 0.0), "memory has not all of them");
    drop(frozen);
    let stored = stuck.stored();
    let changed = (0..KEYS).find(|key| stored[*key] != found[*key]);
    assert_eq!(changed, None, "the disk has what was queued, and nothing older of what gave way");
}
