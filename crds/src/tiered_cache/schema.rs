//! Schemas of field types that serve the node's configuration too, and so do not carry a schema of their own.

use std::ops::RangeInclusive;

use schemars::{Schema, SchemaGenerator, json_schema};

use super::telemetry;
use crate::node_config::limits;

/// Longest text of a size, a duration or a quantity; a bound lets the API server bound the cost of the rules on it.
const QUANTITY_LENGTH_MAX: u32 = 24;

/// A whole number of bytes with an optional unit.
pub(super) fn size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": QUANTITY_LENGTH_MAX,
        "pattern": "^[0-9]{1,15}(Ki|Mi|Gi|Ti|k|M|G|T)?$",
    })
}

/// A sum of whole numbers with units. The digits are bounded so that no sum overflows.
pub(super) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": QUANTITY_LENGTH_MAX,
        "pattern": "^([0-9]{1,5}h|[0-9]{1,7}m|[0-9]{1,9}s|[0-9]{1,12}ms){1,4}$",
    })
}

/// An amount of CPU or memory as pods have it; `2` without quotes is a number, hence both types.
pub(super) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "maxLength": QUANTITY_LENGTH_MAX,
        "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
        "x-kubernetes-int-or-string": true,
    })
}

pub(super) fn memory_policy(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["S3Fifo", "TinyLfu"]})
}

pub(super) fn redis_mode(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Disabled", "Managed", "External"]})
}

pub(super) fn write_mode(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["WriteBehind", "WriteThrough"]})
}

pub(super) fn when_disconnected(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["ServeStale", "Miss"]})
}

pub(super) fn outbox(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Queue", "Refuse"]})
}

pub(super) fn log_records(_: &mut SchemaGenerator) -> Schema {
    number(&limits::LOG_RECORDS)
}

pub(super) fn redis_database(_: &mut SchemaGenerator) -> Schema {
    number(&limits::REDIS_DATABASE)
}

/// The layers below memory, in the order in which they are read.
pub(super) fn read_order(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {"type": "string", "enum": ["Redis", "Disk"]},
        "minItems": 2,
        "maxItems": 2,
        "x-kubernetes-list-type": "atomic",
    })
}

pub(super) fn redis_kind(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Standalone", "Sentinel"]})
}

/// A host by name or address, and a port. In the order in which they are tried. In brackets, as the node reads it, stands an
/// address with colons and nothing else.
pub(super) fn redis_endpoints(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "description": "A host and its port.",
            "type": "string",
            "maxLength": 261,
            "pattern": concat!(
                r"^(\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?):",
                r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$",
            ),
        },
        "minItems": limits::REDIS_ENDPOINTS.start(),
        "maxItems": limits::REDIS_ENDPOINTS.end(),
        "x-kubernetes-list-type": "atomic",
    })
}

/// The name of an object of Kubernetes.
pub(super) fn object_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 253,
        "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    })
}

/// A key of a Secret.
pub(super) fn secret_key(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[-._a-zA-Z0-9]+$"})
}

pub(super) fn disk_mode(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["RocksDB", "Disabled"]})
}

pub(super) fn disk_admission(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["All", "SecondHit"]})
}

pub(super) fn compression_algorithm(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["None", "Lz4", "Zstd"]})
}

pub(super) fn overflow(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Block", "Reject", "DropOldest"]})
}

/// A collector's address; the node takes no other scheme.
pub(super) fn otlp_endpoint(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 512,
        "pattern": concat!(
            r"^http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)",
            r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?/?$",
        ),
    })
}

pub(super) fn samples_per_million(_: &mut SchemaGenerator) -> Schema {
    number(&telemetry::SAMPLES_PER_MILLION)
}

pub(super) fn slow_log_length(_: &mut SchemaGenerator) -> Schema {
    number(&telemetry::SLOW_LOG_LENGTH)
}

pub(super) fn ttl_jitter_percent(_: &mut SchemaGenerator) -> Schema {
    number(&limits::TTL_JITTER_PERCENT)
}

/// A whole number between two limits, both included. Without a `format`: the API server knows only signed ones.
fn number<T: Copy + Into<u32>>(limits: &RangeInclusive<T>) -> Schema {
    let (least, most): (u32, u32) = ((*limits.start()).into(), (*limits.end()).into());
    json_schema!({"type": "integer", "minimum": least, "maximum": most})
}

pub(super) fn layer_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Memory", "TagIndex", "WriteQueue", "Redis", "Disk", "Backplane"]})
}

pub(super) fn layer_names(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": layer_name(generator),
        "maxItems": 6,
        "x-kubernetes-list-type": "set",
    })
}

pub(super) fn health_state(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Healthy", "Disabled", "Degraded", "Unavailable", "Unknown"]})
}

/// A moment, as every Kubernetes object writes it.
pub(super) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// Conditions as the API conventions define them, keyed by `type`.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    let condition = json_schema!({
        "type": "object",
        "description": "One aspect of the cache's state.",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": {
                "description": "The aspect: `Ready`, `Progressing`, `Degraded`, `Stalled`, `MemoryHealthy`, `TagIndexHealthy`, `WriteQueueHealthy`, `RedisHealthy`, `DiskHealthy` or `BackplaneHealthy`.",
                "type": "string",
                "minLength": 1,
                "maxLength": 64,
            },
            "status": {
                "description": "Whether it holds.",
                "type": "string",
                "enum": ["True", "False", "Unknown"],
            },
            "observedGeneration": {
                "description": "The generation of the spec that this was judged by.",
                "type": "integer",
                "format": "int64",
                "minimum": 0,
            },
            "lastTransitionTime": {
                "description": "When `status` last changed.",
                "type": "string",
                "format": "date-time",
            },
            "reason": {
                "description": "A stable CamelCase word for machines.",
                "type": "string",
                "minLength": 1,
                "maxLength": 128,
                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            },
            "message": {
                "description": "A sentence for people, with names and numbers.",
                "type": "string",
                "maxLength": 32768,
            },
        },
    });
    json_schema!({
        "type": "array",
        "items": condition,
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}
