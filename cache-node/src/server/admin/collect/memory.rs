//! L1.

use super::{BYTES, CAPACITY, ENTRIES, EXPIRED, Export, Facts, HEALTH, counter, extra};
use crate::{
    layer::{
        LayerId,
        metered::{LATENCY, REQUESTS, STALE_READS},
    },
    metrics::{Definition, Samples},
};

const EVICTIONS: Definition = counter(
    "tieredcache_layer_evictions_total",
    "Entries given up for want of room, by whether anybody had read them.",
    &["read"],
);
const PROMOTIONS: Definition = counter(
    "tieredcache_layer_promotions_total",
    "Values from a lower layer: put into this one, or refused because the key had been written meanwhile.",
    &["result"],
);
const TOO_LARGE: Definition = counter(
    "tieredcache_memory_too_large_total",
    "Values that memory did not take because they are too large for its capacity; the layers below have them.",
    &[],
);

pub(super) const MEMORY: Export = Export {
    name: LayerId::Memory.label(),
    definitions: &[
        HEALTH,
        LATENCY,
        ENTRIES,
        BYTES,
        CAPACITY,
        REQUESTS,
        STALE_READS,
        EVICTIONS,
        EXPIRED,
        PROMOTIONS,
        TOO_LARGE,
    ],
    read: memory,
};

fn memory(facts: &Facts<'_>, samples: &mut Samples) {
    let stats = facts.stats;
    let reads = stats.hits + stats.misses;
    samples.put(&REQUESTS, &["get", "hit"], stats.hits as f64);
    samples.put(&REQUESTS, &["get", "miss"], stats.misses as f64);
    samples.put(&REQUESTS, &["write", "ok"], stats.operations.saturating_sub(reads) as f64);
    samples.put(&STALE_READS, &[], stats.stale_hits as f64);
    samples.put(&TOO_LARGE, &[], extra(stats, "refusedTooLarge"));
    let unread = extra(stats, "evictionsUnread");
    samples.put(&EVICTIONS, &["no"], unread);
    samples.put(&EVICTIONS, &["yes"], extra(stats, "evictions") - unread);
    samples.put(&EXPIRED, &[], extra(stats, "expired"));
    samples.put(&PROMOTIONS, &["stored"], facts.promotions as f64);
    samples.put(&PROMOTIONS, &["refused"], facts.promotions_refused as f64);
}
