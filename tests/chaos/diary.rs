//! How a client writes down what it asked for and what it was answered.

use crate::{
    clock::Nanos,
    history::{Flush, History, KeyId, NEVER, NodeId, Outcome, Read, Removal, Write},
    plan::{Asked, written_by},
};

/// When an operation was sent and when it was answered.
pub(crate) type Span = (Nanos, Nanos);

/// What one client saw of one node.
pub(crate) struct Diary {
    node: NodeId,
    pub(crate) history: History,
}

// === impl Diary ===

impl Diary {
    pub(crate) fn of(node: NodeId) -> Self {
        Self { node, history: History::default() }
    }

    /// A read was answered, with a value or with none.
    pub(crate) fn value(&mut self, key: KeyId, found: Option<&[u8]>, (invoked, returned): Span) {
        match found {
            Some(bytes) => {
                let write = written_by(key, bytes);
                self.history.reads.push(Read { key, write, node: self.node, invoked, returned });
            }
            None => self.history.absent += 1,
        }
    }

    /// So many reads were answered with an error.
    pub(crate) fn error(&mut self, text: String, reads: usize) {
        self.history.errors += reads as u64;
        self.history.error.get_or_insert(text);
    }

    /// What is no read was answered.
    pub(crate) fn change(&mut self, asked: &Asked, outcome: Outcome, (invoked, returned): Span) {
        let node = self.node;
        match *asked {
            Asked::Write(id, key, tag, life) => {
                let returned = if outcome == Outcome::Ok { returned } else { NEVER };
                self.history.writes.push(Write { id, key, tag, node, outcome, life, invoked, returned });
            }
            Asked::Removal(target) => {
                self.history.removals.push(Removal { target, node, outcome, invoked, returned });
            }
            Asked::Flush | Asked::Receipt if outcome == Outcome::Ok => {
                let everywhere = matches!(asked, Asked::Receipt);
                self.history.flushes.push(Flush { node, invoked, returned, everywhere });
            }
            // That a value stays what it is allows and forbids nothing.
            Asked::Touch(_) | Asked::Flush | Asked::Receipt | Asked::Read(_) | Asked::Reads(_) => {}
        }
    }

    /// The connection broke before the answer.
    pub(crate) fn silence(&mut self, asked: &Asked, invoked: Nanos) {
        match asked {
            Asked::Read(_) => self.history.unanswered += 1,
            Asked::Reads(keys) => self.history.unanswered += keys.len() as u64,
            Asked::Write(..) | Asked::Removal(_) | Asked::Touch(_) | Asked::Flush | Asked::Receipt => {
                self.change(asked, Outcome::Unknown, (invoked, NEVER));
            }
        }
    }
}
