//! Sandwich statistics: the ratio of every candidate slice to the mean of its two base neighbours, and quartiles of
//! those ratios. Never a ratio of medians: the machine's speed drifts within seconds, neighbours share the drift.

/// Median and quartiles of some ratios.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quartiles {
    /// A quarter of the ratios is at or below it.
    pub(crate) q1: f64,
    /// The middle.
    pub(crate) median: f64,
    /// A quarter of the ratios is at or above it.
    pub(crate) q3: f64,
    /// How many ratios there were.
    pub(crate) count: usize,
}

// === impl Quartiles ===

impl Quartiles {
    /// Quartiles by linear interpolation between the sorted values; `None` of nothing. Values that are no number are
    /// left out.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        if sorted.is_empty() {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| interpolate(&sorted, share);
        Some(Self { q1: at(0.25), median: at(0.5), q3: at(0.75), count: sorted.len() })
    }
}

/// The value at `share` (0 to 1) of a sorted, non-empty list.
fn interpolate(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    below + (above - below) * position.fract()
}

/// For slices in the order base, candidate, base, …, base: each candidate's value over the mean of its neighbours'.
///
/// `None` where one of the three slices was disturbed or the base reads zero.
pub(crate) fn sandwich(values: &[f64], undisturbed: &[bool]) -> Vec<Option<f64>> {
    assert_eq!(values.len(), undisturbed.len(), "every slice has a value and a verdict");
    let triples = values.windows(3).zip(undisturbed.windows(3)).step_by(2);
    triples
        .map(|(value, calm)| {
            let base = f64::midpoint(value[0], value[2]);
            (calm.iter().all(|&calm| calm) && base > 0.0).then(|| value[1] / base)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate_between_neighbours() {
        let quartiles = Quartiles::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(quartiles, Quartiles { q1: 1.75, median: 2.5, q3: 3.25, count: 4 });
    }

    #[test]
    fn quartiles_of_one_value_are_that_value() {
        assert_eq!(Quartiles::of(&[7.0]), Some(Quartiles { q1: 7.0, median: 7.0, q3: 7.0, count: 1 }));
    }

    #[test]
    fn nothing_and_no_number_have_no_quartiles() {
        assert_eq!(Quartiles::of(&[]), None);
        assert_eq!(Quartiles::of(&[f64::NAN, f64::INFINITY]), None);
    }

    #[test]
    fn a_candidate_is_compared_with_the_mean_of_its_neighbours() {
        let ratios = sandwich(&[1.0, 4.0, 3.0, 10.0, 7.0], &[true; 5]);
        assert_eq!(ratios, [Some(2.0), Some(2.0)]);
    }

    #[test]
    fn a_steady_drift_of_the_machine_cancels_out() {
        let drifting: Vec<f64> = (0..9).map(|step| 100.0 + f64::from(step) * 10.0).collect();
        for ratio in sandwich(&drifting, &[true; 9]) {
            assert!((ratio.unwrap() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_disturbed_slice_voids_every_ratio_it_takes_part_in() {
        let calm = [true, true, false, true, true, true, true];
        let ratios = sandwich(&[1.0; 7], &calm);
        assert_eq!(ratios, [None, None, Some(1.0)]);
    }

    #[test]
    fn a_base_that_reads_zero_gives_no_ratio() {
        assert_eq!(sandwich(&[0.0, 1.0, 0.0], &[true; 3]), [None]);
    }
}
