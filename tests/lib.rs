//! Shared parts of the tests: the test cluster as a library.

pub mod cluster;
