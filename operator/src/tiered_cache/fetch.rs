//! What the watches know about one cache. Reads memory only; the API server is asked by [`super::apply`] for what a
//! watch does not show.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::{Resource, ResourceExt, runtime::reflector::Store};

use super::{
    Stores,
    build::{INSTANCE_LABEL, TEMPLATE_ANNOTATION, claim_name, managed_redis},
    diagnose::{OF_REDIS, Trouble, TroubleKind, diagnose},
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
    /// The pod of the cache's own Redis.
    pub(super) redis: Option<Arc<Pod>>,
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

    /// Whether every pod of a node was made from this template, those on their way down included.
    pub(super) fn all_are_of(&self, template: &str) -> bool {
        self.pods.iter().all(|pod| pod.annotations().get(TEMPLATE_ANNOTATION).map(String::as_str) == Some(template))
    }

    /// What keeps the cache's own Redis from running. One that runs and does not answer is left to the nodes to tell of:
    /// they know more.
    pub(super) fn redis_trouble(&self, cache_name: &str, now: Timestamp) -> Option<Trouble> {
        let claim = self.claim(&managed_redis::claim_name(cache_name));
        let trouble = diagnose(self.redis.as_deref()?, claim, &OF_REDIS, now)?;
        (trouble.kind != TroubleKind::NotReady).then_some(trouble)
    }
}

/// Collects what the watches know.
pub(super) fn fetch(stores: &Stores, identity: &Identity) -> Fetched {
    let pods = of_cache(&stores.pods, identity, |pod| is_node_of(pod, &identity.name));
    let redis_name = managed_redis::name(&identity.name);
    let redis = of_cache(&stores.pods, identity, |pod| is_of(pod, &redis_name)).into_iter().next();
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
