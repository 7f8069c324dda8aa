//! One connection: read what is there, run all complete commands, answer with one write.
//!
//! An idle connection holds no buffers: it borrows those of its thread for the length of a turn, and keeps only what
//! is left over — the beginning of a request, or replies that the client does not take yet. While replies are left
//! over nothing is read, so that a client which does not read its replies is braked by TCP.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Sleep, sleep, timeout},
};
use tracing::debug;

use super::{
    counters::Event,
    measure::{Lap, Waiting},
    worker::EventLoop,
};
use crate::{
    command::{Call, Later, Session, Step, Verb},
    context::OperationContext,
    entry::KEY_BYTES_MAX,
    protocol::{Parse, Replies, RequestLimits, RequestParser},
    slow_log::SlowArgs,
};

/// Bytes read at once, and the most that one connection runs before the others have their turn: a pipeline of 16 values
/// of 4 KiB fits, and the smallest commands of a turn take about a millisecond.
const READ_BYTES: usize = 128 * 1024;

/// Bytes by which the buffer of a request that did not arrive at once grows, if it is known to lack fewer.
const GROWTH_BYTES_MIN: usize = 16 * 1024;

/// Bytes by which it grows if the request lacks more, so that an announced size alone costs little.
const GROWTH_BYTES_MAX: usize = 256 * 1024;

/// Bytes of replies after which they are sent before the next command runs.
const REPLY_BYTES_MAX: usize = 256 * 1024;

/// What a request may need besides its longest value: names, keys, lengths, and other values of an MSET.
const REQUEST_BYTES_EXTRA: usize = 1024 * 1024;

/// Pieces of one vectored write; the kernel takes at most 1024.
const PIECES_MAX: usize = 64;

/// How long the rest of what a client sends is thrown away after an error that ends its connection: closing at once
/// would make its kernel throw the error away unread.
const LINGER: Duration = Duration::from_secs(1);

/// One client's connection, over TCP or over what a test watches.
#[derive(Debug)]
pub(super) struct Connection<'a, S> {
    stream: S,
    session: Session,
    event_loop: &'a EventLoop,
    parser: RequestParser,
    /// Received and not run yet; begins with the first byte of a request.
    input: BytesMut,
    /// Bytes that the request at the beginning of `input` lacks at least.
    missing: usize,
    /// Whether `input` may hold a complete request.
    backlog: bool,
    /// Replies not sent yet.
    output: Replies,
    /// Runs while a request has begun and nothing arrives.
    silence: Option<Pin<Box<Sleep>>>,
}

/// The buffers that a thread lends to the connection whose turn it is.
pub(super) struct Scratch {
    input: Box<[u8]>,
    replies: Replies,
}

/// Why a turn ended.
enum Turn {
    /// A command needs I/O.
    Later(Later, Box<Waiting>),
    /// The client does not take its replies.
    Blocked,
    /// The client has gone, stayed silent too long, or the node stops.
    Gone,
    /// The last reply is written; what else the client sends does not matter.
    Last,
}

/// Why a batch ended.
enum BatchEnd {
    /// The rest is not a complete request.
    Short {
        missing: usize,
    },
    /// So many replies are written that they should be sent.
    Full,
    Later(Later, Box<Waiting>),
    Last,
}

// === impl Connection ===

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Connection<'a, S> {
    pub(super) fn new(stream: S, session: Session, event_loop: &'a EventLoop) -> Self {
        let value_bytes_max = event_loop.limits.value_bytes_max;
        let limits = RequestLimits {
            argument_bytes_max: value_bytes_max.max(KEY_BYTES_MAX),
            request_bytes_max: value_bytes_max + REQUEST_BYTES_EXTRA,
        };
        Self {
            stream,
            session,
            event_loop,
            parser: RequestParser::new(limits),
            input: BytesMut::new(),
            missing: 1,
            backlog: false,
            output: Replies::default(),
            silence: None,
        }
    }

    /// Serves the client until one of both ends it.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.serve().await {
            debug!(%error, peer = %self.session.peer, "connection lost");
        }
    }

    async fn serve(&mut self) -> io::Result<()> {
        let event_loop = self.event_loop;
        let mut stopped = pin!(event_loop.stop.cancelled());
        let mut woken: Option<Waker> = None;
        loop {
            let turn = poll_fn(|task| {
                let turn = event_loop.with_scratch(|scratch| self.poll_turn(scratch, task))?;
                // Only a connection that waits for its client is stopped: what was received is answered.
                if turn.is_pending() {
                    // To be woken by the stop is asked for once: a task keeps its waker, and each time costs two locks.
                    let stopping = if woken.as_ref().is_some_and(|waker| waker.will_wake(task.waker())) {
                        event_loop.stop.is_cancelled()
                    } else {
                        woken = Some(task.waker().clone());
                        stopped.as_mut().poll(task).is_ready()
                    };
                    if stopping {
                        return Poll::Ready(Ok(Turn::Gone));
                    }
                }
                turn.map(Ok::<_, io::Error>)
            });
            match turn.await? {
                Turn::Later(later, waiting) => self.finish(later, waiting).await?,
                Turn::Blocked => self.send_all().await?,
                Turn::Gone => return Ok(()),
                Turn::Last => {
                    self.send_all().await?;
                    return self.linger().await;
                }
            }
        }
    }

    /// Runs the part of a command that needs I/O. Replies of the commands before it wait in `output`.
    async fn finish(&mut self, later: Later, mut waiting: Box<Waiting>) -> io::Result<()> {
        let EventLoop { commands, meter, .. } = self.event_loop;
        let mut next = Some(later);
        while let Some(later) = next {
            let begun = meter.now();
            let ran = commands.run_later(later, &mut self.output).await;
            meter.end_trip(&mut waiting, begun, &ran);
            next = ran.left;
            if self.output.len() > REPLY_BYTES_MAX {
                self.send_all().await?;
            }
        }
        meter.end_wait(waiting, &self.session);
        Ok(())
    }

    /// Sends what waits in `output`; fails if the client takes nothing for as long as a request may be silent.
    async fn send_all(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let (stream, output) = (&mut self.stream, &self.output);
            let sent = poll_fn(|task| poll_send(stream, output, task));
            let Ok(sent) = timeout(self.event_loop.limits.partial_request_timeout, sent).await else {
                self.event_loop.counters.note(Event::Timeout, 1);
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its replies"));
            };
            let sent = sent?;
            self.event_loop.counters.note(Event::BytesOut, sent as u64);
            self.output.advance(sent);
        }
        Ok(())
    }

    /// Ends the connection so that the last reply arrives.
    async fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        // Not an array: it would make every connection larger, although few of them linger.
        let mut rest = vec![0; GROWTH_BYTES_MIN];
        let drained = async { while self.stream.read(&mut rest).await.is_ok_and(|count| count > 0) {} };
        // Whether the client has finished or the time is up makes no difference.
        let _ = timeout(LINGER, drained).await;
        Ok(())
    }
}

// === impl Connection: a turn ===

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    fn poll_turn(&mut self, scratch: &mut Scratch, task: &mut Context<'_>) -> io::Result<Poll<Turn>> {
        scratch.replies.clear();
        scratch.replies.speak(self.session.protocol());
        let mut received = 0;
        while received < READ_BYTES {
            if !self.output.is_empty() {
                std::mem::swap(&mut self.output, &mut scratch.replies);
            }
            // Between replies, and behind those of all reads that came before the change.
            self.session.deliver(task.waker(), &mut scratch.replies);
            let end = if std::mem::take(&mut self.backlog) || !scratch.replies.is_empty() {
                self.run_kept(&mut scratch.replies)
            } else {
                let count = match self.poll_read(scratch, task)? {
                    Poll::Ready(Some(count)) => count,
                    Poll::Ready(None) => return Ok(Poll::Ready(Turn::Gone)),
                    Poll::Pending => return Ok(Poll::Pending),
                };
                received += count;
                if self.input.is_empty() {
                    self.run_fresh(&scratch.input[..count], &mut scratch.replies)
                } else {
                    self.run_kept(&mut scratch.replies)
                }
            };
            if let Some(turn) = self.end_batch(end, &mut scratch.replies, task)? {
                return Ok(Poll::Ready(turn));
            }
        }
        // There may be more to read: let the others go first.
        task.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    /// Sends the replies of a batch, unless something else has to happen first.
    fn end_batch(&mut self, end: BatchEnd, replies: &mut Replies, task: &mut Context<'_>) -> io::Result<Option<Turn>> {
        self.event_loop.counters.note(Event::ErrorReply, replies.take_errors());
        let turn = match end {
            BatchEnd::Short { missing } => {
                self.missing = missing;
                None
            }
            BatchEnd::Full => {
                self.backlog = true;
                None
            }
            BatchEnd::Later(later, waiting) => {
                self.backlog = true;
                std::mem::swap(&mut self.output, replies);
                return Ok(Some(Turn::Later(later, waiting)));
            }
            BatchEnd::Last => Some(Turn::Last),
        };
        while !replies.is_empty() {
            match poll_send(&mut self.stream, replies, task) {
                Poll::Ready(sent) => {
                    let sent = sent?;
                    self.event_loop.counters.note(Event::BytesOut, sent as u64);
                    replies.advance(sent);
                }
                Poll::Pending => {
                    std::mem::swap(&mut self.output, replies);
                    return Ok(Some(turn.unwrap_or(Turn::Blocked)));
                }
            }
        }
        Ok(turn)
    }

    /// Runs what was just read, and keeps what is left over.
    fn run_fresh(&mut self, received: &[u8], replies: &mut Replies) -> BatchEnd {
        let (consumed, end) = self.run_batch(received, replies);
        self.input.extend_from_slice(&received[consumed..]);
        end
    }

    /// Runs what was kept.
    fn run_kept(&mut self, replies: &mut Replies) -> BatchEnd {
        let mut input = std::mem::take(&mut self.input);
        let (consumed, end) = self.run_batch(&input, replies);
        input.advance(consumed);
        // An empty buffer is given up, so that an idle connection holds none.
        if !input.is_empty() {
            self.input = input;
        }
        end
    }

    /// Reads the rest of a request that has begun, or else into the thread's buffer. None if the client has gone or was
    /// silent for too long.
    fn poll_read(&mut self, scratch: &mut Scratch, task: &mut Context<'_>) -> io::Result<Poll<Option<usize>>> {
        let count = if self.input.is_empty() {
            let mut buffer = ReadBuf::new(&mut scratch.input);
            match Pin::new(&mut self.stream).poll_read(task, &mut buffer) {
                Poll::Ready(read) => read.map(|()| buffer.filled().len())?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        } else {
            self.input.reserve(self.missing.clamp(GROWTH_BYTES_MIN, GROWTH_BYTES_MAX));
            match pin!(self.stream.read_buf(&mut self.input)).poll(task) {
                Poll::Ready(read) => read?,
                Poll::Pending => return Ok(self.poll_silence(task).map(|()| None)),
            }
        };
        self.silence = None;
        self.event_loop.counters.note(Event::BytesIn, count as u64);
        Ok(Poll::Ready((count > 0).then_some(count)))
    }

    /// Ready once the client has been silent within a request for too long.
    fn poll_silence(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let limit = self.event_loop.limits.partial_request_timeout;
        let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(silence.as_mut().poll(task));
        self.event_loop.counters.note(Event::Timeout, 1);
        Poll::Ready(())
    }
}

// === impl Connection: a batch ===

impl<S> Connection<'_, S> {
    /// Runs the complete requests in `input`. Returns how many bytes they had, and why it ended.
    fn run_batch(&mut self, input: &[u8], replies: &mut Replies) -> (usize, BatchEnd) {
        let cx = self.event_loop.commands.context();
        self.session.active_at = cx.now;
        self.session.runs(cx.id);
        // When the context was made, without another look at the clock.
        let mut lap = Lap::begin(cx.deadline - self.event_loop.limits.request_timeout);
        let ended = self.run_commands(&cx, &mut lap, input, replies);
        self.end_lap(&cx, &mut lap, input);
        ended
    }

    fn run_commands(
        &mut self,
        cx: &OperationContext,
        lap: &mut Lap,
        input: &[u8],
        replies: &mut Replies,
    ) -> (usize, BatchEnd) {
        let meter = &self.event_loop.meter;
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let length = match self.parser.parse(rest) {
                Ok(Parse::Complete(length)) => length,
                Ok(Parse::Empty(length)) => {
                    consumed += length;
                    self.parser.reset();
                    continue;
                }
                Ok(Parse::Incomplete(missing)) => return (consumed, BatchEnd::Short { missing }),
                Err(error) => {
                    self.event_loop.counters.note(Event::ProtocolError, 1);
                    replies.error(&format!("ERR {error}"));
                    return (input.len(), BatchEnd::Last);
                }
            };
            let heavy = meter.is_heavy(length);
            if heavy {
                self.end_lap(cx, lap, input);
            }
            let (verb, step) = self.run_one(cx, rest, replies);
            let waiting = match (&step, verb) {
                (Step::Later(_), Some(verb)) => Some(meter.wait(verb, &self.parser.arguments(rest))),
                _ => None,
            };
            if waiting.is_none() {
                lap.ran(verb, consumed..consumed + length);
            }
            if heavy || waiting.is_some() {
                self.end_lap(cx, lap, input);
            }
            consumed += length;
            self.parser.reset();
            match step {
                Step::Done if replies.len() > REPLY_BYTES_MAX => return (consumed, BatchEnd::Full),
                Step::Done => {}
                Step::Close => return (input.len(), BatchEnd::Last),
                Step::Later(mut later) => {
                    let mut waiting = waiting.expect("a command that waits has a name");
                    consumed += self.join(cx, &mut later, &mut waiting, &input[consumed..]);
                    return (consumed, BatchEnd::Later(later, waiting));
                }
            }
        }
    }

    /// Takes the time of the commands since the last look at the clock.
    fn end_lap(&self, cx: &OperationContext, lap: &mut Lap, input: &[u8]) {
        self.event_loop.meter.end_lap(lap, cx, &self.session, |place| {
            // Only what was slow is read a second time.
            let request = &input[place];
            let limits = RequestLimits { argument_bytes_max: request.len(), request_bytes_max: request.len() };
            let mut parser = RequestParser::new(limits);
            let parsed = parser.parse(request);
            debug_assert!(matches!(parsed, Ok(Parse::Complete(_))), "it was complete when it was run");
            SlowArgs::of(parser.arguments(request).from(0))
        });
    }

    fn run_one(&mut self, cx: &OperationContext, request: &[u8], replies: &mut Replies) -> (Option<Verb>, Step) {
        let EventLoop { commands, counters, .. } = self.event_loop;
        let args = self.parser.arguments(request);
        match commands.resolve(&args, replies) {
            Ok(verb) => {
                counters.ran(verb);
                (Some(verb), commands.run_now(&mut self.session, &Call { cx, verb, args, tracked: false }, replies))
            }
            Err(step) => {
                counters.note(Event::UnknownCommand, 1);
                (None, step)
            }
        }
    }

    /// Lets the following commands share the round trip of `later`, as far as they can. Returns how many bytes they had.
    fn join(&mut self, cx: &OperationContext, later: &mut Later, waiting: &mut Waiting, input: &[u8]) -> usize {
        let EventLoop { commands, counters, meter, .. } = self.event_loop;
        let mut consumed = 0;
        while let Ok(Parse::Complete(length)) = self.parser.parse(&input[consumed..]) {
            let args = self.parser.arguments(&input[consumed..]);
            let joined = commands.join(cx, later, &args);
            if let Some(verb) = joined {
                meter.join(waiting, verb, &args);
            }
            self.parser.reset();
            let Some(verb) = joined else { return consumed };
            counters.ran(verb);
            consumed += length;
        }
        // Whatever the parser has seen of the rest, it starts again when this command is done.
        self.parser.reset();
        consumed
    }
}

/// Writes as much of the replies as the connection takes at once.
fn poll_send(
    stream: &mut (impl AsyncWrite + Unpin),
    replies: &Replies,
    task: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    if let Some(piece) = replies.one_piece() {
        return stream.poll_write(task, piece);
    }
    let mut slices = [IoSlice::new(&[]); PIECES_MAX];
    let count = slices.iter_mut().zip(replies.pieces()).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
    stream.poll_write_vectored(task, &slices[..count])
}

// === impl Scratch ===

impl Default for Scratch {
    fn default() -> Self {
        Self { input: vec![0; READ_BYTES].into_boxed_slice(), replies: Replies::default() }
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scratch")
    }
}
