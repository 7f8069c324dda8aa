//! A stock client, the crate `redis`, which talks to one node until its standard input ends and then writes down what it
//! saw. It is for fleets that somebody else runs and torments, such as one in pods.

use std::{
    io::Read as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use clap::Args;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use redis::{InfoDict, Value};

use crate::{
    clock::{Clock, Nanos},
    diary::Diary,
    history::{NodeId, Outcome, WriteId},
    plan::{Asked, Plan},
    records,
};

/// An answer that takes longer is given up, and the connection with it.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(2500);
/// Between two batches; the machine belongs to the fleet.
const PAUSE: Duration = Duration::from_millis(25);
/// A client that finds no server tries again after this.
const RETRY: Duration = Duration::from_millis(100);
/// Reads of one batch, at most.
const READS_MAX: usize = 12;
/// Changes of one batch, at most: what a hung node kept it from doing is not made up for.
const CHANGES_MAX: u64 = 12;

/// One client of one node.
#[derive(Args)]
pub(crate) struct StockClient {
    /// Number of the node in the history.
    #[arg(long)]
    node: NodeId,
    /// What the node calls itself. Nobody else is talked to, whatever the host's name leads to.
    #[arg(long)]
    name: String,
    /// Name of its host, which is looked up for every connection.
    #[arg(long)]
    host: String,
    #[arg(long, default_value_t = 6379)]
    port: u16,
    /// Place of this client among all, from 0: its writes have this number and every `clients`th after it.
    #[arg(long)]
    place: WriteId,
    /// How many clients there are.
    #[arg(long)]
    clients: WriteId,
    /// Changes a second.
    #[arg(long, default_value_t = 200)]
    changes: u32,
    #[arg(long)]
    seed: u64,
    /// Where the history is written.
    file: PathBuf,
}

/// A client at work.
struct Work {
    plan: Plan,
    clock: Clock,
    random: SmallRng,
    diary: Diary,
    next: WriteId,
    step: WriteId,
    started: Nanos,
    changes: u64,
}

// === impl StockClient ===

impl StockClient {
    /// Works until the standard input ends.
    ///
    /// # Errors
    /// If the history can not be written.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            told.store(true, Ordering::Relaxed);
        });
        let clock = Clock::of_machine();
        let mut work = Work {
            plan: Plan { changes_per_second: self.changes, own_commands: true, flushes: true, receipts: false },
            clock,
            random: SmallRng::seed_from_u64(self.seed),
            diary: Diary::of(self.node),
            next: self.place,
            step: self.clients,
            started: clock.nanos(),
            changes: 0,
        };
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut connection) = self.connect() else {
                thread::sleep(RETRY);
                continue;
            };
            while !stop.load(Ordering::Relaxed) && work.exchange(&mut connection).is_ok() {
                thread::sleep(PAUSE);
            }
        }
        records::write(&work.diary.history, &self.file)
    }

    fn connect(&self) -> redis::RedisResult<redis::Connection> {
        let client = redis::Client::open((self.host.as_str(), self.port))?;
        let mut connection = client.get_connection_with_timeout(ANSWER_TIMEOUT)?;
        connection.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        connection.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let server: InfoDict = redis::cmd("INFO").arg("server").query(&mut connection)?;
        if server.get::<String>("tieredcache_node").is_some_and(|name| name == self.name) {
            Ok(connection)
        } else {
            Err((redis::ErrorKind::Client, "another node answers").into())
        }
    }
}

// === impl Work ===

impl Work {
    fn batch(&mut self) -> Vec<Asked> {
        let reads = self.random.random_range(1..=READS_MAX);
        let mut batch: Vec<Asked> = (0..reads).map(|_| self.plan.read(&mut self.random)).collect();
        let due = self.plan.due(self.clock.nanos() - self.started);
        self.changes = self.changes.max(due.saturating_sub(CHANGES_MAX));
        while self.changes < due {
            self.changes += 1;
            let Self { plan, random, next, step, .. } = self;
            batch.push(plan.change(random, || {
                let number = *next;
                *next += *step;
                number
            }));
        }
        batch
    }

    /// Sends a batch and writes down what came of it.
    fn exchange(&mut self, connection: &mut redis::Connection) -> redis::RedisResult<()> {
        let batch = self.batch();
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for asked in &batch {
            for (place, word) in self.plan.words(asked).iter().enumerate() {
                if place == 0 {
                    pipe.cmd(word)
                } else {
                    pipe.arg(word)
                };
            }
        }
        let invoked = self.clock.nanos();
        let answers = pipe.query::<Vec<Value>>(connection);
        let span = (invoked, self.clock.nanos());
        match answers {
            Ok(answers) => batch.iter().zip(&answers).for_each(|(asked, answer)| self.note(asked, answer, span)),
            Err(error) => {
                batch.iter().for_each(|asked| self.diary.silence(asked, invoked));
                return Err(error);
            }
        }
        Ok(())
    }

    fn note(&mut self, asked: &Asked, answer: &Value, span: (Nanos, Nanos)) {
        match (asked, answer) {
            (Asked::Read(key), Value::BulkString(bytes)) => self.diary.value(*key, Some(bytes), span),
            (Asked::Read(key), Value::Nil) => self.diary.value(*key, None, span),
            (Asked::Reads(keys), Value::Array(values)) if values.len() == keys.len() => {
                for (key, value) in keys.iter().zip(values) {
                    self.note(&Asked::Read(*key), value, span);
                }
            }
            (Asked::Read(_), other) => self.diary.error(format!("{other:?}"), 1),
            (Asked::Reads(keys), other) => self.diary.error(format!("{other:?}"), keys.len()),
            (asked, answer) => self.diary.change(asked, outcome(answer), span),
        }
    }
}

fn outcome(answer: &Value) -> Outcome {
    match answer {
        Value::Okay | Value::Int(_) => Outcome::Ok,
        Value::SimpleString(text) if text == "QUEUED" => Outcome::Queued,
        _ => Outcome::Unknown,
    }
}
