//! Volumes that grow, and volumes that may not. The test stands in for the storage driver.

use serde_json::{Value, json};

use super::{Lab, message, says, within};
use crate::api::rest;

const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";

/// A class without a driver, whose volumes may grow or not.
fn class(name: &str, grows: bool) {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "none.tieredcache.test", "allowVolumeExpansion": grows,
    });
    rest().create(CLASSES, &class);
}

/// A volume for this node's claim.
fn volume(lab: &Lab, class: &str, node: &str, size: &str) {
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": format!("{}-{node}", lab.namespace)},
        "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": lab.namespace, "name": format!("data-{node}")},
        },
    });
    rest().create("/api/v1/persistentvolumes", &volume);
}

fn claim(lab: &Lab, node: &str) -> Value {
    rest().get(&lab.path("/api/v1", &format!("persistentvolumeclaims/data-{node}"))).unwrap_or_default()
}

/// Waits until the claim of this node asks for `asked`.
fn until_asked(lab: &Lab, node: &str, asked: &str) {
    let look = || (claim(lab, node)["spec"]["resources"]["requests"]["storage"] == asked).then_some(());
    within(60, &format!("the claim of {node} to ask for {asked}"), look);
}

/// As a storage driver and a kubelet do when they are done.
fn has_grown(lab: &Lab, node: &str, size: &str) {
    let path = lab.path("/api/v1", &format!("persistentvolumeclaims/data-{node}/status"));
    assert!(rest().merge(&path, &json!({"status": {"capacity": {"storage": size}}})));
}

#[test]
fn volumes_grow_with_the_spec_while_pods_and_stateful_set_stay() {
    let lab = Lab::new("grow");
    class("grow", true);
    volume(&lab, "grow", "sessions-0", "1Gi");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 1, "disk": {"size": "1Gi", "storageClassName": "grow"}}));
    lab.until_ready("sessions");
    within(60, "the volume to be bound", || (claim(&lab, "sessions-0")["status"]["phase"] == "Bound").then_some(()));
    let parts = [lab.path("/apis/apps/v1", "statefulsets/sessions"), lab.path("/api/v1", "pods/sessions-0")];
    let uids = || parts.each_ref().map(|path| rest().get(path).expect("it is there")["metadata"]["uid"].clone());
    let before = uids();

    lab.edit("sessions", &json!({"disk": {"size": "2Gi"}}));
    until_asked(&lab, "sessions-0", "2Gi");
    let cache = lab.until("sessions", "Progressing", "True GrowingVolumes");
    assert!(message(&cache, "Progressing").contains("data-sessions-0 has 1Gi of 2Gi"), "{cache}");
    lab.until_event("GrowingVolume");
    assert_eq!(says(&cache, "Ready"), "True AllNodesReady");
    // The storage was asked, and can not.
    let path = lab.path("/api/v1", "persistentvolumeclaims/data-sessions-0/status");
    let failed = json!([{"type": "ControllerResizeError", "status": "True", "message": "the pool is full"}]);
    assert!(rest().merge(&path, &json!({"status": {"conditions": failed}})));
    let cache = lab.until("sessions", "Stalled", "True VolumeNotGrown");
    assert!(message(&cache, "Stalled").contains("the pool is full"), "{cache}");
    assert!(rest().merge(&path, &json!({"status": {"conditions": null}})));
    has_grown(&lab, "sessions-0", "2Gi");
    lab.until("sessions", "Progressing", "False Settled");
    assert_eq!(uids(), before, "nothing was made anew");

    // One that is made from the old template is grown too.
    volume(&lab, "grow", "sessions-1", "1Gi");
    lab.edit("sessions", &json!({"replicas": 2}));
    until_asked(&lab, "sessions-1", "2Gi");
    has_grown(&lab, "sessions-1", "2Gi");
    lab.until("sessions", "Progressing", "False Settled");
    lab.assert_silent_for(10);
}

#[test]
fn a_class_that_does_not_grow_is_told_and_stops_nothing_else() {
    let lab = Lab::new("fixed");
    class("fixed", false);
    volume(&lab, "fixed", "sessions-0", "1Gi");
    let _operator = lab.operator().start();
    lab.apply("sessions", json!({"replicas": 1, "disk": {"size": "1Gi", "storageClassName": "fixed"}}));
    lab.until_ready("sessions");
    within(60, "the volume to be bound", || (claim(&lab, "sessions-0")["status"]["phase"] == "Bound").then_some(()));
    lab.edit("sessions", &json!({"disk": {"size": "2Gi"}}));
    let cache = lab.until("sessions", "Stalled", "True VolumeNotGrown");
    for words in ["data-sessions-0 can not grow from 1Gi to 2Gi", "allowVolumeExpansion"] {
        assert!(message(&cache, "Stalled").contains(words), "{cache}");
    }
    assert_eq!(says(&cache, "Degraded"), "True VolumeNotGrown");
    lab.until_event("VolumeNotGrown");
    // Other changes go on.
    lab.edit("sessions", &json!({"memory": {"policy": "TinyLfu"}, "replicas": 2}));
    lab.until_ready("sessions");
    // The way out that the message names; another size is asked for at once, the same one within a minute.
    assert!(rest().merge(&format!("{CLASSES}/fixed"), &json!({"allowVolumeExpansion": true})));
    lab.edit("sessions", &json!({"disk": {"size": "3Gi"}}));
    until_asked(&lab, "sessions-0", "3Gi");
    has_grown(&lab, "sessions-0", "3Gi");
    lab.until("sessions", "Stalled", "False AsExpected");
}
