//! The slow log names the layer that took the time.

use super::*;
use crate::redis::wire::{Fault, Wire};

const LATE: Duration = Duration::from_millis(300);

/// What the log tells of one command.
struct Told {
    /// The number of its operation.
    operation: i64,
    /// How long that had.
    deadline: String,
    /// Its trail, each step as words.
    steps: Vec<Vec<String>>,
}

/// A node behind a wire to its Redis, which it gives half the time that a request has, with every command in its slow log.
fn start(request_timeout: Duration) -> (Node, Client, Wire, Server, TempDir) {
    let (redis, folder) = (Server::start(&[]), tempdir().unwrap());
    let wire = Wire::to(redis.address());
    let more = format!(
        "slowLog: {{threshold: 0s}}\nlimits: {{requestTimeout: {}ms}}\nredis: {{mode: External, endpoints: ['{}'], timeout: {}ms, \
         writeMode: WriteThrough}}",
        request_timeout.as_millis(),
        wire.address,
        request_timeout.as_millis() / 2
    );
    let node = Node::start(&config_of_disk(&folder, "minTtl: 0s", &more));
    eventually("ready", || node.admin("GET", "/readyz").status == 200);
    let client = Client::connect(node.resp);
    (node, client, wire, redis, folder)
}

/// What the log tells of the last commands, the newest first.
fn newest(client: &mut Client, count: usize) -> Vec<Told> {
    let Reply::Array(entries) = client.call(&format!("SLOWLOG GET {count}")) else { panic!("an array") };
    entries.iter().map(Told::of).collect()
}

/// The trail of the last command.
fn last(client: &mut Client) -> Vec<Vec<String>> {
    newest(client, 1).remove(0).steps
}

// === impl Told ===

impl Told {
    /// Reads the last argument of an entry, such as
    /// `# operation 17 of a client, deadline 1000 ms: redis miss 12034us; disk hit 80us`.
    fn of(entry: &Reply) -> Self {
        let Reply::Array(entry) = entry else { panic!("an array: {entry:?}") };
        let Reply::Array(args) = &entry[3] else { panic!("an array: {entry:?}") };
        let text = args.last().expect("what was done is always told").text();
        let (head, steps) = text.split_once(": ").unwrap_or_else(|| panic!("no steps: {text}"));
        let facts = head.strip_prefix("# operation ").and_then(|facts| facts.split_once(" of a client, deadline "));
        let (number, deadline) = facts.unwrap_or_else(|| panic!("neither number nor deadline: {text}"));
        Self {
            operation: number.parse().unwrap_or_else(|_| panic!("no number: {text}")),
            deadline: deadline.to_owned(),
            steps: steps.split("; ").map(|step| step.split(' ').map(str::to_owned).collect()).collect(),
        }
    }
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
    let (_node, mut client, wire, _redis, _folder) = start(Duration::from_secs(10));
    wire.set(Fault::Late(LATE, Duration::ZERO));
    assert_eq!(client.call("GET absent"), Reply::Null);
    let steps = last(&mut client);
    assert!(took(&steps, "redis miss") >= LATE, "{steps:?}");
    assert!(took(&steps, "disk miss") < took(&steps, "redis miss"), "{steps:?}");
    assert_eq!(client.call("MGET a b c"), Reply::Array(vec![Reply::Null, Reply::Null, Reply::Null]));
    let steps = last(&mut client);
    assert!(took(&steps, "redis miss 0 of 3 keys") >= LATE, "{steps:?}");
    assert_eq!(client.call("SET k v"), Reply::ok());
    let steps = last(&mut client);
    assert!(took(&steps, "redis written") >= LATE.max(took(&steps, "disk written")), "{steps:?}");
    assert_eq!(client.call("DEL k other"), Reply::Integer(1));
    let steps = last(&mut client);
    assert!(took(&steps, "redis written 2 keys") >= LATE, "{steps:?}");
    assert!(took(&steps, "redis miss") >= LATE, "{steps:?}");
    for command in ["FLUSHALL", "TC.INVALIDATE red"] {
        assert_eq!(client.call(command), Reply::ok());
        let steps = last(&mut client);
        assert!(took(&steps, "redis written") >= LATE, "{command}: {steps:?}");
    }
    assert_eq!(client.call("INCR n"), Reply::Integer(1));
    let steps = last(&mut client);
    assert!(took(&steps, "redis miss") >= LATE && took(&steps, "redis written") >= LATE, "{steps:?}");
}

#[test]
fn a_read_that_the_disk_settles_without_io_names_it_where_every_command_is_told() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config_of_disk(&folder, "minTtl: 0s", "slowLog: {threshold: 0s}"));
    let mut client = Client::connect(node.resp);
    for command in ["GET absent", "MGET absent absent", "EXISTS absent"] {
        client.call(command);
        let steps = last(&mut client);
        assert!(took(&steps, "disk miss") > Duration::ZERO, "{command}: {steps:?}");
    }
    assert_eq!(client.call("SET k v"), Reply::ok());
    assert_eq!(client.call("GET k"), Reply::bulk("v"));
    assert_eq!(last(&mut client), [["without", "I/O"]]);
}

#[test]
fn a_read_that_passes_its_deadline_names_the_layer_and_counts_as_failed() {
    let (node, mut client, wire, _redis, _folder) = start(Duration::from_millis(400));
    wire.set(Fault::Late(LATE, Duration::ZERO));
    assert_eq!(client.call("GET absent"), Reply::Null);
    // Either it has given up by then, or nobody waits for it any longer.
    let in_vain = |steps: &[Vec<String>]| {
        let failed = steps.iter().any(|step| step[..2] == ["redis", "failed"]);
        took(steps, if failed { "redis failed" } else { "redis late" })
    };
    let steps = last(&mut client);
    assert!(in_vain(&steps) >= Duration::from_millis(150), "{steps:?}");
    assert_eq!(newest(&mut client, 2)[1].deadline, "400 ms", "as long as the read had");
    assert_eq!(client.call("MGET a b"), Reply::Array(vec![Reply::Null, Reply::Null]));
    let steps = last(&mut client);
    assert!(in_vain(&steps) >= Duration::from_millis(150), "{steps:?}");
    let ended = |result| node.metric(&format!("tieredcache_requests_total{{result=\"{result}\"}}"));
    assert_eq!((ended("failed"), ended("miss")), (Some(3.0), Some(0.0)));
    // Nobody knows whether Redis has it, or it is known to be away.
    let is_queued = client.call("TC.DEL k") == Reply::Simple("QUEUED".to_owned());
    took(&last(&mut client), if is_queued { "redis excused" } else { "redis unconfirmed" });
}

#[test]
fn the_slow_log_and_explain_know_an_operation_by_the_same_number() {
    let (_node, mut client, _wire, _redis, _folder) = start(Duration::from_secs(10));
    client.call("HELLO 3");
    let Reply::Integer(explained) = client.call("TC.EXPLAIN k").field("operation") else { panic!("a number") };
    client.call("HELLO 2");
    assert_eq!(newest(&mut client, 2)[1].operation, explained);
}
