//! What L3 costs over RocksDB and over the device alone. `cargo bench -p cache-node --bench disk`.
//!
//! A hit is measured twice: of the layer alone, and through the whole pipeline, which looks into memory and the write
//! queue first, makes one flight of the readers of a key, counts, and puts what it finds into memory. As in the node,
//! it runs on one event loop, and the queue elsewhere.
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
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cache_node::{
    clock::Clock,
    context::{OperationContext, Origin, Trust},
    coordinator::{Coordinator, Parts, Peek, Wants},
    entry::{Entry, EntryMeta, Key},
    layer::{
        Change, Component, Layer, LayerResult,
        disk::{Disk, DiskOptions},
        memory::{Memory, MemoryOptions, Policy},
        metered::Metered,
    },
    metrics::Metrics,
    write_queue::{Overflow, QueueOptions},
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

/// Reads through the pipeline after which memory is emptied of them, so that each asks the disk.
const READS_BETWEEN: usize = 64;

/// Two databases with the same content, one of them behind the layer and, above that, the pipeline.
struct Pair {
    folder: TempDir,
    layer: Arc<Disk>,
    coordinator: Arc<Coordinator>,
    raw: DB,
    clock: Clock,
}

/// What was measured of several things in each round; the last of them is what the others are compared with.
struct Table<const N: usize>([Vec<f64>; N]);

fn main() {
    println!("{} cores, load {}", thread::available_parallelism().unwrap(), read("/proc/loadavg").trim());
    println!("{ROUNDS} rounds: median [quartiles]\n");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("| goal | what | measured | gate | target |\n|---|---|---|---|---|");
    warm(&runtime, &event_loop);
    cold(&runtime, &event_loop);
    runtime.block_on(writes());
    println!("\nload at the end {}", read("/proc/loadavg").trim());
}

/// Hits in the block cache: the layer checks the envelope and copies the value, as RocksDB's own read does.
fn warm(runtime: &Runtime, event_loop: &Runtime) {
    let pair = runtime.block_on(Pair::open(64 << 20, WARM_KEYS));
    let mut random = StdRng::seed_from_u64(1);
    let mut table = Table::new();
    // The first round fills the caches.
    for round in 0..=ROUNDS {
        let keys: Vec<Key> = (0..WARM_READS).map(|_| key(random.random_range(0..WARM_KEYS))).collect();
        let cx = pair.cx();
        let of_pipeline = event_loop.block_on(pair.read_through(&cx, &keys)).as_nanos() as f64 / WARM_READS as f64;
        let started = Instant::now();
        event_loop.block_on(async {
            for key in &keys {
                assert!(matches!(black_box(pair.layer.get(&cx, key).await), Ok(LayerResult::Hit(_))));
            }
        });
        let of_layer = started.elapsed().as_nanos() as f64 / WARM_READS as f64;
        let started = Instant::now();
        for key in &keys {
            assert!(black_box(pair.raw.get(key.as_bytes())).unwrap().is_some());
        }
        let of_raw = started.elapsed().as_nanos() as f64 / WARM_READS as f64;
        if round > 0 {
            table.add([of_pipeline, of_layer, of_raw]);
        }
    }
    let [pipeline, layer, raw] = table.absolute(0);
    let [through, alone] = [table.ratio(0), table.ratio(1)];
    println!(
        "| G15 | hit in the block cache, of rocksdb get (ns: {pipeline} of {raw}) | {through} | <= 1.25 | <= 1.10 |"
    );
    println!("| | the layer alone (ns: {layer}) | {alone} | | |");
    runtime.block_on(pair.close());
}

/// Hits that the device must answer, against one direct read of it.
fn cold(runtime: &Runtime, event_loop: &Runtime) {
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
    let mut table = Table::new();
    for _ in 0..ROUNDS {
        forget_cached(&pair.folder.path().join("layer/db"));
        let (mut of_pipeline, mut of_layer, mut of_raw) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..COLD_READS {
            let [one, other] = [(); 2].map(|()| key(random.random_range(0..COLD_KEYS)));
            let cx = pair.cx();
            let took = event_loop.block_on(pair.read_through(&cx, std::slice::from_ref(&one)));
            of_pipeline.push(took.as_nanos() as f64 / 1e3);
            let started = Instant::now();
            let found = event_loop.block_on(pair.layer.get(&cx, &other));
            of_layer.push(started.elapsed().as_nanos() as f64 / 1e3);
            assert!(matches!(found, Ok(LayerResult::Hit(_))));
            let block = random.random_range(0..content.len() / BLOCK_BYTES) * BLOCK_BYTES;
            let started = Instant::now();
            let count = rustix::io::pread(&direct, &mut buffer[aligned..aligned + BLOCK_BYTES], block as u64).unwrap();
            of_raw.push(started.elapsed().as_nanos() as f64 / 1e3);
            assert_eq!(count, BLOCK_BYTES);
        }
        table.add([median(of_pipeline), median(of_layer), median(of_raw)]);
    }
    let [pipeline, layer, raw] = table.absolute(0);
    let [through, alone] = [table.ratio(0), table.ratio(1)];
    println!(
        "| G16 | hit on the device, p50, of a direct read (us: {pipeline} of {raw}) | {through} | <= 2.00 | <= 1.50 |"
    );
    println!("| | the layer alone (us: {layer}) | {alone} | | |");
    // What is left of flights is on this event loop, which runs only when asked.
    event_loop.block_on(async {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    });
    runtime.block_on(pair.close());
}

/// Processor time of all threads for each value, compactions included, both in batches of 64.
async fn writes() {
    let pair = Pair::open(64 << 20, 0).await;
    let mut value = vec![0; VALUE_BYTES];
    let mut random = StdRng::seed_from_u64(4);
    let mut table = Table::new();
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
        table.add([of_layer, of_raw]);
    }
    let [layer, raw] = table.absolute(1);
    let ratio = table.ratio(0);
    println!(
        "| G17 | processor time of a value, of a raw batch's (us: {layer} of {raw}) | {ratio} | <= 1.50 | <= 1.20 |"
    );
    pair.close().await;
}

// === impl Pair ===

impl Pair {
    async fn open(memory_bytes: usize, keys: usize) -> Self {
        let program = env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let clock = Clock::system();
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
        let options =
            || DiskOptions { memory_bytes: memory_bytes as u64, ..DiskOptions::at(&folder.path().join("layer")) };
        let layer = Disk::open(options(), clock.clone()).await.unwrap();
        load(&layer, &raw, &clock, keys).await;
        let layer = Arc::new(Disk::open(options(), clock.clone()).await.unwrap());
        let memory =
            MemoryOptions { capacity_bytes: 64 << 20, policy: Policy::S3Fifo, max_ttl: Duration::from_secs(86_400) };
        let queue = QueueOptions { capacity_bytes: 64 << 20, items_max: 100_000, overflow: Overflow::Block };
        let metered = Metered::new(Arc::clone(&layer) as Arc<dyn Layer>, &Metrics::new(""), clock.clone());
        let memory = Memory::open(memory, clock.clone());
        let parts = Parts::new(memory, queue, vec![Arc::new(metered)], &clock);
        let coordinator = Coordinator::open(parts, clock.clone()).await;
        Self { folder, layer, coordinator, raw, clock }
    }

    /// How long it takes to read the keys through the pipeline, each from the disk.
    async fn read_through(&self, cx: &OperationContext, keys: &[Key]) -> Duration {
        let mut took = Duration::ZERO;
        for keys in keys.chunks(READS_BETWEEN) {
            keys.iter().for_each(|key| self.coordinator.memory().remove(key.as_bytes()));
            let started = Instant::now();
            for key in keys {
                // As a command does: what is known without I/O is asked first.
                let known = self.coordinator.get_now(cx, key.as_bytes());
                if matches!(known, Peek::Cold) {
                    assert!(black_box(self.coordinator.get(cx, key, Wants::Value).await).entry.is_some());
                }
            }
            took += started.elapsed();
        }
        took
    }

    fn cx(&self) -> OperationContext {
        let deadline = self.clock.monotonic() + Duration::from_secs(60);
        OperationContext { id: 0, origin: Origin::Client, now: self.clock.now(), deadline, trust: Trust::Full }
    }

    async fn close(self) {
        self.coordinator.shutdown(self.clock.monotonic() + Duration::from_secs(60)).await;
    }
}

/// Stores the same values in both, in tables, because a value in a memtable would be found too quickly, and closes the
/// layer.
async fn load(layer: &Disk, raw: &DB, clock: &Clock, keys: usize) {
    let mut value = vec![0; VALUE_BYTES];
    let mut random = StdRng::seed_from_u64(5);
    let deadline = clock.monotonic() + Duration::from_secs(60);
    let cx = OperationContext { id: 0, origin: Origin::Client, now: clock.now(), deadline, trust: Trust::Full };
    for number in 0..keys {
        random.fill_bytes(&mut value);
        let entry = Entry::new(key(number).as_bytes(), &value, EntryMeta::default());
        raw.put(entry.key(), entry.value()).unwrap();
        layer.apply(&cx, &[Change::Set(entry)]).await.unwrap();
    }
    raw.flush().unwrap();
    // Closing flushes.
    layer.shutdown(deadline).await;
}

// === impl Table ===

impl<const N: usize> Table<N> {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Vec::new()))
    }

    fn add(&mut self, measured: [f64; N]) {
        self.0.iter_mut().zip(measured).for_each(|(column, number)| column.push(number));
    }

    fn absolute(&self, digits: usize) -> [String; N] {
        std::array::from_fn(|column| quartiles(self.0[column].clone(), digits))
    }

    fn ratio(&self, column: usize) -> String {
        quartiles(self.0[column].iter().zip(&self.0[N - 1]).map(|(number, base)| number / base).collect(), 2)
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
