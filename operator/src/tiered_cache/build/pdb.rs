//! The disruption budget: drains take one node at a time.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{ValidCache, label_selector, metadata};

/// Builds the budget; none for a cache of one node, where it could only block every drain for ever.
pub(super) fn build(cache: &ValidCache) -> Option<PodDisruptionBudget> {
    let spec = one_at_a_time(label_selector(&cache.identity.name));
    (cache.replicas > 1).then(|| PodDisruptionBudget {
        metadata: metadata(&cache.identity, cache.identity.name.clone()),
        spec: Some(spec),
        ..PodDisruptionBudget::default()
    })
}

/// A budget of one of the pods that are selected.
pub(super) fn one_at_a_time(selector: LabelSelector) -> PodDisruptionBudgetSpec {
    PodDisruptionBudgetSpec {
        max_unavailable: Some(IntOrString::Int(1)),
        selector: Some(selector),
        // A pod that does not work protects nothing: without this it would block drains of its machine.
        unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        ..PodDisruptionBudgetSpec::default()
    }
}
