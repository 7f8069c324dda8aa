//! Removal by tag.

use tempfile::tempdir;

use super::*;
use crate::{
    layer::{
        TagRemoval,
        disk::{Disk, DiskOptions},
        metered::Metered,
    },
    metrics::Metrics,
};

pub(super) fn tagged(f: &Fixture, name: &str, value: &str, tags: &TagSet) -> Entry {
    let meta = EntryMeta { tags: tags.tags(), position: f.coordinator.position(&f.cx()), ..EntryMeta::default() };
    Entry::new(name.as_bytes(), value.as_bytes(), meta)
}

pub(super) fn tag_set(tags: &[&str]) -> TagSet {
    let mut set = TagSet::default();
    tags.iter().for_each(|tag| set.add(tag.as_bytes()).unwrap());
    set
}

#[tokio::test]
async fn removal_by_tag_takes_effect_in_every_layer_whether_or_not_anybody_knew_the_entry() {
    let f = Fixture::over(Scripted::gated(1000, 0), QUEUE).await;
    let red = tag_set(&["red", "round"]);
    // Never seen by this node: it came to the layer by another way, and is as fresh as now.
    f.layer.put(tagged(&f, "below", "1", &red));
    f.coordinator.try_set(&f.cx(), tagged(&f, "above", "2", &red)).unwrap();
    f.coordinator.try_set(&f.cx(), tagged(&f, "other", "3", &tag_set(&["round"]))).unwrap();
    f.layer.write_gate.add_permits(1000);
    f.flushed().await;
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["red"]), Matching::Any).await.unwrap();
    assert_eq!((f.get("below").await, f.get("above").await), (None, None));
    assert_eq!(f.get("other").await.as_deref(), Some("3"));
    f.evict("above");
    assert_eq!(f.get("above").await, None, "the copy below, too");
    f.coordinator.try_set(&f.cx(), tagged(&f, "above", "4", &red)).unwrap();
    assert_eq!(f.get("above").await.as_deref(), Some("4"), "written after the removal");
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["red", "square"]), Matching::All).await.unwrap();
    assert_eq!(f.get("above").await.as_deref(), Some("4"), "it is not square");
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["round", "red"]), Matching::All).await.unwrap();
    assert_eq!(f.get("above").await, None);
    assert_eq!(f.get("other").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn removal_by_tag_concerns_only_who_carries_it() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.set("plain", "1").await;
    f.coordinator.try_set(&f.cx(), tagged(&f, "red", "2", &tag_set(&["red"]))).unwrap();
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["nobody's"]), Matching::Any).await.unwrap();
    assert_eq!((f.get("plain").await.as_deref(), f.get("red").await.as_deref()), (Some("1"), Some("2")));
}

#[tokio::test]
async fn removal_by_tag_is_acknowledged_only_once_the_layer_has_it_and_holds_after_a_restart() {
    let layer = Scripted::gated(1000, 1000);
    let f = Fixture::over(Arc::clone(&layer), QUEUE).await;
    let entry = tagged(&f, "k", "v", &tag_set(&["red"]));
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["red"]), Matching::Any).await.unwrap();
    assert_eq!(layer.tag_removals.lock().unwrap().len(), 1);
    let again = Fixture::over(Arc::clone(&layer), QUEUE).await;
    // A slow write of before the removal ends only now.
    again.layer.put(entry);
    assert_eq!(again.get("k").await, None);
}

#[tokio::test]
async fn removal_by_tag_takes_also_what_was_written_before_the_clock_was_set_back() {
    let folder = tempdir().unwrap();
    let open = async |clock: Clock| {
        let disk = Arc::new(Disk::open(DiskOptions::at(folder.path()), clock.clone()).await.unwrap());
        let measured = Arc::new(Metered::new(disk, &Metrics::new(""), clock.clone()));
        let parts = parts(&clock, Policy::S3Fifo, vec![measured]);
        Coordinator::open(parts, clock.clone()).await
    };
    let (clock, red) = (Clock::manual(START), tag_set(&["red"]));
    let before = open(clock.clone()).await;
    let meta = before.meta(&cx(&clock), None, None, red.tags());
    before.set(&cx(&clock), Entry::new(b"k", b"v", meta)).await.unwrap();
    before.shutdown(clock.monotonic() + Duration::from_secs(60)).await;
    let clock = Clock::manual(UnixMillis(START.0 - 3_600_000));
    let after = open(clock.clone()).await;
    let found = async || after.get(&cx(&clock), &key("k"), Wants::Value).await.entry.as_ref().map(text);
    assert_eq!(found().await.as_deref(), Some("v"));
    after.remove_tagged(&cx(&clock), red.clone(), Matching::Any).await.unwrap();
    assert_eq!(found().await, None);
    let meta = after.meta(&cx(&clock), None, None, red.tags());
    after.set(&cx(&clock), Entry::new(b"k", b"newer", meta)).await.unwrap();
    assert_eq!(found().await.as_deref(), Some("newer"), "written after the removal");
}

#[tokio::test]
async fn layer_that_missed_a_removal_is_told_of_it_by_the_next_process() {
    let clock = Clock::manual(START);
    let (redis, disk) = (Scripted::gated_as(LayerId::Redis, 1000, 1000), Scripted::gated(1000, 1000));
    let removal = |words: &[&str], matching, millis| TagRemoval {
        tags: tag_set(words),
        matching,
        position: Position::from_parts(millis, 0),
    };
    let (known, missed) = (removal(&["a"], Matching::Any, 5), removal(&["a", "b"], Matching::All, 7));
    disk.tag_removals.lock().unwrap().extend([known.clone(), missed.clone()]);
    redis.tag_removals.lock().unwrap().push(known.clone());
    let cold: Vec<Arc<dyn Layer>> = vec![Arc::clone(&redis) as Arc<dyn Layer>, Arc::clone(&disk) as Arc<dyn Layer>];
    let _coordinator = Coordinator::open(parts(&clock, Policy::S3Fifo, cold), clock.clone()).await;
    assert_eq!(*redis.tag_removals.lock().unwrap(), [known, missed]);
}

#[tokio::test]
async fn change_of_a_value_keeps_its_tags_and_does_not_save_it_from_their_removal() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.coordinator.try_set(&f.cx(), tagged(&f, "n", "1", &tag_set(&["red"]))).unwrap();
    f.coordinator.update(&f.cx(), &key("n"), increment).await.unwrap();
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["red"]), Matching::Any).await.unwrap();
    assert_eq!(f.get("n").await, None);
    assert_eq!(f.coordinator.update(&f.cx(), &key("n"), increment).await, Ok(1), "removed is absent");
}

#[tokio::test]
async fn rewrite_without_tags_drops_them() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.coordinator.try_set(&f.cx(), tagged(&f, "k", "1", &tag_set(&["red"]))).unwrap();
    f.set("k", "2").await;
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["red"]), Matching::Any).await.unwrap();
    assert_eq!(f.get("k").await.as_deref(), Some("2"));
}
