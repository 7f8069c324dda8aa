//! A Redis of the cache's own: one pod with a volume, behind a Service, with a password that only pods read; or three of
//! them ([`replicated`]).
//!
//! - **What it keeps.** Its append-only file is written before a reply is sent, so a killed or moved Redis comes back with
//!   all it acknowledged. It is synced once a second: a sync for each change would cost every call the time of the medium,
//!   and what a crash of the *machine* loses is a gap that nodes notice and answer by trusting nothing older.
//! - **What gives way.** `volatile-lru` evicts only keys with a time to live, which are the entries, and of these the ones
//!   not used for longest; log, removals and floor have none and stay. `volatile-ttl` would evict first what is about to
//!   expire, whether or not anybody reads it.
//! - **Who replaces it.** Its StatefulSet does: a change of it restarts one pod, and the nodes go on without it meanwhile.

mod replicated;

use std::collections::BTreeMap;

use crds::{node_config, quantity::ByteSize, tiered_cache::ManagedRedis};
use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
        },
        core::v1::{
            Container, EnvVar, EnvVarSource, ExecAction, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, Secret,
            SecretKeySelector, Service, ServicePort, ServiceSpec, VolumeMount,
        },
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{
    INSTANCE_LABEL, Identity, ValidCache, claim_template, container_port, container_security, metadata, pod_security,
    pull_policy, secret::mounted, service_account, spread,
};
use crate::tiered_cache::{storage::CLASS_ANNOTATION, validate::RedisSource};

/// Key of the Secret with the password.
pub(in crate::tiered_cache) const PASSWORD_KEY: &str = "password";
/// Where Redis listens.
const PORT: i32 = 6379;
/// Key of the Secret with the users as Redis reads them, and the name of the file.
pub(in crate::tiered_cache) const USERS: &str = "users.acl";
const SECRET_VOLUME: &str = "secret";
const SECRET_DIR: &str = "/etc/tieredcache-redis";
const DATA_VOLUME: &str = "data";
const DATA_DIR: &str = "/data";
/// Letters of a password, four bits each.
const PASSWORD_BYTES: usize = 32;
/// What the process takes beyond `memory`: program, connections, and half of `memory` for what the allocator loses and
/// for pages that are written while the file is being written anew.
const PROCESS: ByteSize = ByteSize::mebibytes(64);
/// How long Redis may take to read its file at the start.
const STARTUP_SECONDS: i32 = 600;
const STARTUP_PERIOD_SECONDS: i32 = 2;

/// What is made for a managed Redis, but for its Secret.
#[derive(Clone, Debug)]
pub(in crate::tiered_cache) struct DesiredRedis {
    pub(in crate::tiered_cache) services: Vec<Service>,
    /// `None` for one alone, which a budget could only block.
    pub(in crate::tiered_cache) pdb: Option<PodDisruptionBudget>,
    pub(in crate::tiered_cache) stateful_set: StatefulSet,
}

/// Name of everything that belongs to the Redis of this cache.
pub(in crate::tiered_cache) fn name(cache_name: &str) -> String {
    format!("{cache_name}-redis")
}

/// Names of its pods, of which the first begins as the master.
pub(in crate::tiered_cache) fn pod_names(cache_name: &str, replicas: i32) -> impl Iterator<Item = String> {
    let name = name(cache_name);
    (0..replicas).map(move |ordinal| format!("{name}-{ordinal}"))
}

/// Name of the claim of the pod with this name.
pub(in crate::tiered_cache) fn claim_name(pod_name: &str) -> String {
    format!("{DATA_VOLUME}-{pod_name}")
}

/// Names of all claims that any Redis of this cache could have.
pub(in crate::tiered_cache) fn claim_names(cache_name: &str) -> impl Iterator<Item = String> {
    pod_names(cache_name, replicated::REPLICAS).map(|pod| claim_name(&pod))
}

/// Names of all Services that any Redis of this cache could have.
pub(in crate::tiered_cache) fn service_names(cache_name: &str) -> impl Iterator<Item = String> {
    [name(cache_name)].into_iter().chain(pod_names(cache_name, replicated::REPLICAS))
}

/// How nodes find it.
pub(super) fn found(cache_name: &str, redis: &ManagedRedis) -> node_config::Redis {
    if is_replicated(redis) {
        return replicated::found(cache_name);
    }
    node_config::Redis { endpoints: vec![format!("{}:{PORT}", name(cache_name))], ..node_config::Redis::default() }
}

fn is_replicated(redis: &ManagedRedis) -> bool {
    redis.replicas > 1
}

/// A Secret with a new password, which nobody but pods ever reads: the operator may create Secrets and do nothing else
/// with them.
pub(in crate::tiered_cache) fn secret(identity: &Identity) -> Secret {
    let password: String = rand::random::<[u8; PASSWORD_BYTES]>().iter().map(|byte| format!("{byte:02x}")).collect();
    let users = format!("user default on >{password} ~* &* +@all\n");
    Secret {
        metadata: redis_metadata(identity),
        immutable: None,
        string_data: Some(BTreeMap::from([(PASSWORD_KEY.to_owned(), password), (USERS.to_owned(), users)])),
        ..Secret::default()
    }
}

/// Builds Services, budget and StatefulSet; none unless the cache has a Redis of its own.
pub(super) fn build(cache: &ValidCache) -> Option<DesiredRedis> {
    let RedisSource::Managed(redis) = &cache.redis.as_ref()?.source else { return None };
    let stateful_set = stateful_set(cache, redis);
    let identity = &cache.identity;
    Some(if is_replicated(redis) {
        let pdb = Some(replicated::pdb(identity));
        DesiredRedis { services: replicated::services(identity), pdb, stateful_set }
    } else {
        let services = vec![service(identity, vec![service_port("redis", PORT)])];
        DesiredRedis { services, pdb: None, stateful_set }
    })
}

fn service(identity: &Identity, ports: Vec<ServicePort>) -> Service {
    let spec = ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        selector: Some(selector_labels(&identity.name)),
        ports: Some(ports),
        ..ServiceSpec::default()
    };
    Service { metadata: redis_metadata(identity), spec: Some(spec), ..Service::default() }
}

fn service_port(name: &str, port: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

fn stateful_set(cache: &ValidCache, redis: &ManagedRedis) -> StatefulSet {
    let name = &cache.identity.name;
    let spec = StatefulSetSpec {
        replicas: Some(redis.replicas),
        service_name: Some(self::name(name)),
        selector: LabelSelector { match_labels: Some(selector_labels(name)), ..LabelSelector::default() },
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta { labels: Some(labels(name)), ..ObjectMeta::default() }),
            spec: Some(pod(cache, redis)),
        },
        // With the default, OrderedReady, a pod that never became ready would never be replaced by a better one.
        pod_management_policy: Some("Parallel".to_owned()),
        update_strategy: Some(StatefulSetUpdateStrategy {
            type_: Some("RollingUpdate".to_owned()),
            ..StatefulSetUpdateStrategy::default()
        }),
        revision_history_limit: Some(3),
        // A Redis that is switched off must not come back with what was overwritten or removed in the meantime.
        persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some("Delete".to_owned()),
            when_scaled: Some("Retain".to_owned()),
        }),
        volume_claim_templates: Some(vec![claim_template(
            DATA_VOLUME,
            labels(name),
            (redis.storage, redis.storage_class_name.as_ref()),
        )]),
        ..StatefulSetSpec::default()
    };
    let class = redis.storage_class_name.clone().unwrap_or_default();
    let annotations = Some(BTreeMap::from([(CLASS_ANNOTATION.to_owned(), class)]));
    StatefulSet { metadata: ObjectMeta { annotations, ..redis_metadata(&cache.identity) }, spec, status: None }
}

fn pod(cache: &ValidCache, redis: &ManagedRedis) -> PodSpec {
    let users = [(USERS, USERS)].into_iter();
    let (volume, mount) = mounted(SECRET_VOLUME, &name(&cache.identity.name), users, SECRET_DIR);
    let alone = container(cache, redis, mount);
    let (containers, spread) = if is_replicated(redis) {
        let selector =
            LabelSelector { match_labels: Some(selector_labels(&cache.identity.name)), ..LabelSelector::default() };
        (replicated::containers(&cache.identity.name, redis.memory, alone), Some(spread(&selector)))
    } else {
        (vec![alone], None)
    };
    PodSpec {
        service_account_name: Some(service_account::name(&cache.identity.name)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(30),
        security_context: Some(pod_security()),
        topology_spread_constraints: spread,
        containers,
        volumes: Some(vec![volume]),
        ..PodSpec::default()
    }
}

fn container(cache: &ValidCache, redis: &ManagedRedis, secret: VolumeMount) -> Container {
    let password = EnvVarSource {
        secret_key_ref: Some(SecretKeySelector {
            name: name(&cache.identity.name),
            key: PASSWORD_KEY.to_owned(),
            optional: None,
        }),
        ..EnvVarSource::default()
    };
    let data = VolumeMount { name: DATA_VOLUME.to_owned(), mount_path: DATA_DIR.to_owned(), ..VolumeMount::default() };
    let replication = if is_replicated(redis) { replicated::replication(redis.memory).0 } else { 0 };
    let limit = ByteSize(redis.memory.0 + redis.memory.0 / 2 + PROCESS.0 + replication);
    let memory = ("memory".to_owned(), Quantity(limit.to_string()));
    Container {
        name: "redis".to_owned(),
        image: Some(redis.image.clone()),
        image_pull_policy: Some(pull_policy(cache.image_pull_policy)),
        // Named, and not left to the image: entry points of images change users and files, which a pod without rights can
        // not do.
        command: Some(vec!["redis-server".to_owned()]),
        args: Some(arguments(redis)),
        // By which `redis-cli` in the probes says who it is.
        env: Some(vec![EnvVar { name: "REDISCLI_AUTH".to_owned(), value: None, value_from: Some(password) }]),
        ports: Some(vec![container_port("redis", PORT)]),
        startup_probe: Some(probe(STARTUP_PERIOD_SECONDS, STARTUP_SECONDS / STARTUP_PERIOD_SECONDS)),
        readiness_probe: Some(probe(5, 2)),
        // A minute: a large removal or a slow medium may keep Redis from answering for a while, and a restart would make
        // it longer.
        // Any answer is life, also that a replica still reads what the master has sent it: that may take as long as it
        // takes, and a restart would have it sent once more.
        liveness_probe: Some(probe_by(&["redis-cli", "ping"], 10, 6)),
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([memory.clone(), ("cpu".to_owned(), Quantity("100m".to_owned()))])),
            limits: Some(BTreeMap::from([memory])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(container_security()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![data, secret]),
        ..Container::default()
    }
}

fn arguments(redis: &ManagedRedis) -> Vec<String> {
    let users = format!("{SECRET_DIR}/{USERS}");
    let memory = redis.memory.0.to_string();
    let settings = [
        ("--port", "6379"),
        ("--dir", DATA_DIR),
        ("--aclfile", &users),
        ("--appendonly", "yes"),
        ("--appendfsync", "everysec"),
        // The append-only file is all that is needed; snapshots beside it would take the same room again.
        ("--save", ""),
        ("--maxmemory", &memory),
        ("--maxmemory-policy", "volatile-lru"),
    ];
    settings.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect()
}

/// `-e`: an error is a failure, such as that the file is still being read.
fn probe(period_seconds: i32, failures: i32) -> Probe {
    probe_by(&["redis-cli", "-e", "ping"], period_seconds, failures)
}

fn probe_by(command: &[&str], period_seconds: i32, failures: i32) -> Probe {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    Probe {
        exec: Some(ExecAction { command: Some(command) }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// Another name than the nodes have, whose Services and budgets would else take Redis for one of them.
fn selector_labels(cache_name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "tieredcache-redis".to_owned()),
        (INSTANCE_LABEL.to_owned(), cache_name.to_owned()),
    ])
}

fn labels(cache_name: &str) -> BTreeMap<String, String> {
    let mut labels = super::labels(cache_name);
    labels.insert("app.kubernetes.io/component".to_owned(), "redis".to_owned());
    labels.extend(selector_labels(cache_name));
    labels
}

fn redis_metadata(identity: &Identity) -> ObjectMeta {
    ObjectMeta { labels: Some(labels(&identity.name)), ..metadata(identity, name(&identity.name)) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::tiered_cache::{
        build::build,
        testing::{cache, settings},
        validate::{self, ValidCache},
    };

    fn valid(spec: &str) -> ValidCache {
        validate::validate(&cache(spec), &settings()).unwrap()
    }

    fn desired(spec: &str) -> DesiredRedis {
        build(&valid(spec)).redis.unwrap()
    }

    fn container(spec: &str) -> Value {
        json!(desired(spec).stateful_set)["spec"]["template"]["spec"]["containers"][0].clone()
    }

    /// As [`crate::tiered_cache::build`] has it for the nodes.
    #[test]
    fn an_ordinary_redis_is_built_as_ever() {
        let DesiredRedis { services, pdb: _, stateful_set } = desired("{redis: {mode: Managed}}");
        let text = serde_saphyr::to_string(&json!([services[0], stateful_set])).unwrap();
        assert_eq!(services.len(), 1);
        assert_eq!(text, include_str!("managed_redis.yaml"), "managed:\n{text}\nend of managed");
    }

    #[test]
    fn only_a_cache_with_a_redis_of_its_own_has_one() {
        assert!(build(&valid("{}")).redis.is_none());
        assert!(build(&valid("{redis: {mode: External, external: {endpoints: ['a:1']}}}")).redis.is_none());
    }

    #[test]
    fn redis_keeps_log_and_removals_and_writes_everything_down() {
        let args = container("{redis: {mode: Managed, managed: {memory: 100Mi}}}")["args"].clone();
        let args: Vec<&str> = args.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let value = |name: &str| args[args.iter().position(|word| *word == name).unwrap() + 1];
        assert_eq!(value("--maxmemory"), (100 << 20).to_string());
        assert_eq!(value("--maxmemory-policy"), "volatile-lru");
        assert_eq!((value("--appendonly"), value("--appendfsync")), ("yes", "everysec"));
    }

    #[test]
    fn the_pod_may_take_half_as_much_again() {
        let resources = container("{redis: {mode: Managed, managed: {memory: 100Mi}}}")["resources"].clone();
        assert_eq!(resources["limits"], json!({"memory": "214Mi"}));
        assert_eq!(resources["requests"]["memory"], "214Mi");
    }

    #[test]
    fn a_redis_that_is_still_loading_is_alive_and_not_ready() {
        for replicas in [1, 3] {
            let container = container(&format!("{{redis: {{mode: Managed, managed: {{replicas: {replicas}}}}}}}"));
            let fails_at_an_error = |probe: &str| {
                container[probe]["exec"]["command"].to_string().contains("redis-cli -e")
                    || container[probe]["exec"]["command"].as_array().unwrap().contains(&json!("-e"))
            };
            let found = ["livenessProbe", "readinessProbe", "startupProbe"].map(fails_at_an_error);
            assert_eq!(found, [false, true, true], "of {replicas}");
        }
    }

    #[test]
    fn redis_is_never_taken_for_a_node() {
        let pod = desired("{redis: {mode: Managed}}").stateful_set.spec.template.metadata.unwrap().labels.unwrap();
        let nodes = super::super::selector_labels("sessions");
        assert!(nodes.iter().any(|(key, value)| pod.get(key) != Some(value)), "{pod:?}");
        assert_eq!(pod[INSTANCE_LABEL], "sessions");
    }

    #[test]
    fn every_password_is_another_and_stands_in_both_keys() {
        let identity = &valid("{}").identity;
        let made = || secret(identity).string_data.unwrap();
        let (one, other) = (made(), made());
        assert_ne!(one[PASSWORD_KEY], other[PASSWORD_KEY]);
        assert_eq!(one[PASSWORD_KEY].len(), 2 * PASSWORD_BYTES);
        assert_eq!(one[USERS], format!("user default on >{} ~* &* +@all\n", one[PASSWORD_KEY]));
    }

    #[test]
    fn nodes_find_it_and_have_its_password_in_a_file() {
        let desired = build(&valid("{redis: {mode: Managed, timeout: 20ms}}"));
        let file = &desired.config_map.data.unwrap()["config.yaml"];
        let redis = serde_saphyr::from_str::<crds::node_config::NodeConfig>(file).unwrap().redis;
        assert_eq!(redis.mode, crds::node_config::RedisMode::External);
        assert_eq!(
            (redis.endpoints.as_slice(), redis.timeout.to_string()),
            (&["sessions-redis:6379".to_owned()][..], "20ms".to_owned())
        );
        let path = redis.password_file.unwrap();
        let pod = &json!(desired.stateful_set)["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array().unwrap();
        let secret = volumes.iter().find(|volume| volume["name"] == "redis-credentials").unwrap()["secret"].clone();
        assert_eq!((&secret["secretName"], &secret["items"][0]["key"]), (&json!("sessions-redis"), &json!("password")));
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        let folder = mounts.iter().find(|mount| mount["name"] == "redis-credentials").unwrap()["mountPath"].clone();
        assert_eq!(path.to_str(), Some(format!("{}/password", folder.as_str().unwrap()).as_str()));
    }

    #[test]
    fn another_size_or_image_of_redis_restarts_no_node() {
        let revisions =
            |managed: &str| build(&valid(&format!("{{redis: {{mode: Managed, managed: {managed}}}}}"))).revisions;
        assert_eq!(revisions("{}"), revisions("{image: 'redis:8', memory: 512Mi, storage: 2Gi}"));
    }
}
