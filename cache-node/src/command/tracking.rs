//! Near caches: a client that keeps values of its own is told when they are no longer good, over the connection that
//! read them (RESP3 pushes).
//!
//! Source: <https://redis.io/docs/latest/develop/reference/client-side-caching/>.

mod mailbox;
mod shard;
mod table;

use std::{sync::Arc, task::Waker};

use self::mailbox::Mailbox;
pub use self::table::{Held, Reason, Table};
use super::{Call, Commands, Session, Step, error, table::Keys};
use crate::{
    entry::Entry,
    protocol::{Arguments, Protocol, Replies},
};

/// Prefixes of one client.
const PREFIXES_MAX: usize = 64;

/// What a connection that tracks has asked for. Dropped, it ends to track.
#[derive(Debug)]
pub(super) struct Tracking {
    table: Arc<Table>,
    mailbox: Arc<Mailbox>,
    mode: Mode,
    /// `CLIENT CACHING` was said for the next command.
    caching: bool,
}

/// Of which keys a client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    /// Of those that it reads.
    Read(Opt),
    /// Of those with one of these prefixes.
    Broadcast(Vec<Vec<u8>>),
}

/// Which reads count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    /// All.
    Always,
    /// Those after `CLIENT CACHING YES`.
    In,
    /// All but those after `CLIENT CACHING NO`.
    Out,
}

/// `CLIENT TRACKING ON`, from the fourth word on.
#[derive(Debug, Default, PartialEq, Eq)]
struct TrackingOptions {
    broadcast: bool,
    opt_in: bool,
    opt_out: bool,
    noloop: bool,
    prefixes: Vec<Vec<u8>>,
}

/// A connection's part in what its commands do to near caches.
#[derive(Clone, Debug)]
pub struct Near(Arc<Mailbox>);

// === impl TrackingOptions ===

impl TrackingOptions {
    fn parse(args: &Arguments<'_>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = args.from(3);
        while let Some(word) = words.next() {
            match word.to_ascii_lowercase().as_slice() {
                b"bcast" => options.broadcast = true,
                b"optin" => options.opt_in = true,
                b"optout" => options.opt_out = true,
                b"noloop" => options.noloop = true,
                b"prefix" => options.prefixes.push(words.next().ok_or(error::SYNTAX)?.to_vec()),
                b"redirect" => return Err(error::NO_REDIRECT.to_owned()),
                _ => return Err(error::SYNTAX.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether they fit each other and what the client tracks already, with the texts of Redis.
    fn check(&self, current: Option<&Mode>) -> Result<(), String> {
        let switches = |wanted: Opt, refused: Opt| self.opt() == wanted && current == Some(&Mode::Read(refused));
        let broadcasts = current.map(|mode| matches!(mode, Mode::Broadcast(_)));
        let problem = if !self.broadcast && !self.prefixes.is_empty() {
            error::PREFIX_WITHOUT_BCAST
        } else if broadcasts.is_some_and(|broadcasts| broadcasts != self.broadcast) {
            error::SWITCH_BCAST
        } else if self.broadcast && (self.opt_in || self.opt_out) {
            error::OPT_WITH_BCAST
        } else if self.opt_in && self.opt_out {
            error::OPTIN_WITH_OPTOUT
        } else if switches(Opt::In, Opt::Out) || switches(Opt::Out, Opt::In) {
            error::SWITCH_OPT
        } else {
            return self.check_prefixes(current);
        };
        Err(problem.to_owned())
    }

    fn check_prefixes(&self, current: Option<&Mode>) -> Result<(), String> {
        let existing = match current {
            Some(Mode::Broadcast(prefixes)) => prefixes.as_slice(),
            _ => &[],
        };
        if existing.len() + self.prefixes.len() > PREFIXES_MAX {
            return Err(format!("ERR a client can have {PREFIXES_MAX} prefixes"));
        }
        for (index, prefix) in self.prefixes.iter().enumerate() {
            let overlaps = |other: &&Vec<u8>| prefix.starts_with(other) || other.starts_with(prefix);
            let overlap = existing.iter().find(overlaps).map(|other| ("an existing", other));
            let overlap =
                overlap.or_else(|| self.prefixes[..index].iter().find(overlaps).map(|o| ("another provided", o)));
            if let Some((which, other)) = overlap {
                let (prefix, other) = (error::quoted(prefix), error::quoted(other));
                return Err(format!(
                    "ERR Prefix '{prefix}' overlaps with {which} prefix '{other}'. Prefixes for a single client must \
                     not overlap."
                ));
            }
        }
        Ok(())
    }

    fn opt(&self) -> Opt {
        match (self.opt_in, self.opt_out) {
            (true, _) => Opt::In,
            (_, true) => Opt::Out,
            _ => Opt::Always,
        }
    }
}

// === impl Tracking ===

impl Tracking {
    fn begin(table: &Arc<Table>) -> Self {
        let table = Arc::clone(table);
        Self { mailbox: table.join(), table, mode: Mode::Read(Opt::Always), caching: false }
    }

    /// Takes over options that were checked. What the client has read so far stays entered.
    fn apply(&mut self, options: TrackingOptions) {
        self.mailbox.spare(options.noloop);
        if !options.broadcast {
            self.mode = Mode::Read(options.opt());
            return;
        }
        let mut prefixes = match &mut self.mode {
            Mode::Broadcast(prefixes) => std::mem::take(prefixes),
            Mode::Read(_) => Vec::new(),
        };
        // Without a prefix: all keys, which is the empty one.
        let added =
            if options.prefixes.is_empty() && prefixes.is_empty() { vec![Vec::new()] } else { options.prefixes };
        added.iter().for_each(|prefix| self.table.broadcast(prefix, &self.mailbox));
        prefixes.extend(added);
        self.mode = Mode::Broadcast(prefixes);
    }

    /// Enters the client for the keys of a command that reads, before it is run.
    pub(super) fn remember(&mut self, call: &Call<'_>) {
        let caching = self.caching;
        let wanted = match &self.mode {
            Mode::Read(Opt::Always) => true,
            Mode::Read(Opt::In) => caching,
            Mode::Read(Opt::Out) => !caching,
            Mode::Broadcast(_) => false,
        };
        let spec = call.verb.spec();
        if !wanted || !spec.reads_keys() {
            return;
        }
        let last = if spec.keys == Keys::First { 2 } else { call.args.len() };
        call.args.from(1).take(last - 1).for_each(|key| self.table.remember(key, &self.mailbox));
    }

    /// `CLIENT CACHING` holds for one command. The `CLIENT` commands do not count as one.
    pub(super) fn end_command(&mut self) {
        self.caching = false;
    }

    pub(super) fn near(&self) -> Near {
        Near(Arc::clone(&self.mailbox))
    }

    /// The operation under which the connection's commands run from now on.
    pub(super) fn runs(&self, operation: u64) {
        self.mailbox.runs(operation);
    }

    pub(super) fn deliver(&self, waker: &Waker, out: &mut Replies) {
        self.mailbox.deliver(waker, out);
    }

    /// As in `CLIENT INFO`.
    pub(super) fn flags(&self) -> &'static str {
        if matches!(self.mode, Mode::Broadcast(_)) { "tB" } else { "t" }
    }

    /// As in `CLIENT TRACKINGINFO`.
    fn words(&self) -> Vec<&'static str> {
        let mode: &[&str] = match (&self.mode, self.caching) {
            (Mode::Broadcast(_), _) => &["bcast"],
            (Mode::Read(Opt::Always), _) => &[],
            (Mode::Read(Opt::In), false) => &["optin"],
            (Mode::Read(Opt::In), true) => &["optin", "caching-yes"],
            (Mode::Read(Opt::Out), false) => &["optout"],
            (Mode::Read(Opt::Out), true) => &["optout", "caching-no"],
        };
        let noloop: &[&str] = if self.mailbox.is_spared() { &["noloop"] } else { &[] };
        [&["on"], mode, noloop].concat()
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        self.table.leave(&self.mailbox);
    }
}

// === impl Near ===

impl Near {
    /// The operation under which the connection's command goes on.
    pub(super) fn runs(&self, operation: u64) {
        self.0.runs(operation);
    }
}

// === impl Commands ===

impl Commands {
    /// Which clients hold which keys, for metrics and for the task that must run.
    pub fn near_caches(&self) -> Arc<Table> {
        Arc::clone(&self.near_caches)
    }

    /// A client that tracks has read this: its life and its tags end what the client holds, too.
    pub(super) fn learn(&self, entry: Option<&Entry>) {
        let Some(entry) = entry.filter(|entry| entry.expires_at().is_some() || !entry.tags().is_empty()) else {
            return;
        };
        self.near_caches.learn(entry);
        // Removed while it was read: the removal may have been looked up before the tags were there to be found.
        if self.coordinator.tags().is_removed(entry.tags(), entry.position()) {
            self.near_caches.forget(entry.key(), 0, Reason::Tagged);
        }
    }

    /// `CLIENT …`: here what is about tracking, in the session all else.
    pub(super) fn client(&self, session: &mut Session, call: &Call<'_>, out: &mut Replies) -> Step {
        let args = call.args;
        let outcome = match (args.at(1).to_ascii_lowercase().as_slice(), args.len()) {
            (b"tracking", 3..) => self.client_tracking(session, call),
            (b"caching", 3) => client_caching(session, args.at(2)),
            (b"trackinginfo", 2) => {
                tracking_info(session, out);
                return Step::Done;
            }
            (b"getredir", 2) => {
                out.integer(if session.tracking.is_some() { 0 } else { -1 });
                return Step::Done;
            }
            (b"tracking" | b"caching" | b"trackinginfo" | b"getredir", _) => {
                error::subcommand_arity(out, "client", args.at(1));
                return Step::Done;
            }
            _ => return session.client(call, out),
        };
        match outcome {
            Ok(()) => out.simple("OK"),
            Err(text) => out.error(&text),
        }
        Step::Done
    }

    /// `CLIENT TRACKING ON|OFF [BCAST] [PREFIX prefix …] [OPTIN] [OPTOUT] [NOLOOP]`
    fn client_tracking(&self, session: &mut Session, call: &Call<'_>) -> Result<(), String> {
        let options = TrackingOptions::parse(&call.args)?;
        match call.args.at(2).to_ascii_lowercase().as_slice() {
            b"on" => {
                if session.protocol() == Protocol::Resp2 {
                    return Err(error::TRACKING_NEEDS_RESP3.to_owned());
                }
                options.check(session.tracking.as_ref().map(|tracking| &tracking.mode))?;
                let begin = || Box::new(Tracking::begin(&self.near_caches));
                session.tracking.get_or_insert_with(begin).apply(options);
                session.runs(call.cx.id);
            }
            b"off" => session.tracking = None,
            _ => return Err(error::SYNTAX.to_owned()),
        }
        Ok(())
    }
}

/// `CLIENT CACHING YES|NO`
fn client_caching(session: &mut Session, word: &[u8]) -> Result<(), String> {
    let Some((tracking, Mode::Read(opt @ (Opt::In | Opt::Out)))) =
        session.tracking.as_mut().map(|tracking| (&mut tracking.caching, &tracking.mode))
    else {
        return Err(error::CACHING_WITHOUT_OPT.to_owned());
    };
    match (word.to_ascii_lowercase().as_slice(), opt) {
        (b"yes", Opt::In) | (b"no", Opt::Out) => *tracking = true,
        (b"yes", _) => return Err(error::CACHING_YES.to_owned()),
        (b"no", _) => return Err(error::CACHING_NO.to_owned()),
        _ => return Err(error::SYNTAX.to_owned()),
    }
    Ok(())
}

/// `CLIENT TRACKINGINFO`
fn tracking_info(session: &Session, out: &mut Replies) {
    let tracking = session.tracking.as_deref();
    let words = tracking.map_or_else(|| vec!["off"], Tracking::words);
    out.map(3);
    out.bulk(b"flags");
    out.set(words.len());
    words.iter().for_each(|word| out.bulk(word.as_bytes()));
    out.bulk(b"redirect");
    out.integer(if tracking.is_some() { 0 } else { -1 });
    out.bulk(b"prefixes");
    let prefixes = match tracking.map(|tracking| &tracking.mode) {
        Some(Mode::Broadcast(prefixes)) => prefixes.as_slice(),
        _ => &[],
    };
    out.array(prefixes.len());
    prefixes.iter().for_each(|prefix| out.bulk(prefix));
}

#[cfg(test)]
mod tests;
