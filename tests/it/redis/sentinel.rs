//! Sentinels know the master; the layer follows them.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use tempfile::TempDir;
use tests::ports::free_port;

use super::{
    makes::{Make, on_every_make},
    security::{Papers, tls_lines, tls_options, tls_server, with_files},
    server::Server,
    *,
};

on_every_make! {
    a_dead_master_is_followed_by_the_one_that_the_sentinels_elect
}

/// A Sentinel that watches the server under the name `main` and needs nobody else to decide.
fn sentinel(make: Make, master: u16) -> Server {
    let port = free_port();
    sentinel_at(make, port, master, &format!("port {port}\n"))
}

/// The same with these lines in its file, which have it listen on this port.
fn sentinel_at(make: Make, port: u16, master: u16, lines: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.keep().join("sentinel.conf");
    let text = format!(
        "bind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master} 1\n\
         sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n{lines}"
    );
    fs::write(&file, text).unwrap();
    make.start_as(port, vec![&file.display().to_string(), "--sentinel"])
}

/// A master and a replica of it, in step.
fn pair(make: Make) -> (Server, Server) {
    let master = make.start(&[]);
    let replica =
        make.start(&["--replicaof", "127.0.0.1", &master.port.to_string(), "--repl-diskless-sync-delay", "0"]);
    (master, replica)
}

fn sentinel_options(ports: &[u16]) -> RedisOptions {
    RedisOptions { topology: Topology::Sentinel { master_name: "main".to_owned() }, ..options(ports) }
}

async fn in_step(sentinel: &Server, replica: &Server) {
    eventually("in step", async || replica.cli(&["INFO", "replication"]).contains("master_link_status:up")).await;
    eventually("the replica is known", async || {
        sentinel.cli(&["SENTINEL", "REPLICAS", "main"]).contains(&replica.port.to_string())
    })
    .await;
}

/// Kills the master once the replica has what was written; the replica gets what is written then.
async fn follows_to_the_replica(redis: &Redis, sentinel: &Server, mut master: Server, replica: &Server) {
    in_step(sentinel, replica).await;
    set(redis, "a", "v").await;
    eventually("replicated", async || replica.cli(&["EXISTS", "{tc:u-1}:e:a"]) == "1").await;
    master.kill();
    eventually("the new master takes writes", async || {
        redis.apply(&cx(), &[Change::Set(entry("b", "w"))]).await.is_ok()
    })
    .await;
    assert_eq!(replica.cli(&["EXISTS", "{tc:u-1}:e:b"]), "1");
}

async fn a_dead_master_is_followed_by_the_one_that_the_sentinels_elect(make: Make) {
    let (master, replica) = pair(make);
    let sentinel = sentinel(make, master.port);
    // The first Sentinel of the list is away.
    let redis = opened(sentinel_options(&[free_port(), sentinel.port])).await;
    follows_to_the_replica(&redis, &sentinel, master, &replica).await;
    assert_eq!(got(&redis, "a").await, "v");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_gave_its_place_up_is_left_though_it_still_answers() {
    let (master, replica) = pair(Make::Redis);
    let sentinel = sentinel(Make::Redis, master.port);
    let redis = opened(sentinel_options(&[sentinel.port])).await;
    in_step(&sentinel, &replica).await;
    eventually("failover begins", async || sentinel.cli(&["SENTINEL", "FAILOVER", "main"]) == "OK").await;
    eventually("the new master is written to", async || {
        let _ = redis.apply(&cx(), &[Change::Set(entry("b", "w"))]).await;
        let is_master = replica.cli(&["ROLE"]).starts_with("master");
        is_master && replica.cli(&["EXISTS", "{tc:u-1}:e:b"]) == "1"
    })
    .await;
    eventually("read from there", async || got(&redis, "b").await == "w").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_and_servers_that_speak_tls_alone_and_want_a_password_are_followed_through_a_failover() {
    let papers = Papers::new();
    ["redis.example", "client"].into_iter().for_each(|name| papers.sign(name));
    // Among themselves they use TLS and the password as well.
    let among = ["--tls-replication", "yes", "--masterauth", "secret", "--requirepass", "secret"];
    let mut master = tls_server(&papers, "redis.example", &among);
    let master_port = master.port.to_string();
    let replica_of = ["--replicaof", "127.0.0.1", master_port.as_str(), "--repl-diskless-sync-delay", "0"];
    let mut replica = tls_server(&papers, "redis.example", &[&among[..], &replica_of[..]].concat());
    let port = free_port();
    let tls = tls_lines(&papers, "redis.example", port).map(|(option, value)| format!("{option} {value}\n")).concat();
    let secured = "tls-replication yes\nrequirepass secret\nsentinel auth-pass main secret\n";
    let mut sentinel = sentinel_at(Make::Redis, port, master.port, &(tls + secured));
    for server in [&mut master, &mut replica, &mut sentinel] {
        server.cli_args.extend(gets_in(&papers));
    }
    let folder = TempDir::new().unwrap();
    let RedisOptions { topology, .. } = sentinel_options(&[port]);
    let RedisOptions { tls, .. } = tls_options(&papers, port, Some("redis.example"));
    let redis = opened(RedisOptions { topology, tls, ..with_files(port, &folder, "", "secret") }).await;
    follows_to_the_replica(&redis, &sentinel, master, &replica).await;
    eventually("read from there", async || got(&redis, "a").await == "v" && got(&redis, "b").await == "w").await;
}

/// How a person at `redis-cli` shows who they are.
fn gets_in(papers: &Papers) -> Vec<String> {
    let files = [("--cacert", "ca.crt"), ("--cert", "client.crt"), ("--key", "client.key")];
    let files = files.into_iter().flat_map(|(option, file)| [option.to_owned(), papers.text(file)]);
    let words = ["--tls", "--no-auth-warning", "-a", "secret"].map(str::to_owned);
    words.into_iter().chain(files).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_that_do_not_know_the_master_are_named() {
    let master = Server::start(&[]);
    let sentinel = sentinel(Make::Redis, master.port);
    let topology = Topology::Sentinel { master_name: "other".to_owned() };
    let redis = Redis::open(RedisOptions { topology, ..options(&[sentinel.port]) }, Clock::system());
    let health = healthy_as(&redis, HealthState::Unavailable, "UnknownMaster").await;
    assert!(health.message.contains("\"other\""), "{}", health.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_a_failover_delays_nobody_for_long_and_loses_nothing_that_the_replica_had() {
    let (master, replica) = pair(Make::Redis);
    let sentinel = sentinel(Make::Redis, master.port);
    let timeout = Duration::from_millis(100);
    let redis = opened(RedisOptions { timeout, ..sentinel_options(&[sentinel.port]) }).await;
    in_step(&sentinel, &replica).await;
    let settled: Vec<Change> = (0..500).map(|number| Change::Set(entry(&format!("s{number}"), "v"))).collect();
    eventually("settled", async || redis.apply(&cx(), &settled).await.is_ok()).await;
    // And the log.
    eventually("replicated", async || replica.cli(&["DBSIZE"]) == "501").await;
    let stop = AtomicBool::new(false);
    let using = async |name: &str| {
        let (mut slowest, mut failed, mut number) = (Duration::ZERO, 0, 0);
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let start = Instant::now();
            let written = redis.apply(&cx(), &[Change::Set(entry(&format!("{name}{number}"), "w"))]).await;
            let read = got(&redis, &format!("s{}", number % 500)).await;
            slowest = slowest.max(start.elapsed());
            failed += u32::from(written.is_err() || read != "v");
            assert!(read != "Miss", "s{} was replicated", number % 500);
            // With an open breaker all is answered at once.
            sleep(Duration::from_millis(1)).await;
        }
        println!("{number} writes and reads, {failed} failed, the slowest took {slowest:?}");
        slowest
    };
    let failover = async {
        eventually("failover begins", async || sentinel.cli(&["SENTINEL", "FAILOVER", "main"]) == "OK").await;
        eventually("the replica is master", async || replica.cli(&["ROLE"]).starts_with("master")).await;
        eventually("it is written to", async || {
            let now = Clock::system().now().0.to_string();
            let written = redis.apply(&cx(), &[Change::Set(entry("new", &now))]).await.is_ok();
            written && got(&redis, "new").await == now && replica.cli(&["EXISTS", "{tc:u-1}:e:new"]) == "1"
        })
        .await;
        stop.store(true, Ordering::Relaxed);
    };
    let (one, other, ()) = tokio::join!(using("a"), using("b"), failover);
    assert!(one.max(other) < Duration::from_secs(2), "{one:?} {other:?}");
}
