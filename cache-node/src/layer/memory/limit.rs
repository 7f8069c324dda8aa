//! How long memory holds a copy, whatever its entry says: the `maxTtl` of the layer.

use std::time::Duration;

use crate::{clock::UnixMillis, entry::Entry};

/// Units of time that the longest stay is divided into, at least. A copy goes at most one unit early.
const UNITS_MIN_BITS: u32 = 10;

/// The limit. Its end is noted in the entry's header in units of `2^unit_bits` milliseconds, which costs no memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    stay_ms: u64,
    unit_bits: u32,
}

// === impl Limit ===

impl Limit {
    pub(super) fn new(stay: Duration) -> Self {
        let stay_ms = u64::try_from(stay.as_millis()).unwrap_or(u64::MAX).max(1);
        Self { stay_ms, unit_bits: stay_ms.ilog2().saturating_sub(UNITS_MIN_BITS) }
    }

    /// Until when a copy taken at `now` may stay, for [`Marks::hold_until`](crate::entry::Marks).
    #[inline]
    pub(super) const fn end(self, now: UnixMillis) -> u64 {
        now.0.saturating_add(self.stay_ms) >> self.unit_bits
    }

    /// Whether the copy is of use at `now` and may still be here.
    #[inline]
    pub(super) fn keeps(self, now: UnixMillis, copy: &Entry) -> bool {
        copy.is_useful(now) && copy.marks().is_held(now.0 >> self.unit_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{START, entry};

    #[test]
    fn copy_goes_at_its_limit_or_a_thousandth_earlier() {
        for stay_ms in [1, 1000, 60_000, 86_400_000, 87_600 * 3_600_000] {
            let stay = Duration::from_millis(stay_ms);
            let limit = Limit::new(stay);
            for start in [START, UnixMillis(START.0 + 12_345), UnixMillis((1 << 41) - stay_ms / 2)] {
                let copy = entry("k", "v");
                copy.marks().hold_until(limit.end(start));
                assert!(limit.keeps(start, &copy), "{stay:?}");
                assert!(limit.keeps(UnixMillis(start.0 + (stay_ms - 1) - stay_ms / 1000), &copy), "{stay:?}");
                assert!(!limit.keeps(start.after(stay), &copy), "{stay:?}");
                assert!(!limit.keeps(start.after(20 * stay), &copy), "{stay:?}");
            }
        }
    }

    #[test]
    fn limit_without_end_holds_for_ever() {
        let limit = Limit::new(Duration::MAX);
        let copy = entry("k", "v");
        copy.marks().hold_until(limit.end(START));
        assert!(limit.keeps(START.after(Duration::from_secs(1 << 30)), &copy));
    }
}
