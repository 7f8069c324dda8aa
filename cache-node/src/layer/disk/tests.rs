mod dead;
mod torn;

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, getpriority_process};
use tempfile::{TempDir, tempdir};

use super::{
    admission::Refusal,
    files::{Files, Mark},
    *,
};
use crate::{
    entry::{
        Entry, EntryMeta,
        envelope::{Codec, Compression},
    },
    layer::ErrorKind,
    testing::{START, cx, entry, entry_until, key, text},
};

const MAX_TTL: Duration = Duration::from_secs(3600);
const MIN_TTL: Duration = Duration::from_secs(5);

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
            memory_bytes: 16 << 20,
            max_ttl: MAX_TTL,
            removals_kept: MAX_TTL,
            min_ttl: MIN_TTL,
            cache_uid: "uid".to_owned(),
            node: "node-0".to_owned(),
            ..DiskOptions::at(&self.folder.path().join("data"))
        }
    }

    async fn open(&self) -> Disk {
        self.open_with(|_| ()).await
    }

    async fn open_with(&self, change: impl FnOnce(&mut DiskOptions)) -> Disk {
        let mut options = self.options();
        change(&mut options);
        Disk::open(options, self.clock.clone()).await.unwrap()
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

fn not_written(disk: &Disk, refusal: Refusal) -> u64 {
    disk.shared.counts.not_written[refusal as usize].load(Ordering::Relaxed)
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
            found.into_iter().map(|found| if let Ok(LayerResult::Hit(hit)) = found { Some(text(&hit)) } else { None });
        assert_eq!(values.collect::<Vec<_>>(), [None, Some(large.clone()), Some("1".to_owned())]);
    }
    assert_eq!(f.value(&disk, "large").await, Some(large));
}

#[tokio::test]
async fn what_rocksdb_has_in_memory_is_read_without_a_thread_of_the_disk() {
    let f = Fixture::new();
    let disk = f.open().await;
    let large = "x".repeat(1 << 20);
    let sets = [entry("small", "1"), entry("large", &large), entry("cold", &large)].map(Change::Set);
    disk.apply(&f.cx(), &sets).await.unwrap();
    close(disk).await;
    let disk = f.open().await;
    let inline = || disk.shared.counts.inline.load(Ordering::Relaxed);
    for name in ["small", "large"] {
        assert!(f.value(&disk, name).await.is_some());
    }
    let before = inline();
    // Nobody is left to read from the volume.
    disk.reads.stop();
    assert!(disk.get(&f.cx(), &key("cold")).await.is_err());
    assert_eq!(f.value(&disk, "small").await.as_deref(), Some("1"));
    assert_eq!(f.value(&disk, "large").await.as_ref(), Some(&large));
    assert_eq!(inline() - before, 2);
    assert!(matches!(disk.get_now(&f.cx(), b"small", false), Some(LayerResult::Hit(_))));
    assert!(disk.get_now(&f.cx(), b"cold", true).is_none());
    assert!(disk.get_now(&f.cx(), b"absent", false).is_none(), "another layer may have it");
    assert!(matches!(disk.get_now(&f.cx(), b"absent", true), Some(LayerResult::Miss)));
    assert_eq!(inline() - before, 4);
    let many = disk.get_many(&f.cx(), &["small", "cold", "large"].map(key)).await.unwrap();
    assert!(matches!(many[..], [Ok(LayerResult::Hit(_)), Err(_), Ok(LayerResult::Hit(_))]), "{many:?}");
    assert_eq!(inline() - before, 6);
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
async fn copy_past_the_limit_of_the_disk_is_a_miss_because_another_layer_may_have_it_still() {
    let f = Fixture::new();
    let disk = f.open().await;
    f.set(&disk, entry("k", "v")).await;
    f.set(&disk, entry_until("ended", "v", START.after(MAX_TTL))).await;
    f.clock.advance(MAX_TTL);
    assert!(matches!(disk.get(&f.cx(), &key("k")).await, Ok(LayerResult::Miss)));
    let many = disk.get_many(&f.cx(), &["ended", "k"].map(key)).await.unwrap();
    assert!(matches!(many[..], [Ok(LayerResult::StopWithoutValue), Ok(LayerResult::Miss)]), "{many:?}");
}

#[tokio::test]
async fn damaged_copy_is_an_error_of_its_key_alone_and_gives_way_to_a_fill() {
    let f = Fixture::new();
    let disk = f.open().await;
    for name in ["a", "damaged", "b"] {
        f.set(&disk, entry(name, "v")).await;
    }
    disk.shared.store().unwrap().overwrite_entry(b"damaged", b"TC nonsense");
    let is_corrupt =
        |answer: &Result<LayerResult, LayerError>| answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Corrupt);
    assert!(is_corrupt(&disk.get(&f.cx(), &key("damaged")).await));
    let many = disk.get_many(&f.cx(), &["a", "damaged", "b"].map(key)).await.unwrap();
    assert!(matches!(many[..], [Ok(LayerResult::Hit(_)), Err(_), Ok(LayerResult::Hit(_))]), "{many:?}");
    assert!(is_corrupt(&many[1]));
    disk.apply(&f.cx(), &[Change::Fill(entry("damaged", "healed"))]).await.unwrap();
    assert_eq!(f.value(&disk, "damaged").await.as_deref(), Some("healed"));
}

#[tokio::test]
async fn short_lived_overwrite_is_not_written_but_removes_the_older_copy() {
    let f = Fixture::new();
    let disk = f.open().await;
    f.set(&disk, entry("k", "old")).await;
    // A second of tolerance for the time in the queue.
    let least = MIN_TTL - Duration::from_secs(1);
    f.set(&disk, entry_until("k", "brief", START.after(least - Duration::from_millis(1)))).await;
    assert!(matches!(disk.get(&f.cx(), &key("k")).await, Ok(LayerResult::Miss)));
    assert_eq!(not_written(&disk, Refusal::ShortLived), 1);
    f.set(&disk, entry_until("k", "longer", START.after(least))).await;
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("longer"));
}

#[tokio::test]
async fn expired_entry_is_returned_within_its_stale_life_and_stops_the_search_after_it() {
    let f = Fixture::new();
    let disk = f.open().await;
    let expires_at = Some(START.after(MIN_TTL));
    let stale_until = Some(START.after(2 * MIN_TTL));
    f.set(&disk, Entry::new(b"k", b"v", EntryMeta { expires_at, stale_until, ..EntryMeta::default() })).await;
    f.clock.advance(2 * MIN_TTL - Duration::from_millis(1));
    let Ok(LayerResult::Hit(stale)) = disk.get(&f.cx(), &key("k")).await else { panic!("gone") };
    assert!(!stale.is_live(f.clock.now()));
    assert!(disk.get_now(&f.cx(), b"k", true).is_none(), "whether it is served is decided by more than a look");
    f.clock.advance(Duration::from_millis(1));
    assert!(matches!(disk.get(&f.cx(), &key("k")).await, Ok(LayerResult::StopWithoutValue)));
    assert!(matches!(disk.get_now(&f.cx(), b"k", false), Some(LayerResult::StopWithoutValue)));
}

#[tokio::test]
async fn fill_is_written_only_where_there_is_no_live_copy() {
    let f = Fixture::new();
    let disk = f.open().await;
    let fill = |value| Change::Fill(entry("k", value));
    disk.apply(&f.cx(), &[fill("first"), fill("second")]).await.unwrap();
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("first"));
    f.set(&disk, entry_until("k", "set", START.after(MIN_TTL))).await;
    disk.apply(&f.cx(), &[fill("late")]).await.unwrap();
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("set"));
    f.clock.advance(MIN_TTL);
    disk.apply(&f.cx(), &[fill("after expiry")]).await.unwrap();
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("after expiry"));
    // One that is refused leaves alone what is there.
    let brief = Change::Fill(entry_until("k", "brief", f.clock.now().after(Duration::from_secs(1))));
    disk.apply(&f.cx(), &[brief]).await.unwrap();
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("after expiry"));
}

#[tokio::test]
async fn values_are_compressed_on_disk_and_read_back_whatever_the_setting_is_by_then() {
    let f = Fixture::new();
    let text = "compressible ".repeat(1000);
    for compression in [Compression::Zstd, Compression::Lz4, Compression::None] {
        let codec = Codec { compression, threshold_bytes: 100 };
        let disk = f.open_with(|options| options.codec = codec).await;
        let name = format!("{compression:?}");
        f.set(&disk, entry(&name, &text)).await;
        let written = disk.shared.counts.bytes_written.load(Ordering::Relaxed);
        assert_eq!(written < text.len() as u64 / 2, compression != Compression::None, "{name}: {written}");
        for name in ["Zstd", &name] {
            assert_eq!(f.value(&disk, name).await.as_ref(), Some(&text));
        }
        close(disk).await;
    }
}

#[tokio::test]
async fn with_second_hit_a_key_is_written_when_it_comes_back_and_a_refused_overwrite_removes() {
    let f = Fixture::new();
    let disk = f.open_with(|options| options.admit = Admit::SecondHit).await;
    f.set(&disk, entry("k", "1")).await;
    assert_eq!((f.value(&disk, "k").await, not_written(&disk, Refusal::FirstSeen)), (None, 1));
    f.set(&disk, entry("k", "2")).await;
    assert_eq!(f.value(&disk, "k").await.as_deref(), Some("2"));
    // Not asked for and not stored for longer than two generations last.
    f.clock.advance(Duration::from_secs(3 * 3600));
    let disk = {
        close(disk).await;
        let options = DiskOptions { max_ttl: 10 * MAX_TTL, admit: Admit::SecondHit, ..f.options() };
        Disk::open(options, f.clock.clone()).await.unwrap()
    };
    f.set(&disk, entry("k", "3")).await;
    assert_eq!(f.value(&disk, "k").await, None, "the older copy would be a lie");
}

#[tokio::test]
async fn over_the_daily_budget_sets_are_not_written_until_time_has_paid_for_them() {
    let f = Fixture::new();
    let value = "x".repeat(1 << 20);
    // One such value an hour, and one at once.
    let disk = f.open_with(|options| options.daily_write_bytes = Some(24 << 20)).await;
    for (name, found) in [("1", true), ("2", false), ("3", false)] {
        f.set(&disk, entry(name, &value)).await;
        assert_eq!(f.value(&disk, name).await.is_some(), found, "{name}");
    }
    assert_eq!(not_written(&disk, Refusal::OverBudget), 2);
    f.set(&disk, entry("1", "new")).await;
    assert_eq!(f.value(&disk, "1").await, None, "a refused overwrite removes the older copy");
    f.clock.advance(Duration::from_secs(60));
    f.set(&disk, entry("4", "small")).await;
    assert_eq!(f.value(&disk, "4").await.as_deref(), Some("small"));
}

#[tokio::test]
async fn braked_layer_removes_the_older_copy_in_place_of_a_write() {
    let f = Fixture::new();
    let disk = f.open().await;
    f.set(&disk, entry("k", "old")).await;
    // Or it would look at the real volume and release the brake.
    disk.shared.stopping.store(true, Ordering::Release);
    let upkeep = disk.upkeep.lock().unwrap().take().unwrap();
    upkeep.thread().unpark();
    upkeep.join().unwrap();
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
        // Whatever the volume of this machine looks like.
        let health = disk.shared.verdict(None);
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

#[tokio::test]
async fn threads_that_compact_make_way_for_all_others() {
    let f = Fixture::new();
    let disk = f.open().await;
    let nice_of = |thread: &Path| {
        let name = fs::read_to_string(thread.join("comm")).ok()?;
        let number = thread.file_name()?.to_str()?.parse().ok()?;
        Some((name.trim().to_owned(), getpriority_process(Pid::from_raw(number)).ok()?))
    };
    let threads = fs::read_dir("/proc/self/task").unwrap().filter_map(|thread| nice_of(&thread.unwrap().path()));
    let (compactors, others): (Vec<_>, Vec<_>) = threads.partition(|(name, _)| name.starts_with("rocksdb:low"));
    assert!(!compactors.is_empty() && compactors.iter().all(|(_, nice)| *nice == 10), "{compactors:?}");
    assert!(others.iter().all(|(_, nice)| *nice < 10), "{others:?}");
    drop(disk);
}

fn rewrite_mark(path: &Path, change: impl FnOnce(&mut Mark)) {
    let files = Files::open(path).unwrap();
    let mut mark = files.read_mark().unwrap();
    change(&mut mark);
    files.write_mark(mark, true).unwrap();
}
