//! The CustomResourceDefinition, as the API server gets it and as it is committed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use super::TieredCache;

const HEADER: &str = "\
# Generated from crds/src/tiered_cache.rs; a test fails when the two differ.
# To write it again: cargo run -p operator -- crds > crds/tieredcaches.yaml
";

/// The CustomResourceDefinition of `TieredCache`.
pub fn crd() -> CustomResourceDefinition {
    let mut json = serde_json::to_value(TieredCache::crd()).expect("a CRD is plain data");
    remove_nullable(&mut json);
    serde_json::from_value(json).expect("removing `nullable` leaves a CRD")
}

/// The CustomResourceDefinition as YAML, byte for byte what `crds/tieredcaches.yaml` holds.
pub fn yaml() -> String {
    let json = serde_json::to_value(crd()).expect("a CRD is plain data");
    let body = serde_saphyr::to_string(&json).expect("plain data can be written as YAML");
    format!("{HEADER}{body}")
}

/// Makes an explicit `null` mean "not given": the API server then drops it or puts the default in its place. A nullable
/// field would keep it, and every rule on the field would have to know a third state.
fn remove_nullable(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("nullable");
            fields.values_mut().for_each(remove_nullable);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nullable),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `REGENERATE=1` the file is written instead of compared.
    #[test]
    fn committed_yaml_is_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tieredcaches.yaml");
        let generated = yaml();
        if std::env::var_os("REGENERATE").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == generated,
            "crds/tieredcaches.yaml is stale; write it again: cargo run -p operator -- crds > crds/tieredcaches.yaml"
        );
    }
}
