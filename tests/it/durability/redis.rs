//! The same promises with a Redis below memory that dies, stalls, comes back with all that it had, or is emptied, at any
//! time: what it holds from before must never be served.

use std::{collections::BTreeSet, fs, thread, time::Duration};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use tempfile::tempdir;
use tests::redis_server::Server;

use super::{Allowed, Client, some_keys, value_of};
use crate::{
    program::{Node, config, eventually},
    resp::client::Reply,
};

const ROUNDS: usize = 200;
const KEYS: usize = 2000;
const CONFIRMED_AGO: &str = "tieredcache_backplane_confirmed_age_seconds{layer=\"backplane\"}";

/// The Redis and how it is.
struct Fickle {
    server: Server,
    mood: Mood,
    deaths: u32,
    /// Deaths of before a node has last known all changes.
    deaths_settled: u32,
    stalls: u32,
    emptied: u32,
    /// Whether it was emptied and the node may not know yet: then it gives up what it has.
    is_news: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    Stalled,
    Dead,
}

/// What the test knows of every key.
struct Known {
    allowed: Vec<Allowed>,
    version: u64,
    round: usize,
    /// Since when, and why, a key must be absent.
    absent: Vec<String>,
}

// === impl Fickle ===

impl Fickle {
    fn new() -> Self {
        let (deaths, deaths_settled, stalls, emptied) = (0, 0, 0, 0);
        Self {
            server: Server::that_remembers(),
            mood: Mood::Well,
            deaths,
            deaths_settled,
            stalls,
            emptied,
            is_news: false,
        }
    }

    /// Maybe something happens to it, maybe not.
    fn turn(&mut self, random: &mut StdRng) {
        let chance = random.random_range(0..100);
        match (self.mood, chance) {
            (Mood::Well, 0..12) => {
                self.server.kill();
                (self.mood, self.deaths) = (Mood::Dead, self.deaths + 1);
            }
            (Mood::Well, 12..24) => {
                self.server.freeze();
                (self.mood, self.stalls) = (Mood::Stalled, self.stalls + 1);
            }
            (Mood::Well, 24..30) => {
                // Loading its file it answers with an error.
                crate::resp::client::Client::connect(self.server.address()).call("FLUSHALL");
                self.emptied += 1;
                self.is_news = true;
            }
            (Mood::Stalled | Mood::Dead, 0..60) => self.heal(),
            _ => {}
        }
    }

    /// If it works, the node notices now that it was emptied.
    fn notice(&mut self, node: &Node, known: &mut Known) {
        if self.is_news && self.mood == Mood::Well {
            eventually("the node notices that Redis was emptied", || {
                let is_begun = crate::resp::client::Client::connect(self.server.address())
                    .call("EXISTS {tc:local}:epoch")
                    == Reply::Integer(1);
                is_begun && node.metric(CONFIRMED_AGO).expect("a metric") < 1.0
            });
            known.may_be_absent();
            self.is_news = false;
        }
    }

    /// Waits until the node knows all changes. Of a killed process nobody knows whether a Redis that has died, too, has all
    /// that it had written: then everything is given up.
    fn settle(&mut self, node: &Node, known: &mut Known) {
        knows_all_changes(node);
        if self.deaths != self.deaths_settled {
            known.may_be_absent();
            self.deaths_settled = self.deaths;
        }
    }

    fn heal(&mut self) {
        match self.mood {
            Mood::Well => {}
            Mood::Stalled => self.server.thaw(),
            Mood::Dead => self.server.restart(),
        }
        self.mood = Mood::Well;
    }
}

// === impl Known ===

impl Known {
    /// New values for these keys.
    fn changes(&mut self, keys: Vec<usize>) -> Vec<(usize, String)> {
        let change = |key| {
            self.version += 1;
            (key, value_of(self.version))
        };
        keys.into_iter().map(change).collect()
    }

    /// The key was removed for good.
    fn remove(&mut self, key: usize, how: &str) {
        self.allowed[key] = BTreeSet::from([None]);
        self.absent[key] = format!("{how} in round {}", self.round);
    }

    /// What the node has may be given up.
    fn may_be_absent(&mut self) {
        for allowed in &mut self.allowed {
            allowed.insert(None);
        }
    }

    /// Reads and checks every key. On a busy machine a call may take longer than it has, so that not all layers answer.
    fn look(&mut self, (client, node): (&mut Client, &Node), all_answer: bool, when: &str) {
        let before = unanswered(node);
        let values = client.values(KEYS);
        let all_answer = all_answer && unanswered(node) == before;
        self.check(values, all_answer, when);
    }

    /// Every key must be what it may be, and is that from now on. While a layer can not be asked, a value that only that
    /// one has is absent, and may be back later: that says nothing.
    fn check(&mut self, values: Vec<Option<String>>, all_answer: bool, when: &str) {
        for (key, (value, allowed)) in values.into_iter().zip(&mut self.allowed).enumerate() {
            if value.is_none() && !all_answer {
                continue;
            }
            let absent = &mut self.absent[key];
            assert!(allowed.contains(&value), "{when}: k{key} is {value:?}, may be {allowed:?}; {absent}");
            if value.is_none() && allowed.len() > 1 {
                *absent = format!("not found in round {}", self.round);
            }
            *allowed = BTreeSet::from([value]);
        }
    }
}

#[test]
fn no_removed_and_no_overwritten_value_comes_back_after_a_kill_whatever_redis_does() {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempdir().unwrap();
    let mut redis = Fickle::new();
    let more = format!(
        "memory: {{capacity: 1Mi}}\nlimits: {{valueBytesMax: 64Ki, requestTimeout: 30s}}\n\
         redis: {{mode: External, endpoints: ['{}'], timeout: 50ms}}",
        redis.server.address()
    );
    let config = config(&folder, &more);
    let (allowed, absent) = (vec![BTreeSet::from([None]); KEYS], vec!["never stored".to_owned(); KEYS]);
    let mut known = Known { allowed, version: 0, round: 0, absent };
    let mut confirmed = 0;
    for round in 0..ROUNDS {
        known.round = round;
        if round > 0 {
            redis.turn(&mut random);
        }
        let node = Node::start(&config);
        if round == 0 {
            // What a node holds that has never known what others changed is not to be trusted.
            knows_all_changes(&node);
        }
        let mut client = Client::connect(&node);
        if redis.is_news {
            known.may_be_absent();
        }
        let all_answer = redis.mood == Mood::Well && random.random();
        if all_answer {
            redis.settle(&node, &mut known);
        }
        known.look((&mut client, &node), all_answer, &format!("round {round}, seed {seed}"));
        redis.turn(&mut random);
        overwrite(&mut client, &node, &mut known, &mut random, round);
        redis.notice(&node, &mut known);
        redis.turn(&mut random);
        confirmed += remove(&mut client, &node, &mut known, &mut redis, &mut random);
        if redis.is_news {
            known.may_be_absent();
        }
    }
    println!(
        "{ROUNDS} kills, {confirmed} acknowledged removals, {} deaths and {} stalls of Redis, emptied {} times: nothing \
         came back",
        redis.deaths, redis.stalls, redis.emptied
    );
    assert!(confirmed > ROUNDS && redis.deaths > 5 && redis.stalls > 5 && redis.emptied > 3);

    // What Redis has by now is all that there is, and as new as it may be.
    redis.heal();
    known.may_be_absent();
    let mut node = Node::start(&config);
    let mut client = Client::connect(&node);
    knows_all_changes(&node);
    known.check(client.values(KEYS), true, &format!("at the end, seed {seed}"));
    let changes = known.changes((0..KEYS).step_by(2).collect());
    write_to_redis(&mut client, &node, &redis, &changes);
    node.signal(Signal::TERM);
    node.wait();
    fs::remove_dir_all(folder.path().join("data")).unwrap();
    let node = Node::start(&config);
    let mut client = Client::connect(&node);
    known.may_be_absent();
    for (key, value) in changes {
        known.allowed[key] = BTreeSet::from([None, Some(value)]);
    }
    let mut values = Vec::new();
    eventually("Redis has what was written last", || {
        values = client.values(KEYS);
        values.iter().step_by(2).all(Option::is_some)
    });
    known.check(values, true, &format!("from Redis alone, seed {seed}"));
}

/// Writes, until Redis itself has all of it.
fn write_to_redis(client: &mut Client, node: &Node, redis: &Fickle, changes: &[(usize, String)]) {
    for some in changes.chunks(50) {
        let entries: Vec<String> = some.iter().map(|(key, _)| format!("{{tc:local}}:e:k{key}")).collect();
        let exist: Vec<&str> = std::iter::once("EXISTS").chain(entries.iter().map(String::as_str)).collect();
        // A key is given up of which it can not be said whether its value has come to Redis, as on a busy machine.
        eventually("Redis has what was written", || {
            client.set(some);
            all_flushed(node);
            redis.server.cli(&exist) == some.len().to_string()
        });
    }
}

/// Overwrites that every layer which can be reached has, tagged entries and their removal by tag, and sometimes a clear.
fn overwrite(client: &mut Client, node: &Node, known: &mut Known, random: &mut StdRng, round: usize) {
    let keys = if round == 0 { (0..KEYS).collect() } else { some_keys(random, KEYS, 300) };
    let changes = known.changes(keys);
    client.set(&changes);
    done_or_queued(&client.call(&["TC.FLUSH"]));
    // What Redis has not got is in the journal; a kill makes it a miss.
    let is_in_all = node.metric("tieredcache_layer_entries{layer=\"writeQueue\"}") == Some(0.0);
    for (key, value) in changes {
        known.allowed[key] = BTreeSet::from([Some(value)]);
        if !is_in_all {
            known.allowed[key].insert(None);
        }
    }
    let tagged = known.changes(some_keys(random, KEYS, 20));
    for (key, value) in &tagged {
        assert_eq!(client.call(&["TC.SET", &format!("k{key}"), value, "TAGS", "1", "red"]), "+OK");
    }
    done_or_queued(&client.call(&["TC.INVALIDATE", "red"]));
    tagged.into_iter().for_each(|(key, _)| known.remove(key, "removed by its tag"));
    if random.random_range(0..20) == 0 {
        done_or_queued(&client.call(&["FLUSHALL"]));
        (0..KEYS).for_each(|key| known.remove(key, "cleared"));
    }
}

/// Overwrites that may still be queued when the node is killed, and removals, of which those acknowledged count; their
/// number.
fn remove(client: &mut Client, node: &Node, known: &mut Known, redis: &mut Fickle, random: &mut StdRng) -> usize {
    let late = known.changes(some_keys(random, KEYS, 100));
    client.set(&late);
    for (key, value) in late {
        known.allowed[key] = BTreeSet::from([None, Some(value)]);
    }
    let removals = some_keys(random, KEYS, 200);
    let delay = Duration::from_micros(random.random_range(0..20_000));
    thread::scope(|scope| {
        let removing = scope.spawn(|| {
            let mut confirmed = 0;
            for batch in removals.chunks(20) {
                let done = client.remove(batch);
                confirmed += done;
                for (index, &key) in batch.iter().enumerate() {
                    if index < done {
                        known.remove(key, "removed");
                    } else {
                        known.allowed[key].insert(None);
                    }
                }
                if done < batch.len() {
                    break;
                }
            }
            confirmed
        });
        thread::sleep(delay);
        redis.turn(random);
        node.signal(Signal::KILL);
        removing.join().expect("it only reads and writes")
    })
}

/// Waits until the node does; from then on it also reads what Redis has.
fn knows_all_changes(node: &Node) {
    eventually("the node knows all changes", || {
        node.admin("GET", "/readyz").status == 200 && node.metric(CONFIRMED_AGO).expect("a metric") < 1.0
    });
}

/// Reads that Redis has not answered so far.
fn unanswered(node: &Node) -> f64 {
    let text = node.admin("GET", "/metrics").body;
    let is_one = |line: &&str| {
        line.contains("layer=\"redis\"")
            && (line.starts_with("tieredcache_layer_errors_total{") || line.contains("result=\"not_handled\""))
    };
    text.lines().filter(is_one).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Queued for a Redis that is away, it holds on the node all the same.
fn done_or_queued(reply: &str) {
    assert!(["+OK", "+QUEUED"].contains(&reply), "{reply}");
}

fn all_flushed(node: &Node) {
    eventually("every layer has everything", || {
        node.metric("tieredcache_layer_entries{layer=\"writeQueue\"}") == Some(0.0)
            && health_of(node, "Redis") != "Unavailable"
    });
}

fn health_of(node: &Node, layer: &str) -> String {
    let report = node.report();
    let layers = report["layers"].as_array().expect("a list");
    let layer = layers.iter().find(|known| known["name"] == layer).expect("such a layer");
    layer["health"]["state"].as_str().expect("a word").to_owned()
}
