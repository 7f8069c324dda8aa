//! Side-by-side benchmarks: Redis and the cache node on one core each in turn, a client on the other. See README.md
//! for how to read the tables.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod report;

mod gates;

mod memory;

mod pair;

mod stats;

mod load;

mod server;

mod workload;

mod resp;

mod clock;

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::{
    gates::{GOALS, Goal, Judged, PAIRS_MIN, Verdict},
    pair::{Outcome, Plan},
    server::{Kind, Programs},
    workload::{GRAMMAR, Workload},
};

/// Compares the cache node with redis-server on this machine.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Compares two servers on some workloads.
    Pair {
        #[arg(long, value_enum, default_value = "redis")]
        base: Kind,
        #[arg(long, value_enum, default_value = "node")]
        cand: Kind,
        #[command(flatten)]
        run: Run,
    },
    /// Compares a server with a second copy of itself: what a ratio of 1 looks like here and now.
    Null {
        #[arg(long, value_enum, default_value = "redis")]
        base: Kind,
        #[command(flatten)]
        run: Run,
    },
    /// Compares resident memory per entry.
    Memory {
        #[arg(long, value_enum, value_delimiter = ',', default_value = "redis,node")]
        kinds: Vec<Kind>,
        #[command(flatten)]
        programs: Programs,
    },
    /// Checks the goals; fails only if one is missed beyond noise on a quiet machine.
    Gate {
        /// Those of these names, such as `G7` or `"G3 CPU"`; default all that there are programs for.
        #[arg(long, value_delimiter = ',')]
        goal: Vec<String>,
        #[command(flatten)]
        measuring: Measuring,
    },
    /// Everything, as a Markdown file.
    All {
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        measuring: Measuring,
    },
}

#[derive(Args)]
struct Run {
    #[arg(long, value_delimiter = ',', default_value = WORKLOADS, help = GRAMMAR)]
    workload: Vec<Workload>,
    #[command(flatten)]
    measuring: Measuring,
}

#[derive(Args)]
struct Measuring {
    /// Undisturbed pairs wanted; the goals need 24.
    #[arg(long, default_value_t = PAIRS_MIN, value_parser = clap::value_parser!(usize))]
    rounds: usize,
    /// Length of a slice in milliseconds.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    slice_ms: u64,
    /// Writes every slice to this file, one JSON object a line.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    programs: Programs,
}

/// The workloads of the goals beside Redis.
const WORKLOADS: &str = "get-p1,get-p16,set-p1,set-p16,get4k-p16,set4k-p16,mix-r80000,get-p1-c900";

fn main() -> anyhow::Result<ExitCode> {
    // The load generator opens hundreds of connections to each of two servers.
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files)?;
    server::pin(server::CLIENT_CORE).context("two cores are needed, one for the server and one for the client")?;
    match Arguments::parse().verb {
        Verb::Pair { base, cand, run } => {
            run.measuring.compare(base, cand, &run.workload)?;
        }
        Verb::Null { base, run } => {
            run.measuring.compare(base, base, &run.workload)?;
        }
        Verb::Memory { kinds, programs } => println!("{}", measure_memory(&kinds, &programs)?),
        Verb::Gate { goal, measuring } => return gate(&goal, &measuring),
        Verb::All { out, measuring } => all(&out, &measuring)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The goals of these names, each with its control.
fn gate(names: &[String], measuring: &Measuring) -> anyhow::Result<ExitCode> {
    let wanted = |goal: &&Goal| names.is_empty() || names.iter().any(|name| goal.is_called(name));
    let (goals, measured) = measuring.measure(wanted)?;
    let judged = judge(&goals, &measured);
    print!("{}", report::goals(&judged));
    let missed = judged.iter().any(|Judged { goal, outcome, control }| {
        goal.judge(outcome, control.ratio(goal.metric).map(|ratio| ratio.median)) == Verdict::Missed
    });
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// All goals, the node with its disk layer, and memory, written with what a reader needs to do it again.
fn all(out: &Path, measuring: &Measuring) -> anyhow::Result<()> {
    let programs = &measuring.programs;
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    let machine = report::machine();
    let (goals, mut measured) = measuring.measure(|_| true)?;
    let table = report::goals(&judge(&goals, &measured));
    let workloads: Vec<Workload> = WORKLOADS.split(',').map(str::parse).collect::<Result<_, _>>()?;
    measured.extend(measuring.compare(Kind::Redis, Kind::NodeDisk, &workloads)?);
    let text = format!(
        "# Measured, side by side\n\n\
         How to read this: README.md in the folder of `bench`. Written by `{command}`.\n\n\
         - Date: {date}\n- Machine: {machine}\n- Yardstick: {redis}\n- Candidate: {candidate}\n\n\
         ## Goals\n\n{table}\n## Memory\n\n{memory}\n## All rows\n\n{heading}\n{rows}\n",
        command = std::env::args().skip(1).fold("bench".to_owned(), |line, word| line + " " + &word),
        redis = Kind::Redis.version(programs)?,
        candidate = Kind::Node.version(programs)?,
        memory = measure_memory(&[Kind::Redis, Kind::Node], programs)?,
        heading = report::HEADING,
        rows = measured.iter().map(report::row).collect::<Vec<_>>().join("\n"),
    );
    fs::write(out, text).with_context(|| format!("write {}", out.display()))
}

/// Finds each goal's measurement and its control among all.
fn judge<'a>(goals: &'a [Goal], measured: &'a [Outcome]) -> Vec<Judged<'a>> {
    let find = |goal: &Goal, candidate: Kind| {
        measured.iter().find(|outcome| {
            (outcome.base, outcome.candidate) == (goal.base, candidate) && outcome.workload.to_string() == goal.workload
        })
    };
    let judged = goals.iter().filter_map(|goal| {
        Some(Judged { goal, outcome: find(goal, goal.candidate)?, control: find(goal, goal.base)? })
    });
    judged.collect()
}

fn measure_memory(kinds: &[Kind], programs: &Programs) -> anyhow::Result<String> {
    let results: anyhow::Result<Vec<(Kind, f64)>> =
        kinds.iter().map(|&kind| Ok((kind, memory::bytes_per_entry(kind, programs)?))).collect();
    Ok(report::memory(&results?))
}

// === impl Measuring ===

impl Measuring {
    /// Measures the wanted goals for which there are programs, each with its control, and none of it twice.
    fn measure(&self, wanted: impl Fn(&&Goal) -> bool) -> anyhow::Result<(Vec<Goal>, Vec<Outcome>)> {
        let (goals, missing): (Vec<Goal>, Vec<Goal>) =
            GOALS.iter().filter(wanted).copied().partition(|goal| self.programs.has(goal.base));
        for goal in missing {
            println!("{} is left out: it needs --pipeline", goal.id);
        }
        println!("{}", report::HEADING);
        let mut measured: Vec<Outcome> = Vec::new();
        for goal in &goals {
            let workload: Workload = goal.workload.parse()?;
            for candidate in [goal.base, goal.candidate] {
                let done = |outcome: &Outcome| {
                    (outcome.base, outcome.candidate, &outcome.workload) == (goal.base, candidate, &workload)
                };
                if !measured.iter().any(done) {
                    measured.push(self.compare_one(goal.base, candidate, &workload)?);
                }
            }
        }
        Ok((goals, measured))
    }

    /// Runs every workload.
    fn compare(&self, base: Kind, candidate: Kind, workloads: &[Workload]) -> anyhow::Result<Vec<Outcome>> {
        println!("{}", report::HEADING);
        workloads.iter().map(|workload| self.compare_one(base, candidate, workload)).collect()
    }

    /// Runs a workload and prints its row.
    fn compare_one(&self, base: Kind, candidate: Kind, workload: &Workload) -> anyhow::Result<Outcome> {
        let (rounds, slice) = (self.rounds, Duration::from_millis(self.slice_ms));
        let plan = Plan { base, candidate, rounds, slice, programs: self.programs.clone() };
        let outcome = pair::compare(&plan, workload).with_context(|| format!("workload {workload}"))?;
        println!("{}", report::row(&outcome));
        if let Some(path) = &self.json {
            append_json(path, &outcome).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(outcome)
    }
}

fn append_json(path: &Path, outcome: &Outcome) -> anyhow::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    for (index, slice) in outcome.slices.iter().enumerate() {
        let kind = if index.is_multiple_of(2) { outcome.base } else { outcome.candidate };
        let workload = outcome.workload.to_string();
        writeln!(
            file,
            "{}",
            json!({ "workload": workload, "server": kind.label(), "slice": index, "measure": slice })
        )?;
    }
    Ok(())
}
