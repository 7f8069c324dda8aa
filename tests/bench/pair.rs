//! The sandwich: base, candidate, base, candidate, …, base, in slices of half a second, because the machine's own
//! speed drifts by more than what is to be seen. Slices that another process disturbed are measured again.

use std::{io, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::{
    load::{Client, Slice},
    server::{Kind, Programs, Server, Usage},
    stats::{self, Quartiles},
    workload::{self, Stored, Workload},
};

/// A slice in which the server or the client waited longer than this share for other processes is void.
const FOREIGN_WAIT_MAX: f64 = 0.08;
/// Slices are repeated until at most so many times the wanted pairs were tried.
const ATTEMPTS_PER_PAIR: usize = 3;
/// Keys loaded per round trip before the run.
const LOAD_BATCH: usize = 64;

/// What to compare and how long.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The yardstick.
    pub(crate) base: Kind,
    /// What is measured against it.
    pub(crate) candidate: Kind,
    /// Undisturbed pairs wanted.
    pub(crate) rounds: usize,
    /// Length of one slice.
    pub(crate) slice: Duration,
    /// The programs.
    pub(crate) programs: Programs,
}

/// One slice as numbers.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Measure {
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    /// Server CPU, all threads.
    pub(crate) cpu_us_per_request: f64,
    /// Server CPU of the threads that serve clients.
    pub(crate) foreground_cpu_us_per_request: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// Share of the slice the server's busiest thread waited for other processes.
    pub(crate) server_wait_share: f64,
    /// The same for the client.
    pub(crate) client_wait_share: f64,
    /// Share of the slice the client was running; near 1 the client is the bottleneck.
    pub(crate) client_busy_share: f64,
}

/// What ratios are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Requests a second.
    Throughput,
    /// Server CPU a request.
    Cpu,
    /// The same, of the threads that serve clients.
    Foreground,
    /// Median latency.
    P50,
    /// 99 of 100 requests are at most as slow.
    P99,
    /// 999 of 1000 requests are at most as slow.
    P999,
}

/// One workload, compared.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) workload: Workload,
    pub(crate) base: Kind,
    pub(crate) candidate: Kind,
    /// Base and candidate in turn, beginning and ending with the base.
    pub(crate) slices: Vec<Measure>,
    /// Pairs wanted.
    pub(crate) rounds: usize,
}

/// A loaded server with its client.
struct Side {
    server: Server,
    client: Client,
}

/// Starts both servers, loads them and measures them in turn.
///
/// # Errors
/// If a server does not start, fails a request or loses a loaded key.
pub(crate) fn compare(plan: &Plan, workload: &Workload) -> anyhow::Result<Outcome> {
    let mut base = Side::open(plan.base, plan, workload)?;
    let mut candidate = Side::open(plan.candidate, plan, workload)?;
    // The first slices warm caches, buffers and the branch predictor, and are thrown away.
    base.measure(plan.slice)?;
    candidate.measure(plan.slice)?;
    let mut outcome = Outcome {
        workload: workload.clone(),
        base: plan.base,
        candidate: plan.candidate,
        slices: vec![base.measure(plan.slice)?],
        rounds: plan.rounds,
    };
    let mut attempts = 0;
    while outcome.calm_pairs() < plan.rounds && attempts < plan.rounds * ATTEMPTS_PER_PAIR {
        outcome.slices.push(candidate.measure(plan.slice)?);
        outcome.slices.push(base.measure(plan.slice)?);
        attempts += 1;
    }
    Ok(outcome)
}

/// Stores every key of the workload.
///
/// # Errors
/// If the server refuses one.
pub(crate) fn load_keys(server: &Server, keys: usize, value_bytes: usize, stored: Stored<'_>) -> io::Result<()> {
    let value = workload::value(value_bytes);
    let mut client = crate::resp::Blocking::open(server.address)?;
    let mut requests = Vec::new();
    for first in (0..keys).step_by(LOAD_BATCH) {
        let last = (first + LOAD_BATCH).min(keys);
        requests.clear();
        for index in first..last {
            stored.render(&mut requests, index, &value);
        }
        client.send_all(&requests, (last - first) as u64)?;
    }
    Ok(())
}

// === impl Side ===

impl Side {
    fn open(kind: Kind, plan: &Plan, workload: &Workload) -> anyhow::Result<Self> {
        let server = Server::start(kind, &plan.programs).with_context(|| format!("start {}", kind.label()))?;
        let stored = if kind.is_tagged() { Stored::Tagged } else { Stored::Plain };
        load_keys(&server, workload.keys, workload.value_bytes, stored)?;
        server.settle()?;
        let client = Client::open(server.address, workload, &Arc::new(workload.ring(stored)))?;
        Ok(Self { server, client })
    }

    fn measure(&mut self, length: Duration) -> anyhow::Result<Measure> {
        let (server, client) = (self.server.usage()?, Usage::of_client()?);
        let slice = self.client.run(length)?;
        let (server, client) = (self.server.usage()?.since(server), Usage::of_client()?.since(client));
        ensure!(slice.tally.nulls == 0, "the server lost {} of the loaded keys", slice.tally.nulls);
        Ok(Measure::of(&slice, server, client))
    }
}

// === impl Measure ===

impl Measure {
    fn of(slice: &Slice, server: Usage, client: Usage) -> Self {
        let requests = slice.tally.replies;
        let wall = slice.wall.as_secs_f64();
        let us_per_request = |cpu: Duration| cpu.as_secs_f64() * 1e6 / requests as f64;
        let latency_us = |quantile: f64| slice.latency.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            requests,
            requests_per_second: requests as f64 / wall,
            cpu_us_per_request: us_per_request(server.cpu),
            foreground_cpu_us_per_request: us_per_request(server.foreground_cpu),
            p50_us: latency_us(0.5),
            p99_us: latency_us(0.99),
            p999_us: latency_us(0.999),
            server_wait_share: server.foreign_wait().as_secs_f64() / wall,
            client_wait_share: client.foreign_wait().as_secs_f64() / wall,
            client_busy_share: client.cpu.as_secs_f64() / wall,
        }
    }

    fn calm(&self) -> bool {
        self.server_wait_share.max(self.client_wait_share) <= FOREIGN_WAIT_MAX
    }

    /// The number that a metric compares.
    pub(crate) fn get(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Throughput => self.requests_per_second,
            Metric::Cpu => self.cpu_us_per_request,
            Metric::Foreground => self.foreground_cpu_us_per_request,
            Metric::P50 => self.p50_us,
            Metric::P99 => self.p99_us,
            Metric::P999 => self.p999_us,
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// Pairs that no other process disturbed.
    pub(crate) fn calm_pairs(&self) -> usize {
        self.pairs(Metric::Throughput, true).iter().flatten().count()
    }

    /// Whether enough pairs were undisturbed to speak of a quiet machine.
    pub(crate) fn quiet(&self) -> bool {
        self.calm_pairs() >= self.rounds
    }

    /// Candidate over base: of the undisturbed pairs, or of all pairs if the machine was never quiet for long enough.
    pub(crate) fn ratio(&self, metric: Metric) -> Option<Quartiles> {
        let ratios: Vec<f64> = self.pairs(metric, self.quiet()).into_iter().flatten().collect();
        Quartiles::of(&ratios)
    }

    /// Median of what one side's slices read, and quartiles around it.
    pub(crate) fn absolute(&self, side: usize, metric: Metric) -> Option<Quartiles> {
        self.side(side, |slice| slice.get(metric))
    }

    /// The median share of its core that the client used in the candidate's slices.
    pub(crate) fn client_busy(&self) -> f64 {
        self.side(1, |slice| slice.client_busy_share).map_or(0.0, |quartiles| quartiles.median)
    }

    /// The median share of a slice that servers waited for other processes.
    pub(crate) fn server_wait(&self) -> f64 {
        let waits: Vec<f64> = self.slices.iter().map(|slice| slice.server_wait_share).collect();
        Quartiles::of(&waits).map_or(0.0, |quartiles| quartiles.median)
    }

    fn side(&self, side: usize, value: impl Fn(&Measure) -> f64) -> Option<Quartiles> {
        let values: Vec<f64> = self.slices.iter().skip(side).step_by(2).map(value).collect();
        Quartiles::of(&values)
    }

    fn pairs(&self, metric: Metric, calm_only: bool) -> Vec<Option<f64>> {
        let values: Vec<f64> = self.slices.iter().map(|slice| slice.get(metric)).collect();
        let calm: Vec<bool> = self.slices.iter().map(|slice| !calm_only || slice.calm()).collect();
        stats::sandwich(&values, &calm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(throughputs: &[f64], disturbed: &[usize], rounds: usize) -> Outcome {
        let slice = |(index, &requests_per_second): (usize, &f64)| Measure {
            requests_per_second,
            server_wait_share: if disturbed.contains(&index) { 0.5 } else { 0.01 },
            ..Measure::default()
        };
        Outcome {
            workload: "get-p1".parse().unwrap(),
            base: Kind::Redis,
            candidate: Kind::Node,
            slices: throughputs.iter().enumerate().map(slice).collect(),
            rounds,
        }
    }

    #[test]
    fn a_quiet_run_leaves_disturbed_pairs_out() {
        let outcome = outcome(&[1.0, 2.0, 1.0, 2.0, 1.0, 9.0, 1.0], &[5], 2);
        assert!(outcome.quiet());
        assert_eq!(outcome.ratio(Metric::Throughput).map(|ratio| (ratio.median, ratio.count)), Some((2.0, 2)));
    }

    #[test]
    fn a_run_without_enough_calm_pairs_says_so_and_shows_all() {
        let outcome = outcome(&[1.0, 2.0, 1.0, 4.0, 1.0], &[3], 2);
        assert!(!outcome.quiet());
        assert_eq!(outcome.ratio(Metric::Throughput).map(|ratio| (ratio.median, ratio.count)), Some((3.0, 2)));
    }

    #[test]
    fn sides_do_not_mix() {
        let outcome = outcome(&[1.0, 2.0, 1.0, 2.0, 1.0], &[], 2);
        assert_eq!(outcome.absolute(0, Metric::Throughput).unwrap().median, 1.0);
        assert_eq!(outcome.absolute(1, Metric::Throughput).unwrap().median, 2.0);
    }

    #[test]
    fn shares_and_costs_are_per_slice_and_per_request() {
        let slice = Slice {
            tally: crate::resp::Tally { replies: 1000, ..Default::default() },
            wall: Duration::from_millis(100),
            latency: hdrhistogram::Histogram::new(2).unwrap(),
        };
        let usage = |cpu_ms, wait_ms| Usage {
            cpu: Duration::from_millis(cpu_ms),
            busiest_cpu: Duration::from_millis(cpu_ms),
            busiest_wait: Duration::from_millis(wait_ms),
            ..Usage::default()
        };
        let measure = Measure::of(&slice, usage(5, 9), usage(50, 0));
        assert_eq!(measure.requests_per_second, 10_000.0);
        assert!((measure.cpu_us_per_request - 5.0).abs() < 1e-9);
        assert!((measure.server_wait_share - 0.09).abs() < 1e-9 && !measure.calm());
        assert!((measure.client_busy_share - 0.5).abs() < 1e-9);
    }
}
