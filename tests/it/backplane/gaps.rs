//! A Redis that loses records: no node goes on as if nothing had happened.

mod full;
mod lossy;

use super::*;

/// How many gaps of these kinds each node has counted.
fn gaps(fleet: &Fleet, names: &[&str]) -> Vec<u64> {
    (0..3).map(|number| names.iter().map(|name| fleet.extra(number, name)).sum()).collect()
}

/// Waits until every node has counted a gap of one of these kinds, since it had counted `before`.
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

/// Waits until no node serves the key any more.
fn gone(fleet: &Fleet, key: &str) {
    let gone_from = |number| fleet.client(number).call(&format!("GET {key}")) == Reply::Null;
    eventually(&format!("{key} is gone everywhere"), || (0..3).all(gone_from));
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
fn a_redis_that_evicts_what_belongs_to_the_log_is_noticed_as_if_the_log_were_gone() {
    let fleet = Fleet::start(&[]);
    for lost in ["floor", "tags", "history", "epoch", "log"] {
        serves(&fleet, "k");
        assert_eq!(fleet.client(1).call("TC.SET red v TAGS 1 red"), Reply::ok());
        assert_eq!(fleet.client(1).call("TC.INVALIDATE red"), Reply::ok());
        // Where all else is there still, a log that begins anew has fewer records than each node has read.
        let names: &[&str] = if lost == "log" { &["gapsRolledBack"] } else { &ALL };
        let before = gaps(&fleet, names);
        assert_eq!(fleet.redis.cli(&["DEL", &format!("{{tc:local}}:{lost}")]), "1", "{lost}");
        noticed(&fleet, names, &before);
        eventually("all begin anew", || (0..3).all(|number| fleet.client(number).call("GET k") == Reply::Null));
        assert_eq!(fleet.client(2).call("GET red"), Reply::Null, "{lost}");
    }
    serves(&fleet, "k");
}

#[test]
fn a_damaged_floor_is_noticed_as_if_it_were_gone() {
    let fleet = Fleet::start(&[]);
    serves(&fleet, "k");
    let before = gaps(&fleet, &ALL);
    // Lower than it was, as one flipped bit can make it.
    assert_eq!(fleet.redis.cli(&["SETRANGE", "{tc:local}:floor", "0", "0"]), "31");
    noticed(&fleet, &ALL, &before);
    eventually("all begin anew", || (0..3).all(|number| fleet.client(number).call("GET k") == Reply::Null));
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
    let port = tests::ports::free_port();
    let text = port.to_string();
    let server =
        Server::start_as(port, vec!["--bind", "127.0.0.1", "--port", &text, "--save", "", "--appendonly", "no"]);
    let mut fleet = Fleet::start_with(server, "");
    serves(&fleet, "removed");
    fleet.client(0).call("SET overwritten old");
    fleet.settled();
    assert_eq!(fleet.redis.cli(&["EXISTS", "{tc:local}:e:removed"]), "1", "the snapshot has it");
    fleet.redis.cli(&["SAVE"]);
    fleet.client(1).call("SET overwritten new");
    assert_eq!(fleet.client(1).call("DEL removed"), Reply::Integer(1));
    fleet.settled();
    let before = gaps(&fleet, &ALL);
    fleet.redis.kill();
    fleet.redis.restart();
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
    eventually("Redis has all writes", || fleet.client(2).call("TC.FLUSH") == Reply::ok());
    fleet.kill_node(2);
    let mut one = fleet.client(0);
    one.call("DEL k");
    let before = fleet.extra(1, "received");
    for number in 0..3000 {
        one.call(&format!("SET other{number} v"));
        // Of the log no more is kept than the other, which is there, may be behind.
        if number % 250 == 249 {
            eventually("the other follows", || fleet.extra(1, "received") > before + number);
        }
    }
    eventually("Redis has all writes", || one.call("TC.FLUSH") == Reply::ok());
    fleet.start_node(2);
    fleet.ready(2);
    assert_eq!(fleet.extra(2, "gapsTrimmed"), 1);
    assert_eq!(fleet.client(2).call("GET k"), Reply::Null);
    assert_eq!((fleet.extra(0, "gapsAnnounced"), fleet.extra(1, "gapsTrimmed")), (0, 0), "nobody else is concerned");
}

/// Waits until every node knows all changes again, for two seconds on end; has a look at the nodes meanwhile.
fn known(fleet: &Fleet, mut look: impl FnMut()) {
    let mut since = Instant::now();
    eventually("every node knows all changes", || {
        look();
        if !(0..3).all(|number| fleet.extra(number, "leaseAgeMs") < 1000) {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_secs(2)
    });
}

/// The same, and says in how many gaps that came to.
fn recovered(fleet: &Fleet, before: &[u64]) -> u64 {
    known(fleet, || ());
    gaps(fleet, &ALL).iter().zip(before).map(|(now, before)| now - before).sum()
}

#[test]
fn a_redis_restarted_with_its_data_leaves_every_node_warm_also_twice() {
    let mut fleet = Fleet::start_with(Server::that_remembers(), "");
    for round in 0..2 {
        serves(&fleet, "kept");
        fleet.client(0).call("SET removed v");
        fleet.settled();
        fleet.warm("removed", "v");
        assert_eq!(fleet.client(1).call("DEL removed"), Reply::Integer(1));
        let before = gaps(&fleet, &ALL);
        fleet.redis.kill();
        fleet.redis.restart();
        assert_eq!(recovered(&fleet, &before), 0, "round {round}");
        // What Redis holds must not be what answers.
        fleet.redis.cli(&["DEL", "{tc:local}:e:kept"]);
        for number in 0..3 {
            assert_eq!(fleet.client(number).call("GET kept"), Reply::bulk("v"), "round {round}, node {number}");
            assert_eq!(fleet.client(number).call("GET removed"), Reply::Null, "round {round}, node {number}");
        }
    }
}

/// Restarts Redis twice, the second time before the nodes can know what they have in the one of the first time, each round
/// in another way. What was removed before, and what one node removes meanwhile, is not served any more.
fn restarted_twice_at_once(redis: Server) {
    let keys = ["removed", "tagged", "late"];
    let mut fleet = Fleet::start_with(redis, "");
    for round in 0..3 {
        for key in keys {
            fleet.client(0).call(&format!("TC.SET {key} v PX 3600000 TAGS 1 {key}"));
        }
        fleet.settled();
        keys.iter().for_each(|key| fleet.warm(key, "v"));
        for (key, change) in [("removed", "DEL removed"), ("tagged", "TC.INVALIDATE tagged")] {
            fleet.client(1).call(change);
            gone(&fleet, key);
        }
        fleet.settled();
        fleet.redis.kill();
        assert_eq!(fleet.client(0).call("TC.DEL late").text(), "QUEUED", "round {round}");
        match round {
            // Hardly any node has found it.
            0 => fleet.redis.restart(),
            // The others have, and wait for one that says nothing.
            1 => {
                fleet.node(2).signal(Signal::STOP);
                fleet.redis.restart();
                let info = || fleet.redis.cli(&["INFO", "replication"]);
                let history = || info().lines().find_map(|line| line.strip_prefix("master_replid:").map(str::to_owned));
                let said = || fleet.redis.cli(&["HGET", "{tc:local}:nodes", "n1"]);
                eventually("another has found it", || history().is_some_and(|history| said().contains(&history)));
            }
            // A process begins in the place of one that was killed.
            _ => {
                fleet.kill_node(2);
                fleet.redis.restart();
                fleet.start_node(2);
            }
        }
        fleet.redis.restart();
        if round == 1 {
            fleet.node(2).signal(Signal::CONT);
        }
        let mut clients = [0, 1, 2].map(|number| fleet.client(number));
        known(&fleet, || {
            for (number, client) in clients.iter_mut().enumerate() {
                let found = ["removed", "tagged"].map(|key| client.call(&format!("GET {key}")));
                assert_eq!(found, [Reply::Null, Reply::Null], "round {round}, node {number}");
            }
        });
        (0..3).for_each(|number| fleet.ready(number));
        gone(&fleet, "late");
        serves(&fleet, "after");
        for client in &mut clients {
            assert_eq!(keys.map(|key| client.call(&format!("GET {key}"))), keys.map(|_| Reply::Null), "round {round}");
        }
    }
}

#[test]
fn two_restarts_at_once_with_the_data_bring_nothing_back_and_no_node_stays_behind() {
    restarted_twice_at_once(Server::that_remembers());
}

#[test]
fn two_restarts_at_once_without_the_data_bring_nothing_back_and_no_node_stays_behind() {
    restarted_twice_at_once(Server::start(&[]));
}

#[test]
fn a_restart_while_a_node_is_away_that_may_have_written_makes_all_begin_anew() {
    let mut fleet = Fleet::start_with(Server::that_remembers(), "");
    serves(&fleet, "k");
    let before = gaps(&fleet, &ALL);
    fleet.kill_node(2);
    fleet.redis.kill();
    fleet.redis.restart();
    let gone = || (0..2).all(|number| fleet.client(number).call("GET k") == Reply::Null);
    fleet.redis.cli(&["DEL", "{tc:local}:e:k"]);
    eventually("the others give up what they hold", gone);
    let found = |number: usize| ALL.iter().map(|name| fleet.extra(number, name)).sum::<u64>();
    eventually("they say so", || (0..2).all(|number| found(number) > before[number]));
    fleet.start_node(2);
    fleet.ready(2);
    serves(&fleet, "k");
}

/// A replica that has everything, and its way to become the master under the master's address.
fn replica_of(server: &Server) -> Server {
    let port = tests::ports::free_port();
    let (text, master) = (port.to_string(), server.port.to_string());
    let plain = ["--bind", "127.0.0.1", "--port", &text, "--save", "", "--appendonly", "no"];
    let replica = Server::start_as(port, [&plain[..], &["--replicaof", "127.0.0.1", &master]].concat());
    eventually("the replica follows", || replica.cli(&["INFO", "replication"]).contains("master_link_status:up"));
    replica
}

#[test]
fn a_replica_that_has_everything_takes_over_and_every_node_stays_warm() {
    let first = Server::start(&[]);
    let replica = replica_of(&first);
    let endpoints = format!("endpoints: ['127.0.0.1:{}', '127.0.0.1:{}']", first.port, replica.port);
    let mut fleet = Fleet::start_at(first, &endpoints, "");
    serves(&fleet, "kept");
    let before = gaps(&fleet, &ALL);
    let offset = |server: &Server| {
        let info = server.cli(&["INFO", "replication"]);
        info.lines().find_map(|line| line.strip_prefix("master_repl_offset:").map(str::to_owned)).unwrap()
    };
    eventually("the replica has everything", || offset(&fleet.redis) == offset(&replica));
    fleet.redis.kill();
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    fleet.redis = replica;
    assert_eq!(recovered(&fleet, &before), 0);
    fleet.redis.cli(&["DEL", "{tc:local}:e:kept"]);
    for number in 0..3 {
        assert_eq!(fleet.client(number).call("GET kept"), Reply::bulk("v"), "node {number}");
    }
    serves(&fleet, "more");
}

/// A master takes another id for its history when its first replica comes, and no connection breaks.
#[test]
fn a_master_whose_first_replica_comes_later_is_written_to_and_read_from_as_before() {
    let fleet = Fleet::start(&[]);
    serves(&fleet, "before");
    let history = || {
        let info = fleet.redis.cli(&["INFO", "replication"]);
        info.lines().find_map(|line| line.strip_prefix("master_replid:").map(str::to_owned)).unwrap()
    };
    let first = history();
    let _replica = replica_of(&fleet.redis);
    assert_ne!(history(), first);
    serves(&fleet, "after");
    let mut client = fleet.client(0);
    eventually("a removal is acknowledged", || client.call("TC.DEL after") == Reply::ok());
}
