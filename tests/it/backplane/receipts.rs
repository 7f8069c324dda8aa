//! Receipts: who has carried out a removal.

use super::*;

/// What a receipt says: how many have applied it, of how many, who has not, and who says nothing.
fn receipt(client: &mut Client, command: &str) -> (String, i64, i64, Vec<String>, Vec<String>) {
    client.call("HELLO 3");
    // On a busy machine Redis may not have been told, or may not answer, in time.
    let begun = Instant::now();
    let is_late = |told: &Reply| match told {
        Reply::Simple(word) => word == "QUEUED",
        Reply::Error(text) => text.ends_with(b"no answer to a look at the nodes in time"),
        _ => false,
    };
    let told = loop {
        let told = client.call(command);
        if !is_late(&told) || begun.elapsed() > PATIENCE {
            break told;
        }
    };
    let number = |name| match told.field(name) {
        Reply::Integer(number) => number,
        other => panic!("{name} is {other:?}"),
    };
    let names = |name| match told.field(name) {
        Reply::Array(names) => names.iter().map(Reply::text).collect(),
        other => panic!("{name} is {other:?}"),
    };
    (told.field("position").text(), number("applied"), number("nodes"), names("behind"), names("silent"))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn once_a_receipt_says_that_all_have_applied_it_no_node_serves_what_was_removed() {
    let fleet = Fleet::start(&[]);
    let mut one = fleet.client(0);
    let mut others = [fleet.client(1), fleet.client(2)];
    let mut last = String::new();
    for round in 0..50 {
        let (key, change) = match round % 4 {
            0 => ("t", "TC.INVALIDATE red"),
            1 => ("k", "DEL k"),
            2 => ("k", "FLUSHALL"),
            // Queued here, and not yet in the log.
            _ => ("k", "SET k new"),
        };
        one.call(&format!("SET k {round}"));
        one.call(&format!("TC.SET t {round} TAGS 1 red"));
        one.call("TC.FLUSH");
        fleet.warm(key, &round.to_string());
        one.call(change);
        let (position, applied, nodes, behind, silent) = receipt(&mut one, "TC.WAIT");
        // At once, without a moment in between.
        for other in &mut others {
            let found = other.call(&format!("GET {key}"));
            // The removal of the older copy from the node's own disk may still be queued, and answers until it is done.
            let is_new = change == "SET k new" && found == Reply::bulk("new");
            assert!(is_new || found == Reply::Null, "{change}, round {round}: {found:?}");
            if change == "SET k new" {
                eventually("the newer value is read", || other.call("GET k") == Reply::bulk("new"));
            }
        }
        assert_eq!((applied, nodes, behind, silent), (3, 3, names(&[]), names(&[])));
        assert_ne!(position, last, "a place of its own");
        last = position;
    }
}

#[test]
fn a_receipt_names_the_node_that_is_behind_and_the_one_that_says_nothing_any_more() {
    let fleet = Fleet::start_with(Server::start(&[]), "backplane: {maxStaleness: 1s}");
    let mut one = fleet.client(0);
    receipt(&mut one, "TC.WAIT");
    fleet.node(2).signal(Signal::STOP);
    let begun = Instant::now();
    eventually("Redis is told", || one.call("TC.INVALIDATE red") == Reply::ok());
    let (_, applied, nodes, behind, silent) = receipt(&mut one, "TC.WAIT 1000");
    assert_eq!((applied, nodes, behind, silent), (2, 3, names(&["n2"]), names(&[])));
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(700) && took < Duration::from_millis(2500), "{took:?}");
    // By itself it waits until the node can not trust what it holds any more.
    let (_, applied, nodes, behind, silent) = receipt(&mut one, "TC.WAIT");
    assert_eq!((applied, nodes, behind, silent), (2, 2, names(&[]), names(&["n2"])));
    assert!(begun.elapsed() > Duration::from_millis(2500), "{:?}", begun.elapsed());
    fleet.node(2).signal(Signal::CONT);
    eventually("all have applied it", || receipt(&mut one, "TC.WAIT 100").1 == 3);
}

#[test]
fn a_node_that_redis_has_forgotten_is_waited_for_as_long_as_it_may_serve() {
    let fleet = Fleet::start(&[]);
    let mut one = fleet.client(0);
    assert_eq!(receipt(&mut one, "TC.WAIT").1, 3);
    assert_eq!((one.call("SET k old"), one.call("TC.FLUSH")), (Reply::ok(), Reply::ok()));
    fleet.warm("k", "old");
    let begun = Instant::now();
    fleet.node(2).signal(Signal::STOP);
    assert_eq!(fleet.redis.cli(&["FLUSHALL"]).trim(), "OK");
    assert_eq!(one.call("DEL k"), Reply::Integer(1));
    // Node 2 holds the old value, has heard of nothing, and is in no list.
    // On a busy machine a look may take too long.
    let mut told = (0..3).map(|_| one.call("TC.WAIT 1000").text());
    let told = told.find(|told| !told.contains("no answer to a look at the nodes in time")).expect("an answer");
    assert!(told.contains("redis has lost what the nodes said"), "{told}");
    let (_, applied, nodes, behind, silent) = receipt(&mut one, "TC.WAIT");
    assert_eq!((applied, nodes, behind, silent), (2, 2, names(&[]), names(&[])));
    assert!(begun.elapsed() > BOUND, "{:?}", begun.elapsed());
    fleet.node(2).signal(Signal::CONT);
    let mut late = fleet.client(2);
    eventually("the old value is gone", || late.call("GET k") == Reply::Null);
    eventually("it is known again", || receipt(&mut one, "TC.WAIT").1 == 3);
}

#[test]
fn after_a_time_without_a_word_from_any_node_nobody_is_taken_for_gone() {
    let fleet = Fleet::start(&[]);
    let mut one = fleet.client(0);
    assert_eq!(receipt(&mut one, "TC.WAIT").1, 3);
    let list = fleet.redis.cli(&["KEYS", "*:nodes"]).trim().to_owned();
    let whole_since = || {
        let said = fleet.redis.cli(&["HGET", &list, ""]);
        said.trim().split_once(' ').expect("when the last spoke, and since when all did").1.parse::<u64>().unwrap()
    };
    let before = whole_since();
    // As if nobody could have said anything since then, though all went on reading.
    fleet.redis.cli(&["HSET", &list, "", &format!("{before} {before}")]);
    eventually("the list begins anew", || whole_since() > before);
    let begun = Instant::now();
    assert_eq!(receipt(&mut one, "TC.WAIT").1, 3);
    assert!(begun.elapsed() > BOUND, "{:?}", begun.elapsed());
}

#[test]
fn without_redis_a_receipt_says_that_removals_are_queued() {
    let fleet = Fleet::start(&[]);
    let mut one = fleet.client(0);
    fleet.redis.freeze();
    assert_eq!(one.call("TC.DEL k").text(), "QUEUED");
    assert_eq!(one.call("TC.WAIT 5000").text(), "QUEUED");
    fleet.redis.thaw();
    one.call("HELLO 3");
    eventually("all have applied it", || {
        let told = one.call("TC.WAIT 1000");
        matches!(told, Reply::Map(_)) && told.field("applied") == Reply::Integer(3)
    });
}

#[test]
fn a_node_that_shares_nothing_is_the_only_one_of_its_receipts() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config_of_disk(&folder, "minTtl: 1s", ""));
    let mut client = Client::connect(node.resp);
    client.call("HELLO 3");
    client.call("SET k v");
    let told = client.call("TC.WAIT");
    assert_eq!(told.field("position"), Reply::Null);
    assert_eq!((told.field("applied"), told.field("nodes")), (Reply::Integer(1), Reply::Integer(1)));
}

#[test]
fn a_wait_of_no_length_is_refused_with_the_limit() {
    let folder = tempdir().unwrap();
    let node = Node::start(&config_of_disk(&folder, "minTtl: 1s", ""));
    let mut client = Client::connect(node.resp);
    for wrong in ["0", "-1", "60001", "soon"] {
        let refused = client.call(&format!("TC.WAIT {wrong}")).text();
        assert_eq!(refused, format!("ERR timeout is '{wrong}'; it is 1 to 60000 ms"));
    }
    assert_eq!(client.call("TC.WAIT 1 2").text(), "ERR syntax error");
}
