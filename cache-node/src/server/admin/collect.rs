//! What is summed at each scrape: the parts' own counters, under the names that the README documents.

mod backplane;
mod near;
mod redis;
mod tags;
mod write_queue;

use std::sync::{Arc, Weak};

use self::{
    backplane::{BACKPLANE, backplane},
    near::{LEASE, NEAR, leases, near},
    redis::{REDIS, redis},
    tags::{TAGS, tags},
    write_queue::{QUEUE, write_queue},
};
use super::Board;
use crate::{
    command::Answer,
    coordinator::Coordinator,
    layer::{self, Component, ErrorKind, HealthState, LayerId, Stats, metered::REQUESTS},
    metrics::{Definition, Kind, Metrics, Samples},
    server::resp::{Class, Server},
    telemetry::{SpanCounts, Spans},
};

const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Definition {
    Definition { name, help, kind: Kind::Gauge, labels }
}

const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Definition {
    Definition { name, help, kind: Kind::Counter, labels }
}

const READY: Definition = gauge("tieredcache_ready", "1 while the node serves clients, else 0.", &[]);

const HEALTH: Definition =
    gauge("tieredcache_layer_health", "1 for the state that the layer is in, else 0.", &["state"]);
const ERRORS: Definition = counter("tieredcache_layer_errors_total", "Operations that failed, by kind.", &["kind"]);
const ENTRIES: Definition =
    gauge("tieredcache_layer_entries", "Entries held; for the write queue, writes not on disk yet.", &[]);
const BYTES: Definition = gauge("tieredcache_layer_bytes", "Bytes held.", &[]);
const CAPACITY: Definition = gauge("tieredcache_layer_capacity_bytes", "Bytes that may be held.", &[]);
const EVICTIONS: Definition = counter(
    "tieredcache_layer_evictions_total",
    "Entries given up for want of room, by whether anybody had read them.",
    &["read"],
);
const EXPIRED: Definition = counter(
    "tieredcache_layer_expired_total",
    "Dead entries reclaimed without having been asked for: expired, or removed by a tag.",
    &[],
);
const PROMOTIONS: Definition = counter(
    "tieredcache_layer_promotions_total",
    "Values from a lower layer: put into this one, or refused because the key had been written meanwhile.",
    &["result"],
);
const STALE_READS: Definition = counter(
    "tieredcache_layer_stale_reads_total",
    "Misses of the layer that found a value past its expiry which may still be served.",
    &[],
);
const TOO_LARGE: Definition = counter(
    "tieredcache_memory_too_large_total",
    "Values that memory did not take because they are too large for its capacity; the layers below have them.",
    &[],
);

const ENTRIES_WRITTEN: Definition =
    counter("tieredcache_disk_entries_written_total", "Entries written to disk, overwrites included.", &[]);
const ENTRIES_REMOVED: Definition = counter(
    "tieredcache_disk_entries_removed_total",
    "Removals of entries written to disk, whether or not there was one.",
    &[],
);
const INLINE_READS: Definition = counter(
    "tieredcache_disk_inline_reads_total",
    "Reads answered from RocksDB's memory, without a thread of the disk's own.",
    &[],
);
const NOT_WRITTEN: Definition = counter(
    "tieredcache_disk_not_written_total",
    "Entries that were accepted and not written to disk: too little life left, the volume too full, not admitted yet, or the day's budget spent.",
    &["reason"],
);
const COLD_STARTS: Definition = counter(
    "tieredcache_disk_cold_starts_total",
    "Times that the database was replaced by an empty one: foreign, damaged or behind.",
    &[],
);
const REOPENED: Definition =
    counter("tieredcache_disk_reopened_total", "Times that the database was reopened because it refused writes.", &[]);
const TRIMS: Definition = counter(
    "tieredcache_disk_trims_total",
    "Times that a part of the entries was given up because they filled the volume.",
    &[],
);
const ENTRY_BYTES: Definition = counter(
    "tieredcache_disk_entry_bytes_total",
    "Bytes of entries written to disk, as disk.dailyWriteBudget counts them.",
    &[],
);
const BLOCK_CACHE: Definition = counter(
    "tieredcache_disk_block_cache_total",
    "Blocks that RocksDB looked for in its block cache, by whether they were there.",
    &["result"],
);
const CHANGE_BYTES: Definition =
    counter("tieredcache_disk_change_bytes_total", "Bytes of changes that RocksDB was given.", &[]);
const WRITTEN_BYTES: Definition = counter(
    "tieredcache_disk_written_bytes_total",
    "Bytes that RocksDB wrote to the volume, by what wrote them.",
    &["by"],
);
const COMPACTION_READ: Definition =
    counter("tieredcache_disk_compaction_read_bytes_total", "Bytes that compactions of RocksDB read.", &[]);
const STALLED: Definition = counter(
    "tieredcache_disk_stalled_seconds_total",
    "Time that writes waited for RocksDB to catch up with flushes and compactions.",
    &[],
);
const AMPLIFICATION: Definition = gauge(
    "tieredcache_disk_write_amplification",
    "Bytes written to the volume for each byte of changes, since the start.",
    &[],
);

const MEMORY: &[Definition] =
    &[HEALTH, ENTRIES, BYTES, CAPACITY, REQUESTS, STALE_READS, EVICTIONS, EXPIRED, PROMOTIONS, TOO_LARGE];
const DISK: &[Definition] = &[
    HEALTH,
    ERRORS,
    ENTRIES,
    BYTES,
    CAPACITY,
    EXPIRED,
    ENTRIES_WRITTEN,
    ENTRIES_REMOVED,
    INLINE_READS,
    NOT_WRITTEN,
    COLD_STARTS,
    REOPENED,
    TRIMS,
    ENTRY_BYTES,
    BLOCK_CACHE,
    CHANGE_BYTES,
    WRITTEN_BYTES,
    COMPACTION_READ,
    STALLED,
    AMPLIFICATION,
];

const OPEN: Definition = gauge("tieredcache_resp_connections", "Client connections open.", &[]);
const OPEN_MAX: Definition = gauge("tieredcache_resp_connections_max", "Client connections that may be open.", &[]);
const CONNECTIONS: Definition = counter(
    "tieredcache_resp_connections_total",
    "Client connections that were accepted or rejected as too many.",
    &["result"],
);
const CLOSED: Definition = counter(
    "tieredcache_resp_connections_aborted_total",
    "Client connections that the node closed: client too slow, not RESP, or a fault of the node.",
    &["reason"],
);
const COMMANDS: Definition =
    counter("tieredcache_resp_commands_total", "Commands received; unknown names count as unknown.", &["command"]);
const ERROR_REPLIES: Definition =
    counter("tieredcache_resp_error_replies_total", "Commands answered with an error.", &[]);
const TRAFFIC: Definition = counter("tieredcache_resp_bytes_total", "Bytes from and to clients.", &["direction"]);
const LATENCY: Definition = Definition {
    name: "tieredcache_resp_latency_seconds",
    help: "Time from the receipt of a command to its reply; commands of a pipeline that run together took as long as all.",
    kind: Kind::Histogram,
    labels: &["class"],
};
const SLOW: Definition = counter("tieredcache_resp_slow_commands_total", "Commands that the slow log has taken.", &[]);
const ANSWERS: Definition = counter(
    "tieredcache_requests_total",
    "Keys read by clients, by how that ended over all layers: with a value, a stale one, none, or none because a layer failed.",
    &["result"],
);
const RESP: &[Definition] =
    &[OPEN, OPEN_MAX, CONNECTIONS, CLOSED, COMMANDS, ERROR_REPLIES, TRAFFIC, LATENCY, SLOW, ANSWERS];

/// Of memory, which is not measured from outside; the layers below it are.
const MEMORY_LATENCY: Definition = Definition {
    name: layer::metered::LATENCY,
    help: layer::metered::LATENCY_HELP,
    kind: Kind::Histogram,
    labels: &["operation"],
};

const SPANS: Definition = counter(
    "tieredcache_spans_total",
    "Spans, by what became of them: the collector has them, did not take them, or too many waited for it.",
    &["result"],
);

/// What became of spans; nothing if none are made.
pub fn register_spans(metrics: &Metrics, spans: Option<Arc<Spans>>) {
    metrics.at_scrape(&[], &[SPANS], move |samples| {
        let counts = spans.as_ref().map_or_else(SpanCounts::default, |spans| spans.counts());
        samples.put(&SPANS, &["exported"], counts.exported as f64);
        samples.put(&SPANS, &["failed"], counts.failed as f64);
        samples.put(&SPANS, &["dropped"], counts.dropped as f64);
    });
}

/// Readiness as a metric.
pub fn register_board(metrics: &Metrics, board: Arc<Board>) {
    metrics.at_scrape(&[], &[READY], move |samples| {
        samples.put(&READY, &[], f64::from(u8::from(board.waiting_for().is_empty())));
    });
}

/// The layers of a coordinator. Held weakly, so that a scrape never keeps a closed node's database open.
pub fn register_coordinator(metrics: &Metrics, coordinator: &Arc<Coordinator>) {
    let register = |layer, definitions, read: fn(&Coordinator, &mut Samples)| {
        let coordinator = Arc::downgrade(coordinator);
        metrics.at_scrape(&[("layer", layer)], definitions, move |samples| {
            if let Some(coordinator) = Weak::upgrade(&coordinator) {
                read(&coordinator, samples);
            }
        });
    };
    let leasing = Arc::downgrade(coordinator);
    metrics.at_scrape(&[], LEASE, move |samples| {
        if let Some(coordinator) = Weak::upgrade(&leasing) {
            leases(&coordinator, samples);
        }
    });
    register(coordinator.memory().name(), MEMORY, memory);
    register(coordinator.tags().name(), TAGS, tags);
    if coordinator.cold().next().is_some() {
        register(coordinator.write_queue().name(), QUEUE, write_queue);
    }
    if coordinator.backplane().is_on() {
        register(coordinator.backplane().name(), BACKPLANE, |coordinator, samples| {
            backplane(coordinator.backplane(), samples);
        });
    }
    if layer_of(coordinator, LayerId::Redis).is_some() {
        register(LayerId::Redis.label(), REDIS, |coordinator, samples| {
            layer_of(coordinator, LayerId::Redis).iter().for_each(|part| redis(*part, samples));
        });
    }
    if layer_of(coordinator, LayerId::Disk).is_some() {
        register(LayerId::Disk.label(), DISK, |coordinator, samples| {
            layer_of(coordinator, LayerId::Disk).iter().for_each(|part| disk(*part, samples));
        });
    }
}

/// The RESP server.
pub fn register_resp(metrics: &Metrics, server: &Server) {
    let (counters, answers, meter) = (server.counters(), server.answers(), server.meter());
    metrics.at_scrape(&[], RESP, move |samples| {
        let totals = counters.totals();
        samples.put(&OPEN, &[], f64::from(totals.connections_open));
        samples.put(&OPEN_MAX, &[], f64::from(totals.connections_max));
        samples.put(&CONNECTIONS, &["accepted"], totals.connections_accepted as f64);
        samples.put(&CONNECTIONS, &["rejected"], totals.connections_rejected as f64);
        samples.put(&CLOSED, &["timeout"], totals.connections_timed_out as f64);
        samples.put(&CLOSED, &["protocol"], totals.protocol_errors as f64);
        samples.put(&CLOSED, &["panic"], totals.panics as f64);
        for command in &totals.commands {
            samples.put(&COMMANDS, &[command.command], command.count as f64);
        }
        samples.put(&ERROR_REPLIES, &[], totals.error_replies as f64);
        samples.put(&TRAFFIC, &["in"], totals.bytes_in as f64);
        samples.put(&TRAFFIC, &["out"], totals.bytes_out as f64);
        for class in Class::ALL {
            samples.put_histogram(&LATENCY, &[class.label()], meter.latency(class));
        }
        samples.put(&SLOW, &[], meter.slow_log().recorded() as f64);
        for answer in Answer::ALL {
            samples.put(&ANSWERS, &[answer.label()], answers.count(answer) as f64);
        }
    });
    let near_caches = server.near_caches();
    metrics.at_scrape(&[], NEAR, move |samples| near(&near_caches, samples));
    let answers = server.answers();
    metrics.at_scrape(&[("layer", LayerId::Memory.label())], &[MEMORY_LATENCY], move |samples| {
        samples.put_histogram(&MEMORY_LATENCY, &["get"], answers.memory());
    });
}

fn layer_of(coordinator: &Coordinator, id: LayerId) -> Option<&dyn Component> {
    coordinator.cold().find(|layer| layer.id() == id).map(|layer| layer.as_ref() as &dyn Component)
}

fn memory(coordinator: &Coordinator, samples: &mut Samples) {
    let memory = coordinator.memory();
    let stats = memory.stats();
    common(samples, memory, &stats);
    let reads = stats.hits + stats.misses;
    samples.put(&REQUESTS, &["get", "hit"], stats.hits as f64);
    samples.put(&REQUESTS, &["get", "miss"], stats.misses as f64);
    samples.put(&REQUESTS, &["write", "ok"], stats.operations.saturating_sub(reads) as f64);
    samples.put(&STALE_READS, &[], stats.stale_hits as f64);
    samples.put(&TOO_LARGE, &[], extra(&stats, "refusedTooLarge"));
    let unread = extra(&stats, "evictionsUnread");
    samples.put(&EVICTIONS, &["no"], unread);
    samples.put(&EVICTIONS, &["yes"], extra(&stats, "evictions") - unread);
    samples.put(&EXPIRED, &[], extra(&stats, "expired"));
    samples.put(&PROMOTIONS, &["stored"], coordinator.promotions() as f64);
    samples.put(&PROMOTIONS, &["refused"], coordinator.promotions_refused() as f64);
}

fn disk(disk: &dyn Component, samples: &mut Samples) {
    let stats = disk.stats();
    common(samples, disk, &stats);
    errors(samples, &stats);
    samples.put(&ENTRIES_WRITTEN, &[], extra(&stats, "written"));
    samples.put(&ENTRIES_REMOVED, &[], extra(&stats, "removed"));
    samples.put(&INLINE_READS, &[], extra(&stats, "readInline"));
    samples.put(&NOT_WRITTEN, &["short_lived"], extra(&stats, "notWrittenShortLived"));
    samples.put(&NOT_WRITTEN, &["disk_pressure"], extra(&stats, "notWrittenDiskPressure"));
    samples.put(&NOT_WRITTEN, &["admission"], extra(&stats, "notWrittenFirstSeen"));
    samples.put(&NOT_WRITTEN, &["budget"], extra(&stats, "notWrittenOverBudget"));
    samples.put(&EXPIRED, &[], extra(&stats, "reclaimed"));
    samples.put(&COLD_STARTS, &[], extra(&stats, "coldStarts"));
    samples.put(&REOPENED, &[], extra(&stats, "reopened"));
    samples.put(&TRIMS, &[], extra(&stats, "trimmed"));
    samples.put(&ENTRY_BYTES, &[], extra(&stats, "bytesWritten"));
    samples.put(&BLOCK_CACHE, &["hit"], extra(&stats, "blockCacheHits"));
    samples.put(&BLOCK_CACHE, &["miss"], extra(&stats, "blockCacheMisses"));
    samples.put(&CHANGE_BYTES, &[], extra(&stats, "changeBytes"));
    samples.put(&WRITTEN_BYTES, &["log"], extra(&stats, "logBytes"));
    samples.put(&WRITTEN_BYTES, &["flush"], extra(&stats, "flushBytes"));
    samples.put(&WRITTEN_BYTES, &["compaction"], extra(&stats, "compactionWrittenBytes"));
    samples.put(&COMPACTION_READ, &[], extra(&stats, "compactionReadBytes"));
    samples.put(&STALLED, &[], extra(&stats, "stalledMicros") / 1e6);
    samples.put(&AMPLIFICATION, &[], extra(&stats, "writeAmplificationPercent") / 100.0);
}

/// What every layer below memory has.
fn errors(samples: &mut Samples, stats: &Stats) {
    for kind in ErrorKind::ALL {
        let count = stats.errors.iter().find(|(known, _)| *known == kind).map_or(0, |(_, count)| *count);
        samples.put(&ERRORS, &[kind.label()], count as f64);
    }
}

/// What every part has.
fn common(samples: &mut Samples, part: &(impl Component + ?Sized), stats: &Stats) {
    let now = part.health().state;
    for state in HealthState::ALL {
        samples.put(&HEALTH, &[state.label()], f64::from(u8::from(state == now)));
    }
    for (definition, number) in [(&ENTRIES, stats.entries), (&BYTES, stats.bytes), (&CAPACITY, stats.capacity_bytes)] {
        if let Some(number) = number {
            samples.put(definition, &[], number as f64);
        }
    }
}

/// A number that only this part has, by the name that the report gives it.
fn extra(stats: &Stats, name: &str) -> f64 {
    let found = stats.extras.iter().find(|(known, _)| *known == name);
    debug_assert!(found.is_some(), "{name} is none of {:?}", stats.extras);
    found.map_or(0.0, |(_, number)| *number as f64)
}
