//! A Redis without room that gives up values, and nothing else.

use super::*;
use crate::resp::client::request;

/// Values that Redis has to give up before it is believed that it would have given up other things as well.
const EVICTED: u64 = 500;

/// Values that are written at once.
const WRITTEN_AT_ONCE: usize = 50;

/// What Redis has to keep: the floor, the token of the log, the place of a removal by tag, and its record.
fn kept(redis: &Server) -> [String; 4] {
    let key = |name: &str| format!("{{tc:local}}:{name}");
    let removal = redis.cli(&["HGET", &key("tags"), "t:red"]);
    let record = redis.cli(&["XRANGE", &key("log"), &removal, &removal]);
    let kept = [redis.cli(&["GET", &key("floor")]), redis.cli(&["GET", &key("epoch")]), removal, record];
    assert!(kept.iter().all(|kept| !kept.is_empty()), "{kept:?}");
    kept
}

fn evicted(redis: &Server) -> u64 {
    let info = redis.cli(&["INFO", "stats"]);
    let found = info.lines().find_map(|line| line.strip_prefix("evicted_keys:")?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("evicted_keys in {info}"))
}

#[test]
fn a_full_redis_gives_up_values_and_neither_the_log_nor_what_was_removed() {
    let mut fleet = Fleet::start(&["--maxmemory", "16mb", "--maxmemory-policy", "volatile-lru"]);
    let (mut one, mut redis) = (fleet.client(0), Client::connect(fleet.redis.address()));
    one.call("TC.SET tagged v PX 3600000 TAGS 1 red");
    fleet.settled();
    fleet.warm("tagged", "v");
    let Reply::Bulk(older) = redis.call("GET {tc:local}:e:tagged") else { panic!("redis has the value") };
    eventually("redis has the removal", || one.call("TC.INVALIDATE red") == Reply::ok());
    gone(&fleet, "tagged");
    fleet.settled();
    let before = kept(&fleet.redis);
    // Of the kind that no compression makes smaller.
    let noise: Vec<u8> = (0..2048).flat_map(|_| rand::random::<u64>().to_le_bytes()).collect();
    let mut written = 0;
    eventually("redis gives up values", || {
        let set = |number: usize| {
            let (key, life) = (format!("full{number}"), b"3600000".as_slice());
            request(&[b"SET".as_slice(), key.as_bytes(), noise.as_slice(), b"PX".as_slice(), life])
        };
        let sets: Vec<u8> = (written..written + WRITTEN_AT_ONCE).flat_map(set).collect();
        one.pipeline(&sets, WRITTEN_AT_ONCE);
        written += WRITTEN_AT_ONCE;
        evicted(&fleet.redis) > EVICTED
    });
    fleet.settled();
    // From here on it gives up nothing more.
    assert_eq!(redis.call("CONFIG SET maxmemory 0"), Reply::ok());
    assert_eq!(kept(&fleet.redis), before);
    assert_eq!(gaps(&fleet, &ALL), [0, 0, 0]);
    // As if it had come late, or from a backup: a value from before the removal.
    let key = b"{tc:local}:e:tagged".as_slice();
    let restored = [b"SET".as_slice(), key, older.as_slice(), b"PX".as_slice(), b"3600000".as_slice()];
    assert_eq!(redis.call_args(&restored), Reply::ok());
    // A node that begins with nothing knows of the removal by Redis alone.
    fleet.kill_node(2);
    fleet.folders[2] = tempdir().unwrap();
    fleet.start_node(2);
    fleet.ready(2);
    for number in 0..3 {
        assert_eq!(fleet.client(number).call("GET tagged"), Reply::Null, "node {number}");
    }
    assert_eq!(gaps(&fleet, &ALL), [0, 0, 0]);
    serves(&fleet, "after");
}
