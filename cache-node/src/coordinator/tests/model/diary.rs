//! What was done to each key last, for whoever has to find out how it came to a wrong answer.

use std::collections::{HashMap, VecDeque};

/// Kept of each key, and of what concerns all.
const KEPT: usize = 60;

#[derive(Debug, Default)]
pub(super) struct Diary {
    pages: HashMap<String, VecDeque<(u64, String)>>,
    all: VecDeque<(u64, String)>,
    noted: u64,
    /// Which operation is under way.
    pub(super) operation: u64,
}

// === impl Diary ===

impl Diary {
    pub(super) fn note(&mut self, name: &str, what: impl FnOnce() -> String) {
        let line = self.line(what());
        add(self.pages.entry(name.to_owned()).or_default(), line);
    }

    pub(super) fn note_all(&mut self, what: impl FnOnce() -> String) {
        let line = self.line(what());
        add(&mut self.all, line);
    }

    /// What concerned this key, in order.
    pub(super) fn of(&self, name: &str) -> String {
        let mut lines: Vec<_> = self.pages.get(name).into_iter().flatten().chain(&self.all).collect();
        lines.sort();
        lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    fn line(&mut self, what: String) -> (u64, String) {
        self.noted += 1;
        (self.noted, format!("{}: {what}", self.operation))
    }
}

fn add(page: &mut VecDeque<(u64, String)>, line: (u64, String)) {
    if page.len() == KEPT {
        page.pop_front();
    }
    page.push_back(line);
}
