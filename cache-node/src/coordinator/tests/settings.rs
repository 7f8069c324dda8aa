//! What a coordinator was opened with, for the tests of whoever opens one.

use super::*;

impl Coordinator {
    /// How it serves stale values.
    pub(crate) const fn freshness_options(&self) -> FreshnessOptions {
        self.freshness
    }
}
