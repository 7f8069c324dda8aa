//! Pods that a StatefulSet should have, and has not: a quota or a policy of the namespace refuses them, which only the events
//! of the StatefulSet say.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::ResourceExt;
use tokio::time::Instant;

use super::{
    build::pod_name,
    diagnose::{Remedies, Trouble, not_created},
};

/// How long a pod may be missing. One that is replaced is made again within seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Since when pods are missing, by name.
#[derive(Debug, Default)]
pub(super) struct Absences(BTreeMap<String, Instant>);

// === impl Absences ===

impl Absences {
    /// The pods of the StatefulSet that are missing for too long, by name.
    pub(super) fn look(
        &mut self,
        stateful_set: Option<&StatefulSet>,
        pods: &[Arc<Pod>],
        remedies: &Remedies,
        now: Instant,
    ) -> Vec<(String, Trouble)> {
        let stateful_set = stateful_set.filter(|found| found.metadata.deletion_timestamp.is_none());
        let (name, asked) =
            stateful_set.map(|found| (found.name_any(), found.spec.replicas.unwrap_or(1))).unwrap_or_default();
        let names = (0..asked).map(|ordinal| pod_name(&name, ordinal));
        let missing: Vec<String> = names.filter(|name| !pods.iter().any(|pod| pod.name_any() == *name)).collect();
        self.0.retain(|name, _| missing.contains(name));
        let too_long = missing.into_iter().filter(|pod| {
            let since = *self.0.entry(pod.clone()).or_insert(now);
            now.duration_since(since) >= PATIENCE
        });
        too_long.map(|pod| (pod.clone(), not_created(&pod, &name, remedies))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        tiered_cache::{
            diagnose::{OF_NODES, TroubleKind},
            testing::from_yaml,
        },
    };

    fn pod(ordinal: i32) -> Arc<Pod> {
        Arc::new(from_yaml(&format!("{{metadata: {{name: sessions-{ordinal}}}}}")))
    }

    #[test]
    fn a_pod_that_is_missing_for_a_minute_is_a_trouble_and_names_its_stateful_set() {
        let set: StatefulSet =
            from_yaml("{metadata: {name: sessions}, spec: {replicas: 2, selector: {}, serviceName: s, template: {}}}");
        let (mut absences, start) = (Absences::default(), clock::monotonic());
        let mut look = |pods: &[Arc<Pod>], seconds: u64| {
            absences.look(Some(&set), pods, &OF_NODES, start + Duration::from_secs(seconds))
        };
        assert_eq!(look(&[pod(0)], 0), []);
        assert_eq!(look(&[pod(0)], 59), []);
        let found = look(&[pod(0)], 60);
        assert_eq!(found.len(), 1);
        let (name, trouble) = &found[0];
        assert_eq!((name.as_str(), trouble.kind), ("sessions-1", TroubleKind::PodNotCreated));
        assert!(trouble.message.contains("`kubectl describe statefulset sessions`"), "{}", trouble.message);
        // It came, and was deleted again.
        assert_eq!(look(&[pod(0), pod(1)], 61), []);
        assert_eq!(look(&[pod(0)], 62), []);
    }

    #[test]
    fn nothing_is_missing_where_nothing_asks_for_it() {
        let mut absences = Absences::default();
        assert_eq!(absences.look(None, &[], &OF_NODES, clock::monotonic()), []);
    }
}
