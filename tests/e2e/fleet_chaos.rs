//! A fleet in pods whose every read is judged: stock clients on each machine of the cluster write down what they see,
//! while pods are deleted, processes killed, machines cut off and the network to Redis is cut. The judge is that of
//! [tests/chaos](../chaos/README.md), where the promises and the faults are listed.

mod account;

mod clients;

mod faults;

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use tests::cluster::REDIS_IMAGE;

use self::{
    account::Account,
    clients::Clients,
    faults::{Fault, Storm},
};
use crate::fleet::{Fleet, eventually, pod_ready};
use crate::turn::quiet;

/// Nodes of the fleet, one on each machine.
const NODES: usize = 3;
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Before the first fault there are to be values.
const WARM_UP: Duration = Duration::from_secs(3);
/// After a fault it is quiet for longer than the bound of the judge, 3.5 s.
const QUIET: Duration = Duration::from_millis(4200);
/// Reads that a round must have seen answered.
const READS_MIN: u64 = 100_000;
/// Little memory, so that values are found in Redis and on disk, too.
const SPEC: &str = "{replicas: 3, memory: {capacity: 2Mi}, disk: {size: 512Mi, minTtl: 0s, retention: {whenScaled: \
                    Delete, whenDeleted: Delete}}, redis: {mode: Managed, timeout: 250ms, writeMode: WRITES, managed: \
                    {image: IMAGE, memory: 64Mi, storage: 512Mi}}, backplane: {whenDisconnected: Miss}, readOrder: \
                    ORDER}";

/// What a run takes from its seed and its environment.
struct Setting {
    seed: u64,
    /// How often every fault happens.
    rounds: u64,
    write_through: bool,
    disk_first: bool,
}

// === impl Setting ===

impl Setting {
    fn of_environment() -> Self {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seed = number("SEED").unwrap_or_else(rand::random::<u64>);
        let mut random = SmallRng::seed_from_u64(seed);
        let (write_through, disk_first) = (random.random_ratio(3, 4), random.random());
        Self { seed, rounds: number("CHAOS_ROUNDS").unwrap_or(1), write_through, disk_first }
    }

    fn spec(&self) -> String {
        SPEC.replace("IMAGE", REDIS_IMAGE)
            .replace("WRITES", if self.write_through { "WriteThrough" } else { "WriteBehind" })
            .replace("ORDER", if self.disk_first { "[Disk, Redis]" } else { "[Redis, Disk]" })
    }
}

/// Waits until every pod of the cache and its Redis are ready.
fn await_pods(fleet: &Fleet) {
    let pods = (0..NODES).map(|node| format!("cache-{node}")).chain(["cache-redis-0".to_owned()]);
    for pod in pods {
        eventually(&format!("{pod} is ready"), READY_WITHIN, || pod_ready(&fleet.get(&format!("pod/{pod}"))?));
    }
}

/// The machine of each node, which is the same for as long as the node has its volume.
fn machines(fleet: &Fleet) -> Vec<u8> {
    let machine = |node: usize| {
        let pod = fleet.get(&format!("pod/cache-{node}")).expect("the pod exists");
        let name = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        name.trim_start_matches("node").parse().unwrap_or_else(|_| panic!("{name} is a machine of the test cluster"))
    };
    let machines: Vec<u8> = (0..NODES).map(machine).collect();
    let mut others = machines.clone();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others.len(), NODES, "nodes are spread over machines: {machines:?}");
    machines
}

#[test]
fn a_fleet_in_pods_keeps_its_promises_while_pods_die_and_machines_are_cut_off() {
    let turn = quiet();
    let setting = Setting::of_environment();
    println!("SEED={} writes through: {}, disk first: {}", setting.seed, setting.write_through, setting.disk_first);
    let mut random = SmallRng::seed_from_u64(setting.seed);
    let fleet = Fleet::new(&turn, "fleet-chaos");
    fleet.apply("cache", &setting.spec());
    fleet.await_ready("cache", NODES as u64, READY_WITHIN);
    await_pods(&fleet);
    let machines = machines(&fleet);
    let folder = tempfile::tempdir().expect("a scratch folder can be made");
    let clients = Clients::start(&fleet, &machines, folder.path(), setting.seed);
    thread::sleep(WARM_UP);

    let mut storm = Storm { fleet: &fleet, machines, account: Account::default() };
    for round in 0..setting.rounds {
        let mut faults = Fault::ALL;
        // Each node has its turn, whatever happens to it.
        let first: usize = random.random_range(0..NODES);
        if setting.rounds > 1 {
            faults.shuffle(&mut random);
        }
        for (turn, fault) in faults.into_iter().enumerate() {
            let began = Instant::now();
            let node = (first + turn) % NODES;
            storm.bring(fault, node);
            await_pods(&fleet);
            println!("round {round}: {fault:?} of node {node} took {:.1} s", began.elapsed().as_secs_f64());
            thread::sleep(QUIET);
        }
    }
    // A node that was cut off may look for Redis every 5 s only, and finds nothing before.
    thread::sleep(QUIET * 2);
    let mut files = clients.stop();
    files.push(storm.account.write(folder.path()));

    let writes = if setting.write_through { "through" } else { "behind" };
    let reads = (READS_MIN * setting.rounds).to_string();
    let mut judge = Command::new(env!("CARGO_BIN_EXE_chaos"));
    judge.args(["judge", "--writes", writes, "--reads", &reads]).args(&files);
    let judged = judge.output().expect("the judge runs");
    println!("{}{}", String::from_utf8_lossy(&judged.stdout), String::from_utf8_lossy(&judged.stderr));
    if !judged.status.success() {
        panic!("a promise was broken; `{judge:?}` tells it again from {}", folder.keep().display());
    }
}
