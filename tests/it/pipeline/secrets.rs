//! Passwords and certificates that change while the node is used.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread::scope,
};

use super::*;

/// Reads and writes without a pause until told to stop: every answer must be right. Gives back how many there were.
fn use_it(node: SocketAddr, stop: &AtomicBool) -> u64 {
    let mut client = Client::connect(node);
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("k{}", count % 500);
        let value = format!("v{count}");
        assert_eq!(client.call(&format!("SET {key} {value}")), Reply::ok());
        assert_eq!(client.call(&format!("GET {key}")), Reply::bulk(&value));
        let other = client.call(&format!("GET k{}", (count * 7 + 1) % 500));
        assert!(!matches!(other, Reply::Error(_)), "{other:?}");
        count += 1;
    }
    count
}

fn password(redis: &Server, words: &str) {
    assert_eq!(Client::connect(redis.address()).call(&format!("ACL SETUSER node {words}")), Reply::ok());
}

#[test]
fn a_password_is_rotated_while_clients_notice_nothing() {
    let (folder, redis) = (tempdir().unwrap(), Server::start(&[]));
    password(&redis, "on >one ~* +@all");
    let (user, secret) = (folder.path().join("user"), folder.path().join("password"));
    fs::write(&user, "node\n").unwrap();
    fs::write(&secret, "one\n").unwrap();
    let more = format!(", usernameFile: '{}', passwordFile: '{}'", user.display(), secret.display());
    let node = start(&folder, &redis, &more);
    let pipeline = Pipeline { folder, redis, node };
    pipeline.redis_is_used();
    let reconnects = || pipeline.node.metric("tieredcache_redis_reconnects_total{layer=\"redis\"}").unwrap();
    let (stop, address) = (&AtomicBool::new(false), pipeline.node.resp);
    scope(|scope| {
        let stops = Stop(stop);
        let load = scope.spawn(move || use_it(address, stop));
        // As it should be done: both passwords hold until every node has the new one.
        let before = reconnects();
        password(&pipeline.redis, ">two");
        fs::write(&secret, "two\n").unwrap();
        eventually("the new password is used", || reconnects() > before);
        password(&pipeline.redis, "<one");
        Client::connect(pipeline.redis.address()).call("CLIENT KILL USER node");
        pipeline.redis_is_used();
        // As it should not be done: the old one is gone before the node has the new one.
        password(&pipeline.redis, "resetpass >three");
        Client::connect(pipeline.redis.address()).call("CLIENT KILL USER node");
        eventually("the refusal shows", || redis_health(&pipeline.node)["reason"] == "WrongPassword");
        fs::write(&secret, "three\n").unwrap();
        pipeline.redis_is_used();
        drop(stops);
        println!("{} rounds of load over three passwords", load.join().unwrap());
    });
    // What was written under the wrong password has arrived, too.
    let mut client = pipeline.client();
    assert_eq!(client.call("SET last v"), Reply::ok());
    let hit = ("redis".to_owned(), "hit".to_owned());
    eventually("it is in Redis", || client.call("TC.FLUSH") == Reply::ok() && pipeline.outcomes("last").contains(&hit));
}

fn redis_health(node: &Node) -> serde_json::Value {
    let report = node.report();
    let layers = report["layers"].as_array().expect("a list");
    layers.iter().find(|layer| layer["name"] == "Redis").expect("a Redis layer")["health"].clone()
}
