//! A node that can not follow the log.

use super::*;

/// A fenced node serves nothing that it holds.
const STRICT: &str = "backplane: {whenDisconnected: Miss}";

/// Waits until the node answers the key like this.
fn answers(fleet: &Fleet, number: usize, key: &str, reply: &Reply) {
    let mut client = fleet.client(number);
    eventually("the answer", || client.call(&format!("GET {key}")) == *reply);
}

/// Freezes Redis, and sees a node serve what it holds for so long. Gives back its client, and when that began.
fn serves_while_frozen(fleet: &Fleet, span: Duration) -> (Client, Instant) {
    fleet.client(0).call("SET k v");
    fleet.settled();
    fleet.warm("k", "v");
    let mut client = fleet.client(1);
    eventually("it has just looked at the log", || fleet.extra(1, "leaseAgeMs") < 100);
    let frozen = Instant::now();
    fleet.redis.freeze();
    while frozen.elapsed() < span {
        assert_eq!(client.call("GET k"), Reply::bulk("v"), "after {:?}", frozen.elapsed());
        sleep(Duration::from_millis(50));
    }
    (client, frozen)
}

/// Reads until the node serves its copy no more; whoever asked later than the bound must not have got it.
fn ends_before(client: &mut Client, frozen: Instant, bound: Duration) {
    loop {
        let asked = frozen.elapsed();
        if client.call("GET k") == Reply::Null {
            return;
        }
        assert!(asked < bound, "served to one who asked after {asked:?}");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn without_redis_a_node_trusts_itself_for_three_seconds_and_again_once_it_has_caught_up() {
    let fleet = Fleet::start_with(Server::start(&[]), STRICT);
    let (mut client, frozen) = serves_while_frozen(&fleet, Duration::from_secs(2));
    ends_before(&mut client, frozen, BOUND);
    // What it has accepted itself, and what waits for Redis, is known to be newer.
    assert_eq!(client.call("SET own w"), Reply::ok());
    assert_eq!(client.call("GET own"), Reply::bulk("w"));
    fleet.redis.thaw();
    answers(&fleet, 1, "k", &Reply::bulk("v"));
    assert_eq!(fleet.extra(1, "gapsHistoryChanged"), 0);
}

#[test]
fn asked_to_serve_stale_values_a_node_does_so_for_a_while_and_counts_them() {
    let more = "backplane: {maxStaleness: 1s, whenDisconnected: ServeStale, serveStaleFor: 3s}";
    let fleet = Fleet::start_with(Server::start(&[]), more);
    let (mut client, frozen) = serves_while_frozen(&fleet, Duration::from_secs(3));
    assert!(fleet.extra(1, "servedStale") > 0);
    ends_before(&mut client, frozen, Duration::from_secs(5));
}

#[test]
fn a_node_that_was_stopped_serves_nothing_old_when_it_goes_on() {
    let fleet = Fleet::start_with(Server::start(&[]), STRICT);
    for round in 0..3 {
        let old = format!("old {round}");
        fleet.client(0).call_args(&["SET", "k", &old]);
        fleet.settled();
        fleet.warm("k", &old);
        let mut waiting = fleet.client(1);
        waiting.call("PING");
        fleet.node(1).signal(Signal::STOP);
        // On a busy machine Redis may be told a moment later; until then nobody else can know.
        eventually("Redis is told", || fleet.client(0).call("TC.DEL k") == Reply::ok());
        let begun = Instant::now();
        sleep(Duration::from_millis(3200));
        waiting.send(b"GET k\r\n");
        fleet.node(1).signal(Signal::CONT);
        let reply = waiting.reply();
        let after = begun.elapsed();
        let told = waiting.call("TC.EXPLAIN k");
        let there = fleet.redis.cli(&["EXISTS", "{tc:local}:e:k"]);
        assert_eq!(reply, Reply::Null, "round {round}: after {after:?}, {told:?}, in Redis: {there}");
    }
}

#[test]
fn a_node_starts_fenced_when_redis_can_not_be_reached_and_trusts_its_disk_once_it_can() {
    let mut fleet = Fleet::start_with(Server::start(&[]), STRICT);
    fleet.client(2).call("SET k v EX 3600");
    fleet.settled();
    fleet.kill_node(2);
    fleet.redis.freeze();
    fleet.start_node(2);
    assert_eq!(fleet.node(2).admin("GET", "/readyz").status, 503);
    assert_eq!(
        fleet.client(2).call("GET k"),
        Reply::Null,
        "the disk has it, and nobody knows whether it is still good"
    );
    fleet.ready(2);
    assert_eq!(fleet.client(2).call("GET k"), Reply::Null);
    fleet.redis.thaw();
    answers(&fleet, 2, "k", &Reply::bulk("v"));
}

#[test]
fn a_node_started_again_without_redis_serves_what_is_on_its_disk_for_as_long_as_if_it_had_gone_on() {
    let mut fleet = Fleet::start_with(Server::start(&[]), "backplane: {serveStaleFor: 20s}");
    fleet.client(2).call("SET k v EX 3600");
    fleet.settled();
    // Longer than how often it is kept when the node last knew all changes.
    sleep(Duration::from_millis(1500));
    let frozen = Instant::now();
    fleet.redis.freeze();
    fleet.kill_node(2);
    fleet.start_node(2);
    fleet.ready(2);
    let mut client = fleet.client(2);
    while frozen.elapsed() < Duration::from_secs(15) {
        assert_eq!(client.call("GET k"), Reply::bulk("v"), "after {:?}", frozen.elapsed());
        sleep(Duration::from_millis(100));
    }
    ends_before(&mut client, frozen, Duration::from_secs(24));
    fleet.redis.thaw();
    answers(&fleet, 2, "k", &Reply::bulk("v"));
}
