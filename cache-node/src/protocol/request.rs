//! The parser of requests: resumable, so that a request that arrives in many pieces is looked at once.

use super::{inline, number::parse_i64};

/// Arguments of one request, as in Redis.
const ARGUMENTS_MAX: i64 = 1024 * 1024;

/// A request typed by hand, as in Redis.
const INLINE_BYTES_MAX: usize = 64 * 1024;

/// The longest decimal that could still be a 64-bit integer; what is longer is refused before its line ends.
const COUNT_BYTES_MAX: usize = 20;

/// Arguments for which a parser keeps room between requests.
const ARGUMENTS_KEPT: usize = 1024;

/// Bytes of a hand-typed request for which a parser keeps room.
const WORDS_KEPT: usize = 4096;

/// How long a request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// The longest argument, in bytes.
    pub argument_bytes_max: usize,
    /// The whole request, in bytes; at least the longest argument and 64 KiB.
    pub request_bytes_max: usize,
}

/// A request that can not be one. The connection is closed after the reply: where the next would begin is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The count after `*`.
    #[error("Protocol error: invalid multibulk length")]
    ArrayLength,
    /// The length after `$`.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// A well-formed length, but more than the node takes.
    #[error("Protocol error: invalid bulk length: {bytes} bytes are more than the limit of {bytes_max}")]
    BulkTooLong {
        /// What was announced.
        bytes: u64,
        /// What is allowed.
        bytes_max: usize,
    },
    /// All arguments together are more than the node takes.
    #[error("Protocol error: request has more than {bytes_max} bytes")]
    RequestTooLong {
        /// What is allowed.
        bytes_max: usize,
    },
    /// Something else than a bulk string in a request.
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    NotBulk(u8),
    /// The bytes of a bulk string are not followed by CR LF.
    #[error("Protocol error: expected CRLF after the bulk")]
    NotTerminated,
    /// A line of 64 KiB and no end.
    #[error("Protocol error: too big inline request")]
    InlineTooLong,
    /// Quotes of a line do not match.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
}

/// What the bytes at hand amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parse {
    /// A request of this many bytes; its arguments can be read.
    Complete(usize),
    /// An empty request of this many bytes: to be skipped without a reply.
    Empty(usize),
    /// More bytes are needed, at least this many.
    Incomplete(usize),
}

/// Reads one request after the other. Offsets are relative to the first byte of the request, which therefore must stay
/// the first byte of the input until the request is complete.
///
/// Holds at most 1 Mi spans of 8 bytes, and only as many as arguments have arrived: an announced count reserves nothing.
#[derive(Debug)]
pub struct RequestParser {
    limits: RequestLimits,
    /// How far the request was read.
    position: usize,
    /// Arguments still to come, once the count is known.
    missing: Option<u32>,
    /// Length of the argument whose bytes are awaited.
    bulk: Option<usize>,
    spans: Vec<Span>,
    /// The unescaped words of a hand-typed request.
    words: Vec<u8>,
    hand_typed: bool,
}

/// The arguments of a complete request, the name of the command first; at least one.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

/// Where an argument lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

/// A count or length with its line end, or why there is none.
enum Line {
    Value(i64, usize),
    Incomplete,
    Malformed,
}

// === impl RequestParser ===

impl RequestParser {
    /// A parser at the beginning of a request.
    pub fn new(limits: RequestLimits) -> Self {
        let (spans, words) = (Vec::new(), Vec::new());
        Self { limits, position: 0, missing: None, bulk: None, spans, words, hand_typed: false }
    }

    /// Reads on. `input` starts with the first byte of the request and holds at least what it held at the last call.
    ///
    /// # Errors
    /// [`ProtocolError`]; nothing that follows can be understood.
    pub fn parse(&mut self, input: &[u8]) -> Result<Parse, ProtocolError> {
        if self.missing.is_none() {
            match input {
                [] => return Ok(Parse::Incomplete(1)),
                [b'*', ..] => match line(input, 1) {
                    Line::Value(count, end) => self.begin(count, end)?,
                    Line::Incomplete => return Ok(Parse::Incomplete(1)),
                    Line::Malformed => return Err(ProtocolError::ArrayLength),
                },
                _ => return self.parse_inline(input),
            }
        }
        while let Some(missing) = self.missing.filter(|&missing| missing > 0) {
            let Some(length) = self.bulk_length(input)? else { return Ok(Parse::Incomplete(1)) };
            let end = self.position + length;
            match input.get(end..end + 2) {
                Some(b"\r\n") => {}
                Some(_) => return Err(ProtocolError::NotTerminated),
                None => return Ok(Parse::Incomplete(end + 2 - input.len())),
            }
            self.spans.push(Span::new(self.position, length));
            self.position = end + 2;
            self.bulk = None;
            self.missing = Some(missing - 1);
        }
        let complete = if self.spans.is_empty() { Parse::Empty } else { Parse::Complete };
        Ok(complete(self.position))
    }

    /// The arguments of the request that `parse` found complete in the same input.
    pub fn arguments<'a>(&'a self, input: &'a [u8]) -> Arguments<'a> {
        Arguments { bytes: if self.hand_typed { &self.words } else { input }, spans: &self.spans }
    }

    /// Whether a request has begun and is not complete.
    pub fn is_within(&self) -> bool {
        self.position > 0
    }

    /// Goes to the beginning of the next request, and gives back the room of a large one.
    pub fn reset(&mut self) {
        self.position = 0;
        self.missing = None;
        self.bulk = None;
        self.hand_typed = false;
        self.spans.clear();
        self.words.clear();
        if self.spans.capacity() > ARGUMENTS_KEPT {
            self.spans.shrink_to(0);
        }
        if self.words.capacity() > WORDS_KEPT {
            self.words.shrink_to(0);
        }
    }

    fn begin(&mut self, count: i64, end: usize) -> Result<(), ProtocolError> {
        if count > ARGUMENTS_MAX {
            return Err(ProtocolError::ArrayLength);
        }
        // Redis skips arrays of zero and of any negative count.
        self.missing = Some(u32::try_from(count).unwrap_or(0));
        self.position = end;
        Ok(())
    }

    /// The length of the next argument, with `position` moved to its first byte; nothing if its line has not ended.
    fn bulk_length(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if let Some(length) = self.bulk {
            return Ok(Some(length));
        }
        match input.get(self.position) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(&other) => return Err(ProtocolError::NotBulk(other)),
        }
        let (length, end) = match line(input, self.position + 1) {
            Line::Value(length, end) => (length, end),
            Line::Incomplete => return Ok(None),
            Line::Malformed => return Err(ProtocolError::BulkLength),
        };
        let bytes = u64::try_from(length).map_err(|_| ProtocolError::BulkLength)?;
        let bytes_max = self.limits.argument_bytes_max;
        let length = usize::try_from(bytes).ok().filter(|&length| length <= bytes_max);
        let length = length.ok_or(ProtocolError::BulkTooLong { bytes, bytes_max })?;
        if end + length > self.limits.request_bytes_max {
            return Err(ProtocolError::RequestTooLong { bytes_max: self.limits.request_bytes_max });
        }
        self.position = end;
        self.bulk = Some(length);
        Ok(Some(length))
    }

    fn parse_inline(&mut self, input: &[u8]) -> Result<Parse, ProtocolError> {
        // Bytes before `position` were searched in an earlier call.
        let searched = &input[..input.len().min(INLINE_BYTES_MAX)];
        let Some(newline) = searched[self.position..].iter().position(|&byte| byte == b'\n') else {
            if searched.len() == INLINE_BYTES_MAX {
                return Err(ProtocolError::InlineTooLong);
            }
            self.position = searched.len();
            return Ok(Parse::Incomplete(1));
        };
        let end = self.position + newline;
        let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
        self.hand_typed = true;
        if !inline::split(line, &mut self.words, &mut self.spans) {
            return Err(ProtocolError::Quotes);
        }
        let complete = if self.spans.is_empty() { Parse::Empty } else { Parse::Complete };
        Ok(complete(end + 1))
    }
}

/// Reads the integer that begins at `start` and ends with CR LF.
fn line(input: &[u8], start: usize) -> Line {
    // Almost all lengths have one to three digits: a plain loop beats a search for the line end.
    let text = &input[start..];
    let digits =
        text.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'-').take(COUNT_BYTES_MAX + 1).count();
    match (digits, &text[digits..]) {
        (..=COUNT_BYTES_MAX, [] | [b'\r']) => Line::Incomplete,
        (..=COUNT_BYTES_MAX, [b'\r', b'\n', ..]) => match parse_i64(&text[..digits]) {
            Some(value) => Line::Value(value, start + digits + 2),
            None => Line::Malformed,
        },
        _ => Line::Malformed,
    }
}

// === impl Arguments ===

impl<'a> Arguments<'a> {
    /// The arguments, the name of the command included.
    #[allow(clippy::len_without_is_empty, reason = "there is always a name")]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// The name of the command.
    pub fn name(&self) -> &'a [u8] {
        self.at(0)
    }

    /// The argument at `index`; the name has index 0.
    ///
    /// # Panics
    /// If there is none: the number of arguments is checked before a command runs.
    pub fn at(&self, index: usize) -> &'a [u8] {
        self.spans[index].of(self.bytes)
    }

    /// The argument at `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        self.spans.get(index).map(|span| span.of(self.bytes))
    }

    /// The arguments from `index` on.
    pub fn from(&self, index: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        let bytes = self.bytes;
        self.spans[index.min(self.spans.len())..].iter().map(move |span| span.of(bytes))
    }
}

// === impl Span ===

impl Span {
    pub(super) fn new(start: usize, len: usize) -> Self {
        let narrow = |number: usize| u32::try_from(number).expect("requests are limited to far less than 4 GiB");
        Self { start: narrow(start), len: narrow(len) }
    }

    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..][..self.len as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits { argument_bytes_max: 1000, request_bytes_max: 2000 };

    fn parse(input: &[u8]) -> Result<(Parse, Vec<Vec<u8>>), ProtocolError> {
        let mut parser = RequestParser::new(LIMITS);
        let parsed = parser.parse(input)?;
        let words = match parsed {
            Parse::Complete(_) => parser.arguments(input).from(0).map(<[u8]>::to_vec).collect(),
            Parse::Empty(_) | Parse::Incomplete(_) => Vec::new(),
        };
        Ok((parsed, words))
    }

    #[test]
    fn an_array_of_bulk_strings_is_a_request() {
        let (parsed, words) = parse(b"*2\r\n$4\r\nECHO\r\n$3\r\na\r\n\r\n*1").unwrap();
        assert_eq!(parsed, Parse::Complete(23));
        assert_eq!(words, [b"ECHO".to_vec(), b"a\r\n".to_vec()]);
    }

    #[test]
    fn a_line_is_a_request() {
        let (parsed, words) = parse(b"ECHO 'a b'\r\n").unwrap();
        assert_eq!(parsed, Parse::Complete(12));
        assert_eq!(words, [b"ECHO".to_vec(), b"a b".to_vec()]);
        assert_eq!(parse(b"PING\n").unwrap().0, Parse::Complete(5));
    }

    #[test]
    fn empty_requests_are_skipped() {
        for (input, length) in [(&b"*0\r\n"[..], 4), (b"*-1\r\n", 5), (b"\r\n", 2), (b"\n", 1), (b"  \r\n", 4)] {
            assert_eq!(parse(input).unwrap().0, Parse::Empty(length), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn a_request_in_pieces_is_the_same_request() {
        let whole: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$10\r\n0123456789\r\n";
        for cut in 1..whole.len() {
            let mut parser = RequestParser::new(LIMITS);
            assert!(matches!(parser.parse(&whole[..cut]), Ok(Parse::Incomplete(_))), "cut at {cut}");
            assert_eq!(parser.parse(whole), Ok(Parse::Complete(whole.len())), "cut at {cut}");
            assert_eq!(parser.arguments(whole).at(2), b"0123456789");
        }
    }

    #[test]
    fn malformed_requests_name_what_is_wrong() {
        let cases: [(&[u8], ProtocolError); 16] = [
            (b"*1048577\r\n", ProtocolError::ArrayLength),
            (b"*9223372036854775808\r\n", ProtocolError::ArrayLength),
            (b"*1e3\r\n", ProtocolError::ArrayLength),
            (b"*+1\r\n", ProtocolError::ArrayLength),
            (b"*01\r\n", ProtocolError::ArrayLength),
            (b"* 1\r\n", ProtocolError::ArrayLength),
            (b"*1\rX", ProtocolError::ArrayLength),
            (b"*111111111111111111111", ProtocolError::ArrayLength),
            (b"*1\r\n$-1\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$x\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$1001\r\n", ProtocolError::BulkTooLong { bytes: 1001, bytes_max: 1000 }),
            (b"*1\r\n*1\r\n", ProtocolError::NotBulk(b'*')),
            (b"*1\r\n:1\r\n", ProtocolError::NotBulk(b':')),
            (b"*1\r\n$1\r\nab\r\n", ProtocolError::NotTerminated),
            (b"*1\r\n$2\r\nab\n\n", ProtocolError::NotTerminated),
            (b"SET \"k\r\n", ProtocolError::Quotes),
        ];
        for (input, error) in cases {
            assert_eq!(parse(input).unwrap_err(), error, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn a_line_without_end_is_refused_at_64_kib() {
        let line = vec![b'a'; INLINE_BYTES_MAX];
        assert_eq!(parse(&line).unwrap_err(), ProtocolError::InlineTooLong);
        assert_eq!(parse(&line[1..]).unwrap().0, Parse::Incomplete(1));
    }

    #[test]
    fn all_arguments_together_are_limited() {
        let mut request = b"*3\r\n$1\r\nx\r\n".to_vec();
        for _ in 0..2 {
            request.extend_from_slice(b"$1000\r\n");
            request.extend_from_slice(&[b'a'; 1000]);
            request.extend_from_slice(b"\r\n");
        }
        assert_eq!(parse(&request).unwrap_err(), ProtocolError::RequestTooLong { bytes_max: 2000 });
    }

    #[test]
    fn an_announced_count_reserves_nothing() {
        let mut parser = RequestParser::new(LIMITS);
        assert_eq!(parser.parse(b"*1048576\r\n"), Ok(Parse::Incomplete(1)));
        assert_eq!(parser.spans.capacity(), 0);
    }
}
