//! The commands: one match that runs each on the coordinator.
//!
//! A command runs in two steps. [`Commands::run_now`] answers all that memory and the write queue can answer, without
//! awaiting and, for a hit, without allocating. What needs I/O comes back as [`Later`], owned, and is finished by
//! [`Commands::run_later`]; the connection loop keeps the order of the replies.

mod change;
mod error;
mod introspect;
mod later;
mod lease;
mod options;
mod own;
mod read;
mod session;
mod slow_log;
mod table;
mod tracking;
mod values;
mod wait;
mod write;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backplane::Listener,
    clock::Clock,
    context::{OperationContext, Origin},
    coordinator::{Answers, Coordinator},
    entry::Key,
    layer::Matching,
    protocol::{Arguments, Replies},
    slow_log::SlowLog,
};

use self::{later::One, values::Values};
pub use self::{
    later::{Later, Ran},
    session::Session,
    table::{Group, Keys, SPECS, Spec, Verb},
    tracking::{Held, Near, Reason, Table as NearCaches},
};

/// The version of Redis that clients are told. Replies are matched with those of 7.0; from 7.4 on redis-py is willing to
/// keep values of its own.
pub const REDIS_VERSION: &str = "7.4.0";

/// Bytes of replies after which a command with many of them pauses, to be sent before it goes on.
const REPLY_BYTES_PAUSE: usize = 256 * 1024;

/// Names that INFO and HELLO give this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The cache that the node belongs to.
    pub cache: String,
    /// The node itself.
    pub node: String,
    /// Port that clients connect to.
    pub port: u16,
}

/// What the server around the commands has counted, for INFO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// Connections open now.
    pub connections: u64,
    /// Connections that may be open.
    pub connections_max: u64,
    /// Connections accepted since the start.
    pub connections_accepted: u64,
    /// Connections turned away since the start.
    pub connections_rejected: u64,
    /// Commands run since the start.
    pub commands: u64,
    /// Bytes received since the start.
    pub bytes_in: u64,
    /// Bytes sent since the start.
    pub bytes_out: u64,
    /// Errors replied since the start.
    pub errors: u64,
}

/// How the commands learn [`ServerFacts`] when somebody asks.
pub type FactsSource = Arc<dyn Fn() -> ServerFacts + Send + Sync>;

/// Runs commands; shared by all connections.
pub struct Commands {
    coordinator: Arc<Coordinator>,
    clock: Clock,
    settings: Settings,
    facts: FactsSource,
    started: Instant,
    answers: Arc<Answers>,
    near_caches: Arc<NearCaches>,
    values: Values,
}

/// What commands need to know besides the data.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names that INFO and HELLO give this node.
    pub identity: Identity,
    /// Largest value, in bytes.
    pub value_bytes_max: usize,
    /// How long a command may take in all layers together.
    pub request_timeout: Duration,
    /// Where slow commands are kept, for SLOWLOG.
    pub slow_log: Arc<SlowLog>,
    /// Whether each read that leaves memory is followed by itself: there are spans, or a slow log that keeps quick commands.
    pub follows_reads: bool,
    /// By how much of its life a value may expire earlier than asked, in percent.
    pub ttl_jitter_percent: u8,
    /// How long a negative entry holds if the client does not say.
    pub negative_ttl: Duration,
    /// How much is remembered of what clients hold in caches of their own.
    pub tracked_items_max: usize,
}

/// One command of one client.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The time that holds for the whole batch.
    pub cx: &'a OperationContext,
    /// Which command.
    pub verb: Verb,
    /// Its arguments, the name first.
    pub args: Arguments<'a>,
    /// Whether the client may hold what it reads.
    pub tracked: bool,
}

/// What running a command came to.
#[must_use]
#[derive(Debug)]
pub enum Step {
    /// The reply is written.
    Done,
    /// The reply, if any, is written, and the connection ends after it.
    Close,
    /// It needs I/O. Nothing of the reply is written, or only its beginning.
    Later(Later),
}

// === impl Commands ===

impl Commands {
    /// Commands on these layers.
    pub fn new(coordinator: Arc<Coordinator>, clock: Clock, settings: Settings, facts: FactsSource) -> Self {
        let started = clock.monotonic();
        let near_caches = Arc::new(NearCaches::open(settings.tracked_items_max, clock.clone()));
        coordinator.backplane().listen(Arc::clone(&near_caches) as Arc<dyn Listener>);
        let values = Values::new(settings.value_bytes_max);
        let answers = Arc::clone(coordinator.answers());
        Self { coordinator, clock, settings, facts, started, answers, near_caches, values }
    }

    /// The facts about a batch of commands that begins now.
    pub fn context(&self) -> OperationContext {
        let begun = self.clock.monotonic();
        OperationContext {
            id: self.coordinator.number(),
            origin: Origin::Client,
            now: self.clock.now(),
            deadline: begun + self.settings.request_timeout,
            trust: self.coordinator.backplane().trust(begun),
        }
    }

    /// Which command the arguments name.
    ///
    /// # Errors
    /// What to do instead, with the reply written: there is no such command.
    pub fn resolve(&self, args: &Arguments<'_>, out: &mut Replies) -> Result<Verb, Step> {
        let Some(verb) = Verb::find(args.name()) else {
            // A browser made to talk to this port: end it before the body of its request is taken for commands.
            if ["post", "host:"].iter().any(|word| args.name().eq_ignore_ascii_case(word.as_bytes())) {
                return Err(Step::Close);
            }
            error::unknown_command(out, args);
            return Err(Step::Done);
        };
        Ok(verb)
    }

    /// Runs the command as far as it goes without I/O.
    pub fn run_now(&self, session: &mut Session, call: &Call<'_>, out: &mut Replies) -> Step {
        if !call.verb.spec().takes(call.args.len()) {
            error::arity(out, call.verb.spec());
            return Step::Done;
        }
        if session.tracking.is_some() { self.run_tracked(session, call, out) } else { self.run(session, call, out) }
    }

    /// Runs the command of a client that keeps what it reads.
    #[cold]
    fn run_tracked(&self, session: &mut Session, call: &Call<'_>, out: &mut Replies) -> Step {
        if let Some(tracking) = &mut session.tracking {
            tracking.remember(call);
        }
        let step = self.run(session, &Call { tracked: true, ..*call }, out);
        if let Some(tracking) = session.tracking.as_mut().filter(|_| call.verb != Verb::Client) {
            tracking.end_command();
        }
        match step {
            Step::Later(later) => Step::Later(later.of(session.near())),
            step => step,
        }
    }

    #[inline]
    fn run(&self, session: &mut Session, call: &Call<'_>, out: &mut Replies) -> Step {
        match call.verb {
            Verb::Get => self.read(call, One::Value, out),
            Verb::Set => self.set(call, out),
            Verb::Mget => self.mget(call, out),
            Verb::Mset => self.mset(call, out),
            Verb::Strlen => self.read(call, One::Length, out),
            Verb::Exists => self.exists(call, out),
            Verb::Ttl => self.read(call, One::LifeSeconds, out),
            Verb::Pttl => self.read(call, One::LifeMillis, out),
            Verb::Del | Verb::Unlink | Verb::TcDel => self.del(call, out),
            Verb::Expire | Verb::Pexpire | Verb::Expireat | Verb::Pexpireat => self.expire(call, out),
            Verb::Persist => self.persist(call, out),
            Verb::Incr | Verb::Decr | Verb::Incrby | Verb::Decrby => self.add(call, out),
            Verb::Append => self.append(call, out),
            Verb::Flushall | Verb::Flushdb => self.flush(call, out),
            Verb::Dbsize => self.dbsize(out),
            Verb::Ping => self.ping(call, out),
            Verb::Echo => {
                out.bulk(call.args.at(1));
                Step::Done
            }
            Verb::Hello => session.hello(call, out),
            Verb::Auth => {
                out.error(error::NO_PASSWORD);
                Step::Done
            }
            Verb::Select => self.select(call, out),
            Verb::Quit => {
                out.simple("OK");
                Step::Close
            }
            Verb::Reset => session.reset(out),
            Verb::Client => self.client(session, call, out),
            Verb::Command => introspect::command(call, out),
            Verb::Config => self.config(call, out),
            Verb::Info => self.info(call, out),
            Verb::Slowlog => self.slow_log(call, out),
            Verb::Time => self.time(call, out),
            Verb::TcSet => self.own_set(call, out),
            Verb::TcTags => self.read(call, One::Tags, out),
            Verb::TcInvalidate => self.remove_tagged(call, Matching::Any, out),
            Verb::TcInvalidateall => self.remove_tagged(call, Matching::All, out),
            Verb::TcGetlease => self.get_lease(call, out),
            Verb::TcFill => self.fill(call, out),
            Verb::TcExplain => self.explain(call, out),
            Verb::TcLayers => self.layers(out),
            Verb::TcFlush => Step::Later(Later::flush()),
            Verb::TcWait => self.wait(call, out),
        }
    }

    /// The argument at `index` as a key, or the error written.
    fn key<'a>(&self, call: &Call<'a>, index: usize, out: &mut Replies) -> Option<&'a [u8]> {
        let key = call.args.at(index);
        match Key::check(key) {
            Ok(()) => Some(key),
            Err(error) => {
                out.error(&format!("ERR {error}"));
                None
            }
        }
    }

    /// Whether all arguments from `first` on, every `step`th, are keys; otherwise the error is written.
    fn are_keys(&self, call: &Call<'_>, step: usize, out: &mut Replies) -> bool {
        let wrong = call.args.from(1).step_by(step).find_map(|key| Key::check(key).err());
        if let Some(error) = wrong {
            out.error(&format!("ERR {error}"));
        }
        wrong.is_none()
    }

    /// Whether a value is short enough; otherwise the error is written.
    fn is_value(&self, value: &[u8], out: &mut Replies) -> bool {
        let bytes_max = self.settings.value_bytes_max;
        if value.len() > bytes_max {
            out.error(&format!("ERR value has {} bytes; the limit is {bytes_max}", value.len()));
        }
        self.values.met(value.len().min(bytes_max));
        value.len() <= bytes_max
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commands").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Bytes that were checked to be a key.
fn owned(key: &[u8]) -> Key {
    Key::new(key.to_vec()).expect("keys are checked before a command runs")
}
