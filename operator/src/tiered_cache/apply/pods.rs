//! Pods that are to come back from the current template: one is evicted, several are deleted together.

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, EvictParams, Preconditions},
};

use super::{Error, TOO_MANY_REQUESTS};
use crate::tiered_cache::{Context, rollout::Replacement, validate::Identity};

/// Pods deleted at once.
const DELETIONS_MAX: usize = 16;

/// Evicts a pod that is to be replaced; the StatefulSet makes it again from the current template.
///
/// Returns whether the disruption budget allowed it.
///
/// # Errors
/// If the call fails for another reason.
pub(in crate::tiered_cache) async fn replace(
    cx: &Context,
    identity: &Identity,
    pod: &Replacement,
) -> Result<bool, Error> {
    let api: Api<Pod> = Api::namespaced(cx.shared.client.clone(), &identity.namespace);
    let delete_options = Some(DeleteParams::default().preconditions(only(pod)));
    match api.evict(&pod.name, &EvictParams { delete_options, ..EvictParams::default() }).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == TOO_MANY_REQUESTS => Ok(false),
        // Gone, or made anew, since it was looked at: the next pass sees what there is now.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(true),
        Err(source) => Err(Error::new("evict", format!("Pod {}", pod.name), source)),
    }
}

/// Deletes pods of which none may go on beside those that come in their place, all of them together: nodes that follow the
/// log of another Redis, or Redises of an earlier password.
///
/// They are not evicted: a disruption budget, ours or a person's, lets go of one and keeps the others until that one
/// serves again. The budget is there so that enough pods serve; these must not serve any more.
///
/// # Errors
/// The first call that fails. The others are made all the same: each node that stays is one that does not hear of changes.
pub(in crate::tiered_cache) async fn stop(
    cx: &Context,
    identity: &Identity,
    pods: &[Replacement],
) -> Result<(), Error> {
    let deletions = stream::iter(pods.to_vec()).map(|pod| async move { delete(cx, identity, &pod).await });
    deletions.buffered(DELETIONS_MAX).collect::<Vec<_>>().await.into_iter().collect()
}

async fn delete(cx: &Context, identity: &Identity, pod: &Replacement) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(cx.shared.client.clone(), &identity.namespace);
    match api.delete(&pod.name, &DeleteParams::default().preconditions(only(pod))).await {
        Ok(_) => {
            tracing::info!(pod = pod.name, namespace = identity.namespace, why = pod.why, "deleted");
            Ok(())
        }
        // Gone, or made anew, since it was looked at: the next pass sees what there is now.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(source) => Err(Error::new("delete", format!("Pod {}", pod.name), source)),
    }
}

/// This pod, and not its successor.
fn only(pod: &Replacement) -> Preconditions {
    Preconditions { uid: Some(pod.uid.clone()), resource_version: None }
}
