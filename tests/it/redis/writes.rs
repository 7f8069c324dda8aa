//! What Redis has no room for, does not take, or holds in a state that nobody wrote.

use cache_node::layer::{ErrorKind, Matching, TagRemoval};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::{
    makes::{Make, on_every_make},
    server::Server,
    *,
};

on_every_make! {
    without_memory_sets_give_way_and_never_leave_an_older_value
    without_memory_a_fill_leaves_what_is_there
    a_fill_is_refused_where_the_log_may_have_lost_what_came_since
    a_value_that_may_have_been_stored_before_gives_way_to_what_others_have_changed_since
    a_redis_without_memory_is_degraded_while_that_lasts
    a_replica_is_read_and_refuses_writes_until_it_is_a_master
    a_master_that_becomes_a_replica_is_noticed_by_the_refused_write
    what_was_flipped_cut_or_moved_is_a_miss_and_goes_and_spoils_no_other
    a_damaged_value_is_told_to_who_asked_for_it_alone_and_one_of_another_type_is_a_miss
    a_damaged_floor_serves_nothing_rather_than_what_was_cleared
}

/// Fills the server to its limit, so that it takes nothing more that needs room.
fn fill(server: &Server) {
    for number in 0..64 {
        server.cli(&["SET", &format!("ballast{number}"), &"x".repeat(100_000)]);
    }
    server.cli(&["CONFIG", "SET", "maxmemory", "2mb"]);
    assert!(server.cli(&["SET", "one more", "x"]).starts_with("OOM"));
}

async fn without_memory_sets_give_way_and_never_leave_an_older_value(make: Make) {
    let server = make.start(&["--maxmemory-policy", "noeviction"]);
    let redis = opened(options(&[server.port])).await;
    set(&redis, "a", "old").await;
    set(&redis, "b", "old").await;
    fill(&server);
    // The batch succeeds as a whole: one removal behind a set without room must not be held up.
    redis.apply(&cx(), &[Change::Set(entry("a", "new")), Change::Remove(key("b"))]).await.unwrap();
    assert_eq!((got(&redis, "a").await.as_str(), got(&redis, "b").await.as_str()), ("Miss", "Miss"));
    assert_eq!(extra(&redis, "notWrittenOutOfMemory"), 1);
    assert_eq!(redis.stats().errors, [(ErrorKind::Full, 1)]);
    let removal = TagRemoval { tags: tags(&["t"]), matching: Matching::Any, position: Position::NONE };
    let placed = redis.apply(&cx(), &[Change::RemoveTagged(removal.clone())]).await.unwrap();
    assert_eq!(redis.tag_removals(&cx()).await.unwrap(), [TagRemoval { position: placed[0], ..removal }]);
    redis.clear(&cx()).await.unwrap();
    assert!(redis.is_available(), "it works, but for room");
}

async fn without_memory_a_fill_leaves_what_is_there(make: Make) {
    let server = make.start(&["--maxmemory-policy", "noeviction"]);
    let redis = opened(options(&[server.port])).await;
    set(&redis, "a", "newer").await;
    fill(&server);
    redis.apply(&cx(), &[Change::Fill(entry("a", "older"))]).await.unwrap();
    assert_eq!(got(&redis, "a").await, "newer");
}

async fn a_fill_is_refused_where_the_log_may_have_lost_what_came_since(make: Make) {
    let server = make.start(&["--stream-node-max-entries", "1"]);
    let redis = opened(options(&[server.port])).await;
    let place = async |change| redis.apply(&cx(), &[change]).await.unwrap()[0];
    let known = place(Change::Set(entry("a", "old"))).await;
    place(Change::Remove(key("a"))).await;
    let last = place(Change::Set(entry("b", "v"))).await;
    let fill = |position| {
        let old = entry("a", "old");
        Change::Fill(Entry::new(old.key(), old.value(), EntryMeta { position, ..old.meta() }))
    };
    assert_eq!(server.cli(&["XTRIM", "{tc:u-1}:log", "MAXLEN", "1"]), "2");
    place(fill(known)).await;
    assert_eq!(got(&redis, "a").await, "Miss", "the record of its removal was trimmed");
    place(fill(last)).await;
    assert_eq!(got(&redis, "a").await, "old", "nothing came since");
}

async fn a_value_that_may_have_been_stored_before_gives_way_to_what_others_have_changed_since(make: Make) {
    let server = make.start(&["--stream-node-max-entries", "1"]);
    let one = opened(options(&[server.port])).await;
    let other = opened(RedisOptions { node: "m".to_owned(), ..options(&[server.port]) }).await;
    let place = async |redis: &Redis, change| redis.apply(&cx(), &[change]).await.unwrap()[0];
    let (red, blue) = (tags(&["red"]), tags(&["blue"]));
    let value = |tags: &TagSet| Entry::new(b"a", b"v", EntryMeta { tags: tags.tags(), ..EntryMeta::default() });
    let tagged =
        || Change::RemoveTagged(TagRemoval { tags: blue.clone(), matching: Matching::Any, position: Position::NONE });
    let none = TagSet::default();
    for (case, changes, tags, is_stored) in [
        ("nothing", vec![], &red, true),
        ("another key", vec![(&other, Change::Remove(key("b")))], &red, true),
        ("its own attempt", vec![(&one, Change::Set(value(&red)))], &red, true),
        ("a removal by tag, of no concern", vec![(&other, tagged())], &none, true),
        ("a removal by tag", vec![(&other, tagged())], &red, false),
        ("a removal", vec![(&one, Change::Set(value(&red))), (&other, Change::Remove(key("a")))], &red, false),
        ("another value", vec![(&other, Change::Set(entry("a", "of the other")))], &none, false),
    ] {
        let known = place(&one, Change::Remove(key("a"))).await;
        for (redis, change) in changes {
            place(redis, change).await;
        }
        let placed = place(&one, Change::Again(value(tags), known)).await;
        assert_eq!(got(&one, "a").await, if is_stored { "v" } else { "Miss" }, "{case}");
        let record = server.cli(&["XRANGE", "{tc:u-1}:log", &placed.to_string(), "+"]);
        let words: Vec<&str> = record.lines().collect();
        // The removal is nobody's, so that the node that asked hears of it, too.
        assert_eq!(
            (words[2], words.get(6).is_none_or(|origin| origin.is_empty())),
            if is_stored { ("s", false) } else { ("r", true) },
            "{case}: {words:?}"
        );
    }
    let known = place(&one, Change::Remove(key("a"))).await;
    other.clear(&cx()).await.unwrap();
    place(&one, Change::Again(value(&none), known)).await;
    assert_eq!(got(&one, "a").await, "Miss", "a clear");
    let known = place(&one, Change::Remove(key("a"))).await;
    place(&other, Change::Remove(key("b"))).await;
    place(&other, Change::Remove(key("b"))).await;
    server.cli(&["XTRIM", "{tc:u-1}:log", "MAXLEN", "1"]);
    place(&one, Change::Again(value(&none), known)).await;
    assert_eq!(got(&one, "a").await, "Miss", "records were trimmed");
}

async fn a_redis_without_memory_is_degraded_while_that_lasts(make: Make) {
    let server = make.start(&["--maxmemory-policy", "noeviction"]);
    let redis = opened(options(&[server.port])).await;
    fill(&server);
    eventually("degraded", async || {
        set(&redis, "a", "v").await;
        let health = redis.health();
        health.state == HealthState::Degraded && health.reason == "OutOfMemory"
    })
    .await;
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    healthy_as(&redis, HealthState::Healthy, "AsExpected").await;
    set(&redis, "a", "v").await;
    assert_eq!(got(&redis, "a").await, "v");
}

async fn a_replica_is_read_and_refuses_writes_until_it_is_a_master(make: Make) {
    let master = make.start(&[]);
    let replica = make.start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    let writer = opened(options(&[master.port])).await;
    set(&writer, "a", "v").await;
    let redis = opened(options(&[replica.port])).await;
    eventually("replicated", async || got(&redis, "a").await == "v").await;
    let error = redis.apply(&cx(), &[Change::Set(entry("a", "w"))]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(redis.is_available(), "reads go on");
    healthy_as(&redis, HealthState::Degraded, "ReadOnly").await;
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    eventually("writes are taken", async || redis.apply(&cx(), &[Change::Set(entry("a", "w"))]).await.is_ok()).await;
    assert_eq!(got(&redis, "a").await, "w");
}

async fn a_master_that_becomes_a_replica_is_noticed_by_the_refused_write(make: Make) {
    let (one, other) = (make.start(&[]), make.start(&[]));
    let redis = opened(options(&[one.port, other.port])).await;
    set(&redis, "a", "v").await;
    assert_eq!(one.cli(&["EXISTS", "{tc:u-1}:e:a"]), "1", "the first master of the list is used");
    one.cli(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]);
    eventually("the other takes writes", async || redis.apply(&cx(), &[Change::Set(entry("b", "w"))]).await.is_ok())
        .await;
    assert_eq!(other.cli(&["EXISTS", "{tc:u-1}:e:b"]), "1");
}

async fn what_was_flipped_cut_or_moved_is_a_miss_and_goes_and_spoils_no_other(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..60 {
        redis.apply(&cx(), &[Change::Set(entry("bad", "value")), Change::Set(entry("good", "value"))]).await.unwrap();
        let stored = "{tc:u-1}:e:bad";
        match random.random_range(0..4) {
            0 => server.cli(&["SETRANGE", stored, "82", "!"]),
            1 => {
                let bit = random.random_range(0..102 * 8).to_string();
                let flipped = if server.cli(&["GETBIT", stored, &bit]) == "1" { "0" } else { "1" };
                server.cli(&["SETBIT", stored, &bit, flipped])
            }
            2 => server.cli(&["COPY", "{tc:u-1}:e:good", stored, "REPLACE"]),
            _ => server.cli(&["SET", stored, &"TC".repeat(random.random_range(0..60))]),
        };
        let many = redis.get_many(&cx(), &[key("good"), key("bad"), key("good")]).await.unwrap();
        assert!(
            matches!(&many[..], [Ok(LayerResult::Hit(_)), Ok(LayerResult::Miss) | Err(_), Ok(LayerResult::Hit(_))]),
            "round {round}, seed {seed}: {many:?}"
        );
        eventually("it goes", async || server.cli(&["EXISTS", stored]) == "0").await;
    }
    let errors = redis.stats().errors;
    assert!(errors.iter().any(|(kind, count)| *kind == ErrorKind::Corrupt && *count >= 60), "{errors:?}");
}

async fn a_damaged_value_is_told_to_who_asked_for_it_alone_and_one_of_another_type_is_a_miss(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    server.cli(&["SET", "{tc:u-1}:e:foreign", "no envelope"]);
    server.cli(&["RPUSH", "{tc:u-1}:e:list", "x"]);
    assert_eq!(got(&redis, "foreign").await, "error corrupt");
    assert_eq!(got(&redis, "list").await, "Miss");
    set(&redis, "list", "v").await;
    assert_eq!(got(&redis, "list").await, "v");
}

async fn a_damaged_floor_serves_nothing_rather_than_what_was_cleared(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    set(&redis, "a", "v").await;
    server.cli(&["SET", "{tc:u-1}:floor", "soon"]);
    assert_eq!(got(&redis, "a").await, "error corrupt");
    redis.clear(&cx()).await.unwrap();
    set(&redis, "a", "w").await;
    assert_eq!(got(&redis, "a").await, "w");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_could_evict_removals_is_told_until_it_is_another() {
    let server = Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let redis = opened(options(&[server.port])).await;
    let health = healthy_as(&redis, HealthState::Degraded, "EvictsAll").await;
    assert!(health.message.contains("maxmemory-policy is allkeys-lru"), "{}", health.message);
    set(&redis, "a", "v").await;
    assert_eq!(got(&redis, "a").await, "v", "it works all the same");
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]);
    healthy_as(&redis, HealthState::Healthy, "AsExpected").await;
}
