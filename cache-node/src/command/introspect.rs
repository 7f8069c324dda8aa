//! Commands about the server: COMMAND, CONFIG, DBSIZE, INFO, PING, SELECT, TIME.

use std::{fmt::Write, fs, sync::Arc};

use crds::{node_config::limits, quantity::ByteSize};
use tokio::task::spawn_blocking;

use super::{
    Call, Commands, REDIS_VERSION, ServerFacts, Step, error,
    later::Later,
    table::{Keys, SPECS, Spec, Verb},
};
use crate::{
    coordinator::Part,
    layer::{Component, Health, Stats},
    protocol::{Replies, parse_i64},
};

/// Longest pattern of CONFIG GET: names of settings are shorter, and matching costs pattern times name.
const PATTERN_BYTES_MAX: usize = 64;

/// The sections of INFO in the order they are shown.
const SECTIONS: [&str; 8] =
    ["server", "clients", "memory", "persistence", "stats", "replication", "keyspace", "layers"];

// === COMMAND ===

/// `COMMAND [COUNT | DOCS [name …] | INFO [name …] | LIST | HELP]`
pub(super) fn command(call: &Call<'_>, out: &mut Replies) -> Step {
    let args = call.args;
    let subcommand = args.get(1).map(<[u8]>::to_ascii_lowercase);
    match (subcommand.as_deref(), args.len()) {
        (None, _) => list(SPECS.iter(), out, describe),
        (Some(b"info"), 2) => list(SPECS.iter(), out, describe),
        (Some(b"info"), _) => {
            out.array(args.len() - 2);
            for name in args.from(2) {
                match Verb::find(name) {
                    Some(verb) => describe(verb.spec(), out),
                    None => out.null_array(),
                }
            }
        }
        (Some(b"docs"), 2) => docs(SPECS.iter().collect(), out),
        (Some(b"docs"), _) => docs(args.from(2).filter_map(Verb::find).map(Verb::spec).collect(), out),
        (Some(b"count"), 2) => out.integer(i64::try_from(SPECS.len()).unwrap_or(i64::MAX)),
        (Some(b"list"), 2) => list(SPECS.iter(), out, |spec, out| out.bulk(spec.name.as_bytes())),
        (Some(b"help"), 2) => error::help(out, "COMMAND", &["COUNT", "DOCS [<name> ...]", "INFO [<name> ...]", "LIST"]),
        (Some(b"count" | b"list" | b"help"), _) => error::subcommand_arity(out, "command", args.at(1)),
        _ => error::unknown_subcommand(out, "COMMAND", args.at(1)),
    }
    Step::Done
}

fn list<'a>(specs: impl ExactSizeIterator<Item = &'a Spec>, out: &mut Replies, one: impl Fn(&Spec, &mut Replies)) {
    out.array(specs.len());
    specs.for_each(|spec| one(spec, out));
}

/// The ten elements of Redis 7: name, arity, flags, first key, last key, step, categories, tips, key rules, subcommands.
fn describe(spec: &Spec, out: &mut Replies) {
    let (first, last, step) = spec.keys.range();
    out.array(10);
    out.bulk(spec.name.as_bytes());
    out.integer(i64::from(spec.arity));
    let flags = spec.flags.split(' ');
    out.set(flags.clone().count());
    flags.for_each(|flag| out.simple(flag));
    [first, last, step].into_iter().for_each(|number| out.integer(number));
    let read_or_write = [("readonly", "@read"), ("write", "@write")];
    let category = read_or_write.iter().find(|(flag, _)| spec.keys != Keys::None && spec.flags.contains(flag));
    out.set(category.iter().len());
    category.iter().for_each(|(_, name)| out.simple(name));
    (0..3).for_each(|_| out.array(0));
}

fn docs(specs: Vec<&Spec>, out: &mut Replies) {
    out.map(specs.len());
    for spec in specs {
        out.bulk(spec.name.as_bytes());
        out.map(2);
        for (key, text) in [("summary", spec.summary), ("group", spec.group.name())] {
            out.bulk(key.as_bytes());
            out.bulk(text.as_bytes());
        }
    }
}

// === impl Commands: small ones ===

impl Commands {
    pub(super) fn ping(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        match call.args.len() {
            1 => out.simple("PONG"),
            2 => out.bulk(call.args.at(1)),
            _ => error::arity(out, call.verb.spec()),
        }
        Step::Done
    }

    pub(super) fn select(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        match parse_i64(call.args.at(1)) {
            Some(0) => out.simple("OK"),
            Some(_) => out.error(error::DB_INDEX),
            None => out.error(error::NOT_INTEGER),
        }
        Step::Done
    }

    pub(super) fn dbsize(&self, out: &mut Replies) -> Step {
        out.integer(i64::try_from(self.coordinator.entries()).unwrap_or(i64::MAX));
        Step::Done
    }

    pub(super) fn time(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let now_ms = call.cx.now.0;
        out.array(2);
        out.bulk((now_ms / 1000).to_string().as_bytes());
        out.bulk((now_ms % 1000 * 1000).to_string().as_bytes());
        Step::Done
    }
}

// === impl Commands: CONFIG ===

impl Commands {
    /// `CONFIG GET pattern …`: settings under the names Redis gives them, as far as they mean something here.
    pub(super) fn config(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let args = call.args;
        match (args.at(1).to_ascii_lowercase().as_slice(), args.len()) {
            (b"get", 3..) => {
                let patterns = || args.from(2).filter(|pattern| pattern.len() <= PATTERN_BYTES_MAX);
                let mut found = self.redis_settings();
                found.retain(|(name, _)| patterns().any(|pattern| matches(pattern, name.as_bytes())));
                out.map(found.len());
                for (name, value) in found {
                    out.bulk(name.as_bytes());
                    out.bulk(value.as_bytes());
                }
            }
            (b"set", 4) => return self.config_set(args.at(2), args.at(3), out),
            (b"help", 2) => {
                error::help(out, "CONFIG", &["GET <pattern> [<pattern> ...]", "SET maxmemory <bytes>"]);
            }
            (b"get" | b"set" | b"help", _) => error::subcommand_arity(out, "config", args.at(1)),
            _ => error::unknown_subcommand(out, "CONFIG", args.at(1)),
        }
        Step::Done
    }

    /// Only the capacity of memory can change while the node runs.
    fn config_set(&self, name: &[u8], value: &[u8], out: &mut Replies) -> Step {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let problem = match name.as_str() {
            "maxmemory" => match bytes_of(value) {
                Some(bytes) if limits::MEMORY_CAPACITY.contains(&ByteSize(bytes)) => {
                    return Step::Later(Later::capacity(bytes));
                }
                _ => format!(
                    "'{}' is not a size of {} to {}",
                    error::quoted(value),
                    limits::MEMORY_CAPACITY.start(),
                    limits::MEMORY_CAPACITY.end()
                ),
            },
            "maxmemory-policy" => "memory.policy of the node's configuration chooses it at the start".to_owned(),
            known if self.redis_settings().iter().any(|(name, _)| *name == known) => {
                "can't set immutable config".to_owned()
            }
            _ => {
                out.error(&format!(
                    "ERR Unknown option or number of arguments for CONFIG SET - '{}'",
                    error::quoted(name.as_bytes())
                ));
                return Step::Done;
            }
        };
        out.error(&format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {problem}"));
        Step::Done
    }

    /// Changes the capacity of memory, on a thread that may take its time to evict what does not fit any more.
    pub(super) async fn set_capacity(&self, bytes: u64, out: &mut Replies) {
        let coordinator = Arc::clone(&self.coordinator);
        match spawn_blocking(move || coordinator.memory().set_capacity(bytes)).await {
            Ok(Ok(())) => out.simple("OK"),
            Ok(Err(fixed)) => {
                out.error(&format!("ERR CONFIG SET failed (possibly related to argument 'maxmemory') - {fixed}"));
            }
            // It panicked, which is logged by then.
            Err(_) => out.error("ERR CONFIG SET failed (possibly related to argument 'maxmemory') - see the log"),
        }
    }

    fn memory_bytes_max(&self) -> u64 {
        self.coordinator.memory().stats().capacity_bytes.unwrap_or_default()
    }

    fn redis_settings(&self) -> Vec<(&'static str, String)> {
        let text = str::to_owned;
        let slow_log = self.settings.slow_log.options();
        vec![
            ("appendonly", text("no")),
            ("databases", text("1")),
            ("maxclients", (self.facts)().connections_max.to_string()),
            ("maxmemory", self.memory_bytes_max().to_string()),
            ("maxmemory-policy", text("allkeys-lru")),
            ("port", self.settings.identity.port.to_string()),
            ("proto-max-bulk-len", self.settings.value_bytes_max.to_string()),
            ("save", String::new()),
            ("slowlog-log-slower-than", slow_log.threshold.as_micros().to_string()),
            ("slowlog-max-len", slow_log.length_max.to_string()),
            ("timeout", text("0")),
        ]
    }
}

/// Bytes as Redis writes them: a number, or one with `k`, `kb`, `m`, `mb`, `g` or `gb`.
fn bytes_of(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.to_ascii_lowercase();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "b" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Whether `name` fits a pattern of `*`, `?` and plain characters of any case. Takes at most pattern times name steps.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut retry) = ((0, 0), None);
    loop {
        match (pattern.get(at.0), name.get(at.1)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                retry = Some((at.0 + 1, at.1));
                at.0 += 1;
            }
            (Some(&wanted), Some(found)) if wanted == b'?' || wanted.eq_ignore_ascii_case(found) => {
                at = (at.0 + 1, at.1 + 1);
            }
            // The last star takes one character more, and the rest is tried again.
            _ => match retry {
                Some((after_star, taken)) if taken < name.len() => {
                    retry = Some((after_star, taken + 1));
                    at = (after_star, taken + 1);
                }
                _ => return false,
            },
        }
    }
}

// === impl Commands: INFO ===

impl Commands {
    /// `INFO [section …]`
    pub(super) fn info(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let all = |word: &[u8]| {
            ["all", "default", "everything"].iter().any(|name| word.eq_ignore_ascii_case(name.as_bytes()))
        };
        let asked = |section: &str| {
            let mut words = call.args.from(1);
            words.len() == 0 || words.any(|word| all(word) || word.eq_ignore_ascii_case(section.as_bytes()))
        };
        let facts = (self.facts)();
        let shown = SECTIONS.into_iter().filter(|section| asked(section));
        let text: Vec<String> = shown.map(|section| self.section(section, &facts)).collect();
        out.verbatim(&text.join("\r\n"));
        Step::Done
    }

    fn section(&self, name: &str, facts: &ServerFacts) -> String {
        let fields: Vec<(&str, String)> = match name {
            "server" => self.server_fields(),
            "clients" => vec![
                ("connected_clients", facts.connections.to_string()),
                ("maxclients", facts.connections_max.to_string()),
                ("tracking_clients", self.near_caches.held().clients.to_string()),
            ],
            "memory" => vec![
                ("used_memory", allocated_bytes().to_string()),
                ("used_memory_rss", resident_bytes().to_string()),
                ("maxmemory", self.memory_bytes_max().to_string()),
                ("maxmemory_policy", "allkeys-lru".to_owned()),
            ],
            // What clients wait for before they send commands.
            "persistence" => vec![("loading", "0".to_owned()), ("async_loading", "0".to_owned())],
            "stats" => vec![
                ("total_connections_received", facts.connections_accepted.to_string()),
                ("rejected_connections", facts.connections_rejected.to_string()),
                ("total_commands_processed", facts.commands.to_string()),
                ("total_net_input_bytes", facts.bytes_in.to_string()),
                ("total_net_output_bytes", facts.bytes_out.to_string()),
                ("total_error_replies", facts.errors.to_string()),
                ("keyspace_hits", self.answers.hits().to_string()),
                ("keyspace_misses", self.answers.misses().to_string()),
                ("slowlog_recorded", self.settings.slow_log.recorded().to_string()),
            ],
            "replication" => vec![("role", "master".to_owned()), ("connected_slaves", "0".to_owned())],
            "keyspace" => vec![("db0", format!("keys={},expires=0,avg_ttl=0", self.coordinator.entries()))],
            _ => self.layer_fields(),
        };
        let mut text = format!("# {}{}\r\n", name[..1].to_uppercase(), &name[1..]);
        for (field, value) in fields {
            write!(text, "{field}:{value}\r\n").expect("a String takes any text");
        }
        text
    }

    /// The verdict on the node first, then each of its parts.
    fn layer_fields(&self) -> Vec<(&'static str, String)> {
        let Health { state, reason, .. } = self.coordinator.health();
        let node = ("node", format!("state={},reason={reason}", state.label()));
        let parts = self.coordinator.parts();
        std::iter::once(node).chain(parts.iter().map(|part| (part.name(), in_one_line(part)))).collect()
    }

    fn server_fields(&self) -> Vec<(&'static str, String)> {
        let identity = &self.settings.identity;
        let uptime = self.clock.monotonic().duration_since(self.started).as_secs();
        vec![
            ("redis_version", REDIS_VERSION.to_owned()),
            ("redis_mode", "standalone".to_owned()),
            ("tieredcache_version", env!("CARGO_PKG_VERSION").to_owned()),
            ("tieredcache_cache", identity.cache.clone()),
            ("tieredcache_node", identity.node.clone()),
            ("os", std::env::consts::OS.to_owned()),
            ("arch_bits", usize::BITS.to_string()),
            ("process_id", std::process::id().to_string()),
            ("tcp_port", identity.port.to_string()),
            ("uptime_in_seconds", uptime.to_string()),
            ("uptime_in_days", (uptime / 86_400).to_string()),
        ]
    }
}

/// State and numbers of a layer, in the form of the line `db0`; what makes no sense for the layer is left out.
fn in_one_line(part: &Part<'_>) -> String {
    let Stats { hits, misses, entries, bytes, .. } = part.stats();
    let held = [("entries", entries), ("bytes", bytes)];
    let held: String = held.iter().filter_map(|(name, number)| Some(format!(",{name}={}", (*number)?))).collect();
    format!("state={}{held},hits={hits},misses={misses}", part.health().state.label())
}

/// Bytes that the program holds from the allocator; 0 if that is not the one that counts.
fn allocated_bytes() -> usize {
    // The statistics are a snapshot, taken anew when the epoch moves.
    let taken = tikv_jemalloc_ctl::epoch::advance();
    taken.and_then(|_| tikv_jemalloc_ctl::stats::allocated::read()).unwrap_or(0)
}

/// Bytes of memory that the kernel has given to the process; 0 where it does not say.
fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_globs_do() {
        for (pattern, fits) in [("maxmemory", true), ("max*", true), ("*MEM?ry", true), ("*", true), ("max", false)] {
            assert_eq!(matches(pattern.as_bytes(), b"maxmemory"), fits, "{pattern}");
        }
        assert!(!matches(&b"*a".repeat(1000), &b"a".repeat(40)));
    }
}
