//! What is written comes back as it was, for as long as it may, and what is removed does not.

use cache_node::layer::{Matching, TagRemoval};

use super::{
    makes::{Make, on_every_make},
    server::Server,
    *,
};

const HOUR: Duration = Duration::from_secs(3600);

on_every_make! {
    entries_come_back_with_everything_they_carry
    life_in_redis_is_what_is_left_of_the_useful_life_and_never_more_than_the_limit
    an_entry_without_life_left_is_not_stored_and_its_older_copy_goes
    nothing_is_served_past_its_useful_life_or_the_limit_also_if_redis_still_has_it
    changes_of_a_batch_take_effect_in_their_order_and_a_fill_never_replaces
    caches_that_share_a_redis_do_not_meet_and_a_key_may_look_like_a_prefix
    a_clear_takes_effect_at_once_for_every_node_and_gives_the_memory_back
    a_clear_beats_every_write_before_it_and_none_after_it_whatever_the_wall_clock_does
    removals_of_tags_are_kept_at_their_place_in_the_log_while_they_matter
    a_damaged_removal_by_tag_removes_all_of_before_because_nobody_knows_what_it_removed
    a_removal_by_tag_has_a_millisecond_of_its_own_while_the_clock_of_redis_is_behind
    an_emptied_redis_gives_misses_and_goes_on
    another_database_is_used_as_configured
}

fn pttl(server: &Server, key: &str) -> Duration {
    let text = server.cli(&["PTTL", &format!("{{tc:u-1}}:e:{key}")]);
    Duration::from_millis(text.parse().unwrap_or_else(|_| panic!("{key} has the life {text}")))
}

async fn entries_come_back_with_everything_they_carry(make: Make) {
    let server = make.start(&[]);
    let compressed = Codec { compression: cache_node::entry::envelope::Compression::Zstd, threshold_bytes: 100 };
    let redis = opened(RedisOptions { codec: compressed, ..options(&[server.port]) }).await;
    let now = Clock::system().now();
    let tags = tags(&["red", "round"]);
    let meta = EntryMeta {
        expires_at: Some(now.after(HOUR)),
        stale_until: Some(now.after(2 * HOUR)),
        position: Position::from_parts(now.0, 7),
        tags: tags.tags(),
        negative: false,
    };
    let large = vec![b'x'; 3 << 20];
    let entries = [
        Entry::new(b"full", &large, meta),
        Entry::new(b"empty", b"", EntryMeta::default()),
        Entry::new(b"negative", b"", EntryMeta { negative: true, ..EntryMeta::default() }),
        Entry::new(b"\0\r\n\xff", b"\r\n\0", EntryMeta::default()),
    ];
    let changes: Vec<Change> = entries.iter().cloned().map(Change::Set).collect();
    redis.apply(&cx(), &changes).await.unwrap();
    let mut keys: Vec<Key> = entries.iter().map(|entry| Key::new(entry.key().to_vec()).unwrap()).collect();
    keys.insert(1, key("absent"));
    let mut read = redis.get_many(&cx(), &keys).await.unwrap();
    assert!(matches!(read.remove(1), Ok(LayerResult::Miss)), "answers are in the order asked");
    for (entry, read) in entries.iter().zip(read) {
        let Ok(LayerResult::Hit(read)) = read else { panic!("{entry:?}: {read:?}") };
        assert_eq!((read.key(), read.value(), read.meta()), (entry.key(), entry.value(), entry.meta()));
    }
    assert!(extra(&redis, "bytesWritten") < 100_000, "values are compressed");
    let stats = redis.stats();
    assert_eq!((stats.hits, stats.misses, stats.operations, stats.errors), (4, 1, 9, vec![]));
}

async fn life_in_redis_is_what_is_left_of_the_useful_life_and_never_more_than_the_limit(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    let now = Clock::system().now();
    let stale =
        EntryMeta { expires_at: Some(now.after(HOUR)), stale_until: Some(now.after(2 * HOUR)), ..EntryMeta::default() };
    let changes = [
        Change::Set(entry_for("short", "v", HOUR)),
        Change::Set(Entry::new(b"stale", b"v", stale)),
        Change::Set(entry_for("long", "v", 24 * HOUR)),
        Change::Set(entry("endless", "v")),
        Change::Fill(entry("filled", "v")),
    ];
    redis.apply(&cx(), &changes).await.unwrap();
    for (key, hours) in [("short", 1), ("stale", 2), ("long", 4), ("endless", 4), ("filled", 4)] {
        let life = pttl(&server, key);
        assert!(life <= hours * HOUR && life + PATIENCE > hours * HOUR, "{key}: {life:?}");
    }
}

async fn an_entry_without_life_left_is_not_stored_and_its_older_copy_goes(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    set(&redis, "a", "old").await;
    set(&redis, "b", "old").await;
    let dead = |key: &str| {
        Entry::new(key.as_bytes(), b"new", EntryMeta { expires_at: Some(UnixMillis(1)), ..EntryMeta::default() })
    };
    redis.apply(&cx(), &[Change::Set(dead("a")), Change::Fill(dead("b"))]).await.unwrap();
    assert_eq!((got(&redis, "a").await.as_str(), got(&redis, "b").await.as_str()), ("Miss", "old"));
    assert_eq!(server.cli(&["KEYS", "*:e:*"]), "{tc:u-1}:e:b");
}

async fn nothing_is_served_past_its_useful_life_or_the_limit_also_if_redis_still_has_it(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    redis.apply(&cx(), &[Change::Set(entry_for("a", "v", HOUR)), Change::Set(entry("b", "v"))]).await.unwrap();
    for key in ["a", "b"] {
        server.cli(&["PERSIST", &format!("{{tc:u-1}}:e:{key}")]);
    }
    let later = |span| OperationContext { now: Clock::system().now().after(span), ..cx() };
    let read = async |key_text, span| redis.get(&later(span), &key(key_text)).await.unwrap();
    assert!(matches!(read("a", HOUR / 2).await, LayerResult::Hit(_)));
    assert!(matches!(read("a", HOUR).await, LayerResult::Miss));
    assert!(matches!(read("b", 3 * HOUR).await, LayerResult::Hit(_)));
    assert!(matches!(read("b", 4 * HOUR).await, LayerResult::Miss));
}

async fn changes_of_a_batch_take_effect_in_their_order_and_a_fill_never_replaces(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    let changes = [
        Change::Set(entry("a", "1")),
        Change::Remove(key("a")),
        Change::Set(entry("a", "2")),
        Change::Fill(entry("a", "older")),
        Change::Set(entry("b", "1")),
        Change::Remove(key("b")),
        Change::Fill(entry("c", "filled")),
    ];
    redis.apply(&cx(), &changes).await.unwrap();
    for (key, answer) in [("a", "2"), ("b", "Miss"), ("c", "filled")] {
        assert_eq!(got(&redis, key).await, answer, "{key}");
    }
}

async fn caches_that_share_a_redis_do_not_meet_and_a_key_may_look_like_a_prefix(make: Make) {
    let server = make.start(&[]);
    let one = opened(options(&[server.port])).await;
    let other = opened(RedisOptions { cache_uid: "u-2".to_owned(), ..options(&[server.port]) }).await;
    let prefixed = "{tc:u-1}:e:a";
    set(&one, "a", "plain").await;
    set(&one, prefixed, "prefixed").await;
    set(&other, "a", "other").await;
    assert_eq!((got(&one, "a").await.as_str(), got(&one, prefixed).await.as_str()), ("plain", "prefixed"));
    one.apply(&cx(), &[Change::Remove(key(prefixed))]).await.unwrap();
    assert_eq!((got(&one, "a").await.as_str(), got(&one, prefixed).await.as_str()), ("plain", "Miss"));
    other.clear(&cx()).await.unwrap();
    assert_eq!((got(&one, "a").await.as_str(), got(&other, "a").await.as_str()), ("plain", "Miss"));
}

async fn a_clear_takes_effect_at_once_for_every_node_and_gives_the_memory_back(make: Make) {
    let server = make.start(&[]);
    let node = opened(options(&[server.port])).await;
    let other_node = opened(options(&[server.port])).await;
    let old: Vec<Change> = (0..3000).map(|number| Change::Set(entry(&format!("k{number}"), "old"))).collect();
    node.apply(&cx(), &old).await.unwrap();
    server.cli(&["SET", "{tc:u-1}:elsewhere", "kept"]);
    other_node.clear(&cx()).await.unwrap();
    let keys: Vec<Key> = (0..3000).map(|number| key(&format!("k{number}"))).collect();
    for reader in [&node, &other_node] {
        let read = reader.get_many(&cx(), &keys).await.unwrap();
        assert!(read.iter().all(|answer| matches!(answer, Ok(LayerResult::Miss))));
    }
    set(&other_node, "k1", "new").await;
    assert_eq!(got(&node, "k1").await, "new", "what comes after the clear stays");
    // The log, the floor, the new entry, and what is none of ours.
    eventually("memory is given back", async || server.cli(&["DBSIZE"]) == "4").await;
    assert_eq!(got(&node, "k1").await, "new");
    let after_restart = opened(options(&[server.port])).await;
    assert_eq!(got(&after_restart, "k1").await, "new");
}

async fn a_clear_beats_every_write_before_it_and_none_after_it_whatever_the_wall_clock_does(make: Make) {
    let server = make.start(&[]);
    let clock = Clock::manual(Clock::system().now());
    // While this clock stands, so do the ends of all timeouts.
    let redis = Redis::open(RedisOptions { timeout: PATIENCE, ..options(&[server.port]) }, clock.clone());
    available(&redis).await;
    let at = |now: UnixMillis| OperationContext { now, ..cx() };
    let now = clock.now();
    // A batch with a later date than the clear: the clock has stepped back between them.
    redis.apply(&at(now.after(HOUR)), &[Change::Set(entry("a", "1"))]).await.unwrap();
    redis.clear(&at(now)).await.unwrap();
    assert_eq!(got(&redis, "a").await, "Miss");
    redis.apply(&at(now), &[Change::Set(entry("a", "2"))]).await.unwrap();
    assert_eq!(got(&redis, "a").await, "2");
}

async fn a_damaged_removal_by_tag_removes_all_of_before_because_nobody_knows_what_it_removed(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    set(&redis, "old", "v").await;
    let removal = TagRemoval { tags: tags(&["a"]), matching: Matching::Any, position: Position::NONE };
    redis.apply(&cx(), &[Change::RemoveTagged(removal)]).await.unwrap();
    let hash = "{tc:u-1}:tags";
    let kept = server.cli(&["HGET", hash, "t:a"]);
    server.cli(&["HSET", hash, "t:a", &kept.replacen('1', "0", 1)]);
    assert_eq!(redis.tag_removals(&cx()).await.unwrap(), []);
    assert_eq!(got(&redis, "old").await, "Miss");
    assert_eq!(server.cli(&["HLEN", hash]), "0", "once is enough");
    let record = server.cli(&["XREVRANGE", "{tc:u-1}:log", "+", "-", "COUNT", "1"]);
    let word = |number| record.lines().nth(number).unwrap_or_default();
    assert_eq!((word(2), word(6)), ("c", ""), "this node has to forget, too: {record}");
    set(&redis, "new", "v").await;
    assert_eq!(redis.tag_removals(&cx()).await.unwrap(), []);
    assert_eq!(got(&redis, "new").await, "v");
}

/// Adds 20,000 removals by tag that no longer matter, as the layer keeps them. KEYS tags.
const OUTDATED: &str = "
local function crc32c(text)
  local crc = bit.bnot(0)
  for i = 1, #text do
    crc = bit.bxor(crc, string.byte(text, i))
    for _ = 1, 8 do
      crc = bit.bxor(bit.rshift(crc, 1), bit.band(crc, 1) == 1 and 0x82F63B78 or 0)
    end
  end
  return bit.tohex(bit.bnot(crc))
end
for i = 1, 20000 do
  local field = 't:outdated' .. i
  redis.call('HSET', KEYS[1], field, '1000-1 1000-1 ' .. crc32c(field))
end";

async fn removals_of_tags_are_kept_at_their_place_in_the_log_while_they_matter(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    let removal = |words: &[&str], matching, position| TagRemoval { tags: tags(words), matching, position };
    let changes = [
        removal(&["a", "b"], Matching::Any, Position::NONE),
        removal(&["b", "a"], Matching::All, Position::NONE),
        removal(&["a"], Matching::Any, Position::NONE),
        removal(&["a", "b"], Matching::All, Position::NONE),
    ];
    let placed = redis.apply(&cx(), &changes.map(Change::RemoveTagged)).await.unwrap();
    assert!(placed.is_sorted_by(|one, next| one < next), "{placed:?}");
    server.cli(&["EVAL", OUTDATED, "1", "{tc:u-1}:tags"]);
    let mut kept = redis.tag_removals(&cx()).await.unwrap();
    kept.sort_by_key(|removal| removal.position);
    let expected = [
        removal(&["b"], Matching::Any, placed[0]),
        removal(&["a"], Matching::Any, placed[2]),
        removal(&["a", "b"], Matching::All, placed[3]),
    ];
    assert_eq!(kept, expected);
    assert_eq!(server.cli(&["HLEN", "{tc:u-1}:tags"]), "3", "what no longer matters is forgotten");
}

async fn a_removal_by_tag_has_a_millisecond_of_its_own_while_the_clock_of_redis_is_behind(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    let ahead_ms = Clock::system().now().0 + 3_600_000;
    server.cli(&["XADD", "{tc:u-1}:log", &format!("{ahead_ms}-5"), "k", "a", "w", "", "o", "x"]);
    let removal = TagRemoval { tags: tags(&["a"]), matching: Matching::Any, position: Position::NONE };
    for later_ms in 1..3 {
        let placed = redis.apply(&cx(), &[Change::RemoveTagged(removal.clone())]).await.unwrap();
        assert_eq!(placed, [Position::from_parts(ahead_ms + later_ms, 0)]);
        let placed = redis.apply(&cx(), &[Change::Set(entry("k", "v"))]).await.unwrap();
        assert_eq!(placed, [Position::from_parts(ahead_ms + later_ms, 1)]);
    }
}

async fn an_emptied_redis_gives_misses_and_goes_on(make: Make) {
    let server = make.start(&[]);
    let redis = opened(options(&[server.port])).await;
    set(&redis, "a", "1").await;
    server.cli(&["FLUSHALL"]);
    server.cli(&["SCRIPT", "FLUSH"]);
    assert_eq!(got(&redis, "a").await, "Miss");
    set(&redis, "a", "2").await;
    assert_eq!(got(&redis, "a").await, "2");
}

async fn another_database_is_used_as_configured(make: Make) {
    let server = make.start(&[]);
    let redis = opened(RedisOptions { database: 3, ..options(&[server.port]) }).await;
    set(&redis, "a", "1").await;
    assert_eq!(
        (server.cli(&["DBSIZE"]).as_str(), server.cli(&["-n", "3", "DBSIZE"]).as_str()),
        ("0", "2"),
        "the entry and the log"
    );
}
