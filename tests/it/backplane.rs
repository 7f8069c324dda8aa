//! Three nodes with one Redis: what one of them changes, the others no longer serve, whatever happens to Redis.

mod catch_up;
mod fence;
mod gaps;
mod lease;
mod near;
mod outbox;
mod receipts;
mod revised;
mod speed;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::{TempDir, tempdir};
use tests::{
    program::{Node, PATIENCE, config_of_disk, eventually},
    redis_server::Server,
};

use crate::resp::client::{Client, Reply};

/// Nodes with volumes of their own and one Redis.
struct Fleet {
    redis: Server,
    folders: Vec<TempDir>,
    nodes: Vec<Option<Node>>,
    endpoints: String,
    more: String,
}

/// What P3 of the promises allows, and what a busy machine may add.
const BOUND: Duration = Duration::from_millis(3500);

// === impl Fleet ===

impl Fleet {
    /// Three nodes that have caught up, and a Redis with these options.
    fn start(redis: &[&str]) -> Self {
        Self::start_with(Server::start(redis), "")
    }

    /// The same with this server, and more settings of each node.
    fn start_with(redis: Server, more: &str) -> Self {
        let endpoints = format!("endpoints: ['127.0.0.1:{}']", redis.port);
        Self::start_at(redis, &endpoints, more)
    }

    /// The same with nodes that know of these endpoints.
    fn start_at(redis: Server, endpoints: &str, more: &str) -> Self {
        let folders = (0..3).map(|_| tempdir().unwrap()).collect();
        let (endpoints, more) = (endpoints.to_owned(), more.to_owned());
        let mut fleet = Self { redis, folders, nodes: vec![None, None, None], endpoints, more };
        (0..3).for_each(|number| fleet.start_node(number));
        (0..3).for_each(|number| fleet.ready(number));
        fleet
    }

    fn start_node(&mut self, number: usize) {
        let redis = format!("redis: {{mode: External, {}, timeout: 500ms}}", self.endpoints);
        let text = format!("{redis}\ncache: {{node: n{number}}}\nlimits: {{requestTimeout: 10s}}\n{}", self.more);
        self.nodes[number] = Some(Node::start(&config_of_disk(&self.folders[number], "minTtl: 1s", &text)));
    }

    fn kill_node(&mut self, number: usize) {
        let mut node = self.nodes[number].take().expect("it runs");
        node.signal(Signal::KILL);
        node.wait();
    }

    fn node(&self, number: usize) -> &Node {
        self.nodes[number].as_ref().expect("it runs")
    }

    fn client(&self, number: usize) -> Client {
        Client::connect(self.node(number).resp)
    }

    fn ready(&self, number: usize) {
        eventually("the node is ready", || self.node(number).admin("GET", "/readyz").status == 200);
    }

    /// One of the backplane's own numbers.
    fn extra(&self, number: usize, name: &str) -> u64 {
        let report = self.node(number).report();
        let layers = report["layers"].as_array().unwrap();
        let part = layers.iter().find(|layer| layer["name"] == "Backplane").unwrap();
        part["stats"]["extras"][name].as_u64().unwrap_or_else(|| panic!("{name} in {part}"))
    }

    /// What Redis says of the log under this name.
    fn log_fact(&self, name: &str) -> String {
        let facts = self.redis.cli(&["XINFO", "STREAM", "{tc:local}:log"]);
        let found = facts.lines().skip_while(|line| *line != name).nth(1);
        found.unwrap_or_else(|| panic!("{name} in {facts}")).to_owned()
    }

    /// Waits until all nodes have done what the log says now.
    fn settled(&self) {
        eventually("Redis has all writes", || (0..3).all(|number| self.client(number).call("TC.FLUSH") == Reply::ok()));
        let millis: u64 = self.log_fact("last-generated-id").split('-').next().unwrap().parse().unwrap();
        eventually("all nodes have caught up", || {
            (0..3).all(|number| self.extra(number, "positionMs") >= millis && self.extra(number, "behind") == 0)
        });
    }

    /// Has every node hold the value in memory.
    fn warm(&self, key: &str, value: &str) {
        for number in 0..3 {
            let mut client = self.client(number);
            eventually("the value is read", || client.call(&format!("GET {key}")) == Reply::bulk(value));
        }
    }
}

#[test]
fn what_one_node_changes_no_other_serves() {
    let fleet = Fleet::start(&[]);
    let (mut one, mut other) = (fleet.client(0), fleet.client(1));
    for round in 0..20 {
        one.call(&format!("SET k {round}"));
        one.call(&format!("TC.SET t {round} TAGS 2 red round"));
        fleet.settled();
        fleet.warm("k", &round.to_string());
        fleet.warm("t", &round.to_string());
        let (key, change) = match round % 5 {
            0 => ("k", "DEL k"),
            1 => ("t", "TC.INVALIDATE blue red"),
            2 => ("t", "TC.INVALIDATEALL red round"),
            3 => ("k", "FLUSHALL"),
            _ => ("k", "SET k new"),
        };
        other.call(change);
        other.call("TC.FLUSH");
        fleet.settled();
        for number in 0..3 {
            let answer = fleet.client(number).call(&format!("GET {key}"));
            let expected = if change == "SET k new" { Reply::bulk("new") } else { Reply::Null };
            assert_eq!(answer, expected, "{change} on node 1, read on node {number}");
        }
    }
}

#[test]
fn a_removal_holds_on_a_node_that_was_away_and_what_nobody_changed_is_still_on_its_disk() {
    let mut fleet = Fleet::start(&[]);
    let mut one = fleet.client(0);
    for key in ["gone", "tagged", "kept"] {
        one.call(&format!("TC.SET {key} v PX 3600000 TAGS 1 {key}"));
    }
    fleet.settled();
    ["gone", "tagged", "kept"].iter().for_each(|key| fleet.warm(key, "v"));
    // It has read the value from Redis, and puts it on its own disk in its own time.
    let on_disk = |fleet: &Fleet| {
        let mut client = fleet.client(2);
        client.call("HELLO 3");
        let told = client.call("TC.EXPLAIN kept");
        let Reply::Array(layers) = told.field("layers") else { panic!("an array: {told:?}") };
        layers.iter().find(|layer| layer.field("layer").text() == "disk").unwrap().field("outcome").text()
    };
    eventually("it is on disk", || on_disk(&fleet) == "hit");
    fleet.kill_node(2);
    one.call("DEL gone");
    one.call("TC.INVALIDATE tagged");
    for number in 0..3000 {
        one.call(&format!("SET other{number} v"));
    }
    fleet.start_node(2);
    fleet.ready(2);
    assert_eq!(on_disk(&fleet), "hit");
    let mut client = fleet.client(2);
    assert_eq!((client.call("GET gone"), client.call("GET tagged")), (Reply::Null, Reply::Null));
    assert_eq!(fleet.extra(2, "gapsTrimmed") + fleet.extra(2, "gapsHistoryChanged"), 0);
}

#[test]
fn a_node_does_not_obey_its_own_records() {
    let mut fleet = Fleet::start(&[]);
    fleet.settled();
    let added = |fleet: &Fleet| fleet.log_fact("entries-added").parse::<u64>().unwrap();
    let counted = |fleet: &Fleet, number: usize| {
        ["published", "received", "own", "applied"].map(|name| fleet.extra(number, name))
    };
    let (added_before, before) = (added(&fleet), [0, 1, 2].map(|number| counted(&fleet, number)));
    assert_eq!(fleet.client(0).call("SET own v EX 3600"), Reply::ok());
    let others = ["SET other v", "DEL absent", "TC.DEL gone", "TC.INVALIDATE red"];
    others.iter().for_each(|change| drop(fleet.client(0).call(change)));
    fleet.settled();
    // Of a change that Redis was slow to confirm there may be two records.
    let (changes, records) = (1 + others.len() as u64, added(&fleet) - added_before);
    assert!(records >= changes, "{records}");
    for (number, before) in before.into_iter().enumerate() {
        let since = || {
            let now = counted(&fleet, number);
            [0, 1, 2, 3].map(|place| now[place] - before[place])
        };
        // Counted last.
        eventually("all records are read", || since()[2..].iter().sum::<u64>() == records);
        let expected = if number == 0 { [changes, records, records, 0] } else { [0, records, 0, records] };
        assert_eq!(since(), expected, "node {number}");
        for kind in ["published", "received", "own", "applied"] {
            let metric = format!("tieredcache_backplane_records_total{{kind=\"{kind}\",layer=\"backplane\"}}");
            assert_eq!(fleet.node(number).metric(&metric), Some(fleet.extra(number, kind) as f64), "{metric}");
        }
    }
    // What Redis holds must not be what answers, nor what memory holds.
    fleet.redis.cli(&["DEL", "{tc:local}:e:own"]);
    fleet.kill_node(0);
    fleet.start_node(0);
    fleet.ready(0);
    assert_eq!(fleet.client(0).call("GET own"), Reply::bulk("v"));
}
