//! One read for all who want to know: of one key, of many, and of keys that others are reading already.

use super::{tags::tag_set, *};

#[tokio::test]
async fn thousand_readers_of_one_key_read_the_layer_once() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 0), QUEUE).await);
    f.layer.put(entry("k", "v"));
    let mut readers = JoinSet::new();
    for _ in 0..1000 {
        let f = Arc::clone(&f);
        readers.spawn(async move { f.get("k").await });
    }
    eventually("the read has begun", || f.layer.reads.load(Ordering::SeqCst) == 1).await;
    tokio::task::yield_now().await;
    f.layer.read_gate.add_permits(1000);
    while let Some(read) = readers.join_next().await {
        assert_eq!(read.unwrap().as_deref(), Some("v"));
    }
    assert_eq!(f.layer.reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn read_goes_on_when_all_its_callers_are_gone() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 0), QUEUE).await);
    f.layer.put(entry("k", "v"));
    let reader = Arc::clone(&f);
    let mut readers = JoinSet::new();
    readers.spawn(async move { reader.get("k").await });
    eventually("the read has begun", || f.layer.reads.load(Ordering::SeqCst) == 1).await;
    readers.shutdown().await;
    f.layer.read_gate.add_permits(1);
    eventually("the value is promoted", || matches!(f.coordinator.peek(&f.cx(), b"k"), Peek::Hit(_))).await;
    assert_eq!(f.layer.reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn read_goes_on_when_its_first_caller_is_gone() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 0), QUEUE).await);
    f.layer.put(entry("k", "v"));
    let mut readers = JoinSet::new();
    let reader = || {
        let f = Arc::clone(&f);
        async move { f.get("k").await }
    };
    let first = readers.spawn(reader());
    readers.spawn(reader());
    eventually("the read has begun", || f.layer.reads.load(Ordering::SeqCst) == 1).await;
    first.abort();
    assert!(readers.join_next().await.unwrap().unwrap_err().is_cancelled());
    f.layer.read_gate.add_permits(1);
    assert_eq!(readers.join_next().await.unwrap().unwrap().as_deref(), Some("v"));
    assert_eq!(f.layer.reads.load(Ordering::SeqCst), 1);
}

// === many keys ===

impl Fixture {
    async fn get_many(&self, names: &[&str]) -> Vec<Option<String>> {
        let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
        let (found, _) = self.coordinator.get_many(&self.cx(), &keys, Wants::Value).await;
        found.iter().map(|found| found.as_ref().map(text)).collect()
    }

    fn reads(&self) -> u64 {
        self.layer.reads.load(Ordering::SeqCst)
    }

    fn round_trips(&self) -> u64 {
        self.layer.round_trips.load(Ordering::SeqCst)
    }
}

fn values(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

#[tokio::test]
async fn thousand_readers_of_the_same_keys_read_each_of_them_once_and_all_in_one_round_trip() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 0), QUEUE).await);
    ["a", "b", "c"].iter().for_each(|name| f.layer.put(entry(name, name)));
    let mut readers = JoinSet::new();
    for number in 0..1000 {
        let f = Arc::clone(&f);
        // In any order, and with a key twice.
        let names = if number % 2 == 0 { ["a", "b", "c", "a"] } else { ["c", "b", "a", "b"] };
        readers.spawn(async move { assert_eq!(f.get_many(&names).await, values(&names)) });
    }
    eventually("the read has begun", || f.reads() == 3).await;
    tokio::task::yield_now().await;
    f.layer.read_gate.add_permits(3000);
    while let Some(read) = readers.join_next().await {
        read.unwrap();
    }
    assert_eq!((f.reads(), f.round_trips()), (3, 1));
}

#[tokio::test]
async fn batch_joins_the_reads_under_way_and_reads_the_rest_in_one_round_trip() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 1000), QUEUE).await);
    ["a", "b", "c", "d"].iter().for_each(|name| f.layer.put(entry(name, name)));
    let mut readers = JoinSet::new();
    let reader = Arc::clone(&f);
    readers.spawn(async move { assert_eq!(reader.get("b").await.as_deref(), Some("b")) });
    eventually("one is being read", || f.reads() == 1).await;
    let reader = Arc::clone(&f);
    readers.spawn(async move { assert_eq!(reader.get_many(&["a", "b", "c"]).await, values(&["a", "b", "c"])) });
    eventually("the others are being read", || f.reads() == 3).await;
    let reader = Arc::clone(&f);
    readers.spawn(async move { assert_eq!(reader.get_many(&["c", "a"]).await, values(&["c", "a"])) });
    let reader = Arc::clone(&f);
    readers.spawn(async move { assert_eq!(reader.get("a").await.as_deref(), Some("a")) });
    let remover = Arc::clone(&f);
    readers.spawn(async move { assert_eq!(remover.remove("b").await, 1, "it looks before it removes") });
    let_others_go_on().await;
    f.layer.read_gate.add_permits(1000);
    while let Some(read) = readers.join_next().await {
        read.unwrap();
    }
    assert_eq!((f.reads(), f.round_trips()), (3, 2));
    assert_eq!(f.layer.value("b"), None);
}

#[tokio::test(start_paused = true)]
async fn read_of_many_keys_goes_on_when_its_caller_is_late_or_gone() {
    let f = Fixture::over(Scripted::gated(0, 0), QUEUE).await;
    ["a", "b", "c", "d"].iter().for_each(|name| f.layer.put(entry(name, name)));
    let cx = cx_within(&f.clock, Duration::from_millis(50));
    let (late, _) = f.coordinator.get_many(&cx, &["a", "b"].map(key), Wants::Value).await;
    assert!(late.iter().all(Option::is_none));
    let gone = f.coordinator.clone();
    let mut reader = JoinSet::new();
    reader.spawn(async move { drop(gone.get_many(&cx, &["c", "d"].map(key), Wants::Value).await) });
    eventually("the read has begun", || f.reads() == 4).await;
    reader.shutdown().await;
    f.layer.read_gate.add_permits(4);
    let is_promoted = |name: &str| matches!(f.coordinator.peek(&f.cx(), name.as_bytes()), Peek::Hit(_));
    eventually("all are promoted", || ["a", "b", "c", "d"].into_iter().all(is_promoted)).await;
    assert_eq!(f.reads(), 4);
}

#[tokio::test]
async fn batch_after_a_write_does_not_join_the_read_from_before() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 1000), QUEUE).await);
    f.layer.put(entry("k", "old"));
    let reader = Arc::clone(&f);
    let mut readers = JoinSet::new();
    readers.spawn(async move { reader.get_many(&["k", "other"]).await });
    eventually("the read has begun", || f.reads() == 2).await;
    f.set("k", "new").await;
    f.flushed().await;
    f.evict("k");
    let reader = Arc::clone(&f);
    readers.spawn(async move { reader.get_many(&["other", "k"]).await });
    eventually("it reads anew what was written, and nothing else", || f.reads() == 3).await;
    f.layer.read_gate.add_permits(1000);
    let mut answers = vec![readers.join_next().await.unwrap().unwrap(), readers.join_next().await.unwrap().unwrap()];
    answers.sort();
    let (old, new) = (Some("old".to_owned()), Some("new".to_owned()));
    assert_eq!(answers, [vec![None, new], vec![old, None]]);
}

#[tokio::test]
async fn read_that_ends_leaves_the_one_that_took_its_place_in_the_air() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 1000), QUEUE).await);
    f.layer.put(entry("k", "old"));
    let reader = |readers: &mut JoinSet<Option<String>>| {
        let f = Arc::clone(&f);
        readers.spawn(async move { f.get("k").await });
    };
    let (mut earlier, mut later) = (JoinSet::new(), JoinSet::new());
    reader(&mut earlier);
    eventually("the read has begun", || f.reads() == 1).await;
    f.set("k", "new").await;
    f.flushed().await;
    f.evict("k");
    reader(&mut later);
    eventually("it is read anew", || f.reads() == 2).await;
    // The gate lets the first one in first.
    f.layer.read_gate.add_permits(1);
    assert_eq!(earlier.join_next().await.unwrap().unwrap().as_deref(), Some("old"));
    reader(&mut later);
    let_others_go_on().await;
    f.layer.read_gate.add_permits(1000);
    while let Some(read) = later.join_next().await {
        assert_eq!(read.unwrap().as_deref(), Some("new"));
    }
    assert_eq!(f.reads(), 2, "the third reader joins the second");
}

// === what somebody else has judged ===

#[tokio::test]
async fn who_joins_a_read_does_not_get_what_was_removed_by_tag_since_it_began() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 1000), QUEUE).await);
    let (red, position) = (tag_set(&["red"]), f.coordinator.position(&f.cx()));
    f.layer.put(Entry::new(b"k", b"1", EntryMeta { tags: red.tags(), position, ..EntryMeta::default() }));
    let begin = |wants_many: bool| {
        let f = Arc::clone(&f);
        async move { if wants_many { f.get_many(&["k", "k"]).await.remove(0) } else { f.get("k").await } }
    };
    let mut first = JoinSet::new();
    first.spawn(begin(false));
    eventually("the read has begun", || f.reads() == 1).await;
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["red"]), Matching::Any).await.unwrap();
    let mut later = JoinSet::new();
    later.spawn(begin(false));
    later.spawn(begin(true));
    let adder = Arc::clone(&f);
    let mut adding = JoinSet::new();
    adding.spawn(
        async move { adder.coordinator.update(&adder.cx(), &key("k"), |old| (Update::Keep, old.cloned())).await },
    );
    let_others_go_on().await;
    f.layer.read_gate.add_permits(1000);
    let _ = first.join_next().await.unwrap().unwrap();
    assert_eq!(later.join_next().await.unwrap().unwrap(), None);
    assert_eq!(later.join_next().await.unwrap().unwrap(), None);
    assert!(adding.join_next().await.unwrap().unwrap().unwrap().is_none());
}
