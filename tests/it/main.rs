//! Black-box tests: what is promised at each boundary, checked from outside.

mod api;
mod crds;
