//! Tables for people: Markdown that reads as well in a terminal.

use std::{fmt::Write, fs, path::Path, time::Duration};

use crate::{
    gates::{self, Goal, Judged},
    inside::{Printed, Row},
    invalidate::{self, Removals},
    memory,
    pair::{Metric, Outcome},
    server::Kind,
    stats::Quartiles,
};

/// Above this share of its core the client is the bottleneck and throughput is a lower bound.
const CLIENT_BOUND: f64 = 0.97;
const COLUMNS: [Metric; 6] =
    [Metric::Throughput, Metric::Cpu, Metric::Foreground, Metric::P50, Metric::P99, Metric::P999];

/// The heading of [`row`].
pub(crate) const HEADING: &str = "\
| workload | compared | base: requests/s; CPU us; p99 us | throughput | CPU/request | clients' threads | p50 | p99 | p999 | pairs | client busy | machine |
|---|---|---|---|---|---|---|---|---|---|---|---|";

/// One workload as a row: ratios as median and, in brackets, quartiles.
pub(crate) fn row(outcome: &Outcome) -> String {
    let base = |metric| outcome.absolute(0, metric).map_or(f64::NAN, |quartiles| quartiles.median);
    let mut row = format!(
        "| {} | {} / {} | {}; {:.2}; {:.0} |",
        outcome.workload,
        outcome.candidate.label(),
        outcome.base.label(),
        thousands(base(Metric::Throughput)),
        base(Metric::Cpu),
        base(Metric::P99),
    );
    for metric in COLUMNS {
        let _ = write!(row, " {} |", outcome.ratio(metric).map_or_else(|| "-".to_owned(), ratio_cell));
    }
    let pairs = outcome.ratio(Metric::Throughput).map_or(0, |ratio| ratio.count);
    let busy = outcome.client_busy();
    let bound = if busy > CLIENT_BOUND && outcome.workload.rate.is_none() { ", the limit" } else { "" };
    let machine = if outcome.quiet() { "quiet" } else { "contended" };
    let wait = outcome.server_wait() * 100.0;
    let _ = write!(row, " {pairs} | {:.0} %{bound} | {machine}, wait {wait:.1} % |", busy * 100.0);
    row
}

/// The judgement of every goal that was measured.
pub(crate) fn goals(judged: &[Judged<'_>]) -> String {
    let mut table = "| goal | workload | compared | ratio | gate | target | control | verdict |\n\
                     |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for Judged { goal, outcome, control } in judged {
        let verdict = goal.judge(outcome, control.ratio(goal.metric).map(|ratio| ratio.median));
        let cell = |outcome: &Outcome| outcome.ratio(goal.metric).map_or_else(|| "-".to_owned(), ratio_cell);
        let (metric, sign) = metric_name(goal);
        let _ = writeln!(
            table,
            "| {} | {} {metric} | {} / {} | {} | {sign} {:.2} | {sign} {:.2} | {} | {verdict} |",
            goal.id,
            goal.workload,
            goal.candidate.label(),
            goal.base.label(),
            cell(outcome),
            goal.gate,
            goal.target,
            cell(control)
        );
    }
    table
}

/// A goal that was measured beside another server.
pub(crate) fn goal_row(Judged { goal, outcome, control }: &Judged<'_>) -> Row {
    let (metric, sign) = metric_name(goal);
    let verdict = goal.judge(outcome, control.ratio(goal.metric).map(|ratio| ratio.median));
    let cell = |outcome: &Outcome| outcome.ratio(goal.metric).map_or_else(|| "-".to_owned(), ratio_cell);
    Row {
        goal: goal.id.to_owned(),
        what: format!("{} {metric}, {} of {}", goal.workload, goal.candidate.label(), goal.base.label()),
        measured: format!("{}; control {}", cell(outcome), cell(control)),
        gate: format!("{sign} {:.2}", goal.gate),
        target: format!("{sign} {:.2}", goal.target),
        verdict: verdict.to_string(),
    }
}

/// Removals by tag of one server.
pub(crate) fn removal_row(removals: &Removals) -> Row {
    let at = |share| removals.took.value_at_quantile(share) as f64 / 1e3;
    let meanwhile = if removals.under_writes { "40 000 SETs a second" } else { "nothing else" };
    Row {
        goal: "removal by tag".to_owned(),
        what: format!("among a million tagged entries, p99, {}, {meanwhile}", removals.kind.label()),
        measured: format!("{:.0} us (p50 {:.0} us)", at(0.99), at(0.5)),
        gate: "< 1000 us".to_owned(),
        target: "< 1000 us".to_owned(),
        verdict: if is_quick(removals) { "target met" } else { "MISSED" }.to_owned(),
    }
}

/// G11, if there is something to compare.
pub(crate) fn memory_row(results: &[(Kind, f64)]) -> Option<Row> {
    let [(_, base), (kind, bytes), ..] = results else { return None };
    Some(Row {
        goal: "G11".to_owned(),
        what: format!("resident memory an entry, {} of redis", kind.label()),
        measured: format!("{:.2}", bytes / base),
        gate: format!("<= {:.2}", gates::MEMORY_GATE),
        target: format!("<= {:.2}", gates::MEMORY_TARGET),
        verdict: gates::judge_cost(bytes / base, gates::MEMORY_GATE, gates::MEMORY_TARGET).to_string(),
    })
}

/// Where a goal stands in the table: by its number, then what has none.
pub(crate) fn place(goal: &str) -> u32 {
    let number = goal.strip_prefix('G').and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.unwrap_or(u32::MAX)
}

/// One table of goals, each with its command.
pub(crate) fn rows(rows: &[(Row, String)]) -> String {
    let mut table =
        "| goal | what | measured | gate | target | reading | command |\n|---|---|---|---|---|---|---|\n".to_owned();
    for (Row { goal, what, measured, gate, target, verdict }, command) in rows {
        let _ = writeln!(table, "| {goal} | {what} | {measured} | {gate} | {target} | {verdict} | `{command}` |");
    }
    table
}

/// What a benchmark inside one process printed.
pub(crate) fn printed(printed: &Printed) -> String {
    format!("`{}`\n\n```text\n{}\n```\n\n", printed.command, printed.text.trim_end())
}

/// Memory per entry of some kinds against the first.
pub(crate) fn memory(results: &[(Kind, f64)]) -> String {
    let mut table = format!(
        "Resident bytes an entry, {} entries of 16-byte keys and 100-byte values, each with a time to live:\n\n\
         | server | bytes an entry | ratio | G11 (gate {:.2}, target {:.2}) |\n|---|---|---|---|\n",
        thousands(memory::ENTRIES as f64),
        gates::MEMORY_GATE,
        gates::MEMORY_TARGET,
    );
    let base = results.first().map_or(f64::NAN, |(_, bytes)| *bytes);
    for (index, (kind, bytes)) in results.iter().enumerate() {
        let verdict = match index {
            0 => "yardstick".to_owned(),
            _ => gates::judge_cost(bytes / base, gates::MEMORY_GATE, gates::MEMORY_TARGET).to_string(),
        };
        let _ = writeln!(table, "| {} | {bytes:.0} | {:.2} | {verdict} |", kind.label(), bytes / base);
    }
    table
}

/// Whether a removal by tag takes as long as is promised at most.
pub(crate) fn is_quick(removals: &Removals) -> bool {
    Duration::from_nanos(removals.took.value_at_quantile(0.99)) < invalidate::LIMIT
}

/// How long removals by tag took.
pub(crate) fn removals(measured: &[Removals]) -> String {
    let mut table = "| server | while | removals | p50, us | p99, us | longest, us | 99 of 100 below 1 ms |\n\
                     |---|---|---|---|---|---|---|\n"
        .to_owned();
    for removals in measured {
        let at = |share| removals.took.value_at_quantile(share) as f64 / 1e3;
        let _ = writeln!(
            table,
            "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {} |",
            removals.kind.label(),
            if removals.under_writes { "40 000 SETs a second" } else { "nothing else" },
            removals.took.len(),
            at(0.5),
            at(0.99),
            removals.took.max() as f64 / 1e3,
            if is_quick(removals) { "yes" } else { "**no**" },
        );
    }
    table
}

/// What the figures were measured on: no names, only what explains them.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let cpu = read("/proc/cpuinfo");
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    format!(
        "{} (family {}, model {}), {cores} cores; {} of memory; Linux {}; load average {}",
        after(&cpu, "model name"),
        after(&cpu, "cpu family"),
        after(&cpu, "model\t"),
        after(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
    )
}

fn metric_name(goal: &Goal) -> (&'static str, &'static str) {
    match goal.metric {
        Metric::Throughput => ("throughput", ">="),
        Metric::Cpu => ("CPU/request", "<="),
        Metric::Foreground => ("CPU/request of clients' threads", "<="),
        Metric::P50 => ("p50", "<="),
        Metric::P99 => ("p99", "<="),
        Metric::P999 => ("p999", "<="),
    }
}

fn ratio_cell(ratio: Quartiles) -> String {
    format!("{:.2} [{:.2}-{:.2}]", ratio.median, ratio.q1, ratio.q3)
}

/// `1234567` as `1 234 567`.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_from_the_right() {
        assert_eq!(thousands(1_234_567.4), "1 234 567");
        assert_eq!(thousands(12.0), "12");
        assert_eq!(thousands(100.0), "100");
    }

    #[test]
    fn goals_stand_in_the_order_of_their_numbers() {
        let mut goals = ["removal by tag", "G17", "G3 ops", "G11", "L2 dead, L1 hit", "G3 CPU"];
        goals.sort_by_key(|goal| place(goal));
        assert_eq!(goals, ["G3 ops", "G3 CPU", "G11", "G17", "removal by tag", "L2 dead, L1 hit"]);
    }

    #[test]
    fn memory_is_judged_against_the_first() {
        let table = memory(&[(Kind::Redis, 200.0), (Kind::Node, 160.0), (Kind::NodeDisk, 300.0)]);
        assert!(table.contains("| node (L1) | 160 | 0.80 | target met |"), "{table}");
        assert!(table.contains("| node (L1+L3) | 300 | 1.50 | MISSED |"), "{table}");
    }

    #[test]
    fn the_machine_is_described_by_its_kernel_and_cores() {
        let text = machine();
        assert!(text.contains(" cores; ") && !text.contains("unknown"), "{text}");
    }
}
