//! What L3 costs over RocksDB and over the device alone. `cargo bench -p cache-node --bench disk`.
//!
//! Variants run interleaved; medians and quartiles over the rounds are printed. Values have 1 KiB that nothing can
//! compress; keys are uniformly distributed. Scratch files lie in the folder of the program, because a temporary folder
//! may be in memory.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

use std::{
    env,
    fs::{self, File},
    hint::black_box,
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use cache_node::{
    clock::Clock,
    context::{OperationContext, Origin},
    entry::{Entry, EntryMeta, Key},
    layer::{
        Change, Component, Layer, LayerResult,
        disk::{Disk, DiskOptions},
    },
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Options, WriteBatch};
use rustix::fs::{Advice, Mode, OFlags, fadvise, open};
use tempfile::TempDir;
use tikv_jemallocator::Jemalloc;
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const ROUNDS: usize = 9;
const VALUE_BYTES: usize = 1024;
/// Keys that fit the block cache, and keys that do not.
const WARM_KEYS: usize = 10_000;
const COLD_KEYS: usize = 100_000;
const WARM_READS: usize = 100_000;
const COLD_READS: usize = 400;
const WRITES: usize = 64 * 1000;
const BATCH: usize = 64;
/// A direct read is of one block.
const BLOCK_BYTES: usize = 4096;

/// Two databases with the same content, one of them behind the layer.
struct Pair {
    folder: TempDir,
    layer: Disk,
    raw: DB,
    clock: Clock,
}

fn main() {
    println!("{} cores, load {}", thread::available_parallelism().unwrap(), read("/proc/loadavg").trim());
    println!("{ROUNDS} rounds: median [quartiles]\n");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    println!("| goal | what | measured | gate | target |\n|---|---|---|---|---|");
    runtime.block_on(warm());
    cold(&runtime);
    runtime.block_on(writes());
    println!("\nload at the end {}", read("/proc/loadavg").trim());
}

/// Hits in the block cache: the layer checks the envelope and copies the value, as RocksDB's own read does.
async fn warm() {
    let pair = Pair::open(64 << 20, WARM_KEYS).await;
    let mut random = StdRng::seed_from_u64(1);
    let (mut layer, mut raw, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    // The first round fills the caches.
    for round in 0..=ROUNDS {
        let keys: Vec<Key> = (0..WARM_READS).map(|_| key(random.random_range(0..WARM_KEYS))).collect();
        let cx = pair.cx();
        let started = Instant::now();
        for key in &keys {
            assert!(matches!(black_box(pair.layer.get(&cx, key).await), Ok(LayerResult::Hit(_))));
        }
        let of_layer = started.elapsed().as_nanos() as f64 / WARM_READS as f64;
        let started = Instant::now();
        for key in &keys {
            assert!(black_box(pair.raw.get(key.as_bytes())).unwrap().is_some());
        }
        let of_raw = started.elapsed().as_nanos() as f64 / WARM_READS as f64;
        if round > 0 {
            layer.push(of_layer);
            raw.push(of_raw);
            ratio.push(of_layer / of_raw);
        }
    }
    let (layer, raw) = (quartiles(layer, 0), quartiles(raw, 0));
    println!(
        "| G15 | hit in the block cache, of rocksdb get (ns: {layer} of {raw}) | {} | <= 1.25 | <= 1.10 |",
        quartiles(ratio, 2)
    );
    pair.close().await;
}

/// Hits that the device must answer, against one direct read of it.
fn cold(runtime: &Runtime) {
    let pair = runtime.block_on(Pair::open(16 << 20, COLD_KEYS));
    let beside = pair.folder.path().join("direct");
    let mut content = vec![0; COLD_KEYS * VALUE_BYTES];
    StdRng::seed_from_u64(2).fill_bytes(&mut content);
    fs::write(&beside, &content).unwrap();
    File::open(&beside).unwrap().sync_all().unwrap();
    let direct = open(&beside, OFlags::RDONLY | OFlags::DIRECT, Mode::empty()).unwrap();
    let mut buffer = vec![0; 2 * BLOCK_BYTES];
    // Direct reads want an aligned buffer.
    let aligned = buffer.as_ptr().align_offset(BLOCK_BYTES);
    let mut random = StdRng::seed_from_u64(3);
    let (mut layer, mut raw, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        forget_cached(&pair.folder.path().join("layer/db"));
        let (mut of_layer, mut of_raw) = (Vec::new(), Vec::new());
        for _ in 0..COLD_READS {
            let key = key(random.random_range(0..COLD_KEYS));
            let cx = pair.cx();
            let started = Instant::now();
            let found = runtime.block_on(pair.layer.get(&cx, &key));
            of_layer.push(started.elapsed().as_nanos() as f64 / 1e3);
            assert!(matches!(found, Ok(LayerResult::Hit(_))));
            let block = random.random_range(0..content.len() / BLOCK_BYTES) * BLOCK_BYTES;
            let started = Instant::now();
            rustix::io::pread(&direct, &mut buffer[aligned..aligned + BLOCK_BYTES], block as u64).unwrap();
            of_raw.push(started.elapsed().as_nanos() as f64 / 1e3);
        }
        let (of_layer, of_raw) = (median(of_layer), median(of_raw));
        layer.push(of_layer);
        raw.push(of_raw);
        ratio.push(of_layer / of_raw);
    }
    let (layer, raw) = (quartiles(layer, 0), quartiles(raw, 0));
    println!(
        "| G16 | hit on the device, p50, of a direct read (us: {layer} of {raw}) | {} | <= 2.00 | <= 1.50 |",
        quartiles(ratio, 2)
    );
    runtime.block_on(pair.close());
}

/// Processor time of all threads for each value, compactions included, both in batches of 64.
async fn writes() {
    let pair = Pair::open(64 << 20, 0).await;
    let mut value = vec![0; VALUE_BYTES];
    let mut random = StdRng::seed_from_u64(4);
    let (mut layer, mut raw, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let entries: Vec<Entry> = (0..WRITES)
            .map(|_| {
                random.fill_bytes(&mut value);
                Entry::new(key(random.random_range(0..COLD_KEYS)).as_bytes(), &value, EntryMeta::default())
            })
            .collect();
        let changes: Vec<Change> = entries.iter().cloned().map(Change::Set).collect();
        let before = processor_time();
        for batch in changes.chunks(BATCH) {
            pair.layer.apply(&pair.cx(), batch).await.unwrap();
        }
        settle();
        let of_layer = (processor_time() - before).as_nanos() as f64 / 1e3 / WRITES as f64;
        let before = processor_time();
        for batch in entries.chunks(BATCH) {
            let mut written = WriteBatch::default();
            batch.iter().for_each(|entry| written.put(entry.key(), entry.value()));
            pair.raw.write(written).unwrap();
        }
        settle();
        let of_raw = (processor_time() - before).as_nanos() as f64 / 1e3 / WRITES as f64;
        layer.push(of_layer);
        raw.push(of_raw);
        ratio.push(of_layer / of_raw);
    }
    let (layer, raw) = (quartiles(layer, 1), quartiles(raw, 1));
    println!(
        "| G17 | processor time of a value, of a raw batch's (us: {layer} of {raw}) | {} | <= 1.50 | <= 1.20 |",
        quartiles(ratio, 2)
    );
    pair.close().await;
}

// === impl Pair ===

impl Pair {
    async fn open(memory_bytes: usize, keys: usize) -> Self {
        let program = env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let clock = Clock::system();
        let options =
            DiskOptions { memory_bytes: memory_bytes as u64, ..DiskOptions::at(&folder.path().join("layer")) };
        let layer = Disk::open(options, clock.clone()).await.unwrap();
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_hyper_clock_cache(memory_bytes, 0));
        table.set_bloom_filter(10.0, false);
        table.set_cache_index_and_filter_blocks(true);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(memory_bytes / 8);
        let raw = DB::open(&options, folder.path().join("raw")).unwrap();
        let mut pair = Self { folder, layer, raw, clock };
        pair.load(keys).await;
        pair
    }

    /// The same values in both, in tables: a value in a memtable would be found too quickly.
    async fn load(&mut self, keys: usize) {
        let mut value = vec![0; VALUE_BYTES];
        let mut random = StdRng::seed_from_u64(5);
        for number in 0..keys {
            random.fill_bytes(&mut value);
            let entry = Entry::new(key(number).as_bytes(), &value, EntryMeta::default());
            self.raw.put(entry.key(), entry.value()).unwrap();
            self.layer.apply(&self.cx(), &[Change::Set(entry)]).await.unwrap();
        }
        self.raw.flush().unwrap();
        // Closing flushes.
        let options = DiskOptions {
            memory_bytes: if keys == COLD_KEYS { 16 << 20 } else { 64 << 20 },
            ..DiskOptions::at(&self.folder.path().join("layer"))
        };
        self.layer.shutdown(self.clock.monotonic() + Duration::from_secs(60)).await;
        self.layer = Disk::open(options, self.clock.clone()).await.unwrap();
    }

    fn cx(&self) -> OperationContext {
        let deadline = self.clock.monotonic() + Duration::from_secs(60);
        OperationContext { id: 0, origin: Origin::Client, now: self.clock.now(), deadline }
    }

    async fn close(self) {
        self.layer.shutdown(self.clock.monotonic() + Duration::from_secs(60)).await;
    }
}

fn key(number: usize) -> Key {
    Key::new(format!("key:{number:012}").into_bytes()).unwrap()
}

/// Gives what flushes and compactions are still to do a moment, so that it counts for those who caused it.
fn settle() {
    thread::sleep(Duration::from_millis(1500));
}

/// User and system time of this process so far, in ticks of 10 ms.
fn processor_time() -> Duration {
    let text = read("/proc/self/stat");
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Drops what the kernel has cached of the files.
fn forget_cached(folder: &Path) {
    let drop_one = |path: &Path| -> io::Result<()> {
        let file = File::open(path)?;
        file.sync_all()?;
        Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
    };
    for item in fs::read_dir(folder).unwrap() {
        // Compaction may have removed it meanwhile.
        let _ = drop_one(&item.unwrap().path());
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn quartiles(mut numbers: Vec<f64>, digits: usize) -> String {
    numbers.sort_by(f64::total_cmp);
    let at = |part: usize| numbers[(numbers.len() - 1) * part / 4];
    format!("{:.digits$} [{:.digits$} {:.digits$}]", at(2), at(1), at(3))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap()
}
