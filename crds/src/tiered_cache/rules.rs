//! The rules of the schema that one field alone can not express, in CEL. The API server runs them; no webhook.
//!
//! Every message names the field, the value and the limit. Rules about a change sit on `spec`, the parent of what they
//! guard, so that adding or removing a field can not dodge them; `fieldPath` still points at the field.

use std::ops::RangeInclusive;

use kube::core::{Message, Rule};

use super::{LOG_RECORD_BYTES, MANAGED_LOG_SHARE, MANAGED_STORAGE_FACTOR, NAME_LENGTH_MAX, memory_budget};
use crate::quantity::{ByteSize, HumanDuration};

/// Names become parts of names of pods and Services, which are DNS labels.
pub(super) fn name() -> Rule {
    let longest = NAME_LENGTH_MAX;
    Rule::new(format!(
        "size(self.metadata.name) <= {longest} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
    ))
    .message(Message::Expression(format!(
        "'metadata.name is ' + self.metadata.name + '; it must start with a letter, have only a-z, 0-9 and -, \
             and at most {longest} characters, because names of pods and Services are made from it'"
    )))
}

/// A size in bytes between two limits, both included.
pub(super) fn size_within(field: &str, limits: &RangeInclusive<ByteSize>) -> Rule {
    let (least, most) = (limits.start(), limits.end());
    Rule::new(format!(
        "quantity(self).compareTo(quantity('{least}')) >= 0 && quantity(self).compareTo(quantity('{most}')) <= 0"
    ))
    .message(Message::Expression(format!("'{field} is ' + self + '; it must be between {least} and {most}'")))
}

/// A duration between two limits, both included.
pub(super) fn duration_within(field: &str, limits: &RangeInclusive<HumanDuration>) -> Rule {
    let (least, most) = (limits.start(), limits.end());
    Rule::new(format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"))
        .message(Message::Expression(format!("'{field} is ' + self + '; it must be between {least} and {most}'")))
}

/// An amount of CPU or memory above zero.
pub(super) fn is_positive_quantity(field: &str) -> Rule {
    Rule::new("isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))").message(
        Message::Expression(format!("'{field} is ' + string(self) + '; it must be more than 0, such as 500m or 1Gi'")),
    )
}

/// Memory capacity and everything else that the node holds in memory fit the limit.
pub(super) fn memory_fits_limit() -> Rule {
    Rule::new(format!(
        "!has(self.resources.limits.memory) || {uncountable} || \
         quantity(string(self.resources.limits.memory)).compareTo({needed}) >= 0",
        uncountable = uncountable(),
        needed = memory_needed(),
    ))
    .message(Message::Expression(format!(
        "'spec.resources.limits.memory is %s; spec.memory.capacity %s and an eighth of it for the allocator, {process} for \
         the process%s need at least %dMi; raise the limit or lower the capacity'.format([\
         string(self.resources.limits.memory), self.memory.capacity, \
         (self.disk.mode == 'RocksDB' ? ', {rocksdb} for RocksDB' : '') + \
         ({HAS_QUEUE} ? ', ' + self.writeQueue.capacity + ' for the write queue' : ''), {needed}])",
        process = memory_budget::PROCESS,
        rocksdb = memory_budget::ROCKSDB,
        needed = memory_needed_mebibytes(),
    )))
    .field_path(".resources.limits.memory")
}

/// Kubernetes refuses pods that ask for more memory than they may have.
pub(super) fn memory_request_within_limit() -> Rule {
    Rule::new(format!(
        "!has(self.resources.requests.memory) || {uncountable} || \
         quantity(string(self.resources.requests.memory)).compareTo(has(self.resources.limits.memory) ? \
         quantity(string(self.resources.limits.memory)) : {needed}) <= 0",
        uncountable = uncountable(),
        needed = memory_needed(),
    ))
    .message(Message::Expression(format!(
        "has(self.resources.limits.memory) ? \
         'spec.resources.requests.memory is %s; it must be at most spec.resources.limits.memory, which is %s'.format([\
         string(self.resources.requests.memory), string(self.resources.limits.memory)]) : \
         'spec.resources.requests.memory is %s; it must be at most the memory limit, which is %dMi unless \
         spec.resources.limits.memory says otherwise'.format([string(self.resources.requests.memory), {needed}])",
        needed = memory_needed_mebibytes(),
    )))
    .field_path(".resources.requests.memory")
}

/// Kubernetes refuses pods that ask for more CPU than they may have.
pub(super) fn cpu_request_within_limit() -> Rule {
    Rule::new(
        "!has(self.resources.limits.cpu) || \
         quantity(string(self.resources.requests.cpu)).compareTo(quantity(string(self.resources.limits.cpu))) <= 0",
    )
    .message(Message::Expression(
        "'spec.resources.requests.cpu is ' + string(self.resources.requests.cpu) + \
         '; it must be at most spec.resources.limits.cpu, which is ' + string(self.resources.limits.cpu)"
            .to_owned(),
    ))
    .field_path(".resources.requests.cpu")
}

/// Each layer below memory once.
pub(super) fn read_order_names_each_once() -> Rule {
    Rule::new("self.readOrder[0] != self.readOrder[1]")
        .message(Message::Expression(
            "'spec.readOrder is [' + self.readOrder.join(', ') + ']; it must name Redis and Disk once each'".to_owned(),
        ))
        .field_path(".readOrder")
}

/// Without endpoints there is nothing to connect to. Those of a Redis that is switched off may stay.
pub(super) fn external_redis_is_named() -> Rule {
    Rule::new("self.mode != 'External' || has(self.external)").message(Message::Expression(
        "'spec.redis.mode is ' + self.mode + '; spec.redis.external must then say where Redis is, such as \
         {endpoints: [\"redis:6379\"]}'"
            .to_owned(),
    ))
}

/// Sentinels know several masters; a server is its own.
pub(super) fn sentinels_have_a_master() -> Rule {
    Rule::new("(self.kind == 'Sentinel') == has(self.masterName)")
        .message(Message::Expression(
            "has(self.masterName) ? 'spec.redis.external.masterName is ' + self.masterName + \
             '; it is for kind Sentinel only, and the kind is ' + self.kind : \
             'spec.redis.external.kind is ' + self.kind + '; masterName must then say what the Sentinels call the master'"
                .to_owned(),
        ))
        .field_path(".masterName")
}

/// A certificate is of no use without its key, nor a key without its certificate.
pub(super) fn certificate_has_its_key() -> Rule {
    Rule::new("has(self.certKey) == has(self.keyKey)").message(Message::Expression(
        "has(self.certKey) ? 'spec.redis.external.tls.secretRef.certKey is ' + self.certKey + '; keyKey must then name the \
         key of the certificate' : 'spec.redis.external.tls.secretRef.keyKey is ' + self.keyKey + '; certKey must then \
         name the certificate'"
            .to_owned(),
    ))
}

/// A volume that is too small for what Redis writes would stop its writes.
pub(super) fn managed_storage_holds_the_memory() -> Rule {
    let times = MANAGED_STORAGE_FACTOR;
    Rule::new(format!(
        "!quantity(self.memory).isInteger() || !quantity(self.storage).isInteger() || \
         quantity(self.storage).asInteger() / {times} >= quantity(self.memory).asInteger()"
    ))
    .message(Message::Expression(format!(
        "'spec.redis.managed.storage is ' + self.storage + '; it must be at least {times} times \
         spec.redis.managed.memory, which is ' + self.memory + ', because Redis writes its file anew beside the old one'"
    )))
    .field_path(".storage")
}

/// The log never gives way to entries, so it must leave room for them.
pub(super) fn managed_log_fits_the_memory() -> Rule {
    let (bytes, share) = (LOG_RECORD_BYTES, MANAGED_LOG_SHARE);
    Rule::new(format!(
        "self.redis.mode != 'Managed' || !has(self.backplane.logRecords) || \
         !quantity(self.redis.managed.memory).isInteger() || \
         self.backplane.logRecords * {bytes} <= quantity(self.redis.managed.memory).asInteger() / {share}"
    ))
    .message(Message::Expression(format!(
        "'spec.backplane.logRecords is %d; of {bytes} bytes each they must fit one part in {share} of \
         spec.redis.managed.memory, which is %s'.format([self.backplane.logRecords, self.redis.managed.memory])"
    )))
    .field_path(".backplane.logRecords")
}

/// Whether the volume of a managed Redis stays: one that was switched off is gone, and the next may be another.
const STAYS_MANAGED: &str = "(self.redis.mode == 'Managed' && oldSelf.redis.mode == 'Managed')";

/// Two could not agree on who goes on without the other.
pub(super) fn managed_replicas_are_one_or_three() -> Rule {
    Rule::new("self == 1 || self == 3").message(Message::Expression(
        "'spec.redis.managed.replicas is %d; it must be 1 or 3'.format([self])".to_owned(),
    ))
}

/// One that becomes three, or the reverse, would be another Redis to the nodes while they are replaced.
pub(super) fn managed_replicas_are_fixed() -> Rule {
    Rule::new(format!("!{STAYS_MANAGED} || self.redis.managed.replicas == oldSelf.redis.managed.replicas"))
        .message(Message::Expression(
            "'spec.redis.managed.replicas is %d and can not be changed to %d while the mode is Managed; switch Redis off \
             and on again, and it begins empty'.format([oldSelf.redis.managed.replicas, self.redis.managed.replicas])"
                .to_owned(),
        ))
        .field_path(".redis.managed.replicas")
}

/// Volumes can not shrink.
pub(super) fn managed_storage_only_grows() -> Rule {
    Rule::new(format!(
        "!{STAYS_MANAGED} || quantity(self.redis.managed.storage).compareTo(quantity(oldSelf.redis.managed.storage)) >= 0"
    ))
    .message(Message::Expression(
        "'spec.redis.managed.storage is ' + oldSelf.redis.managed.storage + ' and can not be made ' + \
         self.redis.managed.storage + ': volumes grow and never shrink'"
            .to_owned(),
    ))
    .field_path(".redis.managed.storage")
}

/// A volume can not move to another class.
pub(super) fn managed_storage_class_is_fixed() -> Rule {
    let class = |object: &str| {
        let managed = format!("{object}.redis.managed");
        format!("(has({managed}.storageClassName) ? {managed}.storageClassName : 'the default class')")
    };
    let (old, new) = (class("oldSelf"), class("self"));
    Rule::new(format!("!{STAYS_MANAGED} || {new} == {old}"))
        .message(Message::Expression(format!(
            "'spec.redis.managed.storageClassName is ' + {old} + ' and can not be changed to ' + {new} + \
             ' while the mode is Managed; switch Redis off and on again, and it begins empty on a volume of the new class'"
        )))
        .field_path(".redis.managed.storageClassName")
}

/// A StatefulSet can not gain or lose its volumes.
pub(super) fn disk_mode_is_fixed() -> Rule {
    fixed("mode", "self.disk.mode == oldSelf.disk.mode", "oldSelf.disk.mode", "self.disk.mode")
}

/// Volumes can not shrink.
pub(super) fn disk_size_only_grows() -> Rule {
    Rule::new("quantity(self.disk.size).compareTo(quantity(oldSelf.disk.size)) >= 0")
        .message(Message::Expression(
            "'spec.disk.size is ' + oldSelf.disk.size + ' and can not be made ' + self.disk.size + \
             ': volumes grow and never shrink; create another cache with smaller volumes and move the clients there'"
                .to_owned(),
        ))
        .field_path(".disk.size")
}

/// A volume can not move to another class.
pub(super) fn storage_class_is_fixed() -> Rule {
    let class = |object: &str| {
        format!("(has({object}.disk.storageClassName) ? {object}.disk.storageClassName : 'the default class')")
    };
    let (old, new) = (class("oldSelf"), class("self"));
    fixed("storageClassName", &format!("{new} == {old}"), &old, &new)
}

fn fixed(field: &str, unchanged: &str, old: &str, new: &str) -> Rule {
    Rule::new(unchanged)
        .message(Message::Expression(format!(
            "'spec.disk.{field} is ' + {old} + ' and can not be changed to ' + {new} + \
             ': it is fixed when the cache is created; create another cache with it and move the clients there'"
        )))
        .field_path(format!(".disk.{field}"))
}

/// Whether writes wait: there is a layer below memory.
const HAS_QUEUE: &str = "(self.disk.mode == 'RocksDB' || self.redis.mode != 'Disabled')";

/// A size beyond what CEL can count with. Its own rule refuses it.
fn uncountable() -> &'static str {
    "!quantity(self.memory.capacity).isInteger() || !quantity(self.writeQueue.capacity).isInteger()"
}

/// [`memory_budget::MemoryNeeds::limit`] in CEL, as a quantity. Adding to a quantity and not writing a number as text, because the API
/// server can not bound the length of such a text and then refuses the rule as too costly.
fn memory_needed() -> String {
    format!(
        "quantity(self.memory.capacity).add(quantity(self.memory.capacity).asInteger() / {divisor}).add({process})\
         .add(self.disk.mode == 'RocksDB' ? {rocksdb} : 0)\
         .add({HAS_QUEUE} ? quantity(self.writeQueue.capacity).asInteger() : 0)",
        divisor = memory_budget::FRAGMENTATION_DIVISOR,
        process = memory_budget::PROCESS.0,
        rocksdb = memory_budget::ROCKSDB.0,
    )
}

/// The same as a whole number of mebibytes, rounded up, for messages.
fn memory_needed_mebibytes() -> String {
    format!("({}.asInteger() + 1048575) / 1048576", memory_needed())
}
