//! What clients hold and fetch themselves: near caches, and leases.

use super::{counter, gauge};
use crate::{
    command::{NearCaches, Reason},
    coordinator::Coordinator,
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

const LEASES: Definition = gauge("tieredcache_leases", "Leases to fill a key that are held.", &[]);
const LEASES_TOTAL: Definition = counter(
    "tieredcache_leases_total",
    "What became of leases: granted, those of them that no other node knows of because Redis could not be asked, others told to wait for them, filled, and fills refused because the key had changed or the lease had ended.",
    &["result"],
);

pub(super) const LEASE: &[Definition] = &[LEASES, LEASES_TOTAL];

pub(super) fn leases(coordinator: &Coordinator, samples: &mut Samples) {
    let counts = coordinator.leases();
    samples.put(&LEASES, &[], counts.held as f64);
    samples.put(&LEASES_TOTAL, &["granted"], counts.granted as f64);
    samples.put(&LEASES_TOTAL, &["granted_alone"], counts.alone as f64);
    samples.put(&LEASES_TOTAL, &["waited"], counts.waits as f64);
    samples.put(&LEASES_TOTAL, &["filled"], counts.filled as f64);
    samples.put(&LEASES_TOTAL, &["refused"], counts.refused as f64);
}

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
