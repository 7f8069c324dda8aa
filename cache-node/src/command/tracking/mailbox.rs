//! News for one client that keeps a cache of its own, from whichever thread has them to the connection that sends them.

use std::{
    collections::HashSet,
    fmt, mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
};

use ahash::RandomState;
use futures::task::AtomicWaker;

use crate::{entry::Key, protocol::Replies};

/// Keys that wait for one client. Beyond it, and beyond [`BYTES_MAX`], the client is told to forget everything, which is
/// shorter and as true.
pub(super) const KEYS_MAX: usize = 16 * 1024;

/// Bytes of keys that wait for one client.
pub(super) const BYTES_MAX: usize = 1024 * 1024;

/// Keys of one message. Clients take them one array at a time.
const KEYS_OF_MESSAGE_MAX: usize = 256;

/// The news of one client. Putting something in never waits for the client.
pub(super) struct Mailbox {
    /// Tells mailboxes of one table apart.
    pub(super) number: u64,
    pending: Mutex<Pending>,
    waker: AtomicWaker,
    /// The operation that the client runs now or ran last: what it changes is its own change.
    operation: AtomicU64,
    /// Whether it wants no news of its own changes.
    spared: AtomicBool,
}

#[derive(Debug, Default)]
enum Pending {
    #[default]
    Nothing,
    Keys {
        keys: Vec<Key>,
        bytes: usize,
    },
    Everything,
}

// === impl Mailbox ===

impl Mailbox {
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            pending: Mutex::default(),
            waker: AtomicWaker::new(),
            operation: AtomicU64::new(u64::MAX),
            spared: AtomicBool::new(false),
        }
    }

    /// The client's commands are run as this operation from now on.
    pub(super) fn runs(&self, operation: u64) {
        self.operation.store(operation, Ordering::Relaxed);
    }

    /// Whether the client wants no news of its own changes.
    pub(super) fn spare(&self, spared: bool) {
        self.spared.store(spared, Ordering::Relaxed);
    }

    pub(super) fn is_spared(&self) -> bool {
        self.spared.load(Ordering::Relaxed)
    }

    /// The copy of this key is no longer good, because of what `operation` did.
    pub(super) fn put(&self, operation: u64, key: &Key) {
        if self.is_spared() && self.operation.load(Ordering::Relaxed) == operation {
            return;
        }
        let mut pending = self.pending();
        let first = match &mut *pending {
            Pending::Everything => return,
            Pending::Keys { keys, bytes } => {
                *bytes += key.as_bytes().len();
                keys.push(key.clone());
                if keys.len() > KEYS_MAX || *bytes > BYTES_MAX {
                    *pending = Pending::Everything;
                }
                false
            }
            Pending::Nothing => {
                *pending = Pending::Keys { keys: vec![key.clone()], bytes: key.as_bytes().len() };
                true
            }
        };
        drop(pending);
        if first {
            self.waker.wake();
        }
    }

    /// No copy is good any more.
    pub(super) fn put_everything(&self) {
        *self.pending() = Pending::Everything;
        self.waker.wake();
    }

    /// Writes the news, if there are any, and has the task woken by later ones. To be called between replies, never
    /// within one: news of a change must come after the replies that were read before it.
    pub(super) fn deliver(&self, waker: &Waker, out: &mut Replies) {
        // Registered first, so that nothing is put in between unnoticed.
        self.waker.register(waker);
        match mem::take(&mut *self.pending()) {
            Pending::Nothing => {}
            Pending::Keys { mut keys, .. } => {
                if keys.len() > 1 {
                    let mut told = HashSet::with_capacity_and_hasher(keys.len(), RandomState::new());
                    keys.retain(|key| told.insert(key.clone()));
                }
                for some in keys.chunks(KEYS_OF_MESSAGE_MAX) {
                    announce(out);
                    out.array(some.len());
                    some.iter().for_each(|key| out.bulk(key.as_bytes()));
                }
            }
            Pending::Everything => {
                announce(out);
                out.null();
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The head of a message.
fn announce(out: &mut Replies) {
    out.push(2);
    out.bulk(b"invalidate");
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("number", &self.number).field("pending", &self.pending).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{protocol::Protocol, testing::key};

    fn news(mailbox: &Mailbox) -> String {
        let mut out = Replies::default();
        out.speak(Protocol::Resp3);
        mailbox.deliver(Waker::noop(), &mut out);
        String::from_utf8(out.pieces().collect::<Vec<_>>().concat()).unwrap()
    }

    #[test]
    fn keys_go_together_in_their_order_and_once() {
        let mailbox = Mailbox::new(1);
        mailbox.put(0, &key("a"));
        mailbox.put(0, &key("bc"));
        mailbox.put(0, &key("a"));
        assert_eq!(news(&mailbox), ">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$2\r\nbc\r\n");
        assert_eq!(news(&mailbox), "");
    }

    #[test]
    fn everything_stands_for_all_keys_before_and_after_it() {
        let mailbox = Mailbox::new(1);
        mailbox.put(0, &key("a"));
        mailbox.put_everything();
        mailbox.put(0, &key("b"));
        assert_eq!(news(&mailbox), ">2\r\n$10\r\ninvalidate\r\n_\r\n");
    }

    #[test]
    fn what_waits_is_bounded_and_over_the_bound_becomes_everything() {
        let (many, large) = (Mailbox::new(1), Mailbox::new(2));
        (0..=KEYS_MAX).for_each(|number| many.put(0, &key(&number.to_string())));
        let long = key(&"k".repeat(32 * 1024));
        (0..=BYTES_MAX / long.as_bytes().len()).for_each(|_| large.put(0, &long));
        assert_eq!([news(&many), news(&large)], [">2\r\n$10\r\ninvalidate\r\n_\r\n"; 2].map(str::to_owned));
    }

    #[test]
    fn a_client_that_is_spared_hears_of_the_changes_of_others_only() {
        let mailbox = Mailbox::new(1);
        mailbox.runs(7);
        mailbox.put(7, &key("heard"));
        mailbox.spare(true);
        mailbox.put(7, &key("own"));
        mailbox.put(8, &key("other"));
        let news = news(&mailbox);
        assert!(news.contains("heard") && news.contains("other") && !news.contains("own"), "{news}");
    }
}
