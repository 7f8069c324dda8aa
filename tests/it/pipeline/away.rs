//! A node that ends and starts again while its Redis is away, with writes that Redis has not got.

use super::*;

/// How many writes the layers do not have yet.
fn queued(pipeline: &Pipeline) -> f64 {
    pipeline.node.metric("tieredcache_layer_entries{layer=\"writeQueue\"}").expect("a metric of every node")
}

/// Redis has an older value of every key and comes back with it; meanwhile every second key was overwritten, the others
/// removed, and the node ended. Gives back the node's answers once Redis is used again.
fn across_a_restart(signal: Signal) -> Vec<Reply> {
    let mut pipeline = Pipeline::start_with(RedisServer::that_remembers(), "");
    pipeline.redis_is_used();
    let mut client = pipeline.client();
    for number in 0..100 {
        client.call(&format!("TC.SET k{number} old TAGS 1 {}", if number < 90 { "plain" } else { "red" }));
    }
    assert_eq!(client.call("TC.FLUSH"), Reply::ok());
    pipeline.redis.kill();
    for number in 0..90 {
        let change = if number % 2 == 0 { format!("SET k{number} new") } else { format!("DEL k{number}") };
        let reply = client.call(&change);
        assert!(!matches!(reply, Reply::Error(_)), "{change}: {reply:?}");
    }
    assert_eq!(client.call("TC.INVALIDATE red"), Reply::ok());
    assert_eq!(client.call("TC.FLUSH"), Reply::ok(), "the disk has it all");
    assert!(queued(&pipeline) > 0.0, "Redis has not");
    pipeline.node.signal(signal);
    pipeline.node.wait();
    pipeline.node = start(&pipeline.folder, &pipeline.redis, "");
    let mut client = pipeline.client();
    let answers = |client: &mut Client| (0..100).map(|number| client.call(&format!("GET k{number}"))).collect();
    let away: Vec<Reply> = answers(&mut client);
    pipeline.redis.start_again();
    pipeline.redis_is_used();
    let back: Vec<Reply> = answers(&mut client);
    assert_eq!(away, back, "what Redis has from before makes no difference");
    assert_eq!(client.call("TC.FLUSH"), Reply::ok());
    eventually("Redis has got it", || queued(&pipeline) == 0.0);
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
