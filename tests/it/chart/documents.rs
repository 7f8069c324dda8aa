//! The chart's documents say what the chart is.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{file, text};

/// Every value by its path, with its default as YAML writes it. Lists and free maps count as one value.
fn values() -> BTreeMap<String, String> {
    fn collect(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) if !fields.is_empty() && path != "resources" => {
                for (name, field) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    collect(&path, field, found);
                }
            }
            value => {
                found.insert(path.to_owned(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            }
        }
    }
    let values: Value = serde_saphyr::from_str(&file("values.yaml")).expect("values.yaml is YAML");
    let mut found = BTreeMap::new();
    collect("", &values, &mut found);
    found
}

#[test]
fn the_readme_has_every_value_with_its_default() {
    let readme = file("README.md");
    let values = values();
    assert!(values.len() > 20, "{values:?}");
    let row = |path: &str| readme.lines().find(|line| line.starts_with(&format!("| `{path}` |")));
    for (path, default) in &values {
        let row = row(path).unwrap_or_else(|| panic!("README.md has no row for {path}"));
        // A map with several values is described in words.
        if path != "resources" {
            let cell = row.split('|').nth(2).unwrap_or_default().trim();
            assert_eq!(cell.trim_matches('`'), if default.is_empty() { "\"\"" } else { default }, "{path}");
        }
    }
    for line in readme.lines().filter(|line| line.starts_with("| `")) {
        let path = line.split('`').nth(1).unwrap_or_default();
        assert!(values.contains_key(path), "README.md has {path}, which is no value");
    }
}

#[test]
fn every_value_has_a_comment() {
    let text = file("values.yaml");
    let lines: Vec<&str> = text.lines().collect();
    let mut silent = Vec::new();
    let mut in_resources = false;
    for (number, line) in lines.iter().enumerate() {
        let is_value = !line.trim_start().starts_with('#') && line.contains(':');
        if is_value && !line.starts_with(' ') {
            in_resources = line.starts_with("resources:");
        }
        let is_inside_resources = in_resources && line.starts_with(' ');
        if is_value && !is_inside_resources && !lines[number.saturating_sub(1)].trim_start().starts_with('#') {
            silent.push(*line);
        }
    }
    assert_eq!(silent, Vec::<&str>::new());
}

#[test]
fn the_schema_knows_every_value() {
    let schema: Value = serde_json::from_str(&file("values.schema.json")).expect("the schema is JSON");
    for path in values().keys() {
        let mut place = &schema;
        for name in path.split('.') {
            place = &place["properties"][name];
        }
        assert!(place.is_object(), "values.schema.json does not know {path}");
    }
}

#[test]
fn the_chart_has_the_version_of_the_program() {
    let chart: Value = serde_saphyr::from_str(&file("Chart.yaml")).expect("Chart.yaml is YAML");
    assert_eq!(text(&chart["version"]), env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&chart["appVersion"]), env!("CARGO_PKG_VERSION"));
}
