//! One run: a fleet, clients on every node, faults in between, and a verdict.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::anyhow;
use clap::ValueEnum;
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

use crate::{
    clock::{Clock, nanos},
    fleet::{Fleet, Program, Shape},
    history::{History, NEVER, NodeId},
    judge::{Law, Verdict, judge},
    nemesis::Fault,
    plan::Plan,
    workload::{Client, Shared},
};

/// How long after an acknowledgement another node may serve what was there before: the lease of a node (3 s), and as
/// long as an answer may take on its way.
pub(crate) const BOUND: Duration = Duration::from_millis(3500);
/// How much later than its expiry a value may be served: as coarse as a node's clock is.
pub(crate) const LATE: Duration = Duration::from_millis(20);
/// A fault lasts longer than the bound, so that a read of what changed at its beginning is judged before its end.
const FAULT: Duration = Duration::from_millis(4800);
/// After a fault it is quiet for longer than the bound.
const QUIET: Duration = Duration::from_millis(4200);
/// Before the first fault there are to be values.
const WARM_UP: Duration = Duration::from_millis(1500);
/// For how long nodes serve what they hold while they are cut off, in the runs in which they do: so short that it is over
/// before the fault is, so that the judge sees its end; or so long that a node that is killed is started again within it.
const SERVE_STALE_FOR: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// Changes a second on each node.
const CHANGES_PER_SECOND: u32 = 400;
/// Changes of each kind without which a run shows nothing.
const ACKNOWLEDGED_MIN: usize = 100;
/// Cycles that are added to a run which has acknowledged too little.
const MORE_CYCLES_MAX: u32 = 4;
/// Reads with a value that every node must have answered after the last fault.
pub(crate) const FOUND_MIN: u64 = 200;

/// When a node acknowledges a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Writes {
    /// Once it has its place in the log.
    Through,
    /// Once it is queued.
    Behind,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) program: Program,
    pub(crate) nodes: usize,
    /// Each cycle takes one of them.
    pub(crate) faults: Vec<Fault>,
    /// Each cycle takes two of them at once.
    pub(crate) pairs: bool,
    pub(crate) cycles: u32,
    /// Whether a write is acknowledged once it has its place in the log; none is left to chance.
    pub(crate) write_through: Option<bool>,
    /// For how long a fenced node serves what it holds, zero for not at all; none is left to chance.
    pub(crate) serve_stale_for: Option<Duration>,
    pub(crate) seed: u64,
}

/// What came of it.
pub(crate) struct Ended {
    pub(crate) history: History,
    pub(crate) verdict: Verdict,
    /// What else was not as it must be, such as a node that did not come back into service.
    pub(crate) complaints: Vec<String>,
}

/// Waits for real time to pass: real programs do something meanwhile.
pub(crate) fn rest(span: Duration) {
    thread::sleep(span);
}

/// Runs it.
///
/// # Errors
/// If the fleet does not come up or a fault can not be brought about.
pub(crate) fn run(setting: &Setting) -> anyhow::Result<Ended> {
    let mut random = SmallRng::seed_from_u64(setting.seed);
    let shape = setting.shape(&mut random);
    let clock = Clock::start();
    let mut fleet = Fleet::start(&shape, clock)?;
    let shared = Arc::new(Shared {
        clock,
        stop: AtomicBool::new(false),
        writes: AtomicU32::new(0),
        found: (0..setting.nodes).map(|_| AtomicU64::new(0)).collect(),
        stored: AtomicUsize::new(0),
        removed: AtomicUsize::new(0),
        receipt_nodes_min: if shape.serve_stale_for.is_some() { setting.nodes } else { 0 },
        plan: setting.plan(&shape),
    });
    let clients = start_clients(&fleet, &shared, &mut random);
    let outcome = torment(setting, &mut fleet, &shared, &mut random).map(|()| wait_for_service(&shared));
    shared.stop.store(true, Ordering::Relaxed);
    let mut history = History::default();
    for client in clients {
        history.absorb(client.join().map_err(|_| anyhow!("a client panicked"))?);
    }
    history.writes.sort_unstable_by_key(|write| write.id);
    history.starts.append(&mut fleet.starts);
    history.notes.append(&mut fleet.notes);
    drop(fleet);
    let mut complaints = complaints(&history);
    complaints.extend(outcome?.iter().map(|node| format!("node {node} did not come back into service")));
    let verdict = judge(&history, setting.law(&shape));
    Ok(Ended { history, verdict, complaints })
}

/// One client on each node that only reads, as fast as it can, and one that also changes.
fn start_clients(fleet: &Fleet, shared: &Arc<Shared>, random: &mut SmallRng) -> Vec<JoinHandle<History>> {
    let mut clients = Vec::new();
    for (node, member) in fleet.members.iter().enumerate() {
        for changes in [true, false] {
            let place = (node as NodeId, member.resp);
            let client = Client::new(Arc::clone(shared), place, random.random(), changes);
            clients.push(thread::spawn(move || client.run()));
        }
    }
    clients
}

/// Brings the faults about, one cycle after the other, and goes on until there is something to be wrong about: a fleet
/// whose Redis was killed may acknowledge little.
fn torment(setting: &Setting, fleet: &mut Fleet, shared: &Shared, random: &mut SmallRng) -> anyhow::Result<()> {
    rest(WARM_UP);
    let enough = |count: &AtomicUsize| count.load(Ordering::Relaxed) >= ACKNOWLEDGED_MIN;
    for cycle in 0..setting.cycles + MORE_CYCLES_MAX {
        if cycle >= setting.cycles && enough(&shared.stored) && enough(&shared.removed) {
            break;
        }
        let mut active = Vec::new();
        for fault in setting.choose(random) {
            if !active.is_empty() {
                rest(Duration::from_millis(random.random_range(0..1500)));
            }
            active.push(fault.begin(fleet, random)?);
        }
        rest(FAULT);
        for fault in active {
            fault.end(fleet)?;
        }
        rest(QUIET);
    }
    Ok(())
}

/// Waits until every node has found values again; the nodes that did not within reason.
fn wait_for_service(shared: &Shared) -> Vec<usize> {
    let found = |node: usize| shared.found[node].load(Ordering::Relaxed);
    let before: Vec<u64> = (0..shared.found.len()).map(found).collect();
    let silent = || (0..before.len()).filter(|node| found(*node) < before[*node] + FOUND_MIN).collect::<Vec<_>>();
    for _ in 0..300 {
        if silent().is_empty() {
            break;
        }
        rest(Duration::from_millis(100));
    }
    silent()
}

/// What a history shows that no single read does.
pub(crate) fn complaints(history: &History) -> Vec<String> {
    let mut complaints = Vec::new();
    if let Some(error) = &history.error {
        complaints.push(format!("P8: {} reads were answered with an error, such as {error}", history.errors));
    }
    let (stored, removed) = history.acknowledged();
    if stored.min(removed) < ACKNOWLEDGED_MIN {
        complaints
            .push(format!("only {stored} writes and {removed} removals were acknowledged: too few to show anything"));
    }
    complaints
}

// === impl Setting ===

impl Setting {
    fn shape(&self, random: &mut SmallRng) -> Shape {
        // Drawn in any case, so that the choices after it are the same ones.
        let drawn = random.random_ratio(3, 4);
        Shape {
            nodes: self.nodes,
            program: self.program.clone(),
            write_through: matches!(self.program, Program::Plain) || self.write_through.unwrap_or(drawn),
            disk_first: random.random(),
            small_disk: self.faults.contains(&Fault::DiskFull) && matches!(self.program, Program::CacheNode(_)),
            clocks: self.faults.contains(&Fault::Clock),
            redis_clock: self.faults.contains(&Fault::RedisClock),
            serve_stale_for: self.serves_stale_for(),
        }
    }

    /// For how long a fenced node of this run serves what it holds; none if not at all. That is so in two runs of three,
    /// because the judge has to allow what such a node may serve. Drawn by itself, from seed and name: no other choice
    /// depends on it, and the runs of one seed differ.
    fn serves_stale_for(&self) -> Option<Duration> {
        let name = self.name();
        let seed = name.bytes().fold(self.seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut random = SmallRng::seed_from_u64(seed);
        let drawn = if random.random_ratio(1, 3) { SERVE_STALE_FOR.choose(&mut random).copied() } else { None };
        match (&self.program, self.serve_stale_for) {
            (Program::Plain, _) => None,
            (Program::CacheNode(_), None) => drawn,
            (Program::CacheNode(_), Some(span)) => (!span.is_zero()).then_some(span),
        }
    }

    fn plan(&self, shape: &Shape) -> Plan {
        let own_commands = matches!(self.program, Program::CacheNode(_));
        Plan {
            changes_per_second: CHANGES_PER_SECOND,
            own_commands,
            flushes: own_commands && !shape.write_through,
            receipts: own_commands,
        }
    }

    fn law(&self, shape: &Shape) -> Law {
        let late = if shape.clocks { NEVER } else { nanos(LATE) };
        let stale = shape.serve_stale_for.map_or(0, nanos);
        Law { bound: nanos(BOUND), stale, write_through: shape.write_through, late }
    }

    fn choose(&self, random: &mut SmallRng) -> Vec<Fault> {
        let Some(&first) = self.faults.choose(random) else { return Vec::new() };
        let others: Vec<Fault> = self.faults.iter().copied().filter(|other| first.goes_with(*other)).collect();
        let second = if self.pairs { others.choose(random).copied() } else { None };
        std::iter::once(first).chain(second).collect()
    }

    /// Its name in reports.
    pub(crate) fn name(&self) -> String {
        match self.faults.as_slice() {
            _ if self.pairs => "pairs".to_owned(),
            [fault] => fault.name(),
            _ => "mixed".to_owned(),
        }
    }

    /// Its name, and what its nodes do while they are cut off.
    pub(crate) fn title(&self) -> String {
        let name = self.name();
        match (&self.program, self.serves_stale_for()) {
            (Program::Plain, _) => name,
            (Program::CacheNode(_), None) => format!("{name:<12} Miss"),
            (Program::CacheNode(_), Some(span)) => format!("{name:<12} ServeStale {}s", span.as_secs()),
        }
    }
}

// === impl Ended ===

impl Ended {
    /// Whether every promise was kept, and there was something to be wrong about.
    pub(crate) fn is_good(&self) -> bool {
        self.verdict.violations.is_empty() && self.complaints.is_empty()
    }

    /// The figures in one line.
    pub(crate) fn figures(&self) -> String {
        let History { reads, unanswered, removals, writes, .. } = &self.history;
        let (stored, done) = self.history.acknowledged();
        let share = 100 * reads.len() as u64 / self.verdict.checked.max(1);
        format!(
            "{checked:>8} reads checked ({share} % found a value, {unanswered} unanswered), {stored} of {all} writes and {done} of \
             {removals} removals acknowledged",
            checked = self.verdict.checked,
            all = writes.len(),
            removals = removals.len(),
        )
    }
}
