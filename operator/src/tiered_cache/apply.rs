//! Writes to the API server: server-side apply in a stated order, then what is no longer wanted is removed.
//!
//! - Nothing is written when the live object already has what was asked for: in a steady state there are no writes.
//! - Nothing is written to an object that another owner controls, or that nobody controls. It is named in the status.
//! - Every write to an object that exists carries its UID, so that it can not hit another object of the same name.

mod redis;

use std::{sync::Arc, time::Duration};

use crds::{quantity::ByteSize, tiered_cache::TieredCache};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, EvictParams, Patch, PatchParams, Preconditions},
    core::NamespaceResourceScope,
    runtime::reflector::{ObjectRef, Store},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json as merge_patch};

use super::{
    Context, Stores, build::Desired, compare::project, fetch::Fetched, memory::Memory, rollout::Replacement, storage,
    validate::Identity,
};
use crate::clock;

/// So often every object is read from the API server itself: a watch that has lost an event is not believed for ever.
const DIRECT_READ: Duration = Duration::from_secs(300);

/// Our name in `managedFields`.
pub(super) const FIELD_MANAGER: &str = "tieredcache-operator";

/// A kind of object that the operator makes.
pub(super) trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The kind, as in the API.
    const KIND: &'static str;
    /// What the watch of this kind knows.
    fn store(stores: &Stores) -> &Store<Self>;
}

/// What was found and done.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// The StatefulSet as the API server has it now; `None` while it can not be made.
    pub(super) stateful_set: Option<Arc<StatefulSet>>,
    /// Objects that are in the way.
    pub(super) conflicts: Vec<Conflict>,
    /// What was written, in order.
    pub(super) writes: Vec<Write>,
}

/// An object that has the name of one of ours and is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    /// Kind and name.
    pub(super) object: String,
    /// Whose it is, in words.
    pub(super) owner: String,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// An object was made.
    Created(String),
    /// An object was changed because the spec, or this operator, asks for something else now.
    Changed(String),
    /// An object was changed back because somebody else had changed or deleted it.
    Repaired(String),
    /// An object that is no longer wanted was deleted.
    Deleted(String),
    /// The fleet's size was changed.
    Scaled { from: i32, to: i32 },
}

/// What became of the last write of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settled {
    /// What was asked for.
    asked: Value,
    /// What the API server made of it, as far as it was asked for. Equal to `asked`, unless something in the cluster
    /// has an opinion of its own; then writing the same again would change nothing.
    got: Value,
    /// The version before the write; while a watch still shows it, the write has not come back yet.
    over: Option<String>,
}

/// What came of asking for a larger volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The claim asks for it now.
    Accepted,
    /// The volume can not grow, for this reason.
    Refused(String),
    /// The claim is not there any more.
    Gone,
}

/// A call that failed, and what it was about.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {object}: {source}")]
pub(crate) struct Error {
    action: &'static str,
    object: String,
    source: Box<kube::Error>,
}

enum Live<K> {
    Absent,
    Ours(Arc<K>),
    Foreign(Conflict),
}

/// One pass of writes for one cache.
struct Pass<'a> {
    cx: &'a Context,
    identity: &'a Identity,
    /// Whether objects are read from the API server itself and not from the watches.
    direct: bool,
    applied: Applied,
}

macro_rules! child {
    ($kind:ident, $store:ident) => {
        impl Child for $kind {
            const KIND: &'static str = stringify!($kind);

            fn store(stores: &Stores) -> &Store<Self> {
                &stores.$store
            }
        }
    };
}

child!(ServiceAccount, service_accounts);
child!(ConfigMap, config_maps);
child!(Service, services);
child!(PodDisruptionBudget, pdbs);
child!(StatefulSet, stateful_sets);

// === impl Error ===

impl Error {
    fn new(action: &'static str, object: String, source: kube::Error) -> Self {
        Self { action, object, source: Box::new(source) }
    }

    /// What failed, in words that stay the same while it fails the same way.
    pub(super) fn message(&self) -> String {
        let why = match &*self.source {
            kube::Error::Api(status) => status.message.clone(),
            kube::Error::Service(_) | kube::Error::HyperError(_) => "the API server did not answer".to_owned(),
            other => other.to_string(),
        };
        format!("could not {} {}: {why}; it is tried again", self.action, self.object)
    }
}

/// Makes the cluster match `desired`, as far as it is ours to do so.
///
/// # Errors
/// At the first call that fails. What was written before stays, and the next pass goes on from there.
pub(super) async fn apply(
    cx: &Context,
    (identity, fetched): (&Identity, &Fetched),
    desired: &Desired,
    memory: &mut Memory,
) -> Result<Applied, Error> {
    // A new kind of object fails to compile here until somebody has decided when it is written.
    let Desired { service_account, config_map, headless_service, client_service, pdb, redis, stateful_set, revisions } =
        desired;
    let now = clock::monotonic();
    let direct = memory.read_directly.is_none_or(|at| now.duration_since(at) >= DIRECT_READ);
    let mut pass = Pass { cx, identity, direct, applied: Applied::default() };
    pass.ensure(service_account, memory).await?;
    pass.ensure(config_map, memory).await?;
    pass.ensure(headless_service, memory).await?;
    pass.ensure(client_service, memory).await?;
    match pdb {
        Some(pdb) => drop(pass.ensure(pdb, memory).await?),
        None => pass.remove::<PodDisruptionBudget>(&identity.name, memory).await?,
    }
    // Last: its pods need everything above from their first second. And not at all while something above belongs to
    // somebody else: pods would run with a stranger's configuration or account.
    if pass.applied.conflicts.is_empty() {
        if let Some(redis) = redis {
            pass.ensure_redis(redis, fetched, memory).await?;
        }
        let stateful_set = pass.with_live_claims(stateful_set).await?;
        pass.applied.stateful_set = pass.ensure(&stateful_set, memory).await?;
        pass.prune(config_map, fetched, memory).await?;
        // Nodes that have not been replaced yet still use it.
        if redis.is_none() && fetched.all_are_of(&revisions.template) {
            pass.remove_redis(memory).await?;
        }
    }
    if direct {
        // Up to a fifth less at random, so that fleets that started together do not read together.
        memory.read_directly = Some(now - DIRECT_READ.mul_f64(rand::random_range(0.0..=0.2)));
    }
    Ok(pass.applied)
}

/// Evicts a pod that is to be replaced; the StatefulSet makes it again from the current template.
///
/// Returns whether the disruption budget allowed it.
///
/// # Errors
/// If the call fails for another reason.
pub(super) async fn replace(cx: &Context, identity: &Identity, pod: &Replacement) -> Result<bool, Error> {
    evict(cx, identity, (&pod.name, &pod.uid)).await
}

async fn evict(cx: &Context, identity: &Identity, (name, uid): (&str, &str)) -> Result<bool, Error> {
    let api: Api<Pod> = Api::namespaced(cx.shared.client.clone(), &identity.namespace);
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let delete_options = Some(DeleteParams::default().preconditions(preconditions));
    match api.evict(name, &EvictParams { delete_options, ..EvictParams::default() }).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 429 => Ok(false),
        // Gone, or made anew, since it was looked at: the next pass sees what there is now.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(true),
        Err(source) => Err(Error::new("evict", format!("Pod {name}"), source)),
    }
}

/// Asks for a larger volume, by the name and UID of its claim.
///
/// # Errors
/// If the call fails for another reason than a refusal.
pub(super) async fn grow(
    cx: &Context,
    identity: &Identity,
    (claim, uid): (&str, &str),
    size: ByteSize,
) -> Result<Asked, Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(cx.shared.client.clone(), &identity.namespace);
    // With the UID, a claim that was made anew in between is not meant.
    let patch = merge_patch!({
        "metadata": {"uid": uid},
        "spec": {"resources": {"requests": {"storage": size.to_string()}}},
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch(claim, &params, &Patch::Merge(&patch)).await {
        Ok(_) => {
            tracing::info!(claim, namespace = identity.namespace, %size, "asked for a larger volume");
            Ok(Asked::Accepted)
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(Asked::Gone),
        Err(kube::Error::Api(status)) if status.code == 403 || status.code == 422 => Ok(Asked::Refused(status.message)),
        Err(source) => Err(Error::new("grow", format!("PersistentVolumeClaim {claim}"), source)),
    }
}

// === impl Pass ===

impl Pass<'_> {
    /// Creates or changes one object if it does not have what is asked for. Returns it as it is now, unless it is
    /// somebody else's or about to vanish.
    async fn ensure<K: Child>(&mut self, desired: &K, memory: &mut Memory) -> Result<Option<Arc<K>>, Error> {
        let name = desired.name_any();
        let key = (K::KIND, name.clone());
        let asked = serde_json::to_value(desired).expect("a Kubernetes object is plain data");
        let live = match self.look::<K>(&name).await? {
            Live::Foreign(conflict) => {
                self.applied.conflicts.push(conflict);
                return Ok(None);
            }
            // Whatever is written now vanishes with it; its end triggers the next pass.
            Live::Ours(live) if live.meta().deletion_timestamp.is_some() => return Ok(None),
            Live::Ours(live) => Some(live),
            Live::Absent => None,
        };
        let before = memory.settled.get(&key);
        if let Some(live) = &live {
            let got = project(&json(&**live), &asked);
            let settled =
                before.is_some_and(|settled| settled.covers(&asked, &got, live.resource_version().as_deref()));
            if got == asked || settled {
                return Ok(Some(Arc::clone(live)));
            }
        }
        let repaired = before.is_some_and(|settled| settled.asked == asked);
        let written = self.write(desired, live.as_deref()).await?;
        self.note::<K>(&name, (live.as_deref(), &written), repaired);
        let got = project(&json(&written), &asked);
        memory.settled.insert(key, Settled { asked, got, over: live.and_then(|live| live.resource_version()) });
        Ok(Some(Arc::new(written)))
    }

    /// The StatefulSet as it can be asked for: claim templates of one that exists can not change.
    async fn with_live_claims(&self, desired: &StatefulSet) -> Result<StatefulSet, Error> {
        let mut desired = desired.clone();
        if let Live::Ours(live) = self.look::<StatefulSet>(&desired.name_any()).await? {
            storage::keep_claim_sizes(&mut desired, &live);
        }
        Ok(desired)
    }

    async fn write<K: Child>(&self, desired: &K, live: Option<&K>) -> Result<K, Error> {
        let mut object = desired.clone();
        // With a UID the API server refuses the write if the object was deleted or made anew in between. An object that
        // does not exist yet has none to give: between looking and creating, a stranger's object of the same name could
        // appear, and gain our fields. Server-side apply has no way to say "only if absent".
        object.meta_mut().uid = live.and_then(ResourceExt::uid);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let name = desired.name_any();
        let mut written = self.api::<K>().patch(&name, &params, &Patch::Apply(&object)).await;
        // An item of a list whose key was edited by hand (the port of a Service) is somebody else's item to server-side
        // apply: ours would be added beside it, which the API server refuses. A merge patch puts the list in its place.
        if live.is_some() && matches!(&written, Err(kube::Error::Api(status)) if status.code == 422) {
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            written = self.api::<K>().patch(&name, &params, &Patch::Merge(&object)).await;
        }
        written.map_err(|source| Error::new("apply", format!("{} {name}", K::KIND), source))
    }

    fn note<K: Child>(&mut self, name: &str, (live, written): (Option<&K>, &K), repaired: bool) {
        let object = format!("{} {name}", K::KIND);
        tracing::info!(object, namespace = self.identity.namespace, created = live.is_none(), repaired, "applied");
        let replicas = |object: &K| json(object).pointer("/spec/replicas").and_then(Value::as_i64);
        let size = |object| replicas(object).and_then(|count| i32::try_from(count).ok());
        let scaled = live.and_then(size).zip(size(written)).filter(|(from, to)| from != to);
        self.applied.writes.push(match (live, repaired, scaled) {
            (_, true, _) => Write::Repaired(object),
            (None, false, _) => Write::Created(object),
            (Some(_), false, Some((from, to))) => Write::Scaled { from, to },
            (Some(_), false, None) => Write::Changed(object),
        });
    }

    async fn look<K: Child>(&self, name: &str) -> Result<Live<K>, Error> {
        let key = ObjectRef::new(name).within(&self.identity.namespace);
        let known = if self.direct { None } else { K::store(&self.cx.stores).get(&key) };
        let found = match known {
            Some(object) => Some(object),
            // The watches show only what has our label; an object without it may still have the name.
            None => {
                let read = self.api::<K>().get_opt(name).await;
                read.map_err(|source| Error::new("read", format!("{} {name}", K::KIND), source))?.map(Arc::new)
            }
        };
        let Some(object) = found else { return Ok(Live::Absent) };
        let controller = object.owner_references().iter().find(|owner| owner.controller == Some(true));
        if controller.is_some_and(|owner| owner.uid == self.identity.uid) {
            return Ok(Live::Ours(object));
        }
        let owner = self.describe(controller);
        Ok(Live::Foreign(Conflict { object: format!("{} {name}", K::KIND), owner }))
    }

    fn describe(&self, controller: Option<&OwnerReference>) -> String {
        match controller {
            Some(owner) if owner.kind == TieredCache::kind(&()) && owner.name == self.identity.name => {
                "a deleted cache of the same name, and is about to be removed with it".to_owned()
            }
            Some(owner) => format!("{} {}", owner.kind, owner.name),
            None => "nobody that Kubernetes knows of; somebody made it by hand".to_owned(),
        }
    }

    /// Deletes an object of ours that is no longer wanted.
    async fn remove<K: Child>(&mut self, name: &str, memory: &mut Memory) -> Result<(), Error> {
        memory.settled.remove(&(K::KIND, name.to_owned()));
        // What has our label is seen by the watch; what has not, we did not leave behind.
        let key = ObjectRef::new(name).within(&self.identity.namespace);
        let Some(live) = K::store(&self.cx.stores).get(&key) else { return Ok(()) };
        let ours = live.owner_references().iter().any(|owner| owner.uid == self.identity.uid);
        if !ours || live.meta().deletion_timestamp.is_some() {
            return Ok(());
        }
        let preconditions = Preconditions { uid: live.uid(), resource_version: None };
        let object = format!("{} {name}", K::KIND);
        match self.api::<K>().delete(name, &DeleteParams::default().preconditions(preconditions)).await {
            Ok(_) => {
                tracing::info!(object, namespace = self.identity.namespace, "deleted");
                self.applied.writes.push(Write::Deleted(object));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(source) => Err(Error::new("delete", object, source)),
        }
    }

    /// Deletes configurations that neither a pod nor the template uses.
    async fn prune(&mut self, current: &ConfigMap, fetched: &Fetched, memory: &mut Memory) -> Result<(), Error> {
        let mut used: Vec<String> = fetched.pods.iter().flat_map(|pod| config_maps_of(pod)).collect();
        used.extend(current.metadata.name.clone());
        let unused = fetched.config_maps.iter().map(|config_map| config_map.name_any());
        for name in unused.filter(|name| !used.contains(name)).collect::<Vec<_>>() {
            self.remove::<ConfigMap>(&name, memory).await?;
        }
        Ok(())
    }

    fn api<K: Child>(&self) -> Api<K> {
        Api::namespaced(self.cx.shared.client.clone(), &self.identity.namespace)
    }
}

// === impl Settled ===

impl Settled {
    /// Whether writing `asked` over an object that shows `got` would change nothing.
    fn covers(&self, asked: &Value, got: &Value, version: Option<&str>) -> bool {
        self.asked == *asked && (self.got == *got || (version.is_some() && self.over.as_deref() == version))
    }
}

fn config_maps_of(pod: &Pod) -> impl Iterator<Item = String> + '_ {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().filter_map(|volume| volume.config_map.as_ref()).map(|source| source.name.clone())
}

fn json<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("a Kubernetes object is plain data")
}
