//! The task that follows the log.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    Backplane, Effects, Known, Notice, What,
    gap::{Gap, judge},
};
use crate::{
    context::Origin,
    entry::Position,
    layer::{
        ErrorKind, LayerError, LayerId,
        log::{Cursor, Log},
    },
};

/// Pause after a look that failed.
const RETRY: Duration = Duration::from_millis(100);

/// Follows the log of one node.
pub(crate) struct Follower {
    backplane: Arc<Backplane>,
    log: Box<dyn Log>,
    effects: Arc<dyn Effects>,
    /// None: nothing is known of what happened so far.
    cursor: Option<Cursor>,
    /// What is to be begun anew for.
    gap: Option<Gap>,
}

// === impl Follower ===

impl Follower {
    pub(crate) fn new(backplane: Arc<Backplane>, log: Box<dyn Log>, effects: Arc<dyn Effects>) -> Self {
        Self { backplane, log, effects, cursor: None, gap: None }
    }

    /// Follows until it shall stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        self.cursor = self.effects.cursor().await;
        if let Some(cursor) = &self.cursor {
            self.backplane.applied.store(cursor.position.to_bits(), Ordering::Release);
        }
        loop {
            match self.step().await {
                Ok(()) => self.backplane.known().trouble = None,
                Err(error) => {
                    self.backplane.counts.failures.fetch_add(1, Ordering::Relaxed);
                    self.backplane.known().trouble = Some(error.message);
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// One look at the log, and the wait for the next if there is nothing more to read.
    pub(super) async fn step(&mut self) -> Result<(), LayerError> {
        let Some(cursor) = self.cursor.clone() else { return self.start_over().await };
        let asked = self.backplane.clock.monotonic();
        let look = self.log.look(cursor.position).await?;
        only_master(look.state.is_master)?;
        let next = match judge(&cursor, &look) {
            Ok(next) => next,
            Err(gap) => {
                self.gap = Some(gap);
                self.cursor = None;
                self.backplane.lose_trust(gap);
                return Ok(());
            }
        };
        let is_news = !look.records.is_empty() || next.history != cursor.history;
        if is_news {
            let read = self.backplane.clock.monotonic();
            if self.effects.apply(&look.records, &next).await {
                self.backplane.note_gap(Gap::Announced);
            }
            self.backplane.applying.observe_since(read, self.backplane.clock.monotonic());
        }
        let own = look.records.iter().filter(|record| record.is_own).count();
        let behind = look.state.added.saturating_sub(next.added);
        self.backplane.advance(&next, look.records.len(), own, behind);
        if next.history != cursor.history
            && let Err(error) = self.log.go_on(&cursor.history, &next.history).await
        {
            tracing::debug!(%error, "that the log goes on is not noted; a new node may start it anew");
        }
        self.cursor = Some(next.clone());
        if look.is_all {
            self.backplane.confirm(asked);
            self.log.wait(next.position).await?;
        }
        Ok(())
    }

    /// Gives up everything, and begins at the head of the log.
    async fn start_over(&mut self) -> Result<(), LayerError> {
        let state = self.log.look(Position::LAST).await?.state;
        only_master(state.is_master)?;
        // Of a trimmed log nothing is lost but for this node; else the others must know.
        let is_certain = self.gap.is_some_and(Gap::is_certain);
        if self.gap.is_none_or(Gap::concerns_all) {
            self.log.begin(&state.history, self.backplane.position(), is_certain).await?;
        }
        let state = self.log.look(Position::LAST).await?.state;
        only_master(state.is_master)?;
        if state.epoch.is_none() {
            return Err(refused("the log was removed as soon as it was made"));
        }
        let cursor = Cursor::at_head(&state);
        self.effects.start_over(&cursor).await;
        self.backplane.advance(&cursor, 0, 0, 0);
        self.cursor = Some(cursor);
        self.gap = None;
        Ok(())
    }
}

/// A replica may be behind its master for any time.
fn only_master(is_master: bool) -> Result<(), LayerError> {
    if is_master { Ok(()) } else { Err(refused("the server is a replica, which may lack records")) }
}

fn refused(message: &str) -> LayerError {
    LayerError { layer: LayerId::Redis, kind: ErrorKind::Refused, message: message.to_owned() }
}

// === impl Backplane ===

impl Backplane {
    /// At that moment the node knew all changes.
    fn confirm(&self, asked: Instant) {
        self.confirmed_us.store(self.micros(asked), Ordering::Release);
        if !self.caught_up.swap(true, Ordering::AcqRel) {
            tracing::info!(position = %self.position(), "caught up with the invalidation log");
        }
    }

    /// What the node holds may be older than it looks, in a way that nobody can tell.
    fn lose_trust(&self, gap: Gap) {
        self.confirmed_us.store(0, Ordering::Release);
        self.note_gap(gap);
        let position = Position::NONE;
        self.tell(&Notice { origin: Origin::Backplane, operation: 0, position, what: What::Everything });
    }

    fn note_gap(&self, gap: Gap) {
        self.counts.gaps[gap as usize].fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now();
        let Known { gap: last, .. } = &mut *self.known();
        *last = Some((gap, now));
        tracing::warn!(reason = gap.label(), "records of the invalidation log are missing: {}", gap.sentence());
    }

    fn advance(&self, cursor: &Cursor, records: usize, own: usize, behind: u64) {
        let counts = &self.counts;
        self.applied.store(cursor.position.to_bits(), Ordering::Release);
        counts.received.fetch_add(records as u64, Ordering::Relaxed);
        counts.own.fetch_add(own as u64, Ordering::Relaxed);
        counts.applied.fetch_add((records - own) as u64, Ordering::Relaxed);
        counts.behind.store(behind, Ordering::Relaxed);
    }
}
