//! Trouble on a real Kubernetes: what the status says about it, and that a good spec heals it.

use std::time::Duration;

use serde_json::json;

use crate::chaos::leader_after;
use crate::fleet::{Fleet, OPERATOR_NAMESPACE, cluster, equal, eventually};
use crate::story::await_events;
use crate::turn::{beside, quiet};

const TWO: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenDeleted: Delete}}}";
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How soon the status must tell the truth about a machine that was cut off, or came back.
const TRUTH_WITHIN: Duration = Duration::from_secs(20);

/// Waits until some condition of the cache mentions the text while `Ready` is not `True`.
fn await_explanation(fleet: &Fleet, cache: &str, text: &str) {
    eventually(&format!("the status of {cache} mentions {text}"), READY_WITHIN, || {
        equal(fleet.condition(cache, "Ready")?.0, "False".to_owned())?;
        let conditions = fleet.get(&format!("tc/{cache}"))?["status"]["conditions"].to_string();
        if conditions.contains(text) { Ok(()) } else { Err(conditions) }
    });
}

#[test]
fn a_bad_image_stops_at_one_node_and_a_good_one_heals_it() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "trouble-image");
    fleet.apply("cache", TWO);
    fleet.await_ready("cache", 2, READY_WITHIN);
    let bad = TWO.replace("replicas: 2", "replicas: 2, image: 'localhost/no-such-image:1', imagePullPolicy: Never");
    fleet.apply("cache", &bad);
    await_explanation(&fleet, "cache", "localhost/no-such-image:1");
    let ready = fleet.get("tc/cache").expect("the cache exists")["status"]["readyReplicas"].as_u64();
    assert_eq!(ready, Some(1), "the other node goes on");
    await_events(&fleet, "cache", &["NodeUnhealthy"]);
    fleet.apply("cache", TWO);
    // `apply` leaves a field that it does not name any more only if it named it before, which it did.
    fleet.await_ready("cache", 2, READY_WITHIN);
    await_events(&fleet, "cache", &["NodeRecovered"]);
}

#[test]
fn kubectl_describe_shows_what_is_wrong_with_a_configuration() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "trouble-config");
    fleet.apply("cache", "{replicas: 1, memory: {capacity: 64Mi}, disk: {mode: Disabled}}");
    fleet.await_ready("cache", 1, READY_WITHIN);
    // A pod as the operator makes them, with another file.
    let bad = "memory: {capacity: 512Ki}\nlimits: {connectionsMax: 0}";
    fleet.kubectl(&["create", "configmap", "bad", &format!("--from-literal=config.yaml={bad}")]);
    let mut pod = fleet.get("sts/cache").expect("the StatefulSet exists")["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"] = json!({"name": "misled", "namespace": fleet.namespace});
    pod["spec"]["volumes"][0]["configMap"]["name"] = json!("bad");
    fleet.cluster.apply(&pod.to_string()).expect("the pod is accepted");
    let expected =
        ["memory.capacity: 512Ki is below the minimum of 1Mi", "limits.connectionsMax: 0 is below the minimum of 1"];
    eventually("kubectl describe shows field, value and limit", READY_WITHIN, || {
        let told = fleet.try_kubectl(&["describe", "pod", "misled"])?;
        let exited = told.lines().any(|line| line.trim().starts_with("Exit Code:") && line.ends_with(" 2"));
        if exited && expected.iter().all(|words| told.contains(words)) { Ok(()) } else { Err(told) }
    });
}

#[test]
fn a_storage_class_that_does_not_exist_is_named_and_the_fleet_heals_once_it_does() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "trouble-class");
    fleet.apply("cache", &TWO.replace("size: 1Gi", "size: 1Gi, storageClassName: no-such-class"));
    await_explanation(&fleet, "cache", "no-such-class");
    let listed = fleet.kubectl(&["get", "storageclasses", "-o", "jsonpath={.items[0].provisioner}"]);
    let class = format!(
        "{{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {{name: no-such-class}}, provisioner: {listed}, \
         volumeBindingMode: WaitForFirstConsumer}}"
    );
    let _class = Class;
    cluster().apply(&class).expect("a class can be made");
    fleet.await_ready("cache", 2, READY_WITHIN * 2);
}

/// The class of the test above, for which nothing is left once it is dropped.
struct Class;

impl Drop for Class {
    fn drop(&mut self) {
        // It may not have been made.
        let _ = cluster().kubectl(["delete", "storageclass", "no-such-class", "--ignore-not-found"]);
    }
}

/// Cuts a machine off and heals it; the status must say so both times.
fn cut_and_heal(fleet: &Fleet, machine: u8) {
    let told = |ready: &str, replicas: u64| {
        eventually(&format!("Ready is {ready} with {replicas} nodes"), TRUTH_WITHIN, || {
            equal(fleet.condition("cache", "Ready")?.0.as_str(), ready)?;
            equal(fleet.get("tc/cache")?["status"]["readyReplicas"].as_u64(), Some(replicas))
        });
    };
    cluster().cut(machine).expect("the machine is cut off");
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| told("False", 2)));
    cluster().heal(machine).expect("the machine is connected again");
    seen.expect("the truth while the machine was cut off");
    told("True", 3);
}

/// The number of the machine that a pod runs on.
fn machine_of(namespace: &str, pod: &str) -> u8 {
    let path = "jsonpath={.spec.nodeName}";
    let name = cluster().kubectl(["-n", namespace, "get", "pod", pod, "-o", path]).expect("kubectl answers");
    name.trim().trim_start_matches(|c: char| !c.is_ascii_digit()).parse().expect("machines are numbered")
}

#[test]
fn a_machine_that_is_cut_off_shows_in_the_status_and_so_does_its_return_also_if_the_operator_led_there() {
    let turn = quiet();
    let fleet = Fleet::on_quiet_machine(&turn, "trouble-cut");
    fleet.apply("cache", &TWO.replace("replicas: 2", "replicas: 3"));
    fleet.await_ready("cache", 3, READY_WITHIN);
    let led_from = machine_of(OPERATOR_NAMESPACE, &leader_after("").0);
    let other = (1..=3).find(|machine| *machine != led_from).expect("there are three");
    cut_and_heal(&fleet, other);
    await_events(&fleet, "cache", &["NodeUnhealthy", "NodeRecovered"]);
    cut_and_heal(&fleet, led_from);
}
