//! `SLOWLOG GET [count] | LEN | RESET | HELP`, as in Redis 7. Which layer took the time is told behind the arguments of
//! the command: clients decode six elements, and some fail on more.

use super::{Call, Commands, Step, error};
use crate::{
    protocol::{Replies, parse_i64},
    slow_log::{SlowCommand, SlowEntry},
};

/// Entries that GET tells if it is not asked for a number.
const COUNT_DEFAULT: usize = 10;

// === impl Commands ===

impl Commands {
    pub(super) fn slow_log(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let args = call.args;
        let log = &self.settings.slow_log;
        match (args.at(1).to_ascii_lowercase().as_slice(), args.len()) {
            (b"get", 2 | 3) => match count(args.get(2)) {
                Ok(count) => tell(&log.newest(count), out),
                Err(text) => out.error(text),
            },
            (b"len", 2) => out.integer(i64::try_from(log.len()).unwrap_or(i64::MAX)),
            (b"reset", 2) => {
                log.reset();
                out.simple("OK");
            }
            (b"help", 2) => error::help(out, "SLOWLOG", &["GET [<count>]", "LEN", "RESET"]),
            (b"get" | b"len" | b"reset" | b"help", _) => error::subcommand_arity(out, "slowlog", args.at(1)),
            _ => error::unknown_subcommand(out, "SLOWLOG", args.at(1)),
        }
        Step::Done
    }
}

/// How many entries were asked for; -1 asks for all.
fn count(arg: Option<&[u8]>) -> Result<usize, &'static str> {
    let Some(arg) = arg else { return Ok(COUNT_DEFAULT) };
    match parse_i64(arg) {
        Some(-1) => Ok(usize::MAX),
        Some(count) => usize::try_from(count).map_err(|_| error::SLOWLOG_COUNT),
        None => Err(error::SLOWLOG_COUNT),
    }
}

fn tell(entries: &[SlowEntry], out: &mut Replies) {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    out.array(entries.len());
    for SlowEntry { id, command } in entries {
        let SlowCommand { at, took, args, client, work } = command;
        out.array(6);
        out.integer(signed(*id));
        out.integer(signed(at.0 / 1000));
        out.integer(i64::try_from(took.as_micros()).unwrap_or(i64::MAX));
        out.array(args.len() + 1);
        args.iter().for_each(|arg| out.bulk(arg));
        out.bulk(work.remark().as_bytes());
        out.bulk(client.address.to_string().as_bytes());
        out.bulk(client.name.as_bytes());
    }
}
