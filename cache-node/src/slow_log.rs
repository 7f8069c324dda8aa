//! The slow log: the last commands that took long, who sent them, and which layer took the time.
//!
//! The form is that of Redis 7 (`SLOWLOG GET`). What was done stands behind the arguments of the command as one more, a
//! remark that begins with `# `: every client can show a list of texts, and Redis puts words of its own into it, too.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    clock::UnixMillis,
    context::{Origin, Trail, TrailStep},
};

/// Arguments that an entry keeps, as in Redis; one more says how many are left out.
const ARGS_MAX: usize = 32;

/// Bytes of one argument that an entry keeps, as in Redis; a text says how many are left out.
const ARG_BYTES_MAX: usize = 128;

/// What stands in place of passwords, as in Redis.
const REDACTED: &[u8] = b"(redacted)";

/// What stands in place of steps if memory, queue and what RocksDB has in memory were enough.
const WITHOUT_IO: &str = "without I/O";

/// Below this threshold every command is told by itself, and everything that it asked.
const THRESHOLD_COARSE: Duration = Duration::from_millis(1);

/// The log of one node: in memory, bounded, newest first.
#[derive(Debug)]
pub struct SlowLog {
    options: SlowLogOptions,
    ring: Mutex<Ring>,
}

/// How the log is bounded. `config.rs` fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowLogOptions {
    /// Commands that take at least so long are kept. Zero keeps all.
    pub threshold: Duration,
    /// Entries kept; the oldest gives way. Zero keeps none.
    pub length_max: usize,
}

#[derive(Debug, Default)]
struct Ring {
    next_id: u64,
    entries: VecDeque<SlowEntry>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowEntry {
    /// Counts up from the start of the node, also over a reset.
    pub id: u64,
    /// What took long.
    pub command: SlowCommand,
}

/// One command and how long it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowCommand {
    /// When it was over.
    pub at: UnixMillis,
    /// How long it took, without the time its client took to send it and to take the reply.
    pub took: Duration,
    /// What was asked.
    pub args: SlowArgs,
    /// Who asked.
    pub client: SlowClient,
    /// What was done.
    pub work: SlowWork,
}

/// Who sent a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowClient {
    /// Where the client is.
    pub address: SocketAddr,
    /// The name it gave itself, or nothing.
    pub name: String,
}

/// What was done in the time that an entry tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowWork {
    /// The number of the operation, as in spans.
    pub operation: u64,
    /// Who set it in motion.
    pub origin: Origin,
    /// How long it had, from its beginning to its deadline.
    pub deadline: Duration,
    /// The layers that were asked, or nothing if memory was enough.
    pub trail: Trail,
    /// How many commands of the pipeline the time was for; 1 if for this alone.
    pub commands: u32,
}

/// The arguments of a command, the name first, shortened as in Redis; in one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowArgs {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

// === impl SlowLogOptions ===

impl SlowLogOptions {
    /// Whether also quick commands are of interest.
    pub const fn is_fine(&self) -> bool {
        self.threshold.as_nanos() < THRESHOLD_COARSE.as_nanos()
    }
}

// === impl SlowLog ===

impl SlowLog {
    /// An empty log.
    pub fn new(options: SlowLogOptions) -> Self {
        Self { options, ring: Mutex::default() }
    }

    /// Its bounds.
    pub const fn options(&self) -> SlowLogOptions {
        self.options
    }

    /// Whether a command that took so long is kept.
    #[inline]
    pub const fn keeps(&self, took: Duration) -> bool {
        took.as_nanos() >= self.options.threshold.as_nanos() && self.options.length_max > 0
    }

    /// Keeps a command, if it took long enough.
    pub fn record(&self, command: SlowCommand) {
        if !self.keeps(command.took) {
            return;
        }
        let mut ring = self.ring();
        let id = ring.next_id;
        ring.next_id += 1;
        ring.entries.truncate(self.options.length_max - 1);
        ring.entries.push_front(SlowEntry { id, command });
    }

    /// The newest entries, newest first.
    pub fn newest(&self, count: usize) -> Vec<SlowEntry> {
        self.ring().entries.iter().take(count).cloned().collect()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.ring().entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries recorded since the start of the node, forgotten ones included.
    pub fn recorded(&self) -> u64 {
        self.ring().next_id
    }

    /// Forgets all entries.
    pub fn reset(&self) {
        self.ring().entries.clear();
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl SlowWork ===

impl SlowWork {
    /// For people, as the last argument of an entry:
    /// `# operation 17 of a client, deadline 1000 ms: redis miss 12034us; disk hit 80us`.
    pub fn remark(&self) -> String {
        let Self { operation, origin, deadline, trail, commands: _ } = self;
        let nothing = trail.steps().next().is_none().then(|| WITHOUT_IO.to_owned());
        let done: Vec<String> = nothing.into_iter().chain(self.lines()).collect();
        let (origin, deadline_ms, done) = (origin.label(), deadline.as_millis(), done.join("; "));
        format!("# operation {operation} of a {origin}, deadline {deadline_ms} ms: {done}")
    }

    /// For people, a line for each step: `disk hit 12034us`, and what else the time was for.
    pub fn lines(&self) -> Vec<String> {
        let steps = self.trail.steps().map(|step| {
            let TrailStep { part, outcome, keys, hits, failed, took } = step;
            let keys = match (keys, outcome.is_of_write()) {
                (1, _) => String::new(),
                (keys, true) => format!(" {keys} keys"),
                (keys, false) if *failed > 0 => format!(" {hits} of {keys} keys, {failed} failed"),
                (keys, false) => format!(" {hits} of {keys} keys"),
            };
            format!("{part} {}{keys} {}us", outcome.label(), took.as_micros())
        });
        let shared = (self.commands > 1).then(|| format!("one of {} commands run together", self.commands));
        steps.chain(shared).collect()
    }
}

// === impl SlowArgs ===

impl SlowArgs {
    /// Shortens the arguments and copies what is left.
    pub fn of<'a>(args: impl ExactSizeIterator<Item = &'a [u8]>) -> Self {
        let count = args.len();
        let (kept, left_out) = if count > ARGS_MAX { (ARGS_MAX - 1, count - ARGS_MAX + 1) } else { (count, 0) };
        let mut copy = Self { bytes: Vec::new(), ends: Vec::with_capacity(kept + 1) };
        let mut secret = false;
        let mut greeting = false;
        for (index, arg) in args.take(kept).enumerate() {
            let arg = if secret { REDACTED } else { arg };
            greeting |= index == 0 && arg.eq_ignore_ascii_case(b"hello");
            secret |= (index == 0 || greeting) && arg.eq_ignore_ascii_case(b"auth");
            let shown = &arg[..arg.len().min(ARG_BYTES_MAX)];
            copy.bytes.extend_from_slice(shown);
            if shown.len() < arg.len() {
                copy.bytes.extend_from_slice(format!("... ({} more bytes)", arg.len() - shown.len()).as_bytes());
            }
            copy.ends.push(copy.bytes.len());
        }
        if left_out > 0 {
            copy.bytes.extend_from_slice(format!("... ({left_out} more arguments)").as_bytes());
            copy.ends.push(copy.bytes.len());
        }
        copy
    }

    /// Number of arguments that are left.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// What is left, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Outcome;

    fn nothing() -> SlowWork {
        let (origin, deadline) = (Origin::Client, Duration::from_millis(1500));
        SlowWork { operation: 7, origin, deadline, trail: Trail::default(), commands: 1 }
    }

    fn log(threshold_ms: u64, length_max: usize) -> SlowLog {
        SlowLog::new(SlowLogOptions { threshold: Duration::from_millis(threshold_ms), length_max })
    }

    fn client() -> SlowClient {
        SlowClient { address: ([127, 0, 0, 1], 5000).into(), name: "worker".to_owned() }
    }

    fn record(log: &SlowLog, name: &'static str, took_ms: u64) {
        let args = SlowArgs::of([name.as_bytes()].into_iter());
        let took = Duration::from_millis(took_ms);
        log.record(SlowCommand { at: UnixMillis(1), took, args, client: client(), work: nothing() });
    }

    fn shown(args: &SlowArgs) -> Vec<String> {
        args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
    }

    #[test]
    fn only_what_takes_as_long_as_the_threshold_is_kept() {
        let log = log(10, 8);
        record(&log, "fast", 9);
        record(&log, "slow", 10);
        assert_eq!(log.newest(8).iter().map(|entry| shown(&entry.command.args)).collect::<Vec<_>>(), [["slow"]]);
    }

    #[test]
    fn the_oldest_gives_way_and_ids_go_on_after_a_reset() {
        let log = log(0, 2);
        ["a", "b", "c"].into_iter().for_each(|name| record(&log, name, 0));
        let ids = || log.newest(9).iter().map(|entry| entry.id).collect::<Vec<_>>();
        assert_eq!(ids(), [2, 1]);
        log.reset();
        assert!(log.is_empty());
        record(&log, "d", 0);
        assert_eq!(ids(), [3]);
        assert_eq!(log.recorded(), 4);
    }

    #[test]
    fn a_log_without_length_keeps_nothing() {
        let log = log(0, 0);
        record(&log, "a", 1000);
        assert!(log.is_empty());
    }

    #[test]
    fn arguments_are_shortened_as_in_redis() {
        let long = vec![b'x'; 200];
        let args = SlowArgs::of([b"SET".as_slice(), b"key", &long].into_iter());
        assert_eq!(shown(&args), ["SET", "key", &format!("{}... (72 more bytes)", "x".repeat(128))]);
        let many = vec![b"k".as_slice(); 40];
        let args = SlowArgs::of(many.into_iter());
        assert_eq!(args.len(), 32);
        assert_eq!(shown(&args)[31], "... (9 more arguments)");
        let exact = SlowArgs::of(vec![b"k".as_slice(); 32].into_iter());
        assert_eq!(shown(&exact), vec!["k"; 32]);
    }

    #[test]
    fn passwords_are_not_kept() {
        let args = |words: &[&'static str]| shown(&SlowArgs::of(words.iter().map(|word| word.as_bytes())));
        assert_eq!(args(&["auth", "me", "secret"]), ["auth", "(redacted)", "(redacted)"]);
        assert_eq!(args(&["HELLO", "3", "AUTH", "me", "secret"]), ["HELLO", "3", "AUTH", "(redacted)", "(redacted)"]);
        assert_eq!(args(&["GET", "auth"]), ["GET", "auth"]);
    }

    #[test]
    fn the_trail_tells_part_outcome_and_time() {
        let mut work = SlowWork { commands: 3, ..nothing() };
        let took = Duration::from_micros(12_034);
        work.trail.add(TrailStep { part: "redis", outcome: Outcome::Failed, keys: 1, hits: 0, failed: 1, took });
        work.trail.add(TrailStep { part: "disk", outcome: Outcome::Hit, keys: 5, hits: 2, failed: 1, took });
        work.trail.add(TrailStep { part: "disk", outcome: Outcome::Written, keys: 5, hits: 0, failed: 0, took });
        assert_eq!(
            work.lines(),
            [
                "redis failed 12034us",
                "disk hit 2 of 5 keys, 1 failed 12034us",
                "disk written 5 keys 12034us",
                "one of 3 commands run together"
            ]
        );
    }

    #[test]
    fn the_remark_tells_number_origin_deadline_and_what_was_done() {
        let mut work = nothing();
        assert_eq!(work.remark(), "# operation 7 of a client, deadline 1500 ms: without I/O");
        work.commands = 16;
        assert!(work.remark().ends_with(" ms: without I/O; one of 16 commands run together"), "{}", work.remark());
        work = SlowWork { origin: Origin::Replay, ..nothing() };
        for (part, outcome, micros) in [("redis", Outcome::Miss, 12_034), ("disk", Outcome::Hit, 80)] {
            let took = Duration::from_micros(micros);
            work.trail.add(TrailStep { part, outcome, keys: 1, hits: 0, failed: 0, took });
        }
        let told = "# operation 7 of a replay, deadline 1500 ms: redis miss 12034us; disk hit 80us";
        assert_eq!(work.remark(), told);
    }
}
