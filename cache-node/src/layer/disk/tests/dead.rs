//! What leaves the disk: removals by tag, the dead, and what has no room.

use rocksdb::{CompactionDecision, DB, Options, compaction_filter::CompactionFilter};

use super::*;
use crate::{
    entry::{Position, TagSet},
    layer::{
        Matching,
        disk::{
            reclaim::DeadEntries,
            tuning::{ENTRIES, META, TAGS},
        },
    },
};

// === removals by tag ===

fn removal(matching: Matching, tags: &[&str], millis: u64) -> TagRemoval {
    TagRemoval { tags: tag_set(tags), matching, position: Position::from_parts(millis, 0) }
}

fn tag_set(tags: &[&str]) -> TagSet {
    let mut set = TagSet::default();
    tags.iter().for_each(|tag| set.add(tag.as_bytes()).unwrap());
    set
}

fn tagged(name: &str, tag: &str, millis: u64) -> Entry {
    let (tags, position) = (tag_set(&[tag]), Position::from_parts(millis, 0));
    Entry::new(name.as_bytes(), b"v", EntryMeta { tags: tags.tags(), position, ..EntryMeta::default() })
}

#[tokio::test]
async fn removals_by_tag_survive_a_restart_and_a_clear_at_their_greatest_position() {
    let f = Fixture::new();
    let disk = f.open().await;
    let changes = [
        removal(Matching::Any, &["a", "b"], START.0 + 2),
        removal(Matching::All, &["b", "a"], START.0 + 3),
        removal(Matching::Any, &["b"], START.0 + 1),
    ];
    disk.apply(&f.cx(), &changes.map(Change::RemoveTagged)).await.unwrap();
    let later = [
        Change::RemoveTagged(removal(Matching::Any, &["a"], START.0 + 9)),
        Change::RemoveTagged(removal(Matching::All, &["a", "b"], START.0 + 1)),
        Change::Set(entry("k", "v")),
    ];
    disk.apply(&f.cx(), &later).await.unwrap();
    disk.clear(&f.cx()).await.unwrap();
    close(disk).await;
    let disk = f.open().await;
    let expected = [
        removal(Matching::All, &["a", "b"], START.0 + 3),
        removal(Matching::Any, &["a"], START.0 + 9),
        removal(Matching::Any, &["b"], START.0 + 2),
    ];
    assert_eq!(disk.tag_removals(&f.cx()).await.unwrap(), expected);
    assert_eq!((f.value(&disk, "k").await, cold_starts(&disk)), (None, 0));
}

#[tokio::test]
async fn removal_by_tag_is_forgotten_once_no_entry_can_be_as_old() {
    let f = Fixture::new();
    let disk = f.open().await;
    disk.apply(&f.cx(), &[Change::RemoveTagged(removal(Matching::Any, &["a"], START.0))]).await.unwrap();
    // An entry may have waited a day in the queue, and then lies here for its longest time.
    f.clock.advance(MAX_TTL + Duration::from_secs(24 * 3600) - Duration::from_millis(1));
    assert_eq!(disk.tag_removals(&f.cx()).await.unwrap().len(), 1);
    f.clock.advance(Duration::from_millis(1));
    assert_eq!(disk.tag_removals(&f.cx()).await.unwrap(), []);
    let store = disk.shared.store().unwrap();
    store.compact();
    assert_eq!(store.records(TAGS), 0, "compaction drops it");
}

#[tokio::test]
async fn database_with_a_damaged_removal_by_tag_starts_cold() {
    let f = Fixture::new();
    let disk = f.open().await;
    let changes = [Change::RemoveTagged(removal(Matching::Any, &["a"], START.0)), Change::Set(entry("k", "v"))];
    disk.apply(&f.cx(), &changes).await.unwrap();
    disk.shared.store().unwrap().overwrite_removals(b"nonsense");
    let error = disk.tag_removals(&f.cx()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    close(disk).await;
    let disk = f.open().await;
    assert_eq!((f.value(&disk, "k").await, cold_starts(&disk)), (None, 1));
    let message = disk.shared.verdict(None).message;
    assert!(message.contains("removal by tag"), "{message}");
}

#[tokio::test]
async fn database_from_before_there_were_tags_opens_warm() {
    let f = Fixture::new();
    let disk = f.reopened(f.options(), |path| {
        let mut db = DB::open_cf(&Options::default(), path.join("db"), [ENTRIES, TAGS, META]).unwrap();
        db.drop_cf(TAGS).unwrap();
    });
    let disk = disk.await;
    assert_eq!((f.value(&disk, "k").await.as_deref(), cold_starts(&disk)), (Some("v"), 0));
    assert_eq!(disk.tag_removals(&f.cx()).await.unwrap(), []);
}

#[tokio::test]
async fn newest_position_of_all_changes_is_known_after_a_restart() {
    let f = Fixture::new();
    let disk = f.open().await;
    assert_eq!(disk.newest_position(&f.cx()).await.unwrap(), Position::NONE);
    f.set(&disk, tagged("k", "red", 7)).await;
    f.set(&disk, tagged("older", "red", 5)).await;
    let position = |millis| Position::from_parts(millis, 0);
    assert_eq!(disk.newest_position(&f.cx()).await.unwrap(), position(7));
    // Not written to disk, and yet it may be elsewhere.
    let brief = tagged("brief", "red", 9);
    let meta = EntryMeta { expires_at: Some(START.after(Duration::from_millis(1))), ..brief.meta() };
    f.set(&disk, Entry::new(brief.key(), brief.value(), meta)).await;
    close(disk).await;
    let disk = f.open().await;
    assert_eq!((disk.newest_position(&f.cx()).await.unwrap(), cold_starts(&disk)), (position(9), 0));
    disk.apply(&f.cx(), &[Change::RemoveTagged(removal(Matching::Any, &["a"], 11))]).await.unwrap();
    close(disk).await;
    let disk = f.open().await;
    assert_eq!(disk.newest_position(&f.cx()).await.unwrap(), position(11));
    disk.shared.store().unwrap().overwrite_newest_position(b"nonsense");
    close(disk).await;
    let disk = f.open().await;
    assert_eq!((disk.newest_position(&f.cx()).await.unwrap(), cold_starts(&disk)), (Position::NONE, 1));
}

// === compaction ===

#[test]
fn compaction_drops_what_is_over_removed_or_unreadable_and_keeps_the_rest() {
    let filter = |after: Duration| DeadEntries {
        now: START.after(after),
        max_ttl: MAX_TTL,
        is_removed: Arc::new(|tags, position| tags.contains(b"red") && position.millis() < 10),
        counts: Arc::default(),
    };
    let keeps = |entry: &Entry, after: Duration| {
        let mut bytes = Vec::new();
        Codec::default().encode(entry, START, &mut bytes);
        matches!(filter(after).filter(1, entry.key(), &bytes), CompactionDecision::Keep)
    };
    let until = |stale_until| {
        let expires_at = Some(START.after(Duration::from_secs(60)));
        Entry::new(b"k", b"v", EntryMeta { expires_at, stale_until, ..EntryMeta::default() })
    };
    let minute = until(None);
    assert!(keeps(&minute, Duration::from_secs(59)) && !keeps(&minute, Duration::from_secs(60)));
    let stale = until(Some(START.after(Duration::from_secs(90))));
    assert!(keeps(&stale, Duration::from_secs(89)) && !keeps(&stale, Duration::from_secs(90)));
    let lasting = entry("k", "v");
    assert!(keeps(&lasting, MAX_TTL - Duration::from_millis(1)) && !keeps(&lasting, MAX_TTL));
    assert!(!keeps(&tagged("k", "red", 9), Duration::ZERO));
    assert!(keeps(&tagged("k", "red", 10), Duration::ZERO) && keeps(&tagged("k", "blue", 9), Duration::ZERO));
    assert!(matches!(filter(Duration::ZERO).filter(1, b"k", b"not an envelope"), CompactionDecision::Remove));
}

#[tokio::test]
async fn dead_entries_leave_the_disk_at_compaction_and_are_counted() {
    let f = Fixture::new();
    let disk = f.open_with(|options| options.is_removed = Arc::new(|tags, _| tags.contains(b"red"))).await;
    let brief = entry_until("brief", "v", START.after(MIN_TTL));
    let large = tagged("large", "red", 1);
    for entry in [brief, large, tagged("blue", "blue", 1), entry("lasting", "v")] {
        f.set(&disk, entry).await;
    }
    f.clock.advance(MIN_TTL);
    let store = disk.shared.store().unwrap();
    store.compact();
    assert_eq!(store.records(ENTRIES), 2);
    assert_eq!(disk.shared.counts.reclaimed.load(Ordering::Relaxed), 2);
    assert!(f.value(&disk, "blue").await.is_some() && f.value(&disk, "lasting").await.is_some());
}

// === room ===

#[tokio::test]
async fn entries_are_given_up_range_by_range_and_none_comes_back() {
    let f = Fixture::new();
    let disk = f.open().await;
    let names: Vec<String> = (0..2000).map(|number| format!("k{number}")).collect();
    let store = disk.shared.store().unwrap();
    for version in ["old", "new"] {
        let sets: Vec<Change> = names.iter().map(|name| Change::Set(entry(name, version))).collect();
        disk.apply(&f.cx(), &sets).await.unwrap();
        store.compact();
    }
    store.trim(7).unwrap();
    drop(store);
    f.set(&disk, entry("after", "v")).await;
    close(disk).await;
    let disk = f.open().await;
    for name in &names {
        assert_eq!(f.value(&disk, name).await, None, "all were in one file");
    }
    assert_eq!(f.value(&disk, "after").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn block_cache_and_memtables_keep_their_budget() {
    let f = Fixture::new();
    let disk = f.open().await;
    let mut most = 0;
    for round in 0..40 {
        let sets: Vec<Change> = (0..250)
            .map(|number| Change::Set(entry(&format!("k{round}-{number}"), &"x".repeat(1000 + number * 40))))
            .collect();
        disk.apply(&f.cx(), &sets).await.unwrap();
        let keys: Vec<Key> = (0..250).map(|number| key(&format!("k{}-{number}", round / 2))).collect();
        disk.get_many(&f.cx(), &keys).await.unwrap();
        most = most.max(disk.shared.store().unwrap().memory_bytes());
    }
    let budget = f.options().memory_bytes;
    assert!(most > budget / 4, "{most}: nothing was held that could have been too much");
    assert!(most <= budget + budget / 10, "{most} of {budget}");
}
