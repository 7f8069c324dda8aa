//! The chart on a real Kubernetes: installed, upgraded, removed and installed again, cluster-wide and for one namespace,
//! while caches go on serving. Each test ends with the operator installed as the other tests expect it.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::cluster::REDIS_IMAGE;

use crate::fleet::{CHART, Fleet, IMAGES, OPERATOR_NAMESPACE, PASSWORDS, cluster, equal, eventually, object, said};
use crate::secret;
use crate::turn::{alone, beside};

const SMALL: &str = "{memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenDeleted: Delete}}}";
const OWN_REDIS: &str = "{memory: {capacity: 64Mi}, disk: {size: 512Mi, retention: {whenDeleted: Delete}}, redis: {mode: \
                         Managed, managed: {image: IMAGE, memory: 64Mi, storage: 512Mi}}}";
const WITHIN: Duration = Duration::from_secs(120);

/// Installs the operator as the other tests expect it, also when the test failed in between.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        // A failure shows in the tests that follow; a panic here would hide the one that is under way.
        drop(try_install(PASSWORDS));
    }
}

fn helm(args: &[&str]) -> Result<(), String> {
    let mut command = cluster().helm_command().map_err(|error| error.to_string())?;
    let output = command.args(args).args(["--namespace", OPERATOR_NAMESPACE]).output();
    said(output.map_err(|error| error.to_string())?).map(drop)
}

fn try_install(values: &str) -> Result<(), String> {
    let values = format!("{IMAGES}{values}");
    helm(&["upgrade", "--install", "tieredcache", CHART, "--set", &values, "--wait", "--timeout", "120s"])
}

fn install(values: &str) {
    let started = Instant::now();
    try_install(values).expect("the chart installs");
    println!("installed in {:.1} s", started.elapsed().as_secs_f64());
}

fn uninstall() {
    let started = Instant::now();
    helm(&["uninstall", "tieredcache", "--wait", "--timeout", "60s"]).expect("the chart uninstalls");
    eventually("no operator is left", WITHIN, || {
        let pods = object(OPERATOR_NAMESPACE, "pods")?;
        equal(pods["items"].as_array().map_or(0, Vec::len), 0)
    });
    println!("uninstalled in {:.1} s", started.elapsed().as_secs_f64());
}

fn operator(args: &[&str]) -> String {
    cluster().kubectl([&["-n", OPERATOR_NAMESPACE], args].concat()).expect("kubectl answers").trim().to_owned()
}

#[test]
fn the_operator_runs_twice_on_two_machines_and_tells_its_metrics() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "chart-runs");
    let pods = operator(&["get", "pods", "-l", "app.kubernetes.io/name=tieredcache-operator", "-o", "name"]);
    assert_eq!(pods.lines().count(), 2, "{pods}");
    let mut machines: Vec<String> =
        pods.lines().map(|pod| operator(&["get", pod, "-o", "jsonpath={.spec.nodeName}"])).collect();
    machines.sort_unstable();
    machines.dedup();
    assert_eq!(machines.len(), 2, "{machines:?}");
    for pod in pods.lines() {
        let name = pod.trim_start_matches("pod/");
        let path = format!("/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{name}:8080/proxy/metrics");
        assert!(operator(&["get", "--raw", &path]).contains("# TYPE tieredcache_"), "{name}");
    }
    let scraped = operator(&[
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=tieredcache-operator-metrics",
        "-o",
        "jsonpath={.items[*].endpoints[*].addresses[0]}",
    ]);
    assert_eq!(scraped.split_whitespace().count(), 2, "{scraped}");
    drop(fleet);
}

#[test]
fn caches_serve_while_the_operator_is_upgraded_removed_and_installed_again() {
    let turn = alone();
    let fleet = Fleet::new(&turn, "chart-life");
    fleet.apply("kept", SMALL);
    fleet.await_ready("kept", 1, WITHIN);
    let _restored = Restored;
    let uid = fleet.pod_uid("kept-0");
    eventually("the Service leads to the node", WITHIN, || {
        equal(fleet.try_redis("kept", &["set", "key", "value"])?.as_str(), "OK")
    });

    install(&format!("{PASSWORDS},log.format=text"));
    assert_eq!(fleet.pod_uid("kept-0"), uid, "an upgrade of the operator restarts no node");

    uninstall();
    assert_eq!(fleet.redis("kept", &["get", "key"]), "value", "nodes do not need the operator");

    install(PASSWORDS);
    fleet.kubectl(&["scale", "tc/kept", "--replicas=2"]);
    fleet.await_ready("kept", 2, WITHIN);
    assert_eq!(fleet.pod_uid("kept-0"), uid, "the new operator takes over what is there");
    assert_eq!(fleet.redis("kept-0.kept-nodes", &["get", "key"]), "value");
}

#[test]
fn an_operator_of_one_namespace_needs_and_touches_no_other() {
    let turn = alone();
    let inside = Fleet::new(&turn, "chart-inside");
    let outside = Fleet::new(&turn, "chart-outside");
    let _restored = Restored;
    uninstall();
    install(",watchNamespaces={chart-inside},rbac.aggregateToUserRoles=false");
    let wide = operator(&[
        "get",
        "clusterroles,clusterrolebindings",
        "-l",
        "app.kubernetes.io/instance=tieredcache",
        "-o",
        "name",
    ]);
    assert_eq!(wide, "", "nothing is granted for the whole cluster");
    outside.apply("other", SMALL);
    inside.apply("mine", &OWN_REDIS.replace("IMAGE", REDIS_IMAGE));
    // It has no right on Secrets either, and asks people for the one that Redis needs.
    eventually("the password is asked for", WITHIN, || {
        let (status, _, message) = inside.condition("mine", "Stalled")?;
        equal((status.as_str(), message.contains("make the Secret mine-redis")), ("True", true))
            .map_err(|seen| format!("{seen}: {message}"))
    });
    let users = "user default on >of-people ~* &* +@all\n";
    secret::put(&inside, "mine-redis", &json!({"password": "of-people", "users.acl": users}));
    inside.await_ready("mine", 1, WITHIN);
    // The other one was there first.
    assert_eq!(
        outside.kubectl(&["get", "statefulsets,pods", "-l", "app.kubernetes.io/instance=other", "-o", "name"]),
        ""
    );

    install(PASSWORDS);
    outside.await_ready("other", 1, WITHIN);
    eventually("the roles of one namespace are gone", WITHIN, || {
        equal(inside.names(&["roles"], "app.kubernetes.io/instance=tieredcache")?, Vec::new())
    });
}
