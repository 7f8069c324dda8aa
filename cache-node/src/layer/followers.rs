//! The nodes that follow the log, as the layer that keeps the log tells of them to whoever waits for them.

use async_trait::async_trait;

use super::{LayerError, log::Census};
use crate::{context::OperationContext, entry::Position};

/// Where all nodes say how far they have come.
#[async_trait]
pub trait Followers: Send + Sync + 'static {
    /// Asks every node to say how far it has come once it has come this far; answers how far that is.
    ///
    /// # Errors
    /// [`LayerError`] if they can not be asked, or if it is not known whether they were.
    async fn ask(&self, cx: &OperationContext) -> Result<Position, LayerError>;

    /// The newest record of this node that was confirmed to it.
    fn newest(&self) -> Position;

    /// What they have said.
    ///
    /// # Errors
    /// [`LayerError`] if that is not known.
    async fn census(&self, cx: &OperationContext) -> Result<Census, LayerError>;
}
