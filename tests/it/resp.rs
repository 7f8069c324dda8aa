//! The RESP front end from outside: what Redis would answer, what only this server answers, and what it withstands.

pub(crate) mod client;
mod differential;
mod hostile;
mod own;
mod slow_log;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use tempfile::{TempDir, tempdir};

use self::client::{Client, Reply, request};
use crate::program::{Node, PATIENCE, config};

fn node() -> (TempDir, Node, Client) {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, ""));
    let client = Client::connect(node.resp);
    (folder, node, client)
}

// === connection ===

#[test]
fn hello_chooses_the_protocol_and_tells_about_the_server() {
    let (_folder, _node, mut client) = node();
    let Reply::Map(facts) = client.call("HELLO 3 SETNAME me") else { panic!("RESP3 has maps") };
    let fact = |name: &str| facts.iter().find(|(key, _)| *key == Reply::bulk(name)).map(|(_, value)| value.clone());
    assert_eq!(fact("proto"), Some(Reply::Integer(3)));
    assert_eq!(fact("server"), Some(Reply::bulk("redis")));
    assert_eq!(fact("mode"), Some(Reply::bulk("standalone")));
    assert!(matches!(fact("id"), Some(Reply::Integer(1..))));
    assert_eq!(client.call("CLIENT GETNAME"), Reply::bulk("me"));
    assert_eq!(client.call("GET missing"), Reply::Null);
    assert!(matches!(client.call("HELLO 2"), Reply::Array(items) if items.len() == 14));
    assert_eq!(client.call("HELLO 4"), Reply::error("NOPROTO unsupported protocol version"));
    assert_eq!(client.call("HELLO 3 NOPE"), Reply::error("ERR Syntax error in HELLO option 'NOPE'"));
    let no_password = client.call("HELLO 3 AUTH default secret").text();
    assert!(no_password.contains("without any password configured"), "{no_password}");
    assert_eq!(client.call("RESET"), Reply::Simple("RESET".to_owned()));
    assert_eq!(client.call("CLIENT GETNAME"), Reply::Null);
}

#[test]
fn a_client_can_name_and_describe_itself() {
    let (_folder, _node, mut client) = node();
    assert_eq!(client.call("CLIENT SETNAME tester"), Reply::ok());
    assert_eq!(client.call("CLIENT SETINFO LIB-NAME lib"), Reply::ok());
    assert_eq!(client.call("client setinfo lib-ver 1.2"), Reply::ok());
    let Reply::Integer(id) = client.call("CLIENT ID") else { panic!("an id is a number") };
    let info = client.call("CLIENT INFO").text();
    for field in [&format!("id={id} "), "name=tester ", "lib-name=lib ", "lib-ver=1.2 ", "resp=2 ", "addr=127.0.0.1:"] {
        assert!(info.contains(field), "{field} in {info}");
    }
    let refused = Reply::error("ERR Client names cannot contain spaces, newlines or special characters.");
    assert_eq!(client.call_args(&["CLIENT", "SETNAME", "a b"]), refused);
    assert_eq!(client.call("CLIENT KILL x"), Reply::error("ERR unknown subcommand 'KILL'. Try CLIENT HELP."));
    assert!(matches!(client.call("CLIENT HELP"), Reply::Array(_)));
}

#[test]
fn quit_answers_what_came_before_and_closes() {
    let (_folder, _node, mut client) = node();
    client.send(b"PING\r\nQUIT\r\nPING\r\n");
    assert_eq!(client.rest(), "+PONG\r\n+OK\r\n");
}

// === server ===

#[test]
fn the_capacity_of_memory_changes_while_the_node_runs_and_the_policy_does_not() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, "memory: {capacity: 32Mi}"));
    let mut client = Client::connect(node.resp);
    let value = "x".repeat(1000);
    for number in 0..20_000 {
        client.send(&request(&["SET", &format!("k{number}"), &value]));
    }
    (0..20_000).for_each(|_| assert_eq!(client.reply(), Reply::ok()));
    let bytes = || node.metric("tieredcache_layer_bytes{layer=\"memory\"}").unwrap();
    assert!(bytes() > 15e6);
    assert_eq!(client.call("CONFIG SET maxmemory 4mb"), Reply::ok());
    assert!(bytes() <= 4.0 * 1024.0 * 1024.0 * 1.05, "{}", bytes());
    let expected = Reply::Array(vec![Reply::bulk("maxmemory"), Reply::bulk("4194304")]);
    assert_eq!(client.call("CONFIG GET maxmemory"), expected);
    assert_eq!(client.call("CONFIG SET maxmemory 64mb"), Reply::ok());
    let refusal = |what: &str, why: &str| {
        Reply::error(&format!("ERR CONFIG SET failed (possibly related to argument '{what}') - {why}"))
    };
    let policy = "memory.policy of the node's configuration chooses it at the start";
    assert_eq!(client.call("CONFIG SET maxmemory-policy allkeys-lfu"), refusal("maxmemory-policy", policy));
    assert_eq!(client.call("CONFIG SET maxmemory 1kb"), refusal("maxmemory", "'1kb' is not a size of 1Mi to 1Ti"));
    assert_eq!(client.call("CONFIG SET port 1"), refusal("port", "can't set immutable config"));
    let unknown = Reply::error("ERR Unknown option or number of arguments for CONFIG SET - 'nothing'");
    assert_eq!(client.call("CONFIG SET nothing 1"), unknown);
}

#[test]
fn commands_describe_themselves() {
    let (_folder, _node, mut client) = node();
    let Reply::Integer(count) = client.call("COMMAND COUNT") else { panic!("a count") };
    let Reply::Array(all) = client.call("COMMAND") else { panic!("an array") };
    assert_eq!(all.len(), usize::try_from(count).unwrap());
    let Reply::Array(some) = client.call("COMMAND INFO get nonsense mset") else { panic!("an array") };
    assert!(matches!(&some[0], Reply::Array(get) if get[..2] == [Reply::bulk("get"), Reply::Integer(2)]));
    assert_eq!(some[1], Reply::NullArray);
    let Reply::Array(docs) = client.call("COMMAND DOCS get") else { panic!("an array") };
    assert_eq!(docs[0], Reply::bulk("get"));
}

#[test]
fn own_commands_describe_themselves_like_those_of_redis() {
    let (_folder, _node, mut client) = node();
    client.call("HELLO 3");
    let Reply::Map(all) = client.call("COMMAND DOCS") else { panic!("a map") };
    let own = ["set", "tags", "invalidate", "invalidateall", "explain", "layers", "flush", "getlease", "fill"];
    for name in own.map(|name| format!("tc.{name}")) {
        let (_, docs) = all.iter().find(|(known, _)| *known == Reply::bulk(&name)).expect("it is among all");
        assert!(!docs.field("summary").text().is_empty(), "{name}: {docs:?}");
        assert_eq!(client.call(&format!("COMMAND DOCS {name}")).field(&name), *docs, "{name} asked for alone");
        let Reply::Array(info) = client.call(&format!("COMMAND INFO {name}")) else { panic!("an array") };
        assert!(matches!(&info[0], Reply::Array(info) if info[0] == Reply::bulk(&name)), "{name}: {info:?}");
    }
}

#[test]
fn tiny_lfu_refuses_another_capacity_with_the_reason() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, "memory: {policy: TinyLfu, capacity: 8Mi}"));
    let mut client = Client::connect(node.resp);
    let refused = "ERR CONFIG SET failed (possibly related to argument 'maxmemory') - the capacity of TinyLFU is fixed \
                   when the node starts; restart the node to change it";
    assert_eq!(client.call("CONFIG SET maxmemory 4mb"), Reply::error(refused));
    assert_eq!(client.call("CONFIG SET maxmemory 8mb"), Reply::ok(), "what holds already");
    assert!(node.report()["layers"][0]["stats"]["capacityBytes"] == 8 << 20, "nothing has changed");
}

#[test]
fn info_has_what_clients_and_people_look_for() {
    let (_folder, _node, mut client) = node();
    client.call("SET k v");
    let info = client.call("INFO").text();
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("{name} in {info}")).to_owned()
    };
    assert_eq!(field("redis_version"), "7.4.0");
    assert_eq!(field("tieredcache_version"), env!("CARGO_PKG_VERSION"));
    assert_eq!((field("loading").as_str(), field("role").as_str()), ("0", "master"));
    assert_eq!(field("connected_clients"), "1");
    assert!(field("used_memory").parse::<u64>().unwrap() > 100_000);
    assert!(field("used_memory_rss").parse::<u64>().unwrap() > 1_000_000);
    assert!(field("db0").starts_with("keys=1,"));
    assert!(!client.call("INFO clients").text().contains("redis_version"));
}

#[test]
fn config_get_answers_under_the_names_of_redis() {
    let (_folder, node, mut client) = node();
    let expected = |name: &str, value: &str| Reply::Array(vec![Reply::bulk(name), Reply::bulk(value)]);
    assert_eq!(client.call("CONFIG GET save"), expected("save", ""));
    assert_eq!(client.call("CONFIG GET append*"), expected("appendonly", "no"));
    assert_eq!(client.call("CONFIG GET port"), expected("port", &node.resp.port().to_string()));
    assert_eq!(client.call("CONFIG GET maxmemory"), expected("maxmemory", "268435456"));
    assert_eq!(client.call("CONFIG GET nothing"), Reply::Array(vec![]));
    assert_eq!(client.call("CONFIG REWRITE"), Reply::error("ERR unknown subcommand 'REWRITE'. Try CONFIG HELP."));
}

#[test]
fn time_is_now_and_dbsize_counts() {
    let (_folder, _node, mut client) = node();
    let Reply::Array(time) = client.call("TIME") else { panic!("an array") };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(time[0].text().parse::<u64>().unwrap().abs_diff(now) < PATIENCE.as_secs());
    client.call("MSET a 1 b 2 c 3");
    assert_eq!(client.call("DBSIZE"), Reply::Integer(3));
    assert_eq!(client.call("FLUSHALL ASYNC"), Reply::ok());
    assert_eq!(client.call("DBSIZE"), Reply::Integer(0));
}

// === keys and values ===

#[test]
fn a_key_lives_to_the_millisecond_it_was_given() {
    let (_folder, _node, mut client) = node();
    assert_eq!(client.call("SET k v PX 1500"), Reply::ok());
    let started = Instant::now();
    let Reply::Integer(life @ 1..=1500) = client.call("PTTL k") else { panic!("a life within 1500 ms") };
    while client.call("GET k") != Reply::Null {
        assert!(started.elapsed() < PATIENCE, "the key outlives its 1500 ms");
    }
    let elapsed = i64::try_from(started.elapsed().as_millis()).unwrap();
    // The clocks of both processes are the same; a millisecond may be cut off on either side.
    assert!(elapsed + 2 >= life - 2, "gone after {elapsed} ms of {life}");
    assert_eq!(client.call("PTTL k"), Reply::Integer(-2));
}

#[test]
fn values_of_any_size_up_to_the_limit_come_back_as_they_were() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, "limits: {valueBytesMax: 8Mi}"));
    let mut client = Client::connect(node.resp);
    for length in [0, 1, 16_383, 16_384, 65_535, 65_536, 1_000_000, 8 << 20] {
        let value: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        assert_eq!(client.call_args(&[b"SET", b"k".as_slice(), &value]), Reply::ok());
        assert!(client.call("GET k") == Reply::Bulk(value), "{length} bytes");
    }
    let long = vec![b'x'; (8 << 20) - 1];
    assert_eq!(client.call_args(&[b"SET", b"k".as_slice(), &long]), Reply::ok());
    assert_eq!(client.call("APPEND k x"), Reply::Integer(8 << 20));
    assert!(client.call("APPEND k x").text().contains("exceeds maximum allowed size"));
}

#[test]
fn a_key_has_1_byte_to_32_kibibytes() {
    let (_folder, _node, mut client) = node();
    let (longest, too_long) = (vec![b'k'; 32 * 1024], vec![b'k'; 32 * 1024 + 1]);
    assert_eq!(client.call_args(&[b"SET", longest.as_slice(), b"v"]), Reply::ok());
    assert_eq!(client.call_args(&[b"GET", longest.as_slice()]), Reply::bulk("v"));
    for command in ["GET", "DEL", "MGET", "TTL", "INCR", "EXISTS"] {
        let text = client.call_args(&[command.as_bytes(), &too_long]).text();
        assert_eq!(text, "ERR key has 32769 bytes; a key has 1 to 32768 bytes");
        let text = client.call_args(&[command, ""]).text();
        assert_eq!(text, "ERR key is empty; a key has 1 to 32768 bytes");
    }
}

// === pipelines ===

#[test]
fn replies_of_a_pipeline_keep_their_order_when_some_come_from_disk() {
    let folder = tempdir().unwrap();
    let file = config(&folder, "");
    let mut first = Node::start(&file);
    let mut client = Client::connect(first.resp);
    let writes: Vec<u8> =
        (0..2000).flat_map(|number| request(&["SET", &format!("k{number}"), &number.to_string()])).collect();
    assert!(client.pipeline(&writes, 2000).iter().all(|reply| *reply == Reply::ok()));
    first.signal(Signal::TERM);
    assert!(first.wait().success());

    // Restarted: memory is empty, every first read is cold.
    let node = Node::start(&file);
    let mut client = Client::connect(node.resp);
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    let mut add = |words: &[&str], reply: Reply| {
        requests.extend(request(words));
        expected.push(reply);
    };
    for number in 0..2000 {
        let (key, missing) = (format!("k{number}"), format!("m{number}"));
        add(&["GET", &key], Reply::Bulk(number.to_string().into()));
        match number % 8 {
            0 => add(&["PING"], Reply::Simple("PONG".to_owned())),
            1 => add(&["SET", &key, "0"], Reply::ok()),
            2 => add(&["INCRBY", &key, "1"], Reply::Integer(number + 1)),
            3 => add(&["DEL", &key, &missing], Reply::Integer(1)),
            4 => {
                add(&["MGET", &missing, &key], Reply::Array(vec![Reply::Null, Reply::Bulk(number.to_string().into())]))
            }
            5 => add(&["STRLEN", &missing], Reply::Integer(0)),
            6 => add(&["EXISTS", &key, &key, &missing], Reply::Integer(2)),
            _ => add(&["TTL", &missing], Reply::Integer(-2)),
        }
    }
    let count = expected.len();
    for (index, (found, expected)) in client.pipeline(&requests, count).into_iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "reply {index}");
    }
}

#[test]
fn a_key_removed_twice_in_a_pipeline_counts_once() {
    let (_folder, _node, mut client) = node();
    let requests: Vec<u8> =
        [&["SET", "a", "1"][..], &["DEL", "a"], &["DEL", "b"], &["UNLINK", "a", "a"], &["GET", "a"]]
            .iter()
            .flat_map(|words| request(words))
            .collect();
    let expected = [Reply::ok(), Reply::Integer(1), Reply::Integer(0), Reply::Integer(0), Reply::Null];
    assert_eq!(client.pipeline(&requests, 5), expected);
}

#[test]
fn a_large_mget_arrives_whole() {
    let (_folder, _node, mut client) = node();
    let value = "v".repeat(5000);
    let keys: Vec<String> = (0..3000).map(|number| format!("k{number}")).collect();
    let writes: Vec<u8> = keys.iter().flat_map(|key| request(&["SET", key, &value])).collect();
    client.pipeline(&writes, keys.len());
    let words: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let Reply::Array(values) = client.call_args(&words) else { panic!("an array") };
    assert_eq!(values.len(), 3000);
    assert!(values.iter().all(|found| *found == Reply::bulk(&value)));
}

// === drain ===

#[test]
fn what_was_received_before_sigterm_is_answered() {
    let (_folder, mut node, mut client) = node();
    let mut idle = Client::connect(node.resp);
    assert_eq!(idle.call("PING"), Reply::Simple("PONG".to_owned()));
    assert_eq!(client.call("PING"), Reply::Simple("PONG".to_owned()));
    let requests: Vec<u8> = (0..1000).flat_map(|number| request(&["DEL", &format!("k{}", number % 7)])).collect();
    client.send(&requests);
    node.signal(Signal::TERM);
    for _ in 0..1000 {
        assert_eq!(client.reply(), Reply::Integer(0));
    }
    assert_eq!((idle.rest(), client.rest()), (String::new(), String::new()));
    assert!(node.wait().success());
}
