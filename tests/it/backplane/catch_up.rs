//! A node that was away while very much changed.

use super::*;
use crate::resp::client::request;

/// Changes that the node has missed, and how many of them are sent to Redis at once.
const MISSED: usize = 1_000_000;
const SENT_AT_ONCE: usize = 10_000;

/// Writes records of another node to the log, as Redis has them once that node has written as many keys.
fn miss(fleet: &Fleet) {
    let mut redis = Client::connect(([127, 0, 0, 1], fleet.redis.port).into());
    for begin in (0..MISSED).step_by(SENT_AT_ONCE) {
        let record = |number: usize| {
            let key = if number == MISSED / 2 { "gone".to_owned() } else { format!("other{number}") };
            request(&["XADD", "{tc:local}:log", "*", "k", "r", "w", &key, "o", "ffffffffffffffff"])
        };
        let records: Vec<u8> = (begin..begin + SENT_AT_ONCE).flat_map(record).collect();
        redis.pipeline(&records, SENT_AT_ONCE);
    }
}

#[test]
fn a_node_catches_up_with_a_million_changes_before_it_is_ready_says_how_many_are_left_and_is_warm() {
    let mut fleet = Fleet::start_with(Server::start(&[]), "backplane: {logRecords: 2000000}");
    let mut one = fleet.client(0);
    ["gone", "kept"].iter().for_each(|key| drop(one.call(&format!("SET {key} v PX 3600000"))));
    fleet.settled();
    ["gone", "kept"].iter().for_each(|key| fleet.warm(key, "v"));
    let held = |fleet: &Fleet, key: &str| {
        let mut client = fleet.client(2);
        client.call("HELLO 3");
        let Reply::Array(layers) = client.call(&format!("TC.EXPLAIN {key}")).field("layers") else {
            panic!("an array")
        };
        layers.iter().find(|layer| layer.field("layer").text() == "disk").unwrap().field("outcome").text()
    };
    eventually("both are on disk", || ["gone", "kept"].iter().all(|key| held(&fleet, key) == "hit"));
    fleet.kill_node(2);
    miss(&fleet);
    let started = Instant::now();
    fleet.start_node(2);
    let mut left = Vec::new();
    loop {
        let ready = fleet.node(2).admin("GET", "/readyz");
        if ready.status == 200 {
            break;
        }
        let words = ready.body.split(", ").find_map(|words| words.split_once(" records are left"));
        left.extend(words.and_then(|(number, _)| number.parse::<usize>().ok()).filter(|number| *number > 0));
        assert!(started.elapsed() < PATIENCE, "{}", ready.body);
        sleep(Duration::from_millis(20));
    }
    println!("{MISSED} records in {:?}", started.elapsed());
    assert!(left.len() > 3 && left.is_sorted_by(|before, after| before >= after), "progress is told: {left:?}");
    assert!(left[0] <= MISSED + 10 && left[left.len() - 1] < left[0] / 2, "{left:?}");
    assert!(fleet.extra(2, "applied") >= MISSED as u64);
    assert_eq!((held(&fleet, "kept"), held(&fleet, "gone")), ("hit".to_owned(), "miss".to_owned()));
    let mut client = fleet.client(2);
    assert_eq!((client.call("GET kept"), client.call("GET other1")), (Reply::bulk("v"), Reply::Null));
    let gaps = ["gapsTrimmed", "gapsHistoryChanged", "gapsLostWrites", "gapsAnnounced"];
    assert_eq!(gaps.iter().map(|gap| fleet.extra(2, gap)).sum::<u64>(), 0);
}
