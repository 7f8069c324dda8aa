//! Side-by-side benchmarks: Redis and the cache node on one core each in turn, a client on the other. See README.md
//! for how to read the tables.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod report;

mod inside;

mod gates;

mod memory;

mod invalidate;

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
    clock::Clock,
    gates::{GOALS, Goal, Judged, PAIRS_MIN, Verdict},
    inside::{Inside, Printed, Row},
    invalidate::Removals,
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
    /// Times removals by tag among a million tagged entries; fails if 99 of 100 take more than a millisecond.
    Invalidate {
        #[arg(long, value_enum, value_delimiter = ',', default_value = "node-disk,node-full")]
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
    /// Everything, as one table in a Markdown file.
    All {
        #[arg(long)]
        out: PathBuf,
        /// What is measured: the name of the commit.
        #[arg(long, default_value = "unknown")]
        commit: String,
        /// A benchmark of `cache-node` with its program, such as `disk=target/release/deps/disk-…`.
        #[arg(long)]
        inside: Vec<Inside>,
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
        Verb::Memory { kinds, programs } => println!("{}", report::memory(&memory_of(&kinds, &programs)?)),
        Verb::Invalidate { kinds, programs } => return invalidate(&kinds, &programs),
        Verb::Gate { goal, measuring } => return gate(&goal, &measuring),
        Verb::All { out, commit, inside, measuring } => all(&out, &commit, &inside, &measuring)?,
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

/// Every goal in one table, each with the command that measures it alone, and all that was printed on the way.
fn all(out: &Path, commit: &str, inside: &[Inside], measuring: &Measuring) -> anyhow::Result<()> {
    let programs = &measuring.programs;
    let (begun, clock) = (jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(), Clock::start());
    let machine = report::machine();
    let printed: Vec<Printed> = inside.iter().map(Inside::run).collect::<anyhow::Result<_>>()?;
    printed.iter().for_each(|printed| println!("{}", printed.text));
    let (goals, measured) = measuring.measure(|_| true)?;
    let memory = memory_of(&[Kind::Redis, Kind::Node], programs)?;
    let removals = measure_removals(&[Kind::NodeDisk, Kind::NodeFull], programs)?;
    let of_servers = judge(&goals, &measured).into_iter().map(|judged| {
        let command = format!("bench gate --goal \"{}\" --slice-ms {}", judged.goal.id, measuring.slice_ms);
        (report::goal_row(&judged), command)
    });
    let of_inside = printed.iter().flat_map(|printed| {
        printed.rows.iter().map(|row| (row.clone(), printed.command.clone())).collect::<Vec<(Row, String)>>()
    });
    let of_removals = removals.iter().map(|removals| (report::removal_row(removals), "bench invalidate".to_owned()));
    let mut rows: Vec<(Row, String)> = of_servers.chain(of_inside).chain(of_removals).collect();
    rows.extend(report::memory_row(&memory).map(|row| (row, "bench memory".to_owned())));
    rows.sort_by_key(|(row, _)| report::place(&row.goal));
    let text = format!(
        "# Measured, side by side\n\n\
         How to read this: README.md in the folder of `bench`. Written by `make bench` in {minutes:.0} minutes.\n\n\
         - Commit: {commit}\n- Date: {begun}\n- Machine: {machine}\n- Yardstick: {redis}\n- Candidate: {candidate}\n\n\
         ## Where it stands\n\n{table}\n## Beside other servers\n\n{heading}\n{all}\n\n\
         ## Removal by tag among a million tagged entries\n\n{removals}\n## Memory\n\n{memory}\n\
         ## In one process\n\n{inside}",
        minutes = clock.nanos() as f64 / 60e9,
        redis = Kind::Redis.version(programs)?,
        candidate = Kind::Node.version(programs)?,
        table = report::rows(&rows),
        heading = report::HEADING.trim_start(),
        all = measured.iter().map(report::row).collect::<Vec<_>>().join("\n"),
        removals = report::removals(&removals),
        memory = report::memory(&memory),
        inside = printed.iter().map(report::printed).collect::<String>(),
    );
    println!("{}", report::rows(&rows));
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

fn invalidate(kinds: &[Kind], programs: &Programs) -> anyhow::Result<ExitCode> {
    let removals = measure_removals(kinds, programs)?;
    println!("{}", report::removals(&removals));
    Ok(if removals.iter().all(report::is_quick) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure_removals(kinds: &[Kind], programs: &Programs) -> anyhow::Result<Vec<Removals>> {
    let measured: anyhow::Result<Vec<Vec<Removals>>> =
        kinds.iter().map(|&kind| invalidate::measure(kind, programs)).collect();
    Ok(measured?.into_iter().flatten().collect())
}

fn memory_of(kinds: &[Kind], programs: &Programs) -> anyhow::Result<Vec<(Kind, f64)>> {
    kinds.iter().map(|&kind| Ok((kind, memory::bytes_per_entry(kind, programs)?))).collect()
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
