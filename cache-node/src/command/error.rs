//! The texts of errors: Redis's own where Redis has one, because clients match on them.

use super::table::Spec;
use crate::{
    coordinator::WriteError,
    protocol::{Arguments, Replies},
};

pub(super) const SYNTAX: &str = "ERR syntax error";
pub(super) const NOT_INTEGER: &str = "ERR value is not an integer or out of range";
pub(super) const OVERFLOW: &str = "ERR increment or decrement would overflow";
pub(super) const DECREMENT_OVERFLOW: &str = "ERR decrement would overflow";
pub(super) const STRING_TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
pub(super) const NX_WITH_OTHERS: &str = "ERR NX and XX, GT or LT options at the same time are not compatible";
pub(super) const GT_WITH_LT: &str = "ERR GT and LT options at the same time are not compatible";
pub(super) const DB_INDEX: &str = "ERR DB index is out of range";
pub(super) const PROTOCOL_NOT_INTEGER: &str = "ERR Protocol version is not an integer or out of range";
pub(super) const NO_PROTOCOL: &str = "NOPROTO unsupported protocol version";
pub(super) const CLIENT_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";
pub(super) const TRACKING_NEEDS_RESP3: &str = "ERR CLIENT TRACKING needs RESP3, in which invalidations are pushed; say \
                                               HELLO 3 first";
pub(super) const NO_REDIRECT: &str = "ERR REDIRECT is not supported; invalidations are pushed over the connection that \
                                      reads, in RESP3";
pub(super) const PREFIX_WITHOUT_BCAST: &str = "ERR PREFIX option requires BCAST mode to be enabled";
pub(super) const SWITCH_BCAST: &str = "ERR You can't switch BCAST mode on/off before disabling tracking for this client, \
                                       and then re-enabling it with a different mode.";
pub(super) const OPT_WITH_BCAST: &str = "ERR OPTIN and OPTOUT are not compatible with BCAST";
pub(super) const OPTIN_WITH_OPTOUT: &str = "ERR You can't specify both OPTIN mode and OPTOUT mode";
pub(super) const SWITCH_OPT: &str = "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, \
                                     and then re-enabling it with a different mode.";
pub(super) const CACHING_WITHOUT_OPT: &str = "ERR CLIENT CACHING can be called only when the client is in tracking mode \
                                              with OPTIN or OPTOUT mode enabled";
pub(super) const CACHING_YES: &str = "ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.";
pub(super) const CACHING_NO: &str = "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.";
pub(super) const SLOWLOG_COUNT: &str = "ERR count should be greater than or equal to -1";
pub(super) const NO_PASSWORD: &str = "ERR AUTH <password> called without any password configured for the default \
                                      user. Are you sure your configuration is correct?";

/// How much of a client's own words an error repeats, as in Redis.
const QUOTED_BYTES_MAX: usize = 128;

/// `text` shortened, to be repeated in an error.
pub(super) fn quoted(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(QUOTED_BYTES_MAX)]).into_owned()
}

pub(super) fn unknown_command(out: &mut Replies, args: &Arguments<'_>) {
    let name = args.name();
    let mut shown = Vec::new();
    for arg in args.from(1) {
        let room = QUOTED_BYTES_MAX.saturating_sub(shown.len());
        if room == 0 {
            break;
        }
        shown.extend_from_slice(&[b"'", &c_string(arg)[..c_string(arg).len().min(room)], b"' "].concat());
    }
    let name = &c_string(name)[..c_string(name).len().min(QUOTED_BYTES_MAX)];
    out.error_bytes(&[b"ERR unknown command '", name, b"', with args beginning with: ", &shown].concat());
}

/// What Redis, which is written in C, shows of a text: the bytes before the first zero.
fn c_string(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == 0).next().unwrap_or_default()
}

pub(super) fn arity(out: &mut Replies, spec: &Spec) {
    out.error(&format!("ERR wrong number of arguments for '{}' command", spec.name));
}

pub(super) fn subcommand_arity(out: &mut Replies, command: &str, name: &[u8]) {
    let name = quoted(&name.to_ascii_lowercase());
    out.error(&format!("ERR wrong number of arguments for '{command}|{name}' command"));
}

pub(super) fn unknown_subcommand(out: &mut Replies, command: &str, name: &[u8]) {
    out.error(&format!("ERR unknown subcommand '{}'. Try {command} HELP.", quoted(name)));
}

pub(super) fn invalid_expiry(command: &str) -> String {
    format!("ERR invalid expire time in '{command}' command")
}

/// What `<command> HELP` answers.
pub(super) fn help(out: &mut Replies, command: &str, subcommands: &[&str]) {
    out.array(subcommands.len() + 1);
    out.simple(&format!("{command} <subcommand> [<arg> ...]. Subcommands are:"));
    for subcommand in subcommands {
        out.simple(subcommand);
    }
}

/// A write that was not done.
pub(super) fn write(out: &mut Replies, error: &WriteError) {
    match error {
        // The word clients know for "full, try again later".
        WriteError::QueueFull => out.error(&format!("OOM {error}")),
        WriteError::Untold(_) => out.error(&format!("UNAVAILABLE {error}")),
        _ => out.error(&format!("ERR {error}")),
    }
}
