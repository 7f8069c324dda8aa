//! What is measured inside one process: the benchmarks of `cache-node`, which print rows of goals themselves.

use std::{path::PathBuf, process::Command, str::FromStr};

use anyhow::{Context, ensure};

use crate::{
    gates::{Verdict, judge_cost},
    server::on_all_cores,
};

/// One benchmark and its program, as `name=path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inside {
    name: String,
    program: PathBuf,
}

/// What it printed.
pub(crate) struct Printed {
    pub(crate) command: String,
    pub(crate) text: String,
    pub(crate) rows: Vec<Row>,
}

/// A goal, measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) goal: String,
    pub(crate) what: String,
    pub(crate) measured: String,
    pub(crate) gate: String,
    pub(crate) target: String,
    pub(crate) verdict: String,
}

// === impl Inside ===

impl FromStr for Inside {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), program: path.into() })
            }
            _ => Err(format!("'{text}' is not name=path")),
        }
    }
}

impl Inside {
    /// Runs it to its end.
    ///
    /// # Errors
    /// If it can not be started, or fails.
    pub(crate) fn run(&self) -> anyhow::Result<Printed> {
        let output = on_all_cores(|| Command::new(&self.program).output())?;
        let output = output.with_context(|| format!("start {}", self.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{} failed: {}", self.name, String::from_utf8_lossy(&output.stderr));
        let command = format!("cargo bench -p cache-node --bench {}", self.name);
        Ok(Printed { command, rows: text.lines().filter_map(row).collect(), text })
    }
}

/// The row of a goal: its name, what was measured, the figure, gate and target.
fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.strip_prefix("| G")?.trim_end_matches(" |").split(" | ").collect();
    let [number, what, measured, gate, target] = cells[..] else { return None };
    let verdict = judge(measured, gate, target)?.to_string();
    let [what, measured, gate, target] = [what, measured, gate, target].map(str::to_owned);
    Some(Row { goal: format!("G{number}"), what, measured, gate, target, verdict })
}

/// The median against `<= gate` and `<= target`, or `>=`.
fn judge(measured: &str, gate: &str, target: &str) -> Option<Verdict> {
    let first = |text: &str| text.split(' ').next()?.parse::<f64>().ok();
    let bound = |text: &str, sign| first(text.strip_prefix(sign)?.trim());
    let median = first(measured)?;
    if let (Some(gate), Some(target)) = (bound(gate, "<="), bound(target, "<=")) {
        return Some(judge_cost(median, gate, target));
    }
    let (gate, target) = (bound(gate, ">=")?, bound(target, ">=")?);
    // More is better: compare reciprocals.
    Some(judge_cost(1.0 / median, 1.0 / gate, 1.0 / target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_of_a_goal_is_judged_by_its_own_gate_and_target() {
        let verdict = |line: &str| row(line).map(|row| row.verdict);
        let met = |text: &str| Some(text.to_owned());
        assert_eq!(verdict("| G9 | a hit | 0.88 [0.71 0.94] | <= 1.30 | <= 1.00 |"), met("target met"));
        assert_eq!(verdict("| G10 | overwrites | 1.08 [0.85 1.20] | >= 1.00 | >= 1.30 |"), met("gate met"));
        assert_eq!(verdict("| G10 | overwrites | 0.50 [0.45 0.60] | >= 1.00 | >= 1.30 |"), met("MISSED"));
        assert_eq!(verdict("| G15 | a hit | 2.15 [2.13 2.26] | <= 1.25 | <= 1.10 |"), met("MISSED"));
        assert_eq!(verdict("| G8 | overhead, ns | -0.6 [-5.5 0.9] | <= 20 | <= 12 |"), met("target met"));
    }

    #[test]
    fn what_is_no_row_of_a_goal_is_left_out() {
        for line in ["| | the layer alone | 1.03 | | |", "| G7 | 16 | GET | 334 | 268 | 1.24 |", "load 0.1", "|---|"] {
            assert_eq!(row(line), None, "{line}");
        }
    }

    #[test]
    fn a_benchmark_is_named_with_its_program() {
        let inside: Inside = "disk=target/x".parse().unwrap();
        assert_eq!((inside.name.as_str(), inside.program), ("disk", PathBuf::from("target/x")));
        assert!("disk".parse::<Inside>().unwrap_err().contains("name=path"));
    }
}
