//! Leases that all nodes of a cache share, as the layer that keeps them tells it.

use std::time::Duration;

use async_trait::async_trait;

use super::LayerError;
use crate::{
    context::OperationContext,
    entry::{Entry, Key, Position},
};

/// What asking for a lease came to.
#[derive(Debug)]
pub enum Taken {
    /// It is the caller's. What is fetched from now on is at least as fresh as this position.
    Granted(Position),
    /// A client of this node or of another one has so long to bring the value.
    Held(Duration),
    /// There is a copy, of this version; none if it can not be used. Who judges that it counts as none names the version
    /// at the next attempt.
    Found(Option<Entry>, Position),
}

/// Where the leases are. A lease ends with its fill, with its life, and with any change of its key by any node.
#[async_trait]
pub trait SharedLeases: Send + Sync + 'static {
    /// Takes the lease of the key under this token, unless there is a copy of another version than `dead`, or somebody
    /// holds it.
    ///
    /// # Errors
    /// [`LayerError`] if that is not known; the lease may have been taken.
    async fn take(
        &self,
        cx: &OperationContext,
        key: &Key,
        (token, life): (i64, Duration),
        dead: Option<Position>,
    ) -> Result<Taken, LayerError>;

    /// The position at which the lease with this token was granted; none if there is no such lease.
    ///
    /// # Errors
    /// [`LayerError`] if that is not known.
    async fn granted(&self, cx: &OperationContext, key: &[u8], token: i64) -> Result<Option<Position>, LayerError>;

    /// Stores the entry in place of whatever is there, ends the lease and has other nodes hear of it, all in one step.
    /// Answers the position of the change; none, and nothing has changed, if the lease has ended, or if everything or
    /// one of the entry's tags was removed since `granted`.
    ///
    /// # Errors
    /// [`LayerError`] if that is not known; it may have been stored.
    async fn fill(
        &self,
        cx: &OperationContext,
        (token, granted): (i64, Position),
        entry: &Entry,
    ) -> Result<Option<Position>, LayerError>;
}
