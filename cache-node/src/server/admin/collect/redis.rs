//! L2.

use super::{ERRORS, HEALTH, common, counter, errors, extra, gauge};
use crate::{
    layer::Component,
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

pub(super) const REDIS: &[Definition] =
    &[HEALTH, ERRORS, RECONNECTS, UNFENCED, BELOW_FLOOR, BREAKER, SHED, IN_FLIGHT, TRAFFIC, NOT_WRITTEN];

pub(super) fn redis(redis: &dyn Component, samples: &mut Samples) {
    let stats = redis.stats();
    common(samples, redis, &stats);
    errors(samples, &stats);
    samples.put(&RECONNECTS, &[], extra(&stats, "reconnects"));
    samples.put(&UNFENCED, &[], extra(&stats, "reconnectsUnfenced"));
    samples.put(&BELOW_FLOOR, &[], extra(&stats, "belowFloor"));
    samples.put(&BREAKER, &[], extra(&stats, "breakerOpened"));
    samples.put(&SHED, &[], extra(&stats, "shed"));
    samples.put(&IN_FLIGHT, &[], extra(&stats, "inFlight"));
    samples.put(&TRAFFIC, &["in"], extra(&stats, "bytesRead"));
    samples.put(&TRAFFIC, &["out"], extra(&stats, "bytesWritten"));
    samples.put(&NOT_WRITTEN, &[], extra(&stats, "notWrittenOutOfMemory"));
}
