//! Install, upgrade, uninstall and install again, on an API server without nodes: what becomes of the objects, and who
//! may touch them.

use super::{CHART, render};
use crate::api::{Api, api, eventually, namespace};

const CACHE: &str =
    "{apiVersion: tieredcache.io/v1alpha1, kind: TieredCache, metadata: {name: kept}, spec: {replicas: 2}}";

fn helm(api: &Api, args: &[&str]) {
    let answer = api.helm(args);
    assert!(answer.ok, "helm {args:?}: {}", answer.text);
}

fn kubectl(api: &Api, args: &[&str]) -> String {
    let answer = api.kubectl(args, "");
    assert!(answer.ok, "kubectl {args:?}: {}", answer.text);
    answer.text
}

fn await_established(api: &Api) {
    kubectl(api, &["wait", "crd/tieredcaches.tieredcache.io", "--for=condition=Established", "--timeout=30s"]);
}

#[test]
fn caches_outlive_the_operator_and_meet_it_again() {
    let api = Api::start("-chart");
    let install = ["upgrade", "--install", "tieredcache", CHART, "--namespace", "operators", "--create-namespace"];
    helm(&api, &install);
    await_established(&api);
    let created = api.kubectl(&["create", "-f", "-"], CACHE);
    assert!(created.ok, "{}", created.text);
    let uid = kubectl(&api, &["get", "tc", "kept", "-o", "jsonpath={.metadata.uid}"]);

    // An upgrade brings an old CRD up to date: here one that lost a column.
    kubectl(
        &api,
        &[
            "patch",
            "crd",
            "tieredcaches.tieredcache.io",
            "--type=json",
            "-p",
            r#"[{"op":"remove","path":"/spec/versions/0/additionalPrinterColumns/0"}]"#,
        ],
    );
    assert!(!kubectl(&api, &["get", "tc"]).contains("READY"));
    helm(&api, &[&install[..], &["--set", "log.format=text"]].concat());
    assert!(kubectl(&api, &["get", "tc"]).contains("READY"));
    let arguments =
        kubectl(&api, &["-n", "operators", "get", "deployment", "tieredcache-operator", "-o", "jsonpath={..args}"]);
    assert!(arguments.contains("--log-format=text"), "{arguments}");

    // Uninstalling leaves the resource and the caches, and nothing else.
    helm(&api, &["uninstall", "tieredcache", "--namespace", "operators"]);
    assert_eq!(kubectl(&api, &["get", "tc", "kept", "-o", "jsonpath={.metadata.uid}"]), uid);
    let left = kubectl(
        &api,
        &[
            "get",
            "clusterroles,clusterrolebindings,deployments,services,roles,rolebindings,poddisruptionbudgets",
            "-A",
            "-o",
            "name",
            "-l",
            "app.kubernetes.io/instance=tieredcache",
        ],
    );
    assert!(!left.contains('/'), "left behind: {left}");

    helm(&api, &install);
    assert_eq!(kubectl(&api, &["get", "tc", "kept", "-o", "jsonpath={.metadata.uid}"]), uid);

    // Whoever asks for it gets rid of everything.
    helm(&api, &[&install[..], &["--set", "crds.keep=false"]].concat());
    helm(&api, &["uninstall", "tieredcache", "--namespace", "operators"]);
    kubectl(&api, &["wait", "crd/tieredcaches.tieredcache.io", "--for=delete", "--timeout=60s"]);
}

#[test]
fn people_who_may_edit_a_namespace_may_edit_its_caches() {
    let namespace = namespace("people");
    let roles =
        api().kubectl(&["apply", "--server-side", "-f", "-"], &render(&["--show-only", "templates/user-roles.yaml"]));
    assert!(roles.ok, "{}", roles.text);
    for (name, role) in [("ed", "edit"), ("vic", "view")] {
        kubectl(api(), &["-n", &namespace, "create", "rolebinding", name, "--clusterrole", role, "--user", name]);
    }
    let may = |user: &str, verb: &str, subresource: &str| {
        let subresource = format!("--subresource={subresource}");
        let question =
            ["-n", &namespace, "auth", "can-i", verb, "tieredcaches.tieredcache.io", &subresource, "--as", user];
        api().kubectl(&question, "").ok
    };
    // The controller that aggregates roles takes a moment.
    assert!(eventually(|| may("ed", "create", "")), "editors may create caches");
    assert!(eventually(|| may("ed", "get", "")), "editors may see caches");
    assert!(eventually(|| may("vic", "get", "")), "viewers may see caches");
    assert!(may("ed", "patch", "scale"));
    assert!(!may("ed", "patch", "status"), "status is the operator's");
    assert!(!may("vic", "create", ""));
    assert!(!may("vic", "patch", "scale"));
}
