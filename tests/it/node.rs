//! The node's program from outside: command line, exit codes, last words, admin port, signals.

use std::{fs, io::Write, net::TcpListener, process::Command, thread};

use rustix::process::Signal;
use tempfile::tempdir;

use crate::program::{Node, binary, command, config, ended, http, line, run, termination_log};

// === command line and exit codes ===

#[test]
fn help_tells_environment_exit_codes_and_examples() {
    let help = run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for word in ["check-config", "--config", "NODE_NAME", "TERMINATION_LOG", "Exit codes", "Examples", "6379"] {
        assert!(help.out.contains(word), "{word} in {}", help.out);
    }
}

#[test]
fn version_is_the_version_of_the_workspace() {
    assert_eq!(run(&["--version"]).out, format!("cache-node {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_unknown_argument_exits_2() {
    let ended = run(&["--colour"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("--colour"), "{}", ended.err);
}

#[test]
fn check_config_prints_the_effective_configuration() {
    let folder = tempdir().unwrap();
    let file = config(&folder, "memory: {capacity: 5Mi}");
    let first = run(&["check-config", file.to_str().unwrap()]);
    assert_eq!((first.code, first.err.as_str()), (Some(0), ""));
    assert!(first.out.contains("capacity: 5Mi") && first.out.contains("drainTimeout: 20s"), "{}", first.out);
    // What it prints is a configuration file with the same meaning.
    fs::write(&file, &first.out).unwrap();
    assert_eq!(run(&["check-config", file.to_str().unwrap()]).out, first.out);
}

#[test]
fn a_bad_configuration_exits_2_with_every_broken_limit_also_as_last_words() {
    let folder = tempdir().unwrap();
    let file = config(&folder, "memory: {capacity: 512Ki}\nlimits: {connectionsMax: 0}");
    let last_words = termination_log(&folder);
    let expected =
        "memory.capacity: 512Ki is below the minimum of 1Mi\nlimits.connectionsMax: 0 is below the minimum of 1";
    for args in [["check-config"], ["--config"]] {
        fs::write(&last_words, "").unwrap();
        let ended = ended(command().args(args).arg(&file).env("TERMINATION_LOG", &last_words));
        assert_eq!(ended.code, Some(2));
        assert!(ended.err.contains(expected), "{}", ended.err);
        assert_eq!(fs::read_to_string(&last_words).unwrap(), expected);
    }
}

#[test]
fn a_missing_configuration_file_exits_2_and_is_named() {
    let ended = run(&["--config", "/nonexistent/node.yaml"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("/nonexistent/node.yaml"), "{}", ended.err);
}

#[test]
fn a_taken_address_exits_1_and_is_named_also_as_last_words() {
    let folder = tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let last_words = termination_log(&folder);
    for listen in
        [format!("resp: '{address}', admin: '127.0.0.1:0'"), format!("resp: '127.0.0.1:0', admin: '{address}'")]
    {
        let file = folder.path().join("taken.yaml");
        fs::write(&file, format!("listen: {{{listen}}}\ndisk: {{mode: Disabled}}")).unwrap();
        fs::write(&last_words, "").unwrap();
        let ended = ended(command().arg("--config").arg(&file).env("TERMINATION_LOG", &last_words));
        assert_eq!(ended.code, Some(1), "{}", ended.err);
        for text in [ended.err, fs::read_to_string(&last_words).unwrap()] {
            assert!(text.contains(&address) && text.contains("in use"), "{text}");
        }
    }
}

#[test]
fn without_arguments_it_is_a_useful_node_on_loopback() {
    let folder = tempdir().unwrap();
    // In a network of its own, because the default ports may be in use on this machine.
    let script = format!("ip link set lo up && exec {}", binary().display());
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "sh", "-c", &script]).current_dir(folder.path()).env_remove("RUST_LOG");
    let mut node = Node::start_by(&mut unshare);
    assert_eq!((node.resp.to_string(), node.admin.to_string()), ("127.0.0.1:6379".into(), "127.0.0.1:9090".into()));
    assert!(folder.path().join("tieredcache-data").is_dir());
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn every_core_has_an_event_loop_unless_their_number_is_given() {
    let cores = thread::available_parallelism().unwrap().get().min(64);
    // One of the numbers given is not that of the cores.
    for (threads, event_loops) in [("", cores), ("threads: 0", cores), ("threads: 1", 1), ("threads: 3", 3)] {
        let folder = tempdir().unwrap();
        let file = folder.path().join("threads.yaml");
        let listen = format!("resp: '127.0.0.1:0', admin: '127.0.0.1:0', {threads}");
        fs::write(&file, format!("listen: {{{listen}}}\ndisk: {{mode: Disabled}}")).unwrap();
        let node = Node::start(&file);
        // A thread names itself when it first runs: one more client than loops has seen a loop too many as well.
        let _clients: Vec<_> = (0..=event_loops)
            .map(|_| {
                let mut client = node.connect();
                client.get_mut().write_all(b"PING\r\n").unwrap();
                assert_eq!(line(&mut client), "+PONG");
                client
            })
            .collect();
        let names: Vec<String> = fs::read_dir(format!("/proc/{}/task", node.child.id()))
            .unwrap()
            .map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap().trim_end().to_owned())
            .filter(|name| name.strip_prefix("resp-").is_some_and(|number| number.parse::<u16>().is_ok()))
            .collect();
        assert_eq!(names.len(), event_loops, "of {{{threads}}}: {names:?}");
    }
}

// === admin port ===

#[test]
fn a_serving_node_is_alive_and_ready() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, ""));
    assert_eq!(node.admin("GET", "/livez").status, 200);
    let ready = node.admin("GET", "/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (200, r#"{"ready":true,"waitingFor":[]}"#));
}

#[test]
fn the_report_names_node_revision_and_every_layer() {
    let folder = tempdir().unwrap();
    let file = config(&folder, "cache: {name: sessions, uid: u-1, node: sessions-0}\nrevision: r42");
    let node = Node::start(&file);
    node.ask(&["SET a b", "GET a"]);
    let report = node.report();
    assert_eq!((report["node"].as_str(), report["configRevision"].as_str()), (Some("sessions-0"), Some("r42")));
    assert_eq!((report["cache"].as_str(), report["ready"].as_bool()), (Some("sessions"), Some(true)));
    let names: Vec<_> = report["layers"].as_array().unwrap().iter().map(|layer| layer["name"].as_str()).collect();
    assert_eq!(names, ["Memory", "TagIndex", "WriteQueue", "Backplane", "Redis", "Disk"].map(Some));
    for layer in report["layers"].as_array().unwrap() {
        let is_off = ["Backplane", "Redis"].contains(&layer["name"].as_str().unwrap());
        let state = if is_off { "Disabled" } else { "Healthy" };
        assert_eq!(layer["health"]["state"], state, "{layer}");
        assert!(layer["health"]["sinceUnixMs"].as_u64().unwrap() > 1_600_000_000_000, "{layer}");
    }
    assert_eq!(report["layers"][0]["stats"]["hits"], 1);
    assert_eq!(report["health"]["state"], "Healthy", "of the node as a whole");
    assert_eq!((&report["stats"]["hits"], &report["stats"]["misses"]), (&1.into(), &0.into()), "one read");
    let get = &report["layers"][0]["stats"]["latency"]["get"];
    assert!(get["count"].as_u64().unwrap() > 0 && get["p99Ns"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_node_whose_redis_is_out_is_degraded_and_one_that_stops_is_unavailable() {
    let folder = tempdir().unwrap();
    let settings = "redis: {mode: External, endpoints: ['127.0.0.1:1']}\nbackplane: {whenDisconnected: ServeStale}\n\
                    shutdown: {drainTimeout: 1h}";
    let node = Node::start(&config(&folder, settings));
    let health = || node.report()["health"].clone();
    let deadline = std::time::Instant::now() + crate::program::PATIENCE;
    while health()["state"] != "Degraded" {
        assert!(std::time::Instant::now() < deadline, "{}", node.report());
    }
    let message = health()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("redis: "), "{message}");
    assert_eq!(node.metric("tieredcache_node_health{state=\"degraded\"}"), Some(1.0));

    // What is queued can not be written, so the node stops for as long as it may.
    node.ask(&["SET a b"]);
    node.signal(Signal::TERM);
    while health()["state"] != "Unavailable" {
        assert!(std::time::Instant::now() < deadline, "{}", node.report());
    }
    assert_eq!(health()["reason"], "Stopping");
    assert_eq!(node.metric("tieredcache_node_health{state=\"unavailable\"}"), Some(1.0));
    node.signal(Signal::TERM);
}

#[test]
fn a_node_without_disk_reports_it_as_disabled() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("memory.yaml");
    fs::write(&file, "listen: {resp: '127.0.0.1:0', admin: '127.0.0.1:0'}\ndisk: {mode: Disabled}").unwrap();
    let node = Node::start(&file);
    assert_eq!(node.ask(&["SET a b", "STRLEN a", "DEL a", "STRLEN a"]), ["+OK", ":1", ":1", ":0"]);
    let report = node.report();
    assert_eq!(report["layers"][0]["health"]["state"], "Healthy");
    for layer in [2, 3, 4] {
        assert_eq!(report["layers"][layer]["health"]["state"], "Disabled");
        assert_eq!(report["layers"][layer]["health"]["reason"], "DisabledByConfiguration");
    }
}

#[test]
fn metrics_count_what_clients_do() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, "revision: r7"));
    node.ask(&["SET a b", "STRLEN a", "STRLEN a", "STRLEN missing", "NONSENSE"]);
    for (name, number) in [
        ("tieredcache_layer_requests_total{layer=\"memory\",operation=\"get\",result=\"hit\"}", 2.0),
        ("tieredcache_layer_requests_total{layer=\"disk\",operation=\"get\",result=\"miss\"}", 1.0),
        ("tieredcache_layer_entries{layer=\"memory\"}", 1.0),
        ("tieredcache_resp_commands_total{command=\"strlen\"}", 3.0),
        ("tieredcache_resp_commands_total{command=\"unknown\"}", 1.0),
        ("tieredcache_resp_error_replies_total", 1.0),
        ("tieredcache_config_info{revision=\"r7\"}", 1.0),
        ("tieredcache_ready", 1.0),
    ] {
        assert_eq!(node.metric(name), Some(number), "{name} in {}", node.admin("GET", "/metrics").body);
    }
    assert!(node.metric("tieredcache_allocator_resident_bytes").unwrap() > 1e6);
    assert!(node.metric("process_resident_memory_bytes").unwrap() > 1e6);
}

#[test]
fn unknown_paths_and_methods_get_errors_in_json() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, ""));
    for (method, path, status) in [("GET", "/nowhere", 404), ("POST", "/readyz", 405), ("DELETE", "/metrics", 405)] {
        let answer = node.admin(method, path);
        assert_eq!(answer.status, status);
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert!(body["error"].is_string(), "{body}");
    }
}

#[test]
fn silent_admin_connections_are_bounded() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, ""));
    let connect = || std::net::TcpStream::connect(node.admin).unwrap();
    let silent: Vec<_> = (0..64).map(|_| connect()).collect();
    // The 65th is closed without an answer.
    let mut turned_away = connect();
    // It may be closed already.
    let _ = turned_away.write_all(b"GET /livez HTTP/1.1\r\nHost: node\r\n\r\n");
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut turned_away, &mut answer);
    assert_eq!(String::from_utf8_lossy(&answer), "");
    drop(silent);
    // The node learns of their end in its own time; until then it turns connections away.
    let deadline = std::time::Instant::now() + crate::program::PATIENCE;
    while std::panic::catch_unwind(|| http(node.admin, "GET", "/livez").status).ok() != Some(200) {
        assert!(std::time::Instant::now() < deadline, "places are given back");
    }
}

// === signals ===

#[test]
fn what_was_queued_at_sigterm_is_there_after_a_restart() {
    let folder = tempdir().unwrap();
    let file = config(&folder, "");
    let mut node = Node::start(&file);
    let mut client = node.connect();
    let writes: String = (0..20_000).map(|number| format!("SET key-{number} {number}\r\n")).collect();
    client.get_mut().write_all(writes.as_bytes()).unwrap();
    for _ in 0..20_000 {
        assert_eq!(line(&mut client), "+OK");
    }
    node.signal(Signal::TERM);
    node.logged("closed");
    assert_eq!(node.wait().code(), Some(0));

    let node = Node::start(&file);
    let mut client = node.connect();
    let reads: String = (0..20_000).map(|number| format!("STRLEN key-{number}\r\n")).collect();
    client.get_mut().write_all(reads.as_bytes()).unwrap();
    for number in 0..20_000_u32 {
        assert_eq!(line(&mut client), format!(":{}", number.to_string().len()), "key-{number}");
    }
}

#[test]
fn sigint_ends_it_cleanly_with_idle_clients_connected() {
    let folder = tempdir().unwrap();
    let mut node = Node::start(&config(&folder, "shutdown: {drainTimeout: 1h}"));
    let mut client = node.connect();
    client.get_mut().write_all(b"PING\r\n").unwrap();
    assert_eq!(line(&mut client), "+PONG");
    node.signal(Signal::INT);
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn while_it_drains_it_is_alive_and_not_ready_and_a_second_signal_ends_it() {
    let folder = tempdir().unwrap();
    let last_words = termination_log(&folder);
    let file = config(&folder, "shutdown: {drainTimeout: 1h}\nlimits: {partialRequestTimeout: 1h}");
    let mut node = Node::start_by(command().arg("--config").arg(&file).env("TERMINATION_LOG", &last_words));
    // A client that asks for far more than fits into the buffers of a socket, and never reads, holds up the drain.
    let mut client = node.connect();
    let megabyte = format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$1048576\r\n{}\r\n", "x".repeat(1 << 20));
    client.get_mut().write_all(megabyte.as_bytes()).unwrap();
    assert_eq!(line(&mut client), "+OK");
    client.get_mut().write_all("GET big\r\n".repeat(100).as_bytes()).unwrap();
    assert_eq!(line(&mut client), "$1048576");

    node.signal(Signal::TERM);
    node.logged("draining");
    let ready = node.admin("GET", "/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (503, r#"{"ready":false,"waitingFor":["the node is stopping"]}"#));
    assert_eq!(node.admin("GET", "/livez").status, 200);
    assert_eq!(node.metric("tieredcache_ready"), Some(0.0));

    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(1));
    assert!(fs::read_to_string(&last_words).unwrap().contains("second signal"));
}
