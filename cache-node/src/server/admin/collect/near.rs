//! Near caches: what clients hold in caches of their own.

use super::{counter, gauge};
use crate::{
    command::{NearCaches, Reason},
    metrics::{Definition, Samples},
};

const CLIENTS: Definition =
    gauge("tieredcache_tracking_clients", "Client connections that have switched CLIENT TRACKING on.", &[]);
const KEYS: Definition = gauge("tieredcache_tracking_keys", "Keys that clients may hold.", &[]);
const ITEMS: Definition = gauge(
    "tieredcache_tracking_items",
    "Keys that clients may hold, once for each client, and tags of these keys.",
    &[],
);
const ITEMS_MAX: Definition = gauge("tieredcache_tracking_items_max", "What tieredcache_tracking_items may be.", &[]);
const TOLD: Definition = counter(
    "tieredcache_tracking_invalidations_total",
    "Keys that clients were told to forget, by why; with reason everything, the clients that were told to forget all.",
    &["reason"],
);

pub(super) const NEAR: &[Definition] = &[CLIENTS, KEYS, ITEMS, ITEMS_MAX, TOLD];

pub(super) fn near(near_caches: &NearCaches, samples: &mut Samples) {
    let held = near_caches.held();
    samples.put(&CLIENTS, &[], held.clients as f64);
    samples.put(&KEYS, &[], held.keys as f64);
    samples.put(&ITEMS, &[], held.items as f64);
    samples.put(&ITEMS_MAX, &[], held.items_max as f64);
    for reason in Reason::ALL {
        samples.put(&TOLD, &[reason.label()], near_caches.told(reason) as f64);
    }
}
