//! Writes what a pass has found: one status patch and a few events, and nothing when nothing has changed.

use crds::tiered_cache::{TieredCache, TieredCacheStatus};
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::json;

use super::{
    Context, Error, Watched,
    apply::FIELD_MANAGER,
    events::{self, Tale},
    memory::Memory,
    status::{View, compose},
};
use crate::clock;

/// Writes the status that the view comes to, then tells what happened.
///
/// # Errors
/// If the status can not be written. Events that can not be written are logged and let go: they are news, not state.
pub(super) async fn report(
    cx: &Context,
    cache: &Watched,
    view: &View<'_>,
    mut tales: Vec<Tale>,
    memory: &mut Memory,
) -> Result<(), Error> {
    let before = last_status(cache, memory);
    let after = compose(view, &before, clock::now());
    if after != before {
        let version = write(cx, view, &after).await?;
        tales.extend(events::of_change(&before, &after));
        memory.status = version.map(|version| (version, after));
    }
    tales.extend(events::of_nodes(view.replicas, view.nodes, view.absent, &mut memory.troubles));
    for tale in tales {
        tell(cx, cache, &tale).await;
    }
    Ok(())
}

/// The status that the API server has: as the watch shows it, or as we wrote it if the watch does not show that yet.
fn last_status(cache: &Watched, memory: &Memory) -> TieredCacheStatus {
    let shown = cache.0.as_ref().ok().and_then(|cache| cache.status.clone()).unwrap_or_default();
    let shown_version = cache.resource_version().and_then(|version| version.parse::<u64>().ok());
    match &memory.status {
        Some((version, written)) if cache.0.is_err() || shown_version.is_none_or(|shown| shown < *version) => {
            written.clone()
        }
        _ => shown,
    }
}

/// Writes the status; returns the version it got. As untyped data, because also an object that can not be read must be
/// told so.
async fn write(cx: &Context, view: &View<'_>, status: &TieredCacheStatus) -> Result<Option<u64>, Error> {
    let identity = view.identity;
    let kind = ApiResource::erase::<TieredCache>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(cx.shared.client.clone(), &identity.namespace, &kind);
    let patch = json!({
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        // With the UID, the status of a deleted cache is never written to its successor.
        "metadata": {"name": identity.name, "uid": identity.uid},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch_status(&identity.name, &params, &Patch::Apply(&patch)).await {
        Ok(written) => Ok(written.resource_version().and_then(|version| version.parse().ok())),
        // Deleted, or made anew, in the meantime.
        Err(kube::Error::Api(answer)) if answer.is_not_found() || answer.is_conflict() => Ok(None),
        Err(source) => Err(Error::Status(Box::new(source))),
    }
}

async fn tell(cx: &Context, cache: &Watched, tale: &Tale) {
    let (reason, note) = (tale.reason.label(), &tale.note);
    tracing::info!(name = cache.name_any(), namespace = cache.namespace(), reason, note, "event");
    match cx.shared.recorder.publish(&tale.event(), &cache.object_ref(&())).await {
        Ok(()) => cx.shared.metrics.event(reason),
        Err(error) => tracing::warn!(%error, reason, "could not write an event"),
    }
}
