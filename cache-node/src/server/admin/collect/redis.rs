//! L2.

use super::{ERRORS, Export, Facts, HEALTH, counter, errors, extra, gauge};
use crate::{
    layer::LayerId,
    metrics::{Definition, Samples},
};

const RECONNECTS: Definition =
    counter("tieredcache_redis_reconnects_total", "Times that the connections to Redis were made anew.", &[]);
const UNFENCED: Definition = counter(
    "tieredcache_redis_reconnects_unfenced_total",
    "Connections replaced without ending the one before, because the user may not: its last write may take effect late.",
    &[],
);
const BELOW_FLOOR: Definition = counter(
    "tieredcache_redis_below_floor_total",
    "Entries of Redis that counted as missing, because they are older than the last clear.",
    &[],
);
const BREAKER: Definition = counter(
    "tieredcache_redis_breaker_opened_total",
    "Times that the breaker gave Redis up, until it answered again.",
    &[],
);
const SHED: Definition =
    counter("tieredcache_redis_shed_total", "Calls given up because too many waited for Redis.", &[]);
const IN_FLIGHT: Definition = gauge("tieredcache_redis_in_flight", "Calls of Redis under way.", &[]);
const TRAFFIC: Definition =
    counter("tieredcache_redis_bytes_total", "Bytes of envelopes read from Redis and written to it.", &["direction"]);
const NOT_WRITTEN: Definition = counter(
    "tieredcache_redis_not_written_total",
    "Entries that Redis had no memory for; their older copies were removed.",
    &[],
);

const RECLAIMED: Definition =
    counter("tieredcache_redis_damaged_removed_total", "Damaged values that were removed from Redis.", &[]);
const WRITTEN: Definition =
    counter("tieredcache_redis_entries_written_total", "Entries written to Redis, overwrites included.", &[]);
const REMOVED: Definition = counter(
    "tieredcache_redis_entries_removed_total",
    "Removals of entries written to Redis, whether or not there was one.",
    &[],
);
const RECENT_P99: Definition = gauge(
    "tieredcache_redis_recent_p99_seconds",
    "What 99 of 100 of the latest calls of Redis did not exceed, by which its health is judged.",
    &[],
);

pub(super) const REDIS: Export = Export {
    name: LayerId::Redis.label(),
    definitions: &[
        HEALTH,
        ERRORS,
        RECONNECTS,
        UNFENCED,
        BELOW_FLOOR,
        BREAKER,
        SHED,
        IN_FLIGHT,
        TRAFFIC,
        NOT_WRITTEN,
        RECLAIMED,
        WRITTEN,
        REMOVED,
        RECENT_P99,
    ],
    read: redis,
};

fn redis(Facts { stats, .. }: &Facts<'_>, samples: &mut Samples) {
    errors(samples, stats);
    samples.put(&RECLAIMED, &[], extra(stats, "reclaimed"));
    samples.put(&WRITTEN, &[], extra(stats, "written"));
    samples.put(&REMOVED, &[], extra(stats, "removed"));
    samples.put(&RECENT_P99, &[], extra(stats, "latencyP99Us") / 1e6);
    samples.put(&RECONNECTS, &[], extra(stats, "reconnects"));
    samples.put(&UNFENCED, &[], extra(stats, "reconnectsUnfenced"));
    samples.put(&BELOW_FLOOR, &[], extra(stats, "belowFloor"));
    samples.put(&BREAKER, &[], extra(stats, "breakerOpened"));
    samples.put(&SHED, &[], extra(stats, "shed"));
    samples.put(&IN_FLIGHT, &[], extra(stats, "inFlight"));
    samples.put(&TRAFFIC, &["in"], extra(stats, "bytesRead"));
    samples.put(&TRAFFIC, &["out"], extra(stats, "bytesWritten"));
    samples.put(&NOT_WRITTEN, &[], extra(stats, "notWrittenOutOfMemory"));
}
