//! The backplane.

use super::{Export, Facts, HEALTH, counter, extra, gauge};
use crate::{
    layer::metered::LATENCY,
    metrics::{Definition, Samples},
};

const RECORDS: Definition = counter(
    "tieredcache_backplane_records_total",
    "Records of the invalidation log: written by this node, read from the log, and of those its own and those of other nodes.",
    &["kind"],
);
const GAPS: Definition = counter(
    "tieredcache_backplane_gaps_total",
    "Times that records were missing, so that memory and disk were given up, by what had happened.",
    &["reason"],
);
const BEHIND: Definition =
    gauge("tieredcache_backplane_behind", "Records of the log that had no effect yet at the last look.", &[]);
const LAG: Definition = gauge(
    "tieredcache_backplane_lag_seconds",
    "How much older the newest record that has taken effect was at the last look than the newest of the log.",
    &[],
);
const AGE: Definition = gauge(
    "tieredcache_backplane_confirmed_age_seconds",
    "How long ago the node last knew all changes; infinite if it does not know since when.",
    &[],
);
const POSITION: Definition = gauge(
    "tieredcache_backplane_position_seconds",
    "When the newest record was written that has taken effect, by the clock of Redis, in seconds since 1970.",
    &[],
);
const FAILURES: Definition =
    counter("tieredcache_backplane_failures_total", "Looks at the log that failed and were tried again.", &[]);
const STALE: Definition = counter(
    "tieredcache_backplane_served_stale_total",
    "Values served although the node did not know what other nodes had changed.",
    &[],
);

pub(super) const BACKPLANE: Export = Export {
    name: "backplane",
    definitions: &[HEALTH, LATENCY, RECORDS, GAPS, BEHIND, LAG, AGE, POSITION, FAILURES, STALE],
    read: backplane,
};

fn backplane(Facts { stats, .. }: &Facts<'_>, samples: &mut Samples) {
    samples.put(&RECORDS, &["published"], extra(stats, "published"));
    samples.put(&RECORDS, &["received"], extra(stats, "received"));
    samples.put(&RECORDS, &["own"], extra(stats, "own"));
    samples.put(&RECORDS, &["applied"], extra(stats, "applied"));
    samples.put(&GAPS, &["trimmed"], extra(stats, "gapsTrimmed"));
    samples.put(&GAPS, &["epoch_changed"], extra(stats, "gapsEpochChanged"));
    samples.put(&GAPS, &["rolled_back"], extra(stats, "gapsRolledBack"));
    samples.put(&GAPS, &["history_changed"], extra(stats, "gapsHistoryChanged"));
    samples.put(&GAPS, &["lost_writes"], extra(stats, "gapsLostWrites"));
    samples.put(&GAPS, &["announced"], extra(stats, "gapsAnnounced"));
    samples.put(&BEHIND, &[], extra(stats, "behind"));
    samples.put(&LAG, &[], extra(stats, "lagMs") / 1e3);
    // What is not known is the largest number there.
    let age_ms = extra(stats, "leaseAgeMs");
    samples.put(&AGE, &[], if age_ms >= u64::MAX as f64 { f64::INFINITY } else { age_ms / 1e3 });
    samples.put(&POSITION, &[], extra(stats, "positionMs") / 1e3);
    samples.put(&FAILURES, &[], extra(stats, "failures"));
    samples.put(&STALE, &[], extra(stats, "servedStale"));
}
