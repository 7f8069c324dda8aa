//! Replies, encoded as they are made.

use super::number::push_i64;
use crate::entry::Entry;

/// Values from this size on are sent from where they lie; below, a copy costs less than a second piece to send.
const SHARED_BYTES_MIN: usize = 16 * 1024;

/// Room that a buffer keeps after its replies were sent.
const BUFFER_BYTES_KEPT: usize = 512 * 1024;

/// The version of the protocol that a client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// What every client speaks before `HELLO 3`.
    #[default]
    Resp2,
    /// With maps and one kind of null.
    Resp3,
}

/// Replies on their way to one client: small ones as bytes in one buffer, large values by reference.
///
/// Unbounded in itself: whoever fills it stops at a size of [`Replies::len`].
#[derive(Debug, Default)]
pub struct Replies {
    protocol: Protocol,
    bytes: Vec<u8>,
    /// Large values, each with the position in `bytes` that it is sent before.
    shared: Vec<(usize, Entry)>,
    shared_bytes: usize,
    /// What of all this was sent already.
    sent: usize,
    errors: u64,
}

/// A stretch of bytes to send.
pub type Piece<'a> = &'a [u8];

// === impl Protocol ===

impl Protocol {
    /// As in `HELLO`.
    pub const fn version(self) -> i64 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}

// === impl Replies: encoding ===

impl Replies {
    /// Encodes the following replies for this protocol.
    pub fn speak(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// `+text`. The text has no line breaks.
    pub fn simple(&mut self, text: &str) {
        debug_assert!(!text.contains(['\r', '\n']), "a simple string ends at the first line break");
        self.line(b'+', text.as_bytes());
    }

    /// `-text`, counted. Line breaks, which a client's own words may bring in, become spaces.
    pub fn error(&mut self, text: &str) {
        self.error_bytes(text.as_bytes());
    }

    /// As [`Replies::error`], for a text that repeats bytes of a client.
    pub fn error_bytes(&mut self, text: &[u8]) {
        self.errors += 1;
        self.bytes.push(b'-');
        self.bytes.extend(text.iter().map(|&byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
        self.end_line();
    }

    /// `:value`.
    pub fn integer(&mut self, value: i64) {
        self.number(b':', value);
    }

    /// A string of any bytes.
    pub fn bulk(&mut self, value: &[u8]) {
        // Room at once, so that the four writes below do not each grow the buffer.
        self.bytes.reserve(value.len() + 32);
        self.number(b'$', length(value.len()));
        self.bytes.extend_from_slice(value);
        self.end_line();
    }

    /// The value of an entry; a large one is not copied.
    pub fn value(&mut self, entry: &Entry) {
        let value = entry.value();
        if value.len() < SHARED_BYTES_MIN {
            return self.bulk(value);
        }
        self.number(b'$', length(value.len()));
        self.shared_bytes += value.len();
        self.shared.push((self.bytes.len(), entry.clone()));
        self.end_line();
    }

    /// No value.
    pub fn null(&mut self) {
        self.bytes.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// No array, where RESP2 tells it from no value.
    pub fn null_array(&mut self) {
        self.bytes.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"*-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// The head of an array, whose `count` items follow.
    pub fn array(&mut self, count: usize) {
        self.number(b'*', length(count));
    }

    /// The head of a set, whose `count` items follow; an array in RESP2.
    pub fn set(&mut self, count: usize) {
        let mark = if self.protocol == Protocol::Resp3 { b'~' } else { b'*' };
        self.number(mark, length(count));
    }

    /// The head of a map, whose `count` pairs follow; a flat array in RESP2.
    pub fn map(&mut self, count: usize) {
        match self.protocol {
            Protocol::Resp2 => self.number(b'*', length(count * 2)),
            Protocol::Resp3 => self.number(b'%', length(count)),
        }
    }

    /// The head of a message that answers no request, whose `count` items follow. Only RESP3 has such.
    pub fn push(&mut self, count: usize) {
        debug_assert_eq!(self.protocol, Protocol::Resp3, "RESP2 has no place for it");
        self.number(b'>', length(count));
    }

    /// Text meant for people, which RESP3 marks as such.
    pub fn verbatim(&mut self, text: &str) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text.as_bytes()),
            Protocol::Resp3 => {
                self.number(b'=', length(text.len() + 4));
                self.bytes.extend_from_slice(b"txt:");
                self.bytes.extend_from_slice(text.as_bytes());
                self.end_line();
            }
        }
    }

    fn number(&mut self, mark: u8, value: i64) {
        self.bytes.push(mark);
        push_i64(&mut self.bytes, value);
        self.end_line();
    }

    fn line(&mut self, mark: u8, text: &[u8]) {
        self.bytes.push(mark);
        self.bytes.extend_from_slice(text);
        self.end_line();
    }

    fn end_line(&mut self) {
        self.bytes.extend_from_slice(b"\r\n");
    }
}

fn length(count: usize) -> i64 {
    i64::try_from(count).expect("nothing in memory is longer than an i64 can count")
}

// === impl Replies: sending ===

impl Replies {
    /// Bytes still to be sent, large values included.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.shared_bytes - self.sent
    }

    /// Whether all is sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Errors encoded since the last call.
    pub fn take_errors(&mut self) -> u64 {
        std::mem::take(&mut self.errors)
    }

    /// All that is still to be sent, if it lies in one piece; the usual case.
    pub fn one_piece(&self) -> Option<Piece<'_>> {
        self.shared.is_empty().then(|| &self.bytes[self.sent..])
    }

    /// What is still to be sent, piece by piece.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut start = 0;
        let with_shared = self.shared.iter().flat_map(move |(position, entry)| {
            let before = &self.bytes[start..*position];
            start = *position;
            [before, entry.value()]
        });
        let tail = self.shared.last().map_or(0, |(position, _)| *position);
        let mut skip = self.sent;
        with_shared.chain([&self.bytes[tail..]]).filter_map(move |piece| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            (skipped < piece.len()).then(|| &piece[skipped..])
        })
    }

    /// Notes that `count` more bytes were sent; gives up room that only large replies needed.
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
        debug_assert!(self.sent <= self.bytes.len() + self.shared_bytes, "nothing is sent twice");
        if self.is_empty() {
            self.clear();
        }
    }

    /// Forgets all that was not sent.
    pub fn clear(&mut self) {
        self.sent = 0;
        self.shared_bytes = 0;
        self.shared.clear();
        self.bytes.clear();
        if self.bytes.capacity() > BUFFER_BYTES_KEPT {
            self.bytes.shrink_to(0);
        }
        if self.shared.capacity() > 0 {
            self.shared = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryMeta;

    fn sent(replies: &Replies) -> Vec<u8> {
        replies.pieces().collect::<Vec<_>>().concat()
    }

    #[test]
    fn each_kind_of_reply_has_the_bytes_of_its_protocol() {
        let encode = |protocol| {
            let mut replies = Replies::default();
            replies.speak(protocol);
            replies.simple("OK");
            replies.error("ERR a\r\nb");
            replies.integer(-7);
            replies.bulk(b"a\r\n");
            replies.null();
            replies.null_array();
            replies.map(1);
            replies.set(2);
            replies.verbatim("hi");
            String::from_utf8(sent(&replies)).unwrap()
        };
        let common = "+OK\r\n-ERR a  b\r\n:-7\r\n$3\r\na\r\n\r\n";
        assert_eq!(encode(Protocol::Resp2), format!("{common}$-1\r\n*-1\r\n*2\r\n*2\r\n$2\r\nhi\r\n"));
        assert_eq!(encode(Protocol::Resp3), format!("{common}_\r\n_\r\n%1\r\n~2\r\n=6\r\ntxt:hi\r\n"));
    }

    #[test]
    fn a_large_value_is_sent_in_its_place_without_a_copy() {
        let large = vec![b'x'; SHARED_BYTES_MIN];
        let entry = Entry::new(b"k", &large, EntryMeta::default());
        let mut replies = Replies::default();
        replies.integer(1);
        replies.value(&entry);
        replies.value(&entry);
        replies.integer(2);
        let value = [b"$16384\r\n".as_slice(), &large, b"\r\n"].concat();
        let whole = [b":1\r\n".as_slice(), &value, &value, b":2\r\n"].concat();
        assert!(replies.one_piece().is_none());
        assert!(replies.bytes.len() < 64);
        for step in [1, 3, 1000, 20_000] {
            let before = sent(&replies);
            replies.advance(step);
            assert_eq!(sent(&replies), before[step..]);
        }
        replies.advance(whole.len() - 21_004);
        assert!(replies.is_empty());
        assert_eq!(sent(&replies), b"");
    }

    #[test]
    fn room_for_large_replies_is_given_back() {
        let mut replies = Replies::default();
        replies.bulk(&vec![0; BUFFER_BYTES_KEPT * 2]);
        replies.advance(replies.len());
        assert!(replies.bytes.capacity() <= BUFFER_BYTES_KEPT);
    }
}
