//! The layer without a Redis: what it does while there is none.

use std::time::Duration;

use super::*;
use crate::{
    entry::envelope::Codec,
    layer::HealthState,
    testing::{START, cx, entry, eventually, key},
};

/// Options for one endpoint, with everything else as simple as can be.
pub(super) fn options(endpoint: &str) -> RedisOptions {
    RedisOptions {
        node: "n".to_owned(),
        topology: Topology::Standalone,
        endpoints: vec![endpoint.parse().unwrap()],
        username_file: None,
        password_file: None,
        tls: None,
        database: 0,
        cache_uid: "u-1".to_owned(),
        max_ttl: Duration::from_secs(4 * 3600),
        removals_kept: Duration::from_secs(168 * 3600),
        removals_max: 1000,
        timeout: Duration::from_millis(50),
        connections: 2,
        concurrency: 64,
        writer_file: None,
        log_records: 1_000_000,
        codec: Codec::default(),
    }
}

#[tokio::test]
async fn without_redis_it_opens_takes_no_part_in_reads_and_refuses_writes_at_once() {
    let clock = Clock::system();
    let redis = Redis::open(options("127.0.0.1:1"), clock.clone());
    let cx = cx(&clock);
    assert!(matches!(redis.get(&cx, &key("a")).await, Ok(LayerResult::NotHandled)));
    let many = redis.get_many(&cx, &[key("a"), key("b")]).await.unwrap();
    assert!(matches!(many[..], [Ok(LayerResult::NotHandled), Ok(LayerResult::NotHandled)]));
    let error = redis.apply(&cx, &[Change::Set(entry("a", "1"))]).await.unwrap_err();
    assert_eq!((error.layer, error.kind), (LayerId::Redis, ErrorKind::Unreachable));
    assert_eq!(redis.clear(&cx).await.unwrap_err().kind, ErrorKind::Unreachable);
    assert_eq!(redis.tag_removals(&cx).await.unwrap_err().kind, ErrorKind::Unreachable);
    assert!(!redis.is_available());
    redis.shutdown(clock.monotonic() + Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_redis_that_is_away_shows_in_health_with_where_and_why() {
    let clock = Clock::manual(START);
    let redis = Redis::open(options("127.0.0.1:1"), clock.clone());
    eventually("unavailable", || {
        clock.advance(Duration::from_millis(100));
        redis.health().state == HealthState::Unavailable
    })
    .await;
    eventually("the reason is known", || redis.health().reason == "Unreachable").await;
    assert!(redis.health().message.starts_with("127.0.0.1:1: "), "{:?}", redis.health());
}

#[tokio::test]
async fn no_task_outlives_a_shutdown() {
    let clock = Clock::system();
    let redis = Redis::open(options("127.0.0.1:1"), clock.clone());
    redis.shutdown(clock.monotonic() + Duration::from_secs(5)).await;
    assert!(redis.tasks.is_empty());
}
