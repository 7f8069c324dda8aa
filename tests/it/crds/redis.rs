//! Rules of the Redis that nodes share.

use cache_node::layer::redis::Endpoint;
use serde_json::Value;

use super::{assert_accepted, assert_refused, create};

/// A spec with this in `redis.external` beside an endpoint.
fn external(rest: &str) -> String {
    format!("{{redis: {{mode: External, external: {{endpoints: ['redis:6379']{rest}}}}}}}")
}

fn assert_external_accepted(cases: &[&str]) {
    for rest in cases {
        assert_accepted(&[&external(rest)]);
    }
}

fn assert_external_refused(cases: &[(&str, &[&str])]) {
    for (rest, words) in cases {
        assert_refused(&[(&external(rest), words)]);
    }
}

#[test]
fn redis_is_external_with_endpoints_or_disabled() {
    assert_accepted(&["{redis: {mode: Disabled}}", "{redis: {external: {endpoints: ['a:1']}}}", &external("")]);
    assert_refused(&[
        ("{redis: {mode: External}}", &["spec.redis.mode is External", "spec.redis.external must then say where"]),
        ("{redis: {mode: External, external: {}}}", &["spec.redis.external.endpoints", "Required"]),
        ("{redis: {mode: Own}}", &["spec.redis.mode", "Own", "\"Disabled\", \"Managed\", \"External\""]),
    ]);
}

#[test]
fn a_managed_redis_has_memory_and_a_volume_that_holds_it() {
    let managed = |fields: &str| format!("{{redis: {{mode: Managed, managed: {{{fields}}}}}}}");
    let (memory, storage) = ("spec.redis.managed.memory", "spec.redis.managed.storage");
    for good in [
        "",
        "memory: 16Mi, storage: 256Mi",
        "memory: 1Ti, storage: 4Ti",
        "memory: 1Gi, storage: 4Gi",
        "replicas: 1",
        "replicas: 3",
        "image: 'localhost/redis:7', storage: 64Ti, storageClassName: fast.ssd-1",
    ] {
        assert_accepted(&[&managed(good)]);
    }
    assert_refused(&[
        (&managed("memory: 15Mi"), &["spec.redis.managed.memory is 15Mi; it must be between 16Mi and 1Ti"]),
        (&managed("memory: 1025Gi, storage: 8Ti"), &["spec.redis.managed.memory is 1025Gi; it must be between"]),
        (&managed("memory: big"), &[memory, "big", "should match"]),
        (
            &managed("memory: 16Mi, storage: 255Mi"),
            &["spec.redis.managed.storage is 255Mi; it must be between 256Mi and 64Ti"],
        ),
        (&managed("storage: 65Ti"), &["spec.redis.managed.storage is 65Ti; it must be between"]),
        (&managed("memory: 257Mi"), &[storage, "is 1Gi; it must be at least 4 times", "memory, which is 257Mi"]),
        (&managed("memory: 999999999999999Ti"), &["memory is 999999999999999Ti; it must be between"]),
        (&managed("replicas: 0"), &["spec.redis.managed.replicas", "0", "greater than or equal to 1"]),
        (&managed("replicas: 2"), &["spec.redis.managed.replicas is 2; it must be 1 or 3"]),
        (&managed("replicas: 4"), &["spec.redis.managed.replicas", "4", "less than or equal to 3"]),
        (&managed("image: ''"), &["spec.redis.managed.image", "at least 1 chars"]),
        (&managed("image: 'a b'"), &["spec.redis.managed.image", "a b", "should match"]),
        (&managed("storageClassName: Fast_SSD"), &["spec.redis.managed.storageClassName", "Fast_SSD", "should match"]),
    ]);
}

#[test]
fn endpoints_are_1_to_16_hosts_with_ports() {
    let endpoints = |list: &str| format!("{{redis: {{mode: External, external: {{endpoints: [{list}]}}}}}}");
    let many = |count: usize| endpoints(&vec!["'a:1'"; count].join(","));
    let good = ["10.0.0.1:6379", "[::1]:1", "[fd00::7]:7000", "[::ffff:10.0.0.1]:6379", "redis-0.redis.shop.svc:65535"];
    for good in good {
        assert_accepted(&[&endpoints(&format!("'{good}'"))]);
        assert!(good.parse::<Endpoint>().is_ok(), "a node refuses {good}");
    }
    assert_accepted(&[&many(16)]);
    let bad = ["redis", "redis:0", "redis:65536", "redis:01", ":6379", "a b:1", "redis://a:1"];
    // In brackets stands an address of IPv6 and nothing else.
    for bad in bad.into_iter().chain(["[10.0.0.1]:6379", "[abc]:1", "[]:1", "[::1]", "[redis:a]:1"]) {
        let spec = endpoints(&format!("'{bad}'"));
        assert_refused(&[(&spec, &["spec.redis.external.endpoints[0]", bad, "should match"])]);
    }
    assert_refused(&[
        (&endpoints(""), &["spec.redis.external.endpoints", "at least 1 items"]),
        (&many(17), &["spec.redis.external.endpoints", "at most 16 items"]),
    ]);
}

#[test]
fn sentinels_need_the_name_of_the_master_and_servers_refuse_it() {
    assert_external_accepted(&[", kind: Standalone", ", kind: Sentinel, masterName: main"]);
    assert_external_refused(&[
        (", kind: Sentinel", &["spec.redis.external.kind is Sentinel; masterName must then say"]),
        (", masterName: main", &["spec.redis.external.masterName is main; it is for kind Sentinel only", "Standalone"]),
        (", kind: Sentinel, masterName: ''", &["spec.redis.external.masterName", "at least 1 chars"]),
        (", kind: Cluster", &["spec.redis.external.kind", "Cluster", "\"Standalone\", \"Sentinel\""]),
    ]);
}

#[test]
fn database_is_0_to_1023() {
    assert_external_accepted(&[", database: 0", ", database: 1023"]);
    assert_external_refused(&[
        (", database: -1", &["spec.redis.external.database", "-1", "greater than or equal to 0"]),
        (", database: 1024", &["spec.redis.external.database", "1024", "less than or equal to 1023"]),
    ]);
}

#[test]
fn timeout_is_1ms_to_10s() {
    assert_accepted(&["{redis: {timeout: 1ms}}", "{redis: {timeout: 10s}}"]);
    assert_refused(&[
        ("{redis: {timeout: 0s}}", &["spec.redis.timeout is 0s; it must be between 1ms and 10s"]),
        ("{redis: {timeout: 11s}}", &["spec.redis.timeout is 11s; it must be between 1ms and 10s"]),
    ]);
}

#[test]
fn secrets_are_named_with_their_keys() {
    let made = create("cache", &external(", credentialsSecretRef: {name: users}, tls: {secretRef: {name: certs}}"));
    assert!(made.ok, "{}", made.text);
    let made: Value = serde_json::from_str(&made.text).expect("kubectl prints JSON");
    let external = &made["spec"]["redis"]["external"];
    assert_eq!(external["credentialsSecretRef"]["passwordKey"], "password");
    assert_eq!(external["tls"]["secretRef"]["caKey"], "ca.crt");
    assert_external_accepted(&[
        ", credentialsSecretRef: {name: users, usernameKey: user.name, passwordKey: pass-word}",
        ", tls: {}",
        ", tls: {serverName: redis.local, secretRef: {name: certs, caKey: ca, certKey: tls.crt, keyKey: tls.key}}",
    ]);
    let credentials = "spec.redis.external.credentialsSecretRef";
    let tls = "spec.redis.external.tls.secretRef";
    assert_external_refused(&[
        (", credentialsSecretRef: {}", &[credentials, "name", "Required"]),
        (", credentialsSecretRef: {name: Users}", &[credentials, "Users", "should match"]),
        (", credentialsSecretRef: {name: users, passwordKey: 'a/b'}", &[credentials, "a/b", "should match"]),
        (", tls: {secretRef: {}}", &[tls, "name", "Required"]),
        (", tls: {secretRef: {name: c, certKey: tls.crt}}", &[tls, "certKey is tls.crt; keyKey must then name"]),
        (", tls: {secretRef: {name: c, keyKey: tls.key}}", &[tls, "keyKey is tls.key; certKey must then"]),
        (", tls: {serverName: ''}", &["spec.redis.external.tls.serverName", "at least 1 chars"]),
    ]);
}

#[test]
fn write_mode_is_one_of_two() {
    assert_accepted(&["{redis: {writeMode: WriteThrough}}"]);
    assert_refused(&[(
        "{redis: {writeMode: WriteAround}}",
        &["spec.redis.writeMode", "WriteAround", "\"WriteBehind\", \"WriteThrough\""],
    )]);
}

#[test]
fn read_order_names_redis_and_disk_once_each() {
    assert_accepted(&["{readOrder: [Redis, Disk]}", "{readOrder: [Disk, Redis]}"]);
    assert_refused(&[
        ("{readOrder: [Disk, Disk]}", &["spec.readOrder is [Disk, Disk]; it must name Redis and Disk once each"]),
        ("{readOrder: [Disk]}", &["spec.readOrder", "at least 2 items"]),
        ("{readOrder: [Disk, Redis, Disk]}", &["spec.readOrder", "at most 2 items"]),
        ("{readOrder: [Memory, Disk]}", &["spec.readOrder[0]", "Memory", "\"Redis\", \"Disk\""]),
    ]);
}

#[test]
fn how_far_a_node_trusts_itself_is_within_its_limits() {
    assert_accepted(&[
        "{backplane: {maxStaleness: 1s, whenDisconnected: Miss, serveStaleFor: 1s}}",
        "{backplane: {outbox: Queue}}",
        "{backplane: {outbox: Refuse}}",
        "{backplane: {maxStaleness: 1h, whenDisconnected: ServeStale, serveStaleFor: 24h}}",
    ]);
    let staleness = "it must be between 1s and 1h";
    assert_refused(&[
        ("{backplane: {maxStaleness: 999ms}}", &["spec.backplane.maxStaleness is 999ms", staleness]),
        ("{backplane: {maxStaleness: 61m}}", &["spec.backplane.maxStaleness is 61m", staleness]),
        ("{backplane: {maxStaleness: 3}}", &["spec.backplane.maxStaleness", "must be of type string"]),
        (
            "{backplane: {whenDisconnected: Hope}}",
            &["spec.backplane.whenDisconnected", "Hope", "\"ServeStale\", \"Miss\""],
        ),
        ("{backplane: {outbox: Drop}}", &["spec.backplane.outbox", "Drop", "\"Queue\", \"Refuse\""]),
        ("{backplane: {serveStaleFor: 0s}}", &["spec.backplane.serveStaleFor is 0s; it must be between 1s and 24h"]),
        ("{backplane: {serveStaleFor: 25h}}", &["spec.backplane.serveStaleFor is 25h; it must be between 1s and 24h"]),
    ]);
}

#[test]
fn the_log_is_within_its_limits_and_leaves_half_of_a_managed_redis_to_entries() {
    let managed = |memory: &str, records: u64| {
        let redis = format!("redis: {{mode: Managed, managed: {{memory: {memory}, storage: 64Ti}}}}");
        format!("{{{redis}, backplane: {{logRecords: {records}}}}}")
    };
    assert_accepted(&["{backplane: {logRecords: 1000}}", "{backplane: {logRecords: 100000000}}"]);
    // Of 128 bytes each.
    assert_accepted(&[&managed("16Mi", 65536), &managed("256Mi", 1_048_576), &managed("1Ti", 100_000_000)]);
    assert_refused(&[
        ("{backplane: {logRecords: 999}}", &["spec.backplane.logRecords", "999", "greater than or equal to 1000"]),
        (
            "{backplane: {logRecords: 100000001}}",
            &["spec.backplane.logRecords", "100000001", "less than or equal to 100000000"],
        ),
        (
            &managed("16Mi", 65537),
            &["spec.backplane.logRecords is 65537; of 128 bytes each", "spec.redis.managed.memory, which is 16Mi"],
        ),
        // Its own rule refuses it, and this one does not stumble.
        (&managed("999999999999999Ti", 1000), &["spec.redis.managed.memory is 999999999999999Ti; it must be between"]),
    ]);
}
