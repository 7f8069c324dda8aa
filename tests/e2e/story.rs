//! The life of a fleet on a real Kubernetes: declared, used, restarted, scaled, changed, deleted.

use std::{
    fmt::Write as _,
    process::Command,
    time::{Duration, Instant},
};

use crate::fleet::{Fleet, condition_of, equal, eventually, process_of};
use crate::turn::{beside, quiet};

/// A small cache of three nodes.
const THREE: &str =
    "{replicas: 3, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenScaled: Delete, whenDeleted: Delete}}}";
/// A small cache of one node.
const ONE: &str = "{replicas: 1, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenDeleted: Delete}}}";

/// From `kubectl apply` to three ready nodes, images loaded.
const READY_WITHIN: Duration = Duration::from_secs(20);
const RESTART_WITHIN: Duration = Duration::from_secs(120);

#[test]
fn three_nodes_are_ready_within_20_s_of_apply() {
    let turn = quiet();
    let fleet = Fleet::on_quiet_machine(&turn, "story-ready");
    let started = Instant::now();
    fleet.apply("demo", THREE);
    fleet.await_ready("demo", 3, READY_WITHIN);
    println!("apply to Ready with 3 nodes: {:.1} s", started.elapsed().as_secs_f64());
    fleet.kubectl(&["wait", "tc/demo", "--for=condition=Ready", "--timeout=1s"]);
    let machines = fleet.kubectl(&[
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/instance=demo",
        "-o",
        "jsonpath={range .items[*]}{.spec.nodeName}{\"\\n\"}{end}",
    ]);
    let mut machines: Vec<&str> = machines.lines().collect();
    machines.sort_unstable();
    machines.dedup();
    assert_eq!(machines.len(), 3, "nodes are spread over machines: {machines:?}");
}

#[test]
fn a_value_survives_its_pod_with_the_life_it_had_left() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "story-warm");
    // Short lives go to disk, too; in the other cache those that the settings of everybody allow.
    fleet.apply("warm", &ONE.replace("size: 1Gi", "size: 1Gi, minTtl: 0s"));
    fleet.apply("plain", ONE);
    for cache in ["warm", "plain"] {
        fleet.await_ready(cache, 1, RESTART_WITHIN);
    }
    let (host, plain) = ("warm-0.warm-nodes", "plain-0.plain-nodes");
    let stored = Instant::now();
    // The shortest life that goes to disk by default, and one that outlasts two restarts on a busy machine.
    for (key, life) in [("edge", "60"), ("kept", "600")] {
        assert_eq!(fleet.redis(plain, &["set", key, "v", "EX", life]), "OK");
    }
    let answers = fleet
        .redis_script(
            host,
            "SET kept v EX 600\nSET short v EX 30\nSET shorter v PX 2500\nSET changed old EX 600\nSET changed new EX 600\nSET gone v EX 600\nDEL gone\nSET forever v\n",
        )
        .expect("commands are answered");
    let stored_after = stored.elapsed();
    assert_eq!(answers.lines().filter(|line| line.trim() == "OK").count(), 7, "{answers}");
    let pods = ["warm-0", "plain-0"];
    for pod in pods {
        eventually("the write queue is empty", Duration::from_secs(60), || queue_is_empty(&fleet, pod));
        let not_written =
            number(&fleet, pod, "tieredcache_disk_not_written_total{layer=\"disk\",reason=\"short_lived\"}");
        assert_eq!(not_written, Ok(0.0), "all of {pod} are on disk");
    }

    let uids = pods.map(|pod| fleet.pod_uid(pod));
    fleet.kubectl(&["delete", "pod", pods[0], pods[1]]);
    pods.iter().zip(&uids).for_each(|(pod, uid)| fleet.await_new_pod(pod, uid, RESTART_WITHIN));

    for host in [host, plain] {
        let asked = stored.elapsed();
        let left_ms: u64 = fleet.redis(host, &["pttl", "kept"]).parse().expect("a number of milliseconds");
        let (most, least) = (600_000 - (asked - stored_after).as_millis(), 600_000 - stored.elapsed().as_millis());
        println!("{host}: asked after {:.1} s; {left_ms} ms left, expected {least} to {most}", asked.as_secs_f64());
        assert!(u128::from(left_ms) <= most + 1_000 && u128::from(left_ms) + 1_000 >= least, "{left_ms} ms left");
        assert_eq!(fleet.redis(host, &["get", "kept"]), "v");
    }
    assert!(stored.elapsed() > Duration::from_millis(2500));
    assert_eq!(fleet.redis(host, &["exists", "shorter"]), "0", "a value that expired on disk meanwhile is absent");
    assert_eq!(fleet.redis(host, &["get", "changed"]), "new", "an overwritten value does not come back");
    assert_eq!(fleet.redis(host, &["exists", "gone"]), "0", "a removed value does not come back");
    assert_eq!(fleet.redis(host, &["ttl", "forever"]), "-1");
    eventually("a value on disk ends with its life", Duration::from_secs(40), || {
        equal(fleet.redis(host, &["exists", "short"]).as_str(), "0")
    });
    assert!(stored.elapsed() > Duration::from_secs(29), "and not before");
}

/// Rounds of the killed node. In every second one the kill follows the last answer at once.
const ROUNDS: usize = 8;

#[test]
fn removed_and_overwritten_values_do_not_come_back_after_kill_9() {
    let turn = beside();
    const KEYS: usize = 10_000;
    let fleet = Fleet::new(&turn, "story-kill");
    fleet.apply("kill", ONE);
    fleet.await_ready("kill", 1, RESTART_WITHIN);
    let host = "kill-0.kill-nodes";
    let script = |keys: usize, line: &dyn Fn(usize) -> String| {
        (0..keys).map(line).fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{line}");
            all
        })
    };
    let mut lost = 0;
    for round in 0..ROUNDS {
        let at_once = round % 2 == 1;
        let keys = if at_once { KEYS / 5 } else { KEYS };
        fleet
            .redis_script(host, &script(keys, &|key| format!("SET key:{key} old-{round} EX 600")))
            .expect("values are stored");
        eventually("the write queue is empty", Duration::from_secs(60), || queue_is_empty(&fleet, "kill-0"));
        // Even keys are removed, odd ones overwritten.
        let changes = script(keys, &|key| {
            if key % 2 == 0 { format!("DEL key:{key}") } else { format!("SET key:{key} new-{round} EX 600") }
        });
        let pid = fleet.node_process("kill-0");
        fleet.redis_script(host, &changes).expect("changes are acknowledged");
        if !at_once {
            eventually("the write queue is empty", Duration::from_secs(60), || queue_is_empty(&fleet, "kill-0"));
        }
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs").success());
        eventually("the node is back", Duration::from_secs(120), || {
            equal(process_of(&fleet.pod_uid("kill-0"), "cache-node")? == pid, false)?;
            fleet.get("pod/kill-0").and_then(|pod| crate::fleet::pod_ready(&pod))
        });
        let values = fleet.redis_script(host, &script(keys, &|key| format!("GET key:{key}"))).expect("values are read");
        assert_eq!(values.lines().count(), keys);
        for (key, value) in values.lines().enumerate() {
            // What had not reached the disk may be lost: then there is no value, not an older one.
            let is_lost = key % 2 == 1 && at_once && value.is_empty();
            lost += usize::from(is_lost);
            let wanted = if key % 2 == 0 { String::new() } else { format!("new-{round}") };
            assert!(is_lost || value == wanted, "round {round}: key:{key} is {value:?}");
        }
    }
    println!("{ROUNDS} kills: no older value came back, {lost} of the newest were not on disk yet");
}

pub(crate) fn queue_is_empty(fleet: &Fleet, pod: &str) -> Result<(), String> {
    equal(number(fleet, pod, "tieredcache_layer_entries{layer=\"writeQueue\"}")?, 0.0)
}

/// The value of one metric of a node.
fn number(fleet: &Fleet, pod: &str, metric: &str) -> Result<f64, String> {
    let metrics = fleet.admin(pod, "/metrics")?;
    let line = metrics.lines().find(|line| line.starts_with(metric)).ok_or("no such metric")?;
    line.rsplit(' ').next().and_then(|number| number.parse().ok()).ok_or_else(|| line.to_owned())
}

#[test]
fn scaling_keeps_or_deletes_claims_as_the_retention_says() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "story-scale");
    fleet.apply("deletes", THREE);
    fleet.apply("retains", &THREE.replace("whenScaled: Delete", "whenScaled: Retain"));
    for cache in ["deletes", "retains"] {
        fleet.await_ready(cache, 3, RESTART_WITHIN);
        fleet.kubectl(&["scale", &format!("tc/{cache}"), "--replicas=5"]);
        fleet.await_ready(cache, 5, RESTART_WITHIN);
        fleet.kubectl(&["scale", &format!("tc/{cache}"), "--replicas=2"]);
        fleet.await_ready(cache, 2, RESTART_WITHIN);
    }
    for (cache, claims) in [("deletes", 2), ("retains", 5)] {
        eventually(&format!("claims of {cache}"), RESTART_WITHIN, || equal(claims_of(&fleet, cache)?, claims));
    }
    fleet.kubectl(&["delete", "tc", "deletes", "retains"]);
    eventually("deletion leaves nothing that the policy does not retain", RESTART_WITHIN, || {
        let kinds = ["pvc", "pods", "sts", "svc", "cm", "pdb", "sa"];
        equal(fleet.names(&kinds, "app.kubernetes.io/managed-by=tieredcache-operator")?, Vec::new())
    });
}

pub(crate) fn claims_of(fleet: &Fleet, cache: &str) -> Result<usize, String> {
    Ok(fleet.names(&["pvc"], &format!("app.kubernetes.io/instance={cache}"))?.len())
}

#[test]
fn a_changed_configuration_rolls_one_node_at_a_time() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "story-roll");
    fleet.apply("roll", THREE);
    fleet.await_ready("roll", 3, RESTART_WITHIN);
    let before: Vec<String> = (0..3).map(|ordinal| fleet.pod_uid(&format!("roll-{ordinal}"))).collect();
    fleet.apply("roll", &THREE.replace("capacity: 64Mi", "capacity: 96Mi"));
    let mut fewest_ready = 3;
    eventually("the roll is over", Duration::from_secs(240), || {
        let pods = fleet.get("pods")?;
        let nodes = pods["items"].as_array().cloned().unwrap_or_default();
        let ready = nodes
            .iter()
            .filter(|pod| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("roll-")))
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && crate::fleet::pod_ready(pod).is_ok())
            .count();
        fewest_ready = fewest_ready.min(ready);
        let object = fleet.get("tc/roll")?;
        equal(object["status"]["observedGeneration"].clone(), object["metadata"]["generation"].clone())?;
        equal(condition_of(&object, "Ready")?.0, "True".to_owned())
    });
    assert!(fewest_ready >= 2, "only {fewest_ready} nodes were ready at some moment");
    for (ordinal, uid) in before.iter().enumerate() {
        assert_ne!(&fleet.pod_uid(&format!("roll-{ordinal}")), uid, "every node runs the new configuration");
    }
}
