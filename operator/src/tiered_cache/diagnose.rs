//! Pure: what keeps a pod from running, in words that say what to do next.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod, PodCondition};

/// How long a pod may be without a machine or a volume before it is called a trouble: the scheduler's first try often
/// comes before the claim exists.
const PLACEMENT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a pod may be without its container, or its running container not ready, before that is called a trouble and not
/// a start.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Messages of the kubelet can be long; the first part says it.
const WORDS_MAX: usize = 400;

/// What keeps a node from serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The stable word for it.
    pub(super) kind: TroubleKind,
    /// What is wrong and what to do, with names.
    pub(super) message: String,
}

/// The fields of the spec by which a pod's troubles are put right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remedies {
    image: &'static str,
    class: &'static str,
    room: &'static str,
    memory: &'static str,
}

/// Those of a node.
pub(super) const OF_NODES: Remedies = Remedies {
    image: "spec.image or spec.version",
    class: "spec.disk.storageClassName",
    room: "spec.resources",
    memory: "spec.resources.limits.memory",
};
/// Those of the cache's own Redis.
pub(super) const OF_REDIS: Remedies = Remedies {
    image: "spec.redis.managed.image",
    class: "spec.redis.managed.storageClassName",
    room: "spec.redis.managed.memory",
    memory: "spec.redis.managed.memory",
};

/// The kinds of trouble; their names are reasons in conditions and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TroubleKind {
    /// The image can not be pulled, or is not there.
    ImageUnavailable,
    /// The node ends again and again.
    CrashLooping,
    /// The container can not be made.
    ContainerNotCreated,
    /// There is no pod.
    PodNotCreated,
    /// The claim has no volume.
    VolumePending,
    /// No machine takes the pod.
    Unschedulable,
    /// It runs, and is still not ready.
    NotReady,
    /// It does not answer.
    NodeUnreachable,
}

// === impl TroubleKind ===

impl TroubleKind {
    /// The reason in conditions and events.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::ImageUnavailable => "ImageUnavailable",
            Self::CrashLooping => "CrashLooping",
            Self::ContainerNotCreated => "ContainerNotCreated",
            Self::PodNotCreated => "PodNotCreated",
            Self::VolumePending => "VolumePending",
            Self::Unschedulable => "Unschedulable",
            Self::NotReady => "NodeNotReady",
            Self::NodeUnreachable => "NodeUnreachable",
        }
    }

    /// Whether it stays until a person changes something.
    pub(crate) const fn needs_a_person(self) -> bool {
        match self {
            Self::ImageUnavailable
            | Self::CrashLooping
            | Self::ContainerNotCreated
            | Self::PodNotCreated
            | Self::VolumePending
            | Self::Unschedulable => true,
            Self::NotReady | Self::NodeUnreachable => false,
        }
    }
}

/// What keeps the pod from running; `None` while all goes its usual way.
pub(super) fn diagnose(
    pod: &Pod,
    claim: Option<&PersistentVolumeClaim>,
    remedies: &Remedies,
    now: Timestamp,
) -> Option<Trouble> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let contained = || {
        let mut statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
        statuses.find_map(|status| container((name, pod), status, remedies, now))
    };
    placement((name, pod), claim, remedies, now).or_else(contained).or_else(|| mounting(name, pod, now))
}

/// A pod that has a machine and no container waits for what it mounts without a word in its status: a Secret that is not
/// there, a key that the Secret lacks, a volume that another machine still has.
fn mounting(name: &str, pod: &Pod, now: Timestamp) -> Option<Trouble> {
    let scheduled = condition(pod, "PodScheduled")?;
    // Once everything is mounted it is the image that is still being pulled, which may take its time. After a restart of the
    // machine all is mounted anew.
    let mounted = condition(pod, "PodReadyToStartContainers");
    let is_mounted = mounted.is_some_and(|mounted| mounted.status == "True");
    let age = mounted.map_or(Duration::MAX, |mounted| age(mounted, now)).min(age(scheduled, now));
    let mut statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
    let none_is_made = statuses.all(|status| {
        let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("ContainerCreating")
    });
    if scheduled.status != "True" || age < START_PATIENCE || is_mounted || !none_is_made {
        return None;
    }
    let message = format!(
        "the container of {name} is not made, most likely because something that it mounts is missing: {}. `kubectl describe \
         pod {name}` says what; make that, or correct the field of the spec that names it",
        mounts(pod).join(", ")
    );
    Some(Trouble { kind: TroubleKind::ContainerNotCreated, message })
}

/// What the pod's volumes are made from, by kind and name.
fn mounts(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let named = volumes.filter_map(|volume| {
        if let Some(secret) = &volume.secret {
            let keys = secret.items.iter().flatten().map(|item| item.key.as_str()).collect::<Vec<_>>();
            return Some(format!("Secret {} with {}", secret.secret_name.as_deref()?, keys.join(" and ")));
        }
        let claim = volume.persistent_volume_claim.as_ref().map(|claim| format!("claim {}", claim.claim_name));
        claim.or_else(|| Some(format!("ConfigMap {}", volume.config_map.as_ref()?.name)))
    });
    named.collect()
}

/// What to do about a pod that is missing for so long that the StatefulSet can not make it.
pub(super) fn not_created(name: &str, stateful_set: &str, remedies: &Remedies) -> Trouble {
    let message = format!(
        "StatefulSet {stateful_set} does not get {name} made; `kubectl describe statefulset {stateful_set}` says why, such as \
         a quota, a LimitRange or a policy of the namespace. Change that, or ask for less in {}",
        remedies.room
    );
    Trouble { kind: TroubleKind::PodNotCreated, message }
}

fn placement(
    (name, pod): (&str, &Pod),
    claim: Option<&PersistentVolumeClaim>,
    remedies: &Remedies,
    now: Timestamp,
) -> Option<Trouble> {
    let scheduled = condition(pod, "PodScheduled")?;
    if scheduled.status != "False" || age(scheduled, now) < PLACEMENT_PATIENCE {
        return None;
    }
    let said = first_words(scheduled.message.as_deref().unwrap_or("it gave no reason"));
    if let Some(claim) = claim.filter(|claim| phase(claim) == "Pending" && about_volumes(&said)) {
        let claim_name = claim.metadata.name.as_deref().unwrap_or_default();
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
        let class =
            class.map_or_else(|| "the default StorageClass".to_owned(), |class| format!("StorageClass {class:?}"));
        let message = format!(
            "{name} waits for the volume of claim {claim_name}, which {class} has not provided: {said}. If that class \
             does not exist, create it, or create the cache again with another {}; `kubectl describe pvc {claim_name}` \
             says more",
            remedies.class
        );
        return Some(Trouble { kind: TroubleKind::VolumePending, message });
    }
    let message =
        format!("no machine takes {name}: {said}. Free or add capacity, or ask for less in {}", remedies.room);
    Some(Trouble { kind: TroubleKind::Unschedulable, message })
}

fn container(
    (name, pod): (&str, &Pod),
    status: &ContainerStatus,
    remedies: &Remedies,
    now: Timestamp,
) -> Option<Trouble> {
    let state = status.state.as_ref()?;
    let Some(waiting) = &state.waiting else {
        let started = state.running.as_ref()?.started_at.as_ref()?.0;
        let running = Duration::try_from(now.duration_since(started)).unwrap_or_default();
        let ready = condition(pod, "Ready").is_some_and(|ready| ready.status == "True");
        let message = format!("{name} runs but is not ready; `kubectl logs {name}` says what it waits for");
        return (!ready && running >= START_PATIENCE).then_some(Trouble { kind: TroubleKind::NotReady, message });
    };
    let said = waiting.message.as_deref().map(|said| format!(": {}", first_words(said))).unwrap_or_default();
    let (kind, message) = match waiting.reason.as_deref().unwrap_or_default() {
        reason @ ("ImagePullBackOff" | "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName") => (
            TroubleKind::ImageUnavailable,
            // What the kubelet says changes between the pull and the pause after it; the reader needs one sentence.
            format!(
                "{name} can not get image {:?} ({}); correct {}, or make the image available",
                status.image,
                if reason == "ImagePullBackOff" { "ErrImagePull" } else { reason },
                remedies.image
            ),
        ),
        "CrashLoopBackOff" => (TroubleKind::CrashLooping, format!("{name} {}", last_end(status, remedies))),
        reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            (TroubleKind::ContainerNotCreated, format!("the container of {name} can not be started ({reason}){said}"))
        }
        _ => return None,
    };
    Some(Trouble { kind, message })
}

fn last_end(status: &ContainerStatus, remedies: &Remedies) -> String {
    let ended = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let Some(ended) = ended else { return "ends again and again".to_owned() };
    let reason = match ended.reason.as_deref() {
        Some("OOMKilled") => format!(", killed for memory: raise {}", remedies.memory),
        _ => match ended.message.as_deref().map(str::trim) {
            Some(said) if !said.is_empty() => format!(": {}", first_words(said)),
            _ => "; `kubectl logs --previous` says why".to_owned(),
        },
    };
    format!("ends again and again, last with exit code {}{reason}", ended.exit_code)
}

fn condition<'a>(pod: &'a Pod, name: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == name)
}

fn age(condition: &PodCondition, now: Timestamp) -> Duration {
    let since = condition.last_transition_time.as_ref().map_or(now, |time| time.0);
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn about_volumes(said: &str) -> bool {
    let said = said.to_lowercase();
    ["persistentvolume", "storageclass", "volume"].iter().any(|word| said.contains(word))
}

/// The first line, cut to a length that fits beside others in a condition.
pub(super) fn first_words(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default().trim_end_matches('.');
    match line.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiered_cache::testing::{at, from_yaml};

    fn pod(status: &str) -> Pod {
        from_yaml(&format!("{{metadata: {{name: sessions-0}}, status: {status}}}"))
    }

    fn trouble(status: &str) -> Option<Trouble> {
        diagnose(&pod(status), None, &OF_NODES, at(100))
    }

    #[test]
    fn a_missing_image_is_named_in_the_same_words_while_the_kubelet_changes_its_own() {
        let waiting = |reason: &str| {
            trouble(&format!("{{containerStatuses: [{{name: a, image: 'nodes:9', imageID: '', ready: false, restartCount: 0, state: {{waiting: {{reason: {reason}, message: 'Back-off 5s'}}}}}}]}}")).unwrap()
        };
        assert_eq!(waiting("ErrImagePull").kind, TroubleKind::ImageUnavailable);
        assert!(waiting("ErrImagePull").message.contains("\"nodes:9\""));
        assert_eq!(waiting("ErrImagePull"), waiting("ImagePullBackOff"));
        assert!(waiting("ErrImageNeverPull").message.contains("ErrImageNeverPull"));
    }

    #[test]
    fn what_to_do_about_redis_is_said_in_its_own_fields() {
        let status = "{containerStatuses: [{name: a, image: 'redis:9', imageID: '', ready: false, restartCount: 0, state: {waiting: {reason: ErrImagePull}}}]}";
        let found = diagnose(&pod(status), None, &OF_REDIS, at(100)).unwrap();
        assert!(found.message.contains("correct spec.redis.managed.image"), "{}", found.message);
    }

    #[test]
    fn a_crash_loop_tells_the_termination_message() {
        let found = trouble("{containerStatuses: [{name: a, image: i, imageID: '', ready: false, restartCount: 3, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 2, message: 'memory.capacity is 1Ki; at least 1Mi'}}}]}").unwrap();
        assert_eq!(found.kind, TroubleKind::CrashLooping);
        assert!(found.message.contains("exit code 2: memory.capacity is 1Ki; at least 1Mi"), "{}", found.message);
    }

    #[test]
    fn the_scheduler_is_given_a_moment_before_its_words_count() {
        let status = |since: i64| {
            format!(
                "{{conditions: [{{type: PodScheduled, status: 'False', reason: Unschedulable, message: '0/3 nodes are available: 3 Insufficient memory.', lastTransitionTime: '{}'}}]}}",
                at(since)
            )
        };
        assert_eq!(trouble(&status(96)), None);
        let found = trouble(&status(95)).unwrap();
        assert_eq!(found.kind, TroubleKind::Unschedulable);
        assert!(found.message.contains("3 Insufficient memory. Free or add"), "{}", found.message);
    }

    #[test]
    fn a_claim_that_waits_for_a_class_names_both() {
        let status = format!(
            "{{conditions: [{{type: PodScheduled, status: 'False', message: 'pod has unbound immediate PersistentVolumeClaims', lastTransitionTime: '{}'}}]}}",
            at(0)
        );
        let claim: PersistentVolumeClaim =
            from_yaml("{metadata: {name: data-sessions-0}, spec: {storageClassName: fast}, status: {phase: Pending}}");
        let found = diagnose(&pod(&status), Some(&claim), &OF_NODES, at(100)).unwrap();
        assert_eq!(found.kind, TroubleKind::VolumePending);
        assert!(
            found.message.contains("claim data-sessions-0") && found.message.contains("\"fast\""),
            "{}",
            found.message
        );
    }

    #[test]
    fn a_pod_that_can_not_mount_something_names_all_that_it_mounts() {
        let creating = |since: i64, more: &str| {
            let pod: Pod = from_yaml(&format!(
                "{{metadata: {{name: sessions-0}}, spec: {{containers: [], volumes: [{{name: config, configMap: {{name: sessions-config-1}}}}, {{name: users, secret: {{secretName: users, items: [{{key: name, path: a}}, {{key: password, path: b}}]}}}}, {{name: data, persistentVolumeClaim: {{claimName: data-sessions-0}}}}]}}, status: {{conditions: [{{type: PodScheduled, status: 'True', lastTransitionTime: '{}'}}{more}], containerStatuses: [{{name: a, image: i, imageID: '', ready: false, restartCount: 0, state: {{waiting: {{reason: ContainerCreating}}}}}}]}}}}",
                at(since)
            ));
            diagnose(&pod, None, &OF_NODES, at(100))
        };
        assert_eq!(creating(41, ""), None, "it has only just begun");
        let found = creating(40, "").unwrap();
        assert_eq!(found.kind, TroubleKind::ContainerNotCreated);
        let names = "ConfigMap sessions-config-1, Secret users with name and password, claim data-sessions-0. `kubectl describe pod sessions-0`";
        assert!(found.message.contains(names), "{}", found.message);
        let mounted = |status: &str, since: i64| {
            let condition = format!(
                ", {{type: PodReadyToStartContainers, status: '{status}', lastTransitionTime: '{}'}}",
                at(since)
            );
            creating(0, &condition)
        };
        assert_eq!(mounted("True", 0), None, "an image that is pulled for long is no trouble");
        assert_eq!(mounted("False", 40), Some(found));
        assert_eq!(mounted("False", 41), None, "its machine was restarted");
        let silent = trouble(&format!(
            "{{conditions: [{{type: PodScheduled, status: 'True', lastTransitionTime: '{}'}}]}}",
            at(0)
        ));
        assert!(silent.is_some(), "nor has the kubelet said anything");
    }

    #[test]
    fn a_pod_that_starts_is_no_trouble_until_it_takes_too_long() {
        let running = |since: i64| {
            trouble(&format!(
                "{{containerStatuses: [{{name: a, image: i, imageID: '', ready: false, restartCount: 0, state: {{running: {{startedAt: '{}'}}}}}}]}}",
                at(since)
            ))
        };
        assert_eq!(running(41), None);
        assert_eq!(running(40).unwrap().kind, TroubleKind::NotReady);
        assert_eq!(trouble("{phase: Pending}"), None);
    }
}
