//! Removals: by key, by tag, of everything. Each is acknowledged only once it can not be undone by a kill.

use super::{Coordinator, Look, WriteError, promote::Removal, times::Times};
use crate::{
    backplane::What,
    context::OperationContext,
    entry::{Key, TagSet},
    layer::Matching,
};

// === impl Coordinator ===

impl Coordinator {
    /// Forgets the keys in all layers; answers how many had a live entry. Returns once no kill -9 brings them back.
    ///
    /// # Errors
    /// [`WriteError::QueueFull`] or [`WriteError::Unconfirmed`]; some keys may have been removed.
    pub async fn remove_many(&self, cx: &OperationContext, keys: &[Key]) -> Result<u64, WriteError> {
        let mut removed = 0;
        let mut receipts = Vec::new();
        let mut left = keys.to_vec();
        while !left.is_empty() {
            let cx = &self.renewed(cx);
            let room = self.stores.write_queue.room();
            let looks: Vec<Look> = left.iter().map(|key| self.look(cx, key.as_bytes())).collect();
            let mut cold = self.read_cold_many(cx, &left, &looks).await.0.into_iter();
            let mut again = Vec::new();
            let mut full = false;
            for (key, look) in left.into_iter().zip(looks) {
                let seen = match look {
                    Look::Cold(ticket) | Look::Stale(_, Some(ticket)) => cold.next().map(|found| (ticket, found)),
                    Look::Hit(_) | Look::Absent | Look::Stale(_, None) => None,
                };
                match self.stores.remove_seen(cx, &key, seen) {
                    Removal::Queued { live, receipt } => {
                        removed += u64::from(live);
                        receipts.push(receipt);
                    }
                    Removal::Changed => again.push(key),
                    Removal::Full => {
                        full = true;
                        again.push(key);
                    }
                }
            }
            if full {
                room.for_removal(cx.deadline).await?;
            } else if !again.is_empty() && self.clock.monotonic() >= cx.deadline {
                return Err(WriteError::Unconfirmed);
            }
            left = again;
        }
        for receipt in receipts {
            self.confirmed(cx, &receipt).await?;
        }
        Ok(removed)
    }

    /// Forgets all entries written so far that carry the tags, in all layers, whether or not anybody knows of them.
    /// Returns once no kill -9 brings them back; they are not served from the moment of the call.
    ///
    /// # Errors
    /// [`WriteError::Unconfirmed`]; the removal goes on, and nothing that it concerns is served meanwhile.
    pub async fn remove_tagged(
        &self,
        cx: &OperationContext,
        tags: TagSet,
        matching: Matching,
    ) -> Result<(), WriteError> {
        let begun = self.clock.monotonic();
        let removal = self.stores.tags.remove(cx.now, tags, matching);
        Times::lap(&self.stores.times.tag_removal, begun, &self.clock);
        self.stores.tell(cx, What::Tagged(&removal));
        let receipt = self.stores.write_queue.remove_tagged(&removal);
        self.confirmed(cx, &receipt).await
    }

    /// Forgets everything in all layers. Once it returns, nothing stored before comes back, also after a kill -9.
    ///
    /// # Errors
    /// [`WriteError::Unconfirmed`]; the clear goes on, and nothing of before is served meanwhile.
    pub async fn clear(&self, cx: &OperationContext) -> Result<(), WriteError> {
        let receipt = self.stores.clear(cx);
        self.confirmed(cx, &receipt).await
    }
}
