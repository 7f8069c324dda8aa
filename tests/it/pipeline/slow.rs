//! A Redis that is slow on a real wire: memory and disk go on as if there were none.

use super::*;
use crate::redis::wire::{Fault, Wire};

const KEYS: usize = 4000;
const READS: usize = 2000;
/// How often they are, at most.
const ATTEMPTS: usize = 3;

/// A node with its values on disk, of which few fit into memory.
pub(super) struct Side {
    node: Node,
    pub(super) client: Client,
    _folder: TempDir,
}

/// What reads took, as the slowest of the fastest 99 in 100.
#[derive(Clone, Copy, Debug)]
struct P99 {
    memory: Duration,
    disk: Duration,
}

// === impl Side ===

impl Side {
    pub(super) fn start(redis: &str) -> Self {
        let folder = tempdir().unwrap();
        // However long the Redis of a side is away, what it holds itself is served.
        let more = format!("memory: {{capacity: 1Mi}}\nbackplane: {{serveStaleFor: 1h}}\n{redis}");
        let node = Node::start(&config_of_disk(&folder, "minTtl: 1s", &more));
        // Before it knows what other nodes have changed it does not trust its disk.
        eventually("ready", || node.admin("GET", "/readyz").status == 200);
        let mut client = Client::connect(node.resp);
        let value = "v".repeat(2000);
        for number in 0..KEYS {
            assert_eq!(client.call(&format!("SET k{number} {value}")), Reply::ok());
            // Few at once: where it is not known whether a write has come to Redis, and much was written since, its key is
            // given up.
            if number % 50 == 49 {
                eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
            }
        }
        eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
        Self { node, client, _folder: folder }
    }

    fn read(&mut self, number: usize) -> Duration {
        let begun = Instant::now();
        let reply = self.client.call(&format!("GET k{number}"));
        let took = begun.elapsed();
        assert!(matches!(reply, Reply::Bulk(value) if value.len() == 2000), "k{number}");
        took
    }

    pub(super) fn breaker_opened(&self) -> f64 {
        self.node.metric("tieredcache_redis_breaker_opened_total{layer=\"redis\"}").expect("a metric of Redis")
    }
}

/// Reads both in turn, so that whatever else the machine does concerns both.
fn measure(alone: &mut Side, other: &mut Side) -> [P99; 2] {
    let mut took: [[Vec<Duration>; 2]; 2] = Default::default();
    for number in 0..READS {
        // Long ago enough that memory has given it up; then again, from memory.
        let key = number * 37 % KEYS;
        for (side, [disk, memory]) in [&mut *alone, &mut *other].into_iter().zip(&mut took) {
            disk.push(side.read(key));
            memory.push(side.read(key));
        }
    }
    let p99 = |mut took: Vec<Duration>| {
        took.sort_unstable();
        took[took.len() * 99 / 100]
    };
    took.map(|[disk, memory]| P99 { memory: p99(memory), disk: p99(disk) })
}

/// Whatever Redis does, a read must not be slower than without any.
pub(super) fn as_fast(what: &str, alone: &mut Side, other: &mut Side) {
    // The machine may have kept more of the ones waiting than of the others; a Redis that is waited for does so each time.
    let is_as_fast = (0..ATTEMPTS).any(|_| is_as_fast(what, measure(alone, other)));
    assert!(is_as_fast, "{what}: slower than without Redis, {ATTEMPTS} times");
}

fn is_as_fast(what: &str, [well, ill]: [P99; 2]) -> bool {
    let ratio = |ill: Duration, well: Duration| ill.as_secs_f64() / well.as_secs_f64();
    println!(
        "{what}: p99 of memory {:?}, {:.2} of that without Redis; of disk {:?}, {:.2}",
        ill.memory,
        ratio(ill.memory, well.memory),
        ill.disk,
        ratio(ill.disk, well.disk)
    );
    // A read that waits for Redis takes 50 ms. The margin is for a machine that is busy with other tests.
    let pairs = [(ill.memory, well.memory), (ill.disk, well.disk)];
    pairs.iter().all(|(ill, well)| *ill <= 3 * *well + Duration::from_millis(5))
}

/// Reads until the breaker opens, each of which must end soon.
pub(super) fn opens(what: &str, side: &mut Side, opened: f64) {
    let begun = Instant::now();
    for number in 0.. {
        let took = side.read(number * 37 % KEYS);
        assert!(took < Duration::from_millis(900), "{what}: {took:?}");
        assert!(begun.elapsed() < PATIENCE, "{what}: the breaker stays closed");
        if side.breaker_opened() > opened {
            return;
        }
    }
}

#[test]
fn with_a_redis_on_a_bad_wire_memory_and_disk_are_as_fast_as_without_any() {
    let redis = Server::start(&[]);
    let wire = Wire::to(redis.address());
    let mut alone = Side::start("");
    let mut side = Side::start(&format!("redis: {{mode: External, endpoints: ['{}'], timeout: 50ms}}", wire.address));
    let ms = Duration::from_millis;
    let faults =
        [Fault::Late(ms(300), ms(0)), Fault::Late(ms(30), ms(200)), Fault::Silent, Fault::Cut, Fault::Trickle(ms(10))];
    for fault in faults {
        redis_is_used(&mut side);
        let (opened, what) = (side.breaker_opened(), format!("{fault:?}"));
        wire.set(fault);
        opens(&what, &mut side, opened);
        as_fast(&what, &mut alone, &mut side);
        assert_eq!(side.client.call("SET written meanwhile"), Reply::ok());
        wire.set(Fault::None);
        redis_is_used(&mut side);
        assert_eq!(side.client.call("GET written"), Reply::bulk("meanwhile"));
        eventually("Redis has it", || side.client.call("TC.FLUSH") == Reply::ok());
        assert_eq!(side.client.call("DEL written"), Reply::Integer(1));
    }
}

pub(super) fn redis_is_used(side: &mut Side) {
    let mut client = Client::connect(side.node.resp);
    client.call("HELLO 3");
    let seen = || {
        let Reply::Array(layers) = client.call("TC.EXPLAIN probe").field("layers") else { panic!("an array") };
        let redis = layers.into_iter().find(|layer| layer.field("layer").text() == "redis").expect("there is one");
        ["miss", "hit"].contains(&redis.field("outcome").text().as_str())
    };
    eventually("Redis is used again", seen);
}
