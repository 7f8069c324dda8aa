//! Shared parts of the tests: the programs under test as child processes, a Redis, a volume, and the test cluster.

pub mod ports;

pub mod program;

pub mod redis_server;

pub mod volume;

pub mod stock_clients;

pub mod cluster;
