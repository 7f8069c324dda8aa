//! What a batch of commands costs in the layers, over the same commands without any layer.
//!
//! ```text
//! cargo bench -p cache-node --bench pipeline                                  # in this process, two minutes
//! cargo bench -p cache-node --bench pipeline -- serve fused 127.0.0.1:7001    # a server without layers
//! cargo bench -p cache-node --bench pipeline -- serve layered 127.0.0.1:7002  # the node, from the same binary
//! ```
//!
//! A batch is what a client has sent at once, as bytes; it is parsed, run and answered into a buffer, by the node's own
//! parser and encoder. *Fused* runs GET and SET straight on memory; *layered* runs them as the node does: a context for
//! the batch, the table of commands, the coordinator, the write queue, memory, counters. Every round runs every variant,
//! one after the other; ratios are taken within a round. Keys are drawn by Zipf 0.99.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

mod fused;

mod layered;

mod requests;

use std::{
    env, fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cache_node::{
    coordinator::{Coordinator, Wants},
    entry::Key,
    protocol::Replies,
};
use tikv_jemallocator::Jemalloc;
use tokio::{runtime::Runtime, task::JoinSet};

use self::{
    fused::Fused,
    layered::{Layered, Sink},
    requests::{Batches, Kind},
};

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const ROUNDS: usize = 15;
const READERS: usize = 1000;

/// Runs the bytes of a batch and writes its replies.
type Run<'a> = dyn FnMut(&[u8], &mut Replies) + 'a;

/// One thing to be measured.
struct Variant<'a> {
    name: &'static str,
    batches: &'a Batches,
    run: Box<Run<'a>>,
    /// Nanoseconds a command, by round.
    times: Vec<f64>,
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", "fused", address] => fused::serve(address.parse().unwrap()).unwrap(),
        ["serve", "layered", address] => layered::serve(address.parse().unwrap()),
        _ => measure(),
    }
}

fn measure() {
    println!("{} cores, load {}", thread::available_parallelism().unwrap(), read("/proc/loadavg").trim());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    println!("{ROUNDS} rounds: median [quartiles]\n");
    println!("| goal | commands | what | ns a command | of | ratio |\n|---|---|---|---|---|---|");
    for pipeline in [1, 16] {
        commands(&runtime, pipeline);
    }
    println!("\n| goal | what | measured | gate | target |\n|---|---|---|---|---|");
    let reads = runtime.block_on(stampede());
    println!(
        "| G20 | reads of the layer below for {READERS} readers at once of one cold key | {reads} | <= 1 | <= 1 |"
    );
    println!("\nload at the end {}", read("/proc/loadavg").trim());
}

/// Runs all variants with so many commands in a batch.
fn commands(runtime: &Runtime, pipeline: usize) {
    let [get, set, tagged] = [Kind::Get, Kind::Set, Kind::SetTagged].map(|kind| Batches::draw(kind, pipeline));
    let (fused, bare) = (Fused::open(), Layered::open(runtime, None));
    let queued = Layered::open(runtime, Some(Arc::new(Sink::default())));
    let with_tags = Layered::open(runtime, Some(Arc::new(Sink::default())));
    let mut nowhere = Replies::default();
    // Every key, so that all reads hit.
    let (all, all_tagged) = (Batches::all(Kind::Set), Batches::all(Kind::SetTagged));
    fused.runner()(all.bytes(), &mut nowhere);
    bare.runner()(all.bytes(), &mut nowhere);
    queued.runner()(all.bytes(), &mut nowhere);
    with_tags.runner()(all_tagged.bytes(), &mut nowhere);

    let mut variants = [
        Variant::new("GET, fused", &get, fused.runner()),
        Variant::new("GET, layered", &get, queued.runner()),
        Variant::new("SET, fused", &set, fused.runner()),
        Variant::new("SET, layered, nothing below memory", &set, bare.runner()),
        Variant::new("SET, layered, into the write queue", &set, queued.runner()),
        Variant::new("GET, layered, two tags", &get, with_tags.runner()),
        Variant::new("SET, layered, two tags", &tagged, with_tags.runner()),
    ];
    for round in 0..=ROUNDS {
        for variant in &mut variants {
            variant.round(round > 0);
        }
    }
    for (goal, above, below) in [("G7", 1, 0), ("G7", 3, 2), ("G17", 4, 3), ("G18", 5, 1), ("G18", 6, 4)] {
        let (above, below) = (&variants[above], &variants[below]);
        println!(
            "| {goal} | {pipeline} | {} / {} | {} | {} | {} |",
            above.name,
            below.name,
            quartiles(above.times.clone(), 0),
            quartiles(below.times.clone(), 0),
            quartiles(above.times.iter().zip(&below.times).map(|(above, below)| above / below).collect(), 2)
        );
    }
}

/// How often the layer below is read for many readers at once of one key that only it has.
async fn stampede() -> u64 {
    let reads = Arc::new(AtomicU64::new(0));
    let layered = Layered::open_over(Arc::new(Sink::holding(Arc::clone(&reads)))).await;
    let coordinator: Arc<Coordinator> = Arc::clone(layered.coordinator());
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let coordinator = Arc::clone(&coordinator);
        let cx = layered.context();
        readers.spawn(async move { coordinator.get(&cx, &Key::new("cold").unwrap(), Wants::Value).await.entry });
    }
    while let Some(read) = readers.join_next().await {
        assert!(read.unwrap().is_some());
    }
    reads.load(Ordering::SeqCst)
}

// === impl Variant ===

impl<'a> Variant<'a> {
    fn new(name: &'static str, batches: &'a Batches, run: impl FnMut(&[u8], &mut Replies) + 'a) -> Self {
        Self { name, batches, run: Box::new(run), times: Vec::new() }
    }

    fn round(&mut self, counts: bool) {
        let mut replies = Replies::default();
        let begin = Instant::now();
        for batch in self.batches.iter() {
            (self.run)(batch, &mut replies);
            replies.clear();
        }
        let took = begin.elapsed().as_nanos() as f64 / self.batches.commands() as f64;
        if counts {
            self.times.push(took);
        }
        // What was queued is gone before the next variant, so that nobody pays for another's flusher.
        thread::sleep(Duration::from_millis(20));
    }
}

fn quartiles(mut numbers: Vec<f64>, digits: usize) -> String {
    numbers.sort_by(f64::total_cmp);
    let [low, median, high] = [1, 2, 3].map(|quarter| numbers[(numbers.len() - 1) * quarter / 4]);
    format!("{median:.digits$} [{low:.digits$} {high:.digits$}]")
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap()
}
