//! A wire to Redis that is slow, uneven, silent or cut: calls end in time, and what comes is what was stored.

use std::{sync::Arc, time::Instant};

use futures::future::join_all;

use super::{
    server::Server,
    wire::{Fault, Wire},
    *,
};

const TIMEOUT: Duration = Duration::from_millis(50);

/// More than a timeout, for a machine that is busy with other tests.
const IN_TIME: Duration = Duration::from_millis(500);

/// A server, the wire to it, and a layer that takes part.
async fn wired() -> (Server, Wire, Redis) {
    let server = Server::start(&[]);
    let wire = Wire::to(([127, 0, 0, 1], server.port).into());
    let redis = opened(RedisOptions { timeout: TIMEOUT, ..options(&[wire.address.port()]) }).await;
    (server, wire, redis)
}

/// Reads until the breaker opens; each read must end in time, and none may find anything but the value.
async fn opens(redis: &Redis, fault: Fault, value: &str) {
    let begun = Instant::now();
    while redis.is_available() {
        let start = Instant::now();
        match redis.get(&cx(), &key("a")).await {
            Ok(LayerResult::Hit(entry)) => assert_eq!(entry.value(), value.as_bytes(), "{fault:?}"),
            Ok(LayerResult::NotHandled) => {}
            Ok(other) => panic!("{fault:?}: {other:?}"),
            Err(error) => {
                let expected = [ErrorKind::Timeout, ErrorKind::Unreachable];
                assert!(expected.contains(&error.kind), "{fault:?}: {error}");
            }
        }
        assert!(start.elapsed() < IN_TIME, "{fault:?}: {:?}", start.elapsed());
        assert!(begun.elapsed() < PATIENCE, "{fault:?}: the breaker stays closed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_bad_wire_calls_end_in_time_the_breaker_opens_and_closes_again_by_itself() {
    let (_server, wire, redis) = wired().await;
    let value = "x".repeat(100_000);
    set(&redis, "a", &value).await;
    let ms = Duration::from_millis;
    let faults =
        [Fault::Late(ms(300), ms(0)), Fault::Late(ms(60), ms(200)), Fault::Silent, Fault::Cut, Fault::Trickle(ms(5))];
    for fault in faults {
        wire.set(fault);
        opens(&redis, fault, &value).await;
        wire.set(Fault::None);
        let healed = Instant::now();
        available(&redis).await;
        eventually("read", async || got(&redis, "a").await == value).await;
        println!("{fault:?}: used again after {:?}", healed.elapsed());
        assert!(healed.elapsed() < Duration::from_secs(30), "{fault:?}: {:?}", healed.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_whose_other_end_has_gone_without_a_word_are_replaced() {
    let (_server, wire, redis) = wired().await;
    set(&redis, "a", "v").await;
    wire.strand();
    opens(&redis, Fault::Silent, "v").await;
    let opened = Instant::now();
    available(&redis).await;
    assert!(opened.elapsed() < Duration::from_secs(10), "{:?}", opened.elapsed());
    eventually("read", async || got(&redis, "a").await == "v").await;
    set(&redis, "a", "w").await;
    eventually("read again", async || {
        let found = got(&redis, "a").await;
        assert_ne!(found, "v");
        found == "w"
    })
    .await;
    assert!(extra(&redis, "reconnects") >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_at_the_same_time_share_the_wire_and_end_within_a_few_of_its_round_trips() {
    const ROUND_TRIP: Duration = Duration::from_millis(200);
    const READS: u32 = 64;
    let server = Server::start(&[]);
    let wire = Wire::to(([127, 0, 0, 1], server.port).into());
    let redis = opened(RedisOptions { timeout: PATIENCE, ..options(&[wire.address.port()]) }).await;
    for number in 0..READS {
        set(&redis, &format!("k{number}"), &format!("v{number}")).await;
    }
    wire.set(Fault::Late(ROUND_TRIP, Duration::ZERO));
    let begun = Instant::now();
    let read = |number: u32| {
        let redis = &redis;
        async move { (number, got(redis, &format!("k{number}")).await) }
    };
    for (number, answer) in join_all((0..READS).map(read)).await {
        assert_eq!(answer, format!("v{number}"));
    }
    let took = begun.elapsed();
    println!("{READS} reads at the same time took {took:?}, with {ROUND_TRIP:?} for one");
    // One after the other over each of two connections they would take 32 round trips.
    assert!(took >= ROUND_TRIP && took < 8 * ROUND_TRIP, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_came_too_late_is_never_the_answer_to_another() {
    let (_server, wire, redis) = wired().await;
    for number in 0..50 {
        set(&redis, &format!("k{number}"), &format!("v{number}")).await;
    }
    let redis = Arc::new(redis);
    let (mut hits, mut late) = (0, 0);
    for round in 0..8 {
        wire.set(Fault::Late(Duration::ZERO, TIMEOUT.mul_f64(1.5)));
        let read = |number: u32| {
            let redis = Arc::clone(&redis);
            async move { (number, got(&redis, &format!("k{number}")).await) }
        };
        for (number, answer) in join_all((0..50).map(read)).await {
            match answer.as_str() {
                "error timeout" | "error unreachable" | "NotHandled" => late += 1,
                value => {
                    assert_eq!(value, format!("v{number}"), "round {round}");
                    hits += 1;
                }
            }
        }
        wire.set(Fault::None);
        available(&redis).await;
    }
    println!("{hits} answers in time, {late} too late or not asked for");
    assert!(hits > 0 && late > 0, "{hits} {late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bits_that_flip_on_the_wire_never_make_a_wrong_value() {
    let (_server, wire, redis) = wired().await;
    let value = |number: usize| format!("{number}").repeat(100);
    for number in 0..50 {
        set(&redis, &format!("k{number}"), &value(number)).await;
    }
    let (mut hits, mut others) = (0, 0);
    for _ in 0..8 {
        wire.set(Fault::Flipped);
        for number in 0..50 {
            match redis.get(&cx(), &key(&format!("k{number}"))).await {
                Ok(LayerResult::Hit(entry)) => {
                    assert_eq!(entry.value(), value(number).as_bytes());
                    hits += 1;
                }
                Ok(_) | Err(_) => others += 1,
            }
        }
        wire.set(Fault::None);
        available(&redis).await;
    }
    println!("{hits} values, {others} misses and failures");
    assert!(hits > 0 && others > 0, "{hits} {others}");
    set(&redis, "a", "v").await;
    eventually("it works", async || got(&redis, "a").await == "v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_too_few_values_ends_its_connection_before_the_rest_is_taken_for_the_next_answer() {
    let server = Server::start(&[]);
    let wire = Wire::to(server.address());
    // Not so short that an answer may come too late.
    let options = RedisOptions { timeout: PATIENCE, ..options(&[wire.address.port()]) };
    let redis = opened(options).await;
    for name in ["a", "b"] {
        set(&redis, name, name).await;
    }
    let clients = || server.cli(&["CLIENT", "LIST"]).lines().map(|line| line.to_owned()).collect::<Vec<_>>();
    let before = clients();
    wire.set(Fault::Short);
    let error = redis.get(&cx(), &key("a")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    assert!(error.message.contains("1 answers to 2 questions"), "{error}");
    wire.set(Fault::None);
    eventually("both are read", async || got(&redis, "a").await == "a" && got(&redis, "b").await == "b").await;
    let id = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let kept = clients().iter().filter(|now| before.iter().any(|before| id(before) == id(now))).count();
    assert!(kept < before.len(), "the connection goes on: {:?}", clients());
}

#[test]
fn a_write_of_a_killed_process_that_hangs_in_the_network_never_comes_after_those_of_the_next() {
    let server = Server::start(&[]);
    let wire = Wire::to(([127, 0, 0, 1], server.port).into());
    let folder = tempfile::tempdir().unwrap();
    let writer_file = Some(folder.path().join("volume").join("redis-writer"));
    let options =
        || RedisOptions { timeout: TIMEOUT, writer_file: writer_file.clone(), ..options(&[wire.address.port()]) };
    let killed = tokio::runtime::Runtime::new().unwrap();
    killed.block_on(async {
        let redis = opened(options()).await;
        set(&redis, "a", "before").await;
        wire.strand();
        assert_eq!(redis.apply(&cx(), &[Change::Set(entry("a", "late"))]).await.unwrap_err().kind, ErrorKind::Timeout);
    });
    killed.shutdown_background();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let next = opened(options()).await;
        eventually("removed", async || next.apply(&cx(), &[Change::Remove(key("a"))]).await.is_ok()).await;
        wire.unstrand();
        // Whatever was on its way has arrived, or never will.
        eventually("the connections of the killed process have ended", async || {
            server.cli(&["CLIENT", "LIST"]).lines().filter(|line| line.contains("name=tieredcache")).count() == 3
        })
        .await;
        eventually("read", async || {
            let found = got(&next, "a").await;
            assert_ne!(found, "late");
            found == "Miss"
        })
        .await;
    });
}
