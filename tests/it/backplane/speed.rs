//! How soon the other nodes know.

use super::*;

/// Removals that are measured.
const ROUNDS: usize = 2000;

#[test]
fn a_removal_is_known_on_every_node_within_the_bound() {
    let fleet = Fleet::start(&[]);
    let (mut one, mut other) = (fleet.client(0), fleet.client(1));
    let mut took = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        one.call("SET k v");
        one.call("TC.FLUSH");
        eventually("it is read", || other.call("GET k") == Reply::bulk("v"));
        assert_eq!(one.call("DEL k"), Reply::Integer(1), "round {round}");
        let removed = Instant::now();
        let mut asked = Duration::ZERO;
        while other.call("GET k") != Reply::Null {
            assert!(asked < BOUND, "round {round}: served to one who asked after {asked:?}");
            asked = removed.elapsed();
        }
        took.push(removed.elapsed());
    }
    took.sort_unstable();
    let of = |permille: usize| took[(took.len() * permille / 1000).min(took.len() - 1)];
    println!("p50 {:?} p99 {:?} p99.9 {:?} max {:?}", of(500), of(990), of(999), took[took.len() - 1]);
    assert!(of(990) < Duration::from_millis(250), "{:?}", of(990));
}
