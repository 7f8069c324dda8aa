//! Command line of the test cluster.

fn main() {}
