//! Keys that were evicted lately, as 32-bit fingerprints: one that comes back goes straight into the main queue.

/// Fingerprints in a bucket, newest first. Zero is none.
type Bucket = [u32; 4];

/// A set that forgets: each bucket drops its oldest fingerprint for a new one. A wrong memory puts one entry in the
/// better queue, which is harmless; at 32 bits it is also rare.
#[derive(Default)]
pub(super) struct Ghosts {
    buckets: Vec<Bucket>,
}

// === impl Ghosts ===

impl Ghosts {
    /// Remembers the key of this fingerprint, which is not zero. About as many are remembered as there are `entries`, at least half as many.
    pub(super) fn remember(&mut self, fingerprint: u32, entries: usize) {
        self.fit(entries);
        self.insert(fingerprint);
    }

    /// Whether the key of this fingerprint was remembered; it is not any more.
    pub(super) fn recall(&mut self, fingerprint: u32) -> bool {
        let Some(bucket) = self.bucket(fingerprint) else { return false };
        let Some(place) = bucket.iter().position(|&known| known == fingerprint) else { return false };
        bucket[place..].rotate_left(1);
        bucket[bucket.len() - 1] = 0;
        true
    }

    /// Grows with the number of entries at once, shrinks by a factor of four or more.
    fn fit(&mut self, entries: usize) {
        let wanted = (entries / 8).next_power_of_two();
        if wanted <= self.buckets.len() && self.buckets.len() <= 4 * wanted {
            return;
        }
        let old = std::mem::replace(&mut self.buckets, vec![Bucket::default(); wanted]);
        for fingerprint in old.iter().flat_map(|bucket| bucket.iter().rev()) {
            if *fingerprint != 0 {
                self.insert(*fingerprint);
            }
        }
    }

    fn insert(&mut self, fingerprint: u32) {
        if let Some(bucket) = self.bucket(fingerprint) {
            bucket.rotate_right(1);
            bucket[0] = fingerprint;
        }
    }

    fn bucket(&mut self, fingerprint: u32) -> Option<&mut Bucket> {
        let mask = self.buckets.len().wrapping_sub(1);
        self.buckets.get_mut(fingerprint as usize & mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spreads small numbers over all bits.
    fn spread(number: u32) -> u32 {
        (number + 1).wrapping_mul(0x9E37_79B9)
    }

    #[test]
    fn remembered_key_is_recalled_once() {
        let mut ghosts = Ghosts::default();
        assert!(!ghosts.recall(spread(1)));
        ghosts.remember(spread(1), 100);
        assert!(!ghosts.recall(spread(2)));
        assert!(ghosts.recall(spread(1)));
        assert!(!ghosts.recall(spread(1)));
    }

    #[test]
    fn the_newest_are_remembered_and_about_as_many_as_there_are_entries() {
        let mut ghosts = Ghosts::default();
        for number in 0..10_000 {
            ghosts.remember(spread(number), 1000);
        }
        let recalled = (0..10_000).filter(|&number| ghosts.recall(spread(number))).count();
        assert!((500..=1024).contains(&recalled), "{recalled}");
        for number in 0..10_000 {
            ghosts.remember(spread(number), 1000);
        }
        assert!((9_900..10_000).filter(|&number| ghosts.recall(spread(number))).count() > 95);
    }

    #[test]
    fn memory_survives_growth() {
        let mut ghosts = Ghosts::default();
        for number in 0..20 {
            ghosts.remember(spread(number), 100);
        }
        ghosts.remember(spread(20), 10_000);
        assert_eq!((0..=20).filter(|&number| ghosts.recall(spread(number))).count(), 21);
    }
}
