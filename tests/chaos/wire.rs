//! Just enough RESP for clients that pipeline, and for a server of five commands.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Longer than any process is stopped here, so that no answer is given up that still comes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest value or argument.
const BULK_BYTES_MAX: usize = 1 << 20;
/// Longest array.
const ARRAY_LENGTH_MAX: usize = 1 << 16;

/// One connection of a client.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    line: Vec<u8>,
    bulk: Vec<u8>,
}

/// An answer; an array is its length, and its elements are the next answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    Bulk(&'a [u8]),
    Null,
    Array(usize),
}

/// Appends one command to `out`.
pub(crate) fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    let _ = write!(out, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(out, "${}\r\n", word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

// === impl Connection ===

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// As [`TcpStream::connect`].
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        Self::of(TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?)
    }

    /// Takes over an open one.
    ///
    /// # Errors
    /// If its options can not be set.
    pub(crate) fn of(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { stream: BufReader::with_capacity(64 << 10, stream), line: Vec::new(), bulk: Vec::new() })
    }

    /// Waits for an answer for as long as it takes.
    ///
    /// # Errors
    /// If the option can not be set.
    pub(crate) fn patient(self) -> io::Result<Self> {
        self.stream.get_ref().set_read_timeout(None)?;
        Ok(self)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the connection broke.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends one command and returns its answer.
    ///
    /// # Errors
    /// If the connection broke.
    pub(crate) fn ask(&mut self, words: &[&[u8]]) -> io::Result<Reply<'_>> {
        let mut bytes = Vec::new();
        command(&mut bytes, words);
        self.send(&bytes)?;
        self.reply()
    }

    /// The next answer.
    ///
    /// # Errors
    /// If the connection broke or what comes is not RESP.
    pub(crate) fn reply(&mut self) -> io::Result<Reply<'_>> {
        self.read_line()?;
        if self.line.starts_with(b"$") && self.line != b"$-1" {
            let length = number(&self.line[1..])?;
            self.read_bulk(length)?;
            return Ok(Reply::Bulk(&self.bulk));
        }
        let (&mark, text) = self.line.split_first().ok_or_else(malformed)?;
        match mark {
            b'+' => Ok(Reply::Simple(text)),
            b'-' => Ok(Reply::Error(text)),
            b':' => Ok(Reply::Integer(text_of(text)?.parse().map_err(|_| malformed())?)),
            b'$' | b'_' => Ok(Reply::Null),
            b'*' if text == b"-1" => Ok(Reply::Null),
            b'*' => number(text).map(Reply::Array),
            _ => Err(malformed()),
        }
    }

    /// The next command that a client sent; none if it went away.
    ///
    /// # Errors
    /// If the connection broke or what comes is not an array of bulk strings.
    pub(crate) fn request(&mut self) -> io::Result<Option<Vec<Vec<u8>>>> {
        if self.stream.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let Reply::Array(length) = self.reply()? else { return Err(malformed()) };
        let mut words = Vec::with_capacity(length.min(64));
        for _ in 0..length {
            let Reply::Bulk(word) = self.reply()? else { return Err(malformed()) };
            words.push(word.to_vec());
        }
        Ok(Some(words))
    }

    /// Whether more requests have arrived already.
    pub(crate) fn has_more(&self) -> bool {
        !self.stream.buffer().is_empty()
    }

    fn read_line(&mut self) -> io::Result<()> {
        self.line.clear();
        self.stream.read_until(b'\n', &mut self.line)?;
        if !self.line.ends_with(b"\r\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.line.truncate(self.line.len() - 2);
        Ok(())
    }

    fn read_bulk(&mut self, length: usize) -> io::Result<()> {
        self.bulk.resize(length + 2, 0);
        self.stream.read_exact(&mut self.bulk)?;
        self.bulk.truncate(length);
        Ok(())
    }
}

fn number(text: &[u8]) -> io::Result<usize> {
    let number: usize = text_of(text)?.parse().map_err(|_| malformed())?;
    if number > BULK_BYTES_MAX.max(ARRAY_LENGTH_MAX) { Err(malformed()) } else { Ok(number) }
}

fn text_of(text: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(text).map_err(|_| malformed())
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not what RESP allows here")
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// What a client reads when a server sends this.
    fn client_of(bytes: &'static [u8]) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || listener.accept().unwrap().0.write_all(bytes).unwrap());
        Connection::open(address).unwrap()
    }

    #[test]
    fn every_kind_of_reply_is_read() {
        let mut client = client_of(b"+OK\r\n-ERR no\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n_\r\n*2\r\n$0\r\n\r\n*-1\r\n");
        assert_eq!(client.reply().unwrap(), Reply::Simple(b"OK"));
        assert_eq!(client.reply().unwrap(), Reply::Error(b"ERR no"));
        assert_eq!(client.reply().unwrap(), Reply::Integer(-7));
        assert_eq!(client.reply().unwrap(), Reply::Bulk(b"a\r\n"));
        assert_eq!(client.reply().unwrap(), Reply::Null);
        assert_eq!(client.reply().unwrap(), Reply::Null);
        assert_eq!(client.reply().unwrap(), Reply::Array(2));
        assert_eq!(client.reply().unwrap(), Reply::Bulk(b""));
        assert_eq!(client.reply().unwrap(), Reply::Null);
    }

    #[test]
    fn reply_that_ends_early_or_is_none_is_an_error() {
        for bytes in [&b"+O"[..], b"$5\r\nab", b"?\r\n", b"\r\n", b"$x\r\n", b"*99999999999\r\n"] {
            assert!(client_of(bytes).reply().is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn request_is_an_array_of_words_until_the_client_goes() {
        let mut server = client_of(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
        assert_eq!(server.request().unwrap(), Some(vec![b"GET".to_vec(), b"k".to_vec()]));
        assert_eq!(server.request().unwrap(), None);
    }
}
