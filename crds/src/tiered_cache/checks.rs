//! Tests of the schema as a whole: what must hold for every field, also for those yet to come.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{LayerStatus, REPLICAS_MAX, RedisMode, TieredCacheSpec, TieredCacheStatus, crd};
use crate::{
    node_config::{
        ColdLayer, CompressionAlgorithm, DiskAdmission, DiskMode, MemoryPolicy, Outbox, Overflow, RedisKind,
        WhenDisconnected, WriteMode, limits,
    },
    node_report::{HealthState, LayerName},
};

/// The schema of one version, as JSON.
fn schema() -> Value {
    let crd = crd();
    let version = crd.spec.versions.into_iter().next().expect("there is a version");
    let schema = version.schema.and_then(|schema| schema.open_api_v3_schema);
    serde_json::to_value(schema.expect("the version has a schema")).expect("a schema is plain data")
}

/// Calls `visit` with the path and the schema of every field, and of the items of every list.
fn walk(path: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    for (name, field) in schema["properties"].as_object().unwrap_or(&Map::new()) {
        let path = format!("{path}.{name}");
        visit(&path, field);
        walk(&path, field, visit);
    }
    if schema["items"].is_object() {
        let path = format!("{path}[]");
        visit(&path, &schema["items"]);
        walk(&path, &schema["items"], visit);
    }
}

/// Paths of the fields of which `offends` says so.
fn offenders(offends: impl Fn(&Value) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut visited = 0;
    walk("", &schema(), &mut |path, field| {
        visited += 1;
        if offends(field) {
            found.push(path.to_owned());
        }
    });
    assert!(visited > 50, "the walk saw only {visited} fields");
    found
}

fn has(field: &Value, keyword: &str) -> bool {
    field.get(keyword).is_some()
}

#[test]
fn every_field_is_documented() {
    // Items of a list of words are described by the list.
    let silent = |field: &Value| !(has(field, "description") || (has(field, "enum") && field["type"] == "string"));
    assert_eq!(offenders(silent), Vec::<String>::new());
    let unfinished = |field: &Value| field["description"].as_str().is_some_and(|text| !text.trim_end().ends_with('.'));
    assert_eq!(offenders(unfinished), Vec::<String>::new());
}

#[test]
fn every_field_has_one_type_and_none_is_a_float() {
    let untyped = |field: &Value| !has(field, "type") && field["x-kubernetes-int-or-string"] != true;
    assert_eq!(offenders(untyped), Vec::<String>::new());
    assert_eq!(offenders(|field| field["type"] == "number"), Vec::<String>::new());
    assert_eq!(offenders(|field| field["nullable"] == true), Vec::<String>::new());
}

#[test]
fn every_text_number_and_list_has_a_bound() {
    let bounded_text = |field: &Value| has(field, "maxLength") || has(field, "enum") || field["format"] == "date-time";
    assert_eq!(offenders(|field| field["type"] == "string" && !bounded_text(field)), Vec::<String>::new());
    assert_eq!(offenders(|field| field["type"] == "integer" && !has(field, "minimum")), Vec::<String>::new());
    assert_eq!(offenders(|field| field["type"] == "array" && !has(field, "maxItems")), Vec::<String>::new());
    assert_eq!(
        offenders(|field| field["type"] == "array" && !has(field, "x-kubernetes-list-type")),
        Vec::<String>::new()
    );
    assert_eq!(offenders(|field| has(field, "additionalProperties")), Vec::<String>::new());
}

#[test]
fn every_rule_says_what_is_wrong() {
    let mut rules = 0;
    let mut silent = Vec::new();
    let mut check = |path: &str, schema: &Value| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules += 1;
            if !has(rule, "messageExpression") {
                silent.push(format!("{path}: {}", rule["rule"]));
            }
        }
    };
    check("", &schema());
    walk("", &schema(), &mut check);
    assert!(rules >= 15, "only {rules} rules were seen");
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn defaults_of_the_schema_are_those_of_the_types() {
    /// What the API server makes of an object without fields.
    fn defaulted(schema: &Value) -> Value {
        let fields = schema["properties"].as_object().expect("an object has fields");
        let given = fields.iter().filter_map(|(name, field)| Some((name.clone(), field.get("default")?.clone())));
        Value::Object(given.collect())
    }
    fn assert_nested_agree(path: &str, schema: &Value) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            if let (Some(default), true) = (field.get("default"), has(field, "properties")) {
                assert_eq!(*default, defaulted(field), "{path}.{name}");
                assert_nested_agree(&format!("{path}.{name}"), field);
            }
        }
    }
    let spec = &schema()["properties"]["spec"];
    assert_eq!(defaulted(spec), serde_json::to_value(TieredCacheSpec::default()).unwrap());
    assert_nested_agree("spec", spec);
    assert_eq!(serde_json::from_str::<TieredCacheSpec>("{}").unwrap(), TieredCacheSpec::default());
}

#[test]
fn words_of_the_schema_are_those_of_the_types() {
    fn words(field: &Value) -> BTreeSet<String> {
        field["enum"].as_array().expect("a closed list").iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    }
    fn written<T: serde::Serialize>(values: &[T]) -> BTreeSet<String> {
        values.iter().map(|value| serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()).collect()
    }
    let schema = schema();
    let spec = &schema["properties"]["spec"]["properties"];
    let policies = [MemoryPolicy::S3Fifo, MemoryPolicy::TinyLfu];
    assert_eq!(words(&spec["memory"]["properties"]["policy"]), written(&policies));
    assert_eq!(words(&spec["disk"]["properties"]["mode"]), written(&[DiskMode::RocksDb, DiskMode::Disabled]));
    let redis = &spec["redis"]["properties"];
    assert_eq!(words(&redis["mode"]), written(&[RedisMode::Disabled, RedisMode::Managed, RedisMode::External]));
    assert_eq!(words(&redis["writeMode"]), written(&[WriteMode::WriteBehind, WriteMode::WriteThrough]));
    let policies = [WhenDisconnected::ServeStale, WhenDisconnected::Miss];
    assert_eq!(words(&spec["backplane"]["properties"]["whenDisconnected"]), written(&policies));
    assert_eq!(words(&spec["backplane"]["properties"]["outbox"]), written(&[Outbox::Queue, Outbox::Refuse]));
    assert_eq!(words(&spec["readOrder"]["items"]), written(&[ColdLayer::Redis, ColdLayer::Disk]));
    let kinds = [RedisKind::Standalone, RedisKind::Sentinel];
    assert_eq!(words(&redis["external"]["properties"]["kind"]), written(&kinds));
    let admissions = [DiskAdmission::All, DiskAdmission::SecondHit];
    assert_eq!(words(&spec["disk"]["properties"]["admission"]), written(&admissions));
    let overflows = [Overflow::Block, Overflow::Reject, Overflow::DropOldest];
    assert_eq!(words(&spec["writeQueue"]["properties"]["overflow"]), written(&overflows));
    let algorithms = [CompressionAlgorithm::None, CompressionAlgorithm::Lz4, CompressionAlgorithm::Zstd];
    assert_eq!(words(&spec["compression"]["properties"]["algorithm"]), written(&algorithms));
    let names = [
        LayerName::Memory,
        LayerName::TagIndex,
        LayerName::WriteQueue,
        LayerName::Redis,
        LayerName::Disk,
        LayerName::Backplane,
    ];
    let layer = &schema["properties"]["status"]["properties"]["layers"]["items"]["properties"];
    assert_eq!(words(&layer["name"]), written(&names));
    let states = [
        HealthState::Healthy,
        HealthState::Disabled,
        HealthState::Degraded,
        HealthState::Unavailable,
        HealthState::Unknown,
    ];
    assert_eq!(words(&layer["health"]), written(&states));
}

#[test]
fn numbers_in_attributes_are_the_constants() {
    let schema = schema();
    assert_eq!(schema["properties"]["spec"]["properties"]["replicas"]["maximum"], f64::from(REPLICAS_MAX));
    assert_eq!(schema["properties"]["status"]["properties"]["nodes"]["maxItems"], REPLICAS_MAX);
    let external = &schema["properties"]["spec"]["properties"]["redis"]["properties"]["external"]["properties"];
    assert_eq!(external["database"]["maximum"], f64::from(*limits::REDIS_DATABASE.end()));
}

#[test]
fn an_empty_status_is_readable_and_a_full_one_reads_back() {
    assert_eq!(serde_json::from_str::<TieredCacheStatus>("{}").unwrap(), TieredCacheStatus::default());
    let status = TieredCacheStatus {
        observed_generation: Some(3),
        layers: vec![LayerStatus {
            name: LayerName::Disk,
            health: HealthState::Degraded,
            nodes_healthy: 1,
            nodes_total: 3,
            reason: "DiskFull".to_owned(),
            message: String::new(),
            since: None,
        }],
        ..TieredCacheStatus::default()
    };
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["layers"][0]["nodesHealthy"], 1);
    assert_eq!(serde_json::from_value::<TieredCacheStatus>(json).unwrap(), status);
}

#[test]
fn the_readme_has_every_field_of_the_spec_with_its_default() {
    let readme = include_str!("../../README.md");
    let schema = schema();
    let mut missing = Vec::new();
    walk("spec", &schema["properties"]["spec"], &mut |path, field| {
        // Items of a list of words are described by the list.
        if field["type"] == "object" || path.ends_with("[]") {
            return;
        }
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{path}` |")));
        let default = field.get("default").map(|value| value.as_str().map_or(value.to_string(), str::to_owned));
        let told = |row: &str| default.as_ref().is_none_or(|default| row.contains(&format!("`{default}`")));
        if !row.is_some_and(told) {
            missing.push(format!("{path} with default {default:?}"));
        }
    });
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn the_readme_has_every_field_of_the_status() {
    let readme = include_str!("../../README.md");
    let mut missing = Vec::new();
    walk("status", &schema()["properties"]["status"], &mut |path, field| {
        let name = path.rsplit('.').next().unwrap_or_default().trim_end_matches("[]");
        if field["type"] != "object" && !path.contains("conditions[].") && !readme.contains(&format!("{name}`")) {
            missing.push(path.to_owned());
        }
    });
    // Lists are written with their brackets.
    missing.retain(|path| !readme.contains(&format!("`{path}[]`")));
    assert_eq!(missing, Vec::<String>::new());
}
