//! Writes of values: acknowledged once they are in memory and in the queue, or once the layers have them.

use std::{sync::Arc, time::Duration};

use tokio::sync::SemaphorePermit;
use xxhash_rust::xxh3::xxh3_64;

use super::{Confirmed, Coordinator, Traced, below::within};
use crate::{
    clock::UnixMillis,
    context::OperationContext,
    entry::{Entry, EntryMeta, Position, Tags},
    write_queue::{Full, Receipt, Unflushed},
};

/// Callers who wait for everything that was accepted, at once; others wait for their turn.
pub(super) const WAITERS_MAX: usize = 32;

/// When a write of a client is acknowledged. Removals always wait for the layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteMode {
    /// Once it is in memory and in the queue.
    #[default]
    Behind,
    /// Once the cold layers have it.
    Through,
}

/// Why a write was not accepted, or a removal not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The queue stayed full until the deadline. Nothing was changed.
    #[error("the write queue is full; the layers below do not keep up")]
    QueueFull,
    /// The change is under way but not confirmed within the deadline; it may still take effect.
    #[error("not confirmed by the layers below within the deadline")]
    Unconfirmed,
    /// Redis can not be told of a removal, for this reason, and [`Outbox::Refuse`] holds. The removal has taken effect on
    /// this node, and Redis is told once it is back.
    #[error("Redis can not be told of the removal: {0}; it holds on this node alone until Redis is told")]
    Untold(String),
    /// Some writes are not in all layers yet.
    #[error(transparent)]
    Unflushed(#[from] Unflushed),
    /// The other nodes could not be asked how far they have come, for this reason.
    #[error("it is not known which nodes have carried out what was accepted: {0}")]
    Unasked(String),
    /// The value to be modified could not be read within the deadline. Nothing was changed.
    #[error("the value could not be read within the deadline")]
    Unreadable,
    /// The entry alone exceeds the queue's capacity. Nothing was changed.
    #[error("entry of {0} bytes exceeds the capacity of the write queue")]
    TooLarge(u64),
}

// === impl Coordinator ===

impl Coordinator {
    /// A position for an entry with tags that is written now.
    pub fn position(&self, cx: &OperationContext) -> Position {
        self.stores.tags.position(cx.now)
    }

    /// A life, shortened by so many percent of it at most, so that what was stored together does not expire together. The
    /// key decides by how much: a value that is stored again lives as long as the one before.
    pub fn jittered(life: Duration, key: &[u8], percent_max: u8) -> Duration {
        if percent_max == 0 {
            return life;
        }
        // A multiple of a ten-thousandth of the life.
        let share = xxh3_64(key) % (u64::from(percent_max) * 100 + 1);
        let less_ms = u64::try_from(life.as_millis() * u128::from(share) / 10_000).unwrap_or(0);
        life.saturating_sub(Duration::from_millis(less_ms))
    }

    /// What comes with a value that is written now. Its stale life begins at its expiry.
    pub fn meta<'a>(
        &self,
        cx: &OperationContext,
        expires_at: Option<UnixMillis>,
        stale: Option<Duration>,
        tags: Tags<'a>,
    ) -> EntryMeta<'a> {
        EntryMeta {
            expires_at,
            stale_until: expires_at.zip(stale).map(|(at, stale)| at.after(stale)),
            // Only tags are compared with positions.
            position: if tags.is_empty() { Position::NONE } else { self.position(cx) },
            tags,
            negative: false,
        }
    }

    /// Stores the entry if that takes no waiting.
    ///
    /// # Errors
    /// The entry, if the queue is full or writes wait for the layers: call [`Coordinator::set`].
    #[inline]
    pub fn try_set(&self, cx: &OperationContext, entry: Entry) -> Result<(), Entry> {
        if self.write_mode == WriteMode::Through {
            return Err(entry);
        }
        self.store(cx, &entry, None).map_err(|Full| entry)
    }

    #[inline]
    fn store(&self, cx: &OperationContext, entry: &Entry, receipt: Option<Arc<Receipt>>) -> Result<(), Full> {
        let mut turn = self.stores.write_queue.turn(entry.key());
        self.stores.set(cx, &mut turn, entry, receipt)
    }

    /// Stores the entry, waiting for room in the queue if need be, and for the layers if writes go through.
    ///
    /// # Errors
    /// [`WriteError::QueueFull`] or [`WriteError::TooLarge`]; written through also [`WriteError::Unconfirmed`].
    pub async fn set(&self, op: impl Into<Traced<'_>>, entry: Entry) -> Result<Confirmed, WriteError> {
        let op = &mut op.into();
        if !self.stores.write_queue.fits(&entry) {
            return Err(WriteError::TooLarge(entry.bytes()));
        }
        let receipt = (self.write_mode == WriteMode::Through).then(|| Receipt::new(1));
        loop {
            let room = self.stores.write_queue.room();
            if self.store(op.cx, &entry, receipt.clone()).is_ok() {
                break;
            }
            self.roomy(op, room.for_value(op.cx.deadline)).await?;
        }
        match receipt {
            Some(receipt) => self.told(op, &receipt, 1).await,
            None => Ok(Confirmed::Accepted),
        }
    }

    /// Stores the entries in their order; says what the one knows of which the fewest know.
    ///
    /// # Errors
    /// As [`Coordinator::set`]; the entries before the refused one are stored.
    pub async fn set_many(&self, op: impl Into<Traced<'_>>, entries: Vec<Entry>) -> Result<Confirmed, WriteError> {
        let op = &mut op.into();
        let mut least = Confirmed::Everywhere;
        for entry in entries {
            least = least.max(self.set(op.again(), entry).await?);
        }
        Ok(least)
    }

    /// Waits until the cold layers that can be reached have every write accepted so far.
    ///
    /// # Errors
    /// [`WriteError::Unflushed`] if the deadline passed before; the flushing goes on.
    pub async fn flush(&self, op: impl Into<Traced<'_>>) -> Result<Confirmed, WriteError> {
        let op = &mut op.into();
        let _turn = self.turn_to_wait(op.cx).await?;
        self.flush_now(op).await
    }

    /// The right to wait for everything that was accepted.
    ///
    /// # Errors
    /// [`WriteError::Unflushed`] if the deadline passed before.
    pub(super) async fn turn_to_wait(&self, cx: &OperationContext) -> Result<SemaphorePermit<'_>, WriteError> {
        let turn = within(cx, self.waiters.acquire()).await;
        let left = || usize::try_from(self.stores.write_queue.items()).unwrap_or(usize::MAX);
        Ok(turn.ok_or_else(|| Unflushed { left: left() })?.expect("it is never closed"))
    }

    /// The same for who has the turn.
    pub(super) async fn flush_now(&self, op: &mut Traced<'_>) -> Result<Confirmed, WriteError> {
        let receipt = self.stores.write_queue.hurry();
        let flushed = self.confirmed(op, &receipt, receipt.left()).await;
        flushed.map_err(|_| WriteError::Unflushed(Unflushed { left: receipt.left() }))?;
        Ok(if receipt.excused().is_empty() { Confirmed::Everywhere } else { Confirmed::Queued })
    }
}
