//! End-to-end tests: real pods on a real Kubernetes. Run them one by one: `cargo test -p tests --test e2e -- --test-threads=1`.

#![allow(clippy::unwrap_used, reason = "a test that can not go on says so and ends")]
#![allow(clippy::disallowed_methods, reason = "real programs take real time")]

mod chaos;
mod chart;
mod cluster;
mod fleet;
mod layers;
mod managed_redis;
mod steady;
mod story;
mod trouble;
