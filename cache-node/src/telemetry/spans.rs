//! Spans of operations that left memory, for a collector that speaks OpenTelemetry.
//!
//! A span is made when its operation is over, from what was measured anyway: nothing is carried through the layers but
//! the operation's number. The number decides whether it is sampled, and gives trace and parent their ids, so the call
//! of a layer finds its operation without having been told. A hit in memory never has a span.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use crate::clock::{Clock, UnixMillis};

/// Spans that wait for the exporter; beyond, they are dropped and counted.
const WAITING_MAX: usize = 4096;

/// Spreads consecutive numbers evenly over all 64-bit numbers: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Set in the numbers of operations that no client asked for.
const BACKGROUND: u64 = 1 << 63;

/// Where finished operations become spans.
#[derive(Debug)]
pub struct Spans {
    sender: Sender<SpanData>,
    /// Numbers that spread to less than this are sampled.
    sampled_below: u128,
    /// Makes the ids of this run differ from those of any other.
    seed: u64,
    clock: Clock,
    opened: (Instant, UnixMillis),
    scope: InstrumentationScope,
    background: AtomicU64,
    state: Arc<State>,
}

/// What the exporter tells.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The collector does not answer: nothing is sampled for the moment.
    pub(super) paused: AtomicBool,
    pub(super) exported: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) dropped: AtomicU64,
}

/// What became of spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanCounts {
    /// The collector has them.
    pub exported: u64,
    /// The collector did not take them.
    pub failed: u64,
    /// The exporter did not keep up.
    pub dropped: u64,
}

/// An operation that is over.
#[derive(Debug)]
pub struct Operation {
    /// What was done, such as `GET`.
    pub name: Cow<'static, str>,
    /// When it began.
    pub begun: Instant,
    /// How long it took.
    pub took: Duration,
    /// What else is known about it. Never keys or values.
    pub attributes: Vec<KeyValue>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// Where a span stands in its trace.
struct Place {
    own: SpanId,
    parent: SpanId,
    kind: SpanKind,
}

// === impl Spans ===

impl Spans {
    /// Samples this share of the operations, from 0 to 1. The second is what the exporter takes from.
    pub fn open(share: f64, seed: u64, clock: Clock) -> (Arc<Self>, Receiver<SpanData>) {
        let (sender, waiting) = channel(WAITING_MAX);
        let spans = Self {
            sender,
            // Exact at both ends: none at 0, all at 1.
            sampled_below: (share.clamp(0.0, 1.0) * 2_f64.powi(64)) as u128,
            seed,
            opened: (clock.monotonic(), clock.now()),
            clock,
            scope: InstrumentationScope::builder("cache-node").with_version(env!("CARGO_PKG_VERSION")).build(),
            background: AtomicU64::new(0),
            state: Arc::default(),
        };
        (Arc::new(spans), waiting)
    }

    /// Whether the operation of this number is sampled.
    #[inline]
    pub fn samples(&self, number: u64) -> bool {
        u128::from(number.wrapping_mul(SPREAD)) < self.sampled_below && !self.state.paused.load(Ordering::Relaxed)
    }

    /// A number for an operation that no client asked for, such as a batch of the write queue.
    pub fn background(&self) -> u64 {
        BACKGROUND | self.background.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells about a whole operation.
    pub fn operation(&self, number: u64, operation: Operation) {
        self.tell(number, Place { own: self.root(number), parent: SpanId::INVALID, kind: SpanKind::Server }, operation);
    }

    /// Tells about a part of an operation: the call of one layer.
    pub fn part(&self, number: u64, operation: Operation) {
        let own = SpanId::from_bytes(rand::random());
        self.tell(number, Place { own, parent: self.root(number), kind: SpanKind::Internal }, operation);
    }

    /// What became of the spans.
    pub fn counts(&self) -> SpanCounts {
        let State { paused: _, exported, failed, dropped } = self.state.as_ref();
        let [exported, failed, dropped] = [exported, failed, dropped].map(|count| count.load(Ordering::Relaxed));
        SpanCounts { exported, failed, dropped }
    }

    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    fn tell(&self, number: u64, Place { own, parent, kind }: Place, operation: Operation) {
        let Operation { name, begun, took, mut attributes, failure } = operation;
        let start_time = self.wall(begun);
        let trace = TraceId::from_bytes(xxh3_128_with_seed(&number.to_le_bytes(), self.seed).to_be_bytes());
        let number = i64::try_from(number & !BACKGROUND).unwrap_or(i64::MAX);
        attributes.push(KeyValue::new("tieredcache.operation.id", number));
        let span = SpanData {
            span_context: SpanContext::new(trace, own, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: kind,
            name,
            start_time,
            end_time: start_time + took,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: failure.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        };
        // Nobody waits for the exporter.
        if self.sender.try_send(span).is_err() {
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn root(&self, number: u64) -> SpanId {
        SpanId::from_bytes(xxh3_64_with_seed(&number.to_le_bytes(), self.seed).to_be_bytes())
    }

    /// The wall time of a moment. All spans count from one pair of clocks, so that a part lies within its operation.
    fn wall(&self, moment: Instant) -> SystemTime {
        let (opened, unix) = self.opened;
        // The wall clock may have been set since; whole seconds are followed, so that traces of nodes stay together.
        let elapsed = self.clock.monotonic().saturating_duration_since(opened).as_millis();
        let drift_ms = i128::from(self.clock.now().0) - i128::from(unix.0) - i128::try_from(elapsed).unwrap_or(0);
        let steps = drift_ms / 1000;
        let shift = Duration::from_secs(u64::try_from(steps.unsigned_abs()).unwrap_or(0));
        let wall = UNIX_EPOCH + Duration::from_millis(unix.0) + moment.saturating_duration_since(opened);
        if steps < 0 { wall - shift } else { wall + shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::START;

    fn open(share: f64) -> (Arc<Spans>, Receiver<SpanData>, Clock) {
        let clock = Clock::manual(START);
        let (spans, waiting) = Spans::open(share, 7, clock.clone());
        (spans, waiting, clock)
    }

    fn operation(begun: Instant) -> Operation {
        let took = Duration::from_millis(3);
        Operation { name: "GET".into(), begun, took, attributes: Vec::new(), failure: None }
    }

    #[test]
    fn the_share_of_operations_that_is_sampled_is_the_one_asked_for() {
        for (share, least, most) in [(0.0, 0, 0), (1.0, 100_000, 100_000), (0.01, 990, 1010), (0.5, 49_900, 50_100)] {
            let (spans, _waiting, _) = open(share);
            let sampled = (0..100_000).filter(|&number| spans.samples(number)).count();
            assert!((least..=most).contains(&sampled), "{sampled} of 100000 at {share}");
        }
    }

    #[test]
    fn the_call_of_a_layer_belongs_to_its_operation() {
        let (spans, mut waiting, clock) = open(1.0);
        let begun = clock.monotonic();
        clock.advance(Duration::from_millis(5));
        spans.part(9, operation(begun));
        spans.operation(9, operation(begun));
        spans.operation(10, operation(begun));
        let [part, whole, other] = [(); 3].map(|()| waiting.try_recv().unwrap());
        assert_eq!(part.parent_span_id, whole.span_context.span_id());
        assert_eq!(part.span_context.trace_id(), whole.span_context.trace_id());
        assert_ne!(part.span_context.span_id(), whole.span_context.span_id());
        assert_ne!(other.span_context.trace_id(), whole.span_context.trace_id());
        assert_eq!(whole.parent_span_id, SpanId::INVALID);
        assert_eq!(whole.start_time, UNIX_EPOCH + Duration::from_millis(START.0));
        assert_eq!(whole.end_time, whole.start_time + Duration::from_millis(3));
    }

    #[test]
    fn spans_beyond_what_may_wait_are_dropped_and_counted() {
        let (spans, _waiting, clock) = open(1.0);
        (0..5000).for_each(|number| spans.operation(number, operation(clock.monotonic())));
        assert_eq!(spans.counts(), SpanCounts { exported: 0, failed: 0, dropped: 5000 - WAITING_MAX as u64 });
    }
}
