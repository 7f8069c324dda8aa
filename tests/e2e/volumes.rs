//! What volumes keep when nodes stop, a cache shrinks, or is deleted and made again.

use std::{fmt::Write, time::Duration};

use crate::fleet::{Fleet, equal, eventually};
use crate::story::{claims_of, queue_is_empty};
use crate::turn::beside;

/// Of a deleted cache all is kept, also when nothing is said of it.
const TWO: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenScaled: Retain}}}";
const WITHIN: Duration = Duration::from_secs(120);

#[test]
fn a_fleet_that_grows_again_is_warm_and_a_cache_of_the_name_of_a_deleted_one_starts_cold_on_its_volumes() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "volumes-kept");
    fleet.apply("again", TWO);
    fleet.await_ready("again", 2, WITHIN);
    let (pod, host) = ("again-1", "again-1.again-nodes");
    assert_eq!(fleet.redis(host, &["set", "key", "value", "EX", "3600"]), "OK");
    eventually("the write queue is empty", WITHIN, || queue_is_empty(&fleet, pod));
    fleet.kubectl(&["scale", "tc/again", "--replicas=1"]);
    fleet.await_ready("again", 1, WITHIN);
    fleet.kubectl(&["scale", "tc/again", "--replicas=2"]);
    fleet.await_ready("again", 2, WITHIN);
    assert_eq!(fleet.redis(host, &["get", "key"]), "value");

    fleet.kubectl(&["delete", "tc/again"]);
    eventually("the pods are gone", WITHIN, || {
        equal(fleet.names(&["pods", "sts"], "app.kubernetes.io/instance=again")?, Vec::new())
    });
    assert_eq!(claims_of(&fleet, "again"), Ok(2));
    fleet.apply("again", TWO);
    fleet.await_ready("again", 2, WITHIN);
    assert_eq!(fleet.redis(host, &["get", "key"]), "", "it is of another cache");
    let report = fleet.admin(pod, "/v1/layers").expect("the node answers");
    assert!(report.contains("StartedCold"), "{report}");
    assert_eq!(claims_of(&fleet, "again"), Ok(2), "they are its own now");
}

#[test]
fn what_is_queued_when_a_pod_is_deleted_is_on_its_volume_afterwards() {
    const KEYS: usize = 20_000;
    let turn = beside();
    let fleet = Fleet::new(&turn, "volumes-drained");
    fleet.apply("drained", &TWO.replace("replicas: 2", "replicas: 1"));
    fleet.await_ready("drained", 1, WITHIN);
    let host = "drained-0.drained-nodes";
    let script = |line: &dyn Fn(usize) -> String| {
        (0..KEYS).map(line).fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{line}");
            all
        })
    };
    let uid = fleet.pod_uid("drained-0");
    fleet.redis_script(host, &script(&|key| format!("SET key:{key} value-{key} EX 3600"))).expect("values are stored");
    fleet.kubectl(&["delete", "pod", "drained-0"]);
    fleet.await_new_pod("drained-0", &uid, WITHIN);
    let values = fleet.redis_script(host, &script(&|key| format!("GET key:{key}"))).expect("values are read");
    let lost: Vec<usize> = values
        .lines()
        .enumerate()
        .filter(|(key, value)| *value != format!("value-{key}"))
        .map(|(key, _)| key)
        .collect();
    assert_eq!((values.lines().count(), lost), (KEYS, Vec::new()));
}
