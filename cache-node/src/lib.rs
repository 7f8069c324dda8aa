#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

// In reading order: each uses only those below it.
pub mod node;

pub mod config;

pub mod server;

pub mod command;

pub mod protocol;

pub mod coordinator;

pub mod write_queue;

pub mod backplane;

pub mod tag_index;

pub mod layer;

pub mod telemetry;

pub mod slow_log;

pub mod metrics;

pub mod context;

pub mod entry;

pub mod clock;

pub mod tally;

mod sync;

#[cfg(test)]
mod readme;

#[cfg(test)]
mod testing;
