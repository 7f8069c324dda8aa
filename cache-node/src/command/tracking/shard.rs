//! A part of the table of tracked keys: found by key, by tag and by the end of their life.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ahash::RandomState;
use hashbrown::{HashTable, hash_table::Entry as Place};

use super::mailbox::Mailbox;
use crate::{clock::UnixMillis, entry::Key};

/// A key that clients may hold. Keys and tags are found by hashes of 64 bits; two keys of one hash share their fate,
/// which costs a needless message and never an omitted one.
#[derive(Debug)]
pub(super) struct Tracked {
    hash: u64,
    key: Box<[u8]>,
    /// In the order of their numbers.
    clients: Vec<Arc<Mailbox>>,
    /// The earliest end of a life that was read; the largest number if there is none.
    expires_at_ms: u64,
    /// Hashes of all tags that were read.
    tags: Box<[u64]>,
}

/// The part.
#[derive(Default)]
pub(super) struct Shard {
    keys: HashTable<Tracked>,
    by_tag: HashMap<u64, HashSet<u64, RandomState>, RandomState>,
    by_expiry: BTreeSet<(u64, u64)>,
    items: usize,
}

// === impl Tracked ===

impl Tracked {
    /// What this takes of the table's bound: one for each client and one for each tag.
    fn items(&self) -> usize {
        self.clients.len() + self.tags.len()
    }

    /// Tells the clients that their copy is no longer good, because of what `operation` did.
    pub(super) fn tell(self, operation: u64) {
        let key = Key::new(self.key).expect("it was a key when it was read");
        self.clients.iter().for_each(|client| client.put(operation, &key));
    }
}

// === impl Shard ===

impl Shard {
    /// Keys that clients may hold.
    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }

    /// What is kept, as the bound counts it.
    pub(super) fn items(&self) -> usize {
        self.items
    }

    /// The client may hold the key from now on.
    pub(super) fn remember(&mut self, hash: u64, key: &[u8], client: &Arc<Mailbox>) {
        match self.keys.entry(hash, |tracked| tracked.hash == hash && *tracked.key == *key, |tracked| tracked.hash) {
            Place::Occupied(mut place) => {
                let clients = &mut place.get_mut().clients;
                if let Err(index) = clients.binary_search_by_key(&client.number, |client| client.number) {
                    clients.insert(index, Arc::clone(client));
                    self.items += 1;
                }
            }
            Place::Vacant(place) => {
                let (clients, tags) = (vec![Arc::clone(client)], Box::default());
                place.insert(Tracked { hash, key: key.into(), clients, expires_at_ms: u64::MAX, tags });
                self.items += 1;
            }
        }
    }

    /// A value of a key that clients may hold has this life and these tags. Added to what is known: of two clients the
    /// one that read the older value may tell later.
    pub(super) fn learn(
        &mut self,
        hash: u64,
        key: &[u8],
        expires_at: Option<UnixMillis>,
        tags: impl Iterator<Item = u64> + Clone,
    ) {
        let Some(tracked) = self.keys.find_mut(hash, |tracked| tracked.hash == hash && *tracked.key == *key) else {
            return;
        };
        let expires_at_ms = expires_at.map_or(u64::MAX, |at| at.0);
        if expires_at_ms < tracked.expires_at_ms {
            self.by_expiry.remove(&(tracked.expires_at_ms, hash));
            tracked.expires_at_ms = expires_at_ms;
            self.by_expiry.insert((expires_at_ms, hash));
        }
        if tags.clone().any(|tag| !tracked.tags.contains(&tag)) {
            self.items -= tracked.tags.len();
            tracked.tags = tags.chain(tracked.tags.iter().copied()).collect::<HashSet<u64>>().into_iter().collect();
            self.items += tracked.tags.len();
            for tag in &tracked.tags {
                self.by_tag.entry(*tag).or_default().insert(hash);
            }
        }
    }

    /// Takes out what is kept of the keys with this hash.
    pub(super) fn take(&mut self, hash: u64, taken: &mut Vec<Tracked>) {
        while let Ok(place) = self.keys.find_entry(hash, |tracked| tracked.hash == hash) {
            let tracked = place.remove().0;
            self.items -= tracked.items();
            self.by_expiry.remove(&(tracked.expires_at_ms, hash));
            unlink(&mut self.by_tag, &tracked.tags, hash);
            taken.push(tracked);
        }
    }

    /// Takes out any one key, by chance.
    pub(super) fn take_any(&mut self, chance: usize, taken: &mut Vec<Tracked>) {
        let buckets = self.keys.num_buckets();
        let mut places = (0..buckets).map(|step| chance.wrapping_add(step) % buckets);
        if let Some(hash) = places.find_map(|place| self.keys.get_bucket(place).map(|tracked| tracked.hash)) {
            self.take(hash, taken);
        }
    }

    /// Hashes of keys whose values carry the tag.
    pub(super) fn tagged(&self, tag: u64) -> Vec<u64> {
        self.by_tag.get(&tag).map(|keys| keys.iter().copied().collect()).unwrap_or_default()
    }

    /// Takes out at most `count` keys whose values have ended their life.
    pub(super) fn take_expired(&mut self, now: UnixMillis, count: usize, taken: &mut Vec<Tracked>) {
        while taken.len() < count
            && let Some(&(at_ms, hash)) = self.by_expiry.first()
            && at_ms <= now.0
        {
            self.by_expiry.pop_first();
            self.take(hash, taken);
        }
    }
}

fn unlink(by_tag: &mut HashMap<u64, HashSet<u64, RandomState>, RandomState>, tags: &[u64], hash: u64) {
    for tag in tags {
        if let Some(keys) = by_tag.get_mut(tag) {
            keys.remove(&hash);
            if keys.is_empty() {
                by_tag.remove(tag);
            }
        }
    }
}

#[cfg(test)]
impl Shard {
    /// Whether no tag and no end of a life leads to a key.
    pub(super) fn is_empty_of_links(&self) -> bool {
        self.by_tag.is_empty() && self.by_expiry.is_empty()
    }
}
