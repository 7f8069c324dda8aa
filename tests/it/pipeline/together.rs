//! Changes go to Redis many at a time, each with a record of its own.

use super::*;

/// How many records Redis was given, and how often it has read from a socket.
fn counted(redis: &mut Client) -> (u64, u64) {
    let number = |text: &str, name: &str| -> u64 {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        rest.split(',').next().and_then(|number| number.parse().ok()).expect("a number")
    };
    let records = number(&redis.call("INFO commandstats").text(), "cmdstat_xadd:calls=");
    (records, number(&redis.call("INFO stats").text(), "total_reads_processed:"))
}

#[test]
fn a_thousand_changes_have_a_record_each_and_reach_redis_together() {
    let pipeline = Pipeline::start("");
    pipeline.redis_is_used();
    pipeline.is_ready();
    let (mut client, mut redis) = (pipeline.client(), Client::connect(pipeline.redis.address()));
    let mut written = |command: &str, reply: &Reply| {
        assert_eq!(client.call(command), *reply);
        eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    };
    // Redis is given the scripts with the first of all changes.
    written("SET first v", &Reply::ok());
    let each = |what: &str| (0..1000).map(|number| format!("k{number}{what}")).collect::<Vec<_>>().join(" ");
    let (set, remove) = (format!("MSET {}", each(" v")), format!("DEL {}", each("")));
    for (command, reply) in [(set, Reply::ok()), (remove, Reply::Integer(1000))] {
        let before = counted(&mut redis);
        written(&command, &reply);
        let after = counted(&mut redis);
        let (records, reads) = (after.0 - before.0, after.1 - before.1);
        assert!(records >= 1000, "{records}");
        // One by one they would be as many. Meanwhile the node follows the log, and looks whether Redis is there.
        assert!(reads < 250, "{reads} reads for {records} records");
    }
}
