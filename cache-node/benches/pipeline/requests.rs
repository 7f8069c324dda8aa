//! Batches of commands as bytes, rendered before the clock starts.

use std::io::Write;

use rand::{RngExt, SeedableRng, rngs::StdRng};

const KEYS: usize = 100_000;
const COMMANDS: usize = 1 << 17;
const VALUE: [u8; 100] = [b'7'; 100];

/// What the commands are.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Get,
    Set,
    /// With one tag of a thousand and one of ten.
    SetTagged,
}

pub(crate) struct Batches {
    bytes: Vec<u8>,
    /// Where each batch ends.
    ends: Vec<usize>,
    commands: usize,
}

// === impl Batches ===

impl Batches {
    /// The same keys in every run, by Zipf 0.99.
    pub(crate) fn draw(kind: Kind, pipeline: usize) -> Self {
        let mut below: Vec<f64> = (1..=KEYS).map(|rank| (rank as f64).powf(-0.99)).collect();
        for index in 1..KEYS {
            below[index] += below[index - 1];
        }
        let mut random = StdRng::seed_from_u64(1);
        let keys = (0..COMMANDS).map(|_| {
            let point = random.random_range(0.0..below[KEYS - 1]);
            // Ranks are spread over the keys, so that popular keys are not neighbours.
            below.partition_point(|&weight| weight < point) * 48_271 % KEYS
        });
        Self::render(kind, pipeline, keys)
    }

    /// One batch of every key.
    pub(crate) fn all(kind: Kind) -> Self {
        Self::render(kind, KEYS, 0..KEYS)
    }

    fn render(kind: Kind, pipeline: usize, keys: impl Iterator<Item = usize>) -> Self {
        let mut batches = Self { bytes: Vec::new(), ends: Vec::new(), commands: 0 };
        for key in keys {
            kind.render(key, &mut batches.bytes);
            batches.commands += 1;
            if batches.commands.is_multiple_of(pipeline) {
                batches.ends.push(batches.bytes.len());
            }
        }
        batches
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) const fn commands(&self) -> usize {
        self.commands
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }
}

// === impl Kind ===

impl Kind {
    fn render(self, key: usize, out: &mut Vec<u8>) {
        let name = format!("key:{key:012}");
        let (often, seldom) = (format!("group:{}", key % 10), format!("owner:{:05}", key % 1000));
        let words: &[&[u8]] = match self {
            Self::Get => &[b"GET", name.as_bytes()],
            Self::Set => &[b"SET", name.as_bytes(), &VALUE],
            Self::SetTagged => {
                &[b"TC.SET", name.as_bytes(), &VALUE, b"TAGS", b"2", often.as_bytes(), seldom.as_bytes()]
            }
        };
        write!(out, "*{}\r\n", words.len()).unwrap();
        for word in words {
            write!(out, "${}\r\n", word.len()).unwrap();
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
    }
}
