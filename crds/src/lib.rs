//! The contract between people, the operator and the cache node.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod node_config;
pub mod node_report;
pub mod quantity;
#[cfg(feature = "kube")]
pub mod tiered_cache;
