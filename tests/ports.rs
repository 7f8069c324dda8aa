//! Ports of loopback for programs that can not listen on port 0, or are started again on the port that they had.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// Ports that Linux gives to nobody by itself: neither to a client's end of a connection nor to who asks for port 0.
const UNGIVEN: Range<u16> = 10_000..32_768;

/// A port that was free the moment before, and that neither the kernel nor this function gives to anybody else.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(UNGIVEN.end - UNGIVEN.start);
    // Programs that run beside this one begin elsewhere.
    let beginning = process::id().wrapping_mul(7919);
    let candidate = |_| {
        let offset = beginning.wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed)) % count;
        UNGIVEN.start + u16::try_from(offset).expect("the range is of ports")
    };
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (0..count).map(candidate).find(is_free).expect("a port is free")
}
