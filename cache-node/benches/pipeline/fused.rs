//! GET and SET straight on memory, and the least server around them: what there is to gain by having no layers.
//!
//! The server reads, runs a batch and writes as the node's does, in one event loop. It has no write queue, turns, tags,
//! metrics, slow log, limits, drain or other commands.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use cache_node::{
    clock::Clock,
    entry::{Entry, EntryMeta},
    layer::memory::Memory,
    protocol::{Parse, Replies, RequestParser},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::layered::{LIMITS, MEMORY};

/// As in the node.
const READ_BYTES: usize = 128 * 1024;

pub(crate) struct Fused {
    memory: Memory,
    clock: Clock,
}

struct Connection {
    fused: Arc<Fused>,
    scratch: Arc<Mutex<Scratch>>,
    stream: TcpStream,
    parser: RequestParser,
    /// The beginning of a request.
    kept: Vec<u8>,
    /// What the client did not take at once.
    unsent: Vec<u8>,
}

/// Lent to the connection whose turn it is.
struct Scratch {
    input: Box<[u8]>,
    replies: Replies,
}

/// Serves until it is killed.
pub(crate) fn serve(address: SocketAddr) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        let fused = Arc::new(Fused::open());
        let scratch = Scratch { input: vec![0; READ_BYTES].into_boxed_slice(), replies: Replies::default() };
        let scratch = Arc::new(Mutex::new(scratch));
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let mut connection = Connection {
                fused: Arc::clone(&fused),
                scratch: Arc::clone(&scratch),
                stream,
                parser: RequestParser::new(LIMITS),
                kept: Vec::new(),
                unsent: Vec::new(),
            };
            connections.spawn(async move { poll_fn(|task| connection.poll_turn(task)).await });
        }
    })
}

// === impl Fused ===

impl Fused {
    pub(crate) fn open() -> Self {
        let clock = Clock::system();
        Self { memory: Memory::open(MEMORY, clock.clone()), clock }
    }

    /// Runs batches as one connection does.
    pub(crate) fn runner(&self) -> impl FnMut(&[u8], &mut Replies) {
        let mut parser = RequestParser::new(LIMITS);
        move |batch, replies| {
            self.run(&mut parser, batch, replies);
        }
    }

    /// Runs the complete requests of the input; returns how many bytes they had.
    fn run(&self, parser: &mut RequestParser, input: &[u8], replies: &mut Replies) -> usize {
        let now = self.clock.now();
        let mut rest = input;
        while let Ok(Parse::Complete(length)) = parser.parse(rest) {
            let args = parser.arguments(rest);
            if args.name().eq_ignore_ascii_case(b"get") {
                match self.memory.get(now, args.at(1)) {
                    Some(entry) => replies.value(&entry),
                    None => replies.null(),
                }
            } else if args.name().eq_ignore_ascii_case(b"set") {
                self.memory.set(now, &Entry::new(args.at(1), args.at(2), EntryMeta::default()));
                replies.simple("OK");
            } else {
                replies.simple("PONG");
            }
            parser.reset();
            rest = &rest[length..];
        }
        input.len() - rest.len()
    }
}

// === impl Connection ===

impl Connection {
    /// Reads, runs and writes until there is nothing to read; ready once the client has gone.
    fn poll_turn(&mut self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { fused, scratch, stream, parser, kept, unsent } = self;
        let mut scratch = scratch.lock().unwrap();
        let Scratch { input, replies } = &mut *scratch;
        loop {
            while !unsent.is_empty() {
                let sent = ready!(Pin::new(&mut *stream).poll_write(task, unsent))?;
                unsent.drain(..sent);
            }
            let mut buffer = ReadBuf::new(input);
            ready!(Pin::new(&mut *stream).poll_read(task, &mut buffer))?;
            let received = buffer.filled();
            if received.is_empty() {
                return Poll::Ready(Ok(()));
            }
            replies.clear();
            if kept.is_empty() {
                let used = fused.run(parser, received, replies);
                kept.extend_from_slice(&received[used..]);
            } else {
                kept.extend_from_slice(received);
                let used = fused.run(parser, kept, replies);
                kept.drain(..used);
            }
            while !replies.is_empty() {
                let piece = replies.one_piece().expect("no value is so large that it is sent from where it lies");
                match Pin::new(&mut *stream).poll_write(task, piece) {
                    Poll::Ready(sent) => replies.advance(sent?),
                    Poll::Pending => {
                        unsent.extend_from_slice(piece);
                        break;
                    }
                }
            }
        }
    }
}
