//! Which data in Redis a cache may trust.
//!
//! While a cache does without a Redis, or uses another, it overwrites and removes values that stay as they were in the one it
//! left. So whenever it comes to another Redis, or back to one, its nodes get a new lineage, a number that is part of the
//! names of all keys: nothing of before is found. What is in use is written on the StatefulSet of the nodes, in the same
//! call that gives them their configuration; where that is lost, a new lineage is the safe answer.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;

use super::{
    build::hash,
    validate::{Identity, RedisSource, ValidCache},
};

/// The annotation of the nodes' StatefulSet.
pub(super) const ANNOTATION: &str = "tieredcache.io/redis";

/// A Redis, and which data in it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lineage {
    /// Which Redis: a word or a hash.
    source: String,
    /// When the cache came to it, in seconds since 1970; 0 without one.
    pub(super) number: u64,
}

// === impl Lineage ===

impl Default for Lineage {
    /// Of a cache without Redis.
    fn default() -> Self {
        Self { source: "none".to_owned(), number: 0 }
    }
}

impl Lineage {
    /// What the cache uses from now on: what it has used so far, if that is the same Redis.
    pub(super) fn of(cache: &ValidCache, used: Option<&Self>, now: Timestamp) -> Self {
        let Some(redis) = &cache.redis else { return Self::default() };
        let source = source(&redis.source);
        match used.filter(|used| used.source == source) {
            Some(used) => used.clone(),
            // Later than any before, also within one second.
            None => {
                let now = u64::try_from(now.as_second()).unwrap_or_default();
                Self { source, number: now.max(used.map_or(0, |used| used.number + 1)) }
            }
        }
    }

    /// What is written on the StatefulSet, if it is this cache's.
    pub(super) fn written_on(live: &StatefulSet, identity: &Identity) -> Option<Self> {
        let ours = live.owner_references().iter().any(|owner| owner.uid == identity.uid);
        let (source, number) = live.annotations().get(ANNOTATION).filter(|_| ours)?.split_once('/')?;
        Some(Self { source: source.to_owned(), number: number.parse().ok()? })
    }

    /// The value of the annotation.
    pub(super) fn text(&self) -> String {
        format!("{}/{}", self.source, self.number)
    }
}

/// What tells one Redis from another. Not by which way it is reached: users and certificates change.
fn source(source: &RedisSource) -> String {
    match source {
        RedisSource::Managed(_) => "managed".to_owned(),
        RedisSource::External(external) => {
            let mut endpoints = external.endpoints.clone();
            endpoints.sort();
            let text = format!("{:?} {endpoints:?} {:?} {}", external.kind, external.master_name, external.database);
            format!("external-{}", hash(text.as_bytes()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiered_cache::{
        build::build,
        testing::{at, cache, settings},
        validate::validate,
    };

    fn valid(spec: &str) -> ValidCache {
        validate(&cache(spec), &settings()).unwrap()
    }

    fn external(rest: &str) -> ValidCache {
        valid(&format!("{{redis: {{mode: External, external: {{{rest}}}}}}}"))
    }

    #[test]
    fn the_same_redis_keeps_its_lineage() {
        let first = Lineage::of(&external("endpoints: ['a:1', 'b:1']"), None, at(0));
        assert_eq!(first.number, 1_800_000_000);
        for same in ["endpoints: ['b:1', 'a:1']", "endpoints: ['a:1', 'b:1'], credentialsSecretRef: {name: s}, tls: {}"]
        {
            assert_eq!(Lineage::of(&external(same), Some(&first), at(9)), first, "{same}");
        }
    }

    #[test]
    fn another_redis_begins_another_lineage() {
        let first = Lineage::of(&external("endpoints: ['a:1']"), None, at(0));
        for other in ["endpoints: ['b:1']", "endpoints: ['a:1'], database: 1"] {
            assert_eq!(Lineage::of(&external(other), Some(&first), at(9)).number, first.number + 9, "{other}");
        }
        let managed = Lineage::of(&valid("{redis: {mode: Managed}}"), Some(&first), at(0));
        assert_eq!(managed.number, first.number + 1, "also in the same second");
    }

    #[test]
    fn coming_back_begins_another_lineage() {
        let spec = external("endpoints: ['a:1']");
        let first = Lineage::of(&spec, None, at(0));
        let without = Lineage::of(&valid("{}"), Some(&first), at(5));
        assert_eq!(without, Lineage::default());
        assert_eq!(Lineage::of(&spec, Some(&without), at(9)).number, first.number + 9);
    }

    #[test]
    fn what_is_used_is_read_back_from_the_stateful_set_of_this_cache_alone() {
        let mut cache = external("endpoints: ['a:1']");
        cache.lineage = Lineage::of(&cache, None, at(0));
        let desired = build(&cache);
        let written = Lineage::written_on(&desired.stateful_set, &cache.identity);
        assert_eq!(written.as_ref(), Some(&cache.lineage));
        let file = &desired.config_map.data.unwrap()["config.yaml"];
        assert!(file.contains("lineage: 1800000000"), "{file}");
        let other = Identity { uid: "other".to_owned(), ..cache.identity.clone() };
        assert_eq!(Lineage::written_on(&desired.stateful_set, &other), None);
    }
}
