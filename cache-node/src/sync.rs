//! The locks and atomics on which the order of threads depends. In the product they are the standard library's; in unit
//! tests each use is also a place where a test of all orders ([`crate::testing::in_every_order`]) may go on with
//! another thread.

#[cfg(test)]
mod scheduled;

#[cfg(test)]
pub(crate) use self::scheduled::{Mutex, RwLock, atomic, may_switch};
#[cfg(not(test))]
pub(crate) use std::sync::{Mutex, RwLock, atomic};
