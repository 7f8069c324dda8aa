//! RESP requests: anything may come, in pieces of any size.

mod generator;

use std::{sync::Arc, time::Duration};

use cache_node::{
    clock::{Clock, UnixMillis},
    command::{Call, Commands, Identity, ServerFacts, Session, Settings, Step},
    coordinator::{Coordinator, Parts},
    layer::memory::{Memory, MemoryOptions, Policy},
    protocol::{Parse, ProtocolError, Replies, RequestLimits, RequestParser},
    slow_log::{SlowLog, SlowLogOptions},
    write_queue::{Overflow, QueueOptions},
};
use rand::{RngExt, rngs::SmallRng};

use self::generator::input;
use crate::{peak_resident_bytes, random};

const INPUTS: usize = 1_200_000;

/// Inputs that are cut at every byte, which costs the square of their length.
const INPUTS_CUT_EVERYWHERE: usize = 20_000;

/// Inputs whose requests are run.
const INPUTS_RUN: usize = 300_000;

/// What all of it may take: inputs are short, and nothing may be reserved for what is only announced.
const GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;

const LIMITS: RequestLimits = RequestLimits { argument_bytes_max: 4096, request_bytes_max: 8192 };

/// What a stream of bytes amounts to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    requests: Vec<Vec<Vec<u8>>>,
    error: Option<ProtocolError>,
    /// Bytes of a request that is not complete.
    left: usize,
}

/// Hears `pieces` as a connection does: what is left over is kept and continued.
fn hear<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Heard {
    let mut heard = Heard::default();
    let mut parser = RequestParser::new(LIMITS);
    let mut kept: Vec<u8> = Vec::new();
    for piece in pieces {
        kept.extend_from_slice(piece);
        let mut consumed = 0;
        loop {
            let rest = &kept[consumed..];
            match parser.parse(rest) {
                Ok(Parse::Complete(length)) => {
                    assert!(length <= rest.len(), "no more than there is");
                    heard.requests.push(parser.arguments(rest).from(0).map(<[u8]>::to_vec).collect());
                    consumed += length;
                }
                Ok(Parse::Empty(length)) => {
                    assert!((1..=rest.len()).contains(&length), "goes on, but not past the end");
                    consumed += length;
                }
                Ok(Parse::Incomplete(missing)) => {
                    assert!(missing > 0, "something is missing");
                    break;
                }
                Err(error) => {
                    heard.error = Some(error);
                    return heard;
                }
            }
            parser.reset();
        }
        kept.drain(..consumed);
    }
    heard.left = kept.len();
    heard
}

/// Cuts the bytes at random places.
fn cut<'a>(mut bytes: &'a [u8], random: &mut SmallRng) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(random.random_range(1..=bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

#[test]
fn any_bytes_in_any_pieces_are_heard_the_same_within_bounds() {
    let mut random = random();
    let before = peak_resident_bytes();
    let (mut requests, mut errors, mut incomplete) = (0, 0, 0);
    for _ in 0..INPUTS {
        let bytes = input(&mut random);
        let whole = hear([bytes.as_slice()]);
        let in_pieces = hear(cut(&bytes, &mut random));
        assert_eq!(whole, in_pieces, "{}", bytes.escape_ascii());
        for request in &whole.requests {
            assert!(!request.is_empty(), "an empty request is skipped");
            let longest = request.iter().map(Vec::len).max().unwrap_or_default();
            assert!(longest <= 64 * 1024, "an argument of {longest} bytes");
        }
        requests += whole.requests.len();
        errors += usize::from(whole.error.is_some());
        incomplete += usize::from(whole.left > 0);
    }
    // The generator has to reach all three ends, or it proves nothing.
    for count in [requests, errors, incomplete] {
        assert!(count > INPUTS / 20, "{requests} requests, {errors} errors, {incomplete} incomplete");
    }
    let growth = peak_resident_bytes() - before;
    assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes");
}

#[test]
fn a_cut_at_any_byte_changes_nothing() {
    let mut random = random();
    for _ in 0..INPUTS_CUT_EVERYWHERE {
        let bytes = input(&mut random);
        let whole = hear([bytes.as_slice()]);
        for at in 1..bytes.len().min(300) {
            assert_eq!(hear([&bytes[..at], &bytes[at..]]), whole, "cut at {at}: {}", bytes.escape_ascii());
        }
        assert_eq!(hear(bytes.chunks(1)), whole, "byte by byte: {}", bytes.escape_ascii());
    }
}

// === commands ===

async fn commands(clock: &Clock) -> Commands {
    let memory = MemoryOptions { capacity_bytes: 8 << 20, policy: Policy::S3Fifo, max_ttl: Duration::from_secs(3600) };
    let queue = QueueOptions { capacity_bytes: 1 << 20, items_max: 1000, overflow: Overflow::Block };
    let parts = Parts::new(Memory::open(memory, clock.clone()), queue, Vec::new(), clock);
    let coordinator = Coordinator::open(parts, clock.clone()).await;
    let slow_log = SlowLogOptions { threshold: Duration::ZERO, length_max: 8 };
    let settings = Settings {
        follows_reads: false,
        identity: Identity::default(),
        value_bytes_max: 4096,
        request_timeout: Duration::from_secs(60),
        slow_log: Arc::new(SlowLog::new(slow_log)),
        ttl_jitter_percent: 0,
        negative_ttl: Duration::from_secs(30),
        tracked_items_max: 1000,
    };
    Commands::new(coordinator, clock.clone(), settings, Arc::new(ServerFacts::default))
}

/// Takes one reply from the front; panics if there is none.
fn skip_reply(bytes: &[u8]) -> &[u8] {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n").expect("a reply has a line");
    let (line, mut rest) = (&bytes[1..end], &bytes[end + 2..]);
    let number = || std::str::from_utf8(line).ok().and_then(|text| text.parse::<i64>().ok()).expect("a number");
    let items = match bytes[0] {
        b'+' | b'-' | b'_' => return rest,
        b':' => return (number(), rest).1,
        b'$' | b'=' => {
            let Ok(length) = usize::try_from(number()) else { return rest };
            assert_eq!(&rest[length..length + 2], b"\r\n");
            return &rest[length + 2..];
        }
        b'*' | b'~' => number(),
        b'%' => number() * 2,
        other => panic!("no reply begins with {other}"),
    };
    for _ in 0..items {
        rest = skip_reply(rest);
    }
    rest
}

#[tokio::test]
async fn any_request_gets_exactly_one_well_formed_reply() {
    let mut random = random();
    let clock = Clock::manual(UnixMillis(1_800_000_000_000));
    let commands = commands(&clock).await;
    let address = ([127, 0, 0, 1], 1).into();
    let mut session = Session::new(1, address, address, clock.now());
    let mut run = 0;
    for _ in 0..INPUTS_RUN {
        let bytes = input(&mut random);
        let mut parser = RequestParser::new(LIMITS);
        let mut rest = bytes.as_slice();
        while let Ok(Parse::Complete(length)) = parser.parse(rest) {
            let mut replies = Replies::default();
            replies.speak(session.protocol());
            let cx = commands.context();
            let args = parser.arguments(rest);
            let step = match commands.resolve(&args, &mut replies) {
                Ok(verb) => commands.run_now(&mut session, &Call { cx: &cx, verb, args, tracked: false }, &mut replies),
                Err(step) => step,
            };
            let closes = matches!(step, Step::Close);
            if let Step::Later(later) = step {
                let mut next = Some(later);
                while let Some(later) = next {
                    next = commands.run_later(later, &mut replies).await.left;
                }
            }
            let sent = replies.pieces().collect::<Vec<_>>().concat();
            if !(closes && sent.is_empty()) {
                let after = skip_reply(&sent);
                assert!(after.is_empty(), "{} got {}", rest[..length].escape_ascii(), sent.escape_ascii());
            }
            run += 1;
            rest = &rest[length..];
            parser.reset();
        }
        clock.advance(Duration::from_millis(random.random_range(0..5)));
    }
    assert!(run > INPUTS_RUN / 2, "{run} requests were run");
}
