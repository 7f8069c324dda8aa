//! Reads, writes and batches in every order of a few threads. `make mutants` plants bugs that only these tests see.

use std::sync::atomic::AtomicU64;

use shuttle::{
    future::block_on,
    rand::{Rng, thread_rng},
    thread,
};

use super::*;
use crate::{layer::Change, sync::may_switch, testing::in_every_order, write_queue::Ticket};

/// A coordinator without tasks.
struct World {
    coordinator: Arc<Coordinator>,
    layer: Arc<Scripted>,
    clock: Clock,
    flushers: Vec<thread::JoinHandle<()>>,
}

impl World {
    fn open() -> Self {
        let (clock, layer) = (Clock::manual(START), Scripted::open());
        let cold = vec![Arc::clone(&layer) as Arc<dyn Layer>];
        let queue = WriteQueue::by_hand(QUEUE, cold.clone(), clock.clone());
        let flush = |number| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || block_on(queue.work_by_hand(number)))
        };
        let flushers = (0..queue.flushers()).map(flush).collect();
        let Parts { memory, tags, freshness, write_mode, .. } = parts(&clock, Policy::S3Fifo, Vec::new());
        let tasks = TaskTracker::new();
        let coordinator = Arc::new(Coordinator {
            stores: Arc::new(Stores::new(memory, queue, cold, tags, Arc::new(Backplane::none(clock.clone())))),
            flights: Flights::new(tasks.clone(), clock.clone()),
            refreshes: Refreshes::new(REFRESH_WINDOW),
            leases: Arc::default(),
            shared_leases: None,
            followers: None,
            outbox: Outbox::default(),
            freshness,
            write_mode,
            clock: clock.clone(),
            operations: AtomicU64::new(1),
            answers: Arc::default(),
            waiters: Semaphore::new(1),
            tasks,
            stop: CancellationToken::new(),
        });
        block_on(coordinator.stores.learn_tags(&cx(&clock)));
        Self { coordinator, layer, clock, flushers }
    }

    fn read(&self, name: &'static str) -> thread::JoinHandle<()> {
        let (coordinator, cx) = (Arc::clone(&self.coordinator), cx(&self.clock));
        let keys = [key(name), key("other")];
        if thread_rng().r#gen() {
            thread::spawn(move || drop(block_on(coordinator.get_many(&cx, &keys, Wants::Value))))
        } else {
            thread::spawn(move || drop(block_on(coordinator.get(&cx, &keys[0], Wants::Value))))
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        block_on(self.coordinator.get(&cx(&self.clock), &key(name), Wants::Value)).entry.as_ref().map(text)
    }

    fn end(self) {
        self.coordinator.write_queue().end_by_hand();
        self.flushers.into_iter().for_each(|flusher| flusher.join().unwrap());
    }
}

/// Deadlines belong to a runtime; nobody lets its time pass.
fn in_every_order_with_deadlines(test: impl Fn() + Send + Sync + Copy + 'static) {
    in_every_order(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        test();
    });
}

#[test]
fn no_order_of_cold_reads_and_a_change_serves_the_older_value() {
    in_every_order_with_deadlines(|| {
        let world = World::open();
        world.layer.put(entry("k", "older"));
        let readers = [world.read("k"), world.read("k")];
        let cx = cx(&world.clock);
        let expected = match thread_rng().gen_range(0..3) {
            0 => block_on(world.coordinator.set(&cx, entry("k", "newer"))).map(|_| Some("newer".to_owned())),
            1 => block_on(world.coordinator.remove_many(&cx, &[key("k")])).map(|_| None),
            _ => block_on(world.coordinator.clear(&cx)).map(|_| None),
        };
        let expected = expected.unwrap();
        assert_eq!(world.get("k"), expected, "once it is acknowledged");
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!(world.get("k"), expected, "when earlier reads are over");
        world.coordinator.memory().remove(b"k");
        assert_eq!(world.get("k"), expected, "below memory");
        world.end();
    });
}

/// A store that only knows how often it was written, and who reads it.
#[derive(Default)]
struct Counted {
    version: AtomicU64,
    /// The newest ticket of a read, and how many read under it.
    newest: std::sync::Mutex<(Option<Ticket>, usize)>,
}

impl Counted {
    async fn read(self: Arc<Self>, ticket: Ticket) -> Found {
        {
            // Who looked before a write may be late, and read by himself what nobody else wants any more.
            let mut newest = self.newest.lock().unwrap();
            if newest.0 < Some(ticket) {
                *newest = (Some(ticket), 0);
            }
            let others = if newest.0 == Some(ticket) { std::mem::replace(&mut newest.1, 1) } else { 0 };
            assert_eq!(others, 0, "somebody reads the same at this moment");
        }
        may_switch();
        let version = self.version.load(Ordering::SeqCst);
        may_switch();
        let mut newest = self.newest.lock().unwrap();
        if newest.0 == Some(ticket) {
            newest.1 = 0;
        }
        Found::Fresh(entry("k", &version.to_string()))
    }
}

impl Counted {
    /// Alone, or with another key before it or behind it, which others may be reading as well.
    async fn join(self: &Arc<Self>, flights: &Flights, ticket: Ticket, other: Ticket) -> Found {
        let place = match thread_rng().gen_range(0..3) {
            0 => return flights.board(&key("k"), ticket, |_| Arc::clone(self).read(ticket)).end().await,
            way => way - 1,
        };
        let mut wanted = vec![(key("other"), other)];
        wanted.insert(place, (key("k"), ticket));
        let store = Arc::clone(self);
        let rides = flights.board_many(&wanted, async move |wanted, _| {
            let mut found = Vec::new();
            for (asked, ticket) in wanted {
                found.push(if asked == key("k") { Arc::clone(&store).read(ticket).await } else { Found::Absent });
            }
            found
        });
        assert!(matches!(rides[1 - place].end().await, Found::Absent), "each gets its own answer");
        rides[place].end().await
    }
}

#[test]
fn no_order_of_readers_reads_twice_at_once_or_from_before_a_write() {
    in_every_order_with_deadlines(|| {
        let layer = Scripted::open() as Arc<dyn Layer>;
        let clock = Clock::manual(START);
        let queue = WriteQueue::by_hand(QUEUE, vec![layer], clock.clone());
        let (flights, store) = (Arc::new(Flights::new(TaskTracker::new(), clock)), Arc::new(Counted::default()));
        let reader = |_| {
            let (queue, flights, store) = (Arc::clone(&queue), Arc::clone(&flights), Arc::clone(&store));
            thread::spawn(move || {
                let turn = queue.turn(b"k");
                let (ticket, seen) = (turn.ticket(), store.version.load(Ordering::SeqCst));
                drop(turn);
                let found = block_on(store.join(&flights, ticket, queue.turn(b"other").ticket()));
                let Found::Fresh(found) = found else { panic!("it has a value") };
                assert!(text(&found).parse::<u64>().unwrap() >= seen, "an answer from before the look");
            })
        };
        let readers: Vec<_> = (0..4).map(reader).collect();
        for _ in 0..2 {
            let mut turn = queue.turn(b"k");
            turn.push(START, Change::Set(entry("k", "v")), None).unwrap();
            store.version.fetch_add(1, Ordering::SeqCst);
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}
