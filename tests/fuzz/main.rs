//! Generated input, in process: parsers and commands that take bytes from strangers.
//!
//! Every test prints its seed; `SEED=… cargo test …` repeats it.

mod envelope;
mod resp;

use std::{env, fs};

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// A random source that can be repeated.
fn random() -> SmallRng {
    let seed = env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| rand::rng().next_u64());
    println!("SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

/// The most memory that this process ever had, in bytes.
fn peak_resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells about processes");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of the status");
    let kibibytes: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kibibytes * 1024
}
