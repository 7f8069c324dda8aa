//! What an L1 hit, an L1 write and an L1 entry cost.
//!
//! ```text
//! cargo bench -p cache-node --bench memory                # the goals, two minutes
//! cargo bench -p cache-node --bench memory -- soak 600    # whether the capacity holds, for so many seconds and policy
//! cargo bench -p cache-node --bench memory -- overwrite 2  # G10 by so many threads alone, for a profiler
//! ```
//!
//! Every round runs every variant with one thread and with two, one after the other, so that a change of the machine
//! meets all alike. Ratios and differences are taken within a round; the tables show medians, with the quartiles in
//! brackets. The loop that picks keys is measured too and taken off. Keys are drawn by Zipf 0.99.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

use std::{
    env, fs,
    hint::black_box,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ahash::RandomState;
use cache_node::{
    clock::{Clock, UnixMillis},
    context::{OperationContext, Origin, Trust},
    coordinator::{Coordinator, Parts, Peek},
    entry::{Entry, EntryMeta},
    layer::{
        Component,
        memory::{ENTRY_OVERHEAD_BYTES, Memory, MemoryOptions, Policy},
    },
    write_queue::{Overflow, QueueOptions},
};
use quick_cache::{UnitWeighter, sync::Cache};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tikv_jemallocator::Jemalloc;
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const ROUNDS: usize = 15;
const OPERATIONS: usize = 500_000;
const VALUE: [u8; 100] = [7; 100];
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// What memory may weigh under random writes, in percent of its capacity.
const SOAK_PERCENT_MAX: f64 = 105.0;
/// How often the node lets memory do its postponed work.
const SOAK_TICK: Duration = Duration::from_millis(250);

/// quick_cache as one would use it without any of this: a boxed key, a counted value, no expiry, no weights.
type Bare = Cache<Box<[u8]>, Arc<[u8]>, UnitWeighter, RandomState>;

/// One thing to be measured: what it does with the key of this number.
type Variant<'a> = (&'a str, &'a (dyn Fn(usize) + Sync));

/// Nanoseconds per operation and thread, by round: of one thread and of two.
type Times = [Vec<f64>; 2];

/// Places of the variants.
const BARE_HIT: usize = 0;
const MEMORY_HIT: usize = 1;
const PEEK: usize = 2;
const MEMORY_WRITE: usize = 5;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["soak", seconds] => {
            // Each in a process of its own, so that what the other one freed does not count.
            let held = ["S3Fifo", "TinyLfu"].map(|policy| child(&["soak", seconds, policy]));
            assert!(held == [true, true], "the capacity does not hold within {SOAK_PERCENT_MAX} %");
        }
        ["soak", seconds, policy] => soak(Duration::from_secs(seconds.parse().unwrap()), named(policy)),
        ["entries", policy] => entries(named(policy)),
        ["overwrite", threads] => overwrite(threads.parse().unwrap()),
        _ => goals(),
    }
}

/// Runs this program once more; answers whether it ended well.
fn child(arguments: &[&str]) -> bool {
    Command::new(env::current_exe().unwrap()).args(arguments).status().unwrap().success()
}

fn named(policy: &str) -> Policy {
    match policy {
        "S3Fifo" => Policy::S3Fifo,
        "TinyLfu" => Policy::TinyLfu,
        other => panic!("{other} is no policy; S3Fifo and TinyLfu are"),
    }
}

fn goals() {
    let cores = thread::available_parallelism().unwrap().get();
    println!("{cores} cores, load {}", read("/proc/loadavg").trim());
    assert!(cores > 1, "two threads are compared with one: that needs two cores");
    println!("{OPERATIONS} operations a round, {ROUNDS} rounds: median [quartiles]\n");
    for policy in ["S3Fifo", "TinyLfu"] {
        // In a process of its own, so that what the other one freed does not count.
        assert!(child(&["entries", policy]));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let hot = hits_and_writes(&runtime, 1_000);
    let wide = hits_and_writes(&runtime, 100_000);
    let of = |times: &[Times], variant: usize, threads: usize| times[variant][threads - 1].clone();
    let by = |above: Vec<f64>, below: Vec<f64>, how: fn(f64, f64) -> f64| {
        quartiles(above.into_iter().zip(below).map(|(above, below)| how(above, below)).collect())
    };
    let (less, ratio) = (|above, below| above - below, |above, below| above / below);
    println!("\n| goal | what | measured | gate | target |\n|---|---|---|---|---|");
    let overhead = by(of(&hot, PEEK, 1), of(&hot, MEMORY_HIT, 1), less);
    println!("| G8 | pipeline over a hit in memory, hot, ns | {overhead} | <= 20 | <= 12 |");
    for threads in [1, 2] {
        let hit = by(of(&wide, MEMORY_HIT, threads), of(&wide, BARE_HIT, threads), ratio);
        println!("| G9 | hit, of quick_cache's, {threads} thread(s) | {hit} | <= 1.30 | <= 1.00 |");
    }
    let gain = by(of(&wide, MEMORY_WRITE, 1), of(&wide, MEMORY_WRITE, 2), |one, two| 2.0 * one / two);
    println!("| G10 | overwrite, 2 threads of 1 in total | {gain} | >= 1.00 | >= 1.30 |");
    println!("\nload at the end {}", read("/proc/loadavg").trim());
}

fn hits_and_writes(runtime: &Runtime, count: usize) -> Vec<Times> {
    let keys: Vec<Vec<u8>> = (0..count).map(|number| format!("key:{number:012}").into_bytes()).collect();
    let bare: Bare = Cache::with(2 * count, 2 * count as u64, UnitWeighter, RandomState::new(), Default::default());
    let memory = open(Policy::S3Fifo, 256 << 20);
    let lfu = open(Policy::TinyLfu, 256 << 20);
    let clock = Clock::system();
    let queue = QueueOptions { capacity_bytes: 64 << 20, items_max: 100_000, overflow: Overflow::Block };
    let parts = Parts::new(open(Policy::S3Fifo, 256 << 20), queue, Vec::new(), &clock);
    let coordinator = runtime.block_on(Coordinator::open(parts, clock.clone()));
    let deadline = clock.monotonic() + Duration::from_secs(3600);
    let cx = OperationContext { id: 0, origin: Origin::Client, now: NOW, deadline, trust: Trust::Full };
    for key in &keys {
        bare.insert(key.clone().into(), Arc::from(VALUE));
        memory.set(NOW, &new(key));
        lfu.set(NOW, &new(key));
        coordinator.try_set(&cx, new(key)).unwrap();
    }
    lfu.tick();

    let key = |number: usize| keys[number].as_slice();
    let bare_hit = |number| drop(black_box(bare.get(key(number)).unwrap()));
    let memory_hit = |number| drop(black_box(memory.get(NOW, key(number)).unwrap()));
    let peek = |number| assert!(matches!(black_box(coordinator.peek(&cx, key(number))), Peek::Hit(_)));
    let lfu_hit = |number| drop(black_box(lfu.get(NOW, key(number)).unwrap()));
    let bare_write = |number| bare.insert(key(number).into(), Arc::from(VALUE));
    let memory_write = |number| memory.set(NOW, &new(key(number)));
    let set = |number| coordinator.try_set(&cx, new(key(number))).unwrap();
    let variants: [Variant<'_>; 7] = [
        ("quick_cache alone, hit", &bare_hit),
        ("memory hit, S3-FIFO", &memory_hit),
        ("coordinator peek", &peek),
        ("memory hit, TinyLFU", &lfu_hit),
        ("quick_cache alone, overwrite", &bare_write),
        ("memory overwrite, S3-FIFO", &memory_write),
        ("coordinator set, no disk", &set),
    ];
    let times = measure(&variants, &zipf(count));
    println!("\n{count} keys: ns per operation and thread{:>20}{:>24}", "1 thread", "2 threads");
    for ((name, _), [one, two]) in variants.iter().zip(&times) {
        println!("  {name:<28}{:>28}{:>24}", quartiles(one.clone()), quartiles(two.clone()));
    }
    times
}

fn new(key: &[u8]) -> Entry {
    let expires_at = Some(NOW.after(Duration::from_secs(3600)));
    Entry::new(key, &VALUE, EntryMeta { expires_at, ..EntryMeta::default() })
}

fn open(policy: Policy, capacity_bytes: u64) -> Memory {
    Memory::open(MemoryOptions { capacity_bytes, policy, max_ttl: Duration::from_secs(86400) }, Clock::system())
}

/// Times of every variant, those of the loop taken off.
fn measure(variants: &[Variant<'_>], picks: &[u32]) -> Vec<Times> {
    let empty = |number: usize| {
        black_box(number);
    };
    let mut times: Vec<Times> = variants.iter().map(|_| Times::default()).collect();
    for _ in 0..ROUNDS {
        for threads in [1, 2] {
            let nothing = round(&empty, picks, threads);
            for (times, (_, variant)) in times.iter_mut().zip(variants) {
                times[threads - 1].push(round(variant, picks, threads) - nothing);
            }
        }
    }
    times
}

fn round(operation: &(dyn Fn(usize) + Sync), picks: &[u32], threads: usize) -> f64 {
    let begin = Instant::now();
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let offset = thread * picks.len() / 2;
                for pick in picks[offset..].iter().chain(&picks[..offset]) {
                    operation(*pick as usize);
                }
            });
        }
    });
    begin.elapsed().as_nanos() as f64 / picks.len() as f64
}

fn quartiles(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let [low, median, high] = [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4]);
    format!("{median:.2} [{low:.2} {high:.2}]")
}

fn zipf(count: usize) -> Vec<u32> {
    let mut weights: Vec<f64> = (1..=count).map(|rank| (rank as f64).powf(-0.99)).collect();
    for index in 1..count {
        weights[index] += weights[index - 1];
    }
    let mut random = StdRng::seed_from_u64(1);
    // Ranks are spread over the keys, so that popular keys are not neighbours.
    let mut order: Vec<u32> = (0..u32::try_from(count).unwrap()).collect();
    for index in (1..count).rev() {
        order.swap(index, random.random_range(0..=index));
    }
    (0..OPERATIONS)
        .map(|_| {
            let point = random.random_range(0.0..weights[count - 1]);
            order[weights.partition_point(|weight| *weight < point).min(count - 1)]
        })
        .collect()
}

/// What an entry takes in all, by the process's resident set: the constant `ENTRY_OVERHEAD_BYTES` stands on this.
fn entries(policy: Policy) {
    const ENTRIES: u64 = 1_000_000;
    let memory = open(policy, 1 << 30);
    let before = resident_bytes();
    for number in 0..ENTRIES {
        memory.set(NOW, &new(format!("key:{number:012}").as_bytes()));
    }
    memory.tick();
    assert_eq!(memory.entries(), ENTRIES);
    let resident = (resident_bytes() - before) as f64 / ENTRIES as f64;
    let weighed = memory.stats().bytes.unwrap() as f64 / ENTRIES as f64;
    // 32 bytes before the key, 16 of key, 100 of value, in the allocator's class of 160.
    println!(
        "{policy:?}: {resident:.1} B resident an entry of 116 B, weighed as {weighed:.1} B; {:.1} B are not its block",
        resident - 160.0
    );
    if policy == Policy::S3Fifo {
        println!(
            "  ENTRY_OVERHEAD_BYTES is {ENTRY_OVERHEAD_BYTES}; 245 B is Redis's figure: {:.2} (G11, <= 0.85)",
            resident / 245.0
        );
    }
}

/// Overwrites as G10 measures them, by so many threads, for some seconds.
fn overwrite(threads: usize) {
    let keys: Vec<Vec<u8>> = (0..100_000).map(|number| format!("key:{number:012}").into_bytes()).collect();
    let memory = open(Policy::S3Fifo, 256 << 20);
    keys.iter().for_each(|key| memory.set(NOW, &new(key)));
    let picks = zipf(keys.len());
    let times = (0..80).map(|_| round(&|number| memory.set(NOW, &new(&keys[number])), &picks, threads)).collect();
    println!("{threads} threads: {} ns per operation and thread", quartiles(times));
}

/// Writes of random keys and sizes for so long: what memory weighs, and what the process takes. Neither may exceed the
/// capacity by more than 5 %.
fn soak(length: Duration, policy: Policy) {
    const CAPACITY: u64 = 256 << 20;
    let memory = open(policy, CAPACITY);
    let before = resident_bytes();
    let mut random = StdRng::seed_from_u64(2);
    let (begin, mut ticked, mut told) = (Instant::now(), Instant::now(), Instant::now());
    let (mut writes, mut weighed_most, mut resident_most) = (0_u64, 0, 0);
    let value = vec![7; 64 << 10];
    let percent = |bytes: u64| bytes as f64 * 100.0 / CAPACITY as f64;
    while begin.elapsed() < length {
        for _ in 0..1000 {
            let key = format!("key:{}", random.random_range(0..4_000_000));
            // As many between 8 and 16 bytes as between 32 and 64 KiB: what is large today is small tomorrow.
            let size = random.random_range(8.0..16.0_f64) * f64::from(1 << random.random_range(0..13));
            memory.set(NOW, &Entry::new(key.as_bytes(), &value[..size as usize], EntryMeta::default()));
        }
        writes += 1000;
        if ticked.elapsed() > SOAK_TICK {
            ticked = Instant::now();
            memory.tick();
        }
        weighed_most = weighed_most.max(memory.stats().bytes.unwrap());
        resident_most = resident_most.max(resident_bytes().saturating_sub(before));
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            println!("  {:>4} s: {writes} writes, {} entries", begin.elapsed().as_secs(), memory.entries());
        }
    }
    let (weighed, resident) = (percent(weighed_most), percent(resident_most));
    println!(
        "{policy:?}: {} s, {writes} writes, at most {weighed:.1} % of the capacity weighed, {resident:.1} % resident; at \
         the end {:.1} % weighed",
        length.as_secs(),
        percent(memory.stats().bytes.unwrap())
    );
    assert!(weighed <= SOAK_PERCENT_MAX, "{policy:?} weighs {weighed:.1} % of its capacity");
    assert!(resident <= SOAK_PERCENT_MAX, "{policy:?} takes {resident:.1} % of its capacity");
    // An empty memory keeps every bound.
    assert!(percent(memory.stats().bytes.unwrap()) > 80.0, "{policy:?} does not use its capacity");
}

fn resident_bytes() -> u64 {
    read("/proc/self/statm").split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap()
}
