//! What belongs to a Redis of the cache's own: made before the nodes that use it, removed after them.

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Secret, Service},
};
use kube::{Api, ResourceExt, api::PostParams};

use super::{Error, FIELD_MANAGER, Pass, Write, evict};
use crate::tiered_cache::{
    build::managed_redis::{self, DesiredRedis},
    fetch::Fetched,
    memory::{Memory, Password},
};

// === impl Pass ===

impl Pass<'_> {
    /// Makes the cache's own Redis.
    pub(super) async fn ensure_redis(
        &mut self,
        DesiredRedis { service, stateful_set }: &DesiredRedis,
        fetched: &Fetched,
        memory: &mut Memory,
    ) -> Result<(), Error> {
        if self.direct || memory.password == Password::Unknown {
            memory.password = self.ensure_password(fetched).await?;
        }
        self.ensure(service, memory).await?;
        let stateful_set = self.with_live_claims(stateful_set).await?;
        self.ensure(&stateful_set, memory).await?;
        Ok(())
    }

    /// Makes the Secret with the password, if there is none of its name. Which it is can not be asked, as the operator may
    /// not read it; one that is there is used as it is. Where the operator may not even make Secrets, somebody else does.
    async fn ensure_password(&mut self, fetched: &Fetched) -> Result<Password, Error> {
        let secret = managed_redis::secret(self.identity);
        let name = secret.name_any();
        let object = format!("Secret {name}");
        let api: Api<Secret> = Api::namespaced(self.cx.shared.client.clone(), &self.identity.namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match api.create(&params, &secret).await {
            Ok(_) => {
                tracing::info!(object, namespace = self.identity.namespace, "created");
                self.applied.writes.push(Write::Created(object));
            }
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(Password::Known),
            Err(kube::Error::Api(status)) if status.code == 403 => return Ok(Password::NotOurs(status.message)),
            Err(source) => return Err(Error::new("create", object, source)),
        }
        // Somebody deleted the one before. Nodes take up the new password by themselves; Redis does at its start.
        if let Some(pod) = &fetched.redis {
            let uid = pod.uid().unwrap_or_default();
            evict(self.cx, self.identity, (&pod.name_any(), &uid)).await?;
        }
        Ok(Password::Known)
    }

    /// Deletes a Redis that is no longer wanted, with its volume. Its Secret stays: the operator may not delete any.
    pub(super) async fn remove_redis(&mut self, memory: &mut Memory) -> Result<(), Error> {
        let name = managed_redis::name(&self.identity.name);
        self.remove::<StatefulSet>(&name, memory).await?;
        self.remove::<Service>(&name, memory).await
    }
}
