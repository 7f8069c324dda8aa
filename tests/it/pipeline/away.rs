//! A node that ends and starts again while its Redis is away, with writes that Redis has not got.

use super::*;

/// How many writes the layers do not have yet.
fn queued(pipeline: &Pipeline) -> f64 {
    pipeline.node.metric("tieredcache_layer_entries{layer=\"writeQueue\"}").expect("a metric of every node")
}

/// Redis has an older value of every key and comes back with it; meanwhile every second key was overwritten, the others
/// removed, and the node ended. Gives back the node's answers once Redis is used again.
fn across_a_restart(signal: Signal) -> Vec<Reply> {
    let mut pipeline = Pipeline::start_with(Server::that_remembers(), "");
    pipeline.redis_is_used();
    pipeline.is_ready();
    let mut client = pipeline.client();
    for number in 0..100 {
        client.call(&format!("TC.SET k{number} old TAGS 1 {}", if number < 90 { "plain" } else { "red" }));
    }
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    pipeline.redis.kill();
    for number in 0..90 {
        let change = if number % 2 == 0 { format!("SET k{number} new") } else { format!("DEL k{number}") };
        let reply = client.call(&change);
        assert!(!matches!(reply, Reply::Error(_)), "{change}: {reply:?}");
    }
    assert_eq!(client.call("TC.INVALIDATE red"), Reply::Simple("QUEUED".to_owned()));
    assert_eq!(client.call("TC.FLUSH"), Reply::Simple("QUEUED".to_owned()), "the disk has it all, and only the disk");
    assert!(queued(&pipeline) > 0.0, "Redis has not");
    pipeline.node.signal(signal);
    pipeline.node.wait();
    pipeline.node = start(&pipeline.folder, &pipeline.redis, "");
    let mut client = pipeline.client();
    let answers = |client: &mut Client| (0..100).map(|number| client.call(&format!("GET k{number}"))).collect();
    let away: Vec<Reply> = answers(&mut client);
    pipeline.redis.restart();
    pipeline.redis_is_used();
    let back: Vec<Reply> = answers(&mut client);
    assert_eq!(away, back, "what Redis has from before makes no difference");
    // It is away until it takes a batch, and a flush does not wait for what is away.
    eventually("Redis has got it", || queued(&pipeline) == 0.0);
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    // From Redis alone.
    pipeline.restart(true, "");
    pipeline.redis_is_used();
    let mut client = pipeline.client();
    for (number, answer) in back.iter().enumerate() {
        let in_redis = client.call(&format!("GET k{number}"));
        assert!(in_redis == Reply::Null || in_redis == *answer, "k{number}: {in_redis:?}, not {answer:?}");
    }
    back
}

#[test]
fn what_redis_missed_is_told_to_it_also_by_the_next_process_and_nothing_older_is_served() {
    for (number, answer) in across_a_restart(Signal::KILL).into_iter().enumerate() {
        let may_be_new = number < 90 && number % 2 == 0 && answer == Reply::bulk("new");
        assert!(answer == Reply::Null || may_be_new, "k{number} is {answer:?}");
    }
}

#[test]
fn a_node_that_is_stopped_while_redis_is_away_has_all_its_values_afterwards() {
    for (number, answer) in across_a_restart(Signal::TERM).into_iter().enumerate() {
        let expected = if number < 90 && number % 2 == 0 { Reply::bulk("new") } else { Reply::Null };
        assert_eq!(answer, expected, "k{number}");
    }
}

#[test]
fn a_write_through_without_redis_is_acknowledged_by_the_disk_and_never_followed_by_an_older_value() {
    let mut pipeline = Pipeline::start_with(Server::that_remembers(), ", writeMode: WriteThrough");
    pipeline.redis_is_used();
    let mut client = pipeline.client();
    assert_eq!(client.call("SET k old"), Reply::ok());
    pipeline.redis.kill();
    for write in ["SET k newer", "SET k newest XX", "TC.SET k new XX"] {
        let answer = client.call(write);
        assert_eq!(answer, Reply::Simple("QUEUED".to_owned()), "the disk has it, and Redis not yet: {write}");
    }
    assert!(queued(&pipeline) > 0.0, "Redis is owed it");
    pipeline.node.signal(Signal::KILL);
    pipeline.node.wait();
    pipeline.redis.restart();
    pipeline.node = start(&pipeline.folder, &pipeline.redis, ", writeMode: WriteThrough");
    pipeline.redis_is_used();
    let mut client = pipeline.client();
    let answer = client.call("GET k");
    assert!([Reply::Null, Reply::bulk("new")].contains(&answer), "{answer:?}");
    eventually("Redis has lost the older one", || {
        pipeline.outcomes("k").iter().any(|(part, outcome)| part == "redis" && outcome == "miss")
    });
}

#[test]
fn without_a_disk_no_removal_is_acknowledged_that_redis_has_not_got() {
    let without_disk = "}\nlimits: {requestTimeout: 2s";
    let mut pipeline = Pipeline::start_without_disk(Server::that_remembers(), without_disk);
    pipeline.redis_is_used();
    pipeline.is_ready();
    let mut client = pipeline.client();
    for key in ["removed", "cleared", "kept"] {
        client.call(&format!("TC.SET {key} v TAGS 1 red"));
    }
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    assert_eq!(client.call("DEL kept"), Reply::Integer(1));
    pipeline.redis.kill();
    for command in ["DEL removed", "DEL removed", "TC.INVALIDATE red", "FLUSHALL", "TC.FLUSH"] {
        let reply = client.call(command);
        assert!(matches!(&reply, Reply::Error(_)), "{command}: {reply:?}");
        assert_eq!(client.call("GET removed"), Reply::Null, "not served all the same");
    }
    pipeline.redis.restart();
    eventually("Redis has got it", || client.call("TC.FLUSH") == Reply::ok());
    assert_eq!(client.call("DEL removed"), Reply::Integer(0));
    pipeline.node.signal(Signal::KILL);
    pipeline.node.wait();
    pipeline.node = start_without_disk(&pipeline.folder, &pipeline.redis, without_disk);
    pipeline.redis_is_used();
    pipeline.is_ready();
    let mut client = pipeline.client();
    for key in ["removed", "cleared", "kept"] {
        assert_eq!(client.call(&format!("GET {key}")), Reply::Null, "{key}");
    }
}

#[test]
fn what_redis_has_not_got_when_the_time_for_a_stop_is_over_is_counted_in_the_log() {
    let (folder, redis) = (tempdir().unwrap(), Server::start(&[]));
    let redis_of_node = format!("redis: {{mode: External, endpoints: ['{}'], timeout: 200ms}}", redis.address());
    let more = format!("{redis_of_node}\nshutdown: {{drainTimeout: 1s}}");
    let node = Node::start(&config_of_disk(&folder, "minTtl: 1s", &more));
    let mut pipeline = Pipeline { folder, redis, node };
    pipeline.redis_is_used();
    pipeline.redis.freeze();
    let mut client = pipeline.client();
    for number in 0..100 {
        assert_eq!(client.call(&format!("SET k{number} v")), Reply::ok());
    }
    pipeline.node.signal(Signal::TERM);
    let warning = pipeline.node.logged("stopped before all queued writes had reached the layer");
    assert_eq!((warning["layer"].as_str(), warning["lost"].as_u64()), (Some("redis"), Some(100)), "{warning}");
    pipeline.node.logged("closed");
    assert!(pipeline.node.wait().success());
}
