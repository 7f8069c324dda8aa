//! Counters that threads do not share: on the hot path a shared atomic costs more than the rest of an L1 hit.
//!
//! Every live thread borrows one of [`SEATS_MAX`] seats. A [`Tally`] has a padded cell per seat, so that counting is a
//! plain load and store on a cache line of the thread's own; reading sums all cells.

use std::{
    array,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Threads that count without sharing. Those beyond share the last cell and pay an atomic addition.
const SEATS_MAX: usize = 64;

/// `N` counters, counted per thread and summed when read.
pub struct Tally<const N: usize> {
    cells: Box<[Cell<N>]>,
}

/// Two cache lines apart, because processors fetch lines in pairs.
#[repr(align(128))]
struct Cell<const N: usize>([AtomicU64; N]);

/// The right of one thread to write the cells of one number alone.
struct Seat(usize);

/// Seats given back by threads that ended. The mutex orders the last count of one owner before the first of the next.
static RETURNED: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SEAT: Seat = Seat::take();
}

// === impl Tally ===

impl<const N: usize> Tally<N> {
    /// All counters at zero.
    #[must_use]
    pub fn new() -> Self {
        Self { cells: (0..=SEATS_MAX).map(|_| Cell(array::from_fn(|_| AtomicU64::new(0)))).collect() }
    }

    /// Adds `count` to counter `which`.
    ///
    /// # Panics
    /// If there is no such counter.
    #[inline]
    pub fn add(&self, which: usize, count: u64) {
        // A thread that is being torn down has given its seat back already.
        let seat = SEAT.try_with(|seat| seat.0).unwrap_or(SEATS_MAX);
        let counter = &self.cells[seat].0[which];
        if seat < SEATS_MAX {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        } else {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// What all threads have counted on counter `which`.
    ///
    /// # Panics
    /// If there is no such counter.
    pub fn sum(&self, which: usize) -> u64 {
        self.cells.iter().map(|cell| cell.0[which].load(Ordering::Relaxed)).sum()
    }
}

impl<const N: usize> Default for Tally<N> {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Seat ===

impl Seat {
    fn take() -> Self {
        let returned = RETURNED.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self(returned.unwrap_or_else(|| NEXT.fetch_add(1, Ordering::Relaxed).min(SEATS_MAX)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.0 < SEATS_MAX {
            RETURNED.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn counts_of_all_threads_are_summed_also_beyond_the_seats() {
        let tally = Arc::new(Tally::<2>::new());
        for _ in 0..3 {
            let threads: Vec<_> = (0..SEATS_MAX + 8)
                .map(|_| {
                    let tally = Arc::clone(&tally);
                    thread::spawn(move || (0..1000).for_each(|_| tally.add(1, 1)))
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        assert_eq!(tally.sum(1), 3 * (SEATS_MAX as u64 + 8) * 1000);
        assert_eq!(tally.sum(0), 0);
    }
}
