//! The connections in use. Each carries the calls of many at once, which pipelines them without anybody's doing.
//!
//! All writes go over the first connection, so that Redis sees them in the order in which they were sent, also one
//! that nobody waits for any more. When it is replaced, the server is told to drop the old one before anything is
//! written over the new one: what may still be in the old one's buffers can not overtake.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use tokio::{sync::Notify, time::timeout};

use super::{
    Endpoint,
    connect::{CONNECT_TIMEOUT, ClientIdentity, Connected},
    trouble::{Consequence, Trouble},
};

/// The connections in use, and who writes.
pub(super) struct Link {
    slots: Vec<ArcSwapOption<Connected>>,
    turn: AtomicUsize,
    /// Who wrote last, and must be dropped before somebody else writes.
    writer: Mutex<Writer>,
    read_only: AtomicBool,
    /// Told when a connection was given up.
    pub(super) broken: Notify,
}

#[derive(Clone)]
enum Writer {
    Nobody,
    Known(ClientIdentity),
    /// The server did not tell us who we are.
    Unknown,
}

/// What became of the order of writes when the connection for writes was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// Nothing of the old connection can come any more.
    Kept,
    /// The server does not let us drop the old connection.
    Refused,
}

// === impl Link ===

impl Link {
    /// Without connections.
    pub(super) fn new(connections: usize) -> Self {
        assert!(connections >= 2, "one for writes, at least one for reads");
        Self {
            slots: (0..connections).map(|_| ArcSwapOption::empty()).collect(),
            turn: AtomicUsize::new(0),
            writer: Mutex::new(Writer::Nobody),
            read_only: AtomicBool::new(false),
            broken: Notify::new(),
        }
    }

    /// The connection for writes.
    pub(super) fn writer(&self) -> Option<Arc<Connected>> {
        self.slots[0].load_full()
    }

    /// A connection for reads, in turn; that for writes only if there is no other.
    pub(super) fn reader(&self) -> Option<Arc<Connected>> {
        let readers = self.slots.len() - 1;
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let other = (0..readers).find_map(|step| self.slots[1 + (start + step) % readers].load_full());
        other.or_else(|| self.writer())
    }

    /// Every connection in use.
    pub(super) fn all(&self) -> Vec<Arc<Connected>> {
        self.slots.iter().filter_map(ArcSwapOption::load_full).collect()
    }

    /// Whether no connection is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.slots.iter().all(|slot| slot.load().is_some())
    }

    /// Whether the server is a replica, which takes no writes.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Where the connections lead.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.all().first().map(|connected| connected.endpoint.clone())
    }

    /// Gives a connection up, if it is still in use.
    pub(super) fn give_up(&self, connected: &Arc<Connected>) {
        for slot in &self.slots {
            let current = slot.load();
            if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connected)) {
                slot.compare_and_swap(&current, None);
                self.broken.notify_one();
            }
        }
    }

    /// Puts new connections in the place of all others, whose calls under way go on, except for writes.
    ///
    /// # Errors
    /// [`Trouble`] if the server stopped answering meanwhile; there is no connection for writes then.
    pub(super) async fn replace(&self, new: Vec<Connected>) -> Result<Fence, Trouble> {
        assert_eq!(new.len(), self.slots.len(), "as many as there are places");
        let old = self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // No write begins over the old connection from here on.
        self.slots[0].store(None);
        let fence = match old {
            Writer::Nobody => Fence::Kept,
            Writer::Known(old) => drop_client(new[0].connection.clone(), &old).await?,
            Writer::Unknown => Fence::Refused,
        };
        self.read_only.store(!new[0].is_master, Ordering::Relaxed);
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) =
            new[0].identity.clone().map_or(Writer::Unknown, Writer::Known);
        for (slot, connected) in self.slots.iter().zip(new) {
            slot.store(Some(Arc::new(connected)));
        }
        Ok(fence)
    }

    /// Closes all connections, once the calls under way are done.
    pub(super) fn close(&self) {
        self.slots.iter().for_each(|slot| slot.store(None));
    }
}

async fn drop_client(mut connection: MultiplexedConnection, old: &ClientIdentity) -> Result<Fence, Trouble> {
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("ID").arg(old.id).arg("ADDR").arg(&old.address);
    match timeout(CONNECT_TIMEOUT, kill.exec_async(&mut connection)).await {
        Ok(Ok(())) => Ok(Fence::Kept),
        Ok(Err(error)) => match Trouble::from(&error) {
            trouble if trouble.consequence == Consequence::None => Ok(Fence::Refused),
            trouble => Err(trouble),
        },
        Err(_) => Err(Trouble::timeout("CLIENT KILL")),
    }
}
