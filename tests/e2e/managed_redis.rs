//! A Redis that the operator runs, on a real Kubernetes: it loses its pod and its image, and comes back with its data; and it
//! is left for another one.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::cluster::REDIS_IMAGE;

use crate::fleet::{Fleet, equal, eventually, pod_ready, process_of, processes_of, processor_time};
use crate::turn::{beside, quiet};

const READY_WITHIN: Duration = Duration::from_secs(180);
const TOLD_WITHIN: Duration = Duration::from_secs(90);
/// `maxStaleness`, and half a second for propagation and for two calls of kubectl.
const BOUND: Duration = Duration::from_millis(3500);
/// The pods of three of them.
const REDISES: [&str; 3] = ["cache-redis-0", "cache-redis-1", "cache-redis-2"];
/// Without a disk layer, so that what one node wrote and the other reads has come by Redis.
const OWN: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {mode: Disabled}, redis: {mode: Managed, timeout: \
                   500ms, managed: {image: IMAGE, memory: 64Mi, storage: 512Mi}}}";

/// With a disk, so that a node that comes back has something that it must not trust.
const WITH_DISK: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 512Mi, retention: {whenScaled: Retain, \
                         whenDeleted: Delete}}, redis: {mode: Managed, timeout: 500ms, managed: {image: IMAGE, memory: 64Mi, \
                         storage: 512Mi}}}";

/// Overwrites are acknowledged once Redis has them, so that the other node must have heard of them within the bound. On a
/// busy machine a call may take longer than is usual; here a slow Redis must not be taken for one that is gone.
const REPLICATED: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {mode: Disabled}, backplane: {whenDisconnected: \
                          Miss}, redis: {mode: Managed, timeout: 500ms, writeMode: WriteThrough, managed: {image: IMAGE, \
                          replicas: 3, memory: 64Mi, storage: 512Mi}}}";
/// From the death of a master until writes are acknowledged again: five seconds until it is given up, the election, and
/// the nodes' next look.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(60);

/// For so long the processor time of Redises and Sentinels is watched.
const WATCHED: Duration = Duration::from_secs(5);

fn with_image(image: &str) -> String {
    OWN.replace("IMAGE", image)
}

fn await_redis(fleet: &Fleet, wanted: &str, reason: Option<&str>, limit: Duration) -> String {
    await_condition(fleet, "RedisHealthy", (wanted, reason), limit)
}

fn await_condition(fleet: &Fleet, kind: &str, (wanted, reason): (&str, Option<&str>), limit: Duration) -> String {
    eventually(&format!("{kind} is {wanted}"), limit, || {
        let (status, seen, message) = fleet.condition("cache", kind)?;
        equal(status.as_str(), wanted).map_err(|status| format!("{status}: {seen}: {message}"))?;
        reason.map_or(Ok(()), |reason| equal(seen.as_str(), reason))?;
        Ok(message)
    })
}

/// Waits until the other node finds by Redis what this one has written.
fn await_value(fleet: &Fleet, node: &str, key: &str) {
    eventually(&format!("{node} finds {key}"), TOLD_WITHIN, || {
        equal(fleet.redis(&format!("{node}.cache-nodes"), &["get", key]).as_str(), "value")
    });
}

#[test]
fn a_redis_that_lost_its_pod_comes_back_with_its_data_and_the_status_tells() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "own-redis");
    fleet.apply("cache", &with_image(REDIS_IMAGE));
    fleet.await_ready("cache", 2, READY_WITHIN);
    eventually("Redis runs", READY_WITHIN, || pod_ready(&fleet.get("pod/cache-redis-0")?));
    await_redis(&fleet, "True", None, READY_WITHIN);
    let keys = ["after-pod", "after-image"];
    for key in keys {
        assert_eq!(fleet.redis("cache-0.cache-nodes", &["set", key, "value", "ex", "3600"]), "OK");
    }
    assert_eq!(fleet.redis("cache-0.cache-nodes", &["tc.flush"]), "OK");
    let refused = fleet.redis("cache-redis", &["ping"]);
    assert!(refused.contains("NOAUTH"), "nobody without the password: {refused}");

    let uid = fleet.pod_uid("cache-redis-0");
    let killed = Instant::now();
    fleet.kubectl(&["delete", "pod", "cache-redis-0", "--grace-period=0", "--force"]);
    // Until its process is gone, the old one would answer.
    fleet.await_new_pod("cache-redis-0", &uid, READY_WITHIN);
    await_value(&fleet, "cache-1", keys[0]);
    println!("found again {:.1} s after the pod was killed", killed.elapsed().as_secs_f64());

    fleet.apply("cache", &with_image("localhost/redis:none"));
    let message = await_redis(&fleet, "False", Some("ImageUnavailable"), TOLD_WITHIN);
    assert!(message.contains("cache-redis-0") && message.contains("spec.redis.managed.image"), "{message}");
    assert_eq!(fleet.condition("cache", "Ready").expect("a condition").0, "True", "nodes go on serving");
    assert_eq!(fleet.redis("cache-0.cache-nodes", &["set", "meanwhile", "value"]), "OK");

    fleet.apply("cache", &with_image(REDIS_IMAGE));
    await_redis(&fleet, "True", None, READY_WITHIN);
    await_value(&fleet, "cache-1", keys[1]);
    await_value(&fleet, "cache-1", "meanwhile");
}

/// Whether clients of the Service are sent to this pod.
fn is_given_clients(fleet: &Fleet, pod: &str) -> Result<bool, String> {
    let slices = fleet.get("endpointslices")?;
    let all = slices["items"].as_array().into_iter().flatten();
    let endpoints = all.filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "cache");
    let mut endpoints = endpoints.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    Ok(endpoints.any(|found| found["targetRef"]["name"] == pod && found["conditions"]["ready"] == true))
}

/// What a node waits for before it is ready, in its own words.
fn waits_for(fleet: &Fleet, pod: &str) -> Result<String, String> {
    let report = fleet.admin(pod, "/v1/layers")?;
    let report: Value = serde_json::from_str(&report).map_err(|error| error.to_string())?;
    Ok(report["waitingFor"][0].as_str().unwrap_or_default().to_owned())
}

/// A process that stands still, until dropped.
struct Stopped(u32);

// === impl Stopped ===

impl Stopped {
    fn new(process: u32) -> Self {
        assert!(signal(process, "-STOP"), "kill -STOP {process}");
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // The kubelet ends one that does not answer for a minute.
        signal(self.0, "-CONT");
    }
}

/// Whether there is such a process.
fn signal(process: u32, signal: &str) -> bool {
    Command::new("kill").args([signal, &process.to_string()]).status().expect("kill is a program").success()
}

#[test]
fn a_node_that_does_not_know_yet_what_changed_while_it_was_away_is_given_no_clients() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "caught-up");
    fleet.apply("cache", &WITH_DISK.replace("IMAGE", REDIS_IMAGE));
    fleet.await_ready("cache", 2, READY_WITHIN);
    await_redis(&fleet, "True", None, READY_WITHIN);
    assert_eq!(fleet.redis("cache-1.cache-nodes", &["set", "key", "old", "ex", "3600"]), "OK");
    assert_eq!(fleet.redis("cache-1.cache-nodes", &["tc.flush"]), "OK");
    eventually("cache-1 is given clients", TOLD_WITHIN, || equal(is_given_clients(&fleet, "cache-1")?, true));
    fleet.kubectl(&["scale", "tc/cache", "--replicas=1"]);
    fleet.await_ready("cache", 1, READY_WITHIN);
    assert_eq!(fleet.redis("cache-0.cache-nodes", &["del", "key"]), "1");

    let stopped = Stopped::new(process_of(&fleet.pod_uid("cache-redis-0"), "redis-server").expect("Redis runs"));
    fleet.kubectl(&["scale", "tc/cache", "--replicas=2"]);
    let waiting = eventually("cache-1 waits for the log", READY_WITHIN, || {
        let waiting = waits_for(&fleet, "cache-1")?;
        if waiting.contains("invalidation log") { Ok(waiting) } else { Err(waiting) }
    });
    let given = is_given_clients(&fleet, "cache-1");
    let told = eventually("the status says what cache-1 waits for", READY_WITHIN, || {
        let told = fleet.get("tc/cache")?["status"]["nodes"][1]["message"].as_str().unwrap_or_default().to_owned();
        if told.starts_with("is starting: the invalidation log") {
            return Ok(told);
        }
        // It goes on without the log after 5 s; the operator, which looks every 2 s, may have been too busy. Once more.
        if pod_ready(&fleet.get("pod/cache-1")?).is_ok() {
            fleet.try_kubectl(&["delete", "pod", "cache-1"])?;
        }
        Err(told)
    });
    drop(stopped);
    println!("cache-1: {waiting}; in the status: {told}");
    assert_eq!(given, Ok(false), "{waiting}");

    fleet.await_ready("cache", 2, READY_WITHIN);
    eventually("cache-1 is given clients", TOLD_WITHIN, || equal(is_given_clients(&fleet, "cache-1")?, true));
    assert_eq!(fleet.redis("cache-1.cache-nodes", &["get", "key"]), "", "its disk still had it");
}

/// What this Redis or the Sentinel beside it answers.
fn ask(fleet: &Fleet, pod: &str, container: &str, command: &[&str]) -> Result<String, String> {
    let port = if container == "sentinel" { "26379" } else { "6379" };
    let all = [&["exec", pod, "-c", container, "--", "redis-cli", "-p", port], command].concat();
    fleet.try_kubectl(&all)
}

/// The pod that the Sentinels call the master.
fn master(fleet: &Fleet) -> Result<String, String> {
    // The first that answers: one of them may be gone.
    let mut answers =
        REDISES.iter().map(|pod| ask(fleet, pod, "sentinel", &["sentinel", "get-master-addr-by-name", "main"]));
    let answer = answers.find_map(Result::ok).ok_or("no Sentinel answers")?;
    // Its whole name begins with the pod's.
    answer.split(['.', '\n']).next().map(str::to_owned).ok_or_else(|| format!("no master: {answer}"))
}

/// Starts the fleet with three Redises, and waits until each has what the master has and the Sentinels know all.
fn start_replicated(fleet: &Fleet) {
    fleet.apply("cache", &REPLICATED.replace("IMAGE", REDIS_IMAGE));
    fleet.await_ready("cache", 2, READY_WITHIN);
    for pod in REDISES {
        eventually(&format!("{pod} runs"), READY_WITHIN, || pod_ready(&fleet.get(&format!("pod/{pod}"))?));
        eventually(&format!("the Sentinel of {pod} knows all"), READY_WITHIN, || {
            let told = ask(fleet, pod, "sentinel", &["info", "sentinel"])?;
            if told.contains("slaves=2,sentinels=3") { Ok(()) } else { Err(told) }
        });
    }
    for kind in ["RedisHealthy", "BackplaneHealthy"] {
        await_condition(fleet, kind, ("True", None), READY_WITHIN);
    }
}

/// Whether each Redis and each Sentinel leaves the processor alone when there is next to nothing to do.
fn assert_none_is_busy(fleet: &Fleet) {
    let processes: Vec<(&str, u32, Duration)> = REDISES
        .iter()
        .flat_map(|pod| {
            processes_of(&fleet.pod_uid(pod), "redis-server")
                .expect("pgrep runs")
                .into_iter()
                .map(|process| (*pod, process, processor_time(process)))
        })
        .collect();
    assert_eq!(processes.len(), 2 * REDISES.len(), "a Redis and a Sentinel each: {processes:?}");
    std::thread::sleep(WATCHED);
    for (pod, process, before) in processes {
        let used = processor_time(process) - before;
        assert!(used <= WATCHED / 20, "process {process} of {pod} used the processor for {used:?} of {WATCHED:?}");
    }
}

/// A machine that takes no pods, until dropped.
struct Closed<'a> {
    fleet: &'a Fleet,
    machine: String,
}

// === impl Closed ===

impl<'a> Closed<'a> {
    fn new(fleet: &'a Fleet, machine: String) -> Self {
        fleet.kubectl(&["cordon", &machine]);
        Self { fleet, machine }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        drop(self.fleet.try_kubectl(&["uncordon", &self.machine]));
    }
}

/// Writes numbers by one node and reads them by the other. What was acknowledged longer ago than the bound must not be
/// older when it is read.
struct Judge<'a> {
    fleet: &'a Fleet,
    number: u64,
    /// Acknowledged, and when.
    acknowledged: Vec<(u64, Instant)>,
    read: u64,
}

// === impl Judge ===

impl Judge<'_> {
    fn turn(&mut self) {
        self.number += 1;
        let number = self.number.to_string();
        if self.fleet.redis("cache-0.cache-nodes", &["set", "number", &number, "ex", "3600"]) == "OK" {
            self.acknowledged.push((self.number, Instant::now()));
        }
        let asked = Instant::now();
        let seen = self.fleet.redis("cache-1.cache-nodes", &["get", "number"]);
        assert_eq!(self.fleet.redis("cache-1.cache-nodes", &["get", "removed"]), "", "its removal was acknowledged");
        // Absent is never old.
        let Ok(seen) = seen.parse::<u64>() else { return };
        self.read += 1;
        let due =
            self.acknowledged.iter().rev().find(|(_, at)| asked.duration_since(*at) > BOUND).map(|(number, _)| *number);
        assert!(due.is_none_or(|due| seen >= due), "read {seen} when {due:?} had been acknowledged for {BOUND:?}");
    }
}

#[test]
fn when_the_master_dies_another_takes_its_place_and_nothing_acknowledged_is_served_stale() {
    // It closes a machine, to which the pods of others must be able to come back.
    let turn = quiet();
    let fleet = Fleet::new(&turn, "replicated");
    start_replicated(&fleet);
    let first = master(&fleet).expect("there is a master");
    let uids = ["cache-0", "cache-1"].map(|node| fleet.pod_uid(node));
    for key in ["kept", "removed"] {
        assert_eq!(fleet.redis("cache-0.cache-nodes", &["set", key, "value", "ex", "3600"]), "OK");
        await_value(&fleet, "cache-1", key);
    }
    assert_eq!(fleet.redis("cache-0.cache-nodes", &["tc.del", "removed"]), "OK");
    std::thread::sleep(BOUND);
    let mut judge = Judge { fleet: &fleet, number: 0, acknowledged: Vec::new(), read: 0 };
    eventually("it works before", TOLD_WITHIN, || {
        judge.turn();
        equal(judge.acknowledged.len() >= 5, true)
    });

    // Its volume is on this machine, so that it stays away.
    let machine = fleet.get(&format!("pod/{first}")).expect("the master runs")["spec"]["nodeName"].clone();
    let closed = Closed::new(&fleet, machine.as_str().expect("it has a machine").to_owned());
    let killed = Instant::now();
    fleet.kubectl(&["delete", "pod", &first, "--grace-period=0", "--force"]);
    let next = eventually("another is the master", TAKEN_OVER_WITHIN, || {
        judge.turn();
        let now = master(&fleet)?;
        if now == first { Err(now) } else { Ok(now) }
    });
    println!("{next} after {first}, {:.1} s after it was killed", killed.elapsed().as_secs_f64());
    let before = judge.acknowledged.len();
    eventually("writes are acknowledged again", TAKEN_OVER_WITHIN.saturating_sub(killed.elapsed()), || {
        judge.turn();
        if judge.acknowledged.len() > before { Ok(()) } else { Err("none yet".to_owned()) }
    });
    println!("acknowledged again {:.1} s after the master was killed", killed.elapsed().as_secs_f64());
    // It had been away for longer than the nodes' patience, which they have for longer when it is back.
    await_redis(&fleet, "False", None, TOLD_WITHIN);
    println!("told {:.1} s after the master was killed", killed.elapsed().as_secs_f64());
    (0..10).for_each(|_| judge.turn());
    assert!(judge.read > 5, "{} of {} reads found something", judge.read, judge.number);
    for kind in ["RedisHealthy", "BackplaneHealthy"] {
        await_condition(&fleet, kind, ("True", None), READY_WITHIN);
    }
    let message = await_condition(&fleet, "Degraded", ("True", Some("Unschedulable")), TOLD_WITHIN);
    assert!(message.contains(&first), "none would take the place of the next: {message}");
    await_value(&fleet, "cache-1", "kept");

    drop(closed);
    eventually(&format!("{first} has what the master has"), READY_WITHIN, || {
        pod_ready(&fleet.get(&format!("pod/{first}"))?)?;
        equal(ask(&fleet, &first, "redis", &["role"])?.lines().next(), Some("slave"))
    });
    await_condition(&fleet, "Degraded", ("False", None), TOLD_WITHIN);
    (0..3).for_each(|_| judge.turn());
    assert_eq!(master(&fleet), Ok(next), "the one that came back left it its place");
    assert_eq!(["cache-0", "cache-1"].map(|node| fleet.pod_uid(node)), uids, "no node was restarted for it");
    assert_none_is_busy(&fleet);
}

/// A removal that Redis was not told of is an error, and a node that does not follow trusts nothing, so that every removal
/// that is acknowledged counts. Here a slow Redis must not be taken for one that is gone.
const SWITCHED: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 512Mi, retention: {whenDeleted: Delete}}, \
                        backplane: {whenDisconnected: Miss, outbox: Refuse}, redis: REDIS}";
const FIRST: &str = "{mode: Managed, timeout: 500ms, managed: {image: IMAGE, memory: 64Mi, storage: 512Mi}}";
const SECOND: &str = "{mode: External, timeout: 500ms, external: {endpoints: ['redis:6379']}}";
const NODES: [&str; 2] = ["cache-0", "cache-1"];
/// Values that both nodes have; a few are removed in each second.
const KEYS: usize = 300;

/// What a node answers; an error while it is away.
fn ask_node(fleet: &Fleet, node: &str, command: &[&str]) -> Result<String, String> {
    fleet.try_redis(&format!("{node}.cache-nodes"), command)
}

/// The logs that nodes which serve follow, by the annotation of their pods.
fn logs_followed(fleet: &Fleet) -> BTreeSet<String> {
    let pods = fleet.get("pods").expect("pods are listed")["items"].as_array().cloned().unwrap_or_default();
    let nodes = pods.iter().filter(|pod| NODES.iter().any(|node| pod["metadata"]["name"] == *node));
    let serve = nodes.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && pod_ready(pod).is_ok());
    let log = |pod: &Value| pod["metadata"]["annotations"]["tieredcache.io/redis"].as_str().map(str::to_owned);
    serve.map(|pod| log(pod).expect("the pod says which")).collect()
}

/// Removes one value after the other, by one node and the other in turn. What was removed longer ago than the bound no node
/// may have any more.
struct Removals<'a> {
    fleet: &'a Fleet,
    number: usize,
    /// Acknowledged, and when.
    acknowledged: Vec<(String, Instant)>,
    read: usize,
}

// === impl Removals ===

impl Removals<'_> {
    fn turn(&mut self) {
        let (node, key) = (NODES[self.number % 2], format!("key-{}", self.number));
        self.number += 1;
        if ask_node(self.fleet, node, &["del", &key]).is_ok_and(|answer| answer.parse::<u64>().is_ok()) {
            self.acknowledged.push((key, Instant::now()));
        }
        for node in NODES {
            let due = self.acknowledged.iter().filter(|(_, at)| at.elapsed() > BOUND);
            let due: Vec<&str> = due.map(|(key, _)| key.as_str()).collect();
            if due.is_empty() {
                continue;
            }
            // Absent is never old, and neither is a node that is away.
            let Ok(found) = ask_node(self.fleet, node, &[&["mget"], due.as_slice()].concat()) else { continue };
            self.read += 1;
            let old = found.lines().filter(|line| *line == "value").count();
            assert_eq!(
                old, 0,
                "{node} has values of which the removal was acknowledged {BOUND:?} ago: {due:?}: {found}"
            );
        }
        let logs = logs_followed(self.fleet);
        assert!(logs.len() < 2, "nodes that serve follow two logs: {logs:?}");
    }
}

#[test]
fn switching_to_another_redis_leaves_no_node_behind_that_serves_what_was_removed() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "switched");
    fleet.apply("cache", &SWITCHED.replace("REDIS", FIRST).replace("IMAGE", REDIS_IMAGE));
    fleet.await_ready("cache", 2, READY_WITHIN);
    for kind in ["RedisHealthy", "BackplaneHealthy"] {
        await_condition(&fleet, kind, ("True", None), READY_WITHIN);
    }
    fleet.start_redis();
    let all = |line: &dyn Fn(usize) -> String| (0..KEYS).map(line).collect::<Vec<_>>().join("\n");
    let stored = fleet.redis_script("cache-1.cache-nodes", &all(&|key| format!("set key-{key} value ex 3600")));
    assert_eq!(stored.expect("values are stored").lines().filter(|line| *line == "OK").count(), KEYS);
    for node in NODES {
        let host = format!("{node}.cache-nodes");
        eventually(&format!("{node} has every value"), TOLD_WITHIN, || {
            let found = fleet.redis_script(&host, &all(&|key| format!("get key-{key}")))?;
            equal(found.lines().filter(|line| *line == "value").count(), KEYS)
        });
        assert_eq!(fleet.redis(&host, &["tc.flush"]), "OK");
    }
    let mut removals = Removals { fleet: &fleet, number: 0, acknowledged: Vec::new(), read: 0 };
    eventually("it works before", TOLD_WITHIN, || {
        removals.turn();
        equal(removals.acknowledged.len() >= 4, true)
    });
    let first = logs_followed(&fleet);
    let uids = NODES.map(|node| fleet.pod_uid(node));

    let switched = Instant::now();
    fleet.apply("cache", &SWITCHED.replace("REDIS", SECOND));
    eventually("both nodes follow the other log", READY_WITHIN, || {
        removals.turn();
        for (node, uid) in NODES.iter().zip(&uids) {
            let pod = fleet.get(&format!("pod/{node}"))?;
            equal(pod["metadata"]["uid"] == uid.as_str(), false)?;
            pod_ready(&pod)?;
        }
        Ok(())
    });
    println!("both nodes served again {:.1} s after the change", switched.elapsed().as_secs_f64());
    assert!(logs_followed(&fleet).is_disjoint(&first), "it is another log");
    fleet.await_ready("cache", 2, READY_WITHIN);
    let before = (removals.acknowledged.len(), removals.read);
    eventually("what was removed since is looked for on both nodes", READY_WITHIN, || {
        removals.turn();
        equal(removals.acknowledged.len() > before.0 + 4 && removals.read > before.1 + 8, true)
    });
    println!("{} removals acknowledged, {} reads", removals.acknowledged.len(), removals.read);

    assert_eq!(fleet.redis("cache-0.cache-nodes", &["set", "after", "value", "ex", "3600"]), "OK");
    await_value(&fleet, "cache-1", "after");
    assert_eq!(fleet.redis("cache-0.cache-nodes", &["del", "after"]), "1");
    eventually("the other node hears of it", BOUND, || {
        equal(fleet.redis("cache-1.cache-nodes", &["get", "after"]).as_str(), "")
    });
    let reasons = fleet.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]);
    assert!(reasons.contains("SwitchingRedis"), "{reasons}");
    eventually("the first Redis is gone", READY_WITHIN, || {
        equal(fleet.names(&["sts"], "")?, vec!["sts/cache".to_owned()])
    });
}
