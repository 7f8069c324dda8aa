//! What the watches know about one cache. Reads memory only; the API server is asked by [`super::apply`] for what a
//! watch does not show.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, ContainerStatus, PersistentVolumeClaim, Pod},
};
use kube::{
    Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};

use super::{
    Stores,
    build::{INSTANCE_LABEL, TEMPLATE_ANNOTATION, claim_name, managed_redis},
    diagnose::{OF_REDIS, Trouble, TroubleKind, diagnose},
    lineage::Lineage,
    memory::Password,
    observe::ordinal,
    validate::Identity,
};

/// Everything the watches know about the parts of one cache that it does not name itself.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    /// UID of the cache.
    pub(super) uid: String,
    /// Pods of the cache's StatefulSet.
    pub(super) pods: Vec<Arc<Pod>>,
    /// The pods of the cache's own Redis, by name.
    pub(super) redis: Vec<Arc<Pod>>,
    /// Claims of all those pods.
    pub(super) claims: Vec<Arc<PersistentVolumeClaim>>,
    /// ConfigMaps of all configurations that the cache has had.
    pub(super) config_maps: Vec<Arc<ConfigMap>>,
}

// === impl Fetched ===

impl Fetched {
    /// The claim of the pod's volume.
    pub(super) fn claim_of(&self, pod_name: &str) -> Option<&PersistentVolumeClaim> {
        self.claim(&claim_name(pod_name))
    }

    /// The claim with this name.
    pub(super) fn claim(&self, name: &str) -> Option<&PersistentVolumeClaim> {
        self.claims.iter().find(|claim| claim.metadata.name.as_deref() == Some(name)).map(Arc::as_ref)
    }

    /// A claim that goes with a Redis of this cache that was removed.
    pub(super) fn claim_of_earlier_redis(&self, cache_name: &str) -> Option<&PersistentVolumeClaim> {
        let mut claims = managed_redis::claim_names(cache_name).filter_map(|name| self.claim(&name));
        // One that nobody owns stays for ever; the next Redis takes it over, as any StatefulSet does.
        claims.find(|claim| {
            let owned = claim.owner_references().iter().any(|owner| owner.kind == "StatefulSet");
            owned || claim.metadata.deletion_timestamp.is_some()
        })
    }

    /// Whether there are nodes, and none of them uses this lineage.
    pub(super) fn none_is_of(&self, lineage: &Lineage) -> bool {
        !self.pods.is_empty() && self.pods.iter().all(|pod| Lineage::of_pod(pod).as_ref() != Some(lineage))
    }

    /// Whether every pod of a node was made from this template, those on their way down included.
    pub(super) fn all_are_of(&self, template: &str) -> bool {
        self.pods.iter().all(|pod| pod.annotations().get(TEMPLATE_ANNOTATION).map(String::as_str) == Some(template))
    }

    /// What keeps the cache's own Redis from running. Of one that runs and does not answer the nodes know more, but for a
    /// replica, which they do not talk to.
    pub(super) fn redis_trouble(&self, password: &Password, now: Timestamp) -> Option<Trouble> {
        self.redis.iter().find_map(|pod| {
            let claim = self.claim(&managed_redis::claim_name(&pod.name_any()));
            let trouble = diagnose(pod, claim, &OF_REDIS, now);
            match trouble.as_ref().map(|trouble| trouble.kind) {
                Some(TroubleKind::NotReady) => trouble.filter(|_| self.redis.len() > 1),
                // What it lacks it does not say itself; that it may be the password is known here.
                None | Some(TroubleKind::ContainerNotCreated) => lacks_password(pod, password).or(trouble),
                Some(_) => trouble,
            }
        })
    }
}

/// A pod whose Secret is missing waits for it without a word in its status.
fn lacks_password(pod: &Pod, password: &Password) -> Option<Trouble> {
    let Password::NotOurs(why) = password else { return None };
    let status = pod.status.as_ref()?;
    let waits = |status: &ContainerStatus| {
        let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("ContainerCreating"))
    };
    if !status.container_statuses.iter().flatten().any(waits) {
        return None;
    }
    let (pod, secret) = (pod.name_any(), pod.name_any());
    let secret = secret.rsplit_once('-').map_or(secret.as_str(), |(stem, _)| stem);
    let message = format!(
        "{pod} waits for its password: make the Secret {secret} with the keys {} and {}, as the chart's README says, or \
         install the chart with rbac.managedRedisPasswords=true, so that the operator makes it (now: {why})",
        managed_redis::PASSWORD_KEY,
        managed_redis::USERS,
    );
    Some(Trouble { kind: TroubleKind::ContainerNotCreated, message })
}

/// A StatefulSet of this cache.
pub(super) fn stateful_set(stores: &Stores, identity: &Identity, name: &str) -> Option<Arc<StatefulSet>> {
    let found = stores.stateful_sets.get(&ObjectRef::new(name).within(&identity.namespace))?;
    found.owner_references().iter().any(|owner| owner.uid == identity.uid).then_some(found)
}

/// Collects what the watches know.
pub(super) fn fetch(stores: &Stores, identity: &Identity) -> Fetched {
    let pods = of_cache(&stores.pods, identity, |pod| is_node_of(pod, &identity.name));
    let redis_name = managed_redis::name(&identity.name);
    let mut redis = of_cache(&stores.pods, identity, |pod| is_of(pod, &redis_name));
    redis.sort_by_key(|pod| pod.name_any());
    let claims = of_cache(&stores.claims, identity, |_| true);
    let config_maps = of_cache(&stores.config_maps, identity, |config_map| {
        config_map.owner_references().iter().any(|owner| owner.uid == identity.uid)
    });
    Fetched { uid: identity.uid.clone(), pods, redis, claims, config_maps }
}

/// Labels can be put on anything: a pod counts only if the StatefulSet of this cache controls it.
fn is_node_of(pod: &Pod, cache_name: &str) -> bool {
    let named = pod
        .metadata
        .name
        .as_deref()
        .and_then(|name| name.strip_prefix(cache_name))
        .is_some_and(|rest| rest.starts_with('-') && ordinal(rest).is_some());
    named && is_of(pod, cache_name)
}

fn is_of(pod: &Pod, stateful_set: &str) -> bool {
    pod.owner_references().iter().any(|owner| owner.kind == "StatefulSet" && owner.name == stateful_set)
}

fn of_cache<K>(store: &Store<K>, identity: &Identity, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.state_filter(|object: &K| {
        object.meta().namespace.as_deref() == Some(identity.namespace.as_str())
            && object.labels().get(INSTANCE_LABEL) == Some(&identity.name)
            && wanted(object)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiered_cache::testing::{at, from_yaml};

    fn trouble(state: &str, password: &Password) -> Option<Trouble> {
        let pod: Pod = from_yaml(&format!(
            "{{metadata: {{name: sessions-redis-0}}, status: {{containerStatuses: [{{name: redis, image: i, imageID: '', \
             ready: false, restartCount: 0, state: {state}}}]}}}}"
        ));
        let (uid, redis) = ("cache-uid".to_owned(), vec![Arc::new(pod)]);
        let fetched = Fetched { uid, pods: Vec::new(), redis, claims: Vec::new(), config_maps: Vec::new() };
        fetched.redis_trouble(password, at(0))
    }

    #[test]
    fn a_password_that_somebody_else_must_make_is_asked_for_while_redis_waits() {
        let not_ours = Password::NotOurs("secrets is forbidden".to_owned());
        let waits = "{waiting: {reason: ContainerCreating}}";
        let found = trouble(waits, &not_ours).unwrap();
        assert_eq!(found.kind, TroubleKind::ContainerNotCreated);
        for words in ["the Secret sessions-redis with", "secrets is forbidden", "keys password and users.acl"] {
            assert!(found.message.contains(words), "{}", found.message);
        }
        assert_eq!(trouble(waits, &Password::Known), None);
        // Also when it has been waiting for so long that something must be missing.
        let pod: Pod = from_yaml(&format!(
            "{{metadata: {{name: sessions-redis-0}}, status: {{conditions: [{{type: PodScheduled, status: 'True', \
             lastTransitionTime: '{}'}}], containerStatuses: [{{name: redis, image: i, imageID: '', ready: false, restartCount: \
             0, state: {waits}}}]}}}}",
            at(-60)
        ));
        let (uid, redis) = ("cache-uid".to_owned(), vec![Arc::new(pod)]);
        let fetched = Fetched { uid, pods: Vec::new(), redis, claims: Vec::new(), config_maps: Vec::new() };
        assert_eq!(fetched.redis_trouble(&not_ours, at(0)), Some(found));
        assert!(fetched.redis_trouble(&Password::Known, at(0)).is_some());
        assert_eq!(trouble("{running: {}}", &not_ours), None, "somebody has made it");
        let pull = trouble("{waiting: {reason: ErrImagePull}}", &not_ours).unwrap();
        assert_eq!(pull.kind, TroubleKind::ImageUnavailable, "what the pod itself says comes first");
    }

    #[test]
    fn a_replica_that_does_not_get_ready_is_told_because_no_node_talks_to_it() {
        let started = at(0);
        let pod = |name: &str| {
            let pod: Pod = from_yaml(&format!(
                "{{metadata: {{name: {name}}}, status: {{containerStatuses: [{{name: redis, image: i, imageID: '', ready: \
                 false, restartCount: 0, state: {{running: {{startedAt: '{started}'}}}}}}]}}}}"
            ));
            Arc::new(pod)
        };
        let of = |redis| {
            let uid = "cache-uid".to_owned();
            let fetched = Fetched { uid, pods: Vec::new(), redis, claims: Vec::new(), config_maps: Vec::new() };
            fetched.redis_trouble(&Password::Known, at(61)).map(|trouble| trouble.kind)
        };
        assert_eq!(of(vec![pod("sessions-redis-0")]), None);
        assert_eq!(of(vec![pod("sessions-redis-0"), pod("sessions-redis-1")]), Some(TroubleKind::NotReady));
    }
}
