//! What the RESP server counts: per thread, summed when somebody asks.

use crate::{
    command::{SPECS, ServerFacts, Verb},
    server::ConnectionLimit,
    tally::Tally,
};

/// Counters besides those of the commands, which come first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    UnknownCommand,
    ErrorReply,
    ProtocolError,
    Timeout,
    Panic,
    BytesIn,
    BytesOut,
}

const EVENTS: usize = Event::BytesOut as usize + 1;

/// The counters of one RESP server.
pub struct Counters {
    limit: ConnectionLimit,
    tally: Tally<{ SPECS.len() + EVENTS }>,
}

/// How often a command was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandCount {
    /// Its name in lower case; one of [`SPECS`], or `unknown`.
    pub command: &'static str,
    /// Since the start.
    pub count: u64,
}

/// What was counted since the server started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Connections open now.
    pub connections_open: u32,
    /// Connections that may be open.
    pub connections_max: u32,
    /// Connections accepted.
    pub connections_accepted: u64,
    /// Connections turned away because too many were open.
    pub connections_rejected: u64,
    /// Connections closed because the client stayed silent within a request or left a reply unread.
    pub connections_timed_out: u64,
    /// Connections closed because what they sent was not RESP.
    pub protocol_errors: u64,
    /// Connections ended by a fault of the node.
    pub panics: u64,
    /// Every command, whether it was run or not; `unknown` stands for all names that are none.
    pub commands: Vec<CommandCount>,
    /// Replies that were errors.
    pub error_replies: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
}

// === impl Counters ===

impl Counters {
    pub(super) fn new(limit: ConnectionLimit) -> Self {
        Self { limit, tally: Tally::new() }
    }

    /// Sums what all threads have counted.
    pub fn totals(&self) -> Totals {
        let run = SPECS.iter().map(|spec| CommandCount { command: spec.name, count: self.runs(spec.verb) });
        let unknown = CommandCount { command: "unknown", count: self.events(Event::UnknownCommand) };
        Totals {
            connections_open: self.limit.open(),
            connections_max: self.limit.open_max(),
            connections_accepted: self.limit.accepted(),
            connections_rejected: self.limit.rejected(),
            connections_timed_out: self.events(Event::Timeout),
            protocol_errors: self.events(Event::ProtocolError),
            panics: self.events(Event::Panic),
            commands: run.chain([unknown]).collect(),
            error_replies: self.events(Event::ErrorReply),
            bytes_in: self.events(Event::BytesIn),
            bytes_out: self.events(Event::BytesOut),
        }
    }

    pub(super) fn facts(&self) -> ServerFacts {
        let totals = self.totals();
        ServerFacts {
            connections: u64::from(totals.connections_open),
            connections_max: u64::from(totals.connections_max),
            connections_accepted: totals.connections_accepted,
            connections_rejected: totals.connections_rejected,
            commands: totals.commands.iter().map(|command| command.count).sum(),
            bytes_in: totals.bytes_in,
            bytes_out: totals.bytes_out,
            errors: totals.error_replies,
        }
    }

    pub(super) fn limit(&self) -> &ConnectionLimit {
        &self.limit
    }

    #[inline]
    pub(super) fn ran(&self, verb: Verb) {
        self.tally.add(verb as usize, 1);
    }

    #[inline]
    pub(super) fn note(&self, event: Event, count: u64) {
        self.tally.add(SPECS.len() + event as usize, count);
    }

    fn runs(&self, verb: Verb) -> u64 {
        self.tally.sum(verb as usize)
    }

    fn events(&self, event: Event) -> u64 {
        self.tally.sum(SPECS.len() + event as usize)
    }
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").field("totals", &self.totals()).finish()
    }
}
