//! The operator in its pods, killed again and again while caches are made, scaled, changed and deleted.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};

use crate::fleet::{Fleet, OPERATOR_NAMESPACE, cluster, equal, eventually, object, process_of};
use crate::turn::first;

/// How often the leader is killed.
const KILLS: u32 = 30;
/// Steps in the life of the two caches; the last one leaves `kept` as it must end.
const STEPS: u32 = 6;
/// The longest that a leader lives, from before its first visit to after its last write of a change.
const LIFE_MAX: Duration = Duration::from_millis(1500);
/// A replica looks at the Lease every 2 s; the rest is for a busy machine.
const LEADS_WITHIN: Duration = Duration::from_secs(30);
/// From the last kill to the end state: a rollout of three nodes may have to be gone through.
const SETTLES_WITHIN: Duration = Duration::from_secs(300);

/// Takes a fleet through one step.
fn step(fleet: &Fleet, number: u32) {
    let apply = |name: &str, replicas: u32, memory: &str| {
        let disk = "{size: 1Gi, retention: {whenScaled: Delete, whenDeleted: Delete}}";
        fleet.apply(name, &format!("{{replicas: {replicas}, memory: {memory}, disk: {disk}}}"));
    };
    match number {
        0 => apply("kept", 2, "{capacity: 64Mi}"),
        1 => apply("gone", 1, "{capacity: 64Mi}"),
        2 => apply("kept", 3, "{capacity: 64Mi}"),
        3 => apply("kept", 3, "{capacity: 64Mi, policy: TinyLfu}"),
        4 => drop(fleet.kubectl(&["delete", "tc/gone", "--wait=false"])),
        _ => apply("kept", 2, "{capacity: 96Mi, policy: TinyLfu}"),
    }
}

/// The pod that leads and its identity, which no other process has, once it is another than `last`.
pub(crate) fn leader_after(last: &str) -> (String, String) {
    eventually("a replica leads", LEADS_WITHIN, || {
        let lease = object(OPERATOR_NAMESPACE, "lease/tieredcache-operator")?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        if holder.is_empty() || holder == last {
            return Err(format!("held by {holder:?}"));
        }
        let pod = holder.rsplit_once('_').map_or(holder.as_str(), |(pod, _)| pod).to_owned();
        Ok((pod, holder))
    })
}

/// Ends the process of a replica without warning, and makes room for a new pod: the kubelet would keep one that died
/// often waiting. The Lease goes too, or the next one would stand by until it ran out.
fn kill(pod: &str) -> Result<(), String> {
    let uid = object(OPERATOR_NAMESPACE, &format!("pod/{pod}"))?["metadata"]["uid"].clone();
    let process = process_of(uid.as_str().unwrap_or_default(), "operator")?;
    let killed = Command::new("kill").args(["-9", &process.to_string()]).status().map_err(|error| error.to_string())?;
    equal(killed.success(), true)?;
    system(&["delete", "pod", pod, "--wait=false"])?;
    system(&["delete", "lease", "tieredcache-operator", "--ignore-not-found"]).map(drop)
}

fn system(args: &[&str]) -> Result<String, String> {
    let all = [&["-n", OPERATOR_NAMESPACE], args].concat();
    cluster().kubectl(all).map(|text| text.trim().to_owned()).map_err(|error| error.to_string())
}

/// Waits until `kept` is as the last step asks for and nothing of `gone` is left.
fn await_end(fleet: &Fleet) {
    fleet.await_ready("kept", 2, SETTLES_WITHIN);
    eventually("nothing of the deleted cache is left", SETTLES_WITHIN, || {
        let kinds = ["tc", "pvc", "pods", "sts", "svc", "cm", "pdb", "sa"];
        equal(fleet.names(&kinds, "app.kubernetes.io/instance=gone")?, Vec::new())?;
        // The node that scaling down took away goes in its own time.
        equal(claims(fleet)?, 2)
    });
}

fn claims(fleet: &Fleet) -> Result<usize, String> {
    Ok(fleet.names(&["pvc", "pods"], "app.kubernetes.io/instance=kept")?.len() / 2)
}

/// Everything that belongs to caches of the fleet, without what Kubernetes makes up anew each time.
fn state(fleet: &Fleet) -> Result<Vec<Value>, String> {
    let selector = "app.kubernetes.io/managed-by=tieredcache-operator";
    let list = fleet.try_kubectl(&["get", "sa,cm,svc,pdb,sts,pods,pvc", "-l", selector, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list).map_err(|error| error.to_string())?;
    let mut objects: Vec<Value> = list["items"].as_array().cloned().unwrap_or_default();
    objects.iter_mut().for_each(canonical);
    objects.sort_by_key(Value::to_string);
    Ok(objects)
}

fn canonical(object: &mut Value) {
    const MADE_UP: [&str; 17] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "generation",
        "clusterIP",
        "clusterIPs",
        "status",
        "namespace",
        "nodeName",
        "volumeName",
        "controller-revision-hash",
        "volume.kubernetes.io/selected-node",
        "topology.kubernetes.io/zone",
        // The configuration, its name and the hash over both carry the cache's UID.
        "config.yaml",
        "configMap",
        "tieredcache.io/template",
    ];
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|key, _| !MADE_UP.contains(&key.as_str()));
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(object);
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if let Some((stem, _)) = name.split_once("-config-") {
        object["metadata"]["name"] = json!(format!("{stem}-config"));
    }
}

#[test]
fn killed_thirty_times_at_random_in_its_pods_it_comes_to_the_same_end_and_then_rests() {
    let mut turn = first();
    let (calm, stormy) = (Fleet::new(&turn, "chaos-calm"), Fleet::new(&turn, "chaos-storm"));
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let started = Instant::now();
    let mut holder = String::new();
    for kill_number in 0..KILLS {
        if kill_number % (KILLS / STEPS) == 0 {
            step(&stormy, kill_number / (KILLS / STEPS));
        }
        // A pod that was killed may be started again, and lead, before it is gone.
        holder = eventually("the leader is killed", LEADS_WITHIN, || {
            let (pod, identity) = leader_after(&holder);
            thread::sleep(LIFE_MAX.mul_f64(random.random()));
            kill(&pod).map(|()| identity)
        });
    }
    println!("{KILLS} kills in {:.0} s, {} writes", started.elapsed().as_secs_f64(), stormy.writes().len());
    leader_after(&holder);
    await_end(&stormy);
    println!("settled after {:.0} s", started.elapsed().as_secs_f64());
    // Nobody kills the operator of others any more.
    turn.goes_on_beside();

    // The one that nobody kills shows the end state; it has a namespace of its own, so both go on at once.
    (0..STEPS).for_each(|number| step(&calm, number));
    await_end(&calm);
    stormy.await_silence();
    let (ends_stormy, ends_calm) = (state(&stormy).expect("objects"), state(&calm).expect("objects"));
    assert!(ends_stormy.len() >= 10, "only {} objects", ends_stormy.len());
    let beyond = |all: &[Value], other: &[Value]| -> Vec<String> {
        all.iter().filter(|object| !other.contains(object)).map(Value::to_string).collect()
    };
    assert_eq!(beyond(&ends_stormy, &ends_calm), beyond(&ends_calm, &ends_stormy), "the same end state");
    println!("done after {:.0} s", started.elapsed().as_secs_f64());
}
