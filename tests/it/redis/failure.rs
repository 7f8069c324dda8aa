//! A Redis that dies, stalls and comes back: nobody waits for it, and no old write comes back with it.

use std::{sync::Arc, time::Instant};

use futures::future::join_all;

use super::{
    makes::{Make, on_every_make},
    server::Server,
    *,
};

on_every_make! {
    a_death_shows_within_15_seconds_and_the_return_within_30_also_without_traffic
    a_write_that_nobody_waits_for_any_more_never_overtakes_a_later_one
}

/// The slowest of many reads, with no pause between them.
async fn slowest_read(redis: &Redis) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..1000 {
        let start = Instant::now();
        let answer = redis.get(&cx(), &key("a")).await;
        slowest = slowest.max(start.elapsed());
        assert!(matches!(answer, Ok(LayerResult::NotHandled)), "{answer:?}");
    }
    slowest
}

async fn a_death_shows_within_15_seconds_and_the_return_within_30_also_without_traffic(make: Make) {
    let mut server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    server.kill();
    let died = Instant::now();
    let health = healthy_as(&redis, HealthState::Unavailable, "Unreachable").await;
    assert!(died.elapsed() < Duration::from_secs(15), "{:?}", died.elapsed());
    assert!(health.message.contains(&server.port.to_string()), "{}", health.message);
    assert!(health.since <= Clock::system().now());
    server.restart();
    let returned = Instant::now();
    healthy_as(&redis, HealthState::Healthy, "AsExpected").await;
    assert!(returned.elapsed() < Duration::from_secs(30), "{:?}", returned.elapsed());
    set(&redis, "a", "v").await;
    assert_eq!(got(&redis, "a").await, "v");
    assert!(extra(&redis, "breakerOpened") >= 1 && extra(&redis, "reconnects") >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_redis_costs_a_read_nothing() {
    let mut server = Server::start(&[]);
    let redis = opened(options(&[server.port])).await;
    server.kill();
    eventually("the breaker opens", async || {
        let _ = redis.get(&cx(), &key("a")).await;
        !redis.is_available()
    })
    .await;
    let slowest = slowest_read(&redis).await;
    println!("slowest of 1000 reads with a dead redis: {slowest:?}");
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");
    assert_eq!(redis.apply(&cx(), &[Change::Remove(key("a"))]).await.unwrap_err().kind, ErrorKind::Unreachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stalls_is_waited_for_a_few_times_and_then_not_at_all() {
    let server = Server::start(&[]);
    let redis = opened(RedisOptions { timeout: Duration::from_millis(50), ..options(&[server.port]) }).await;
    set(&redis, "a", "v").await;
    server.freeze();
    let start = Instant::now();
    let mut waited = 0;
    while redis.is_available() && start.elapsed() < PATIENCE {
        let answer = redis.get(&cx(), &key("a")).await;
        waited += u32::from(matches!(answer, Err(error) if error.kind == ErrorKind::Timeout));
    }
    println!("stalled: {waited} reads waited, {:?} in all", start.elapsed());
    assert!(waited <= 5 && start.elapsed() < Duration::from_secs(5), "{waited} {:?}", start.elapsed());
    let slowest = slowest_read(&redis).await;
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");
    server.thaw();
    available(&redis).await;
    eventually("the value is there", async || got(&redis, "a").await == "v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_deadline_is_kept_and_a_caller_in_a_hurry_says_nothing_about_redis() {
    let server = Server::start(&[]);
    let redis = opened(RedisOptions { timeout: Duration::from_secs(10), ..options(&[server.port]) }).await;
    server.freeze();
    for _ in 0..10 {
        let start = Instant::now();
        let error = redis.get(&cx_within(Duration::from_millis(20)), &key("a")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    assert!(redis.is_available());
    server.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_in_front_of_a_stalled_redis_is_turned_away_within_one_timeout() {
    let server = Server::start(&[]);
    let redis =
        opened(RedisOptions { concurrency: 8, timeout: Duration::from_millis(500), ..options(&[server.port]) }).await;
    server.freeze();
    let redis = Arc::new(redis);
    let start = Instant::now();
    let read = |number: u32| {
        let redis = Arc::clone(&redis);
        async move { redis.get(&cx(), &key(&format!("k{number}"))).await }
    };
    let answers = join_all((0..1000).map(read)).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(answers.iter().all(|answer| matches!(answer, Err(error) if error.kind == ErrorKind::Timeout)));
    assert!(extra(&redis, "shed") >= 1000 - 8 - 32, "{}", extra(&redis, "shed"));
    server.thaw();
}

async fn a_write_that_nobody_waits_for_any_more_never_overtakes_a_later_one(make: Make) {
    let server = make.start(&[]);
    let redis = opened(RedisOptions { timeout: Duration::from_millis(50), ..options(&[server.port]) }).await;
    for round in 0..8 {
        set(&redis, "a", "before").await;
        server.freeze();
        let error = redis.apply(&cx(), &[Change::Set(entry("a", "late"))]).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        // In half of the rounds the connection is given up with the write still in it.
        if round % 2 == 0 {
            eventually("the breaker opens", async || {
                let _ = redis.get(&cx(), &key("a")).await;
                !redis.is_available()
            })
            .await;
        }
        server.thaw();
        let now = format!("now {round}");
        eventually("written", async || redis.apply(&cx(), &[Change::Set(entry("a", &now))]).await.is_ok()).await;
        for _ in 0..20 {
            let mut found = String::new();
            eventually("read", async || {
                found = got(&redis, "a").await;
                !["error timeout", "error unreachable", "NotHandled"].contains(&found.as_str())
            })
            .await;
            assert_eq!(found, now, "round {round}");
        }
    }
    assert_eq!(extra(&redis, "reconnectsUnfenced"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_redis_is_woken_when_it_is_there() {
    let mut server = Server::start(&[]);
    server.kill();
    let redis = Arc::new(Redis::open(options(&[server.port]), Clock::system()));
    let waiting = tokio::task::spawn({
        let redis = Arc::clone(&redis);
        async move { redis.wait_available().await }
    });
    assert!(!redis.is_available());
    server.restart();
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert!(redis.is_available());
}
