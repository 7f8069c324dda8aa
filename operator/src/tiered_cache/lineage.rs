//! Which data in Redis a cache may trust.
//!
//! While a cache does without a Redis, or uses another, it overwrites and removes values that stay as they were in the one it
//! left. So whenever it comes to another Redis, or back to one, its nodes get a new lineage, a number that is part of the
//! names of all keys: nothing of before is found. What is in use is written on the StatefulSet of the nodes, in the same
//! call that gives them their configuration; where that is lost, a new lineage is the safe answer.
//!
//! The log of invalidations is among those keys, so nodes of two lineages do not hear of each other. Each pod says which one
//! it was made for, and [`super::rollout`] lets no two of them live side by side.

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::ResourceExt;

use super::{
    build::hash,
    validate::{Identity, RedisSource, ValidCache},
};

/// The annotation of the nodes' StatefulSet and of their pods.
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
    /// What the cache is to use from now on: what it has used so far, if that is the same Redis. Else what the last pass
    /// meant it to use and could not tell the nodes, so that passes which fail do not each make another configuration.
    pub(super) fn of(cache: &ValidCache, used: Option<&Self>, planned: Option<&Self>, now: Timestamp) -> Self {
        let Some(redis) = &cache.redis else { return Self::default() };
        let source = source(&redis.source);
        // Later than any before, also within one second.
        let least = used.map_or(0, |used| used.number + 1);
        let planned = planned.filter(|planned| planned.number >= least);
        let same = [used, planned].into_iter().flatten().find(|lineage| lineage.source == source);
        same.cloned().unwrap_or_else(|| {
            let now = u64::try_from(now.as_second()).unwrap_or_default();
            Self { source, number: now.max(least) }
        })
    }

    /// What is written on the StatefulSet, if it is this cache's.
    pub(super) fn written_on(live: &StatefulSet, identity: &Identity) -> Option<Self> {
        let ours = live.owner_references().iter().any(|owner| owner.uid == identity.uid);
        live.annotations().get(ANNOTATION).filter(|_| ours).and_then(|text| Self::parse(text))
    }

    /// What the pod was made for; `None` if it does not say.
    pub(super) fn of_pod(pod: &Pod) -> Option<Self> {
        pod.annotations().get(ANNOTATION).and_then(|text| Self::parse(text))
    }

    /// Whether nodes of the two follow two logs. Without Redis there is none: such a node hears of no other and no other of
    /// it, whatever those follow, and that is what its spec says.
    pub(super) fn is_another_log(&self, other: &Self) -> bool {
        self.has_log() && other.has_log() && self != other
    }

    fn has_log(&self) -> bool {
        *self != Self::default()
    }

    /// Reads what [`Lineage::text`] wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (source, number) = text.split_once('/')?;
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
        let first = Lineage::of(&external("endpoints: ['a:1', 'b:1']"), None, None, at(0));
        assert_eq!(first.number, 1_800_000_000);
        for same in ["endpoints: ['b:1', 'a:1']", "endpoints: ['a:1', 'b:1'], credentialsSecretRef: {name: s}, tls: {}"]
        {
            assert_eq!(Lineage::of(&external(same), Some(&first), None, at(9)), first, "{same}");
        }
    }

    #[test]
    fn another_redis_begins_another_lineage() {
        let first = Lineage::of(&external("endpoints: ['a:1']"), None, None, at(0));
        for other in ["endpoints: ['b:1']", "endpoints: ['a:1'], database: 1"] {
            assert_eq!(Lineage::of(&external(other), Some(&first), None, at(9)).number, first.number + 9, "{other}");
        }
        let managed = Lineage::of(&valid("{redis: {mode: Managed}}"), Some(&first), None, at(0));
        assert_eq!(managed.number, first.number + 1, "also in the same second");
    }

    #[test]
    fn coming_back_begins_another_lineage() {
        let spec = external("endpoints: ['a:1']");
        let first = Lineage::of(&spec, None, None, at(0));
        let without = Lineage::of(&valid("{}"), Some(&first), None, at(5));
        assert_eq!(without, Lineage::default());
        assert_eq!(Lineage::of(&spec, Some(&without), None, at(9)).number, first.number + 9);
    }

    #[test]
    fn what_no_node_was_told_to_use_was_not_left() {
        let (external, managed) = (external("endpoints: ['a:1']"), valid("{redis: {mode: Managed}}"));
        let used = Lineage::of(&external, None, None, at(0));
        let planned = Lineage::of(&managed, Some(&used), None, at(5));
        // The next attempt means the same, a minute later.
        assert_eq!(Lineage::of(&managed, Some(&used), Some(&planned), at(65)), planned);
        // Taken back, nothing has changed.
        assert_eq!(Lineage::of(&external, Some(&used), Some(&planned), at(65)), used);
        // Once nodes were told to use it, the way back is to another.
        assert_eq!(Lineage::of(&external, Some(&planned), Some(&planned), at(65)).number, used.number + 65);
        assert_eq!(Lineage::of(&external, Some(&planned), Some(&used), at(65)).number, used.number + 65);
    }

    #[test]
    fn what_is_used_is_read_back_from_the_stateful_set_of_this_cache_alone() {
        let mut cache = external("endpoints: ['a:1']");
        cache.lineage = Lineage::of(&cache, None, None, at(0));
        let desired = build(&cache);
        let written = Lineage::written_on(&desired.stateful_set, &cache.identity);
        assert_eq!(written.as_ref(), Some(&cache.lineage));
        let file = &desired.config_map.data.unwrap()["config.yaml"];
        assert!(file.contains("lineage: 1800000000"), "{file}");
        let other = Identity { uid: "other".to_owned(), ..cache.identity.clone() };
        assert_eq!(Lineage::written_on(&desired.stateful_set, &other), None);
    }

    #[test]
    fn another_lineage_is_another_template() {
        let mut cache = external("endpoints: ['a:1']");
        let first = build(&cache).revisions;
        cache.lineage = Lineage::of(&cache, None, None, at(0));
        assert_ne!(build(&cache).revisions.template, first.template);
    }

    #[test]
    fn a_pod_says_which_lineage_it_was_made_for() {
        let mut cache = external("endpoints: ['a:1']");
        cache.lineage = Lineage::of(&cache, None, None, at(0));
        let template = build(&cache).stateful_set.spec.template;
        let mut pod = Pod { metadata: template.metadata.unwrap(), ..Pod::default() };
        assert_eq!(Lineage::of_pod(&pod), Some(cache.lineage));
        pod.metadata.annotations = None;
        assert_eq!(Lineage::of_pod(&pod), None);
    }

    #[test]
    fn there_are_two_logs_only_where_there_are_two_redises() {
        let of = |text: &str| Lineage::parse(text).unwrap();
        let (managed, external, none) = (of("managed/7"), of("external-a/8"), Lineage::default());
        assert!(managed.is_another_log(&external) && external.is_another_log(&managed));
        assert!(managed.is_another_log(&of("managed/9")), "it was left in between");
        assert!(!managed.is_another_log(&of("managed/7")));
        assert!(!managed.is_another_log(&none) && !none.is_another_log(&managed) && !none.is_another_log(&none));
    }
}
