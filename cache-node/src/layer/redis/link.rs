//! The connections in use. Each carries the calls of many at once, which pipelines them without anybody's doing.
//!
//! All writes go over the first connection, so that Redis sees them in the order in which they were sent, also one
//! that nobody waits for any more. When it is replaced, the server is told to drop the old one before anything is
//! written over the new one: what may still be in the old one's buffers can not overtake. Who writes is also written
//! down in a file, because what a killed process has sent may hang in the network for minutes.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use tokio::{
    fs,
    sync::{Notify, RwLock, RwLockReadGuard},
    time::{timeout, timeout_at},
};

use super::{
    Endpoint,
    connect::{CONNECT_TIMEOUT, ClientIdentity, Connected},
    trouble::{Consequence, Trouble},
};

/// How long a connection that works is kept for the writes under way when another takes its place; and how long the file
/// in which the writer is written down may take.
const CALM: Duration = Duration::from_secs(1);

/// The connections in use, and who writes.
pub(super) struct Link {
    slots: Vec<ArcSwapOption<Connected>>,
    turn: AtomicUsize,
    /// Shared by the writes under way; whoever replaces the connection for writes has it alone.
    writing: RwLock<()>,
    /// Who wrote last, and must be dropped before somebody else writes.
    writer: Mutex<Writer>,
    /// Where that is written down for the next process.
    writer_file: Option<PathBuf>,
    read_only: AtomicBool,
    /// Told when a connection was given up.
    pub(super) broken: Notify,
}

/// The connection for writes, which is not replaced meanwhile unless it fails.
pub(super) struct Writing<'a> {
    connected: Arc<Connected>,
    _shared: RwLockReadGuard<'a, ()>,
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
    pub(super) fn new(connections: usize, writer_file: Option<PathBuf>) -> Self {
        assert!(connections >= 2, "one for writes, at least one for reads");
        Self {
            slots: (0..connections).map(|_| ArcSwapOption::empty()).collect(),
            turn: AtomicUsize::new(0),
            writing: RwLock::new(()),
            writer: Mutex::new(Writer::Nobody),
            writer_file,
            read_only: AtomicBool::new(false),
            broken: Notify::new(),
        }
    }

    /// The connection for writes.
    pub(super) fn writer(&self) -> Option<Arc<Connected>> {
        self.slots[0].load_full()
    }

    /// The connection for a write. While it is being replaced, that is waited for.
    pub(super) async fn writing(&self, deadline: Instant) -> Option<Writing<'_>> {
        let shared = timeout_at(deadline.into(), self.writing.read()).await.ok()?;
        self.writer().map(|connected| Writing { connected, _shared: shared })
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

    /// Puts new connections in the place of all others, whose calls under way go on. Writes under way have [`CALM`] to
    /// end if their connection works.
    ///
    /// # Errors
    /// [`Trouble`] if the server stopped answering meanwhile; there is no connection for writes then.
    pub(super) async fn replace(&self, new: Vec<Connected>) -> Result<Fence, Trouble> {
        assert_eq!(new.len(), self.slots.len(), "as many as there are places");
        let old = self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let works = self.writer().is_some();
        let _alone = if works { timeout(CALM, self.writing.write()).await.ok() } else { None };
        // No write begins over the old connection from here on.
        self.slots[0].store(None);
        let old = match old {
            Writer::Nobody => self.writer_before().await,
            known => known,
        };
        let fence = match old {
            Writer::Nobody => Fence::Kept,
            Writer::Known(old) => drop_client(new[0].connection.clone(), &old).await?,
            Writer::Unknown => Fence::Refused,
        };
        self.note_writer(new[0].identity.as_ref()).await;
        self.read_only.store(!new[0].is_master, Ordering::Relaxed);
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) =
            new[0].identity.clone().map_or(Writer::Unknown, Writer::Known);
        for (slot, connected) in self.slots.iter().zip(new) {
            slot.store(Some(Arc::new(connected)));
        }
        Ok(fence)
    }

    /// Who wrote last when the process before this one ended.
    async fn writer_before(&self) -> Writer {
        let Some(file) = &self.writer_file else { return Writer::Nobody };
        // A volume that hangs does not say whether anybody has.
        let Ok(read) = timeout(CALM, fs::read_to_string(file)).await else { return Writer::Unknown };
        ClientIdentity::parse(&read.unwrap_or_default()).map_or(Writer::Nobody, Writer::Known)
    }

    /// Writes down who writes from now on.
    async fn note_writer(&self, identity: Option<&ClientIdentity>) {
        let (Some(file), Some(identity)) = (&self.writer_file, identity) else { return };
        let note = async {
            // The volume may be as new as this process.
            fs::create_dir_all(file.parent().ok_or(io::ErrorKind::InvalidInput)?).await?;
            fs::write(file, identity.to_string()).await
        };
        let noted = timeout(CALM, note).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = noted {
            tracing::warn!(%error, "after a kill, a write that is on its way to redis may take effect late");
        }
    }

    /// Closes all connections, once the calls under way are done.
    pub(super) fn close(&self) {
        self.slots.iter().for_each(|slot| slot.store(None));
    }
}

// === impl Writing ===

impl Writing<'_> {
    pub(super) fn connected(&self) -> Arc<Connected> {
        Arc::clone(&self.connected)
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
