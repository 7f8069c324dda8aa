//! The life of a fleet on a real Kubernetes: declared, used, restarted, scaled, changed, deleted.

use std::{
    fmt::Write as _,
    fs,
    ops::Range,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::cluster::{CACHE_NODE_IMAGE, NODES_MAX};

use crate::fleet::{Fleet, cluster, equal, eventually, pod_ready, process_of, said};
use crate::turn::{beside, quiet};

/// A small cache of three nodes.
const THREE: &str =
    "{replicas: 3, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenScaled: Delete, whenDeleted: Delete}}}";
/// A small cache of one node.
const ONE: &str = "{replicas: 1, memory: {capacity: 64Mi}, disk: {size: 1Gi, retention: {whenDeleted: Delete}}}";

/// From `kubectl apply` to three ready nodes, images loaded.
const READY_WITHIN: Duration = Duration::from_secs(20);
const RESTART_WITHIN: Duration = Duration::from_secs(120);
/// Events are written after the status, one by one.
const EVENTS_WITHIN: Duration = Duration::from_secs(60);

/// Waits until `kubectl describe`, where a person looks first, shows events of all these reasons.
pub(crate) fn await_events(fleet: &Fleet, cache: &str, reasons: &[&str]) {
    eventually(&format!("{cache} has the events {reasons:?}"), EVENTS_WITHIN, || {
        let described = fleet.try_kubectl(&["describe", "tc", cache])?;
        let events = described.split_once("\nEvents:").ok_or("no events")?.1;
        // Of each event a line: type, reason, age, from whom, note.
        let told: Vec<&str> = events.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        if reasons.iter().all(|reason| told.contains(reason)) { Ok(()) } else { Err(events.to_owned()) }
    });
}

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

/// What `PTTL` says of a key that is not there.
const ABSENT: i64 = -2;

/// Asserts that a key has what is left of its life, to the second: it was stored at some moment of this span, with a
/// life of so many milliseconds. On a machine so busy that its life is over by now it must be absent.
fn assert_life_left(fleet: &Fleet, host: &str, (key, life_ms): (&str, i64), stored: &Range<Instant>) {
    let ms = |time: Duration| i64::try_from(time.as_millis()).expect("minutes");
    let most = life_ms - ms(stored.end.elapsed());
    let left: i64 = fleet.redis(host, &["pttl", key]).parse().expect("a number of milliseconds");
    let least = life_ms - ms(stored.start.elapsed());
    println!("{host}: {key} has {left} ms left, expected {least} to {most}");
    let is_over = left == ABSENT && least <= 1_000;
    assert!(is_over || (least - 1_000..=most + 1_000).contains(&left), "{left} ms left of {key}");
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
    let begun = Instant::now();
    let answers = fleet
        .redis_script(
            host,
            "SET kept v EX 600\nSET short v EX 30\nSET shorter v PX 2500\nSET changed old EX 600\nSET changed new EX 600\nSET gone v EX 600\nDEL gone\nSET forever v\n",
        )
        .expect("commands are answered");
    assert_eq!(answers.lines().filter(|line| line.trim() == "OK").count(), 7, "{answers}");
    // One that outlasts two restarts on a busy machine, and at last the shortest life that goes to disk by default.
    assert_eq!(fleet.redis(plain, &["set", "kept", "v", "EX", "600"]), "OK");
    let stored = begun..Instant::now();
    assert_eq!(fleet.redis(plain, &["set", "edge", "v", "EX", "60"]), "OK");
    let stored_edge = stored.end..Instant::now();
    let pods = ["plain-0", "warm-0"];
    for pod in pods {
        eventually("the write queue is empty", Duration::from_secs(60), || queue_is_empty(&fleet, pod));
        let not_written =
            number(&fleet, pod, "tieredcache_disk_not_written_total{layer=\"disk\",reason=\"short_lived\"}");
        assert_eq!(not_written, Ok(0.0), "all of {pod} are on disk");
    }

    let uids = pods.map(|pod| fleet.pod_uid(pod));
    fleet.kubectl(&["delete", "pod", pods[0], pods[1]]);
    fleet.await_new_pod(pods[0], &uids[0], RESTART_WITHIN);
    // Before anything else: of this one there is little left.
    assert_life_left(&fleet, plain, ("edge", 60_000), &stored_edge);
    fleet.await_new_pod(pods[1], &uids[1], RESTART_WITHIN);

    for host in [host, plain] {
        assert_life_left(&fleet, host, ("kept", 600_000), &stored);
        assert_eq!(fleet.redis(host, &["get", "kept"]), "v");
    }
    assert!(begun.elapsed() > Duration::from_millis(2500));
    assert_eq!(fleet.redis(host, &["exists", "shorter"]), "0", "a value that expired on disk meanwhile is absent");
    assert_eq!(fleet.redis(host, &["get", "changed"]), "new", "an overwritten value does not come back");
    assert_eq!(fleet.redis(host, &["exists", "gone"]), "0", "a removed value does not come back");
    assert_eq!(fleet.redis(host, &["ttl", "forever"]), "-1");
    eventually("a value on disk ends with its life", Duration::from_secs(40), || {
        equal(fleet.redis(host, &["exists", "short"]).as_str(), "0")
    });
    assert!(begun.elapsed() > Duration::from_secs(29), "and not before");
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
            fleet.get("pod/kill-0").and_then(|pod| pod_ready(&pod))
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
    for cache in ["deletes", "retains"] {
        await_events(&fleet, cache, &["ScaledUp", "ScaledDown"]);
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

/// The nodes of the cache `roll`.
const ROLLED: [&str; 3] = ["roll-0", "roll-1", "roll-2"];

/// How many nodes serve and are not on their way down.
fn serving(fleet: &Fleet) -> usize {
    let pods = fleet.get("pods").expect("pods are listed");
    let serves = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && pod_ready(pod).is_ok();
    pods["items"].as_array().into_iter().flatten().filter(serves).count()
}

/// Changes the cache and waits, as people and programs do, with `kubectl wait` right after the change. Then every node
/// must be another one, and never were fewer than two ready meanwhile.
fn roll(fleet: &Fleet, change: &str) {
    let before = ROLLED.map(|pod| fleet.pod_uid(pod));
    let changed = fleet.kubectl(&["patch", "tc/roll", "--type=merge", "-p", change, "-o", "json"]);
    let changed: Value = serde_json::from_str(&changed).expect("kubectl prints JSON");
    // The condition says that it is of before the change. By that kubectl knows that it is no news.
    let generation = changed["metadata"]["generation"].as_i64().expect("every object has one");
    let mut conditions = changed["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.find(|condition| condition["type"] == "Ready").expect("the cache was ready");
    assert_eq!(ready["observedGeneration"].as_i64(), Some(generation - 1), "{ready}");
    let fewest = thread::scope(|scope| {
        let wait = scope.spawn(|| fleet.try_kubectl(&["wait", "tc/roll", "--for=condition=Ready", "--timeout=240s"]));
        let mut fewest = ROLLED.len();
        while !wait.is_finished() {
            fewest = fewest.min(serving(fleet));
            thread::sleep(Duration::from_millis(250));
        }
        wait.join().expect("kubectl is run").expect("the roll comes to its end");
        fewest
    });
    for (pod, uid) in ROLLED.iter().zip(&before) {
        assert_ne!(&fleet.pod_uid(pod), uid, "kubectl waits until {pod} is another one: {change}");
    }
    assert!(fewest >= 2, "only {fewest} nodes were ready at some moment: {change}");
}

/// Gives an image that all machines of the cluster have a second name there.
fn tag(image: &str, name: &str) {
    let program = |process: String| fs::read_link(format!("/proc/{process}/exe")).ok();
    let processes = cluster().processes().into_iter().map(|process| process.as_raw_pid().to_string());
    let runtime = processes.filter_map(program).find(|path| path.ends_with("containerd"));
    // Its own client lies beside it.
    let client = runtime.expect("machines have a container runtime").with_file_name("ctr");
    let machines = (1..=NODES_MAX).map(|number| cluster().layout().node(number).containerd_socket());
    for socket in machines.filter(|socket| socket.exists()) {
        let mut command = Command::new(&client);
        command.arg("--address").arg(&socket).args(["--namespace", "k8s.io", "images", "tag"]);
        // An earlier run may have given the name to an earlier image.
        let output = command.args(["--local", "--force", image, name]).output().expect("the client runs");
        said(output).unwrap_or_else(|message| panic!("{image} on {}: {message}", socket.display()));
    }
}

/// The image that a pod is made with.
fn image_of(fleet: &Fleet, pod: &str) -> String {
    let pod = fleet.get(&format!("pod/{pod}")).expect("the pod exists");
    pod["spec"]["containers"][0]["image"].as_str().expect("a container has an image").to_owned()
}

#[test]
fn a_changed_configuration_and_another_image_roll_one_node_at_a_time() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "story-roll");
    fleet.apply("roll", THREE);
    fleet.await_ready("roll", 3, RESTART_WITHIN);
    roll(&fleet, r#"{"spec": {"memory": {"capacity": "96Mi"}}}"#);
    let other = format!("{CACHE_NODE_IMAGE}:other");
    tag(&image_of(&fleet, "roll-0"), &other);
    roll(&fleet, &format!(r#"{{"spec": {{"image": "{other}"}}}}"#));
    ROLLED.iter().for_each(|pod| assert_eq!(image_of(&fleet, pod), other));
    await_events(&fleet, "roll", &["Created", "ReplacingNode", "RolledOut"]);
}
