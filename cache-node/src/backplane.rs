//! What the nodes of a cache tell each other: which entries are older than they look.
//!
//! Every change of this node, and every change that it hears of from another one, is told to a [`Listener`] once memory
//! has it.

use std::sync::{Arc, OnceLock};

use crate::{context::Origin, entry::Position, layer::TagRemoval};

/// The backplane of one node.
#[derive(Default)]
pub struct Backplane {
    listener: OnceLock<Arc<dyn Listener>>,
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
    /// Has the listener hear of all changes from now on. Only the first call counts.
    pub fn listen(&self, listener: Arc<dyn Listener>) {
        // A second listener would be a mistake of the composition root, which has one.
        let _ = self.listener.set(listener);
    }

    /// Tells the listener, if there is one. Costs one load if there is none.
    #[inline]
    pub(crate) fn tell(&self, notice: &Notice<'_>) {
        if let Some(listener) = self.listener.get() {
            listener.changed(notice);
        }
    }
}
