//! What an L1 hit and an L1 write cost, against the bare engine. `cargo bench -p cache-node --bench memory`.
//!
//! Variants run interleaved; the medians of nine rounds are printed, net of the loop that picks keys. Keys are zipf
//! 0.99 distributed. The goals in brackets are those of the README.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

use std::{
    hint::black_box,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ahash::RandomState;
use cache_node::{
    clock::{Clock, UnixMillis},
    context::{OperationContext, Origin},
    coordinator::{Coordinator, Peek},
    entry::{Entry, EntryMeta},
    layer::memory::{ENTRY_OVERHEAD_BYTES, Memory, MemoryOptions, Policy},
    write_queue::QueueOptions,
};
use quick_cache::{UnitWeighter, sync::Cache};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const ROUNDS: usize = 9;
const OPERATIONS: usize = 1_000_000;
const VALUE: [u8; 100] = [7; 100];
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// quick_cache as one would use it without any of this: a boxed key, a counted value, no expiry, no weights.
type Bare = Cache<Box<[u8]>, Arc<[u8]>, UnitWeighter, RandomState>;

/// One thing to be measured: what it does with the key of this number.
type Variant<'a> = (&'a str, &'a (dyn Fn(usize) + Sync));

fn main() {
    println!(
        "{} cores; {OPERATIONS} operations a round, median of {ROUNDS} rounds",
        thread::available_parallelism().unwrap()
    );
    memory_per_entry();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    for count in [1_000, 100_000] {
        hits_and_writes(count);
    }
}

fn hits_and_writes(count: usize) {
    let keys: Vec<Vec<u8>> = (0..count).map(|number| format!("key:{number:012}").into_bytes()).collect();
    let picks = zipf(count);
    let bare: Bare = Cache::with(2 * count, 2 * count as u64, UnitWeighter, RandomState::new(), Default::default());
    let memory = open(Policy::S3Fifo);
    let lfu = open(Policy::TinyLfu);
    let coordinator = Coordinator::open(
        open(Policy::S3Fifo),
        QueueOptions { capacity_bytes: 64 << 20, items_max: 100_000 },
        Vec::new(),
        Clock::system(),
    );
    let clock = Clock::system();
    let cx = OperationContext {
        id: 0,
        origin: Origin::Client,
        now: NOW,
        deadline: clock.monotonic() + Duration::from_secs(60),
    };
    let expiring = EntryMeta { expires_at: Some(NOW.after(Duration::from_secs(3600))), ..EntryMeta::default() };
    for key in &keys {
        bare.insert(key.clone().into(), Arc::from(VALUE));
        memory.set(NOW, &Entry::new(key, &VALUE, expiring));
        lfu.set(NOW, &Entry::new(key, &VALUE, expiring));
        coordinator.try_set(&cx, Entry::new(key, &VALUE, expiring)).unwrap();
    }
    lfu.tick();

    let key = |number: usize| keys[number].as_slice();
    let bare_hit = |number| drop(black_box(bare.get(key(number)).unwrap()));
    let memory_hit = |number| drop(black_box(memory.get(NOW, key(number)).unwrap()));
    let lfu_hit = |number| drop(black_box(lfu.get(NOW, key(number)).unwrap()));
    let peek = |number| assert!(matches!(black_box(coordinator.peek(&cx, key(number))), Peek::Hit(_)));
    let bare_write = |number| bare.insert(key(number).into(), Arc::from(VALUE));
    let memory_write = |number| memory.set(NOW, &Entry::new(key(number), &VALUE, expiring));
    let set = |number| coordinator.try_set(&cx, Entry::new(key(number), &VALUE, expiring)).unwrap();
    let variants: [Variant<'_>; 7] = [
        ("bare quick_cache hit", &bare_hit),
        ("memory hit, S3-FIFO", &memory_hit),
        ("coordinator peek", &peek),
        ("memory hit, TinyLFU", &lfu_hit),
        ("bare quick_cache overwrite", &bare_write),
        ("memory overwrite, S3-FIFO", &memory_write),
        ("coordinator set, no disk", &set),
    ];
    for threads in [1, 2] {
        println!("\n{count} keys, {threads} thread(s): ns per operation and thread");
        for (name, nanoseconds) in measure(&variants, &picks, threads) {
            println!("  {name:<28} {nanoseconds:>7.1}");
        }
    }
}

fn open(policy: Policy) -> Memory {
    let options = MemoryOptions {
        capacity_bytes: 256 << 20,
        policy,
        max_ttl: Duration::from_secs(86400),
        value_bytes_max: 16 << 20,
    };
    Memory::open(options, Clock::system())
}

/// Medians, the loop taken off.
fn measure<'a>(variants: &[Variant<'a>], picks: &[u32], threads: usize) -> Vec<(&'a str, f64)> {
    let empty = |number: usize| {
        black_box(number);
    };
    let mut times = vec![Vec::new(); variants.len() + 1];
    for _ in 0..ROUNDS {
        times[0].push(round(&empty, picks, threads));
        for (times, (_, variant)) in times[1..].iter_mut().zip(variants) {
            times.push(round(variant, picks, threads));
        }
    }
    let mut medians = times.into_iter().map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    let empty = medians.next().unwrap();
    variants.iter().map(|(name, _)| *name).zip(medians.map(|median| median - empty)).collect()
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
fn memory_per_entry() {
    const ENTRIES: u64 = 1_000_000;
    for policy in [Policy::S3Fifo, Policy::TinyLfu] {
        let before = resident_bytes();
        let memory = Memory::open(
            MemoryOptions {
                capacity_bytes: 1 << 30,
                policy,
                max_ttl: Duration::from_secs(86400),
                value_bytes_max: 16 << 20,
            },
            Clock::system(),
        );
        let meta = EntryMeta { expires_at: Some(NOW.after(Duration::from_secs(3600))), ..EntryMeta::default() };
        for number in 0..ENTRIES {
            memory.set(NOW, &Entry::new(format!("key:{number:012}").as_bytes(), &VALUE, meta));
        }
        memory.tick();
        assert_eq!(memory.entries(), ENTRIES);
        let per_entry = (resident_bytes() - before) / ENTRIES;
        println!(
            "{policy:?}: {per_entry} B resident per entry of 116 B; overhead {} B, weighed as {ENTRY_OVERHEAD_BYTES} B",
            per_entry - 116
        );
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
