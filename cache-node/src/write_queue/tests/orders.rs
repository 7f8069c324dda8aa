//! The queue in every order of a few threads. `make mutants` plants bugs that only these tests see.

use shuttle::{future::block_on, thread};

use super::*;
use crate::testing::{cx, in_every_order};

/// What writers and clears did, in the order that the queue gave them: a key and its value, or everything.
type Log = Arc<std::sync::Mutex<Vec<Option<(&'static str, String)>>>>;

struct World {
    queue: Arc<WriteQueue>,
    layers: [Arc<Scripted>; 2],
    log: Log,
    flushers: Vec<thread::JoinHandle<()>>,
}

impl World {
    fn open() -> Self {
        let permits = tokio::sync::Semaphore::MAX_PERMITS;
        let layers = [Scripted::gated_as(LayerId::Redis, permits, permits), Scripted::open()];
        let targets = layers.iter().map(|layer| Arc::clone(layer) as Arc<dyn Layer>).collect();
        let queue = WriteQueue::by_hand(OPTIONS, targets, Clock::manual(START));
        let flush = |number| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || block_on(queue.work_by_hand(number)))
        };
        let flushers = (0..queue.flushers()).map(flush).collect();
        Self { queue, layers, log: Log::default(), flushers }
    }

    /// One writer, who sets all keys to its name, in this order.
    fn set(&self, keys: &'static [&'static str], name: &'static str) -> thread::JoinHandle<()> {
        let (queue, log) = (Arc::clone(&self.queue), Arc::clone(&self.log));
        thread::spawn(move || {
            for key in keys {
                let mut turn = queue.turn(key.as_bytes());
                turn.push(START, Change::Set(entry(key, name)), None).unwrap();
                log.lock().unwrap().push(Some((key, name.to_owned())));
            }
        })
    }

    fn clear(&self) -> thread::JoinHandle<()> {
        let (queue, log) = (Arc::clone(&self.queue), Arc::clone(&self.log));
        thread::spawn(move || block_on(queue.clear(|| log.lock().unwrap().push(None)).settled()))
    }

    /// What each layer must have in the end.
    fn expected(&self, key: &str) -> Option<String> {
        let log = self.log.lock().unwrap();
        let last = log.iter().rev().find(|step| step.as_ref().is_none_or(|(written, _)| *written == key));
        last.cloned().flatten().map(|(_, value)| value)
    }

    fn end(self, clients: Vec<thread::JoinHandle<()>>) {
        clients.into_iter().for_each(|client| client.join().unwrap());
        let cx = cx(&self.queue.clock);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let entered = runtime.enter();
        block_on(self.queue.flush(&cx)).unwrap();
        drop(entered);
        for key in ["a", "b"] {
            for layer in &self.layers {
                assert_eq!(layer.value(key), self.expected(key), "{key} in {:?}", layer.id());
            }
        }
        assert_eq!((self.queue.items(), self.queue.bytes()), (0, 0));
        self.queue.end_by_hand();
        self.flushers.into_iter().for_each(|flusher| flusher.join().unwrap());
    }
}

#[test]
fn no_order_of_writes_and_batches_loses_a_write_or_sleeps_on_it() {
    in_every_order(|| {
        let world = World::open();
        let clients = vec![world.set(&["a", "b", "a"], "one"), world.set(&["b", "a"], "other")];
        world.end(clients);
    });
}

#[test]
fn no_order_of_a_clear_and_batches_takes_a_later_write_along_or_spares_an_earlier_one() {
    in_every_order(|| {
        let world = World::open();
        assert_ne!(world.queue.part_of("a"), world.queue.part_of("b"));
        let clients = vec![world.set(&["a", "b"], "one"), world.clear(), world.set(&["a", "b"], "other")];
        world.end(clients);
    });
}

#[test]
fn no_order_of_removals_is_confirmed_before_all_layers_have_them() {
    in_every_order(|| {
        let world = World::open();
        for layer in &world.layers {
            layer.put(entry("a", "older"));
            layer.put(entry("b", "older"));
        }
        let remove = |name: &'static str| {
            let (queue, layers) = (Arc::clone(&world.queue), world.layers.clone());
            thread::spawn(move || {
                let receipt = Receipt::new(1);
                let change = Change::Remove(key(name));
                queue.turn(name.as_bytes()).push(START, change, Some(Arc::clone(&receipt))).unwrap();
                block_on(receipt.settled());
                assert!(layers.iter().all(|layer| layer.value(name).is_none()), "{name}");
            })
        };
        let clients = vec![remove("a"), remove("b"), remove("a")];
        world.end(clients);
    });
}
