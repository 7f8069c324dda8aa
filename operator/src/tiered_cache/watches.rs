//! What triggers a pass: the caches, everything made for them, their pods and claims.
//!
//! Every watch has its own backoff. `Controller::new` would put one backoff around all of them, so that one kind that
//! can not be watched stops every trigger. Errors are logged and taken out here, before the controller sees them.

use std::{fmt::Debug, future::ready, hash::Hash, sync::Arc, time::Duration};

use crds::tiered_cache::TieredCache;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::NamespaceResourceScope,
    runtime::{
        Config, Controller, WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::{
    Context, Shared, Watched,
    build::{INSTANCE_LABEL, MANAGED_BY, MANAGED_BY_LABEL},
    error_policy,
    memory::Memories,
    reconcile,
};
use crate::admin::Readiness;

/// Events of one object within this time make one pass: a new StatefulSet alone has a dozen in its first second.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// How often the gauges of caches are brought up to date, and memories of deleted caches are dropped.
const TIDY: Duration = Duration::from_secs(10);

/// Where caches are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everywhere.
    Cluster,
    /// In one namespace.
    Namespace(String),
}

/// What the watches of one scope know. Only objects with our label, but for the caches.
pub(super) struct Stores {
    pub(super) caches: Store<Watched>,
    pub(super) service_accounts: Store<ServiceAccount>,
    pub(super) config_maps: Store<ConfigMap>,
    pub(super) services: Store<Service>,
    pub(super) pdbs: Store<PodDisruptionBudget>,
    pub(super) stateful_sets: Store<StatefulSet>,
    pub(super) pods: Store<Pod>,
    pub(super) claims: Store<PersistentVolumeClaim>,
}

/// Opens watches in one scope.
struct Opener {
    client: Client,
    scope: Scope,
}

/// Works on every cache of the scope until `stop`; passes under way then come to their end.
pub(crate) async fn run(shared: Shared, scope: Scope, around: (u16, Readiness), stop: CancellationToken) {
    let (concurrency, readiness) = around;
    let opener = Opener { client: shared.client.clone(), scope };
    let (caches, caches_seen) = opener.main();
    let (service_accounts, service_accounts_seen) = opener.labelled();
    let (config_maps, config_maps_seen) = opener.labelled();
    let (services, services_seen) = opener.labelled();
    let (pdbs, pdbs_seen) = opener.labelled();
    let (stateful_sets, stateful_sets_seen) = opener.labelled();
    let (pods, pods_seen) = opener.labelled();
    let (claims, claims_seen) = opener.labelled();
    let stores = Stores { caches, service_accounts, config_maps, services, pdbs, stateful_sets, pods, claims };
    let cx = Arc::new(Context { shared, stores, memories: Memories::default(), listed: CancellationToken::new() });
    let controller = Controller::for_stream(caches_seen, cx.stores.caches.clone())
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(concurrency))
        .owns_stream(service_accounts_seen)
        .owns_stream(config_maps_seen)
        .owns_stream(services_seen)
        .owns_stream(pdbs_seen)
        .owns_stream(stateful_sets_seen)
        .watches_stream(pods_seen, |pod: Pod| cache_of(&pod))
        .watches_stream(claims_seen, |claim: PersistentVolumeClaim| cache_of(&claim))
        // A pass before every watch has its first list would take what it does not know yet for what is not there.
        .graceful_shutdown_on(stop.clone().cancelled_owned());
    let passes = controller.run(reconcile_when_listed, error_policy, Arc::clone(&cx)).for_each(|result| {
        if let Err(error) = result {
            tracing::debug!(%error, "pass not made");
        }
        ready(())
    });
    let tidy = async {
        cx.stores.wait_until_listed().await;
        cx.listed.cancel();
        readiness.listed();
        loop {
            cx.tidy();
            tokio::time::sleep(TIDY).await;
        }
    };
    tokio::select! {
        () = passes => {}
        () = tidy => {}
    }
}

async fn reconcile_when_listed(
    cache: Arc<Watched>,
    cx: Arc<Context>,
) -> Result<kube::runtime::controller::Action, super::Error> {
    cx.listed.cancelled().await;
    reconcile(cache, cx).await
}

/// The cache that the labels of a pod or claim name.
fn cache_of<K: Resource>(object: &K) -> Option<ObjectRef<Watched>> {
    let name = object.meta().labels.as_ref()?.get(INSTANCE_LABEL)?;
    Some(ObjectRef::new(name).within(object.meta().namespace.as_ref()?))
}

// === impl Context ===

impl Context {
    fn tidy(&self) {
        let caches = self.stores.caches.state();
        self.memories.retain(|uid| caches.iter().any(|cache| cache.meta().uid.as_deref() == Some(uid)));
        let is_ready = |cache: &TieredCache| {
            let conditions = cache.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        };
        let ready = caches.iter().filter_map(|cache| cache.0.as_ref().ok()).filter(|cache| is_ready(cache)).count();
        self.shared.metrics.set_caches(caches.len(), ready);
    }
}

// === impl Stores ===

impl Stores {
    /// Returns once every watch has its first list. One task alone may wait here: a store remembers only who asked last,
    /// so of two that wait the first would never wake. Passes wait for [`Context::listed`].
    async fn wait_until_listed(&self) {
        let Self { caches, service_accounts, config_maps, services, pdbs, stateful_sets, pods, claims } = self;
        // A dropped writer means that this scope is ending; there is nothing to wait for then.
        drop(caches.wait_until_ready().await);
        drop(service_accounts.wait_until_ready().await);
        drop(config_maps.wait_until_ready().await);
        drop(services.wait_until_ready().await);
        drop(pdbs.wait_until_ready().await);
        drop(stateful_sets.wait_until_ready().await);
        drop(pods.wait_until_ready().await);
        drop(claims.wait_until_ready().await);
    }
}

// === impl Opener ===

impl Opener {
    /// The caches. Changes of their status, which are our own, trigger nothing.
    fn main(&self) -> (Store<Watched>, impl Stream<Item = Result<Watched, watcher::Error>> + Send + use<>) {
        let (store, writer) = reflector::store();
        let asked = |cache: &Watched| {
            let meta = cache.meta();
            Some(hash(&(meta.generation, meta.deletion_timestamp.is_some())))
        };
        let seen = self.open::<Watched>(watcher::Config::default(), writer);
        (store, seen.predicate_filter(asked, kube::runtime::PredicateConfig::default()))
    }

    /// Objects with our label, whichever cache they are for.
    fn labelled<K>(&self) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + use<K>)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let (store, writer) = reflector::store();
        let config = watcher::Config::default().labels(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}"));
        (store, self.open::<K>(config, writer))
    }

    fn open<K>(
        &self,
        config: watcher::Config,
        writer: Writer<K>,
    ) -> impl Stream<Item = Result<K, watcher::Error>> + Send + use<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api: Api<K> = match &self.scope {
            Scope::Cluster => Api::all(self.client.clone()),
            Scope::Namespace(namespace) => Api::namespaced(self.client.clone(), namespace),
        };
        let kind = K::kind(&()).into_owned();
        watcher(api, config)
            .default_backoff()
            .modify(|object| object.managed_fields_mut().clear())
            .reflect(writer)
            .touched_objects()
            .inspect_err(move |error| tracing::warn!(%error, kind, "watch failed; it is tried again with backoff"))
            .filter(|seen| ready(seen.is_ok()))
    }
}

fn hash(value: &impl Hash) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
}
