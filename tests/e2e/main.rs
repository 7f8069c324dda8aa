//! End-to-end tests: real pods on a real Kubernetes. They mostly wait, so start all of them at once:
//! `cargo test -p tests --test e2e -- --test-threads=64`. They see to it themselves which run beside each other.

#![allow(clippy::unwrap_used, reason = "a test that can not go on says so and ends")]
#![allow(clippy::disallowed_methods, reason = "real programs take real time")]

mod chaos;
mod chart;
mod cluster;
mod examples;
mod fleet;
mod fleet_chaos;
mod layers;
mod managed_redis;
mod redis_behind_tls;
mod secret;
mod steady;
mod story;
mod tour;
mod trouble;
mod turn;
mod used_rights;
mod volumes;
