//! What the watches know about one cache. Reads memory only; the API server is asked by [`super::apply`] for what a
//! watch does not show.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, PersistentVolumeClaim, Pod};
use kube::{Resource, ResourceExt, runtime::reflector::Store};

use super::{
    Stores,
    build::{INSTANCE_LABEL, TEMPLATE_ANNOTATION, claim_name, managed_redis},
    diagnose::{OF_REDIS, Trouble, TroubleKind, diagnose},
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
    pub(super) fn redis_trouble(&self, cache_name: &str, password: &Password, now: Timestamp) -> Option<Trouble> {
        let pod = self.redis.as_deref()?;
        let claim = self.claim(&managed_redis::claim_name(cache_name));
        match diagnose(pod, claim, &OF_REDIS, now) {
            Some(trouble) => (trouble.kind != TroubleKind::NotReady).then_some(trouble),
            None => lacks_password(pod, password),
        }
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
        "{pod} can not be started while there is no Secret {secret}, which the operator may not make: {why}. Make it with \
         the keys {} and {}, as the operator's README says, or permit the operator to create Secrets",
        managed_redis::PASSWORD_KEY,
        managed_redis::USERS,
    );
    Some(Trouble { kind: TroubleKind::ContainerNotCreated, message })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiered_cache::testing::{at, from_yaml};

    fn trouble(state: &str, password: &Password) -> Option<Trouble> {
        let pod: Pod = from_yaml(&format!(
            "{{metadata: {{name: sessions-redis-0}}, status: {{containerStatuses: [{{name: redis, image: i, imageID: '', \
             ready: false, restartCount: 0, state: {state}}}]}}}}"
        ));
        let (uid, redis) = ("cache-uid".to_owned(), Some(Arc::new(pod)));
        let fetched = Fetched { uid, pods: Vec::new(), redis, claims: Vec::new(), config_maps: Vec::new() };
        fetched.redis_trouble("sessions", password, at(0))
    }

    #[test]
    fn a_password_that_somebody_else_must_make_is_asked_for_while_redis_waits() {
        let not_ours = Password::NotOurs("secrets is forbidden".to_owned());
        let waits = "{waiting: {reason: ContainerCreating}}";
        let found = trouble(waits, &not_ours).unwrap();
        assert_eq!(found.kind, TroubleKind::ContainerNotCreated);
        for words in ["no Secret sessions-redis,", "secrets is forbidden", "keys password and users.acl"] {
            assert!(found.message.contains(words), "{}", found.message);
        }
        assert_eq!(trouble(waits, &Password::Known), None);
        assert_eq!(trouble("{running: {}}", &not_ours), None, "somebody has made it");
        let pull = trouble("{waiting: {reason: ErrImagePull}}", &not_ours).unwrap();
        assert_eq!(pull.kind, TroubleKind::ImageUnavailable, "what the pod itself says comes first");
    }
}
