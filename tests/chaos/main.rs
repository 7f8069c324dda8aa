//! Chaos: a fleet of real nodes with a real Redis under faults, watched by clients whose every read is judged against
//! what the fleet promises. See README.md for what is promised and how to read a violation.

#![allow(clippy::disallowed_methods, reason = "real programs take real time")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod propagation;

mod files;

mod stock;

mod run;

mod story;

mod nemesis;

mod fleet;

mod proxy;

mod plain;

mod workload;

mod records;

mod diary;

mod plan;

mod wire;

mod judge;

mod history;

mod clock;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use rand::Rng;

use crate::{
    files::Files,
    fleet::Program,
    nemesis::Fault,
    propagation::By,
    run::{Ended, Setting, Writes},
    stock::StockClient,
};

/// Of one run at most so many violations are told.
const STORIES_MAX: usize = 3;
/// Pairs of faults in one run at most. More take further runs, so that what is drawn for a run is drawn more than once.
const PAIRS_MAX: u32 = 6;

/// Breaks a fleet of cache nodes and judges what its clients read meanwhile.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs faults until enough reads are checked; fails on the first promise that was not kept.
    Run(Run),
    /// Measures how long invalidations take from node to node.
    Propagation {
        #[arg(long, default_value_t = 1_000_000)]
        removals: u64,
        /// Removes each value by a tag that it alone carries, instead of by its key.
        #[arg(long)]
        tags: bool,
        #[command(flatten)]
        fleet: FleetArguments,
    },
    /// Judges histories that clients of another fleet wrote to files.
    Judge(Files),
    /// Works on a node of a fleet that somebody else runs, until its standard input ends, and writes down what it saw.
    Client(StockClient),
    /// Serves the plain pattern (local cache, Redis, pub/sub), for comparison.
    #[command(hide = true)]
    Plain {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        redis: SocketAddr,
    },
}

#[derive(Args)]
struct Run {
    /// Faults, each in runs of its own.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Runs of two faults at once, instead of one after the other.
    #[arg(long)]
    pairs: bool,
    /// Goes on until so many reads are checked, all faults having had their turn.
    #[arg(long, default_value_t = 1)]
    reads: u64,
    /// Faults in one run.
    #[arg(long, default_value_t = 1)]
    cycles: u32,
    /// Pairs of faults in each round. Default: as many as faults in one run.
    #[arg(long)]
    pair_cycles: Option<u32>,
    /// Runs at the same time, each with a fleet of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    parallel: u8,
    /// Repeats the choices of a run; its number is printed.
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Expects every run to break promises: shows that the judge finds them.
    #[arg(long)]
    control: bool,
    /// When writes are acknowledged; by default each run draws it.
    #[arg(long, value_enum)]
    writes: Option<Writes>,
    /// For how many seconds nodes serve what they hold while they are cut off from Redis, 0 for not at all
    /// (`whenDisconnected: Miss`); by default each run draws it.
    #[arg(long, value_name = "SECONDS")]
    serve_stale: Option<u64>,
    #[command(flatten)]
    fleet: FleetArguments,
}

#[derive(Args)]
struct FleetArguments {
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// What the nodes are.
    #[arg(long, value_enum, default_value = "cache-node")]
    kind: Kind,
    /// The node's program. Default: `cache-node` beside this program.
    #[arg(long, env = "CACHE_NODE")]
    node: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Cache nodes.
    CacheNode,
    /// The plain pattern: local cache, Redis, pub/sub.
    Plain,
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().verb {
        Verb::Run(run) => run.all(),
        Verb::Propagation { removals, tags, fleet } => {
            let by = if tags { By::Tag } else { By::Key };
            let measured = propagation::measure(fleet.program()?, usize::from(fleet.nodes), removals, by)?;
            println!("{}", measured.text());
            Ok(if measured.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Judge(files) => {
            let good = report("judged", &files.judge()?);
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Client(client) => {
            client.run()?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Plain { listen, redis } => {
            plain::serve(listen, redis)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What came of all runs.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    checked: u64,
}

// === impl Tally ===

impl Tally {
    /// Tells what came of a run.
    fn add(&mut self, setting: &Setting, ended: anyhow::Result<Ended>, is_control: bool) {
        let good = match &ended {
            Ok(ended) if is_control => control(setting, ended),
            Ok(ended) => report(&setting.title(), ended),
            Err(error) => {
                println!("FAILED {:<26} {error:#}", setting.title());
                false
            }
        };
        self.passed += u32::from(good);
        self.failed += u32::from(!good);
        self.checked += ended.map_or(0, |ended| ended.verdict.checked);
    }
}

// === impl Run ===

impl Run {
    /// Rounds of all runs, and a line for each run.
    fn all(&self) -> anyhow::Result<ExitCode> {
        let seed = self.seed.unwrap_or_else(|| rand::rng().next_u64());
        println!("SEED={seed}");
        let (mut tally, mut round) = (Tally::default(), 0);
        while round == 0 || tally.checked < self.reads {
            self.round(self.settings(seed.wrapping_add(round))?, &mut tally);
            round += 1;
        }
        let Tally { passed, failed, checked } = tally;
        let verdict = if failed == 0 { "ok" } else { "FAILED" };
        println!("{checked} reads checked");
        println!("test result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Each run once, so many at the same time.
    fn round(&self, settings: Vec<Setting>, tally: &mut Tally) {
        let (settings, tally) = (Mutex::new(settings.into_iter()), Mutex::new(tally));
        let lane = || {
            loop {
                let next = settings.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(setting) = next else { break };
                let ended = run::run(&setting);
                // What is told of a run stands together.
                tally.lock().unwrap_or_else(PoisonError::into_inner).add(&setting, ended, self.control);
            }
        };
        thread::scope(|scope| (0..self.parallel).for_each(|_| drop(scope.spawn(lane))));
    }

    fn settings(&self, seed: u64) -> anyhow::Result<Vec<Setting>> {
        let setting = Setting {
            program: self.fleet.program()?,
            nodes: usize::from(self.fleet.nodes),
            faults: if self.faults.is_empty() { Fault::all() } else { self.faults.clone() },
            pairs: false,
            cycles: self.cycles,
            write_through: self.writes.map(|writes| writes == Writes::Through),
            serve_stale_for: self.serve_stale.map(Duration::from_secs),
            seed,
        };
        let mut settings = Vec::new();
        // First, because they take longest.
        if self.pairs || self.faults.is_empty() {
            let cycles = self.pair_cycles.unwrap_or(self.cycles);
            settings.extend((0..cycles.div_ceil(PAIRS_MAX)).map(|run| self.run_of_pairs(&setting, cycles, run)));
        }
        if !self.pairs {
            settings.extend(setting.faults.iter().map(|fault| Setting { faults: vec![*fault], ..setting.clone() }));
        }
        Ok(settings)
    }

    /// One of the runs that so many pairs of faults take.
    fn run_of_pairs(&self, setting: &Setting, cycles: u32, run: u32) -> Setting {
        let mut faults = setting.faults.clone();
        // The ends of lives are judged only where no clock is put wrong: unless faults are named, in every other run.
        if self.faults.is_empty() && !setting.seed.wrapping_add(u64::from(run)).is_multiple_of(2) {
            faults.retain(|fault| *fault != Fault::Clock);
        }
        let cycles = PAIRS_MAX.min(cycles - run * PAIRS_MAX);
        // Far from the seeds of the next rounds.
        let seed = setting.seed.wrapping_add(u64::from(run) << 32);
        Setting { faults, pairs: true, cycles, seed, ..setting.clone() }
    }
}

/// Prints how many broken promises were found; whether there were any.
fn control(setting: &Setting, ended: &Ended) -> bool {
    let broken = ended.verdict.violations.len();
    let verdict = if broken > 0 { "ok    " } else { "FAILED" };
    println!("{verdict} {:<12} control: {broken} reads broke a promise; {}", setting.title(), ended.figures());
    broken > 0
}

/// Prints what came of a run; whether all was well.
fn report(name: &str, ended: &Ended) -> bool {
    let verdict = if ended.is_good() { "ok    " } else { "FAILED" };
    println!("{verdict} {name:<26} {}", ended.figures());
    ended.complaints.iter().for_each(|complaint| println!("       {complaint}"));
    let violations = &ended.verdict.violations;
    if !violations.is_empty() {
        println!("       {} reads broke a promise; the first of them:", violations.len());
        // The earliest are the ones that a cause is nearest to; one a key.
        let mut told: Vec<u32> = Vec::new();
        let mut sorted: Vec<_> = violations.iter().collect();
        sorted.sort_by_key(|violation| violation.read.invoked);
        for violation in sorted {
            if told.len() < STORIES_MAX && !told.contains(&violation.read.key) {
                told.push(violation.read.key);
                println!("{}", story::tell(&ended.history, violation));
            }
        }
    }
    ended.is_good()
}

// === impl FleetArguments ===

impl FleetArguments {
    fn program(&self) -> anyhow::Result<Program> {
        Ok(match (self.kind, &self.node) {
            (Kind::Plain, _) => Program::Plain,
            (Kind::CacheNode, Some(path)) => Program::CacheNode(path.clone()),
            (Kind::CacheNode, None) => Program::CacheNode(std::env::current_exe()?.with_file_name("cache-node")),
        })
    }
}
