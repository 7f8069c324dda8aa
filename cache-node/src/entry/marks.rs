//! What memory notes on an entry that it holds: in the header, so that a hit touches no further cache line.

use std::sync::atomic::{AtomicU32, Ordering};

/// Two bits count visits, the others tell until when memory holds the entry, in memory's own unit of time.
///
/// Whoever holds an entry may be looking at it, so the marks are atomic; but no two threads depend on each other's
/// marks: visits are counted under a shared lock and may be lost, everything else happens under an exclusive one.
#[derive(Debug, Default)]
pub(crate) struct Marks(AtomicU32);

/// Visits are counted up to here: all ones of their bits.
const VISITS_MAX: u32 = 0b11;

/// Bits of the visits, below those of the time.
const VISIT_BITS: u32 = 2;

// === impl Marks ===

impl Marks {
    /// Notes a read. Costs no store once the count is full, so that readers of a popular entry do not take its cache line
    /// from each other.
    #[inline]
    pub(crate) fn visit(&self) {
        let marks = self.0.load(Ordering::Relaxed);
        if marks & VISITS_MAX < VISITS_MAX {
            self.0.store(marks + 1, Ordering::Relaxed);
        }
    }

    /// Reads since memory took the entry, at most [`VISITS_MAX`].
    pub(crate) fn visits(&self) -> u32 {
        self.0.load(Ordering::Relaxed) & VISITS_MAX
    }

    /// Replaces the count.
    pub(crate) fn set_visits(&self, visits: u32) {
        debug_assert!(visits <= VISITS_MAX, "two bits");
        self.0.store(self.0.load(Ordering::Relaxed) & !VISITS_MAX | visits, Ordering::Relaxed);
    }

    /// Notes until when the entry is held.
    pub(crate) fn hold_until(&self, time: u64) {
        let visits = self.visits();
        self.0.store((time as u32) << VISIT_BITS | visits, Ordering::Relaxed);
    }

    /// Whether the entry is still held at `time`, which may differ by half of what thirty bits can count.
    #[inline]
    pub(crate) fn is_held(&self, time: u64) -> bool {
        let until = self.0.load(Ordering::Relaxed) & !VISITS_MAX;
        let left = until.wrapping_sub((time as u32) << VISIT_BITS);
        left.cast_signed() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_are_counted_up_to_three_and_leave_the_time_alone() {
        let marks = Marks::default();
        marks.hold_until(7);
        for visits in [0, 1, 2, 3, 3] {
            assert_eq!(marks.visits(), visits);
            marks.visit();
        }
        marks.set_visits(1);
        assert!(marks.visits() == 1 && marks.is_held(6) && !marks.is_held(7));
    }

    #[test]
    fn time_may_wrap() {
        for start in [0, 1 << 29, (1 << 30) - 3, (1 << 32) - 3, 1_800_000_000_000] {
            let marks = Marks::default();
            marks.visit();
            marks.hold_until(start + 10);
            assert!(marks.is_held(start) && marks.is_held(start + 9), "{start}");
            assert!(!marks.is_held(start + 10) && !marks.is_held(start + (1 << 28)), "{start}");
            assert_eq!(marks.visits(), 1);
        }
    }
}
