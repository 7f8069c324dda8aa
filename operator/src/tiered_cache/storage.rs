//! Grows volumes: the claim of every node is asked for what `spec.disk.size` asks for, and that of the cache's own Redis
//! for `spec.redis.managed.storage`.
//!
//! The claim template of a StatefulSet can not change. So a StatefulSet keeps the one it was made with, and each claim
//! made from it is grown like any other once it has a volume. Making the StatefulSet anew instead would leave pods without
//! an owner for a moment, and for ever after a crash in that moment.

use std::time::Duration;

use crds::quantity::ByteSize;
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt;

use super::{
    Context, amount,
    apply::{self, Asked},
    build::{managed_redis, pod_name},
    diagnose::first_words,
    events::{self, Tale},
    fetch::Fetched,
    memory::{GrowthRefused, Memory},
    validate::{Identity, RedisSource, ValidCache},
};
use crate::clock;

/// A claim that was refused is asked for again after this: whoever lets its class grow need do nothing else.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The annotation of the StatefulSet of Redis: of which StorageClass its volumes were asked for, empty for the default.
pub(super) const CLASS_ANNOTATION: &str = "tieredcache.io/storage-class";

/// A file system that has not grown for so long waits for its pod to be started anew; kubelets that can grow it meanwhile
/// look every minute or two.
const RESIZE_PATIENCE: Duration = Duration::from_secs(300);

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
    /// Why it has not grown since then, and what to do.
    failure: Option<String>,
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
        let small = too_small(claims_of_nodes(cache, fetched), disk.size, clock::now());
        let known = (&mut memory.growth_refused, &mut growth);
        ask(cx, &cache.identity, (small, disk.size), tales, known).await?;
    }
    if let Some(RedisSource::Managed(redis)) = cache.redis.as_ref().map(|redis| &redis.source) {
        let pods = managed_redis::pod_names(&cache.identity.name, redis.replicas);
        let claims = pods.filter_map(|pod| fetched.claim(&managed_redis::claim_name(&pod)));
        let small = too_small(claims, redis.storage, clock::now());
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
    let mut failed = None;
    for small in all {
        failed = failed.or_else(|| small.failed(size));
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
    growth.refused = growth.refused.take().or(message).or(failed);
    *memory = refused;
    Ok(())
}

/// Whether volumes are asked for of another class than those of the StatefulSet that exists. That they are of another does
/// not say so alone: somebody's policy may put a class of its own in the place of the one that is asked for, then and again.
/// So another one must be asked for than was, or one by name where nobody knows any more what was.
pub(super) fn needs_other_volumes(desired: &StatefulSet, live: &StatefulSet) -> bool {
    let asked = |stateful_set: &StatefulSet| stateful_set.annotations().get(CLASS_ANNOTATION).cloned();
    let asks_again =
        asked(live).map_or_else(|| asked(desired) != Some(String::new()), |was| asked(desired) != Some(was));
    class(live) != class(desired) && asks_again
}

/// The StorageClass of a StatefulSet's volumes; `None` is the cluster's default.
fn class(stateful_set: &StatefulSet) -> Option<&str> {
    let template = stateful_set.spec.volume_claim_templates.as_ref()?.first()?;
    template.spec.as_ref()?.storage_class_name.as_deref()
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
fn too_small<'a>(
    claims: impl Iterator<Item = &'a PersistentVolumeClaim>,
    size: ByteSize,
    now: Timestamp,
) -> Vec<Small> {
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
                failure: failure(claim, now),
            })
        })
        .collect()
}

/// What the storage says about a volume that does not grow though it was asked to.
fn failure(claim: &PersistentVolumeClaim, now: Timestamp) -> Option<String> {
    let conditions = claim.status.as_ref()?.conditions.as_ref()?;
    let told = conditions.iter().filter(|condition| condition.status == "True").find_map(|condition| {
        let since = condition.last_transition_time.as_ref().map_or(now, |time| time.0);
        let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        let way_out = match condition.type_.as_str() {
            "ControllerResizeError" | "NodeResizeError" => "the storage tries again once it can",
            "FileSystemResizePending" if age >= RESIZE_PATIENCE => "start the pod that uses it anew",
            _ => return None,
        };
        let said = first_words(condition.message.as_deref().unwrap_or_default());
        Some(format!("{}: {said}; {way_out}", condition.type_))
    })?;
    Some(format!("{told}, and `kubectl describe pvc {}` says more", claim.name_any()))
}

fn requested(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get(STORAGE)
}

// === impl Small ===

impl Small {
    /// Why it stays smaller though its claim asks for more.
    fn failed(&self, size: ByteSize) -> Option<String> {
        let failure = self.failure.as_ref().filter(|_| self.asked)?;
        Some(format!("{} has {} and does not grow to {size}: {failure}", self.claim, self.has))
    }

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
        testing::{at, cache, from_yaml, settings},
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
        let fetched = Fetched { uid, pods: Vec::new(), redis: Vec::new(), claims, config_maps: Vec::new() };
        let cache = valid(spec);
        let size = cache.disk.as_ref().unwrap().size;
        too_small(claims_of_nodes(&cache, &fetched), size, at(0))
            .into_iter()
            .map(|small| (small.claim, small.asked))
            .collect()
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
    fn what_keeps_a_volume_from_growing_later_is_said_in_the_words_of_the_storage() {
        let failed = |kind: &str, status: &str, since: i64| {
            let claim: PersistentVolumeClaim = from_yaml(&format!(
                "{{metadata: {{name: data-sessions-0}}, spec: {{resources: {{requests: {{storage: 2Gi}}}}}}, status: {{phase: \
                 Bound, capacity: {{storage: 1Gi}}, conditions: [{{type: {kind}, status: '{status}', message: no room left, \
                 lastTransitionTime: '{}'}}]}}}}",
                at(since)
            ));
            let size = ByteSize::mebibytes(2048);
            too_small([&claim].into_iter(), size, at(1000))[0].failed(size)
        };
        for kind in ["ControllerResizeError", "NodeResizeError"] {
            let text = failed(kind, "True", 1000).unwrap();
            assert!(text.starts_with("data-sessions-0 has 1Gi and does not grow to 2Gi: "), "{text}");
            assert!(text.contains("no room left") && text.contains("`kubectl describe pvc data-sessions-0`"), "{text}");
        }
        assert_eq!(failed("ControllerResizeError", "False", 0), None, "that is over");
        assert_eq!(failed("Resizing", "True", 0), None);
        assert_eq!(failed("FileSystemResizePending", "True", 701), None, "every growth comes by there");
        assert!(failed("FileSystemResizePending", "True", 700).unwrap().contains("start the pod"));
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
    fn volumes_of_another_class_are_needed_where_another_is_asked_for() {
        let of = |class: &str| {
            let spec = format!("{{redis: {{mode: Managed, managed: {{{class}}}}}}}");
            build::build(&valid(&spec)).redis.unwrap().stateful_set
        };
        let (usual, fast, slow) = (of(""), of("storageClassName: fast"), of("storageClassName: slow"));
        for (desired, live) in [(&fast, &slow), (&fast, &usual), (&usual, &fast)] {
            assert!(needs_other_volumes(desired, live) && !needs_other_volumes(desired, desired));
        }
        // Whoever deletes what another policy has made of it would delete it again and again.
        let made_of = |mut stateful_set: StatefulSet| {
            let template = stateful_set.spec.volume_claim_templates.as_mut().unwrap();
            template[0].spec.as_mut().unwrap().storage_class_name = Some("policy".to_owned());
            stateful_set
        };
        assert!(
            !needs_other_volumes(&fast, &made_of(fast.clone()))
                && !needs_other_volumes(&usual, &made_of(usual.clone()))
        );
        // Of an operator that did not write it down.
        let unsaid = |mut stateful_set: StatefulSet| {
            stateful_set.metadata.annotations = None;
            stateful_set
        };
        assert!(needs_other_volumes(&slow, &unsaid(fast.clone())) && !needs_other_volumes(&usual, &unsaid(fast)));
    }

    #[test]
    fn a_refusal_names_claim_sizes_and_the_way_out() {
        let small = Small {
            claim: "data-a-0".to_owned(),
            uid: String::new(),
            has: "1Gi".to_owned(),
            asked: false,
            failure: None,
        };
        let text = small.refusal(ByteSize::mebibytes(2048), "no");
        for words in ["data-a-0 can not grow from 1Gi to 2Gi: no.", "allowVolumeExpansion"] {
            assert!(text.contains(words), "{text}");
        }
    }
}
