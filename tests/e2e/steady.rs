//! A fleet that is as its spec says is left alone.

use std::time::{Duration, Instant};

use crate::fleet::{Fleet, equal, eventually};

const SPEC: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenDeleted: Delete}}}";
/// How long nothing may be written.
const SILENCE: Duration = Duration::from_secs(60);
/// How soon a change by hand is undone.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

/// What the operator writes, Lease aside.
const WRITTEN: [&str; 7] =
    ["tieredcaches", "configmaps", "services", "serviceaccounts", "statefulsets", "poddisruptionbudgets", "events"];

/// Writes so far to the kinds of object that the operator writes, by the API server's own counters.
fn writes(fleet: &Fleet) -> Result<f64, String> {
    let metrics = fleet.try_kubectl(&["get", "--raw", "/metrics"])?;
    Ok(metrics
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total{"))
        .filter(|line| {
            ["POST", "PUT", "PATCH", "APPLY", "DELETE"].iter().any(|verb| line.contains(&format!("verb=\"{verb}\"")))
        })
        .filter(|line| WRITTEN.iter().any(|resource| line.contains(&format!("resource=\"{resource}\""))))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
}

#[test]
fn a_steady_fleet_causes_no_writes_for_60_s() {
    let fleet = Fleet::new("steady");
    fleet.apply("cache", SPEC);
    fleet.await_ready("cache", 2, Duration::from_secs(60));
    // What still settles (endpoints, late events of the kubelet) ends soon; after that nothing may be written.
    let mut since = Instant::now();
    let mut last = writes(&fleet).expect("the API server has counters");
    eventually("60 s without a write", SILENCE * 2, || {
        let now = writes(&fleet)?;
        if (now - last).abs() > 0.5 {
            since = Instant::now();
            last = now;
        }
        if since.elapsed() >= SILENCE {
            Ok(())
        } else {
            Err(format!("last write {:.0} s ago", since.elapsed().as_secs_f64()))
        }
    });
}

#[test]
fn what_is_deleted_or_edited_by_hand_is_repaired_within_5_s() {
    let fleet = Fleet::new("drift");
    fleet.apply("cache", SPEC);
    fleet.await_ready("cache", 2, Duration::from_secs(60));
    for object in ["svc/cache", "svc/cache-nodes", "sa/cache-node", "pdb/cache"] {
        let uid = fleet.get(object).expect("the object exists")["metadata"]["uid"].clone();
        fleet.kubectl(&["delete", object, "--wait=false"]);
        eventually(&format!("{object} is made again"), REPAIRED_WITHIN, || {
            let now = fleet.get(object)?["metadata"]["uid"].clone();
            if now == uid { Err("still the old one".to_owned()) } else { Ok(()) }
        });
    }
    fleet.kubectl(&[
        "patch",
        "svc/cache",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/ports/0/port","value":7000}]"#,
    ]);
    eventually("the port is as it was", REPAIRED_WITHIN, || {
        equal(fleet.get("svc/cache")?["spec"]["ports"][0]["port"].as_u64(), Some(6379))
    });
    fleet.kubectl(&["patch", "sts/cache", "--type=merge", "-p", r#"{"spec":{"replicas":1}}"#]);
    eventually("the size is as it was", REPAIRED_WITHIN, || {
        equal(fleet.get("sts/cache")?["spec"]["replicas"].as_u64(), Some(2))
    });
    fleet.await_ready("cache", 2, Duration::from_secs(60));
}

#[test]
fn a_foreign_object_of_the_same_name_is_left_alone_and_named() {
    let fleet = Fleet::new("foreign");
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
    let after = fleet.get("svc/cache").expect("the foreign object exists");
    assert_eq!(after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"], "it is not touched");
    fleet.kubectl(&["delete", "svc/cache"]);
    fleet.await_ready("cache", 2, Duration::from_secs(90));
}
