//! A Redis that loses records: no node goes on as if nothing had happened.

use super::*;

/// Waits until every node has counted a gap of one of these kinds, since it had counted `before`.
fn gaps(fleet: &Fleet, names: &[&str]) -> Vec<u64> {
    (0..3).map(|number| names.iter().map(|name| fleet.extra(number, name)).sum()).collect()
}

fn noticed(fleet: &Fleet, names: &[&str], before: &[u64]) {
    eventually(&format!("every node notices {names:?}"), || {
        gaps(fleet, names).iter().zip(before).all(|(now, before)| now > before)
    });
}

const ALL: [&str; 6] =
    ["gapsTrimmed", "gapsEpochChanged", "gapsRolledBack", "gapsHistoryChanged", "gapsLostWrites", "gapsAnnounced"];

/// Waits until the node serves again what it is given.
fn serves(fleet: &Fleet, key: &str) {
    fleet.client(0).call(&format!("SET {key} v"));
    fleet.settled();
    fleet.warm(key, "v");
}

#[test]
fn an_emptied_redis_makes_every_node_give_up_what_it_holds() {
    let fleet = Fleet::start(&[]);
    serves(&fleet, "k");
    let before = gaps(&fleet, &ALL);
    fleet.redis.cli(&["FLUSHALL"]);
    noticed(&fleet, &ALL, &before);
    eventually("it is gone everywhere", || (0..3).all(|number| fleet.client(number).call("GET k") == Reply::Null));
    serves(&fleet, "k");
}

#[test]
fn forgotten_scripts_are_loaded_again_and_nothing_is_lost() {
    let fleet = Fleet::start(&[]);
    for round in 0..5 {
        serves(&fleet, "k");
        fleet.redis.cli(&["SCRIPT", "FLUSH"]);
        assert_eq!(fleet.client(1).call("DEL k"), Reply::Integer(1), "round {round}");
        fleet.settled();
        (0..3).for_each(|number| assert_eq!(fleet.client(number).call("GET k"), Reply::Null));
    }
    assert_eq!(gaps(&fleet, &ALL), [0, 0, 0]);
}

#[test]
fn a_redis_restarted_without_its_data_twice_is_noticed_twice() {
    let mut fleet = Fleet::start(&[]);
    for _ in 0..2 {
        serves(&fleet, "k");
        let before = gaps(&fleet, &ALL);
        fleet.redis.kill();
        fleet.redis.restart();
        noticed(&fleet, &ALL, &before);
    }
    serves(&fleet, "k");
}

#[test]
fn an_old_snapshot_brings_nothing_back_that_was_removed_since() {
    let port = tests::redis_server::free_port();
    let text = port.to_string();
    let server =
        Server::start_as(port, vec!["--bind", "127.0.0.1", "--port", &text, "--save", "", "--appendonly", "no"]);
    let mut fleet = Fleet::start_with(server, "");
    serves(&fleet, "removed");
    fleet.client(0).call("SET overwritten old");
    fleet.settled();
    fleet.redis.cli(&["SAVE"]);
    fleet.client(1).call("SET overwritten new");
    assert_eq!(fleet.client(1).call("DEL removed"), Reply::Integer(1));
    fleet.settled();
    let before = gaps(&fleet, &ALL);
    fleet.redis.kill();
    fleet.redis.restart();
    assert_eq!(fleet.redis.cli(&["EXISTS", "{tc:local}:e:removed"]), "1", "the snapshot has it");
    noticed(&fleet, &ALL, &before);
    for number in 0..3 {
        assert_eq!(fleet.client(number).call("GET removed"), Reply::Null, "node {number}");
        assert_ne!(fleet.client(number).call("GET overwritten"), Reply::bulk("old"), "node {number}");
    }
    serves(&fleet, "removed");
}

#[test]
fn a_node_that_was_away_for_longer_than_the_log_is_kept_starts_cold() {
    let redis = Server::start(&["--stream-node-max-entries", "10"]);
    let mut fleet = Fleet::start_with(redis, "backplane: {logRecords: 1000}");
    serves(&fleet, "k");
    assert_eq!(fleet.client(2).call("TC.FLUSH"), Reply::ok());
    fleet.kill_node(2);
    let mut one = fleet.client(0);
    one.call("DEL k");
    for number in 0..3000 {
        one.call(&format!("SET other{number} v"));
    }
    one.call("TC.FLUSH");
    fleet.start_node(2);
    fleet.ready(2);
    assert_eq!(fleet.extra(2, "gapsTrimmed"), 1);
    assert_eq!(fleet.client(2).call("GET k"), Reply::Null);
    assert_eq!((fleet.extra(0, "gapsAnnounced"), fleet.extra(1, "gapsTrimmed")), (0, 0), "nobody else is concerned");
}
