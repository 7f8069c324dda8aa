//! Three Redises, of which one is the master, with a Sentinel beside each: when the master is gone for five seconds, they
//! make the replica that has most the next one, and nodes ask them who it is.
//!
//! - **Names.** Every pod has a name of its own, so whoever remembers it finds it again at another address, and a Sentinel
//!   that was started anew is no further one. The name stands for the pod's address, and not for one of a Service that
//!   stays: that is refused by the machine itself while it has no pod, the error of a connection that is just being made
//!   waits to be fetched, which Redis never does, and it spins for as long as the connection lives, for ever if the next
//!   attempt succeeds. A pod's last address comes to life no more; where machines refuse it, such an attempt ends in 1 s.
//! - **A master that is cut off** has no replica that answers. It takes no writes then, after three to four seconds, and
//!   says so, upon which nodes do not believe it that they know all changes. Only later do the others elect one.
//! - **Who was the master** is kept on the volumes, in the configurations that Sentinels write, so that all may be
//!   restarted at once.
//! - **Nothing that was acknowledged is served stale** when a replica takes over that lacks it: nodes look for what they
//!   have written and seen, and give up their copies if some of it is not there.

use crds::{
    node_config::{self, RedisKind},
    quantity::ByteSize,
};
use k8s_openapi::{
    api::{
        core::v1::{Container, EnvVar, ResourceRequirements, Service, ServiceSpec},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
    },
};

use super::{
    DATA_DIR, Identity, PORT, STARTUP_PERIOD_SECONDS, STARTUP_SECONDS, container_port, pod_names, probe_by,
    redis_metadata, selector_labels, service_port,
};
use crate::tiered_cache::build::{pdb::one_at_a_time, pod_name_env};

/// Two agree against one.
pub(super) const REPLICAS: i32 = 3;
const SENTINEL_PORT: i32 = 26379;
/// What Sentinels call the master; `sentinel.sh` names it.
const MASTER: &str = "main";
/// A master whose replicas have not answered for longer takes no writes. Less than the five seconds after which Sentinels
/// elect another (`sentinel.sh`), also with the second by which Redis may notice it late.
const REPLICA_SILENT_SECONDS: &str = "3";
/// So much may be written while a replica is restarted without its having to be sent everything.
const BACKLOG: ByteSize = ByteSize::mebibytes(16);
/// So much may always wait to be sent to replicas, and else one part in so many of the memory: who has to be sent
/// everything takes the longer the more there is.
const SENDING_MIN: ByteSize = ByteSize::mebibytes(64);
const SENDING_SHARE: u64 = 8;
/// What a Sentinel takes is a few mebibytes.
const SENTINEL_MEMORY: &str = "64Mi";

/// What the process takes to have replicas, beyond what one that is alone takes. Redis does not count it as part of its
/// `maxmemory`.
pub(super) fn replication(memory: ByteSize) -> ByteSize {
    ByteSize(BACKLOG.0 + sending(memory).0)
}

/// What may wait to be sent; all replicas read the same buffer. One that is further behind is cut off and begins again.
fn sending(memory: ByteSize) -> ByteSize {
    ByteSize(SENDING_MIN.0.max(memory.0 / SENDING_SHARE))
}

/// How nodes find the master.
pub(super) fn found(cache_name: &str) -> node_config::Redis {
    node_config::Redis {
        kind: RedisKind::Sentinel,
        endpoints: pod_names(cache_name, REPLICAS).map(|pod| format!("{pod}:{SENTINEL_PORT}")).collect(),
        master_name: Some(MASTER.to_owned()),
        ..node_config::Redis::default()
    }
}

/// One at which whoever has none of their names finds the Sentinels, and one for each pod.
pub(super) fn services(identity: &Identity) -> Vec<Service> {
    // Of the same type as that of one Redis alone, which it may have to become while it exists.
    let all = super::service(identity, vec![service_port("sentinel", SENTINEL_PORT)]);
    [all].into_iter().chain(pod_names(&identity.name, REPLICAS).map(|pod| of_pod(identity, pod))).collect()
}

/// Drains take one at a time: of two there is no majority left of three, and the last one takes no writes.
pub(super) fn pdb(identity: &Identity) -> PodDisruptionBudget {
    let selector = LabelSelector { match_labels: Some(selector_labels(&identity.name)), ..LabelSelector::default() };
    PodDisruptionBudget { metadata: redis_metadata(identity), spec: Some(one_at_a_time(selector)), status: None }
}

fn of_pod(identity: &Identity, pod: String) -> Service {
    let mut selector = selector_labels(&identity.name);
    selector.insert("statefulset.kubernetes.io/pod-name".to_owned(), pod.clone());
    let spec = ServiceSpec {
        cluster_ip: Some("None".to_owned()),
        selector: Some(selector),
        ports: Some(vec![service_port("redis", PORT), service_port("sentinel", SENTINEL_PORT)]),
        // A replica is ready once it has what the master has, and must reach it before.
        publish_not_ready_addresses: Some(true),
        ..ServiceSpec::default()
    };
    let metadata = ObjectMeta { name: Some(pod), ..redis_metadata(identity) };
    Service { metadata, spec: Some(spec), ..Service::default() }
}

/// A Redis that is made like one that is alone, as one of three, and the Sentinel beside it.
pub(super) fn containers(cache_name: &str, memory: ByteSize, alone: Container) -> Vec<Container> {
    let mut env = alone.env.clone().unwrap_or_default();
    let first = pod_names(cache_name, 1).next();
    env.push(pod_name_env("POD_NAME"));
    env.push(EnvVar { name: "FIRST_POD".to_owned(), value: first, value_from: None });
    let sentinel = sentinel(&alone, env.clone());
    // A replica that does not have yet what the master has is not ready: none other is to be stopped meanwhile.
    let is_whole =
        "case \"$(redis-cli -e info replication)\" in *role:master*|*master_link_status:up*) ;; *) exit 1;; esac";
    let redis = Container {
        command: Some(shell(concat!(include_str!("names.sh"), include_str!("redis.sh")))),
        args: Some([alone.args.clone().unwrap_or_default(), arguments(memory)].concat()),
        env: Some(env),
        readiness_probe: Some(probe_by(&["sh", "-c", is_whole], 5, 2)),
        ..alone
    };
    vec![redis, sentinel]
}

/// A script that is given the container's arguments as its own.
fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script, "sh"].map(str::to_owned).to_vec()
}

fn arguments(memory: ByteSize) -> Vec<String> {
    let auth = format!("{DATA_DIR}/auth.conf");
    let (backlog, sending) = (BACKLOG.0.to_string(), format!("replica {0} {0} 0", sending(memory).0));
    let settings = [
        ("--include", auth.as_str()),
        ("--min-replicas-to-write", "1"),
        ("--min-replicas-max-lag", REPLICA_SILENT_SECONDS),
        ("--repl-diskless-sync-delay", "0"),
        ("--repl-backlog-size", &backlog),
        ("--client-output-buffer-limit", &sending),
    ];
    settings.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect()
}

fn sentinel(redis: &Container, env: Vec<EnvVar>) -> Container {
    let port = SENTINEL_PORT.to_string();
    let args = ["--sentinel", "--port", &port, "--dir", DATA_DIR].map(str::to_owned).to_vec();
    let ask = |what: &[&str], period, failures| {
        Some(probe_by(&[&["redis-cli", "-e", "-p", &port], what].concat(), period, failures))
    };
    let data = redis.volume_mounts.iter().flatten().filter(|mount| mount.mount_path == DATA_DIR).cloned();
    let amount = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    Container {
        name: "sentinel".to_owned(),
        image: redis.image.clone(),
        image_pull_policy: redis.image_pull_policy.clone(),
        command: Some(shell(concat!(include_str!("names.sh"), include_str!("sentinel.sh")))),
        args: Some(args),
        env: Some(env),
        ports: Some(vec![container_port("sentinel", SENTINEL_PORT)]),
        startup_probe: ask(
            &["sentinel", "flushconfig"],
            STARTUP_PERIOD_SECONDS,
            STARTUP_SECONDS / STARTUP_PERIOD_SECONDS,
        ),
        readiness_probe: ask(&["ping"], 5, 2),
        liveness_probe: ask(&["ping"], 10, 6),
        resources: Some(ResourceRequirements {
            requests: Some([amount("memory", SENTINEL_MEMORY), amount("cpu", "20m")].into()),
            limits: Some([amount("memory", SENTINEL_MEMORY)].into()),
            ..ResourceRequirements::default()
        }),
        security_context: redis.security_context.clone(),
        termination_message_policy: redis.termination_message_policy.clone(),
        volume_mounts: Some(data.collect()),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::tiered_cache::{
        build::{Desired, build},
        testing::{cache, settings},
        validate::validate,
    };

    fn desired() -> Desired {
        build(&validate(&cache("{redis: {mode: Managed, managed: {replicas: 3}}}"), &settings()).unwrap())
    }

    fn redis() -> Value {
        json!(desired().redis.unwrap().stateful_set)
    }

    #[test]
    fn nodes_ask_the_sentinels_beside_every_redis_for_the_master() {
        let file = &desired().config_map.data.unwrap()["config.yaml"];
        let redis = serde_saphyr::from_str::<crds::node_config::NodeConfig>(file).unwrap().redis;
        assert_eq!(redis.kind, crds::node_config::RedisKind::Sentinel);
        assert_eq!(redis.master_name.as_deref(), Some("main"));
        let names = ["sessions-redis-0:26379", "sessions-redis-1:26379", "sessions-redis-2:26379"];
        assert_eq!(redis.endpoints, names);
        assert!(redis.password_file.is_some());
    }

    #[test]
    fn every_pod_is_found_by_a_name_of_its_own_before_it_is_ready() {
        let services = json!(desired().redis.unwrap().services);
        let named = |name: &str| {
            services.as_array().unwrap().iter().find(|service| service["metadata"]["name"] == name).unwrap()["spec"]
                .clone()
        };
        let all = named("sessions-redis");
        assert_eq!((&all["type"], &all["ports"][0]["port"]), (&json!("ClusterIP"), &json!(26379)));
        for pod in ["sessions-redis-0", "sessions-redis-1", "sessions-redis-2"] {
            let spec = named(pod);
            assert_eq!(spec["selector"]["statefulset.kubernetes.io/pod-name"], pod);
            assert_eq!(spec["publishNotReadyAddresses"], true);
            assert_eq!(spec["clusterIP"], "None", "nobody is to be refused by an address without a pod");
            let ports: Vec<_> = spec["ports"].as_array().unwrap().iter().map(|port| port["port"].clone()).collect();
            assert_eq!(ports, [6379, 26379]);
        }
    }

    #[test]
    fn a_master_that_is_cut_off_takes_no_writes_before_another_is_elected() {
        let set = redis();
        assert_eq!(set["spec"]["replicas"], 3);
        let containers = set["spec"]["template"]["spec"]["containers"].as_array().unwrap().clone();
        let args: Vec<&str> =
            containers[0]["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let value = |name: &str| args[args.iter().position(|word| *word == name).unwrap() + 1];
        assert_eq!(value("--min-replicas-to-write"), "1");
        let silent: u64 = value("--min-replicas-max-lag").parse().unwrap();
        let elected = include_str!("sentinel.sh").split("down-after-milliseconds main ").nth(1).unwrap();
        let elected: u64 = elected.split('\'').next().unwrap().parse().unwrap();
        // A second more until Redis has counted it as silent, and another until it looks.
        assert!((silent + 2) * 1000 <= elected, "{silent} s, {elected} ms");
        assert_eq!(value("--maxmemory-policy"), "volatile-lru");
    }

    #[test]
    fn drains_take_one_of_three_and_what_replicas_are_sent_has_room() {
        let redis = desired().redis.unwrap();
        let budget = json!(redis.pdb.unwrap());
        assert_eq!(budget["metadata"]["name"], "sessions-redis");
        assert_eq!(budget["spec"]["maxUnavailable"], 1);
        assert_eq!(budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"], "tieredcache-redis");
        let container = json!(redis.stateful_set)["spec"]["template"]["spec"]["containers"][0].clone();
        // Half as much again as 256Mi, 64Mi, 16Mi of backlog and 64Mi on the way to replicas.
        assert_eq!(container["resources"]["limits"], json!({"memory": "528Mi"}));
        let args = container["args"].as_array().unwrap();
        assert!(args.contains(&json!("replica 67108864 67108864 0")), "{args:?}");
    }

    #[test]
    fn no_password_is_among_the_arguments() {
        for container in redis()["spec"]["template"]["spec"]["containers"].as_array().unwrap() {
            assert!(!container["args"].to_string().contains("REDISCLI_AUTH"), "{container}");
            let env = container["env"].as_array().unwrap();
            assert!(env.iter().all(|env| env["name"] != "REDISCLI_AUTH" || env.get("value").is_none()), "{env:?}");
        }
    }
}
