use std::{fs, path::Path};

use rocksdb::{CompactionDecision, compaction_filter::CompactionFilter};
use tempfile::{TempDir, tempdir};

use super::{
    expiry::Filter,
    files::{Files, Mark},
    *,
};
use crate::{
    entry::envelope::Codec,
    testing::{START, cx, entry, entry_until, key, text},
};

const MAX_TTL: Duration = Duration::from_secs(3600);

struct Fixture {
    folder: TempDir,
    clock: Clock,
}

impl Fixture {
    fn new() -> Self {
        Self { folder: tempdir().unwrap(), clock: Clock::manual(START) }
    }

    fn options(&self) -> DiskOptions {
        DiskOptions {
            path: self.folder.path().join("data"),
            memory_bytes: 16 << 20,
            max_ttl: MAX_TTL,
            cache_uid: "uid".to_owned(),
            node: "node-0".to_owned(),
        }
    }

    async fn open(&self) -> Disk {
        Disk::open(self.options(), self.clock.clone()).await.unwrap()
    }

    fn cx(&self) -> OperationContext {
        cx(&self.clock)
    }

    async fn set(&self, disk: &Disk, entry: Entry) {
        disk.apply(&self.cx(), &[Change::Set(entry)]).await.unwrap();
    }

    async fn value(&self, disk: &Disk, name: &str) -> Option<String> {
        match disk.get(&self.cx(), &key(name)).await.unwrap() {
            LayerResult::Hit(entry) => Some(text(&entry)),
            _ => None,
        }
    }

    /// Stores one value, closes the database, and opens it again after `meanwhile`.
    async fn reopened(&self, options: DiskOptions, meanwhile: impl FnOnce(&Path)) -> Disk {
        let disk = self.open().await;
        self.set(&disk, entry("k", "v")).await;
        close(disk).await;
        meanwhile(&self.options().path);
        Disk::open(options, self.clock.clone()).await.unwrap()
    }
}

#[allow(clippy::disallowed_methods, reason = "closing takes real time, whatever the test's clock says")]
async fn close(disk: Disk) {
    disk.shutdown(Instant::now() + Duration::from_secs(30)).await;
}

fn cold_starts(disk: &Disk) -> u64 {
    disk.shared.counts.cold_starts.load(Ordering::Relaxed)
}

#[tokio::test]
async fn value_survives_a_restart_with_its_expiry() {
    let f = Fixture::new();
    let disk = f.open().await;
    let expires_at = START.after(Duration::from_secs(60));
    f.set(&disk, entry_until("k", "v", expires_at)).await;
    close(disk).await;
    f.clock.advance(Duration::from_secs(59));
    let disk = f.open().await;
    let Ok(LayerResult::Hit(entry)) = disk.get(&f.cx(), &key("k")).await else { panic!("gone") };
    assert_eq!((text(&entry).as_str(), entry.expires_at()), ("v", Some(expires_at)));
    f.clock.advance(Duration::from_secs(1));
    assert!(matches!(disk.get(&f.cx(), &key("k")).await, Ok(LayerResult::StopWithoutValue)));
    assert_eq!(cold_starts(&disk), 0);
}

#[tokio::test]
async fn large_values_and_many_keys_are_read_back_in_order() {
    let f = Fixture::new();
    let disk = f.open().await;
    let large = "x".repeat(1 << 20);
    let sets = [entry("small", "1"), entry("large", &large)].map(Change::Set);
    disk.apply(&f.cx(), &sets).await.unwrap();
    close(disk).await;
    let disk = f.open().await;
    let keys = ["none", "large", "small"].map(key);
    // Twice: from the disk, then from the block cache.
    for _ in 0..2 {
        let found = disk.get_many(&f.cx(), &keys).await.unwrap();
        let values =
            found.into_iter().map(|found| if let LayerResult::Hit(hit) = found { Some(text(&hit)) } else { None });
        assert_eq!(values.collect::<Vec<_>>(), [None, Some(large.clone()), Some("1".to_owned())]);
    }
    assert_eq!(f.value(&disk, "large").await, Some(large));
}

#[tokio::test]
async fn entry_is_kept_no_longer_than_the_limit_of_the_layer() {
    let f = Fixture::new();
    let disk = f.open().await;
    f.set(&disk, entry("k", "v")).await;
    f.clock.advance(MAX_TTL - Duration::from_millis(1));
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("v"));
    f.clock.advance(Duration::from_millis(1));
    assert_eq!(f.value(&disk, "k").await, None);
}

#[tokio::test]
async fn short_lived_overwrite_is_not_written_but_removes_the_older_copy() {
    let f = Fixture::new();
    let disk = f.open().await;
    f.set(&disk, entry("k", "old")).await;
    f.set(&disk, entry_until("k", "brief", START.after(LIFE_MIN - Duration::from_millis(1)))).await;
    assert!(matches!(disk.get(&f.cx(), &key("k")).await, Ok(LayerResult::Miss)));
    f.set(&disk, entry_until("k", "longer", START.after(LIFE_MIN))).await;
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("longer"));
}

#[tokio::test]
async fn braked_layer_removes_the_older_copy_in_place_of_a_write() {
    let f = Fixture::new();
    let disk = f.open().await;
    f.set(&disk, entry("k", "old")).await;
    disk.shared.brake.store(true, Ordering::Relaxed);
    f.set(&disk, entry("k", "new")).await;
    assert_eq!(f.value(&disk, "k").await, None);
}

#[tokio::test]
async fn clear_lasts_over_a_restart_and_spares_what_comes_after() {
    let f = Fixture::new();
    let disk = f.open().await;
    let longest = "k".repeat(crate::entry::KEY_BYTES_MAX);
    let highest = Entry::new(&[0xff; 100], b"v", crate::entry::EntryMeta::default());
    let sets = [entry("a", "v"), entry(&longest, "v"), highest.clone()].map(Change::Set);
    disk.apply(&f.cx(), &sets).await.unwrap();
    disk.clear(&f.cx()).await.unwrap();
    f.set(&disk, entry("after", "v")).await;
    close(disk).await;
    let disk = f.open().await;
    assert_eq!((f.value(&disk, "a").await, f.value(&disk, &longest).await), (None, None));
    let highest = Key::new(highest.key().to_vec()).unwrap();
    assert!(matches!(disk.get(&f.cx(), &highest).await, Ok(LayerResult::Miss)));
    assert_eq!(f.value(&disk, "after").await.as_deref(), Some("v"));
}

// === what may be trusted after a restart ===

#[tokio::test]
async fn closed_database_is_trusted_after_the_machine_went_down() {
    let f = Fixture::new();
    let disk = f.reopened(f.options(), |path| rewrite_mark(path, |mark| mark.boot = [b'x'; 36])).await;
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn database_that_was_open_when_the_machine_went_down_starts_cold() {
    let f = Fixture::new();
    let another_boot = |mark: &mut Mark| (mark.boot, mark.closed) = ([b'x'; 36], false);
    let disk = f.reopened(f.options(), |path| rewrite_mark(path, another_boot)).await;
    assert_eq!((f.value(&disk, "k").await, cold_starts(&disk)), (None, 1));
}

#[tokio::test]
async fn database_that_was_open_when_the_process_was_killed_is_trusted() {
    let f = Fixture::new();
    let disk = f.reopened(f.options(), |path| rewrite_mark(path, |mark| mark.closed = false)).await;
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn database_that_ends_before_its_last_write_starts_cold() {
    let f = Fixture::new();
    let disk = f.reopened(f.options(), |path| rewrite_mark(path, |mark| mark.sequence += 1)).await;
    assert_eq!((f.value(&disk, "k").await, cold_starts(&disk)), (None, 1));
}

#[tokio::test]
async fn database_without_a_mark_starts_cold() {
    let f = Fixture::new();
    let disk = f.reopened(f.options(), |path| fs::remove_file(path.join("mark")).unwrap()).await;
    assert_eq!((f.value(&disk, "k").await, cold_starts(&disk)), (None, 1));
}

#[tokio::test]
async fn foreign_database_starts_cold_and_health_says_so() {
    for (cache_uid, node) in [("another", "node-0"), ("uid", "another")] {
        let f = Fixture::new();
        let options = DiskOptions { cache_uid: cache_uid.to_owned(), node: node.to_owned(), ..f.options() };
        let disk = f.reopened(options, |_| ()).await;
        assert_eq!((f.value(&disk, "k").await, cold_starts(&disk)), (None, 1));
        let health = disk.health();
        assert_eq!(health.reason, "StartedCold");
        assert!(health.message.contains("belongs to cache uid node node-0"), "{}", health.message);
        assert!(f.folder.path().join("data/aside").exists(), "the foreign database is put aside");
    }
}

#[tokio::test]
async fn damaged_database_starts_cold() {
    let f = Fixture::new();
    let disk = f.reopened(f.options(), |path| fs::write(path.join("db/CURRENT"), "nonsense").unwrap()).await;
    assert_eq!((f.value(&disk, "k").await, cold_starts(&disk)), (None, 1));
    f.set(&disk, entry("k", "new")).await;
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn folder_in_use_is_an_error_and_stays_untouched() {
    let f = Fixture::new();
    let disk = f.open().await;
    f.set(&disk, entry("k", "v")).await;
    let error = Disk::open(f.options(), f.clock.clone()).await.err().expect("two at once");
    assert!(error.message.contains("another process"), "{error}");
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("v"));
}

fn rewrite_mark(path: &Path, change: impl FnOnce(&mut Mark)) {
    let files = Files::open(path).unwrap();
    let mut mark = files.read_mark().unwrap();
    change(&mut mark);
    files.write_mark(mark, true).unwrap();
}

// === compaction ===

#[test]
fn compaction_drops_what_is_expired_or_unreadable_and_keeps_the_rest() {
    let keeps = |entry: &Entry, after: Duration| {
        let mut bytes = Vec::new();
        Codec::default().encode(entry, START, &mut bytes);
        let mut filter = Filter { now: START.after(after), max_ttl: MAX_TTL };
        matches!(filter.filter(1, entry.key(), &bytes), CompactionDecision::Keep)
    };
    let minute = entry_until("k", "v", START.after(Duration::from_secs(60)));
    assert!(keeps(&minute, Duration::from_secs(59)) && !keeps(&minute, Duration::from_secs(60)));
    let lasting = entry("k", "v");
    assert!(keeps(&lasting, MAX_TTL - Duration::from_millis(1)) && !keeps(&lasting, MAX_TTL));
    let mut filter = Filter { now: START, max_ttl: MAX_TTL };
    assert!(matches!(filter.filter(1, b"k", b"not an envelope"), CompactionDecision::Remove));
}
