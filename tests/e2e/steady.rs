//! A fleet that is as its spec says is left alone.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fleet::{Fleet, equal, eventually};
use crate::story::await_events;
use crate::turn::{beside, calm};

const SPEC: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenDeleted: Delete}}}";
/// Of a fleet on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// How soon a change by hand is undone.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn a_steady_fleet_causes_no_writes_for_60_s() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "steady");
    fleet.apply("cache", SPEC);
    fleet.await_ready("cache", 2, READY_WITHIN);
    fleet.await_silence();
}

/// Every kind of object that a cache named `cache` owns, with a change by hand: a patch, and the field that it changes.
fn changes_by_hand(config_map: &str) -> [(&str, &'static str, &'static str); 6] {
    let other_port = r#"{"spec":{"ports":[{"name":"resp","port":7000,"targetPort":"resp"}]}}"#;
    [
        ("svc/cache", other_port, "/spec/ports"),
        ("svc/cache-nodes", r#"{"spec":{"publishNotReadyAddresses":false}}"#, "/spec/publishNotReadyAddresses"),
        ("sa/cache-node", r#"{"automountServiceAccountToken":true}"#, "/automountServiceAccountToken"),
        ("pdb/cache", r#"{"spec":{"maxUnavailable":2}}"#, "/spec/maxUnavailable"),
        // What is in it can not be changed by anybody.
        (config_map, r#"{"metadata":{"labels":{"app.kubernetes.io/instance":"other"}}}"#, "/metadata/labels"),
        ("sts/cache", r#"{"spec":{"replicas":1}}"#, "/spec/replicas"),
    ]
}

#[test]
fn what_is_deleted_or_edited_by_hand_is_repaired_within_5_s() {
    let turn = calm();
    let fleet = Fleet::on_quiet_machine(&turn, "drift");
    fleet.apply("cache", SPEC);
    fleet.await_ready("cache", 2, READY_WITHIN);
    let config_map = fleet.kubectl(&["get", "cm", "-l", "app.kubernetes.io/instance=cache", "-o", "name"]);
    let refused = fleet.try_kubectl(&["patch", &config_map, "--type=merge", "-p", r#"{"data":{"config.yaml":""}}"#]);
    assert!(refused.as_ref().is_err_and(|message| message.contains("immutable")), "{refused:?}");
    let mut slowest = Duration::ZERO;
    let mut repaired = |what: &str, is_repaired: &dyn Fn(&Value) -> Result<(), String>| {
        let started = Instant::now();
        let object = what.split(' ').next_back().unwrap_or_default();
        eventually(&format!("{what} by hand is undone"), REPAIRED_WITHIN, || is_repaired(&fleet.get(object)?));
        slowest = slowest.max(started.elapsed());
    };
    for (object, patch, field) in changes_by_hand(&config_map) {
        let before = fleet.get(object).expect("the object exists");
        fleet.kubectl(&["delete", object, "--wait=false"]);
        repaired(&format!("deletion of {object}"), &|now| {
            if now["metadata"]["uid"] == before["metadata"]["uid"] {
                return Err("still the old one".to_owned());
            }
            equal(now.pointer(field), before.pointer(field))
        });
        fleet.kubectl(&["patch", object, "--type=merge", "-p", patch]);
        repaired(&format!("change of {object}"), &|now| equal(now.pointer(field), before.pointer(field)));
    }
    println!("the slowest of twelve repairs took {:.1} s", slowest.as_secs_f64());
    await_events(&fleet, "cache", &["Repaired"]);
    // A StatefulSet that was deleted took its pods and their claims along.
    fleet.await_ready("cache", 2, READY_WITHIN);
}

#[test]
fn a_foreign_object_of_the_same_name_is_left_alone_and_named() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "foreign");
    fleet.kubectl(&["create", "service", "clusterip", "cache", "--tcp=80:80"]);
    let before = fleet.get("svc/cache").expect("the foreign object exists");
    fleet.apply("cache", SPEC);
    eventually("the status names the foreign object", Duration::from_secs(30), || {
        let (status, reason, message) = fleet.condition("cache", "Ready")?;
        equal(status, "False".to_owned())?;
        if message.contains("cache") && message.to_lowercase().contains("service") {
            Ok(())
        } else {
            Err(format!("{reason}: {message}"))
        }
    });
    await_events(&fleet, "cache", &["ResourceConflict"]);
    let after = fleet.get("svc/cache").expect("the foreign object exists");
    assert_eq!(after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"], "it is not touched");
    fleet.kubectl(&["delete", "svc/cache"]);
    fleet.await_ready("cache", 2, READY_WITHIN);
}
