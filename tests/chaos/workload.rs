//! What the clients do, and how they write down what they saw.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    clock::{Clock, Nanos, nanos},
    history::{FOREIGN, Flush, History, KeyId, NEVER, NodeId, Outcome, Read, Removal, TagId, Target, Write, WriteId},
    wire::{self, Connection, Reply},
};

/// Keys in all. Each is changed every few seconds, so that there are values to be wrong about.
pub(crate) const KEYS: KeyId = 4096;
/// The first of them are changed all the time.
const BUSY_KEYS: KeyId = 64;
/// Tags in all; a key's tag is its number modulo this.
const TAGS: TagId = 32;
/// Every so manyth value is long enough to be stored apart by the disk layer.
const LONG_ONE_IN: WriteId = 37;
/// Commands sent at once, at most.
const BATCH_MAX: usize = 24;
/// First values stored at once, at most.
const FIRST_MAX: usize = 100;
/// Keys of one MGET.
const MULTI: usize = 24;
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
    pub(crate) plan: Plan,
}

/// What kinds of operations there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Changes a second of each client that makes changes.
    pub(crate) changes_per_second: u32,
    /// Whether there are tags, clears and flushes: what a plain cache does not have.
    pub(crate) own_commands: bool,
    /// Whether clients flush, so that the judge knows where queued writes stand.
    pub(crate) flushes: bool,
}

/// One client: a thread, a connection, a history.
pub(crate) struct Client {
    shared: Arc<Shared>,
    node: NodeId,
    address: SocketAddr,
    random: SmallRng,
    /// Whether it makes changes, or only reads.
    changes: bool,
    history: History,
    batch: Vec<u8>,
    asked: Vec<Asked>,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Read(KeyId),
    Reads([KeyId; MULTI]),
    Write(WriteId, KeyId, Option<TagId>, Nanos),
    Removal(Target),
    Flush,
}

/// The name of a key.
pub(crate) fn key(id: KeyId) -> String {
    format!("k{id}")
}

/// The name of a tag.
pub(crate) fn tag(id: TagId) -> String {
    format!("t{id}")
}

/// What this write stores: it names itself and its key, and its end shows that nothing is missing.
fn value(id: WriteId, key: KeyId) -> String {
    let length = if id.is_multiple_of(LONG_ONE_IN) { 6000 } else { 90 };
    format!("{id}:{key}:{:x<length$}.", "")
}

/// Which write stored this under the key.
fn written_by(key: KeyId, bytes: &[u8]) -> WriteId {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let id = text.split(':').next().and_then(|digits| digits.parse().ok()).unwrap_or(FOREIGN);
    // All of it must be as stored: a value that is torn or mixed was written by nobody.
    if value(id, key) == text { id } else { FOREIGN }
}

// === impl Client ===

impl Client {
    pub(crate) fn new(shared: Arc<Shared>, (node, address): (NodeId, SocketAddr), seed: u64, changes: bool) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        let history = History::default();
        Self { shared, node, address, random, changes, history, batch: Vec::new(), asked: Vec::new() }
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
                    self.plan_write(key);
                }
                if self.exchange(&mut connection).is_err() {
                    break;
                }
            }
        }
        self.history
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
            self.plan_read();
        }
        if !self.changes {
            return;
        }
        let elapsed = self.shared.clock.nanos() - started;
        let due = elapsed / (1_000_000_000 / u64::from(self.shared.plan.changes_per_second));
        // What a hung node kept it from doing is not made up for.
        *changes = (*changes).max(due.saturating_sub(BATCH_MAX as u64 / 2));
        while *changes < due {
            *changes += 1;
            self.plan_change();
        }
        // A client that only waits for its next change leaves the machine to the others.
        if self.asked.iter().all(|asked| matches!(asked, Asked::Read(_) | Asked::Reads(_))) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn plan_read(&mut self) {
        if self.random.random_ratio(1, 2) {
            let key_id = self.any_key();
            wire::command(&mut self.batch, &[b"GET", key(key_id).as_bytes()]);
            self.asked.push(Asked::Read(key_id));
            return;
        }
        let mut keys = [0; MULTI];
        keys.iter_mut().for_each(|key| *key = self.any_key());
        let names: Vec<String> = keys.iter().map(|id| key(*id)).collect();
        let words: Vec<&[u8]> = std::iter::once(&b"MGET"[..]).chain(names.iter().map(|name| name.as_bytes())).collect();
        wire::command(&mut self.batch, &words);
        self.asked.push(Asked::Reads(keys));
    }

    fn plan_change(&mut self) {
        let own = self.shared.plan.own_commands;
        match self.random.random_range(0..40_000) {
            0..28_000 => {
                let key = self.any_key();
                self.plan_write(key);
            }
            28_000..28_050 if own => {
                let id = self.random.random_range(0..TAGS);
                wire::command(&mut self.batch, &[b"TC.INVALIDATE", tag(id).as_bytes()]);
                self.asked.push(Asked::Removal(Target::Tag(id)));
            }
            28_050..28_054 if own => {
                wire::command(&mut self.batch, &[b"FLUSHALL"]);
                self.asked.push(Asked::Removal(Target::All));
            }
            28_060..28_100 if self.shared.plan.flushes => {
                wire::command(&mut self.batch, &[b"TC.FLUSH"]);
                self.asked.push(Asked::Flush);
            }
            _ => {
                let id = self.any_key();
                // Which tells whether all nodes hear of it.
                let verb: &[u8] = if self.shared.plan.own_commands { b"TC.DEL" } else { b"DEL" };
                wire::command(&mut self.batch, &[verb, key(id).as_bytes()]);
                self.asked.push(Asked::Removal(Target::Key(id)));
            }
        }
    }

    fn plan_write(&mut self, key_id: KeyId) {
        let id = self.shared.writes.fetch_add(1, Ordering::Relaxed);
        let tag_id = (self.shared.plan.own_commands && self.random.random_ratio(1, 2)).then_some(key_id % TAGS);
        let life_ms = if self.random.random_ratio(1, 4) { self.random.random_range(500..8000) } else { 0 };
        let (name, value, millis) = (key(key_id), value(id, key_id), life_ms.to_string());
        let tag_name = tag_id.map(tag);
        let mut words: Vec<&[u8]> = vec![b"SET", name.as_bytes(), value.as_bytes()];
        if let Some(tag) = &tag_name {
            words[0] = b"TC.SET";
            words.extend_from_slice(&[b"TAGS", b"1", tag.as_bytes()]);
        }
        if life_ms > 0 {
            words.extend_from_slice(&[b"PX", millis.as_bytes()]);
        }
        wire::command(&mut self.batch, &words);
        self.asked.push(Asked::Write(id, key_id, tag_id, nanos(Duration::from_millis(life_ms))));
    }

    fn any_key(&mut self) -> KeyId {
        let busy = self.random.random_ratio(1, 16);
        self.random.random_range(0..if busy { BUSY_KEYS } else { KEYS })
    }

    /// Sends the batch, and writes down every answer with the moment it came.
    fn exchange(&mut self, connection: &mut Connection) -> io::Result<()> {
        let invoked = self.shared.clock.nanos();
        let sent = connection.send(&self.batch);
        let asked = std::mem::take(&mut self.asked);
        let mut broken = sent.err();
        for asked in &asked {
            if broken.is_none() {
                broken = self.note_answer(*asked, invoked, connection).err();
            }
            if broken.is_some() {
                self.note_silence(*asked, invoked);
            }
        }
        self.asked = asked;
        broken.map_or(Ok(()), Err)
    }

    /// # Errors
    /// If the connection broke; nothing is written down then.
    fn note_answer(&mut self, asked: Asked, invoked: Nanos, connection: &mut Connection) -> io::Result<()> {
        match asked {
            Asked::Read(key) => self.note_value(key, invoked, connection),
            Asked::Reads(keys) => {
                match connection.reply()? {
                    Reply::Array(MULTI) => {}
                    Reply::Error(text) => {
                        let error = String::from_utf8_lossy(text).into_owned();
                        self.note_error(error, MULTI);
                        return Ok(());
                    }
                    other => return Err(io::Error::other(format!("{other:?} to MGET"))),
                }
                keys.into_iter().try_for_each(|key| self.note_value(key, invoked, connection))
            }
            Asked::Write(id, key, tag, life) => {
                let outcome = outcome(&connection.reply()?);
                self.note_write((id, key, tag, life), outcome, (invoked, self.shared.clock.nanos()));
                Ok(())
            }
            Asked::Removal(target) => {
                let outcome = outcome(&connection.reply()?);
                self.note_removal(target, outcome, (invoked, self.shared.clock.nanos()));
                Ok(())
            }
            Asked::Flush => {
                if outcome(&connection.reply()?) == Outcome::Ok {
                    let (node, returned) = (self.node, self.shared.clock.nanos());
                    self.history.flushes.push(Flush { node, invoked, returned });
                }
                Ok(())
            }
        }
    }

    /// The connection broke before the answer.
    fn note_silence(&mut self, asked: Asked, invoked: Nanos) {
        match asked {
            Asked::Read(_) => self.history.unanswered += 1,
            Asked::Reads(keys) => self.history.unanswered += keys.len() as u64,
            Asked::Write(id, key, tag, life) => {
                self.note_write((id, key, tag, life), Outcome::Unknown, (invoked, NEVER));
            }
            Asked::Removal(target) => self.note_removal(target, Outcome::Unknown, (invoked, NEVER)),
            Asked::Flush => {}
        }
    }

    fn note_value(&mut self, key: KeyId, invoked: Nanos, connection: &mut Connection) -> io::Result<()> {
        match connection.reply()? {
            Reply::Bulk(bytes) => {
                let write = written_by(key, bytes);
                let returned = self.shared.clock.nanos();
                self.history.reads.push(Read { key, write, node: self.node, invoked, returned });
                self.shared.found[usize::from(self.node)].fetch_add(1, Ordering::Relaxed);
            }
            Reply::Null => self.history.absent += 1,
            Reply::Error(text) => {
                let error = String::from_utf8_lossy(text).into_owned();
                self.note_error(error, 1);
            }
            other => return Err(io::Error::other(format!("{other:?} to a read"))),
        }
        Ok(())
    }

    fn note_error(&mut self, error: String, reads: usize) {
        self.history.errors += reads as u64;
        self.history.error.get_or_insert(error);
    }

    fn note_write(
        &mut self,
        (id, key, tag, life): (WriteId, KeyId, Option<TagId>, Nanos),
        outcome: Outcome,
        (invoked, returned): (Nanos, Nanos),
    ) {
        let returned = if outcome == Outcome::Ok { returned } else { NEVER };
        self.history.writes.push(Write { id, key, tag, node: self.node, outcome, life, invoked, returned });
    }

    fn note_removal(&mut self, target: Target, outcome: Outcome, (invoked, returned): (Nanos, Nanos)) {
        self.history.removals.push(Removal { target, node: self.node, outcome, invoked, returned });
    }
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
    fn value_names_its_write_and_its_key() {
        for id in [1, LONG_ONE_IN, 4_000_000_000] {
            assert_eq!(written_by(7, value(id, 7).as_bytes()), id);
        }
    }

    #[test]
    fn value_that_is_torn_or_under_the_wrong_key_is_foreign() {
        let whole = value(5, 7);
        for wrong in [&whole[..whole.len() - 1], "", "5", "5:7:x.", "x:7:."] {
            assert_eq!(written_by(7, wrong.as_bytes()), FOREIGN, "{wrong}");
        }
        assert_eq!(written_by(8, whole.as_bytes()), FOREIGN);
    }

    #[test]
    fn answers_that_promise_nothing_are_unknown() {
        assert_eq!(outcome(&Reply::Simple(b"OK")), Outcome::Ok);
        assert_eq!(outcome(&Reply::Integer(0)), Outcome::Ok);
        assert_eq!(outcome(&Reply::Simple(b"QUEUED")), Outcome::Queued);
        assert_eq!(outcome(&Reply::Error(b"ERR")), Outcome::Unknown);
        assert_eq!(outcome(&Reply::Null), Outcome::Unknown);
    }
}
