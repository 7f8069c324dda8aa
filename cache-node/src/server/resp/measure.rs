//! How long commands take, measured from outside: one look at the clock per batch, and one more for each command that
//! is heavy or needs I/O.
//!
//! Commands that memory answers are cheaper than a look at the clock would be, so those that run together are timed
//! together: for the client, too, each of them took as long as all, because the replies come together.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::KeyValue;

use crate::{
    clock::Clock,
    command::{Group, Keys, Ran, SPECS, Session, Spec, Verb},
    context::{OperationContext, Origin, Outcome, Trail},
    metrics::Histogram,
    protocol::Arguments,
    slow_log::{SlowArgs, SlowCommand, SlowLog, SlowWork},
    telemetry::{Operation, Spans},
};

/// From this size on a request is timed alone: its own work shows.
const HEAVY_BYTES: usize = 4096;

/// What a command does, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Reads keys.
    Read,
    /// Changes keys.
    Write,
    /// Anything else.
    Admin,
}

const CLASSES: [Class; SPECS.len()] = {
    let mut classes = [Class::Admin; SPECS.len()];
    let mut index = 0;
    while index < classes.len() {
        classes[index] = Class::of_spec(&SPECS[index]);
        index += 1;
    }
    classes
};

/// Where measurements go.
#[derive(Debug)]
pub struct Meter {
    slow_log: Arc<SlowLog>,
    /// What each operation has until its deadline.
    request_timeout: Duration,
    clock: Clock,
    /// By [`Class`].
    latency: [Histogram; 3],
    spans: Option<Arc<Spans>>,
}

/// The time of one batch of commands.
#[derive(Debug)]
pub(super) struct Lap {
    begun: Instant,
    /// Commands run since then, by class.
    counts: [u32; 3],
    /// The last of them, in the input of the batch.
    last: Range<usize>,
}

/// Commands whose replies need I/O, as the slow log tells them.
#[derive(Debug)]
pub(super) struct Waiting {
    /// At least one; more if they share the round trip. Without arguments if the slow log keeps nothing.
    commands: Vec<(Verb, Option<SlowArgs>)>,
    took: Duration,
    /// Of the first round trip; those that follow it belong to it.
    operation: Option<u64>,
    trail: Trail,
}

// === impl Class ===

impl Class {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// That of a command.
    #[inline]
    pub const fn of(verb: Verb) -> Self {
        CLASSES[verb as usize]
    }

    /// The value of the metric label `class`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    const fn of_spec(spec: &Spec) -> Self {
        let flags = spec.flags.as_bytes();
        let writes = flags.len() >= 5
            && flags[0] == b'w'
            && flags[1] == b'r'
            && flags[2] == b'i'
            && flags[3] == b't'
            && flags[4] == b'e';
        match (writes, spec.keys, spec.group) {
            (true, _, _) => Self::Write,
            (false, Keys::None, _) | (false, _, Group::Server) => Self::Admin,
            _ => Self::Read,
        }
    }
}

// === impl Meter ===

impl Meter {
    pub(super) fn new(
        slow_log: Arc<SlowLog>,
        request_timeout: Duration,
        spans: Option<Arc<Spans>>,
        clock: Clock,
    ) -> Self {
        Self { slow_log, request_timeout, clock, latency: Default::default(), spans }
    }

    /// How long commands took, for metrics.
    pub fn latency(&self, class: Class) -> &Histogram {
        &self.latency[class as usize]
    }

    /// The slow log, for metrics.
    pub fn slow_log(&self) -> &SlowLog {
        &self.slow_log
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.monotonic()
    }

    /// Whether a request of so many bytes is timed alone.
    #[inline]
    pub(super) fn is_heavy(&self, bytes: usize) -> bool {
        bytes >= HEAVY_BYTES || self.slow_log.options().is_fine()
    }

    /// Ends a lap. If it was slow, `args` tells the last of its commands.
    pub(super) fn end_lap(
        &self,
        lap: &mut Lap,
        cx: &OperationContext,
        session: &Session,
        args: impl FnOnce(Range<usize>) -> SlowArgs,
    ) {
        let commands = lap.counts.iter().sum();
        if commands == 0 {
            return;
        }
        let now = self.now();
        let took = now.saturating_duration_since(lap.begun);
        for (histogram, count) in self.latency.iter().zip(lap.counts) {
            if count > 0 {
                histogram.observe(took, u64::from(count));
            }
        }
        if self.slow_log.keeps(took) {
            let work = self.work(cx.id, Trail::default(), commands);
            let args = args(lap.last.clone());
            self.slow_log.record(SlowCommand { at: cx.now, took, args, client: session.slow_client(), work });
        }
        *lap = Lap::begin(now);
    }

    /// A command that needs I/O begins to wait.
    pub(super) fn wait(&self, verb: Verb, args: &Arguments<'_>) -> Box<Waiting> {
        let (commands, took, trail) = (Vec::with_capacity(1), Duration::ZERO, Trail::default());
        let mut waiting = Box::new(Waiting { commands, took, operation: None, trail });
        self.join(&mut waiting, verb, args);
        waiting
    }

    /// Another command shares the round trip.
    pub(super) fn join(&self, waiting: &mut Waiting, verb: Verb, args: &Arguments<'_>) {
        let kept = self.slow_log.options().length_max > 0;
        waiting.commands.push((verb, kept.then(|| SlowArgs::of(args.from(0)))));
    }

    /// A round trip of commands that need I/O is over.
    pub(super) fn end_trip(&self, waiting: &mut Waiting, begun: Instant, ran: &Ran) {
        let took = self.now().saturating_duration_since(begun);
        waiting.took += took;
        waiting.operation.get_or_insert(ran.operation);
        ran.trail.steps().for_each(|step| waiting.trail.add(*step));
        let Some(spans) = self.spans.as_ref().filter(|spans| spans.samples(ran.operation)) else { return };
        let commands = u32::try_from(waiting.commands.len()).unwrap_or(u32::MAX);
        let work = self.work(ran.operation, ran.trail, commands);
        let outcome = ran.trail.outcome().map_or("ok", Outcome::label);
        let attributes = vec![
            KeyValue::new("tieredcache.outcome", outcome),
            KeyValue::new("tieredcache.trail", work.lines().join("; ")),
            KeyValue::new("tieredcache.commands", i64::from(work.commands)),
            KeyValue::new("tieredcache.origin", work.origin.label()),
            KeyValue::new("tieredcache.deadline_ms", i64::try_from(work.deadline.as_millis()).unwrap_or(i64::MAX)),
        ];
        let (first, _) = &waiting.commands[0];
        let operation =
            Operation { name: first.spec().name.to_uppercase().into(), begun, took, attributes, failure: None };
        spans.operation(ran.operation, operation);
    }

    /// Commands that needed I/O are answered.
    pub(super) fn end_wait(&self, waiting: Box<Waiting>, session: &Session) {
        let Waiting { commands, took, operation, trail } = *waiting;
        let count = u32::try_from(commands.len()).unwrap_or(u32::MAX);
        let work = self.work(operation.unwrap_or(0), trail, count);
        for (verb, args) in commands {
            self.latency(Class::of(verb)).observe(took, 1);
            if let Some(args) = args.filter(|_| self.slow_log.keeps(took)) {
                let at = self.clock.now();
                self.slow_log.record(SlowCommand { at, took, args, client: session.slow_client(), work });
            }
        }
    }

    /// What was done by an operation of a client, as all are that commands begin.
    const fn work(&self, operation: u64, trail: Trail, commands: u32) -> SlowWork {
        SlowWork { operation, origin: Origin::Client, deadline: self.request_timeout, trail, commands }
    }
}

// === impl Lap ===

impl Lap {
    pub(super) fn begin(now: Instant) -> Self {
        Self { begun: now, counts: [0; 3], last: 0..0 }
    }

    /// A command was run; it stands at `place` in the input of the batch.
    #[inline]
    pub(super) fn ran(&mut self, verb: Option<Verb>, place: Range<usize>) {
        let class = verb.map_or(Class::Admin, Class::of);
        self.counts[class as usize] += 1;
        self.last = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_the_class_of_what_it_does() {
        for (name, class) in [
            ("get", Class::Read),
            ("mget", Class::Read),
            ("ttl", Class::Read),
            ("set", Class::Write),
            ("del", Class::Write),
            ("expire", Class::Write),
            ("flushall", Class::Write),
            ("ping", Class::Admin),
            ("info", Class::Admin),
            ("slowlog", Class::Admin),
            ("dbsize", Class::Admin),
        ] {
            assert_eq!(Class::of(Verb::find(name.as_bytes()).unwrap()), class, "{name}");
        }
    }
}
