//! What the clients do, and how they write down what they saw.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    clock::{Clock, Nanos},
    diary::Diary,
    history::{History, KeyId, NodeId, Outcome, WriteId},
    plan::{Asked, KEYS, MULTI, Plan},
    wire::{self, Connection, Reply},
};

/// Commands sent at once, at most.
const BATCH_MAX: usize = 24;
/// First values stored at once, at most.
const FIRST_MAX: usize = 100;
/// A client that finds no server tries again after this.
const RETRY: Duration = Duration::from_millis(5);

/// What all clients of a run share.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) stop: AtomicBool,
    /// Number of the next write.
    pub(crate) writes: AtomicU32,
    /// Reads that found a value so far, by node.
    pub(crate) found: Vec<AtomicU64>,
    /// Writes acknowledged as done so far.
    pub(crate) stored: AtomicUsize,
    /// The same of removals.
    pub(crate) removed: AtomicUsize,
    /// So many nodes a receipt must speak of. It says nothing of those that are silent, which may serve what they held
    /// where nodes do so while they are cut off.
    pub(crate) receipt_nodes_min: usize,
    pub(crate) plan: Plan,
}

/// One client: a thread, a connection, a history.
pub(crate) struct Client {
    shared: Arc<Shared>,
    node: NodeId,
    address: SocketAddr,
    random: SmallRng,
    /// Whether it makes changes, or only reads.
    changes: bool,
    diary: Diary,
    batch: Vec<u8>,
    asked: Vec<Asked>,
}

// === impl Shared ===

impl Shared {
    fn next_write(&self) -> WriteId {
        self.writes.fetch_add(1, Ordering::Relaxed)
    }
}

// === impl Client ===

impl Client {
    pub(crate) fn new(shared: Arc<Shared>, (node, address): (NodeId, SocketAddr), seed: u64, changes: bool) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        let diary = Diary::of(node);
        Self { shared, node, address, random, changes, diary, batch: Vec::new(), asked: Vec::new() }
    }

    /// Works until told to stop; what it saw.
    pub(crate) fn run(mut self) -> History {
        let started = self.shared.clock.nanos();
        let mut changes = 0;
        let mut fresh: Vec<KeyId> = if self.changes { self.own_keys().collect() } else { Vec::new() };
        while !self.stopped() {
            let Ok(mut connection) = Connection::open(self.address) else {
                thread::sleep(RETRY);
                continue;
            };
            while !self.stopped() {
                self.plan_batch(started, &mut changes);
                for key in fresh.drain(fresh.len().saturating_sub(FIRST_MAX)..) {
                    let write = self.shared.plan.write(&mut self.random, key, self.shared.next_write());
                    self.ask(write);
                }
                if self.exchange(&mut connection).is_err() {
                    break;
                }
            }
        }
        self.diary.history
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// The keys that this client gives their first values: every node has its share.
    fn own_keys(&self) -> impl Iterator<Item = KeyId> + use<> {
        let nodes = self.shared.found.len();
        (KeyId::from(self.node)..KEYS).step_by(nodes)
    }

    /// Reads, and as many changes as are due.
    fn plan_batch(&mut self, started: Nanos, changes: &mut u64) {
        self.batch.clear();
        self.asked.clear();
        for _ in 0..self.random.random_range(1..=BATCH_MAX / 2) {
            let read = self.shared.plan.read(&mut self.random);
            self.ask(read);
        }
        if !self.changes {
            return;
        }
        let elapsed = self.shared.clock.nanos() - started;
        let due = self.shared.plan.due(elapsed);
        // What a hung node kept it from doing is not made up for.
        *changes = (*changes).max(due.saturating_sub(BATCH_MAX as u64 / 2));
        while *changes < due {
            *changes += 1;
            let shared = &self.shared;
            let change = shared.plan.change(&mut self.random, || shared.next_write());
            self.ask(change);
        }
        // A client that only waits for its next change leaves the machine to the others.
        if self.asked.iter().all(Asked::is_read) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn ask(&mut self, asked: Asked) {
        let words = self.shared.plan.words(&asked);
        let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
        wire::command(&mut self.batch, &words);
        self.asked.push(asked);
    }

    /// Sends the batch, and writes down every answer with the moment it came.
    fn exchange(&mut self, connection: &mut Connection) -> io::Result<()> {
        let invoked = self.shared.clock.nanos();
        let sent = connection.send(&self.batch);
        let asked = std::mem::take(&mut self.asked);
        let mut broken = sent.err();
        for asked in &asked {
            if broken.is_none() {
                broken = self.note_answer(asked, invoked, connection).err();
            }
            if broken.is_some() {
                self.diary.silence(asked, invoked);
            }
        }
        self.asked = asked;
        broken.map_or(Ok(()), Err)
    }

    /// # Errors
    /// If the connection broke; nothing is written down then.
    fn note_answer(&mut self, asked: &Asked, invoked: Nanos, connection: &mut Connection) -> io::Result<()> {
        match asked {
            Asked::Read(key) => self.note_value(*key, invoked, connection),
            Asked::Reads(keys) => {
                match connection.reply()? {
                    Reply::Array(MULTI) => {}
                    Reply::Error(text) => {
                        self.diary.error(String::from_utf8_lossy(text).into_owned(), MULTI);
                        return Ok(());
                    }
                    other => return Err(io::Error::other(format!("{other:?} to MGET"))),
                }
                keys.iter().try_for_each(|key| self.note_value(*key, invoked, connection))
            }
            Asked::Write(..) | Asked::Removal(_) | Asked::Touch(_) | Asked::Flush | Asked::Receipt => {
                let outcome = match asked {
                    Asked::Receipt => receipt(connection, self.shared.receipt_nodes_min)?,
                    _ => outcome(&connection.reply()?),
                };
                match asked {
                    Asked::Write(..) if outcome == Outcome::Ok => self.shared.stored.fetch_add(1, Ordering::Relaxed),
                    Asked::Removal(_) if outcome == Outcome::Ok => self.shared.removed.fetch_add(1, Ordering::Relaxed),
                    _ => 0,
                };
                self.diary.change(asked, outcome, (invoked, self.shared.clock.nanos()));
                Ok(())
            }
        }
    }

    fn note_value(&mut self, key: KeyId, invoked: Nanos, connection: &mut Connection) -> io::Result<()> {
        let found = match connection.reply()? {
            Reply::Bulk(bytes) => Some(bytes),
            Reply::Null => None,
            Reply::Error(text) => {
                self.diary.error(String::from_utf8_lossy(text).into_owned(), 1);
                return Ok(());
            }
            other => return Err(io::Error::other(format!("{other:?} to a read"))),
        };
        self.diary.value(key, found, (invoked, self.shared.clock.nanos()));
        if found.is_some() {
            self.shared.found[usize::from(self.node)].fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Reads a receipt; whether all nodes, and so many of them, have carried out what was accepted before.
fn receipt(connection: &mut Connection, nodes_min: usize) -> io::Result<Outcome> {
    match connection.reply()? {
        Reply::Array(10) => {}
        other => return Ok(outcome(&other)),
    }
    let mut numbers = Vec::new();
    for _ in 0..10 {
        match connection.reply()? {
            Reply::Integer(number) => numbers.push(number),
            Reply::Array(names) => {
                for _ in 0..names {
                    connection.reply()?;
                }
            }
            _ => {}
        }
    }
    let [applied, nodes] = numbers[..] else { return Err(io::Error::other("a receipt has two numbers")) };
    Ok(if is_of_all(applied, nodes, nodes_min) { Outcome::Ok } else { Outcome::Unknown })
}

fn is_of_all(applied: i64, nodes: i64, nodes_min: usize) -> bool {
    applied == nodes && usize::try_from(nodes).is_ok_and(|nodes| nodes >= nodes_min)
}

fn outcome(reply: &Reply<'_>) -> Outcome {
    match reply {
        Reply::Simple(b"OK") | Reply::Integer(_) => Outcome::Ok,
        Reply::Simple(b"QUEUED") => Outcome::Queued,
        _ => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_promise_nothing_are_unknown() {
        assert_eq!(outcome(&Reply::Simple(b"OK")), Outcome::Ok);
        assert_eq!(outcome(&Reply::Integer(0)), Outcome::Ok);
        assert_eq!(outcome(&Reply::Simple(b"QUEUED")), Outcome::Queued);
        assert_eq!(outcome(&Reply::Error(b"ERR")), Outcome::Unknown);
        assert_eq!(outcome(&Reply::Null), Outcome::Unknown);
    }

    #[test]
    fn a_receipt_that_leaves_silent_nodes_out_counts_only_if_those_serve_nothing() {
        assert!(is_of_all(2, 2, 0) && is_of_all(3, 3, 3));
        assert!(!is_of_all(2, 3, 0) && !is_of_all(2, 2, 3));
    }
}
