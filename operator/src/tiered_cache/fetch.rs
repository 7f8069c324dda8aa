//! What the watches know about one cache. Reads memory only; the API server is asked by [`super::apply`] for what a
//! watch does not show.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::{Resource, ResourceExt, runtime::reflector::Store};

use super::{
    Stores,
    build::{INSTANCE_LABEL, claim_name},
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
    /// Claims of those pods.
    pub(super) claims: Vec<Arc<PersistentVolumeClaim>>,
    /// ConfigMaps of all configurations that the cache has had.
    pub(super) config_maps: Vec<Arc<ConfigMap>>,
}

// === impl Fetched ===

impl Fetched {
    /// The claim of the pod's volume.
    pub(super) fn claim_of(&self, pod_name: &str) -> Option<&PersistentVolumeClaim> {
        let name = claim_name(pod_name);
        self.claims.iter().find(|claim| claim.metadata.name.as_ref() == Some(&name)).map(Arc::as_ref)
    }
}

/// Collects what the watches know.
pub(super) fn fetch(stores: &Stores, identity: &Identity) -> Fetched {
    let pods = of_cache(&stores.pods, identity, |pod| is_node_of(pod, &identity.name));
    let claims = of_cache(&stores.claims, identity, |_| true);
    let config_maps = of_cache(&stores.config_maps, identity, |config_map| {
        config_map.owner_references().iter().any(|owner| owner.uid == identity.uid)
    });
    Fetched { uid: identity.uid.clone(), pods, claims, config_maps }
}

/// Labels can be put on anything: a pod counts only if the StatefulSet of this cache controls it.
fn is_node_of(pod: &Pod, cache_name: &str) -> bool {
    let named = pod
        .metadata
        .name
        .as_deref()
        .and_then(|name| name.strip_prefix(cache_name))
        .is_some_and(|rest| rest.starts_with('-') && ordinal(rest).is_some());
    let owners = pod.owner_references();
    named && owners.iter().any(|owner| owner.kind == "StatefulSet" && owner.name == cache_name)
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
