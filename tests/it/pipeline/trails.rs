//! The slow log names the layer that took the time.

use super::*;
use crate::redis::wire::{Fault, Wire};

const LATE: Duration = Duration::from_millis(300);

/// A node behind a wire to its Redis, with every command in its slow log.
fn start(limits: &str) -> (Node, Client, Wire, Server, TempDir) {
    let (redis, folder) = (Server::start(&[]), tempdir().unwrap());
    let wire = Wire::to(redis.address());
    let more = format!(
        "slowLog: {{threshold: 0s}}\n{limits}\nredis: {{mode: External, endpoints: ['{}'], timeout: 2s, writeMode: WriteThrough}}",
        wire.address
    );
    let node = Node::start(&config_of_disk(&folder, "minTtl: 0s", &more));
    eventually("ready", || node.admin("GET", "/readyz").status == 200);
    let client = Client::connect(node.resp);
    (node, client, wire, redis, folder)
}

/// What the log tells of the last command: its trail, each step as words, and the number of its operation.
fn last(client: &mut Client) -> (Vec<Vec<String>>, i64) {
    let Reply::Array(mut entries) = client.call("SLOWLOG GET 1") else { panic!("an array") };
    let Reply::Array(entry) = entries.remove(0) else { panic!("an array") };
    let Reply::Array(steps) = &entry[6] else { panic!("an array: {entry:?}") };
    let Reply::Integer(operation) = entry[7] else { panic!("a number: {entry:?}") };
    (steps.iter().map(|step| step.clone().text().split(' ').map(str::to_owned).collect()).collect(), operation)
}

/// The time of the step that begins with these words.
fn took(steps: &[Vec<String>], begins: &str) -> Duration {
    let step = steps.iter().find(|step| step.join(" ").starts_with(begins));
    let step = step.unwrap_or_else(|| panic!("no step {begins}: {steps:?}"));
    let micros = step.last().and_then(|took| took.strip_suffix("us")?.parse().ok());
    Duration::from_micros(micros.unwrap_or_else(|| panic!("no time: {step:?}")))
}

#[test]
fn a_cold_read_and_a_removal_name_the_layer_that_took_the_time() {
    let (_node, mut client, wire, _redis, _folder) = start("limits: {requestTimeout: 10s}");
    wire.set(Fault::Late(LATE, Duration::ZERO));
    assert_eq!(client.call("GET absent"), Reply::Null);
    let (steps, _) = last(&mut client);
    assert!(took(&steps, "redis miss") >= LATE, "{steps:?}");
    assert!(took(&steps, "disk miss") < took(&steps, "redis miss"), "{steps:?}");
    assert_eq!(client.call("MGET a b c"), Reply::Array(vec![Reply::Null, Reply::Null, Reply::Null]));
    let (steps, _) = last(&mut client);
    assert!(took(&steps, "redis miss 0 of 3 keys") >= LATE, "{steps:?}");
    assert_eq!(client.call("SET k v"), Reply::ok());
    let (steps, _) = last(&mut client);
    assert!(took(&steps, "redis written") >= LATE.max(took(&steps, "disk written")), "{steps:?}");
    assert_eq!(client.call("DEL k other"), Reply::Integer(1));
    let (steps, _) = last(&mut client);
    assert!(took(&steps, "redis written 2 keys") >= LATE, "{steps:?}");
    assert!(took(&steps, "redis miss") >= LATE, "{steps:?}");
    for command in ["FLUSHALL", "TC.INVALIDATE red"] {
        assert_eq!(client.call(command), Reply::ok());
        let (steps, _) = last(&mut client);
        assert!(took(&steps, "redis written") >= LATE, "{command}: {steps:?}");
    }
    assert_eq!(client.call("INCR n"), Reply::Integer(1));
    let (steps, _) = last(&mut client);
    assert!(took(&steps, "redis miss") >= LATE && took(&steps, "redis written") >= LATE, "{steps:?}");
}

#[test]
fn a_read_that_passes_its_deadline_names_the_layer_and_counts_as_failed() {
    let (node, mut client, wire, _redis, _folder) = start("limits: {requestTimeout: 200ms}");
    wire.set(Fault::Late(LATE, Duration::ZERO));
    assert_eq!(client.call("GET absent"), Reply::Null);
    // Either it has given up by then, or nobody waits for it any longer.
    let in_vain = |steps: &[Vec<String>]| {
        let failed = steps.iter().any(|step| step[..2] == ["redis", "failed"]);
        took(steps, if failed { "redis failed" } else { "redis late" })
    };
    let (steps, _) = last(&mut client);
    assert!(in_vain(&steps) >= Duration::from_millis(150), "{steps:?}");
    assert_eq!(client.call("MGET a b"), Reply::Array(vec![Reply::Null, Reply::Null]));
    let (steps, _) = last(&mut client);
    assert!(in_vain(&steps) >= Duration::from_millis(150), "{steps:?}");
    let ended = |result| node.metric(&format!("tieredcache_requests_total{{result=\"{result}\"}}"));
    assert_eq!((ended("failed"), ended("miss")), (Some(3.0), Some(0.0)));
    assert!(matches!(client.call("DEL k"), Reply::Error(_)), "nobody knows whether Redis has it");
    took(&last(&mut client).0, "redis unconfirmed");
}

#[test]
fn the_slow_log_and_explain_know_an_operation_by_the_same_number() {
    let (_node, mut client, _wire, _redis, _folder) = start("");
    client.call("HELLO 3");
    let Reply::Integer(explained) = client.call("TC.EXPLAIN k").field("operation") else { panic!("a number") };
    client.call("HELLO 2");
    let Reply::Array(entries) = client.call("SLOWLOG GET 2") else { panic!("an array") };
    let Reply::Array(explain) = &entries[1] else { panic!("an array") };
    assert_eq!(explain[7], Reply::Integer(explained));
}
