//! The layered cache server, as a library.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod server;

pub mod command;

pub mod protocol;

pub mod coordinator;

pub mod write_queue;

pub mod layer;

pub mod metrics;

pub mod context;

pub mod entry;

pub mod clock;

pub mod tally;
