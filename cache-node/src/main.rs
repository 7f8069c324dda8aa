//! Cache node.

fn main() {}
