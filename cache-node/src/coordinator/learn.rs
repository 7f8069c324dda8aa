//! Which tagged entries are gone: the layers that keep it tell this node, and this node tells those that have missed it.

use std::sync::atomic::Ordering;

use super::stores::{Cold, Stores};
use crate::{
    backplane::What,
    context::OperationContext,
    layer::{Change, ErrorKind, LayerError, LayerId, TagRemoval},
};

/// Removals by tag that a layer is told of in one batch.
const REMOVALS_AT_ONCE: usize = 256;

// === impl Stores ===

impl Stores {
    /// Learns which tagged entries the layers know to be gone, from those that have not told yet; and tells them of those
    /// that they do not know, if they have not been told yet. Answers which could not say what they know.
    pub(super) async fn learn_tags(&self, cx: &OperationContext) -> Vec<LayerId> {
        let (mut told, mut silent) = (Vec::new(), Vec::new());
        let is_due = |cold: &&Cold| !cold.tags_known.load(Ordering::Acquire) || self.is_untold(cold);
        for cold in self.cold.iter().filter(is_due) {
            let forgotten = cold.tags_forgotten.load(Ordering::Acquire);
            let known = async { Ok((cold.layer.tag_removals(cx).await?, cold.layer.newest_position(cx).await?)) };
            match known.await {
                Ok((removals, newest)) => {
                    for removal in &removals {
                        self.tags.record(removal);
                        let concerns_all = removal.tags.tags().is_empty();
                        self.tell(cx, if concerns_all { What::Everything } else { What::Tagged(removal) });
                    }
                    self.tags.see(newest);
                    told.push((cold, forgotten, removals));
                }
                // It is asked again with the next tick, and not read before.
                Err::<_, LayerError>(error) => {
                    tracing::debug!(%error, "removals by tag are not known yet");
                    silent.push(cold.layer.id());
                }
            }
        }
        // Only now: what one layer knows may be news to another.
        for (cold, forgotten, removals) in told {
            match self.tell_tags(cx, cold, &removals).await {
                // One that takes no writes can be read all the same: this node knows what is gone.
                Ok(()) | Err(LayerError { kind: ErrorKind::Refused, .. }) => {
                    cold.tags_known.store(true, Ordering::SeqCst);
                    // What was read before they had to be learned anew is not what is there now.
                    if cold.tags_forgotten.load(Ordering::SeqCst) != forgotten {
                        cold.tags_known.store(false, Ordering::SeqCst);
                    }
                }
                Err(error) => tracing::debug!(%error, "removals by tag are not told yet"),
            }
        }
        silent
    }

    /// Tells a layer of the removals that it has missed: made while it was away, by a process that has ended since. The
    /// disk is never away.
    async fn tell_tags(&self, cx: &OperationContext, cold: &Cold, known: &[TagRemoval]) -> Result<(), LayerError> {
        if cold.layer.id() == LayerId::Disk || (self.backplane.is_on() && !self.is_untold(cold)) {
            return Ok(());
        }
        for removals in self.tags.missing_from(known).chunks(REMOVALS_AT_ONCE) {
            let changes: Vec<Change> = removals.iter().cloned().map(Change::RemoveTagged).collect();
            cold.layer.apply(cx, &changes).await?;
        }
        cold.tags_told.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether a store that all nodes share may lack removals that this node made when it could not tell it.
    fn is_untold(&self, cold: &Cold) -> bool {
        let is_shared = cold.layer.id() == LayerId::Redis && self.backplane.is_on();
        is_shared && !cold.tags_told.load(Ordering::Acquire)
    }

    /// Whether every store that all nodes share knows what this node has removed.
    pub(super) fn has_told_tags(&self) -> bool {
        !self.cold.iter().any(|cold| self.is_untold(cold))
    }

    /// The removals that the layer keeps have to be learned anew.
    pub(super) fn forget_tags_of(&self, id: LayerId) {
        let cold = self.cold.iter().filter(|cold| cold.layer.id() == id);
        cold.for_each(|cold| {
            cold.tags_forgotten.fetch_add(1, Ordering::SeqCst);
            cold.tags_known.store(false, Ordering::SeqCst);
        });
    }

    /// Whether the removals are known that the layer keeps, if there is one.
    pub(super) fn knows_tags_of(&self, id: LayerId) -> bool {
        self.cold.iter().filter(|cold| cold.layer.id() == id).all(|cold| cold.tags_known.load(Ordering::Acquire))
    }
}
