//! Black-box tests: what is promised at each boundary, checked from outside.

#![allow(clippy::unwrap_used, reason = "a test that can not go on says so and ends")]
#![allow(clippy::disallowed_methods, reason = "real programs take real time")]

mod api;
mod backplane;
mod chart;
mod clients;
mod crds;
mod disk;
mod durability;
mod embedded;
mod lease;
mod node;
mod operator;
mod pipeline;
mod redis;
mod resp;
mod telemetry;
mod tracking;

use tests::program;
