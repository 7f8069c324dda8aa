use crds::node_config::NodeConfig;
use serde_json::Value;

use super::*;
use crate::tiered_cache::{
    testing::{cache, settings},
    validate::validate,
};

fn desired(spec: &str) -> Desired {
    build(&validate(&cache(spec), &settings()).unwrap())
}

fn stateful_set(spec: &str) -> Value {
    serde_json::to_value(desired(spec).stateful_set).unwrap()
}

fn config(spec: &str) -> NodeConfig {
    let data = desired(spec).config_map.data.unwrap();
    serde_saphyr::from_str(&data["config.yaml"]).unwrap()
}

/// Every object of an ordinary cache, field by field. When this fails, an upgrade of the operator would change running
/// fleets: that must be meant, and be in the release notes.
#[test]
fn an_ordinary_cache_is_built_as_ever() {
    let Desired { service_account, config_map, headless_service, client_service, pdb, redis, stateful_set, revisions } =
        desired("{replicas: 3, version: 0.1.0}");
    assert!(redis.is_none());
    let objects = serde_json::json!([service_account, config_map, headless_service, client_service, pdb, stateful_set]);
    let text = serde_saphyr::to_string(&objects).unwrap();
    let golden = include_str!("golden.yaml");
    assert_eq!(text, golden, "built:\n{text}\nrevisions {revisions:?}");
}

#[test]
fn the_same_cache_gives_the_same_objects_and_another_gives_another_revision() {
    assert_eq!(desired("{}").revisions, desired("{}").revisions);
    assert_ne!(desired("{}").revisions.config, desired("{memory: {policy: TinyLfu}}").revisions.config);
    assert_ne!(desired("{}").revisions.template, desired("{memory: {policy: TinyLfu}}").revisions.template);
    assert_eq!(desired("{}").revisions.config, desired("{image: other:1}").revisions.config);
    assert_ne!(desired("{}").revisions.template, desired("{image: other:1}").revisions.template);
}

#[test]
fn scaling_and_retention_restart_nothing() {
    let one = desired("{}");
    assert_eq!(one.revisions, desired("{replicas: 9}").revisions);
    assert_eq!(one.revisions, desired("{disk: {retention: {whenScaled: Retain, whenDeleted: Delete}}}").revisions);
}

#[test]
fn the_node_is_told_its_cache_and_revision() {
    let config = config("{memory: {capacity: 512Mi, maxTtl: 30m}}");
    assert_eq!(config.cache.uid, "cache-uid");
    assert_eq!(config.cache.node, None);
    assert_eq!(config.revision, desired("{memory: {capacity: 512Mi, maxTtl: 30m}}").revisions.config);
    assert_eq!(config.memory.capacity.to_string(), "512Mi");
    assert_eq!(config.memory.max_ttl.to_string(), "30m");
    assert_eq!(config.listen.admin.to_string(), "0.0.0.0:9090");
}

#[test]
fn a_cache_without_disk_has_no_volume_and_says_so_to_the_node() {
    let spec = "{disk: {mode: Disabled}}";
    let set = stateful_set(spec);
    assert_eq!(set["spec"].get("volumeClaimTemplates"), None);
    assert_eq!(set["spec"].get("persistentVolumeClaimRetentionPolicy"), None);
    let mounts = set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].as_array().unwrap().clone();
    assert_eq!(mounts.len(), 1);
    assert_eq!(config(spec).disk.mode, crds::node_config::DiskMode::Disabled);
}

#[test]
fn the_node_is_told_what_is_written_to_disk_and_how() {
    let spec = "{disk: {minTtl: 5s, admission: SecondHit, dailyWriteBudget: 10Gi}, compression: {algorithm: Zstd, threshold: 1Ki}}";
    let NodeConfig { disk, compression, .. } = config(spec);
    assert_eq!((disk.min_ttl.to_string(), disk.daily_write_budget.to_string()), ("5s".to_owned(), "10Gi".to_owned()));
    assert_eq!(disk.admission, crds::node_config::DiskAdmission::SecondHit);
    assert_eq!(compression.algorithm, crds::node_config::CompressionAlgorithm::Zstd);
    assert_eq!(compression.threshold.to_string(), "1Ki");
    assert_eq!(config("{}").disk.daily_write_budget.0, 0, "no limit");
    assert_eq!(config("{writeQueue: {capacity: 100Mi}}").write_queue.capacity.to_string(), "100Mi");
}

#[test]
fn the_node_is_told_how_fresh_values_are_to_be() {
    let spec = "{freshness: {ttlJitterPercent: 5, softTimeout: 1ms, refreshWindow: 3s, negativeTtl: 4s}}";
    let freshness = config(spec).freshness;
    assert_eq!(freshness.ttl_jitter_percent, 5);
    let durations = [freshness.soft_timeout, freshness.refresh_window, freshness.negative_ttl];
    assert_eq!(durations.map(|duration| duration.to_string()), ["1ms", "3s", "4s"]);
}

const SECURED: &str = "{redis: {mode: External, maxTtl: 2h, timeout: 20ms, writeMode: WriteThrough, external: {kind: Sentinel, masterName: main, \
    endpoints: ['s-0:26379', 's-1:26379'], database: 3, credentialsSecretRef: {name: users, usernameKey: user}, \
    tls: {serverName: redis.local, secretRef: {name: certs, certKey: tls.crt, keyKey: tls.key}}}}}";

#[test]
fn the_node_is_told_where_its_redis_is_and_in_which_files_the_secrets_are() {
    let redis = config(SECURED).redis;
    assert_eq!(redis.mode, crds::node_config::RedisMode::External);
    assert_eq!(redis.endpoints, ["s-0:26379", "s-1:26379"]);
    assert_eq!(redis.write_mode, crds::node_config::WriteMode::WriteThrough);
    assert_eq!((redis.master_name.as_deref(), redis.database), (Some("main"), 3));
    assert_eq!((redis.max_ttl.to_string(), redis.timeout.to_string()), ("2h".to_owned(), "20ms".to_owned()));
    let path = |file: Option<std::path::PathBuf>| file.unwrap().display().to_string();
    assert_eq!(path(redis.username_file), "/etc/tieredcache-redis/credentials/username");
    assert_eq!(path(redis.password_file), "/etc/tieredcache-redis/credentials/password");
    let tls = redis.tls.unwrap();
    assert_eq!(tls.server_name.as_deref(), Some("redis.local"));
    assert_eq!(path(tls.ca_file), "/etc/tieredcache-redis/tls/ca.crt");
    assert_eq!(path(tls.cert_file), "/etc/tieredcache-redis/tls/tls.crt");
    assert_eq!(path(tls.key_file), "/etc/tieredcache-redis/tls/tls.key");
}

#[test]
fn the_node_is_told_how_far_to_trust_itself_and_how_long_the_log_is() {
    let words = |spec: &str| {
        let found = config(spec).backplane;
        let policy = format!("{:?}", found.when_disconnected);
        (found.max_staleness.to_string(), policy, found.serve_stale_for.to_string(), found.log_records)
    };
    let told = |staleness: &str, policy: &str, stale: &str, records| {
        (staleness.to_owned(), policy.to_owned(), stale.to_owned(), records)
    };
    let external = "redis: {mode: External, external: {endpoints: ['a:1']}}";
    assert_eq!(words(&format!("{{{external}}}")), told("3s", "ServeStale", "1m", 1_000_000));
    let own = "backplane: {maxStaleness: 10s, whenDisconnected: Miss, serveStaleFor: 5m, logRecords: 5000}";
    assert_eq!(words(&format!("{{{external}, {own}}}")), told("10s", "Miss", "5m", 5000));
    assert_eq!(words("{redis: {mode: Managed}}"), told("3s", "ServeStale", "1m", 1_000_000));
    assert_eq!(words("{redis: {mode: Managed, managed: {memory: 64Mi}}}"), told("3s", "ServeStale", "1m", 262_144));
    let outbox = |backplane: &str| config(&format!("{{{external}, backplane: {backplane}}}")).backplane.outbox;
    use crds::node_config::Outbox::{Queue, Refuse};
    assert_eq!((outbox("{}"), outbox("{outbox: Queue}"), outbox("{outbox: Refuse}")), (Queue, Queue, Refuse));
    // What has no effect rolls nothing.
    assert_eq!(desired(&format!("{{{own}}}")).revisions, desired("{}").revisions);
}

#[test]
fn secrets_are_mounted_key_by_key_and_whole_folders_so_that_changes_arrive() {
    let set = stateful_set(SECURED);
    let pod = &set["spec"]["template"]["spec"];
    let found = |volume: &str| {
        let volumes = pod["volumes"].as_array().unwrap();
        volumes.iter().find(|found| found["name"] == volume).unwrap()["secret"].clone()
    };
    let items = |keys: &[(&str, &str)]| {
        let items = keys.iter().map(|(key, path)| serde_json::json!({"key": key, "path": path}));
        serde_json::Value::from(items.collect::<Vec<_>>())
    };
    assert_eq!(found("redis-credentials")["secretName"], "users");
    assert_eq!(found("redis-credentials")["items"], items(&[("user", "username"), ("password", "password")]));
    assert_eq!(found("redis-tls")["secretName"], "certs");
    let certificates = [("ca.crt", "ca.crt"), ("tls.crt", "tls.crt"), ("tls.key", "tls.key")];
    assert_eq!(found("redis-tls")["items"], items(&certificates));
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    for mount in mounts.iter().filter(|mount| mount["name"].as_str().unwrap().starts_with("redis")) {
        assert_eq!(mount["readOnly"], true);
        assert_eq!(mount.get("subPath"), None);
    }
    assert_eq!(mounts.len(), 4);
}

#[test]
fn the_node_is_told_in_which_order_to_read() {
    use crds::node_config::ColdLayer;
    assert_eq!(config("{}").read_order, [ColdLayer::Redis, ColdLayer::Disk]);
    assert_eq!(config("{readOrder: [Disk, Redis]}").read_order, [ColdLayer::Disk, ColdLayer::Redis]);
}

#[test]
fn the_node_is_told_what_a_full_queue_does_and_what_is_slow() {
    let spec = "{writeQueue: {overflow: DropOldest}, slowLog: {threshold: 0s, lengthMax: 7}}";
    let NodeConfig { write_queue, slow_log, .. } = config(spec);
    assert_eq!(write_queue.overflow, crds::node_config::Overflow::DropOldest);
    assert_eq!((slow_log.threshold.to_string(), slow_log.length_max), ("0s".to_owned(), 7));
}

#[test]
fn the_node_is_told_its_collector_and_has_the_headers_in_a_file() {
    let spec = "{telemetry: {otlp: {endpoint: 'http://collector:4318', samplesPerMillion: 250000, \
        headersSecretRef: {name: token}}}}";
    let otlp = config(spec).telemetry.otlp;
    assert_eq!((otlp.endpoint.as_str(), otlp.sample_ratio.as_f64()), ("http://collector:4318", 0.25));
    assert_eq!(otlp.headers_file.to_str(), Some("/etc/tieredcache-otlp/headers"));
    let pod = &stateful_set(spec)["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    let secret = &volumes.iter().find(|volume| volume["name"] == "otlp-headers").unwrap()["secret"];
    assert_eq!(secret["secretName"], "token");
    assert_eq!(secret["items"], serde_json::json!([{"key": "headers", "path": "headers"}]));
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().any(|mount| mount["mountPath"] == "/etc/tieredcache-otlp" && mount["readOnly"] == true));

    let open = "{telemetry: {otlp: {endpoint: 'http://collector:4318'}}}";
    assert_eq!(config(open).telemetry.otlp.headers_file.to_str(), Some(""));
    assert_eq!(stateful_set(open)["spec"]["template"]["spec"]["volumes"].as_array().unwrap().len(), 1);
}

#[test]
fn a_redis_in_the_open_needs_no_secret() {
    let spec = "{redis: {mode: External, external: {endpoints: ['redis:6379'], tls: {}}}}";
    let redis = config(spec).redis;
    assert_eq!((redis.username_file, redis.password_file), (None, None));
    assert_eq!(redis.tls, Some(crds::node_config::RedisTls::default()));
    assert_eq!(stateful_set(spec)["spec"]["template"]["spec"]["volumes"].as_array().unwrap().len(), 1);
}

#[test]
fn a_budget_exists_only_where_it_can_not_block_every_drain() {
    assert!(desired("{replicas: 0}").pdb.is_none());
    assert!(desired("{replicas: 1}").pdb.is_none());
    assert!(desired("{replicas: 2}").pdb.is_some());
}

/// The rules of the Pod Security Standard "restricted", as far as they speak about what we build.
#[test]
fn pods_pass_the_restricted_profile() {
    let redis = desired("{redis: {mode: Managed}}").redis.unwrap().stateful_set;
    for set in [stateful_set("{}"), serde_json::to_value(redis).unwrap()] {
        assert_restricted(&set["spec"]["template"]["spec"]);
    }
}

fn assert_restricted(pod: &Value) {
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_eq!(pod.get(field), None);
    }
    for container in pod["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"], serde_json::json!({"drop": ["ALL"]}));
    }
    for volume in pod["volumes"].as_array().unwrap() {
        assert!(volume.get("hostPath").is_none(), "{volume}");
    }
    assert_eq!(pod["automountServiceAccountToken"], false);
}

#[test]
fn a_node_has_time_to_drain_before_it_is_killed() {
    let config = config("{}");
    let grace = stateful_set("{}")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace >= config.shutdown.drain_timeout.0.as_secs() + 5, "{grace}");
}

#[test]
fn names_stay_within_what_labels_and_dns_allow() {
    let longest = "a".repeat(crds::tiered_cache::NAME_LENGTH_MAX);
    let mut cache = cache("{replicas: 3}");
    if let Ok(cache) = &mut cache.0 {
        cache.metadata.name = Some(longest.clone());
    }
    let desired = build(&validate(&cache, &settings()).unwrap());
    let names = [
        desired.service_account.metadata.name,
        desired.config_map.metadata.name,
        desired.headless_service.metadata.name,
        desired.client_service.metadata.name,
        desired.stateful_set.metadata.name,
        Some(pod_name(&longest, 99)),
        Some(claim_name(&pod_name(&longest, 99))),
    ];
    for name in names.into_iter().flatten() {
        assert!(name.len() <= 63, "{name}");
    }
    // The StatefulSet controller labels pods with its own name and a hash of ten characters.
    assert!(longest.len() + 11 <= 63);
}
