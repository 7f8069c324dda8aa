//! The same random commands to a node and to `redis-server`: both have to give the same replies.
//!
//! Not compared: DBSIZE, which is an estimate here; empty and overlong keys, which are refused here.

use std::{
    env, fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use tempfile::tempdir;
use tests::redis_server::Server;

use super::client::{Client, Reply, request};
use crate::program::{Node, config};

/// Sequences of commands, each on keys that the sequences before it have left behind.
const SEQUENCES: usize = 100_000;

/// Sequences sent together, as one pipeline.
const SEQUENCES_PER_PIPELINE: usize = 100;

/// By how much the remaining lives may differ that two servers report: the time between their replies.
const LIFE_SKEW_MS: u64 = 60_000;

/// Lives are whole multiples of this, far more than the skew: which of two is longer never depends on the moment.
const LIFE_STEP_S: i64 = 500;

/// Numbers at the edges, and texts that are almost numbers.
const ODD_NUMBERS: [&str; 9] =
    ["0", "-1", "9223372036854775807", "-9223372036854775808", "9223372036854775808", "01", "+1", "1.5", " 1"];

/// Makes commands. Lives have to last for the whole test, or be over already.
struct Generator {
    random: SmallRng,
    /// A moment shortly before the test, in seconds since 1970.
    epoch_s: i64,
}

// === impl Generator ===

impl Generator {
    fn command(&mut self) -> Vec<Vec<u8>> {
        let (key, value) = (self.key(), self.value());
        let mut args: Vec<Vec<u8>> = match self.random.random_range(0..100) {
            0..16 => vec!["GET".into(), key],
            16..26 => vec!["SET".into(), key, value],
            26..40 => [vec!["set".into(), key, value], self.set_options()].concat(),
            40..46 => [vec!["MGET".into()], self.keys()].concat(),
            46..50 => {
                [vec!["mset".into()], self.keys().into_iter().flat_map(|key| [key, self.value()]).collect()].concat()
            }
            50..55 => [vec![self.pick(&["DEL", "unlink"])], self.keys()].concat(),
            55..59 => [vec!["EXISTS".into()], self.keys()].concat(),
            59..69 => self.expire(key),
            69..75 => vec![self.pick(&["TTL", "pttl"]), key],
            75..78 => vec!["PERSIST".into(), key],
            78..81 => vec!["STRLEN".into(), key],
            81..85 => vec![self.pick(&["INCR", "decr"]), key],
            85..90 => vec![self.pick(&["INCRBY", "decrby"]), key, self.number()],
            90..94 => vec!["APPEND".into(), key, value],
            94 => vec![self.pick(&["PING", "ECHO"]), value],
            95 => vec![self.pick(&["SELECT"]), self.pick(&["0", "1", "-1", "x", "00"])],
            // None with a zero byte: Redis compares a name up to it, but looks for it under the hash of the whole, so that
            // whether it finds a command of "GET\0" is up to the seed of its hashes.
            96 => vec![self.pick(&["NONSENSE", "ge", "gett", "\u{e9}"]), key, value],
            97 => vec![self.pick(&["FLUSHALL", "FLUSHDB"]), self.pick(&["x", "asyncc"])],
            _ => vec![self.pick(&["AUTH", "HELLO", "COMMAND", "CONFIG", "CLIENT", "TTL", "SET", "MSET", "DEL"])],
        };
        // Now and then a word is lost or one too many.
        match self.random.random_range(0..60) {
            0 if args.len() > 1 => {
                args.pop();
            }
            1 if !args[0].eq_ignore_ascii_case(b"select") => args.push(self.pick(&["x", "1", "nx", ""])),
            _ => {}
        }
        // These answer at length and differently when alone.
        if args.len() == 1 && matches!(args[0].as_slice(), b"HELLO" | b"COMMAND") || args[0] == b"COMMAND" {
            args = vec!["PING".into()];
        }
        // Words that could have become an empty or a missing key.
        if args.len() > 1 && args[1].is_empty() {
            args[1] = b"k".to_vec();
        }
        args.iter_mut().skip(1).filter(|arg| arg.is_empty()).for_each(|arg| *arg = b"e".to_vec());
        args
    }

    fn pick(&mut self, words: &[&str]) -> Vec<u8> {
        (*words.choose(&mut self.random).unwrap()).into()
    }

    fn key(&mut self) -> Vec<u8> {
        let number = self.random.random_range(0..40);
        match number {
            0 => b"\r\n".to_vec(),
            1 => vec![0, 255, b'$', b'*'],
            2 => vec![b'k'; 1000],
            _ => format!("key:{number}").into_bytes(),
        }
    }

    fn keys(&mut self) -> Vec<Vec<u8>> {
        (0..self.random.random_range(1..6)).map(|_| self.key()).collect()
    }

    fn value(&mut self) -> Vec<u8> {
        let length = match self.random.random_range(0..1000) {
            0..400 => return self.number(),
            400..980 => self.random.random_range(1..100),
            980..998 => self.random.random_range(1000..5000),
            _ => self.random.random_range(16_000..100_000),
        };
        let mut value = vec![0; length];
        self.random.fill_bytes(&mut value);
        value
    }

    fn number(&mut self) -> Vec<u8> {
        if self.random.random_bool(0.2) {
            return self.pick(&ODD_NUMBERS);
        }
        self.random.random_range(-1000..1000_i64).to_string().into_bytes()
    }

    fn set_options(&mut self) -> Vec<Vec<u8>> {
        let mut options = Vec::new();
        for _ in 0..self.random.random_range(1..4) {
            match self.random.random_range(0..10) {
                0..2 => options.push(self.pick(&["NX", "nx"])),
                2..4 => options.push(self.pick(&["XX", "xx"])),
                4..6 => options.push(self.pick(&["GET", "get"])),
                6 => options.push("KEEPTTL".into()),
                7 => options.push(self.pick(&["EX", "PXAT", "PERSIST", "y"])),
                _ => {
                    let life_s = self.life_s();
                    let (word, number) = match self.random.random_range(0..4) {
                        0 => ("EX", life_s),
                        1 => ("px", life_s * 1000),
                        2 => ("EXAT", self.moment_s(life_s)),
                        _ => ("pxat", self.moment_s(life_s) * 1000),
                    };
                    options.extend([word.into(), self.or_odd(number)]);
                }
            }
        }
        options
    }

    fn expire(&mut self, key: Vec<u8>) -> Vec<Vec<u8>> {
        let absolute = self.random.random_bool(0.5);
        let life_s = self.life_s();
        let (word, number) = match (absolute, self.random.random_bool(0.5)) {
            (true, true) => ("EXPIREAT", self.moment_s(life_s)),
            (true, false) => ("pexpireat", self.moment_s(life_s) * 1000),
            (false, true) => ("expire", life_s),
            (false, false) => ("PEXPIRE", life_s * 1000),
        };
        // Comparing a relative life with one that was given as relative depends on the millisecond.
        let conditions: &[&str] = if absolute { &["NX", "xx", "GT", "lt", "YY"] } else { &["NX", "xx", "yy"] };
        let mut args = vec![word.into(), key, self.or_odd(number)];
        for _ in 0..self.random.random_range(0..3) {
            args.push(self.pick(conditions));
        }
        args
    }

    /// A life over already, or far longer than the test.
    fn life_s(&mut self) -> i64 {
        self.random.random_range(-3..120) * LIFE_STEP_S
    }

    /// The moment at which such a life ends; apart from all moments that relative lives, set during the test, end at.
    fn moment_s(&self, life_s: i64) -> i64 {
        self.epoch_s + life_s - LIFE_STEP_S / 5
    }

    fn or_odd(&mut self, number: i64) -> Vec<u8> {
        // No small positive number: it would end a life during the test.
        if self.random.random_bool(0.05) { self.pick(&ODD_NUMBERS) } else { number.to_string().into_bytes() }
    }
}

fn same(command: &[Vec<u8>], ours: &Reply, theirs: &Reply) -> bool {
    let unit_ms = match command[0].to_ascii_lowercase().as_slice() {
        b"ttl" => 1000,
        b"pttl" => 1,
        _ => return ours == theirs,
    };
    match (ours, theirs) {
        (Reply::Integer(ours), Reply::Integer(theirs)) if *ours >= 0 && *theirs >= 0 => {
            ours.abs_diff(*theirs) * unit_ms <= LIFE_SKEW_MS
        }
        _ => ours == theirs,
    }
}

fn compare(node: &Node, hello: &str) {
    let seed = env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| rand::rng().next_u64());
    println!("SEED={seed}");
    let redis = Server::start(&["--databases", "1"]);
    let (mut ours, mut theirs) = (Client::connect(node.resp), Client::connect(redis.address()));
    for client in [&mut ours, &mut theirs] {
        let greeting = client.call(hello);
        assert!(!matches!(greeting, Reply::Error(_)), "{greeting:?}");
    }
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(1);
    let epoch_s = i64::try_from(epoch.as_secs()).unwrap();
    let mut generator = Generator { random: SmallRng::seed_from_u64(seed), epoch_s };

    for pipeline in 0..SEQUENCES / SEQUENCES_PER_PIPELINE {
        let mut commands = Vec::new();
        for _ in 0..SEQUENCES_PER_PIPELINE {
            let length = generator.random.random_range(1..6);
            commands.extend((0..length).map(|_| generator.command()));
        }
        if pipeline % 50 == 0 {
            commands.push(vec![generator.pick(&["FLUSHALL", "flushdb"])]);
        }
        let requests: Vec<u8> = commands.iter().flat_map(|command| request(command)).collect();
        let replies = [&mut ours, &mut theirs].map(|client| client.pipeline(&requests, commands.len()));
        for (index, command) in commands.iter().enumerate() {
            let (ours, theirs) = (&replies[0][index], &replies[1][index]);
            if !same(command, ours, theirs) {
                let on_key = commands[..index].iter().filter(|other| other.get(1) == command.get(1));
                let before: Vec<String> = on_key.map(|other| words(other)).collect();
                panic!(
                    "SEED={seed} pipeline {pipeline}: {}\nours   {ours:?}\ntheirs {theirs:?}\nbefore it {before:#?}",
                    words(command)
                );
            }
        }
    }
}

fn words(command: &[Vec<u8>]) -> String {
    command.iter().map(|arg| arg[..arg.len().min(40)].escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_node_with_disk_answers_random_commands_as_redis_does() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config(&folder, "limits: {requestTimeout: 60s}"));
    compare(&node, "HELLO 2");
}

#[test]
fn a_node_in_memory_answers_random_commands_as_redis_does_in_resp3() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("memory.yaml");
    let text = "listen: {resp: '127.0.0.1:0', admin: '127.0.0.1:0'}\ndisk: {mode: Disabled}\nmemory: {policy: TinyLfu}";
    fs::write(&file, text).unwrap();
    compare(&Node::start(&file), "HELLO 3");
}
