//! What other nodes have changed: memory first, then the disk, in one batch with how far the log was followed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::{sleep, timeout};

use super::{Coordinator, stores::Stores};
use crate::{
    backplane::{Effects, Follower, Notice, What},
    clock::UnixMillis,
    context::{OperationContext, Origin, Trust},
    entry::{Key, Position},
    layer::{
        Change, Layer, LayerId, TagRemoval,
        log::{Author, Cursor, Log, Record, Recorded},
    },
};

/// How long one call of a layer may take here, and the pause before it is tried again.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a disk may hang before all that it holds is given up.
const DISK_PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(100);

// === impl Stores ===

#[async_trait]
impl Effects for Stores {
    async fn cursor(&self) -> Option<Cursor> {
        let disk = self.disk()?;
        let cursor = disk.cursor().await.inspect_err(|error| tracing::warn!(%error, "the disk starts cold")).ok()?;
        cursor.inspect(|cursor| self.tags.see_in_log(cursor.position))
    }

    async fn apply(&self, records: &[Record], cursor: &Cursor) -> bool {
        let now = self.clock.now();
        let mut is_uncertain = false;
        let mut changes = Vec::new();
        // Newest last: of several records about one key only the last is needed.
        let mut keys: BTreeMap<&[u8], (&Key, Position)> = BTreeMap::new();
        for Record { position, author, what } in records {
            self.tags.see_in_log(*position);
            match what {
                // What this node has written itself its disk has as well, or its journal says that it has not.
                Recorded::Key(_) | Recorded::Cleared if *author != Author::Other => {}
                Recorded::Key(key) => drop(keys.insert(key.as_bytes(), (key, *position))),
                Recorded::Tagged(removal) if removal.tags.tags().is_empty() => {}
                Recorded::Tagged(removal) => {
                    self.tags.record(removal);
                    if *author != Author::Own {
                        self.heard(*position, What::Tagged(removal));
                    }
                    changes.push(Change::RemoveTagged(removal.clone()));
                }
                Recorded::Cleared => self.give_up_own(*position).await,
                Recorded::Awaited => {}
                Recorded::Uncertain if *author == Author::Own => {}
                Recorded::Uncertain => {
                    is_uncertain = true;
                    self.give_up_own(*position).await;
                    self.learn_anew().await;
                }
            }
        }
        let removed: Vec<(&Key, Position)> =
            keys.into_values().filter(|(key, position)| self.supersede(now, key, *position)).collect();
        changes.extend(removed.iter().map(|(key, _)| Change::Remove((*key).clone())));
        self.keep(changes, cursor).await;
        // Somebody may have read the disk before it forgot, or before it was known that it can not, and put the value into
        // memory.
        for (key, position) in removed {
            self.supersede(now, key, position);
        }
        is_uncertain
    }

    async fn start_over(&self, cursor: &Cursor) {
        self.tags.see_in_log(cursor.position);
        self.give_up_own(cursor.position).await;
        self.learn_anew().await;
        self.keep(Vec::new(), cursor).await;
    }

    async fn note(&self, cursor: &Cursor) {
        self.keep(Vec::new(), cursor).await;
    }

    async fn tell(&self) -> bool {
        self.learn_tags(&self.background()).await;
        self.knows_tags_of(LayerId::Redis) && self.has_told_tags()
    }
}

impl Stores {
    /// Has memory and queue forget a key that another node has changed; answers whether the disk must, too.
    fn supersede(&self, now: UnixMillis, key: &Key, position: Position) -> bool {
        let mut turn = self.write_queue.turn(key.as_bytes());
        let is_older = turn.supersede(now, key.as_bytes(), position);
        if is_older {
            self.memory.remove(key.as_bytes());
        }
        self.heard(position, What::Key(key.as_bytes()));
        is_older
    }

    /// Forgets what this node alone holds, but for writes that Redis does not have yet.
    async fn give_up_own(&self, position: Position) {
        let receipt = self.write_queue.clear_own(position, || {
            self.memory.clear();
            self.forget_completeness();
            self.heard(position, What::Everything);
        });
        // A disk that fails is not waited for: until it is cleared nothing that it holds counts, also after a restart.
        let _ = timeout(CALL_TIMEOUT, receipt.settled()).await;
    }

    /// Has the removals by tag that Redis keeps read once more; until then, and until it knows those of this node, nothing
    /// that it holds is served. For the latter nobody waits here: it takes writes only once this node follows its log.
    async fn learn_anew(&self) {
        self.forget_tags_of(LayerId::Redis);
        while self.learn_tags(&self.background()).await.contains(&LayerId::Redis) {
            sleep(RETRY).await;
        }
    }

    /// Leaves word of the newest record of this node for the process after this one, which could not know otherwise whether
    /// a Redis with another history has it.
    pub(super) async fn leave_word(&self, newest: Position) {
        let Some(disk) = self.disk() else { return };
        if let Ok(Some(cursor)) = disk.cursor().await {
            self.keep(Vec::new(), &Cursor { newest: Some(newest), ..cursor }).await;
        }
    }

    /// Keeps changes and cursor on disk, unless all that it holds is to be cleared anyway.
    async fn keep(&self, mut changes: Vec<Change>, cursor: &Cursor) {
        let Some(disk) = self.disk().filter(|disk| !self.write_queue.is_void(disk.id())) else { return };
        changes.push(Change::Follow(Box::new(cursor.clone())));
        let error = match timeout(DISK_PATIENCE, disk.apply(&self.background(), &changes)).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            // Memory is fenced meanwhile, and must not be for as long as the disk hangs.
            Err(elapsed) => elapsed.to_string(),
        };
        tracing::warn!(error, "the disk can not be told what other nodes changed; it is cleared");
        self.write_queue.distrust_own();
    }

    fn heard(&self, position: Position, what: What<'_>) {
        self.backplane.tell(&Notice { origin: Origin::Backplane, operation: 0, position, what });
    }

    fn background(&self) -> OperationContext {
        let deadline = self.clock.monotonic() + CALL_TIMEOUT;
        OperationContext { id: 0, origin: Origin::Backplane, now: self.clock.now(), deadline, trust: Trust::Full }
    }

    fn disk(&self) -> Option<&Arc<dyn Layer>> {
        self.cold.iter().map(|cold| &cold.layer).find(|layer| layer.id() == LayerId::Disk)
    }
}

// === impl Stores: what becomes of own changes ===

impl Stores {
    /// Hears from the queue which values are no more, and where the log has placed the changes of this node.
    pub(super) fn hear_the_queue(self: &Arc<Self>) {
        let stores = Arc::downgrade(self);
        self.write_queue.on_drop(move |key| {
            if let Some(stores) = stores.upgrade() {
                stores.memory.remove(key);
                stores.forgot(key);
            }
        });
        let stores = Arc::downgrade(self);
        // Not the newest place that is known of: that may be one that this node has only given for the time being.
        self.write_queue.on_log(move || stores.upgrade().map(|stores| stores.backplane.position()).unwrap_or_default());
        let stores = Arc::downgrade(self);
        self.write_queue.on_placed(move |position, removal| {
            let Some(stores) = stores.upgrade() else { return };
            if position == Position::NONE {
                return;
            }
            stores.tags.see_in_log(position);
            stores.backplane.published();
            // What was written since, under the provisional position, may be older than the final one.
            if let Some(removal) = removal {
                let removal = TagRemoval { position, ..removal.clone() };
                stores.tags.record(&removal);
                stores.heard(position, What::Tagged(&removal));
            }
        });
    }
}

// === impl Coordinator ===

impl Coordinator {
    /// Follows the log from here on.
    pub(super) async fn follow(&self, log: Box<dyn Log>) {
        self.stores.tags.follow_log();
        let effects = Arc::clone(&self.stores) as Arc<dyn Effects>;
        let mut follower = Follower::new(Arc::clone(&self.stores.backplane), log, effects);
        follower.recall().await;
        self.tasks.spawn(follower.run(self.stop.clone()));
    }
}
