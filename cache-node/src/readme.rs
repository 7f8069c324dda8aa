//! The README against the code: its tables of metrics, settings and commands are complete and right.

use std::collections::BTreeMap;

use crds::node_config::NodeConfig;
use serde_json::Value;

use crate::{
    command::SPECS,
    config::{Config, Environment},
    node::Node,
};

const README: &str = include_str!("../README.md");

/// Type, labels and meaning of a metric.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    kind: String,
    labels: Vec<String>,
    meaning: String,
}

/// Cells of the rows whose first cell begins with `start`.
fn rows(start: &str) -> Vec<Vec<&str>> {
    README
        .lines()
        .filter(|line| line.strip_prefix("| ").is_some_and(|row| row.starts_with(start)))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// The words in backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What a scrape says of our own metrics.
fn scraped(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, meaning] => {
                metrics.entry(name.to_owned()).or_default().meaning = meaning.to_owned();
            }
            ["#", "TYPE", name, kind] => metrics.entry(name.to_owned()).or_default().kind = kind.to_owned(),
            _ => {
                let (name, rest) = line.split_once('{').unwrap_or((line, ""));
                let name = name.split(' ').next().unwrap_or_default().trim_end_matches("_bucket");
                let pairs = rest.split('}').next().unwrap_or_default().split(',');
                let labels = pairs.filter_map(|pair| pair.split_once('=')).map(|(label, _)| label.to_owned());
                // Series of a histogram besides its buckets have names of their own and no other labels.
                if let Some(metric) = metrics.get_mut(name) {
                    metric.labels = labels.filter(|label| label != "le").collect();
                }
            }
        }
    }
    metrics.retain(|name, _| name.starts_with("tieredcache_"));
    metrics
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_metrics_is_what_a_node_exports() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let yaml = format!(
        "listen: {{resp: '127.0.0.1:0', admin: '127.0.0.1:0', threads: 1}}\ndisk: {{path: '{}'}}\nredis: {{mode: External, endpoints: ['127.0.0.1:1']}}",
        data.display()
    );
    let node = Node::open(Config::from_yaml(&yaml, &Environment::read()).unwrap()).await.unwrap();
    let text = node.metrics();
    node.shutdown().await;
    let documented: BTreeMap<String, Metric> = rows("`tieredcache_")
        .into_iter()
        .map(|cells| {
            let [name, kind, labels, meaning] = cells[..] else { panic!("four cells in {cells:?}") };
            let metric = Metric { kind: kind.to_owned(), labels: quoted(labels), meaning: meaning.to_owned() };
            (name.trim_matches('`').to_owned(), metric)
        })
        .collect();
    let exported = scraped(&text);
    for (name, metric) in &exported {
        assert_eq!(documented.get(name), Some(metric), "{name}");
    }
    assert_eq!(documented.len(), exported.len(), "a metric is documented that is not exported");
}

/// The fields of a section, by what its parser says to one that it does not know.
fn members_of(section: &str) -> Vec<String> {
    let refusal = Config::from_yaml(&format!("{section}: {{noSuchField: 1}}"), &Environment::read()).unwrap_err();
    let text = refusal.to_string();
    let known = text.split_once("expected one of ").unwrap_or_else(|| panic!("{text}")).1;
    known.split(", ").map(str::to_owned).collect()
}

/// The fields of a tree by their paths.
fn flatten(path: &str, value: &Value, fields: &mut BTreeMap<String, Value>) {
    let Some(members) = value.as_object() else {
        fields.insert(path.to_owned(), value.clone());
        return;
    };
    for (name, value) in members {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        flatten(&path, value, fields);
    }
}

#[test]
fn the_table_of_settings_names_every_field_and_its_default() {
    let config = Config::check(NodeConfig::default(), &Environment::read()).unwrap();
    let yaml: Value = serde_saphyr::from_str(&config.to_yaml()).unwrap();
    let mut fields = BTreeMap::new();
    for (group, value) in yaml.as_object().unwrap() {
        match value.as_object() {
            Some(members) => {
                for name in members_of(group) {
                    // Left out of the file while nobody sets it.
                    let value = members.get(&name).cloned().unwrap_or_else(|| "none".into());
                    flatten(&format!("{group}.{name}"), &value, &mut fields);
                }
            }
            None => {
                fields.insert(group.clone(), value.clone());
            }
        }
    }
    let mut documented = Vec::new();
    for cells in rows("`").iter().filter(|cells| cells.len() == 4 && !cells[0].starts_with("`tieredcache_")) {
        for field in quoted(cells[0]) {
            let value = &fields[&field];
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if text == "none" {
                assert_eq!(cells[1], text, "default of {field}");
            } else if field != "cache.node" && !text.is_empty() {
                assert_eq!(quoted(cells[1]), [text], "default of {field}");
            }
            documented.push(field);
        }
    }
    documented.sort();
    assert_eq!(documented, fields.into_keys().collect::<Vec<_>>());
}

#[test]
fn the_table_of_commands_names_every_command() {
    let section = README.split("## Commands").nth(1).and_then(|rest| rest.split("## ").next()).unwrap();
    // What stands in parentheses are options and subcommands.
    let mut outside = String::new();
    let mut depth = 0_u32;
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        for letter in line.chars() {
            match letter {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ if depth == 0 => outside.push(letter),
                _ => {}
            }
        }
    }
    let mut documented: Vec<String> = quoted(&outside).iter().map(|name| name.to_lowercase()).collect();
    let mut known: Vec<String> = SPECS.iter().map(|spec| spec.name.to_owned()).collect();
    documented.sort();
    known.sort();
    assert_eq!(documented, known);
}
