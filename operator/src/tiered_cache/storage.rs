//! Grows volumes: the claim of every node is asked for what `spec.disk.size` asks for, and that of the cache's own Redis
//! for `spec.redis.managed.storage`.
//!
//! The claim template of a StatefulSet can not change. So a StatefulSet keeps the one it was made with, and each claim
//! made from it is grown like any other once it has a volume. Making the StatefulSet anew instead would leave pods without
//! an owner for a moment, and for ever after a crash in that moment.

use std::time::Duration;

use crds::quantity::ByteSize;
use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt;

use super::{
    Context, amount,
    apply::{self, Asked},
    build::{managed_redis, pod_name},
    events::{self, Tale},
    fetch::Fetched,
    memory::{GrowthRefused, Memory},
    validate::{Identity, RedisSource, ValidCache},
};
use crate::clock;

/// A claim that was refused is asked for again after this: whoever lets its class grow need do nothing else.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What the resource of a volume is called in claims.
const STORAGE: &str = "storage";

/// What becomes of the volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Growth {
    /// Claims that were asked for and whose volumes are still smaller, in words.
    pub(super) growing: Vec<String>,
    /// Why volumes stay smaller than is asked for, and what to do.
    pub(super) refused: Option<String>,
}

/// A volume that is smaller than is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Small {
    claim: String,
    uid: String,
    has: String,
    /// Whether its claim has been changed already.
    asked: bool,
}

/// Asks for what is still to be asked for, and says how far the volumes are.
///
/// # Errors
/// At the first call that fails for another reason than a refusal.
pub(super) async fn grow(
    cx: &Context,
    (cache, fetched): (&ValidCache, &Fetched),
    tales: &mut Vec<Tale>,
    memory: &mut Memory,
) -> Result<Growth, apply::Error> {
    let mut growth = Growth::default();
    if let Some(disk) = &cache.disk {
        let small = too_small(claims_of_nodes(cache, fetched), disk.size);
        let known = (&mut memory.growth_refused, &mut growth);
        ask(cx, &cache.identity, (small, disk.size), tales, known).await?;
    }
    if let Some(RedisSource::Managed(redis)) = cache.redis.as_ref().map(|redis| &redis.source) {
        let claim = fetched.claim(&managed_redis::claim_name(&cache.identity.name));
        let small = too_small(claim.into_iter(), redis.storage);
        let known = (&mut memory.redis_growth_refused, &mut growth);
        ask(cx, &cache.identity, (small, redis.storage), tales, known).await?;
    }
    Ok(growth)
}

/// Asks for volumes of one size.
async fn ask(
    cx: &Context,
    identity: &Identity,
    (all, size): (Vec<Small>, ByteSize),
    tales: &mut Vec<Tale>,
    (memory, growth): (&mut Option<GrowthRefused>, &mut Growth),
) -> Result<(), apply::Error> {
    let now = clock::monotonic();
    let mut refused =
        memory.take().filter(|refused| refused.size == size && now.duration_since(refused.at) < ASK_AGAIN);
    for small in all {
        if !small.asked {
            if refused.is_some() {
                continue;
            }
            match apply::grow(cx, identity, (&small.claim, &small.uid), size).await? {
                Asked::Accepted => tales.push(events::of_growth(&small.claim, &small.has, size)),
                // Gone or made anew since it was looked at: the next pass sees what there is now.
                Asked::Gone => continue,
                Asked::Refused(said) => {
                    refused = Some(GrowthRefused { at: now, size, message: small.refusal(size, &said) });
                    continue;
                }
            }
        }
        growth.growing.push(format!("{} has {} of {size}", small.claim, small.has));
    }
    let message = refused.as_ref().map(|refused| refused.message.clone());
    growth.refused = growth.refused.take().or(message);
    *memory = refused;
    Ok(())
}

/// The StatefulSet with the claim sizes of the one that exists.
pub(super) fn keep_claim_sizes(desired: &mut StatefulSet, live: &StatefulSet) {
    let lives = live.spec.volume_claim_templates.iter().flatten();
    for (template, live) in desired.spec.volume_claim_templates.iter_mut().flatten().zip(lives) {
        let requests = template.spec.as_mut().and_then(|spec| spec.resources.as_mut()?.requests.as_mut());
        if let (Some(requests), Some(size)) = (requests, requested(live)) {
            requests.insert(STORAGE.to_owned(), size.clone());
        }
    }
}

fn claims_of_nodes<'a>(cache: &'a ValidCache, fetched: &'a Fetched) -> impl Iterator<Item = &'a PersistentVolumeClaim> {
    (0..cache.replicas).filter_map(|ordinal| fetched.claim_of(&pod_name(&cache.identity.name, ordinal)))
}

/// The volumes that are smaller than `size`, in the order of their claims. A claim without a volume can not be changed, and
/// one that no pod uses has time until one does.
fn too_small<'a>(claims: impl Iterator<Item = &'a PersistentVolumeClaim>, size: ByteSize) -> Vec<Small> {
    let bound = claims.filter(|claim| {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Bound") && claim.metadata.deletion_timestamp.is_none()
    });
    let below = |amount: Option<&Quantity>| {
        amount.and_then(|amount| amount::milli(&amount.0)).is_some_and(|amount| amount < i128::from(size.0) * 1000)
    };
    bound
        .filter_map(|claim| {
            let has = claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get(STORAGE));
            let (asked, has) = (requested(claim), has.or_else(|| requested(claim)));
            (below(asked) || below(has)).then(|| Small {
                claim: claim.name_any(),
                uid: claim.uid().unwrap_or_default(),
                has: has.map(|has| has.0.clone()).unwrap_or_default(),
                asked: !below(asked),
            })
        })
        .collect()
}

fn requested(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get(STORAGE)
}

// === impl Small ===

impl Small {
    fn refusal(&self, size: ByteSize, said: &str) -> String {
        format!(
            "{} can not grow from {} to {size}: {said}. Let its StorageClass grow volumes (allowVolumeExpansion), or \
             create another cache with larger volumes and move the clients there",
            self.claim, self.has
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tiered_cache::{
        build,
        testing::{cache, from_yaml, settings},
        validate::validate,
    };

    fn valid(spec: &str) -> ValidCache {
        validate(&cache(spec), &settings()).unwrap()
    }

    fn claim(ordinal: i32, phase: &str, asked: &str, has: &str) -> Arc<PersistentVolumeClaim> {
        let claim: PersistentVolumeClaim = from_yaml(&format!(
            "{{metadata: {{name: data-sessions-{ordinal}, uid: uid-{ordinal}}}, spec: {{resources: {{requests: {{storage: \
             {asked}}}}}}}, status: {{phase: {phase}, capacity: {{storage: {has}}}}}}}"
        ));
        Arc::new(claim)
    }

    fn small(spec: &str, claims: Vec<Arc<PersistentVolumeClaim>>) -> Vec<(String, bool)> {
        let uid = "cache-uid".to_owned();
        let fetched = Fetched { uid, pods: Vec::new(), redis: None, claims, config_maps: Vec::new() };
        let cache = valid(spec);
        let size = cache.disk.as_ref().unwrap().size;
        too_small(claims_of_nodes(&cache, &fetched), size).into_iter().map(|small| (small.claim, small.asked)).collect()
    }

    #[test]
    fn a_volume_below_the_size_is_asked_for_and_then_waited_for() {
        let claims =
            vec![claim(0, "Bound", "1Gi", "1Gi"), claim(1, "Bound", "2Gi", "1Gi"), claim(2, "Bound", "2Gi", "2Gi")];
        let expected = [("data-sessions-0".to_owned(), false), ("data-sessions-1".to_owned(), true)];
        assert_eq!(small("{replicas: 3, disk: {size: 2Gi}}", claims), expected);
    }

    #[test]
    fn larger_unbound_and_unused_claims_are_left_alone() {
        let claims =
            vec![claim(0, "Bound", "5Gi", "5Gi"), claim(1, "Pending", "1Gi", "0"), claim(2, "Bound", "1Gi", "1Gi")];
        assert_eq!(small("{replicas: 2, disk: {size: 2Gi}}", claims), []);
    }

    #[test]
    fn a_stateful_set_keeps_the_claim_sizes_it_was_made_with() {
        let live = build::build(&valid("{disk: {size: 1Gi}}")).stateful_set;
        let mut desired = build::build(&valid("{disk: {size: 2Gi}}")).stateful_set;
        assert_ne!(desired, live);
        keep_claim_sizes(&mut desired, &live);
        assert_eq!(desired, live);
    }

    #[test]
    fn a_refusal_names_claim_sizes_and_the_way_out() {
        let small = Small { claim: "data-a-0".to_owned(), uid: String::new(), has: "1Gi".to_owned(), asked: false };
        let text = small.refusal(ByteSize::mebibytes(2048), "no");
        for words in ["data-a-0 can not grow from 1Gi to 2Gi: no.", "allowVolumeExpansion"] {
            assert!(text.contains(words), "{text}");
        }
    }
}
