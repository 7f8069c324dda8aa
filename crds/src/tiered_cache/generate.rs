//! The CustomResourceDefinition, as the API server gets it and as it is committed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::TieredCache;

const HEADER: &str = "\
# Generated from crds/src/tiered_cache.rs by `make crds`; a test fails when the two differ.
";

/// The CustomResourceDefinition of `TieredCache`.
pub fn crd() -> CustomResourceDefinition {
    let mut json = serde_json::to_value(TieredCache::crd()).expect("a CRD is plain data");
    adapt(&mut json);
    mark_as_unseen(&mut json);
    serde_json::from_value(json).expect("adapting leaves a CRD")
}

/// The CustomResourceDefinition as YAML, byte for byte what `crds/tieredcaches.yaml` holds.
pub fn yaml() -> String {
    let mut json = serde_json::to_value(crd()).expect("a CRD is plain data");
    write_whole_numbers(&mut json);
    let body = serde_saphyr::to_string(&json).expect("plain data can be written as YAML");
    format!("{HEADER}{body}")
}

/// Makes of the derived schema what serves people and the API server best.
///
/// - No `nullable`: the API server then drops an explicit `null` or puts the default in its place. A nullable field would
///   keep it, and every rule on the field would have to know a third state.
/// - Descriptions in whole paragraphs: `kubectl explain` breaks the lines to fit the terminal.
fn adapt(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("nullable");
            if let Some(Value::String(description)) = fields.get_mut("description") {
                *description = unwrap_lines(description);
            }
            fields.values_mut().for_each(adapt);
        }
        Value::Array(items) => items.iter_mut().for_each(adapt),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Gives a new object a status that says that nobody has looked at it yet. Without one, tools that go by kstatus, such as
/// Flux, take it for one that is as it should be.
fn mark_as_unseen(crd: &mut Value) {
    for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten() {
        version["schema"]["openAPIV3Schema"]["properties"]["status"]["default"] = json!({"observedGeneration": -1});
    }
}

fn unwrap_lines(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// Writes limits as `100` instead of `100.0`, which the typed CRD makes of them.
fn write_whole_numbers(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(write_whole_numbers),
        Value::Array(items) => items.iter_mut().for_each(write_whole_numbers),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e15) {
                *value = Value::from(whole as i64);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_yaml_is_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tieredcaches.yaml");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == yaml(),
            "crds/tieredcaches.yaml is stale; write it again with `make crds`, and the chart's copy with \
             `cp crds/tieredcaches.yaml charts/tieredcache-operator/files/`"
        );
    }
}
