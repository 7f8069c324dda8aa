//! Writes to the API server: server-side apply in a stated order, then what is no longer wanted is removed.
//!
//! - Nothing is written when the live object already has what was asked for: in a steady state there are no writes.
//! - Nothing is written to an object that another owner controls, or that nobody controls. It is named in the status.
//! - Every write to an object that exists carries its UID, so that it can not hit another object of the same name.

mod pods;
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
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::NamespaceResourceScope,
    runtime::reflector::{ObjectRef, Store},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json as merge_patch};

pub(super) use self::pods::{replace, stop};
use super::{
    Context, Stores, build::Desired, compare::project, fetch::Fetched, lineage::Lineage, memory::Memory,
    rollout::Block, storage, validate::Identity,
};
use crate::clock;

/// So often every object is read from the API server itself: a watch that has lost an event is not believed for ever.
const DIRECT_READ: Duration = Duration::from_secs(300);

/// Said by an API server that has too much to do now.
const TOO_MANY_REQUESTS: u16 = 429;

/// What is done to an object by writing it.
const APPLY: &str = "apply";

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
    /// The StatefulSet as the API server has it now; `None` while it can not be made or changed.
    pub(super) stateful_set: Option<Arc<StatefulSet>>,
    /// Why it is left as it was.
    pub(super) block: Option<Block>,
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

    /// Whether the object may have been written all the same: only the API server can say that it has not been.
    fn may_have_written(&self) -> bool {
        let refused = matches!(&*self.source, kube::Error::Api(status) if (400..500).contains(&status.code));
        self.action == APPLY && !refused
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
    // Last: its pods need everything above from their first second. And not at all while something that they need belongs
    // to somebody else: pods would run with a stranger's configuration or account, or follow the log of a stranger's Redis.
    let block = match redis {
        Some(redis) if pass.applied.conflicts.is_empty() => pass.ensure_redis(redis, fetched, memory).await?,
        _ => None,
    };
    if pass.applied.conflicts.is_empty() {
        pass.applied.block = block.filter(|_| waits_for_redis(&revisions.lineage, fetched, memory));
        if pass.applied.block.is_none() {
            pass.applied.stateful_set = pass.ensure_nodes((stateful_set, &revisions.lineage), memory).await?;
            pass.prune(config_map, fetched, memory).await?;
        }
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

/// Whether the nodes keep what they have until the cache's own Redis runs: as long as none was told to use it. From then on
/// nothing may hold the others back, or there would be two logs.
fn waits_for_redis(lineage: &Lineage, fetched: &Fetched, memory: &Memory) -> bool {
    memory.lineage.as_ref() != Some(lineage) && fetched.none_is_of(lineage)
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
        Err(kube::Error::Api(status)) if is_refusal(status.code) => Ok(Asked::Refused(status.message)),
        Err(source) => Err(Error::new("grow", format!("PersistentVolumeClaim {claim}"), source)),
    }
}

/// Whether somebody refuses for a reason of his own, such as a quota, a policy or the storage, and will do so again.
fn is_refusal(code: u16) -> bool {
    (400..500).contains(&code) && code != TOO_MANY_REQUESTS
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

    /// Makes or changes the StatefulSet of the nodes, and remembers that its pods may now use this lineage.
    async fn ensure_nodes(
        &mut self,
        (stateful_set, lineage): (&StatefulSet, &Lineage),
        memory: &mut Memory,
    ) -> Result<Option<Arc<StatefulSet>>, Error> {
        let stateful_set = self.with_live_claims(stateful_set).await?;
        let ensured = self.ensure(&stateful_set, memory).await;
        if ensured.as_ref().map_or_else(Error::may_have_written, Option::is_some) {
            memory.lineage = Some(lineage.clone());
        }
        ensured
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
        written.map_err(|source| Error::new(APPLY, format!("{} {name}", K::KIND), source))
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

    /// Notes an object of this name that is somebody else's.
    async fn note_stranger<K: Child>(&mut self, name: &str) -> Result<(), Error> {
        if let Live::Foreign(conflict) = self.look::<K>(name).await? {
            self.applied.conflicts.push(conflict);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(action: &'static str, code: u16) -> Error {
        let status = kube::core::Status { code, ..kube::core::Status::default() };
        Error::new(action, "StatefulSet sessions".to_owned(), kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn only_a_write_that_the_api_server_refuses_is_sure_to_have_changed_nothing() {
        assert!(!failed(APPLY, 403).may_have_written() && !failed(APPLY, 422).may_have_written());
        assert!(failed(APPLY, 500).may_have_written() && failed(APPLY, 504).may_have_written());
        let silence = kube::Error::Service("no answer".into());
        assert!(Error::new(APPLY, String::new(), silence).may_have_written());
        assert!(!failed("read", 500).may_have_written());
    }

    #[test]
    fn whoever_refuses_growth_is_asked_again_later_and_holds_nothing_up() {
        assert!([400, 401, 403, 413, 422].into_iter().all(is_refusal));
        assert!([429, 500, 503, 504].into_iter().all(|code| !is_refusal(code)));
    }
}
