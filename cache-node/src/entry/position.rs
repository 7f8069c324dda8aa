//! Positions: a total order of the changes of one cache, dense enough for one word.

use std::fmt;

use crate::{
    clock::UnixMillis,
    sync::atomic::{AtomicU64, Ordering},
};

/// Low bits that tell changes of one millisecond apart.
const SEQUENCE_BITS: u32 = 20;
const SEQUENCE_MAX: u64 = (1 << SEQUENCE_BITS) - 1;
const MILLIS_MAX: u64 = (1 << (64 - SEQUENCE_BITS)) - 1;

/// A place in the order of changes: milliseconds since 1970 and a sequence number, like the id of a record in a Redis
/// stream. A value is at least as fresh as its position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

/// Issues positions that only grow, also when the clock steps back: a hybrid logical clock (Kulkarni et al., "Logical
/// Physical Clocks", 2014).
#[derive(Debug, Default)]
pub struct Positions(AtomicU64);

// === impl Position ===

impl Position {
    /// Before every change: nothing is known about the freshness of the value.
    pub const NONE: Self = Self(0);

    /// After every change.
    pub const LAST: Self = Self(u64::MAX);

    /// The place right after this one, which comes after everything up to here and not after any later change.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The place right before this one.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// Puts a position together; parts that are too large become the largest.
    pub fn from_parts(millis: u64, sequence: u64) -> Self {
        Self(millis.min(MILLIS_MAX) << SEQUENCE_BITS | sequence.min(SEQUENCE_MAX))
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0 >> SEQUENCE_BITS
    }

    /// The number within the millisecond.
    pub const fn sequence(self) -> u64 {
        self.0 & SEQUENCE_MAX
    }

    /// As one number, in the same order.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The reverse of [`Position::to_bits`].
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Display for Position {
    /// As Redis writes it: `1700000000000-3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis(), self.sequence())
    }
}

// === impl Positions ===

impl Positions {
    /// The next position, after all issued and all seen.
    pub fn next(&self, now: UnixMillis) -> Position {
        let from_clock = Position::from_parts(now.0, 0).0;
        let last = self
            .0
            .try_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(from_clock.max(last + 1)))
            .expect("the closure always answers");
        Position(from_clock.max(last + 1))
    }

    /// The newest position issued or seen. What is read after this call is at least as fresh.
    pub fn last(&self) -> Position {
        Position(self.0.load(Ordering::Acquire))
    }

    /// Begins anew: positions come from elsewhere now.
    pub fn forget(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Takes note of a position from a store or another node: all issued later are after it.
    pub fn see(&self, position: Position) {
        self.0.fetch_max(position.0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_grow_even_when_the_clock_steps_back() {
        let positions = Positions::default();
        let first = positions.next(UnixMillis(1000));
        assert_eq!((first.millis(), first.sequence()), (1000, 0));
        let second = positions.next(UnixMillis(1000));
        assert_eq!(second.to_string(), "1000-1");
        assert!(positions.next(UnixMillis(900)) > second);
        positions.see(Position::from_parts(5000, 7));
        assert_eq!(positions.next(UnixMillis(2000)).to_string(), "5000-8");
        assert_eq!(positions.last().to_string(), "5000-8");
    }

    #[test]
    fn parts_too_large_become_the_largest() {
        let huge = Position::from_parts(u64::MAX, u64::MAX);
        assert_eq!(huge.to_bits(), u64::MAX);
        assert!(Position::from_parts(1, u64::MAX) < Position::from_parts(2, 0));
    }
}
