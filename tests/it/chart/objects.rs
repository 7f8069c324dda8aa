//! What the chart renders, and which values it refuses.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{CHART, VALUE_SETS, file, inventory, object, objects, render, text};
use crate::api::{api, kubectl, namespace};

#[test]
fn helm_lint_has_nothing_to_say() {
    for (name, values) in VALUE_SETS {
        let mut args = vec!["lint", "--strict", CHART];
        args.extend(values);
        let answer = api().helm(&args);
        assert!(answer.ok && !answer.text.contains("[WARNING]"), "{name}: {}", answer.text);
    }
}

#[test]
fn defaults_make_a_cluster_wide_operator() {
    let expected = [
        "CustomResourceDefinition tieredcaches.tieredcache.io",
        "ServiceAccount operators/release-operator",
        "ClusterRole release-operator",
        "ClusterRole release-operator-edit",
        "ClusterRole release-operator-view",
        "ClusterRoleBinding release-operator",
        "Role operators/release-operator-leader",
        "RoleBinding operators/release-operator-leader",
        "Deployment operators/release-operator",
        "PodDisruptionBudget operators/release-operator",
        "Service operators/release-operator-metrics",
    ];
    assert_eq!(inventory(&objects(&[])), expected.map(str::to_owned).into());
}

#[test]
fn with_namespaces_nothing_is_granted_elsewhere() {
    let objects = objects(VALUE_SETS[1].1);
    let inventory = inventory(&objects);
    for role in ["Role", "RoleBinding"] {
        for namespace in ["team-a", "team-b"] {
            assert!(inventory.contains(&format!("{role} {namespace}/release-operator")), "{inventory:?}");
        }
    }
    assert!(!inventory.iter().any(|object| object.starts_with("ClusterRole")), "{inventory:?}");
    let arguments = &object(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"];
    let watched: Vec<&str> = arguments
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|argument| text(argument).strip_prefix("--watch-namespace="))
        .collect();
    assert_eq!(watched, ["team-a", "team-b"]);
}

#[test]
fn everything_optional_can_be_left_out() {
    assert_eq!(inventory(&objects(VALUE_SETS[2].1)), ["Deployment operators/release-operator".to_owned()].into());
}

#[test]
fn the_api_server_takes_what_is_rendered() {
    for name in ["operators", "team-a", "team-b"] {
        kubectl(&["create", "namespace", name], "");
    }
    for (name, values) in VALUE_SETS {
        // The CRD is there already, and belongs to another field manager.
        let args = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-"];
        let answer = kubectl(&args, &render(values));
        assert!(answer.ok && !answer.text.contains("Warning"), "{name}: {}", answer.text);
    }
}

#[test]
fn the_operator_runs_under_the_restricted_standard() {
    let deployment = object(&objects(&[]), "Deployment");
    let mut pod = deployment["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("operator");
    pod["spec"]["serviceAccountName"] = json!("default");
    let namespace = namespace("restricted");
    let label = ["label", "namespace", &namespace, "pod-security.kubernetes.io/enforce=restricted"];
    assert!(kubectl(&label, "").ok);
    kubectl(&["-n", &namespace, "create", "serviceaccount", "default"], "");
    let create = ["-n", namespace.as_str(), "create", "--dry-run=server", "-f", "-"];
    let answer = kubectl(&create, &pod.to_string());
    assert!(answer.ok, "{}", answer.text);
    // The standard does apply: the same pod without its settings is refused.
    pod["spec"]["securityContext"] = json!({});
    let answer = kubectl(&create, &pod.to_string());
    assert!(!answer.ok && answer.text.contains("restricted"), "{}", answer.text);
}

#[test]
fn the_pod_is_what_a_careful_admin_expects() {
    let deployment = object(&objects(&[]), "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["resources"]["limits"].get("cpu"), None, "a CPU limit would delay the lease");
    assert!(container["resources"]["limits"]["memory"].is_string());
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    assert_eq!(container["image"], format!("ghcr.io/tieredcache/operator:{}", env!("CARGO_PKG_VERSION")));
    let spread: Vec<&str> = pod["topologySpreadConstraints"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|constraint| text(&constraint["topologyKey"]))
        .collect();
    assert_eq!(spread, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
}

/// Rows of the table of permissions in the operator's README: API group, resource, verb.
fn documented_permissions(scope: &str) -> BTreeSet<(String, String, String)> {
    let readme = include_str!("../../../operator/README.md");
    let section = readme.split("## Permissions").nth(1).expect("the README lists the permissions");
    let mut found = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with(&format!("| {scope} |"))) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let group = cells[2].trim_matches('`').replace("core", "");
        for resource in cells[3].split(", ") {
            for verb in cells[4].split(", ") {
                found.insert((group.clone(), resource.trim_matches('`').to_owned(), verb.to_owned()));
            }
        }
    }
    found
}

fn granted(role: &Value) -> BTreeSet<(String, String, String)> {
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|word| text(word).to_owned()).collect()
    };
    let mut found = BTreeSet::new();
    for rule in role["rules"].as_array().expect("a role has rules") {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                found.extend(words(&rule["verbs"]).into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    found
}

#[test]
fn the_operator_may_do_exactly_what_its_readme_says() {
    let objects = objects(&[]);
    let role = |name: &str| {
        let found =
            objects.iter().find(|object| text(&object["kind"]).ends_with("Role") && object["metadata"]["name"] == name);
        granted(found.expect("the role is rendered"))
    };
    assert_eq!(role("release-operator"), documented_permissions("watched"));
    assert_eq!(role("release-operator-leader"), documented_permissions("own namespace"));
    for (_, resource, verb) in role("release-operator") {
        assert!(resource != "secrets" && !resource.contains("exec") && verb != "*" && resource != "*");
    }
}

#[test]
fn there_is_no_right_on_secrets_unless_passwords_are_to_be_made() {
    let of = |values: &[&str]| granted(&object(&objects(values), "ClusterRole"));
    let least = ["--set", "rbac.aggregateToUserRoles=false"];
    let most = ["--set", "rbac.aggregateToUserRoles=false,rbac.managedRedisPasswords=true"];
    let more: BTreeSet<_> = of(&most).difference(&of(&least)).cloned().collect();
    assert_eq!(more, documented_permissions("watched, with `rbac.managedRedisPasswords`"));
    assert_eq!(more, BTreeSet::from([(String::new(), "secrets".to_owned(), "create".to_owned())]));
    assert!(!render(&least).contains("secrets"));
}

#[test]
fn arguments_are_flags_of_the_operator() {
    let readme = include_str!("../../../operator/README.md");
    for (_, values) in VALUE_SETS {
        let arguments =
            object(&objects(values), "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"].clone();
        let flags: Vec<&str> = arguments
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|argument| text(argument).strip_prefix("--"))
            .map(|argument| argument.split('=').next().unwrap_or_default())
            .collect();
        assert!(flags.len() >= 5, "{flags:?}");
        for flag in flags {
            assert!(readme.contains(&format!("`--{flag}`")), "--{flag} is not a flag of the operator");
        }
    }
}

#[test]
fn the_crd_of_the_chart_is_the_committed_one() {
    let committed = include_str!("../../../crds/tieredcaches.yaml");
    assert!(
        file("files/tieredcaches.yaml") == committed,
        "stale; write it again: cp crds/tieredcaches.yaml charts/tieredcache-operator/files/"
    );
    let mut rendered = object(&objects(&[]), "CustomResourceDefinition");
    assert_eq!(rendered["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    for added in ["annotations", "labels"] {
        rendered["metadata"].as_object_mut().expect("metadata is an object").remove(added);
    }
    let committed: Value = serde_saphyr::from_str(committed).expect("the CRD is YAML");
    assert_eq!(rendered, committed);
    let unkept = object(&objects(&["--set", "crds.keep=false"]), "CustomResourceDefinition");
    assert_eq!(unkept["metadata"]["annotations"].get("helm.sh/resource-policy"), None);
}

#[test]
fn values_that_can_not_work_are_refused_by_name() {
    for (values, words) in [
        ("replicas=0", &["replicas", "minimum"][..]),
        ("replicas=two", &["replicas", "integer"]),
        ("concurrency=257", &["concurrency", "maximum"]),
        ("log.format=xml", &["format", "json", "text"]),
        ("log.filter=", &["filter", "minLength"]),
        ("watchNamespaces={Team_A}", &["watchNamespaces", "pattern"]),
        ("watchNamespaces=team-a", &["watchNamespaces", "array"]),
        ("image.repository=", &["repository", "pattern"]),
        ("image.pullPolicy=Sometimes", &["pullPolicy", "IfNotPresent"]),
        ("image.digest=x", &["image", "digest"]),
        ("replicaCount=2", &["replicaCount"]),
        ("resources.limits.memory=lots", &["memory", "pattern"]),
        ("podLabels.a=1", &["podLabels", "string"]),
        ("serviceAccount.create=false", &["serviceAccount.name"]),
    ] {
        let answer = api().helm(&["template", "release", CHART, "--set", values]);
        assert!(!answer.ok, "{values} should be refused");
        for word in words {
            assert!(answer.text.contains(word), "{values} should be answered with {word:?}: {}", answer.text);
        }
    }
}
