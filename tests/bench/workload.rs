//! What a run sends: parsed from a name such as `get4k-p16`, rendered before the clock starts.

use std::{fmt, str::FromStr};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::resp;

/// How to name a workload; shown by `--help` and by every error.
pub(crate) const GRAMMAR: &str = "get|set|mix (90 % GET), then 4k for 4-KiB values (else 100 B), then any of \
    -pN pipelined commands, -cN connections, -rN requests a second (open loop), -uniform keys; such as get-p16 or \
    mix-r80000";

/// Rendered requests take at most this much, so that the client does not push the server out of the shared cache.
const RING_BYTES_MAX: usize = 48 << 20;
/// And at most this many draws from the distribution.
const RING_REQUESTS_MAX: usize = 1 << 18;
/// Bytes of a key: `key:` and twelve digits.
pub(crate) const KEY_BYTES: usize = 16;
/// The exponent of the Zipf distribution, as in YCSB.
const ZIPF_EXPONENT: f64 = 0.99;

/// One measured load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    name: String,
    /// Share of GETs, in percent; the rest are SETs.
    pub(crate) get_percent: u8,
    /// Bytes of every value.
    pub(crate) value_bytes: usize,
    /// Number of different keys, all loaded before the run.
    pub(crate) keys: usize,
    /// Commands a connection sends at once.
    pub(crate) pipeline: usize,
    /// Connections.
    pub(crate) connections: usize,
    /// Requests a second in all; `None` is a closed loop, each connection as fast as it is answered.
    pub(crate) rate: Option<u32>,
    /// Every key equally likely instead of Zipf.
    pub(crate) uniform: bool,
}

/// What a value is stored with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored<'a> {
    /// Nothing.
    Plain,
    /// A life, in milliseconds.
    Until(&'a [u8]),
    /// Two tags: one of ten and one of a thousand.
    Tagged,
}

/// A name that is no workload.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a workload; write {GRAMMAR}")]
pub(crate) struct WorkloadError(String);

/// Requests in the order sent, rendered once; every connection takes the next ones, round and round.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: Vec<u8>,
    /// Where each request begins, and where the last one ends.
    starts: Vec<usize>,
}

// === impl Workload ===

impl FromStr for Workload {
    type Err = WorkloadError;

    fn from_str(name: &str) -> Result<Self, WorkloadError> {
        let error = || WorkloadError(name.to_owned());
        let mut parts = name.split('-');
        let operation = parts.next().unwrap_or_default();
        let (operation, large) = operation.strip_suffix("4k").map_or((operation, false), |short| (short, true));
        let get_percent = match operation {
            "get" => 100,
            "mix" => 90,
            "set" => 0,
            _ => return Err(error()),
        };
        let (value_bytes, keys) = if large { (4096, 20_000) } else { (100, 100_000) };
        let mut workload = Self {
            name: name.to_owned(),
            get_percent,
            value_bytes,
            keys,
            pipeline: 1,
            connections: 50,
            rate: None,
            uniform: false,
        };
        for part in parts {
            if part == "uniform" {
                workload.uniform = true;
                continue;
            }
            let (kind, digits) = part.split_at_checked(1).ok_or_else(error)?;
            let number: u32 = digits.parse().ok().filter(|number| *number > 0).ok_or_else(error)?;
            match (kind, number) {
                ("p", 1..=1024) => workload.pipeline = number as usize,
                ("c", 1..=9000) => workload.connections = number as usize,
                ("r", _) => workload.rate = Some(number),
                _ => return Err(error()),
            }
        }
        Ok(workload)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Workload {
    /// Draws keys and operations, the same ones in every run, and renders them.
    pub(crate) fn ring(&self, stored: Stored<'_>) -> Ring {
        let value = value(self.value_bytes);
        let request_bytes = if self.get_percent == 100 { 64 } else { 64 + self.value_bytes };
        let count = (RING_BYTES_MAX / request_bytes).clamp(self.pipeline, RING_REQUESTS_MAX);
        let cumulative = self.cumulative();
        let mut random = SmallRng::seed_from_u64(1);
        let mut ring = Ring { bytes: Vec::new(), starts: vec![0] };
        for _ in 0..count {
            let point = random.random::<f64>();
            let index = cumulative.partition_point(|&below| below < point).min(self.keys - 1);
            if random.random_range(0..100) < u32::from(self.get_percent) {
                resp::render(&mut ring.bytes, &[b"GET", &key(index)]);
            } else {
                stored.render(&mut ring.bytes, index, &value);
            }
            ring.starts.push(ring.bytes.len());
        }
        ring
    }

    /// The probability of each key or one before it.
    fn cumulative(&self) -> Vec<f64> {
        let weight = |rank: usize| if self.uniform { 1.0 } else { (rank as f64 + 1.0).powf(-ZIPF_EXPONENT) };
        let total: f64 = (0..self.keys).map(weight).sum();
        let running = (0..self.keys).scan(0.0, |sum, rank| {
            *sum += weight(rank) / total;
            Some(*sum)
        });
        running.collect()
    }
}

// === impl Stored ===

impl Stored<'_> {
    /// The command that stores a value under the `index`-th key.
    pub(crate) fn render(self, out: &mut Vec<u8>, index: usize, value: &[u8]) {
        let key = key(index);
        match self {
            Self::Plain => resp::render(out, &[b"SET", &key, value]),
            Self::Until(life) => resp::render(out, &[b"SET", &key, value, b"PX", life]),
            Self::Tagged => {
                let tags = [format!("group:{}", index % 10), format!("owner:{:05}", index % 1000)];
                let [often, seldom] = tags.each_ref().map(String::as_bytes);
                resp::render(out, &[b"TC.SET", &key, value, b"TAGS", b"2", often, seldom]);
            }
        }
    }
}

/// The name of the `index`-th key.
pub(crate) fn key(index: usize) -> [u8; KEY_BYTES] {
    let mut key = *b"key:000000000000";
    let mut rest = index;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// A value of so many bytes, not compressible by a short period.
pub(crate) fn value(bytes: usize) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(2);
    (0..bytes).map(|_| random.random_range(b'0'..=b'z')).collect()
}

// === impl Ring ===

impl Ring {
    /// How many requests there are.
    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The bytes of `count` requests from `first` on.
    pub(crate) fn span(&self, first: usize, count: usize) -> std::ops::Range<usize> {
        self.starts[first]..self.starts[first + count]
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Workload {
        name.parse().unwrap()
    }

    #[test]
    fn a_name_says_the_whole_workload() {
        let workload = parse("set4k-p16-c900-uniform");
        assert_eq!((workload.get_percent, workload.value_bytes, workload.keys), (0, 4096, 20_000));
        assert_eq!((workload.pipeline, workload.connections, workload.rate), (16, 900, None));
        assert!(workload.uniform);
        assert_eq!(parse("mix-r80000").rate, Some(80_000));
        assert_eq!(parse("get-p1").connections, 50);
    }

    #[test]
    fn a_name_outside_the_grammar_is_refused_with_the_grammar() {
        for name in ["", "put-p1", "get-", "get-p0", "get-p", "get-x3", "get-p9999999", "get-c10000", "get-é", "4k"] {
            let error = name.parse::<Workload>().unwrap_err();
            assert!(error.to_string().contains(GRAMMAR), "{name}");
        }
    }

    #[test]
    fn keys_have_sixteen_bytes_and_differ() {
        assert_eq!(&key(0), b"key:000000000000");
        assert_eq!(&key(1_234_567), b"key:000001234567");
    }

    #[test]
    fn zipf_draws_the_first_key_as_often_as_its_formula_says() {
        let workload = parse("get-p1");
        let share = workload.cumulative()[0];
        let harmonic: f64 = (1..=workload.keys).map(|rank| (rank as f64).powf(-ZIPF_EXPONENT)).sum();
        assert!((share - 1.0 / harmonic).abs() < 1e-12);
        let ring = workload.ring(Stored::Plain);
        let mut first = Vec::new();
        resp::render(&mut first, &[b"GET", &key(0)]);
        let drawn = (0..ring.len()).filter(|&at| ring.bytes()[ring.span(at, 1)] == first).count();
        let drawn_share = drawn as f64 / ring.len() as f64;
        assert!((drawn_share / share - 1.0).abs() < 0.05, "drew {drawn_share}, formula {share}");
    }

    #[test]
    fn a_mix_holds_one_set_in_ten() {
        let ring = parse("mix-r1000").ring(Stored::Plain);
        let sets = (0..ring.len()).filter(|&at| ring.bytes()[ring.span(at, 1)].starts_with(b"*3")).count();
        let share = sets as f64 / ring.len() as f64;
        assert!((0.09..0.11).contains(&share), "{share}");
    }

    #[test]
    fn a_ring_stays_within_its_memory() {
        let ring = parse("set4k-p16").ring(Stored::Plain);
        assert!(ring.bytes().len() <= RING_BYTES_MAX);
        assert!(ring.len() > 10_000);
    }

    #[test]
    fn tags_come_with_the_commands_that_store() {
        let ring = parse("set-p1").ring(Stored::Tagged);
        let request = String::from_utf8(ring.bytes()[ring.span(0, 1)].to_vec()).unwrap();
        assert!(
            request.starts_with("*7\r\n$6\r\nTC.SET\r\n") && request.contains("\r\nTAGS\r\n$1\r\n2\r\n"),
            "{request}"
        );
    }
}
