//! A queue without flushers of its own: the threads of a test of all orders move them.

use crate::write_queue::{Arc, Clock, Flusher, Layer, QueueOptions, RandomState, WriteQueue, flusher::Step};

impl WriteQueue {
    pub(crate) fn by_hand(options: QueueOptions, targets: Vec<Arc<dyn Layer>>, clock: Clock) -> Arc<Self> {
        let mut queue = Self::idle(options, targets, None, clock);
        // Few, so that a step is short; the same key always falls into the same.
        queue.shards = std::mem::take(&mut queue.shards).into_iter().take(2).collect();
        queue.hasher = RandomState::with_seeds(1, 2, 3, 4);
        Arc::new(queue)
    }

    /// Which of its parts a key belongs to.
    pub(crate) fn part_of(&self, key: &str) -> usize {
        self.shard_of(self.hasher.hash_one(key.as_bytes()))
    }

    /// How many flushers there are to be.
    pub(crate) fn flushers(&self) -> usize {
        self.lanes.iter().map(|lane| lane.seats.len()).sum()
    }

    /// What one flusher does until [`WriteQueue::end_by_hand`], without ever lingering.
    pub(crate) async fn work_by_hand(self: Arc<Self>, number: usize) {
        let mut seats = self.lanes.iter().flat_map(|lane| (0..lane.seats.len()).map(move |seat| (lane, seat)));
        let (lane, seat) = seats.nth(number).expect("there are so many");
        let flusher = Flusher::new(Arc::clone(&self), Arc::clone(lane), seat);
        let mut goes_on = true;
        while goes_on {
            goes_on = flusher.step().await == Step::Done || flusher.idle().await;
        }
    }

    /// Lets the flushers end that have nothing to do.
    pub(crate) fn end_by_hand(&self) {
        self.drain.cancel();
    }
}
