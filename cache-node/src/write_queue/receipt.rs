//! A promise that some changes are where they have to be.

use std::{ops::Deref, sync::Arc};

use tokio::sync::Notify;

use super::{Lanes, lanes::LANES_MAX};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

/// Settled once every change it was given to is in every cold layer that it has to be in. Never settled falsely: if the
/// node gives up, its waiter runs into its own deadline.
#[derive(Debug)]
pub struct Receipt {
    /// Changes of which it is not known yet where they have to be.
    open: AtomicUsize,
    /// Steps that each layer has left, by its place.
    left: [AtomicUsize; LANES_MAX],
    /// Layers that it has, or had, to do with.
    concerned: AtomicU8,
    /// Layers that need not have everything, because they are away.
    excused: AtomicU8,
    /// Nobody waits for it any more.
    is_abandoned: AtomicBool,
    /// Whenever a layer has nothing left.
    settled: Notify,
}

/// A receipt for everything that was accepted. Dropped, nobody waits for it any more.
#[derive(Debug)]
pub struct Hurry(pub(super) Arc<Receipt>);

/// Somebody who waits for a change of one slot.
pub(super) struct Wait {
    pub(super) receipt: Arc<Receipt>,
    /// Lanes in which the change is still to be taken.
    pub(super) queued: Lanes,
    /// Lanes in which it is under way.
    pub(super) flying: Lanes,
}

// === impl Receipt ===

impl Receipt {
    /// A receipt for `changes` changes; one for none is settled already.
    pub fn new(changes: usize) -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(changes),
            left: Default::default(),
            concerned: AtomicU8::default(),
            excused: AtomicU8::default(),
            is_abandoned: AtomicBool::default(),
            settled: Notify::new(),
        })
    }

    /// Waits until all changes are where they have to be. Any number of tasks may wait.
    ///
    /// # Cancel safety
    /// Waiting may be given up and begun again.
    pub async fn settled(&self) {
        while !self.is_settled() {
            self.fewer_than(self.missing()).await;
        }
    }

    /// Whether all changes are where they have to be.
    pub fn is_settled(&self) -> bool {
        self.left() == 0
    }

    /// Layers that lack something of what is known to be theirs.
    pub fn missing(&self) -> Lanes {
        let places = (0..LANES_MAX).filter(|&place| self.left[place].load(Ordering::Acquire) > 0);
        places.fold(Lanes::NONE, |lanes, place| lanes.with(Lanes::at(place)))
    }

    /// Waits until it is settled, or until other layers than these lack something; answers which.
    ///
    /// # Cancel safety
    /// Waiting may be given up and begun again.
    pub async fn fewer_than(&self, known: Lanes) -> Lanes {
        loop {
            let changed = self.settled.notified();
            let missing = self.missing();
            if missing != known || self.is_settled() {
                return missing;
            }
            changed.await;
        }
    }

    /// Layers that were to have changes, those included that are excused.
    pub fn concerned(&self) -> Lanes {
        Lanes::from_bits(u64::from(self.concerned.load(Ordering::Acquire)))
    }

    /// Layers that are away, have not got everything, and are not waited for.
    pub fn excused(&self) -> Lanes {
        Lanes::from_bits(u64::from(self.excused.load(Ordering::Acquire)))
    }

    /// Takes one more change on.
    pub fn expect(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
    }

    /// One of its changes needs to go nowhere, or not any more.
    pub fn give_up(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_waiters();
        }
    }

    /// How many steps are not done, one for each change and layer.
    pub fn left(&self) -> usize {
        // What is spread moves from here to the layers, and is nowhere missed in this order.
        let open = self.open.load(Ordering::Acquire);
        self.left.iter().fold(open, |sum, left| sum + left.load(Ordering::Acquire))
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
    }

    /// One of its changes has to reach these layers.
    pub(super) fn spread(&self, lanes: Lanes) {
        lanes.places().for_each(|place| self.expect_at(place, 1));
        self.give_up();
    }

    /// There is more to wait for at this layer.
    pub(super) fn expect_at(&self, place: usize, more: usize) {
        self.concerned.fetch_or(Lanes::at(place).bits(), Ordering::AcqRel);
        self.left[place].fetch_add(more, Ordering::AcqRel);
    }

    /// These layers would have to have a change and are not waited for.
    pub(super) fn excuse(&self, lanes: Lanes) {
        self.concerned.fetch_or(lanes.bits(), Ordering::AcqRel);
        self.excused.fetch_or(lanes.bits(), Ordering::AcqRel);
    }

    /// One more step is done at this layer.
    pub(super) fn settle_at(&self, place: usize) {
        if self.left[place].fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_waiters();
        }
    }

    /// One step is not waited for any longer at this layer, which is away.
    pub(super) fn excuse_at(&self, place: usize) {
        self.excuse(Lanes::at(place));
        self.settle_at(place);
    }
}

// === impl Hurry ===

impl Deref for Hurry {
    type Target = Receipt;

    fn deref(&self) -> &Receipt {
        &self.0
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.is_abandoned.store(true, Ordering::Relaxed);
    }
}

// === impl Wait ===

impl Wait {
    /// Whether nothing is waited for any more.
    pub(super) const fn is_over(&self) -> bool {
        self.queued.with(self.flying).is_empty()
    }
}
