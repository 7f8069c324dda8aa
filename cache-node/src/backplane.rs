//! What the nodes of a cache tell each other: which entries are older than they look.
//!
//! Every change of this node, and every change that it hears of from another one, is told to each [`Listener`] once
//! memory has it.

use std::sync::{Arc, OnceLock};

use crate::{context::Origin, entry::Position, layer::TagRemoval};

/// Who must know what changes: leases, and the near caches of clients.
const LISTENERS_MAX: usize = 2;

/// The backplane of one node.
#[derive(Default)]
pub struct Backplane {
    listeners: [OnceLock<Arc<dyn Listener>>; LISTENERS_MAX],
}

/// Hears of changes.
pub trait Listener: Send + Sync + 'static {
    /// Something was overwritten or removed, and no reader of this node finds it in memory any more. Called under the
    /// lock of the key, if there is one: must be quick, must not wait, and must not ask the coordinator.
    fn changed(&self, notice: &Notice<'_>);
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub struct Notice<'a> {
    /// Who made it: a client of this node, or another node.
    pub origin: Origin,
    /// The operation of this node that made it; 0 if none did.
    pub operation: u64,
    /// Its place in the order of changes; [`Position::NONE`] if that is not known yet.
    pub position: Position,
    /// What is older than it looks.
    pub what: What<'a>,
}

/// What a change is about.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// The entry of this key was stored, replaced or removed.
    Key(&'a [u8]),
    /// All entries with these tags were removed.
    Tagged(&'a TagRemoval),
    /// Everything was removed, or nothing is certain any more.
    Everything,
}

// === impl Backplane ===

impl Backplane {
    /// Has the listener hear of all changes from now on.
    ///
    /// # Panics
    /// If there is no place for it: then somebody would not hear.
    pub fn listen(&self, listener: Arc<dyn Listener>) {
        let left = self.listeners.iter().try_fold(listener, |listener, place| match place.set(listener) {
            Ok(()) => Err(()),
            Err(listener) => Ok(listener),
        });
        assert!(left.is_err(), "there are places for all listeners of a node");
    }

    /// Tells the listeners.
    #[inline]
    pub(crate) fn tell(&self, notice: &Notice<'_>) {
        for listener in self.listeners.iter().filter_map(OnceLock::get) {
            listener.changed(notice);
        }
    }
}
