//! The write queue, and its way to each cold layer.

use super::{BYTES, CAPACITY, ENTRIES, Export, Facts, HEALTH, counter, extra, gauge};
use crate::{
    layer::metered::{LATENCY, REQUESTS, STALE_READS},
    metrics::{Definition, Samples},
};

const OLDEST: Definition = gauge(
    "tieredcache_write_queue_oldest_seconds",
    "Age of the oldest change that is not on disk: a write, a removal or a clear.",
    &[],
);
const FLUSHED: Definition = counter("tieredcache_write_queue_flushed_total", "Writes brought to disk.", &[]);
const BATCHES: Definition = counter("tieredcache_write_queue_batches_total", "Batches brought to disk.", &[]);
const FLUSH_FAILURES: Definition =
    counter("tieredcache_write_queue_flush_failures_total", "Batches that failed and were tried again.", &[]);
const RECOVERED: Definition = counter(
    "tieredcache_write_queue_recovered_total",
    "Keys that were removed at the start, because a kill may have lost their newest values.",
    &[],
);
const REFUSED: Definition =
    counter("tieredcache_write_queue_refused_total", "Writes that found the queue full, before waiting.", &[]);
const ACCEPTED: Definition = counter(
    "tieredcache_write_queue_accepted_total",
    "Writes accepted: values, removals and promotions, each counted once for all layers.",
    &[],
);
const DROPPED: Definition = counter(
    "tieredcache_write_queue_dropped_total",
    "Queued values given up: for newer ones in a full queue, for a layer that was away for too long, or mere promotions.",
    &["reason"],
);
const LANE_ENTRIES: Definition =
    gauge("tieredcache_write_queue_lane_entries", "Writes that the cold layer does not have yet.", &["to"]);
const LANE_OLDEST: Definition = gauge(
    "tieredcache_write_queue_lane_oldest_seconds",
    "Age of the oldest change that the cold layer does not have: a write, a removal or a clear.",
    &["to"],
);
const LANE_REMOVALS: Definition =
    gauge("tieredcache_write_queue_lane_removals", "Removals that the cold layer does not have yet.", &["to"]);
const REPLAYED: Definition = counter(
    "tieredcache_write_queue_replayed_total",
    "Removals brought to the cold layer that had waited until it came back.",
    &["to"],
);
const CLEARS: Definition = counter(
    "tieredcache_write_queue_clears_total",
    "Clears carried out, those included that the cold layer was owed after it had been away for too long.",
    &["to"],
);
const LOST: Definition = counter(
    "tieredcache_write_queue_lost_total",
    "Changes that the cold layer did not have when the time to stop had run out: writes, removals and clears.",
    &["to"],
);

pub(super) const QUEUE: Export = Export { name: "writeQueue", definitions: DEFINITIONS, read: write_queue };

const DEFINITIONS: &[Definition] = &[
    HEALTH,
    LATENCY,
    ENTRIES,
    BYTES,
    CAPACITY,
    REQUESTS,
    STALE_READS,
    OLDEST,
    ACCEPTED,
    FLUSHED,
    BATCHES,
    FLUSH_FAILURES,
    REFUSED,
    DROPPED,
    RECOVERED,
    LANE_ENTRIES,
    LANE_OLDEST,
    LANE_REMOVALS,
    REPLAYED,
    CLEARS,
    LOST,
];

fn write_queue(Facts { stats, lanes, .. }: &Facts<'_>, samples: &mut Samples) {
    samples.put(&OLDEST, &[], extra(stats, "oldestAgeMs") / 1e3);
    samples.put(&FLUSHED, &[], extra(stats, "flushed"));
    samples.put(&BATCHES, &[], extra(stats, "batches"));
    samples.put(&FLUSH_FAILURES, &[], extra(stats, "flushFailures"));
    samples.put(&REFUSED, &[], extra(stats, "refusedFull"));
    samples.put(&RECOVERED, &[], extra(stats, "recovered"));
    samples.put(&DROPPED, &["overflow"], extra(stats, "droppedOverflow"));
    samples.put(&DROPPED, &["unreachable"], extra(stats, "droppedUnreachable"));
    samples.put(&DROPPED, &["fill"], extra(stats, "droppedFills"));
    let accepted = stats.operations.saturating_sub(stats.hits + stats.misses);
    samples.put(&ACCEPTED, &[], accepted as f64);
    samples.put(&REQUESTS, &["get", "hit"], stats.hits as f64);
    samples.put(&REQUESTS, &["get", "miss"], stats.misses as f64);
    samples.put(&REQUESTS, &["write", "ok"], accepted as f64);
    samples.put(&STALE_READS, &[], stats.stale_hits as f64);
    for lane in *lanes {
        let to = [lane.layer.label()];
        samples.put(&LANE_ENTRIES, &to, lane.items as f64);
        samples.put(&LANE_OLDEST, &to, lane.oldest_age.as_secs_f64());
        samples.put(&LANE_REMOVALS, &to, lane.removals as f64);
        samples.put(&REPLAYED, &to, lane.replayed as f64);
        samples.put(&CLEARS, &to, lane.clears as f64);
        samples.put(&LOST, &to, lane.lost as f64);
    }
}
