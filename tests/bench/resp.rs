//! Just enough RESP for a client that counts: an incremental reply counter for the measured loop and a blocking
//! client for the questions around it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Longest line of a reply that is not a value; error texts are the longest.
const LINE_BYTES_MAX: usize = 4096;
/// Longest value the blocking client accepts.
const VALUE_BYTES_MAX: usize = 64 << 20;
/// How long the blocking client waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What came back so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Replies in all.
    pub(crate) replies: u64,
    /// Replies that say "no such key".
    pub(crate) nulls: u64,
    /// Bytes of values.
    pub(crate) value_bytes: u64,
}

/// Counts replies in a stream of bytes that may be cut anywhere. Holds at most one partial line.
#[derive(Debug, Default)]
pub(crate) struct ReplyCounter {
    line: Vec<u8>,
    skip: usize,
}

/// Why counting stopped.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplyError {
    /// The server answered with an error, which no workload expects.
    #[error("the server answered with an error: {0}")]
    Server(String),
    /// The bytes are no reply a workload can have asked for.
    #[error("not a reply: {0}")]
    Malformed(String),
}

/// A connection for one question at a time.
#[derive(Debug)]
pub(crate) struct Blocking(BufReader<TcpStream>);

/// An answer to one question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// `+OK`
    Simple(String),
    /// `:42`
    Integer(i64),
    /// `$3`, with `None` for "no such key".
    Value(Option<Vec<u8>>),
}

// === impl ReplyCounter ===

impl ReplyCounter {
    /// Counts the replies that `bytes` complete into `tally` and says how many they were.
    ///
    /// # Errors
    /// [`ReplyError`] on an error reply or on bytes that are no reply.
    pub(crate) fn consume(&mut self, mut bytes: &[u8], tally: &mut Tally) -> Result<u32, ReplyError> {
        let mut complete = 0;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let step = self.skip.min(bytes.len());
                self.skip -= step;
                bytes = &bytes[step..];
                complete += u32::from(self.skip == 0);
                continue;
            }
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                self.keep(bytes)?;
                break;
            };
            let (piece, rest) = bytes.split_at(end + 1);
            bytes = rest;
            self.skip = if self.line.is_empty() {
                bytes_to_skip(piece, tally)?
            } else {
                self.keep(piece)?;
                let skip = bytes_to_skip(&self.line, tally)?;
                self.line.clear();
                skip
            };
            complete += u32::from(self.skip == 0);
        }
        tally.replies += u64::from(complete);
        Ok(complete)
    }

    fn keep(&mut self, piece: &[u8]) -> Result<(), ReplyError> {
        if self.line.len() + piece.len() > LINE_BYTES_MAX {
            return Err(ReplyError::Malformed(format!("a line of more than {LINE_BYTES_MAX} bytes")));
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }
}

/// Judges a whole line and returns how many bytes of value follow it.
fn bytes_to_skip(line: &[u8], tally: &mut Tally) -> Result<usize, ReplyError> {
    let malformed = || ReplyError::Malformed(line.escape_ascii().to_string());
    let body = line.strip_suffix(b"\r\n").ok_or_else(malformed)?;
    let (&kind, rest) = body.split_first().ok_or_else(malformed)?;
    match (kind, rest) {
        (b'+' | b':', _) => Ok(0),
        (b'$', b"-1") | (b'_', b"") => {
            tally.nulls += 1;
            Ok(0)
        }
        (b'$', digits) => {
            let length = number(digits).ok_or_else(malformed)?;
            tally.value_bytes += length as u64;
            Ok(length + 2)
        }
        (b'-', text) => Err(ReplyError::Server(String::from_utf8_lossy(text).into_owned())),
        _ => Err(malformed()),
    }
}

/// A decimal number of at most [`VALUE_BYTES_MAX`].
fn number(digits: &[u8]) -> Option<usize> {
    let add = |sum: usize, digit: &u8| digit.is_ascii_digit().then(|| sum * 10 + usize::from(digit - b'0'));
    let in_bounds = |sum: usize| (sum <= VALUE_BYTES_MAX).then_some(sum);
    if digits.is_empty() { None } else { digits.iter().try_fold(0, |sum, digit| in_bounds(add(sum, digit)?)) }
}

// === impl Blocking ===

impl Blocking {
    /// Connects.
    ///
    /// # Errors
    /// As [`TcpStream::connect`].
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self(BufReader::with_capacity(256 << 10, stream)))
    }

    /// Sends one command and waits for its answer.
    ///
    /// # Errors
    /// On a broken connection, an error reply or no answer within 10 s.
    pub(crate) fn ask(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        let mut request = Vec::new();
        render(&mut request, words);
        self.0.get_mut().write_all(&request)?;
        self.answer()
    }

    /// Sends rendered commands and waits until `count` replies have come.
    ///
    /// # Errors
    /// As [`Blocking::ask`].
    pub(crate) fn send_all(&mut self, requests: &[u8], count: u64) -> io::Result<Tally> {
        self.0.get_mut().write_all(requests)?;
        let (mut counter, mut tally) = (ReplyCounter::default(), Tally::default());
        while tally.replies < count {
            let bytes = self.0.fill_buf()?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            counter.consume(bytes, &mut tally).map_err(io::Error::other)?;
            let used = bytes.len();
            self.0.consume(used);
        }
        Ok(tally)
    }

    fn answer(&mut self) -> io::Result<Reply> {
        let mut line = Vec::new();
        (&mut self.0).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        let text = || String::from_utf8_lossy(&line[1..]).trim_end().to_owned();
        match line.first() {
            Some(b'+') => Ok(Reply::Simple(text())),
            Some(b':') => text().parse().map(Reply::Integer).map_err(io::Error::other),
            _ => {
                let mut tally = Tally::default();
                let skip = bytes_to_skip(&line, &mut tally).map_err(io::Error::other)?;
                let mut value = vec![0; skip];
                self.0.read_exact(&mut value)?;
                value.truncate(skip.saturating_sub(2));
                Ok(Reply::Value((tally.nulls == 0).then_some(value)))
            }
        }
    }
}

/// Appends one command in RESP to `out`.
pub(crate) fn render(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests;
