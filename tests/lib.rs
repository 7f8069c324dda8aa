//! Shared parts of the tests: the programs under test as child processes, a Redis, a volume, and the test cluster.

pub mod program;

pub mod redis_server;

pub mod volume;

pub mod cluster;
