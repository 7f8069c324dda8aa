//! That no rule in CEL is without cases. A copy of the resource whose rules say their number, instead of what is wrong,
//! tells which of them has refused what.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{DRY_RUN, object, patch, send};
use crate::api::{Answer, CRD, eventually, kubectl};

/// By the spec of a new cache: a value that is accepted, and one that is refused.
const SPECS: &[(&str, &str, &str)] = &[
    ("{resources: {limits: {memory: VALUE}}}", "544Mi", "543Mi"),
    ("{resources: {requests: {memory: VALUE}, limits: {memory: 1Gi}}}", "1Gi", "2Gi"),
    ("{resources: {requests: {cpu: VALUE}, limits: {cpu: 2}}}", "2000m", "2001m"),
    // Nothing fits a limit of 0 either: the rules above refuse it as well.
    ("{resources: {limits: {memory: VALUE}}}", "544Mi", "0"),
    ("{resources: {limits: {cpu: VALUE}}}", "2", "0"),
    ("{resources: {requests: {memory: VALUE}}}", "1Mi", "0"),
    ("{resources: {requests: {cpu: VALUE}}}", "1m", "0"),
    ("{memory: {capacity: VALUE}}", "1Mi", "1023Ki"),
    ("{memory: {maxTtl: VALUE}}", "1s", "999ms"),
    ("{redis: {mode: VALUE}}", "Disabled", "External"),
    ("{redis: {maxTtl: VALUE}}", "1s", "999ms"),
    ("{redis: {timeout: VALUE}}", "10s", "11s"),
    ("{redis: {external: {endpoints: ['a:1'], kind: VALUE}}}", "Standalone", "Sentinel"),
    ("{redis: {external: {endpoints: ['a:1'], tls: {secretRef: {name: c, VALUE: a}}}}}", "caKey", "certKey"),
    ("{redis: {managed: {memory: VALUE, storage: 1Gi}}}", "256Mi", "257Mi"),
    ("{redis: {managed: {memory: VALUE}}}", "16Mi", "15Mi"),
    ("{redis: {managed: {memory: 16Mi, storage: VALUE}}}", "256Mi", "255Mi"),
    ("{redis: {managed: {replicas: VALUE}}}", "3", "2"),
    ("{redis: {mode: Managed}, backplane: {logRecords: VALUE}}", "1048576", "1048577"),
    ("{backplane: {maxStaleness: VALUE}}", "1h", "61m"),
    ("{backplane: {serveStaleFor: VALUE}}", "24h", "25h"),
    ("{readOrder: [Disk, VALUE]}", "Redis", "Disk"),
    ("{disk: {size: VALUE}}", "256Mi", "255Mi"),
    ("{disk: {maxTtl: VALUE}}", "1s", "999ms"),
    ("{disk: {minTtl: VALUE}}", "24h", "25h"),
    ("{disk: {dailyWriteBudget: VALUE}}", "1Mi", "1023Ki"),
    ("{writeQueue: {capacity: VALUE}}", "17Mi", "16Mi"),
    ("{slowLog: {threshold: VALUE}}", "1h", "61m"),
    ("{freshness: {softTimeout: VALUE}}", "10s", "11s"),
    ("{freshness: {refreshWindow: VALUE}}", "10ms", "9ms"),
    ("{freshness: {negativeTtl: VALUE}}", "24h", "25h"),
    ("{compression: {threshold: VALUE}}", "256Mi", "257Mi"),
];

/// By the spec: the value that is stored, one that it may be changed to, and one that it may not.
const CHANGES: &[(&str, &str, &str, &str)] = &[
    ("{disk: {mode: VALUE}}", "Disabled", "Disabled", "RocksDB"),
    ("{disk: {size: VALUE}}", "2Gi", "3Gi", "1Gi"),
    ("{disk: {storageClassName: VALUE}}", "fast", "fast", "slow"),
    ("{redis: {mode: Managed, managed: {storage: VALUE}}}", "2Gi", "3Gi", "1Gi"),
    ("{redis: {mode: Managed, managed: {storageClassName: VALUE}}}", "fast", "fast", "slow"),
    ("{redis: {mode: Managed, managed: {replicas: VALUE}}}", "1", "1", "3"),
];

/// Every rule of the resource, in the order of their numbers.
struct Rules(Vec<String>);

#[test]
fn every_rule_in_cel_accepts_a_case_and_refuses_one() {
    let rules = Rules::install();
    let mut proven = BTreeSet::new();
    let mut judge = |case: &str, accepted: &Answer, refused: &Answer| {
        assert!(accepted.ok, "{case} should be accepted first: {}", accepted.text);
        let new: Vec<usize> = rules.named_in(refused).filter(|&number| proven.insert(number)).collect();
        assert!(new.len() == 1, "{case} should then be refused by one rule without a case so far: {}", refused.text);
    };
    judge("a name", &create("a", "{}", DRY_RUN), &create("1a", "{}", DRY_RUN));
    for (spec, accepted, refused) in SPECS {
        let create = |value: &str| create("cache", &spec.replace("VALUE", value), DRY_RUN);
        judge(spec, &create(accepted), &create(refused));
    }
    for (number, (spec, stored, accepted, refused)) in CHANGES.iter().enumerate() {
        let name = format!("change-{number}");
        let created = create(&name, &spec.replace("VALUE", stored), "");
        assert!(created.ok, "{}", created.text);
        let patch = |value: &str| patch(&format!("{NUMBERED}/{name}"), &spec.replace("VALUE", value));
        judge(spec, &patch(accepted), &patch(refused));
    }
    let rest: Vec<_> = (0..rules.0.len()).filter(|number| !proven.contains(number)).map(|n| &rules.0[n]).collect();
    assert!(rest.is_empty(), "give these a case: {rest:#?}");
}

const NUMBERED: &str = "/apis/rules.tieredcache.io/v1alpha1/namespaces/default/numbered";

/// Creates a cache of the copy, or with [`DRY_RUN`] says what would come of it.
fn create(name: &str, spec: &str, how: &str) -> Answer {
    let kind = json!({"apiVersion": "rules.tieredcache.io/v1alpha1", "kind": "Numbered"});
    send("POST", &format!("{NUMBERED}?{how}"), "application/json", &object(kind, name, spec))
}

// === impl Rules ===

impl Rules {
    /// Reads them from the CustomResourceDefinition, and installs the copy.
    fn install() -> Self {
        let mut copy: Value = serde_saphyr::from_str(CRD).expect("the CRD is YAML");
        copy["metadata"]["name"] = json!("numbered.rules.tieredcache.io");
        copy["spec"]["group"] = json!("rules.tieredcache.io");
        copy["spec"]["names"] = json!({"kind": "Numbered", "plural": "numbered"});
        let mut rules = Self(Vec::new());
        rules.number(&mut copy["spec"]["versions"]);
        let applied = kubectl(&["apply", "--server-side", "-f", "-"], &copy.to_string());
        assert!(applied.ok, "{}", applied.text);
        assert!(eventually(|| create("cache", "{}", DRY_RUN).ok), "the copy is served");
        rules
    }

    fn number(&mut self, schema: &mut Value) {
        match schema {
            Value::Object(fields) => {
                let rules = fields.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut);
                for rule in rules.into_iter().flatten() {
                    let text = rule.to_string();
                    let rule = rule.as_object_mut().expect("a rule is an object");
                    rule.remove("messageExpression");
                    rule.insert("message".to_owned(), json!(message(self.0.len())));
                    self.0.push(text);
                }
                fields.values_mut().for_each(|field| self.number(field));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.number(item)),
            _ => {}
        }
    }

    fn named_in(&self, answer: &Answer) -> impl Iterator<Item = usize> {
        (0..self.0.len()).filter(|&number| answer.text.contains(&message(number)))
    }
}

fn message(number: usize) -> String {
    format!("[rule {number}]")
}
