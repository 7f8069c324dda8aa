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
    gates::{GOALS, PAIRS_MIN, Verdict},
    pair::{Outcome, Plan},
    server::Kind,
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
        node: Node,
    },
    /// Checks the goals; fails only if one is missed beyond noise on a quiet machine.
    Gate {
        #[command(flatten)]
        run: Run,
    },
    /// Everything, as a Markdown file.
    All {
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        run: Run,
    },
}

#[derive(Args)]
struct Run {
    #[arg(long, value_delimiter = ',', default_value = GOAL_WORKLOADS, help = GRAMMAR)]
    workload: Vec<Workload>,
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
    node: Node,
}

#[derive(Args)]
struct Node {
    /// The node's program. Default: `cache-node` beside this program.
    #[arg(long)]
    node: Option<PathBuf>,
}

/// The workloads of all goals.
const GOAL_WORKLOADS: &str = "get-p1,get-p16,set-p1,set-p16,get4k-p16,set4k-p16,mix-r80000,get-p1-c900";

fn main() -> anyhow::Result<ExitCode> {
    // The load generator opens hundreds of connections to each of two servers.
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files)?;
    server::pin(server::CLIENT_CORE).context("two cores are needed, one for the server and one for the client")?;
    match Arguments::parse().verb {
        Verb::Pair { base, cand, run } => {
            run.compare(base, cand)?;
        }
        Verb::Null { base, run } => {
            run.compare(base, base)?;
        }
        Verb::Memory { kinds, node } => println!("{}", measure_memory(&kinds, &node.program()?)?),
        Verb::Gate { run } => return gate(&run),
        Verb::All { out, run } => all(&out, &run)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Every goal with its control.
fn gate(run: &Run) -> anyhow::Result<ExitCode> {
    let controls = run.compare(Kind::Redis, Kind::Redis)?;
    let outcomes = run.compare(Kind::Redis, Kind::Node)?;
    print!("{}", report::goals(&outcomes, &controls));
    let missed = GOALS.iter().any(|goal| {
        let of_goal = |outcome: &&Outcome| outcome.workload.to_string() == goal.workload;
        let control = controls.iter().find(of_goal).and_then(|control| control.ratio(goal.metric));
        let verdict = |outcome: &Outcome| goal.judge(outcome, control.map(|ratio| ratio.median));
        outcomes.iter().find(of_goal).map(verdict) == Some(Verdict::Missed)
    });
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The control, both forms of the node and memory, written with what a reader needs to do it again.
fn all(out: &Path, run: &Run) -> anyhow::Result<()> {
    let node = run.node.program()?;
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    let machine = report::machine();
    let controls = run.compare(Kind::Redis, Kind::Redis)?;
    let mut outcomes = run.compare(Kind::Redis, Kind::Node)?;
    outcomes.extend(run.compare(Kind::Redis, Kind::NodeDisk)?);
    let rows = |outcomes: &[Outcome]| outcomes.iter().map(report::row).collect::<Vec<_>>().join("\n");
    let text = format!(
        "# Measured, side by side\n\n\
         How to read this: README.md in this folder. Written by `make bench` (`{command}`).\n\n\
         - Date: {date}\n- Machine: {machine}\n- Yardstick: {redis}\n- Candidate: {candidate}\n\n\
         ## Goals\n\n{goals}\n## Memory\n\n{memory}\n## All workloads\n\n{heading}\n{rows}\n\n\
         ## Control: the yardstick against a second copy of itself\n\n{heading}\n{control}\n",
        command = std::env::args().skip(1).fold("bench".to_owned(), |line, word| line + " " + &word),
        redis = Kind::Redis.version(&node)?,
        candidate = Kind::Node.version(&node)?,
        goals = report::goals(&outcomes, &controls),
        memory = measure_memory(&[Kind::Redis, Kind::Node], &node)?,
        heading = report::HEADING,
        rows = rows(&outcomes),
        control = rows(&controls),
    );
    fs::write(out, text).with_context(|| format!("write {}", out.display()))
}

fn measure_memory(kinds: &[Kind], node: &Path) -> anyhow::Result<String> {
    let results: anyhow::Result<Vec<(Kind, f64)>> =
        kinds.iter().map(|&kind| Ok((kind, memory::bytes_per_entry(kind, node)?))).collect();
    Ok(report::memory(&results?))
}

// === impl Run ===

impl Run {
    /// Runs every workload, printing each row when it is done.
    fn compare(&self, base: Kind, candidate: Kind) -> anyhow::Result<Vec<Outcome>> {
        let (rounds, slice, node) = (self.rounds, Duration::from_millis(self.slice_ms), self.node.program()?);
        let plan = Plan { base, candidate, rounds, slice, node };
        println!("{}", report::HEADING);
        let mut outcomes = Vec::new();
        for workload in &self.workload {
            let outcome = pair::compare(&plan, workload).with_context(|| format!("workload {workload}"))?;
            println!("{}", report::row(&outcome));
            if let Some(path) = &self.json {
                append_json(path, &outcome).with_context(|| format!("write {}", path.display()))?;
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

// === impl Node ===

impl Node {
    fn program(&self) -> anyhow::Result<PathBuf> {
        match &self.node {
            Some(path) => Ok(path.clone()),
            None => Ok(std::env::current_exe()?.with_file_name("cache-node")),
        }
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
