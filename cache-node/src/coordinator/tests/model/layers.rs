//! The layers below memory as the model test sees them: a Redis in memory, and moods that any layer can be put into.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::{
    context::OperationContext,
    entry::{Entry, Key, Position},
    layer::{
        Answers, Change, Component, ErrorKind, Health, HealthState, Layer, LayerError, LayerId, LayerResult, Stats,
        TagRemoval,
    },
    testing::START,
};

/// What a layer answers to reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    Answered,
    Failing(ErrorKind),
    /// Given up for now, as behind an open breaker.
    NotHandled,
}

/// What a layer does with writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    Taken,
    Refused,
    /// Taken, but the reply is lost.
    TakenInSilence,
}

/// How a layer behaves.
#[derive(Debug)]
pub(super) struct Mood {
    pub(super) reads: Mutex<Reads>,
    pub(super) writes: Mutex<Writes>,
    /// The next read of this key finds what it finds and answers later.
    held: Mutex<Option<Vec<u8>>>,
    pub(super) holding: AtomicBool,
    gate: Semaphore,
}

/// A layer in a mood.
pub(super) struct Moody {
    pub(super) layer: Arc<dyn Layer>,
    pub(super) mood: Arc<Mood>,
}

/// A Redis that nobody stops when the node stops. It never looks at a clock: what is expired is still answered.
#[derive(Default)]
pub(super) struct Remote {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Vec<u8>, Entry>,
    removals: Vec<TagRemoval>,
}

// === impl Mood ===

impl Mood {
    pub(super) fn good() -> Arc<Self> {
        Arc::new(Self {
            reads: Mutex::new(Reads::Answered),
            writes: Mutex::new(Writes::Taken),
            held: Mutex::new(None),
            holding: AtomicBool::new(false),
            gate: Semaphore::new(0),
        })
    }

    pub(super) fn reads(&self) -> Reads {
        *self.reads.lock().unwrap()
    }

    pub(super) fn writes(&self) -> Writes {
        *self.writes.lock().unwrap()
    }

    pub(super) fn heal(&self) {
        *self.reads.lock().unwrap() = Reads::Answered;
        *self.writes.lock().unwrap() = Writes::Taken;
    }

    /// Makes the next read of the key a slow one.
    pub(super) fn hold(&self, name: &str) {
        *self.held.lock().unwrap() = Some(name.as_bytes().to_vec());
    }

    fn holds(&self, name: &[u8]) -> bool {
        self.held.lock().unwrap().as_deref() == Some(name)
    }

    /// No read is to be slow any more, except the one that is.
    pub(super) fn expect_no_more(&self) {
        *self.held.lock().unwrap() = None;
    }

    /// Lets the slow read answer, if there is one.
    pub(super) fn release(&self) {
        if self.holding.swap(false, Ordering::SeqCst) {
            self.gate.add_permits(1);
        }
    }

    async fn may_be_slow(&self, keys: &[Key]) {
        let is_slow = {
            let mut held = self.held.lock().unwrap();
            let is_slow = held.as_ref().is_some_and(|held| keys.iter().any(|key| key.as_bytes() == held));
            if is_slow {
                *held = None;
                self.holding.store(true, Ordering::SeqCst);
            }
            is_slow
        };
        if is_slow {
            self.gate.acquire().await.expect("never closed").forget();
        }
    }

    fn answer<T>(&self, id: LayerId, answer: T, not_handled: T) -> Result<T, LayerError> {
        match self.reads() {
            Reads::Answered => Ok(answer),
            Reads::Failing(kind) => Err(trouble(id, kind)),
            Reads::NotHandled => Ok(not_handled),
        }
    }

    async fn write<T>(&self, id: LayerId, write: impl Future<Output = Result<T, LayerError>>) -> Result<T, LayerError> {
        match self.writes() {
            Writes::Taken => write.await,
            Writes::Refused => Err(trouble(id, ErrorKind::Full)),
            Writes::TakenInSilence => {
                write.await?;
                Err(trouble(id, ErrorKind::Timeout))
            }
        }
    }
}

fn trouble(layer: LayerId, kind: ErrorKind) -> LayerError {
    LayerError::new(layer, kind, "a mood")
}

// === impl Moody ===

#[async_trait]
impl Component for Moody {
    fn name(&self) -> &'static str {
        self.layer.name()
    }

    fn health(&self) -> Health {
        self.layer.health()
    }

    fn stats(&self) -> Stats {
        self.layer.stats()
    }

    async fn shutdown(&self, deadline: Instant) {
        self.layer.shutdown(deadline).await;
    }
}

#[async_trait]
impl Layer for Moody {
    fn id(&self) -> LayerId {
        self.layer.id()
    }

    async fn get(&self, cx: &OperationContext, key: &Key) -> Result<LayerResult, LayerError> {
        let found = self.layer.get(cx, key).await?;
        self.mood.may_be_slow(std::slice::from_ref(key)).await;
        self.mood.answer(self.id(), found, LayerResult::NotHandled)
    }

    fn get_now(&self, cx: &OperationContext, key: &[u8], is_last: bool) -> Option<LayerResult> {
        let is_good = matches!(self.mood.reads(), Reads::Answered) && !self.mood.holds(key);
        is_good.then(|| self.layer.get_now(cx, key, is_last)).flatten()
    }

    async fn get_many(&self, cx: &OperationContext, keys: &[Key]) -> Answers {
        let found = self.layer.get_many(cx, keys).await?;
        self.mood.may_be_slow(keys).await;
        self.mood.answer(self.id(), found, keys.iter().map(|_| Ok(LayerResult::NotHandled)).collect())
    }

    async fn apply(&self, cx: &OperationContext, changes: &[Change]) -> Result<Vec<Position>, LayerError> {
        self.mood.write(self.id(), self.layer.apply(cx, changes)).await
    }

    async fn clear(&self, cx: &OperationContext) -> Result<(), LayerError> {
        self.mood.write(self.id(), self.layer.clear(cx)).await
    }

    async fn tag_removals(&self, cx: &OperationContext) -> Result<Vec<TagRemoval>, LayerError> {
        self.layer.tag_removals(cx).await
    }
}

// === impl Remote ===

impl Remote {
    /// Forgets everything, as after a restart without persistence.
    pub(super) fn empty(&self) {
        *self.kept.lock().unwrap() = Kept::default();
    }

    /// Forgets one entry for want of room.
    pub(super) fn evict(&self, name: &str) {
        self.kept.lock().unwrap().entries.remove(name.as_bytes());
    }
}

#[async_trait]
impl Component for Remote {
    fn name(&self) -> &'static str {
        LayerId::Redis.label()
    }

    fn health(&self) -> Health {
        Health { state: HealthState::Healthy, reason: "AsExpected", message: String::new(), since: START }
    }

    fn stats(&self) -> Stats {
        Stats { entries: Some(self.kept.lock().unwrap().entries.len() as u64), ..Stats::default() }
    }

    async fn shutdown(&self, _deadline: Instant) {}
}

#[async_trait]
impl Layer for Remote {
    fn id(&self) -> LayerId {
        LayerId::Redis
    }

    async fn get(&self, _cx: &OperationContext, key: &Key) -> Result<LayerResult, LayerError> {
        let found = self.kept.lock().unwrap().entries.get(key.as_bytes()).cloned();
        Ok(found.map_or(LayerResult::Miss, LayerResult::Hit))
    }

    async fn get_many(&self, cx: &OperationContext, keys: &[Key]) -> Answers {
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            found.push(self.get(cx, key).await);
        }
        Ok(found)
    }

    async fn apply(&self, _cx: &OperationContext, changes: &[Change]) -> Result<Vec<Position>, LayerError> {
        let mut kept = self.kept.lock().unwrap();
        for change in changes {
            match change {
                Change::Set(entry) | Change::Again(entry, _) => {
                    drop(kept.entries.insert(entry.key().to_vec(), entry.clone()))
                }
                Change::Fill(entry) => drop(kept.entries.entry(entry.key().to_vec()).or_insert_with(|| entry.clone())),
                Change::Remove(key) => drop(kept.entries.remove(key.as_bytes())),
                Change::RemoveTagged(removal) => {
                    kept.removals.retain(|known| (&known.tags, known.matching) != (&removal.tags, removal.matching));
                    kept.removals.push(removal.clone());
                }
                Change::Follow(_) => {}
            }
        }
        Ok(Vec::new())
    }

    async fn clear(&self, _cx: &OperationContext) -> Result<(), LayerError> {
        self.kept.lock().unwrap().entries.clear();
        Ok(())
    }

    async fn tag_removals(&self, _cx: &OperationContext) -> Result<Vec<TagRemoval>, LayerError> {
        Ok(self.kept.lock().unwrap().removals.clone())
    }
}
