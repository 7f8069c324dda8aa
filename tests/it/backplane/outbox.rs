//! Removals of which Redis can not be told: they hold on their node at once, and everywhere once Redis is told.

use super::*;

fn queued() -> Reply {
    Reply::Simple("QUEUED".to_owned())
}

/// What the way from this node to Redis has counted.
fn counted(fleet: &Fleet, number: usize, name: &str) -> f64 {
    let metric = format!("tieredcache_write_queue_{name}{{layer=\"writeQueue\",to=\"redis\"}}");
    fleet.node(number).metric(&metric).unwrap_or_else(|| panic!("no {metric}"))
}

/// Three values that all nodes have in memory.
fn old_values(fleet: &Fleet) {
    let mut one = fleet.client(0);
    for key in ["k", "t", "c"] {
        one.call(&format!("TC.SET {key} old PX 3600000 TAGS 1 red"));
        one.call("SET other v PX 3600000");
    }
    fleet.settled();
    ["k", "t", "c"].iter().for_each(|key| fleet.warm(key, "old"));
}

fn gone_everywhere(fleet: &Fleet, key: &str) {
    eventually(&format!("{key} is gone everywhere"), || {
        (0..3).all(|number| fleet.client(number).call(&format!("GET {key}")) == Reply::Null)
    });
}

#[test]
fn a_removal_without_redis_is_answered_as_queued_and_told_once_redis_is_back() {
    let fleet = Fleet::start(&[]);
    old_values(&fleet);
    let mut one = fleet.client(0);
    eventually("Redis is told", || one.call("TC.DEL k absent") == Reply::ok());
    let before = counted(&fleet, 0, "replayed_total");
    assert_eq!(counted(&fleet, 0, "lane_removals"), 0.0);
    one.call("SET k old");
    fleet.settled();
    fleet.redis.freeze();
    assert_eq!(one.call("TC.DEL k"), queued());
    assert_eq!(one.call("TC.INVALIDATE red"), queued());
    assert_eq!(one.call("TC.INVALIDATEALL red blue"), queued());
    assert_eq!(one.call("DEL c"), Reply::Integer(0), "a number, as clients expect");
    assert_eq!(counted(&fleet, 0, "lane_removals"), 4.0);
    ["k", "t", "c"].iter().for_each(|key| assert_eq!(one.call(&format!("GET {key}")), Reply::Null));
    // What is written later on the same node is newer.
    one.call("SET k new");
    fleet.redis.thaw();
    eventually("redis is told", || counted(&fleet, 0, "lane_removals") == 0.0);
    // Of the key that was written since, the newer value may be told in place of the removal.
    assert!(counted(&fleet, 0, "replayed_total") >= before + 3.0);
    fleet.settled();
    ["t", "c"].iter().for_each(|key| gone_everywhere(&fleet, key));
    fleet.warm("k", "new");
    eventually("Redis is told of one more", || one.call("TC.INVALIDATE red") == Reply::ok());
    for flush in ["FLUSHALL", "FLUSHDB"] {
        fleet.client(1).call("SET k newer");
        fleet.settled();
        fleet.warm("k", "newer");
        fleet.redis.freeze();
        // A removal finds out that Redis is away.
        assert_eq!(one.call("TC.DEL absent"), queued());
        assert_eq!(one.call(flush), queued());
        assert_eq!(one.call("GET k"), Reply::Null);
        fleet.redis.thaw();
        gone_everywhere(&fleet, "k");
        eventually("a clear is told", || one.call(flush) == Reply::ok());
    }
}

#[test]
fn asked_to_refuse_a_node_answers_an_error_that_names_the_reason_and_the_removal_holds() {
    let fleet = Fleet::start_with(Server::start(&[]), "backplane: {outbox: Refuse}");
    old_values(&fleet);
    let mut one = fleet.client(0);
    fleet.redis.freeze();
    for command in ["TC.DEL k", "DEL k", "UNLINK k", "TC.INVALIDATE red", "FLUSHALL"] {
        let refused = one.call(command).text();
        assert!(
            refused.starts_with("UNAVAILABLE Redis can not be told of the removal: redis "),
            "{command}: {refused}"
        );
        assert_eq!(one.call("GET k"), Reply::Null);
    }
    fleet.redis.thaw();
    eventually("it is no longer refused", || one.call("TC.DEL k") == Reply::ok());
    ["k", "t", "c"].iter().for_each(|key| gone_everywhere(&fleet, key));
}

#[test]
fn a_removal_that_redis_was_not_told_of_does_not_keep_its_node_from_a_log_that_others_have_begun_anew() {
    let mut fleet = Fleet::start_with(Server::that_remembers(), "");
    old_values(&fleet);
    fleet.redis.kill();
    assert_eq!(fleet.client(0).call("TC.INVALIDATE red"), queued());
    fleet.kill_node(0);
    fleet.redis.restart();
    // Nobody can say for the node that is away whether Redis has all of its records.
    let begun_anew = |number| fleet.extra(number, "gapsHistoryChanged") + fleet.extra(number, "gapsAnnounced") > 0;
    eventually("the others begin anew", || begun_anew(1) && begun_anew(2));
    fleet.start_node(0);
    fleet.ready(0);
    ["k", "t", "c"].iter().for_each(|key| gone_everywhere(&fleet, key));
    let mut one = fleet.client(0);
    assert_eq!(one.call("TC.SET k new PX 3600000 TAGS 1 red"), Reply::ok());
    fleet.settled();
    fleet.warm("k", "new");
}

#[test]
fn whatever_is_killed_meanwhile_nothing_older_than_a_removal_comes_back_and_what_is_newer_stays() {
    let mut fleet = Fleet::start_with(Server::that_remembers(), "");
    for round in 0..8 {
        let (is_killed, is_early, is_clear) = (round % 2 == 0, round % 4 < 2, round >= 4);
        old_values(&fleet);
        let mut one = fleet.client(0);
        if is_killed {
            fleet.redis.kill()
        } else {
            fleet.redis.freeze()
        }
        assert_eq!(one.call("TC.DEL k"), queued(), "round {round}");
        assert_eq!(one.call("TC.INVALIDATE red"), queued(), "round {round}");
        if is_clear {
            assert_eq!(one.call("FLUSHALL"), queued(), "round {round}");
        }
        fleet.kill_node(0);
        if is_early {
            fleet.start_node(0);
            assert_eq!(fleet.client(0).call("GET k"), Reply::Null, "round {round}");
        }
        if is_killed {
            fleet.redis.restart()
        } else {
            fleet.redis.thaw()
        }
        if !is_early {
            fleet.start_node(0);
        }
        let mut one = fleet.client(0);
        eventually("the node is ready, and serves nothing old until then", || {
            ["k", "t"].iter().for_each(|key| assert_eq!(one.call(&format!("GET {key}")), Reply::Null, "round {round}"));
            fleet.node(0).admin("GET", "/readyz").status == 200
        });
        ["k", "t"].iter().for_each(|key| gone_everywhere(&fleet, key));
        if is_clear {
            gone_everywhere(&fleet, "other");
        }
        eventually("redis is told", || counted(&fleet, 0, "lane_removals") == 0.0);
        fleet.settled();
        let mut other = fleet.client(1);
        for key in ["k", "t"] {
            assert_eq!(other.call(&format!("TC.SET {key} new PX 3600000 TAGS 1 red")), Reply::ok());
        }
        fleet.settled();
        ["k", "t"].iter().for_each(|key| fleet.warm(key, "new"));
    }
}
