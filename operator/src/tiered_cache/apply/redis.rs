//! What belongs to a Redis of the cache's own: made before the nodes that use it, removed after them.

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Pod, Secret, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, ResourceExt, api::PostParams};

use super::{Error, FIELD_MANAGER, Live, Pass, Write, stop};
use crate::tiered_cache::{
    build::managed_redis::{self, DesiredRedis},
    fetch::Fetched,
    memory::{Memory, Password},
    rollout::{Block, Replacement, Rule},
    storage,
};

// === impl Pass ===

impl Pass<'_> {
    /// Makes the cache's own Redis, and nothing at all while something of a name that it needs is somebody else's. Returns
    /// what it waits for before it runs.
    pub(super) async fn ensure_redis(
        &mut self,
        desired: &DesiredRedis,
        fetched: &Fetched,
        memory: &mut Memory,
    ) -> Result<Option<Block>, Error> {
        self.note_strangers(desired).await?;
        if !self.applied.conflicts.is_empty() {
            return Ok(None);
        }
        let DesiredRedis { services, pdb, stateful_set } = desired;
        let name = stateful_set.name_any();
        if self.direct || memory.password == Password::Unknown {
            memory.password = self.ensure_password(fetched).await?;
        }
        for service in services {
            self.ensure(service, memory).await?;
        }
        match pdb {
            Some(pdb) => drop(self.ensure(pdb, memory).await?),
            None => self.remove::<PodDisruptionBudget>(&name, memory).await?,
        }
        if let Some(block) = self.remove_earlier(stateful_set, fetched, memory).await? {
            return Ok(Some(block));
        }
        let stateful_set = self.with_live_claims(stateful_set).await?;
        let live = self.ensure(&stateful_set, memory).await?;
        let runs = live.is_some_and(|live| runs(&live));
        Ok((!runs).then_some(Block { rule: Rule::RedisMustRun, node: name }))
    }

    async fn note_strangers(
        &mut self,
        DesiredRedis { services, pdb, stateful_set }: &DesiredRedis,
    ) -> Result<(), Error> {
        for service in services {
            self.note_stranger::<Service>(&service.name_any()).await?;
        }
        if let Some(pdb) = pdb {
            self.note_stranger::<PodDisruptionBudget>(&pdb.name_any()).await?;
        }
        self.note_stranger::<StatefulSet>(&stateful_set.name_any()).await
    }

    /// Removes a Redis whose volumes are to be of another class: it was switched off and on again, and is to begin empty.
    /// Claims can not change their class, and the next Redis would take over those that are still there. Returns what is
    /// waited for.
    async fn remove_earlier(
        &mut self,
        desired: &StatefulSet,
        fetched: &Fetched,
        memory: &mut Memory,
    ) -> Result<Option<Block>, Error> {
        let name = desired.name_any();
        let block = |node: String| Some(Block { rule: Rule::EarlierRedisMustGo, node });
        match self.look::<StatefulSet>(&name).await? {
            Live::Ours(live) if storage::needs_other_volumes(desired, &live) => {
                self.remove::<StatefulSet>(&name, memory).await?;
                Ok(block(format!("StatefulSet {name}")))
            }
            Live::Absent => {
                let claim = fetched.claim_of_earlier_redis(&self.identity.name);
                Ok(claim.and_then(|claim| block(format!("claim {}", claim.name_any()))))
            }
            Live::Ours(_) | Live::Foreign(_) => Ok(None),
        }
    }

    /// Makes the Secret with the password, if there is none of its name. Which it is can not be asked, as the operator may
    /// not read it; one that is there is used as it is. Where the operator may not even make Secrets, somebody else does.
    async fn ensure_password(&mut self, fetched: &Fetched) -> Result<Password, Error> {
        let secret = managed_redis::secret(self.identity);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        if !fetched.redis.is_empty() {
            let dry_run = PostParams { dry_run: true, ..params.clone() };
            if let Some(password) = self.create_secret(&secret, &dry_run).await? {
                return Ok(password);
            }
            // Somebody deleted the one before. Its end comes before the next: an operator that died in between would not
            // know any more that there is a Redis with the older one. All pods of Redis go together: none lets another in by
            // an older password. Those that come in their place wait for the Secret; nodes take up the new password by
            // themselves.
            stop(self.cx, self.identity, &of_earlier_password(fetched)).await?;
        }
        if let Some(password) = self.create_secret(&secret, &params).await? {
            return Ok(password);
        }
        let object = format!("Secret {}", secret.name_any());
        tracing::info!(object, namespace = self.identity.namespace, "created");
        self.applied.writes.push(Write::Created(object));
        Ok(Password::Known)
    }

    /// Asks for a new Secret. What is the case instead, if it is not made.
    async fn create_secret(&self, secret: &Secret, params: &PostParams) -> Result<Option<Password>, Error> {
        let api: Api<Secret> = Api::namespaced(self.cx.shared.client.clone(), &self.identity.namespace);
        match api.create(params, secret).await {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Some(Password::Known)),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Some(Password::NotOurs(status.message))),
            Err(source) => Err(Error::new("create", format!("Secret {}", secret.name_any()), source)),
        }
    }

    /// Deletes a Redis that is no longer wanted, with its volume. Its Secret stays: the operator may not delete any.
    pub(super) async fn remove_redis(&mut self, memory: &mut Memory) -> Result<(), Error> {
        let name = managed_redis::name(&self.identity.name);
        self.remove::<StatefulSet>(&name, memory).await?;
        self.remove::<PodDisruptionBudget>(&name, memory).await?;
        for name in managed_redis::service_names(&self.identity.name) {
            self.remove::<Service>(&name, memory).await?;
        }
        Ok(())
    }
}

fn of_earlier_password(fetched: &Fetched) -> Vec<Replacement> {
    let why = "its password was deleted";
    let replacement = |pod: &Pod| Replacement { name: pod.name_any(), uid: pod.uid().unwrap_or_default(), why };
    fetched.redis.iter().map(|pod| replacement(pod)).collect()
}

/// Whether all that is asked for serves, by the word of the StatefulSet controller about what was last asked.
fn runs(live: &StatefulSet) -> bool {
    let asked = live.spec.replicas;
    live.status.as_ref().is_some_and(|status| {
        status.observed_generation >= live.metadata.generation
            && status.ready_replicas == asked
            && status.updated_replicas == asked
    })
}
