//! The Redis layer against real servers: what it promises while they work, fail, refuse and move.

mod failure;
mod life;
pub(crate) mod makes;
mod security;
mod sentinel;
mod slow;
pub(crate) mod wire;
mod writes;

use std::time::Duration;

use cache_node::{
    clock::{Clock, UnixMillis},
    context::{OperationContext, Origin, Trust},
    entry::{Entry, EntryMeta, Key, Position, TagSet, envelope::Codec},
    layer::{
        Change, Component, ErrorKind, Health, HealthState, Layer, LayerResult,
        redis::{Endpoint, Redis, RedisOptions, Topology},
    },
};
use tests::redis_server as server;
use tokio::time::sleep;

use crate::program::PATIENCE;

/// Options for servers at these ports. The timeout is one that a busy machine keeps.
fn options(ports: &[u16]) -> RedisOptions {
    RedisOptions {
        node: "n".to_owned(),
        topology: Topology::Standalone,
        endpoints: ports.iter().map(|port| Endpoint { host: "127.0.0.1".to_owned(), port: *port }).collect(),
        username_file: None,
        password_file: None,
        tls: None,
        database: 0,
        cache_uid: "u-1".to_owned(),
        max_ttl: Duration::from_secs(4 * 3600),
        removals_kept: Duration::from_secs(168 * 3600),
        removals_max: 250_000,
        timeout: Duration::from_secs(5),
        connections: 3,
        concurrency: 64,
        writer_file: None,
        log_records: 1_000_000,
        codec: Codec::default(),
    }
}

/// A layer that takes part.
async fn opened(options: RedisOptions) -> Redis {
    let redis = Redis::open(options, Clock::system());
    available(&redis).await;
    redis
}

async fn available(redis: &Redis) {
    let waited = tokio::time::timeout(PATIENCE, redis.wait_available()).await;
    assert!(waited.is_ok(), "not available within a minute: {:?}", redis.health());
}

/// Polls until the condition holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Clock::system().monotonic();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "not within a minute: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until health is such, and tells it.
async fn healthy_as(redis: &Redis, state: HealthState, reason: &str) -> Health {
    eventually(&format!("{state:?} {reason}"), async || {
        let health = redis.health();
        health.state == state && health.reason == reason
    })
    .await;
    redis.health()
}

/// A client's operation now, with a minute to finish.
fn cx() -> OperationContext {
    cx_within(PATIENCE)
}

fn cx_within(patience: Duration) -> OperationContext {
    let clock = Clock::system();
    OperationContext {
        id: 0,
        origin: Origin::Client,
        now: clock.now(),
        deadline: clock.monotonic() + patience,
        trust: Trust::Full,
    }
}

fn key(text: &str) -> Key {
    Key::new(text.as_bytes().to_vec()).unwrap()
}

fn entry(key: &str, value: &str) -> Entry {
    Entry::new(key.as_bytes(), value.as_bytes(), EntryMeta::default())
}

fn entry_for(key: &str, value: &str, life: Duration) -> Entry {
    let expires_at = Some(Clock::system().now().after(life));
    Entry::new(key.as_bytes(), value.as_bytes(), EntryMeta { expires_at, ..EntryMeta::default() })
}

fn tags(words: &[&str]) -> TagSet {
    let mut set = TagSet::default();
    words.iter().for_each(|word| set.add(word.as_bytes()).unwrap());
    set
}

async fn set(redis: &Redis, key: &str, value: &str) {
    // A short timeout may pass on a busy machine; nothing else may go wrong.
    eventually("stored", async || match redis.apply(&cx(), &[Change::Set(entry(key, value))]).await {
        Ok(_) => true,
        Err(error) => {
            assert!([ErrorKind::Timeout, ErrorKind::Unreachable].contains(&error.kind), "{error}");
            false
        }
    })
    .await;
}

/// What one key answers, as text: the value, or the name of the answer, or the kind of the failure.
async fn got(redis: &Redis, text: &str) -> String {
    match redis.get(&cx(), &key(text)).await {
        Ok(LayerResult::Hit(entry)) => String::from_utf8(entry.value().to_vec()).unwrap(),
        Ok(other) => format!("{other:?}"),
        Err(error) => format!("error {}", error.kind),
    }
}

/// One of the layer's own numbers.
fn extra(redis: &Redis, name: &str) -> u64 {
    redis.stats().extras.iter().find(|(extra, _)| *extra == name).expect("a number of this layer").1
}
