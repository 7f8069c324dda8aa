//! The facts about one operation: read by every part, changed by none.

use std::time::Instant;

use crate::clock::UnixMillis;

/// Who set an operation in motion.
///
/// Only `Client` operations are announced to other nodes; that is what keeps two nodes from echoing one
/// invalidation for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client of this node.
    Client,
    /// Another node, through the invalidation log.
    Backplane,
    /// A value on its way up from a lower layer.
    Promotion,
    /// A write found in a journal after an unclean stop.
    Replay,
}

/// Facts about one operation, passed first and by reference, as `cx`. Intent (life, tags, conditions) is in arguments.
#[derive(Clone, Copy, Debug)]
pub struct OperationContext {
    /// Who asked.
    pub origin: Origin,
    /// Read once per batch of commands, so that all expiry checks of one operation agree.
    pub now: UnixMillis,
    /// When the answer is no longer wanted; shared by all layers.
    pub deadline: Instant,
}
