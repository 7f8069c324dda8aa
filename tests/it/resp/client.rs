//! A Redis client that hides nothing: bytes out, replies in.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::program::PATIENCE;

/// A reply of either protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(String),
    Error(Vec<u8>),
    Integer(i64),
    Bulk(Vec<u8>),
    Verbatim(Vec<u8>),
    Null,
    NullArray,
    Array(Vec<Reply>),
    Set(Vec<Reply>),
    Map(Vec<(Reply, Reply)>),
    Push(Vec<Reply>),
}

/// One connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// The bytes of a request.
pub(crate) fn request<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args.iter().map(AsRef::as_ref) {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

// === impl Client ===

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_nodelay(true).expect("a TCP option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a positive time");
        stream.set_write_timeout(Some(PATIENCE)).expect("a positive time");
        Self { stream: BufReader::with_capacity(64 * 1024, stream) }
    }

    /// One command written as words, and its reply.
    pub(crate) fn call(&mut self, words: &str) -> Reply {
        self.call_args(&words.split(' ').collect::<Vec<_>>())
    }

    /// One command, and its reply.
    pub(crate) fn call_args<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        self.send(&request(args));
        self.reply()
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("the server reads");
    }

    /// Sends bytes that the server may not want to read; says whether it did.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Sends all requests while reading as many replies.
    pub(crate) fn pipeline(&mut self, requests: &[u8], count: usize) -> Vec<Reply> {
        let mut writer = self.stream.get_ref().try_clone().expect("a descriptor is free");
        std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(requests).expect("the server reads"));
            (0..count).map(|_| self.reply()).collect()
        })
    }

    /// The next reply.
    pub(crate) fn reply(&mut self) -> Reply {
        let line = self.line();
        let (mark, text) = line.split_first().expect("a reply has a mark");
        let number = || std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok()).expect("a number");
        let count = || usize::try_from(number()).ok();
        match mark {
            b'+' => Reply::Simple(String::from_utf8(text.to_vec()).expect("simple strings are text")),
            b'-' => Reply::Error(text.to_vec()),
            b':' => Reply::Integer(number()),
            b'_' => Reply::Null,
            b'$' => count().map_or(Reply::Null, |length| Reply::Bulk(self.body(length))),
            b'=' => Reply::Verbatim(self.body(count().expect("a length"))),
            b'*' => count().map_or(Reply::NullArray, |count| Reply::Array((0..count).map(|_| self.reply()).collect())),
            b'~' => Reply::Set((0..count().expect("a count")).map(|_| self.reply()).collect()),
            b'>' => Reply::Push((0..count().expect("a count")).map(|_| self.reply()).collect()),
            b'%' => Reply::Map((0..count().expect("a count")).map(|_| (self.reply(), self.reply())).collect()),
            other => panic!("a reply begins with {:?}", char::from(*other)),
        }
    }

    /// Everything that still comes, until the server closes or cuts the connection.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A connection that was cut ends what could be read, like one that was closed.
        let _ = self.stream.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }

    fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).expect("the server answers");
        assert!(line.ends_with(b"\r\n"), "the connection ended within a reply: {}", line.escape_ascii());
        line.truncate(line.len() - 2);
        line
    }

    fn body(&mut self, length: usize) -> Vec<u8> {
        let mut body = vec![0; length + 2];
        self.stream.read_exact(&mut body).expect("the server answers");
        assert!(body.ends_with(b"\r\n"), "a bulk ends with CR LF");
        body.truncate(length);
        body
    }
}

// === impl Reply ===

impl Reply {
    pub(crate) fn ok() -> Self {
        Self::Simple("OK".to_owned())
    }

    pub(crate) fn bulk(text: &str) -> Self {
        Self::Bulk(text.as_bytes().to_vec())
    }

    pub(crate) fn error(text: &str) -> Self {
        Self::Error(text.as_bytes().to_vec())
    }

    /// The value under a name of a map.
    pub(crate) fn field(&self, name: &str) -> Self {
        let Self::Map(pairs) = self else { panic!("a map: {self:?}") };
        let found = pairs.iter().find(|(key, _)| *key == Self::bulk(name));
        found.unwrap_or_else(|| panic!("{name} in {self:?}")).1.clone()
    }

    /// The text of a bulk or verbatim string.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Bulk(bytes) | Self::Verbatim(bytes) | Self::Error(bytes) => String::from_utf8_lossy(bytes).into(),
            Self::Simple(text) => text.clone(),
            other => panic!("no text: {other:?}"),
        }
    }
}
