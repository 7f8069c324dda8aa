//! End-to-end tests: real pods on a real Kubernetes. Run them one by one: `cargo test -p tests --test e2e -- --test-threads=1`.

mod chart;
mod cluster;
mod fleet;
mod steady;
mod story;
mod trouble;
