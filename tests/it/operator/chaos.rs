//! The operator killed, frozen, doubled and cut off.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Lab, within};
use crate::api::{kubectl, rest};

/// Kills in a run; with the limits below a run takes about two minutes on a busy machine.
const KILLS: u32 = 30;

#[allow(clippy::disallowed_methods, reason = "tests of processes measure real time")]
fn now() -> Instant {
    Instant::now()
}

/// The life of two caches, in steps; the last one leaves `kept` as it must end.
const STEPS: u32 = 6;

fn step(lab: &Lab, number: u32) {
    match number {
        0 => lab.apply("kept", json!({"replicas": 2})),
        1 => lab.apply("gone", json!({"replicas": 1})),
        2 => lab.edit("kept", &json!({"replicas": 4})),
        3 => lab.edit("kept", &json!({"memory": {"policy": "TinyLfu"}})),
        4 => lab.delete("gone"),
        _ => lab.edit("kept", &json!({"replicas": 3, "image": "nodes:last"})),
    }
}

#[test]
fn killed_thirty_times_at_random_it_comes_to_the_same_end_and_then_rests() {
    let calm = Lab::new("calm");
    let stormy = Lab::new("storm");
    let operator = calm.operator().start();
    for number in 0..STEPS {
        step(&calm, number);
    }
    calm.until_ready("kept");

    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for kill in 0..KILLS {
        if kill % (KILLS / STEPS) == 0 {
            step(&stormy, kill / (KILLS / STEPS));
        }
        let operator = stormy.operator().start_once();
        // From before it leads to after it has done all: what it is doing when it dies is left to chance. The Lease of
        // its predecessor is taken away, or it would only stand by.
        rest().delete(&stormy.path("/apis/coordination.k8s.io/v1", "leases/tieredcache-operator"));
        operator.logged("leading");
        thread::park_timeout(Duration::from_millis(random.random_range(0..1200)));
        operator.kill();
    }
    rest().delete(&stormy.path("/apis/coordination.k8s.io/v1", "leases/tieredcache-operator"));
    let last = stormy.operator().start();
    stormy.until_ready("kept");
    for lab in [&calm, &stormy] {
        let gone = || lab.state().iter().all(|object| !object.to_string().contains("\"gone")).then_some(());
        within(90, "the deleted cache to be gone", gone);
    }
    within(60, "the same end state", || (calm.state() == stormy.state()).then_some(()));
    stormy.assert_silent_for(60);
    drop((operator, last));
}

#[test]
fn when_the_leader_is_killed_the_next_one_leads_within_fifteen_seconds() {
    let lab = Lab::new("leader");
    let first = lab.operator().start_once();
    first.logged("leading");
    let second = lab.operator().named("operator-b").start_once();
    second.logged("standing by: another replica leads");
    assert_eq!(second.admin("/readyz").0, 200, "a follower is ready to follow");
    lab.apply("sessions", json!({"replicas": 1}));
    lab.until_ready("sessions");
    assert!(!second.log().contains("applied"), "a follower writes nothing");
    first.kill();
    let killed = now();
    second.logged("leading");
    let took = killed.elapsed();
    println!("the next one led after {took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    lab.edit("sessions", &json!({"replicas": 2}));
    lab.until_ready("sessions");
}

#[test]
fn a_leader_that_is_asked_to_stop_hands_over_at_once() {
    let lab = Lab::new("handover");
    let mut first = lab.operator().start_once();
    first.logged("leading");
    let second = lab.operator().named("operator-b").start_once();
    second.logged("standing by: another replica leads");
    first.signal(Signal::TERM);
    let asked = now();
    assert_eq!(first.wait().code(), Some(0));
    second.logged("leading");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

/// Frozen, as a machine without CPU time is: it wakes up as the leader it no longer is.
#[test]
fn a_leader_that_wakes_up_after_its_lease_writes_nothing_and_ends() {
    let lab = Lab::new("frozen");
    let mut first = lab.operator().start_once();
    lab.apply("sessions", json!({"replicas": 1}));
    lab.until_ready("sessions");
    first.signal(Signal::STOP);
    let second = lab.operator().named("operator-b").start_once();
    second.logged("leading");
    let before = first.log().matches("\"applied\"").count();
    // Work that the one that wakes up would love to do.
    rest().delete(&lab.path("/api/v1", "services/sessions"));
    first.signal(Signal::CONT);
    assert_eq!(first.wait().code(), Some(3));
    assert_eq!(first.log().matches("\"applied\"").count(), before, "{}", first.log());
    lab.until_ready("sessions");
}

/// A way to the API server that can be made to hang: connections stay open and nothing gets through.
struct Tunnel {
    address: SocketAddr,
    hanging: Arc<AtomicBool>,
}

impl Tunnel {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (address, hanging) = (listener.local_addr().expect("bound"), Arc::new(AtomicBool::new(false)));
        let gate = Arc::clone(&hanging);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(target) else { continue };
                let ways = [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))];
                for (from, to) in ways {
                    let (Ok(from), Ok(to), gate) = (from, to, Arc::clone(&gate)) else { continue };
                    thread::spawn(move || carry(from, to, &gate));
                }
            }
        });
        Self { address, hanging }
    }

    fn hang(&self, hanging: bool) {
        self.hanging.store(hanging, Ordering::Release);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, gate: &AtomicBool) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        while gate.load(Ordering::Acquire) {
            thread::park_timeout(Duration::from_millis(20));
        }
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

#[test]
fn a_leader_that_the_api_server_leaves_hanging_stops_acting_and_a_new_process_goes_on() {
    let lab = Lab::new("hanging");
    let view = kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"], "");
    let mut config: Value = serde_json::from_str(&view.text).expect("kubectl prints JSON");
    let server = config["clusters"][0]["cluster"]["server"].as_str().expect("an address").to_owned();
    let target = server.rsplit('/').next().and_then(|address| address.parse().ok()).expect("host and port");
    let tunnel = Tunnel::to(target);
    config["clusters"][0]["cluster"]["server"] = json!(format!("https://{}", tunnel.address));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    fs::write(&path, config.to_string()).unwrap();

    let mut first = lab.operator().with_kubeconfig(path.clone()).start_once();
    lab.apply("sessions", json!({"replicas": 1}));
    lab.until_ready("sessions");
    tunnel.hang(true);
    let hung = now();
    assert_eq!(first.wait().code(), Some(3));
    println!("ended {:?} after the API server fell silent", hung.elapsed());
    assert!(hung.elapsed() < Duration::from_secs(20), "{:?}", hung.elapsed());
    // As the kubelet would start it again. It can do nothing, says so, and is not restarted for that.
    let second = lab.operator().with_kubeconfig(path).start_once();
    let not_ready = within(30, "the operator to be up", || Some(second.admin("/readyz")));
    assert_eq!(not_ready.0, 503);
    assert!(not_ready.1.contains("first answer of the API server"), "{}", not_ready.1);
    assert_eq!(second.admin("/livez").0, 200);
    tunnel.hang(false);
    second.logged("leading");
    lab.edit("sessions", &json!({"replicas": 2}));
    lab.until_ready("sessions");
    assert_eq!(second.admin("/readyz").0, 200);
}
