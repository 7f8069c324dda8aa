//! Listeners, the limit on connections, and draining: what every front end of the node shares.

pub mod admin;
pub mod pulse;
pub mod resp;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

/// Connections that the kernel completes before the node accepts them; the kernel caps it at `somaxconn`.
const BACKLOG: i32 = 1024;

/// Descriptors that the rest of the node needs: files of the disk layer, listeners, event queues.
const DESCRIPTORS_BESIDES: u64 = 2048;

/// A front end that could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, foreign or forbidden.
    #[error("listening on {address}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system gave no thread or no event queue.
    #[error("starting thread {name}")]
    Thread {
        /// Name of the thread.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// How many connections are open, and how many may be. Cheap to clone: clones count together.
#[derive(Clone, Debug)]
pub struct ConnectionLimit(Arc<Places>);

/// One place under a [`ConnectionLimit`], given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Places>);

#[derive(Debug)]
struct Places {
    open_max: u32,
    open: AtomicU32,
    accepted: AtomicU64,
    rejected: AtomicU64,
}

/// Binds a listener that a restarted node can bind again at once.
///
/// # Errors
/// [`ServeError::Listen`] if the address can not be had.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    bind().map_err(|source| ServeError::Listen { address, source })
}

/// Raises the process's own limit of descriptors as far as it may, for so many connections. Where that is not far
/// enough it says so: connections beyond wait in the kernel until others are closed.
pub fn allow_descriptors(connections_max: u32) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = u64::from(connections_max) + DESCRIPTORS_BESIDES;
    // None is no limit.
    let goal = maximum.map_or(needed, |maximum| needed.min(maximum));
    if current.is_some_and(|current| current < goal)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(goal), maximum })
    {
        warn!(%error, "the limit of descriptors could not be raised");
    }
    if goal < needed {
        warn!(descriptors_max = goal, connections_max, "fewer descriptors than the limit of connections may need");
    }
}

// === impl ConnectionLimit ===

impl ConnectionLimit {
    /// Allows `open_max` connections at once.
    pub fn new(open_max: u32) -> Self {
        let zero = AtomicU64::new(0);
        Self(Arc::new(Places { open_max, open: AtomicU32::new(0), accepted: zero, rejected: AtomicU64::new(0) }))
    }

    /// Takes a place, or counts a rejection if all are taken.
    pub fn take(&self) -> Option<Place> {
        let free = |open: u32| (open < self.0.open_max).then(|| open + 1);
        if self.0.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_err() {
            self.0.rejected.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.0.accepted.fetch_add(1, Ordering::Relaxed);
        Some(Place(Arc::clone(&self.0)))
    }

    /// Connections open now.
    pub fn open(&self) -> u32 {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Connections that may be open at once.
    pub fn open_max(&self) -> u32 {
        self.0.open_max
    }

    /// Connections given a place since the start.
    pub fn accepted(&self) -> u64 {
        self.0.accepted.load(Ordering::Relaxed)
    }

    /// Connections turned away since the start.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Ordering::Relaxed)
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_limit_rejects_and_a_dropped_place_is_free_again() {
        let limit = ConnectionLimit::new(1);
        let place = limit.take();
        assert!(place.is_some());
        assert!(limit.take().is_none());
        drop(place);
        assert!(limit.take().is_some());
        assert_eq!((limit.accepted(), limit.rejected()), (2, 1));
    }

    #[test]
    fn a_taken_address_is_named_in_the_error() {
        let first = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address).unwrap_err();
        assert_eq!(error.to_string(), format!("listening on {address}"));
    }
}
