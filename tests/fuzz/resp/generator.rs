//! Input that is often almost right.

use rand::{Rng, RngExt, rngs::SmallRng, seq::IndexedRandom};

const WORDS: [&str; 70] = [
    "GET",
    "SET",
    "MGET",
    "MSET",
    "DEL",
    "UNLINK",
    "EXISTS",
    "EXPIRE",
    "PEXPIRE",
    "EXPIREAT",
    "PEXPIREAT",
    "TTL",
    "PTTL",
    "PERSIST",
    "STRLEN",
    "INCR",
    "DECR",
    "INCRBY",
    "DECRBY",
    "APPEND",
    "DBSIZE",
    "FLUSHALL",
    "FLUSHDB",
    "PING",
    "ECHO",
    "HELLO",
    "SELECT",
    "QUIT",
    "RESET",
    "CLIENT",
    "COMMAND",
    "INFO",
    "TIME",
    "TC.SET",
    "TC.TAGS",
    "TC.INVALIDATE",
    "TC.INVALIDATEALL",
    "TC.EXPLAIN",
    "TC.LAYERS",
    "TC.FLUSH",
    "TAGS",
    "STALE",
    "NEGATIVE",
    "CONFIG",
    "AUTH",
    "NX",
    "XX",
    "GT",
    "LT",
    "EX",
    "PX",
    "EXAT",
    "PXAT",
    "KEEPTTL",
    "SETNAME",
    "SETINFO",
    "LIB-NAME",
    "DOCS",
    "COUNT",
    "ASYNC",
    "k",
    "key:1",
    "0",
    "1",
    "-1",
    "2",
    "3",
    "9223372036854775807",
    "-9223372036854775808",
    "POST",
];

/// What requests are made of, so that random bytes often look like one.
const ALPHABET: &[u8] = b"***$$$\r\n\r\n\r\n00112233445566778899--+:_%~>|=(,#!GETSETPINGk \"'\\x\0\xff";

/// One to four requests, right or wrong in many ways.
pub(super) fn input(random: &mut SmallRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(1..5) {
        match random.random_range(0..10) {
            0..6 => request(random, &mut bytes),
            6 => line(random, &mut bytes),
            7..9 => {
                let mut spoilt = Vec::new();
                request(random, &mut spoilt);
                spoil(random, &mut spoilt);
                bytes.extend(spoilt);
            }
            _ => {
                let length = random.random_range(0..60);
                bytes.extend((0..length).map(|_| *ALPHABET.choose(random).expect("not empty")));
            }
        }
    }
    bytes
}

fn request(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    let count = random.random_range(0..7);
    bytes.extend_from_slice(format!("*{count}\r\n").as_bytes());
    for _ in 0..count {
        let argument = argument(random);
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(&argument);
        bytes.extend_from_slice(b"\r\n");
    }
}

fn line(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(0..6) {
        bytes.extend(argument(random));
        bytes.extend_from_slice(pick(random, &[" ", "\t", " '", "' ", "\"", "\\x41", "  "]));
    }
    bytes.extend_from_slice(pick(random, &["\r\n", "\n", "\n\n"]));
}

fn argument(random: &mut SmallRng) -> Vec<u8> {
    match random.random_range(0..20) {
        0..15 => pick(random, &WORDS).to_vec(),
        15..19 => {
            let mut argument = vec![0; random.random_range(0..20)];
            random.fill_bytes(&mut argument);
            argument
        }
        _ => vec![b'v'; random.random_range(0..5000)],
    }
}

/// Changes, inserts or removes some bytes, or cuts the end off.
fn spoil(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        let byte = *ALPHABET.choose(random).expect("not empty");
        match random.random_range(0..4) {
            0 => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            2 => {
                bytes.remove(at);
            }
            _ => bytes.truncate(at),
        }
    }
}

fn pick<'a>(random: &mut SmallRng, texts: &[&'a str]) -> &'a [u8] {
    texts.choose(random).expect("not empty").as_bytes()
}
