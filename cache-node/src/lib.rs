//! The layered cache server, as a library.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod layer;

pub mod context;

pub mod entry;

pub mod clock;
