//! Black-box tests: what is promised at each boundary, checked from outside.

mod api;
mod chart;
mod clients;
mod crds;
mod durability;
mod node;
mod operator;
mod program;
mod resp;
