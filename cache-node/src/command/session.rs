//! The state of one client's connection, and the commands that read and change it.

use std::{fmt::Write, net::SocketAddr, task::Waker, time::Duration};

use super::{Call, Near, Step, error, tracking::Tracking};
use crate::{
    clock::UnixMillis,
    protocol::{Protocol, Replies, parse_i64},
    slow_log::SlowClient,
};

/// Longest name or library text that a client may give itself.
const NAME_BYTES_MAX: usize = 256;

/// What the node knows about one client.
#[derive(Debug)]
pub struct Session {
    /// Unique on this node since its start.
    pub id: u64,
    /// Where the client is.
    pub peer: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
    /// When it connected.
    pub connected_at: UnixMillis,
    /// When it last sent something.
    pub active_at: UnixMillis,
    protocol: Protocol,
    name: String,
    library_name: String,
    library_version: String,
    /// Boxed, because few connections have one.
    pub(super) tracking: Option<Box<Tracking>>,
}

// === impl Session ===

impl Session {
    /// A client that has said nothing yet.
    pub fn new(id: u64, peer: SocketAddr, local: SocketAddr, now: UnixMillis) -> Self {
        Self {
            id,
            peer,
            local,
            connected_at: now,
            active_at: now,
            protocol: Protocol::default(),
            name: String::new(),
            library_name: String::new(),
            library_version: String::new(),
            tracking: None,
        }
    }

    /// The version of the protocol it asked for.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What this connection's commands need for near caches; none if it does not track.
    #[inline]
    pub fn near(&self) -> Option<Near> {
        self.tracking.as_ref().map(|tracking| tracking.near())
    }

    /// The operation under which the commands of this connection run from now on.
    #[inline]
    pub fn runs(&self, operation: u64) {
        if let Some(tracking) = &self.tracking {
            tracking.runs(operation);
        }
    }

    /// Writes the news for a client that tracks, and has the task woken by later ones. To be called between replies.
    #[inline]
    pub fn deliver(&self, waker: &Waker, out: &mut Replies) {
        if let Some(tracking) = &self.tracking {
            tracking.deliver(waker, out);
        }
    }

    /// Who the client is, for the slow log.
    pub fn slow_client(&self) -> SlowClient {
        SlowClient { address: self.peer, name: self.name.clone() }
    }

    /// `HELLO [version [SETNAME name]]`
    pub(super) fn hello(&mut self, call: &Call<'_>, out: &mut Replies) -> Step {
        match self.greeted(call) {
            Ok((protocol, name)) => {
                self.protocol = protocol;
                // Nothing can be pushed in RESP2: what is no longer told must not be promised.
                self.tracking = self.tracking.take().filter(|_| protocol == Protocol::Resp3);
                self.name = name.unwrap_or_else(|| std::mem::take(&mut self.name));
                out.speak(protocol);
                self.introduce(out);
            }
            Err(text) => out.error(&text),
        }
        Step::Done
    }

    fn greeted(&self, call: &Call<'_>) -> Result<(Protocol, Option<String>), String> {
        let protocol = match call.args.get(1).map(parse_i64) {
            None => self.protocol,
            Some(None) => return Err(error::PROTOCOL_NOT_INTEGER.to_owned()),
            Some(Some(2)) => Protocol::Resp2,
            Some(Some(3)) => Protocol::Resp3,
            Some(Some(_)) => return Err(error::NO_PROTOCOL.to_owned()),
        };
        let mut options = call.args.from(2);
        let mut name = None;
        while let Some(option) = options.next() {
            if option.eq_ignore_ascii_case(b"setname") && options.len() >= 1 {
                name = Some(options.next().and_then(plain_text).ok_or(error::CLIENT_NAME)?);
            } else if option.eq_ignore_ascii_case(b"auth") && options.len() >= 2 {
                return Err(error::NO_PASSWORD.to_owned());
            } else {
                return Err(format!("ERR Syntax error in HELLO option '{}'", error::quoted(option)));
            }
        }
        Ok((protocol, name))
    }

    fn introduce(&self, out: &mut Replies) {
        out.map(7);
        for (key, value) in [("server", "redis"), ("version", super::REDIS_VERSION)] {
            out.bulk(key.as_bytes());
            out.bulk(value.as_bytes());
        }
        for (key, value) in [("proto", self.protocol.version()), ("id", signed(self.id))] {
            out.bulk(key.as_bytes());
            out.integer(value);
        }
        for (key, value) in [("mode", "standalone"), ("role", "master")] {
            out.bulk(key.as_bytes());
            out.bulk(value.as_bytes());
        }
        out.bulk(b"modules");
        out.array(0);
    }

    /// `RESET`
    pub(super) fn reset(&mut self, out: &mut Replies) -> Step {
        self.protocol = Protocol::Resp2;
        self.name.clear();
        self.tracking = None;
        out.speak(self.protocol);
        out.simple("RESET");
        Step::Done
    }

    /// `CLIENT ID|GETNAME|SETNAME|SETINFO|INFO|HELP`
    pub(super) fn client(&mut self, call: &Call<'_>, out: &mut Replies) -> Step {
        let args = call.args;
        match (args.at(1).to_ascii_lowercase().as_slice(), args.len()) {
            (b"id", 2) => out.integer(signed(self.id)),
            (b"getname", 2) if self.name.is_empty() => out.null(),
            (b"getname", 2) => out.bulk(self.name.as_bytes()),
            (b"setname", 3) => match plain_text(args.at(2)) {
                Some(name) => {
                    self.name = name;
                    out.simple("OK");
                }
                None => out.error(error::CLIENT_NAME),
            },
            (b"setinfo", 4) => self.set_info(args.at(2), args.at(3), out),
            (b"info", 2) => out.verbatim(&self.describe(call.cx.now)),
            (b"help", 2) => error::help(out, "CLIENT", &SUBCOMMANDS),
            (b"id" | b"getname" | b"setname" | b"setinfo" | b"info" | b"help", _) => {
                error::subcommand_arity(out, "client", args.at(1));
            }
            _ => error::unknown_subcommand(out, "CLIENT", args.at(1)),
        }
        Step::Done
    }

    fn set_info(&mut self, attribute: &[u8], value: &[u8], out: &mut Replies) {
        let (field, label) = match attribute.to_ascii_lowercase().as_slice() {
            b"lib-name" => (&mut self.library_name, "lib-name"),
            b"lib-ver" => (&mut self.library_version, "lib-ver"),
            _ => return out.error(&format!("ERR Unrecognized option '{}'", error::quoted(attribute))),
        };
        match plain_text(value) {
            Some(text) => {
                *field = text;
                out.simple("OK");
            }
            None => out.error(&format!("ERR {label} cannot contain spaces, newlines or special characters.")),
        }
    }

    /// One line as in Redis, with the fields that mean something here.
    fn describe(&self, now: UnixMillis) -> String {
        let seconds = |span: Duration| span.as_secs();
        let mut line = String::new();
        let written = writeln!(
            line,
            "id={} addr={} laddr={} name={} age={} idle={} flags={} db=0 sub=0 psub=0 multi=-1 resp={} lib-name={} \
             lib-ver={} user=default",
            self.id,
            self.peer,
            self.local,
            self.name,
            seconds(now.since(self.connected_at)),
            seconds(now.since(self.active_at)),
            self.tracking.as_ref().map_or("N", |tracking| tracking.flags()),
            self.protocol.version(),
            self.library_name,
            self.library_version,
        );
        written.expect("a String takes any text");
        line
    }
}

const SUBCOMMANDS: [&str; 9] = [
    "CACHING (YES|NO)",
    "GETNAME",
    "GETREDIR",
    "ID",
    "INFO",
    "SETINFO (LIB-NAME|LIB-VER) <text>",
    "SETNAME <name>",
    "TRACKING (ON|OFF) [BCAST] [PREFIX <prefix> ...] [OPTIN] [OPTOUT] [NOLOOP]",
    "TRACKINGINFO",
];

/// Text without spaces and special characters, as names of clients must be.
fn plain_text(bytes: &[u8]) -> Option<String> {
    let plain = bytes.len() <= NAME_BYTES_MAX && bytes.iter().all(u8::is_ascii_graphic);
    plain.then(|| String::from_utf8_lossy(bytes).into_owned())
}

fn signed(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}
