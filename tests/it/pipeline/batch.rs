//! Many keys in one command cost one round trip to each layer.

use super::*;

/// How often Redis was asked for keys.
fn round_trips(redis: &mut Client) -> u64 {
    let stats = redis.call("INFO commandstats").text();
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_mget:calls="));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_thousand_cold_keys_are_one_round_trip_to_redis_and_one_to_the_disk() {
    // Of memory there is less than the values take, and the disk has lost them.
    let mut pipeline = Pipeline::start("}\nmemory: {capacity: 1Mi");
    pipeline.redis_is_used();
    pipeline.is_ready();
    let mut client = pipeline.client();
    let value = "v".repeat(3000);
    for number in 0..1000 {
        client.call(&format!("SET k{number} {value}"));
        if number % 50 == 49 {
            eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
        }
    }
    pipeline.restart(true, "}\nmemory: {capacity: 1Mi");
    pipeline.redis_is_used();
    pipeline.is_ready();
    let mut client = pipeline.client();
    // By now the node has met a value.
    assert_eq!(client.call("MGET k0 k1"), Reply::Array(vec![Reply::bulk(&value), Reply::bulk(&value)]));
    let names: Vec<String> = (0..1000).map(|number| format!("k{number}")).collect();
    let (asked, mut redis) = (names.join(" "), Client::connect(pipeline.redis.address()));
    let disk = |pipeline: &Pipeline| {
        let count = "tieredcache_layer_latency_seconds_count{layer=\"disk\",operation=\"get_many\"}";
        pipeline.node.metric(count).expect("a metric of every node")
    };
    // The node also asks Redis by itself, on each connection over which it has long heard nothing.
    eventually("one round trip to Redis for each, and one to the disk for what Redis has not", || {
        let before = (round_trips(&mut redis), disk(&pipeline));
        let Reply::Array(values) = client.call(&format!("MGET {asked}")) else { panic!("an array") };
        assert!(values.len() == 1000 && values.iter().all(|found| *found == Reply::bulk(&value)));
        assert_eq!(client.call(&format!("EXISTS {}", asked.replace('k', "none"))), Reply::Integer(0));
        let after = (round_trips(&mut redis), disk(&pipeline));
        (after.0 - before.0, after.1 - before.1) == (2, 1.0)
    });
}
