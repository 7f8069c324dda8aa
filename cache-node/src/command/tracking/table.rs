//! Which clients may hold which keys in a cache of their own, and how they hear that a copy is no longer good.
//!
//! A client is entered before its read is run, and the change of a value is told after it took effect. So a client that
//! read an older value is always in the table when the change comes, and its news wait behind its reply. An entry is
//! good for one message: who reads again is entered again.
//!
//! The table is bounded. What is given up for want of room is told to its clients as if it had changed.

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ahash::RandomState;
use tokio::{sync::Notify, task::yield_now, time::sleep};

use super::{
    mailbox::Mailbox,
    shard::{Shard, Tracked},
};
use crate::{
    backplane::{Listener, Notice, What},
    clock::{Clock, UnixMillis},
    entry::{Entry, Key},
    layer::{Matching, TagRemoval},
    tally::Tally,
};

/// Enough that event loops rarely meet.
const SHARDS: usize = 16;

/// How late news of the end of a life may be.
const TICK: Duration = Duration::from_millis(50);

/// Removals by tag that wait to be looked up; beyond it all clients are told to forget everything.
const REMOVALS_MAX: usize = 1024;

/// Keys handled under one lock.
const KEYS_AT_ONCE: usize = 512;

/// The table.
pub struct Table {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    items_max: usize,
    clients: RwLock<Clients>,
    /// How many clients track: while there are none, a change costs one look at this.
    tracking: AtomicUsize,
    numbers: AtomicU64,
    removals: Mutex<Vec<TagRemoval>>,
    /// What was forgotten all at once, to be dropped where nobody waits.
    forgotten: Mutex<Vec<Shard>>,
    wanted: Notify,
    clock: Clock,
    told: Tally<{ Reason::ALL.len() }>,
}

#[derive(Default)]
struct Clients {
    all: HashMap<u64, Arc<Mailbox>, RandomState>,
    /// Who wants to hear of every key with a prefix.
    broadcast: Vec<(Box<[u8]>, Arc<Mailbox>)>,
}

/// Why clients were told that a copy is no longer good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The key was written or removed.
    Changed,
    /// The entry was removed by a tag.
    Tagged,
    /// Its life has ended.
    Expired,
    /// The table had no room for it.
    Evicted,
    /// Everything was removed, or there was too much to tell.
    Everything,
}

/// What the table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Clients that track.
    pub clients: usize,
    /// Prefixes, of all clients together.
    pub prefixes: usize,
    /// Keys that clients may hold.
    pub keys: usize,
    /// Keys once for each client, and tags of keys.
    pub items: usize,
    /// The bound of `items`.
    pub items_max: usize,
}

// === impl Table ===

impl Table {
    /// Without any client.
    pub(in crate::command) fn open(items_max: usize, clock: Clock) -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            items_max,
            clients: RwLock::default(),
            tracking: AtomicUsize::new(0),
            numbers: AtomicU64::new(1),
            removals: Mutex::default(),
            forgotten: Mutex::default(),
            wanted: Notify::new(),
            clock,
            told: Tally::new(),
        }
    }

    /// What it holds now.
    pub fn held(&self) -> Held {
        let clients = self.clients();
        let mut held = Held {
            clients: clients.all.len(),
            prefixes: clients.broadcast.len(),
            items_max: self.items_max,
            ..Held::default()
        };
        for shard in &self.shards {
            let shard = lock(shard);
            held.keys += shard.keys();
            held.items += shard.items();
        }
        held
    }

    /// Keys told to clients, once whatever the number of clients; with [`Reason::Everything`] the clients told so.
    pub fn told(&self, reason: Reason) -> u64 {
        self.told.sum(reason as usize)
    }

    /// A client begins to track.
    pub(super) fn join(&self) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::new(self.numbers.fetch_add(1, Ordering::Relaxed)));
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        clients.all.insert(mailbox.number, Arc::clone(&mailbox));
        self.tracking.store(clients.all.len(), Ordering::SeqCst);
        self.wanted.notify_one();
        mailbox
    }

    /// The client wants to hear of every key that begins so.
    pub(super) fn broadcast(&self, prefix: &[u8], client: &Arc<Mailbox>) {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        clients.broadcast.push((prefix.into(), Arc::clone(client)));
    }

    /// A client ends to track. What is kept of it goes with the next change of each key, and with the last client.
    pub(super) fn leave(&self, client: &Mailbox) {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        clients.all.remove(&client.number);
        clients.broadcast.retain(|(_, other)| other.number != client.number);
        self.tracking.store(clients.all.len(), Ordering::SeqCst);
        // Under the lock, so that no new client loses what it reads meanwhile.
        if clients.all.is_empty() {
            self.forget_all();
        }
    }

    /// The client is about to read the key, and may hold what it gets.
    pub(super) fn remember(&self, key: &[u8], client: &Arc<Mailbox>) {
        let hash = self.hasher.hash_one(key);
        let mut given_up = Vec::new();
        let mut shard = self.shard(hash);
        shard.remember(hash, key, client);
        self.make_room(&mut shard, &mut given_up);
        drop(shard);
        self.tell(given_up, 0, Reason::Evicted);
    }

    /// A client has read this entry. The caller then asks once more whether a tag has removed it: a removal that was
    /// looked up before this call did not find the tags here.
    pub(in crate::command) fn learn(&self, entry: &Entry) {
        let hash = self.hasher.hash_one(entry.key());
        let tags = entry.tags();
        let mut given_up = Vec::new();
        let mut shard = self.shard(hash);
        shard.learn(hash, entry.key(), entry.expires_at(), tags.iter().map(|tag| self.hasher.hash_one(tag)));
        self.make_room(&mut shard, &mut given_up);
        drop(shard);
        self.tell(given_up, 0, Reason::Evicted);
    }

    fn spread(&self, operation: u64, what: What<'_>) {
        match what {
            What::Key(key) => {
                self.forget(key, operation, Reason::Changed);
                self.tell_broadcast(operation, key);
            }
            What::Tagged(removal) => {
                // Who follows prefixes is entered for no keys, so nobody knows which of them carry the tag.
                self.clients().broadcast.iter().for_each(|(_, client)| client.put_everything());
                let mut removals = lock(&self.removals);
                removals.push(removal.clone());
                if removals.len() > REMOVALS_MAX {
                    removals.clear();
                    drop(removals);
                    self.tell_everything();
                }
                self.wanted.notify_one();
            }
            What::Everything => self.tell_everything(),
        }
    }

    /// Tells those who may hold the key, and forgets them.
    pub(in crate::command) fn forget(&self, key: &[u8], operation: u64, reason: Reason) {
        let hash = self.hasher.hash_one(key);
        let mut taken = Vec::new();
        self.shard(hash).take(hash, &mut taken);
        self.tell(taken, operation, reason);
    }

    fn tell(&self, taken: Vec<Tracked>, operation: u64, reason: Reason) {
        if !taken.is_empty() {
            self.told.add(reason as usize, taken.len() as u64);
            taken.into_iter().for_each(|tracked| tracked.tell(operation));
        }
    }

    fn tell_broadcast(&self, operation: u64, key: &[u8]) {
        let clients = self.clients();
        let mut named: Option<Key> = None;
        for (_, client) in clients.broadcast.iter().filter(|(prefix, _)| key.starts_with(prefix)) {
            let key = named.get_or_insert_with(|| Key::new(key.to_vec()).expect("what changed is a key"));
            client.put(operation, key);
        }
    }

    fn tell_everything(&self) {
        // First: who is entered after the message of everything must stay.
        self.forget_all();
        let clients = self.clients();
        self.told.add(Reason::Everything as usize, clients.all.len() as u64);
        clients.all.values().for_each(|client| client.put_everything());
    }

    /// Quick, because a clear holds the locks of all keys meanwhile: a million keys take a while to drop.
    fn forget_all(&self) {
        for shard in &self.shards {
            let forgotten = mem::take(&mut *lock(shard));
            if forgotten.keys() > 0 {
                lock(&self.forgotten).push(forgotten);
            }
        }
        self.wanted.notify_one();
    }

    fn make_room(&self, shard: &mut Shard, given_up: &mut Vec<Tracked>) {
        while shard.items() > self.items_max / SHARDS {
            shard.take_any(usize::try_from(rand::random::<u32>()).unwrap_or(0), given_up);
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // Not the bits by which the tables within find their places.
        lock(&self.shards[usize::try_from(hash >> 32).expect("32 bits") % SHARDS])
    }

    fn clients(&self) -> RwLockReadGuard<'_, Clients> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Table {
    /// Costs one look while nobody tracks.
    #[inline]
    fn changed(&self, notice: &Notice<'_>) {
        if self.tracking.load(Ordering::Relaxed) > 0 {
            self.spread(notice.operation, notice.what);
        }
    }
}

// === impl Table: in the background ===

impl Table {
    /// Tells of removals by tag and of lives that have ended, for ever.
    pub async fn run(&self) {
        loop {
            if self.tracking.load(Ordering::SeqCst) == 0 {
                self.wanted.notified().await;
            } else {
                tokio::select! { () = self.wanted.notified() => {}, () = sleep(TICK) => {} }
            }
            let removals = mem::take(&mut *lock(&self.removals));
            for removal in removals {
                self.forget_tagged(&removal).await;
            }
            self.forget_expired(self.clock.now()).await;
            self.drop_forgotten().await;
        }
    }

    async fn forget_tagged(&self, removal: &TagRemoval) {
        let tags: Vec<u64> = removal.tags.tags().iter().map(|tag| self.hasher.hash_one(tag)).collect();
        for shard in &self.shards {
            let keys = concerned(&lock(shard), &tags, removal.matching);
            for keys in keys.chunks(KEYS_AT_ONCE) {
                let taken = take_all(&mut lock(shard), keys);
                self.tell(taken, 0, Reason::Tagged);
                yield_now().await;
            }
        }
    }

    async fn drop_forgotten(&self) {
        loop {
            let forgotten = lock(&self.forgotten).pop();
            if forgotten.is_none() {
                return;
            }
            drop(forgotten);
            yield_now().await;
        }
    }

    async fn forget_expired(&self, now: UnixMillis) {
        for shard in &self.shards {
            loop {
                let mut taken = Vec::new();
                lock(shard).take_expired(now, KEYS_AT_ONCE, &mut taken);
                if taken.is_empty() {
                    break;
                }
                self.tell(taken, 0, Reason::Expired);
                yield_now().await;
            }
        }
    }
}

fn take_all(shard: &mut Shard, keys: &[u64]) -> Vec<Tracked> {
    let mut taken = Vec::new();
    keys.iter().for_each(|hash| shard.take(*hash, &mut taken));
    taken
}

/// Hashes of the keys that a removal concerns, be they newer than it: that costs a message and no more.
fn concerned(shard: &Shard, tags: &[u64], matching: Matching) -> Vec<u64> {
    let mut each = tags.iter().map(|tag| shard.tagged(*tag));
    match matching {
        Matching::Any => each.flatten().collect(),
        Matching::All => {
            let first = each.next().unwrap_or_default();
            each.fold(first, |mut all, tagged| {
                let tagged: std::collections::HashSet<u64, RandomState> = tagged.into_iter().collect();
                all.retain(|key| tagged.contains(key));
                all
            })
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("held", &self.held()).finish_non_exhaustive()
    }
}

// === impl Reason ===

impl Reason {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Changed, Self::Tagged, Self::Expired, Self::Evicted, Self::Everything];

    /// The value of the metric label `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Tagged => "tagged",
            Self::Expired => "expired",
            Self::Evicted => "evicted",
            Self::Everything => "everything",
        }
    }
}

#[cfg(test)]
mod tests;
