//! Rules of one field: the values at its limits are accepted, those beyond are refused.

use serde_json::{Value, json};

use super::{Stored, assert_accepted, assert_refused, assert_says, create};

#[test]
fn an_empty_spec_is_stored_with_every_default() {
    let stored = Stored::new("defaults", "{}");
    assert_eq!(
        stored.json()["spec"],
        json!({
            "replicas": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "imagePullPolicy": "IfNotPresent",
            "memory": {"capacity": "256Mi", "policy": "S3Fifo", "maxTtl": "24h"},
            "redis": {
                "mode": "Disabled",
                "maxTtl": "4h",
                "timeout": "50ms",
                "writeMode": "WriteBehind",
                "managed": {"image": "docker.io/library/redis:7.4", "replicas": 1, "memory": "256Mi", "storage": "1Gi"},
            },
            "backplane": {
                "maxStaleness": "3s", "whenDisconnected": "ServeStale", "serveStaleFor": "1m", "outbox": "Queue",
            },
            "readOrder": ["Redis", "Disk"],
            "disk": {
                "mode": "RocksDB",
                "size": "10Gi",
                "maxTtl": "168h",
                "minTtl": "1m",
                "admission": "All",
                "retention": {"whenScaled": "Delete", "whenDeleted": "Retain"},
            },
            "writeQueue": {"capacity": "64Mi", "overflow": "Block"},
            "slowLog": {"threshold": "10ms", "lengthMax": 128},
            "telemetry": {},
            "freshness": {
                "ttlJitterPercent": 0,
                "softTimeout": "20ms",
                "refreshWindow": "2s",
                "negativeTtl": "30s",
            },
            "compression": {"algorithm": "None", "threshold": "4Ki"},
            "resources": {"requests": {"cpu": "100m"}, "limits": {}},
        })
    );
}

#[test]
fn an_explicit_null_means_the_default() {
    let answer = create(
        "cache",
        "{replicas: null, image: null, memory: {capacity: null}, disk: null, resources: {limits: {memory: null}}}",
    );
    assert!(answer.ok, "{}", answer.text);
    let made: Value = serde_json::from_str(&answer.text).expect("kubectl prints JSON");
    assert_eq!(made["spec"]["replicas"], 1);
    assert_eq!(made["spec"]["memory"]["capacity"], "256Mi");
    assert_eq!(made["spec"]["disk"]["size"], "10Gi");
    assert_eq!(made["spec"].get("image"), None);
    assert_eq!(made["spec"]["resources"]["limits"], json!({}));
}

#[test]
fn names_leave_room_for_names_of_pods() {
    let longest = "a".repeat(40);
    for name in ["a", "session-cache-2", &longest] {
        let answer = create(name, "{}");
        assert!(answer.ok, "{name}: {}", answer.text);
    }
    let too_long = "a".repeat(41);
    for name in ["1a", "a.b", &too_long] {
        let answer = create(name, "{}");
        assert!(!answer.ok, "{name} should be refused");
        assert_says(&answer, &["metadata.name is", name, "at most 40 characters"], name);
    }
}

#[test]
fn replicas_are_0_to_100() {
    assert_accepted(&["{replicas: 0}", "{replicas: 100}"]);
    assert_refused(&[
        ("{replicas: -1}", &["spec.replicas", "-1", "greater than or equal to 0"]),
        ("{replicas: 101}", &["spec.replicas", "101", "less than or equal to 100"]),
    ]);
}

#[test]
fn version_is_a_version() {
    assert_accepted(&["{version: 1.22.333}", "{version: 1.0.0-rc.1}"]);
    assert_refused(&[
        ("{version: latest}", &["spec.version", "latest", "^[0-9]+"]),
        ("{version: '1.0'}", &["spec.version", "1.0", "^[0-9]+"]),
        (&format!("{{version: 1.0.0-{}}}", "a".repeat(60)), &["spec.version", "may not be more than 64"]),
    ]);
}

#[test]
fn image_is_an_image_and_its_policy_one_of_three() {
    let digest = format!("{{image: 'registry.example:5000/a/b@sha256:{}'}}", "0".repeat(64));
    assert_accepted(&["{image: localhost/cache-node:dev}", &digest, "{imagePullPolicy: Never}"]);
    assert_refused(&[
        ("{image: ''}", &["spec.image", "at least 1 chars"]),
        ("{image: 'a b'}", &["spec.image", "a b", "should match"]),
        (&format!("{{image: {}}}", "a".repeat(513)), &["spec.image", "may not be more than 512"]),
        (
            "{imagePullPolicy: Sometimes}",
            &["spec.imagePullPolicy", "Sometimes", "\"IfNotPresent\", \"Always\", \"Never\""],
        ),
    ]);
}

#[test]
fn memory_capacity_is_a_size_from_1mi_to_1ti() {
    assert_accepted(&[
        "{memory: {capacity: 1Mi}}",
        "{memory: {capacity: '1048576'}}",
        "{memory: {capacity: 500M}}",
        "{memory: {capacity: 1Ti}}",
    ]);
    assert_refused(&[
        ("{memory: {capacity: 1048575}}", &["spec.memory.capacity", "must be of type string"]),
        ("{memory: {capacity: '1048575'}}", &["spec.memory.capacity is 1048575; it must be between 1Mi and 1Ti"]),
        ("{memory: {capacity: 1025Gi}}", &["spec.memory.capacity is 1025Gi; it must be between 1Mi and 1Ti"]),
        ("{memory: {capacity: 999999999999999Ti}}", &["spec.memory.capacity is 999999999999999Ti; it must be between"]),
        ("{memory: {capacity: 1.5Gi}}", &["spec.memory.capacity", "1.5Gi", "should match"]),
        ("{memory: {capacity: -1Gi}}", &["spec.memory.capacity", "-1Gi", "should match"]),
    ]);
}

#[test]
fn memory_policy_is_one_of_two() {
    assert_accepted(&["{memory: {policy: S3Fifo}}", "{memory: {policy: TinyLfu}}"]);
    assert_refused(&[("{memory: {policy: Lru}}", &["spec.memory.policy", "Lru", "\"S3Fifo\", \"TinyLfu\""])]);
}

#[test]
fn times_to_live_are_durations_from_1s_to_87600h() {
    for layer in ["memory", "redis", "disk"] {
        for good in ["1s", "1000ms", "1h30m", "87600h", "30m", "0h1s"] {
            assert_accepted(&[&format!("{{{layer}: {{maxTtl: {good}}}}}")]);
        }
        for (bad, limit) in [
            ("999ms", "it must be between 1s and 87600h"),
            ("0s", "it must be between 1s and 87600h"),
            ("87601h", "it must be between 1s and 87600h"),
            ("99999h99999h99999h99999h", "it must be between 1s and 87600h"),
            ("7d", "should match"),
            ("'5'", "should match"),
            ("1.5h", "should match"),
            ("999999h", "should match"),
        ] {
            let field = format!("spec.{layer}.maxTtl");
            let value = bad.trim_matches('\'');
            assert_refused(&[(&format!("{{{layer}: {{maxTtl: {bad}}}}}"), &[&field, value, limit])]);
        }
    }
}

#[test]
fn disk_mode_is_one_of_two() {
    assert_accepted(&["{disk: {mode: RocksDB}}", "{disk: {mode: Disabled}}"]);
    assert_refused(&[("{disk: {mode: Rocksdb}}", &["spec.disk.mode", "Rocksdb", "\"RocksDB\", \"Disabled\""])]);
}

#[test]
fn disk_size_is_a_size_from_256mi_to_64ti() {
    assert_accepted(&["{disk: {size: 256Mi}}", "{disk: {size: 64Ti}}"]);
    assert_refused(&[
        ("{disk: {size: 255Mi}}", &["spec.disk.size is 255Mi; it must be between 256Mi and 64Ti"]),
        ("{disk: {size: 65Ti}}", &["spec.disk.size is 65Ti; it must be between 256Mi and 64Ti"]),
        ("{disk: {size: big}}", &["spec.disk.size", "big", "should match"]),
    ]);
}

#[test]
fn disk_writes_are_bounded_by_life_use_and_budget() {
    assert_accepted(&[
        "{disk: {minTtl: 0s}}",
        "{disk: {minTtl: 24h}}",
        "{disk: {admission: SecondHit, dailyWriteBudget: 1Mi}}",
        "{disk: {dailyWriteBudget: 1024Ti}}",
    ]);
    assert_refused(&[
        ("{disk: {minTtl: 25h}}", &["spec.disk.minTtl is 25h; it must be between 0s and 24h"]),
        ("{disk: {minTtl: 5}}", &["spec.disk.minTtl", "must be of type string"]),
        ("{disk: {admission: Some}}", &["spec.disk.admission", "Some", "\"All\", \"SecondHit\""]),
        (
            "{disk: {dailyWriteBudget: 1023Ki}}",
            &["spec.disk.dailyWriteBudget is 1023Ki; it must be between 1Mi and 1024Ti"],
        ),
        ("{disk: {dailyWriteBudget: 1025Ti}}", &["spec.disk.dailyWriteBudget is 1025Ti; it must be between"]),
    ]);
}

#[test]
fn write_queue_holds_the_largest_entry_at_least() {
    assert_accepted(&["{writeQueue: {capacity: 17Mi}}", "{writeQueue: {capacity: 64Gi}}"]);
    assert_refused(&[
        ("{writeQueue: {capacity: 16Mi}}", &["spec.writeQueue.capacity is 16Mi; it must be between 17Mi and 64Gi"]),
        ("{writeQueue: {capacity: 65Gi}}", &["spec.writeQueue.capacity is 65Gi; it must be between"]),
        ("{writeQueue: {capacity: 999999999999999Ti}}", &["spec.writeQueue.capacity is 999999999999999Ti; it must be"]),
    ]);
}

#[test]
fn a_full_write_queue_does_one_of_three() {
    assert_accepted(&[
        "{writeQueue: {overflow: Block}}",
        "{writeQueue: {overflow: Reject}}",
        "{writeQueue: {overflow: DropOldest}}",
    ]);
    assert_refused(&[(
        "{writeQueue: {overflow: DropNewest}}",
        &["spec.writeQueue.overflow", "DropNewest", "\"Block\", \"Reject\", \"DropOldest\""],
    )]);
}

#[test]
fn slow_log_is_within_its_limits() {
    assert_accepted(&["{slowLog: {threshold: 0s, lengthMax: 0}}", "{slowLog: {threshold: 1h, lengthMax: 1000}}"]);
    assert_refused(&[
        ("{slowLog: {threshold: 61m}}", &["spec.slowLog.threshold is 61m; it must be between 0s and 1h"]),
        ("{slowLog: {threshold: 10}}", &["spec.slowLog.threshold", "must be of type string"]),
        ("{slowLog: {lengthMax: -1}}", &["spec.slowLog.lengthMax", "-1", "greater than or equal to 0"]),
        ("{slowLog: {lengthMax: 1001}}", &["spec.slowLog.lengthMax", "1001", "less than or equal to 1000"]),
    ]);
}

#[test]
fn a_collector_is_named_with_what_it_is_sent() {
    let otlp = |rest: &str| format!("{{telemetry: {{otlp: {{{rest}}}}}}}");
    for good in [
        "endpoint: 'http://collector:4318'",
        "endpoint: 'http://[::1]:1/'",
        "endpoint: 'http://10.0.0.1', samplesPerMillion: 0",
        "endpoint: 'http://a.b.svc.cluster.local:65535', samplesPerMillion: 1000000",
        "endpoint: 'http://a:1', headersSecretRef: {name: token, key: otlp.headers}",
    ] {
        assert_accepted(&[&otlp(good)]);
    }
    for bad in ["https://collector:4318", "collector:4318", "http://", "http://a b:1", "http://a:0", "http://a:1/v1"] {
        let spec = otlp(&format!("endpoint: '{bad}'"));
        assert_refused(&[(&spec, &["spec.telemetry.otlp.endpoint", bad, "should match"])]);
    }
    let with = |rest: &str| otlp(&format!("endpoint: 'http://a:1', {rest}"));
    assert_refused(&[
        (&otlp("samplesPerMillion: 1"), &["spec.telemetry.otlp.endpoint", "Required"]),
        (&with("samplesPerMillion: 1000001"), &["spec.telemetry.otlp.samplesPerMillion", "1000001", "1000000"]),
        (&with("samplesPerMillion: -1"), &["spec.telemetry.otlp.samplesPerMillion", "-1", "equal to 0"]),
        (&with("headersSecretRef: {}"), &["spec.telemetry.otlp.headersSecretRef", "name", "Required"]),
        (&with("headersSecretRef: {name: a, key: 'b/c'}"), &["headersSecretRef.key", "b/c", "should match"]),
    ]);
}

#[test]
fn freshness_is_within_its_limits() {
    assert_accepted(&[
        "{freshness: {ttlJitterPercent: 50, softTimeout: 0s, refreshWindow: 10ms, negativeTtl: 1s}}",
        "{freshness: {softTimeout: 10s, refreshWindow: 1h, negativeTtl: 24h}}",
    ]);
    assert_refused(&[
        ("{freshness: {ttlJitterPercent: 51}}", &["spec.freshness.ttlJitterPercent", "51", "less than or equal to 50"]),
        (
            "{freshness: {ttlJitterPercent: -1}}",
            &["spec.freshness.ttlJitterPercent", "-1", "greater than or equal to 0"],
        ),
        ("{freshness: {softTimeout: 11s}}", &["spec.freshness.softTimeout is 11s; it must be between 0s and 10s"]),
        ("{freshness: {refreshWindow: 9ms}}", &["spec.freshness.refreshWindow is 9ms; it must be between 10ms and 1h"]),
        ("{freshness: {negativeTtl: 25h}}", &["spec.freshness.negativeTtl is 25h; it must be between 1s and 24h"]),
    ]);
}

#[test]
fn compression_is_one_of_three_above_a_threshold() {
    assert_accepted(&[
        "{compression: {algorithm: None}}",
        "{compression: {algorithm: Lz4, threshold: '64'}}",
        "{compression: {algorithm: Zstd, threshold: 256Mi}}",
    ]);
    assert_refused(&[
        ("{compression: {algorithm: Gzip}}", &["spec.compression.algorithm", "Gzip", "\"None\", \"Lz4\", \"Zstd\""]),
        ("{compression: {threshold: '63'}}", &["spec.compression.threshold is 63; it must be between 64 and 256Mi"]),
        ("{compression: {threshold: 257Mi}}", &["spec.compression.threshold is 257Mi; it must be between"]),
    ]);
}

#[test]
fn storage_class_is_a_name() {
    assert_accepted(&["{disk: {storageClassName: fast.ssd-1}}"]);
    assert_refused(&[
        ("{disk: {storageClassName: ''}}", &["spec.disk.storageClassName", "at least 1 chars"]),
        ("{disk: {storageClassName: Fast_SSD}}", &["spec.disk.storageClassName", "Fast_SSD", "should match"]),
        (
            &format!("{{disk: {{storageClassName: {}}}}}", "a".repeat(254)),
            &["spec.disk.storageClassName", "may not be more than 253"],
        ),
    ]);
}

#[test]
fn retention_is_delete_or_retain() {
    assert_accepted(&[
        "{disk: {retention: {whenScaled: Retain, whenDeleted: Delete}}}",
        "{disk: {retention: {whenScaled: Delete, whenDeleted: Retain}}}",
    ]);
    for field in ["whenScaled", "whenDeleted"] {
        let path = format!("spec.disk.retention.{field}");
        assert_refused(&[(
            &format!("{{disk: {{retention: {{{field}: Recycle}}}}}}"),
            &[&path, "Recycle", "\"Delete\", \"Retain\""],
        )]);
    }
}

#[test]
fn resources_are_amounts_above_zero() {
    assert_accepted(&[
        "{resources: {requests: {cpu: 250m, memory: 544Mi}, limits: {cpu: 2, memory: 1.5Gi}}}",
        "{resources: {requests: {cpu: '0.5'}, limits: {memory: 2147483648}}}",
    ]);
    for (field, nested) in [
        ("requests.cpu", "requests: {cpu: VALUE}"),
        ("requests.memory", "requests: {memory: VALUE}"),
        ("limits.cpu", "limits: {cpu: VALUE}"),
        ("limits.memory", "limits: {memory: VALUE}"),
    ] {
        let path = format!("spec.resources.{field}");
        for (bad, limit) in [
            ("'0'", "it must be more than 0"),
            ("0", "it must be more than 0"),
            ("lots", "should match"),
            ("-1Gi", "should match"),
        ] {
            let spec = format!("{{resources: {{{}}}}}", nested.replace("VALUE", bad));
            assert_refused(&[(&spec, &[&path, bad.trim_matches('\''), limit])]);
        }
    }
}

#[test]
fn misspelt_fields_are_refused_by_name() {
    assert_refused(&[
        ("{memory: {capcity: 1Gi}}", &["unknown field", "spec.memory.capcity"]),
        (
            "{resources: {limits: {ephemeral-storage: 1Gi}}}",
            &["unknown field", "spec.resources.limits.ephemeral-storage"],
        ),
    ]);
}
