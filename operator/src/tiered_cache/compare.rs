//! Pure: does a live object have everything that was asked for?
//!
//! The API server adds defaults, other controllers add fields, and people add labels. Server-side apply leaves all that
//! alone, so it must not count as a difference: only what we ask for is compared. Lists whose items have a key (`name`,
//! `containerPort` …) are compared by key, as server-side apply merges them, so that an injected container is no drift.
//! Selectors are compared as a whole, as server-side apply replaces them: one more label in one selects other pods.

use serde_json::Value;

use super::amount;

/// Keys of list items in the order of preference, as in the schemas of the objects we build.
const ITEM_KEYS: [&str; 6] = ["name", "mountPath", "containerPort", "topologyKey", "uid", "key"];
/// Fields whose values are amounts, which the API server may write in another form.
const AMOUNTS: [&str; 2] = ["requests", "limits"];

/// Fields to whose values nobody else may add anything.
const WHOLE: [&str; 2] = ["selector", "labelSelector"];

/// The part of `live` that `asked` talks about, in the shape of `asked`; equal to `asked` if nothing differs.
pub(super) fn project(live: &Value, asked: &Value) -> Value {
    projected(live, asked, false)
}

fn projected(live: &Value, asked: &Value, amounts: bool) -> Value {
    match (live, asked) {
        (Value::Object(live), Value::Object(asked)) => {
            let fields = asked.iter().map(|(key, asked)| {
                let live = live.get(key).unwrap_or(&Value::Null);
                if WHOLE.contains(&key.as_str()) {
                    return (key.clone(), live.clone());
                }
                (key.clone(), projected(live, asked, amounts || AMOUNTS.contains(&key.as_str())))
            });
            Value::Object(fields.collect())
        }
        (Value::Array(live), Value::Array(asked)) => match item_key(asked) {
            Some(key) => Value::Array(asked.iter().map(|item| by_key(live, item, key)).collect()),
            None if live.len() == asked.len() => {
                Value::Array(live.iter().zip(asked).map(|(live, asked)| projected(live, asked, false)).collect())
            }
            None => Value::Array(live.clone()),
        },
        (Value::String(found), Value::String(wanted)) if amounts && same_amount(found, wanted) => asked.clone(),
        _ => live.clone(),
    }
}

fn by_key(live: &[Value], asked: &Value, key: &str) -> Value {
    let found = live.iter().find(|item| item.get(key) == asked.get(key));
    found.map_or(Value::Null, |found| projected(found, asked, false))
}

fn item_key(asked: &[Value]) -> Option<&'static str> {
    ITEM_KEYS.into_iter().find(|key| !asked.is_empty() && asked.iter().all(|item| item.get(key).is_some()))
}

fn same_amount(left: &str, right: &str) -> bool {
    amount::milli(left).is_some_and(|left| Some(left) == amount::milli(right))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn has(live: &Value, asked: &Value) -> bool {
        project(live, asked) == *asked
    }

    #[test]
    fn what_others_add_is_no_difference() {
        let asked = json!({"a": 1, "containers": [{"name": "x", "image": "i"}]});
        let live =
            json!({"a": 1, "b": 2, "containers": [{"name": "sidecar"}, {"name": "x", "image": "i", "tty": false}]});
        assert!(has(&live, &asked));
    }

    #[test]
    fn what_is_missing_or_changed_is_a_difference() {
        let asked = json!({"a": {"b": 1}, "containers": [{"name": "x", "image": "i"}]});
        assert!(!has(&json!({"a": {"b": 2}, "containers": [{"name": "x", "image": "i"}]}), &asked));
        assert!(!has(&json!({"a": {"b": 1}, "containers": [{"name": "x", "image": "j"}]}), &asked));
        assert!(!has(&json!({"a": {"b": 1}, "containers": [{"name": "y", "image": "i"}]}), &asked));
        assert!(!has(&json!({"containers": [{"name": "x", "image": "i"}]}), &asked));
    }

    #[test]
    fn a_label_more_in_a_selector_is_a_difference() {
        for asked in [json!({"selector": {"a": "b"}}), json!({"labelSelector": {"matchLabels": {"a": "b"}}})] {
            assert!(has(&asked, &asked));
            let text = asked.to_string().replace("\"b\"", "\"b\", \"x\": \"y\"");
            assert!(!has(&serde_json::from_str(&text).unwrap(), &asked), "{text}");
        }
    }

    #[test]
    fn lists_without_keys_are_compared_as_a_whole() {
        assert!(has(&json!({"args": ["a", "b"]}), &json!({"args": ["a", "b"]})));
        assert!(!has(&json!({"args": ["a", "b", "c"]}), &json!({"args": ["a", "b"]})));
        assert!(!has(&json!({"args": ["b", "a"]}), &json!({"args": ["a", "b"]})));
    }

    #[test]
    fn amounts_are_compared_by_value_and_other_texts_by_letter() {
        assert!(has(&json!({"limits": {"memory": "1Gi"}}), &json!({"limits": {"memory": "1024Mi"}})));
        assert!(!has(&json!({"limits": {"memory": "1Gi"}}), &json!({"limits": {"memory": "1G"}})));
        assert!(!has(&json!({"data": {"memory": "1Gi"}}), &json!({"data": {"memory": "1024Mi"}})));
    }
}
