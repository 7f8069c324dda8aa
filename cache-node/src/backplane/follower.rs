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
        log::{Author, Census, Cursor, Log, Recorded},
    },
};

/// Pause after a look that failed.
const RETRY: Duration = Duration::from_millis(100);

/// How often a node says how far it has come, and keeps on disk when it last knew all changes.
const BEAT_EVERY: Duration = Duration::from_millis(500);
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// How long before a look a node may have spoken last for the look to renew its trust: whoever counts the nodes that have
/// carried something out must know of every node that trusts itself.
const SAID_WITHIN: Duration = Duration::from_millis(1500);

/// Records of one millisecond, of which a position can tell twice as many apart: only of a server whose clock was set back
/// are there so many.
const MILLISECOND_FULL: u64 = 1 << 19;

/// How long the other nodes have to say that they find all their records under a new history, and how often it is looked.
const VOUCH_WITHIN: Duration = Duration::from_secs(5);
const VOUCH_POLL: Duration = Duration::from_millis(50);

/// A node that had not been heard of for so long before a change of history had no part in it: whatever it had written,
/// this one has seen.
const ABSENT_MS: u64 = 60_000;

/// Follows the log of one node.
pub(crate) struct Follower {
    backplane: Arc<Backplane>,
    log: Box<dyn Log>,
    effects: Arc<dyn Effects>,
    /// None: nothing is known of what happened so far.
    cursor: Option<Cursor>,
    /// What is to be begun anew for.
    gap: Option<Gap>,
    /// A new history of the server, under which it is not known yet whether the log goes on.
    vouching: Option<Vouching>,
    /// When the node last spoke, before it began to.
    said: Option<Instant>,
    /// Whether the process before this one has left word of what it had written last.
    knows_own: bool,
    beat_due: Instant,
    note_due: Instant,
}

/// What is to be known before the log goes on under a new history.
struct Vouching {
    history: String,
    since: Instant,
    /// Up to here, by the server's clock, this node had seen all records.
    seen_ms: u64,
}

// === impl Follower ===

impl Follower {
    pub(crate) fn new(backplane: Arc<Backplane>, log: Box<dyn Log>, effects: Arc<dyn Effects>) -> Self {
        let now = backplane.clock.monotonic();
        let (cursor, gap, vouching, said) = (None, None, None, None);
        let (knows_own, beat_due, note_due) = (false, now, now);
        Self { backplane, log, effects, cursor, gap, vouching, said, knows_own, beat_due, note_due }
    }

    /// Follows until it shall stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        loop {
            if let Err(error) = self.step().await {
                self.backplane.counts.failures.fetch_add(1, Ordering::Relaxed);
                self.backplane.note_trouble(Some(error.message));
                sleep(RETRY).await;
            }
        }
    }

    /// Begins with what the node knew before it was started. To be called before anything is written.
    pub(crate) async fn recall(&mut self) {
        self.cursor = self.effects.cursor().await;
        let Some(cursor) = &mut self.cursor else { return };
        let newest = cursor.newest.take();
        self.knows_own = newest.is_some();
        self.log.know(&cursor.origins, newest.unwrap_or(Position::NONE));
        cursor.add_origin(self.log.origin());
        // Before this process writes to the log: should it be killed then, the next must know its records.
        self.effects.note(cursor).await;
        self.backplane.applied.store(cursor.position.to_bits(), Ordering::Release);
        let age = self.backplane.clock.uptime().zip(cursor.confirmed.as_ref());
        if let Some(age) = age.and_then(|(now, confirmed)| now.since(confirmed)) {
            self.backplane.inherit(age);
        }
    }

    /// One look at the log, and the wait for the next if there is nothing more to read.
    pub(super) async fn step(&mut self) -> Result<(), LayerError> {
        let Some(cursor) = self.cursor.clone() else { return self.start_over().await };
        let asked = self.backplane.clock.monotonic();
        // Before the look, which confirms what was known when it was asked for.
        let uptime = if asked >= self.note_due { self.backplane.clock.uptime() } else { None };
        let look = self.log.look(cursor.position).await?;
        self.only_master(look.state.is_master)?;
        if look.state.last.sequence() >= MILLISECOND_FULL {
            self.log.turn(look.state.last).await?;
        }
        let next = match judge(&cursor, &look) {
            Ok(next) => next,
            Err(gap) => {
                self.give_up(gap);
                return Ok(());
            }
        };
        if !look.records.is_empty() {
            let read = self.backplane.clock.monotonic();
            if self.effects.apply(&look.records, &next).await {
                self.backplane.note_gap(Gap::Announced);
            }
            self.backplane.applying.observe_since(read, self.backplane.clock.monotonic());
        }
        let own = look.records.iter().filter(|record| record.author == Author::Own).count();
        let behind = look.state.added.saturating_sub(next.added);
        let lag_ms = look.state.last.millis().saturating_sub(next.position.millis());
        self.backplane.advance(&next, look.records.len(), own, (behind, lag_ms));
        self.cursor = Some(next.clone());
        let is_awaited = look.records.iter().any(|record| record.what == Recorded::Awaited);
        if !look.is_all {
            // It is being followed: whoever waits is to hear how much is left, and the node not to be taken for alone.
            self.backplane.note_trouble(None);
            return Ok(());
        }
        if !self.goes_on(&cursor, look.state.history).await? {
            return Ok(());
        }
        // Who is ready has told: what others write from then on is not taken by an old removal that comes late.
        if !self.backplane.is_caught_up() && !self.effects.tell().await {
            return Err(refused("redis has not been told yet of removals of before"));
        }
        let is_known = self.said.is_some_and(|said| said <= asked && asked - said <= SAID_WITHIN);
        if is_known {
            self.backplane.confirm(asked);
        }
        if let (Some(uptime), true, Some(cursor)) = (uptime, is_known, &mut self.cursor) {
            cursor.confirmed = Some(uptime);
            cursor.origins = vec![self.log.origin().to_owned()];
            self.note_due = asked + NOTE_EVERY;
            self.effects.note(cursor).await;
        }
        if is_awaited || !is_known || asked >= self.beat_due {
            self.beat_due = asked + BEAT_EVERY;
            let history = self.cursor.as_ref().map(|cursor| cursor.history.clone()).unwrap_or_default();
            self.beat(&history, next.position).await?;
        }
        self.backplane.note_trouble(None);
        if is_known { self.log.wait(next.position).await } else { Ok(()) }
    }

    /// Says how far this node has come.
    async fn beat(&mut self, history: &str, position: Position) -> Result<(), LayerError> {
        let now = self.backplane.clock.monotonic();
        let trusts_for = self.backplane.options().map_or(Duration::ZERO, |options| options.max_staleness);
        let outcome = self.log.beat(history, position, trusts_for).await;
        // Where nobody can write, nobody can speak, and nothing changes either. One that alone may not speak would be missing
        // in the receipts of others.
        if matches!(&outcome, Ok(()) | Err(LayerError { kind: ErrorKind::Full, .. })) {
            self.said = Some(now);
        }
        outcome
    }

    /// A replica may be behind its master for any time, and so may what is stored beside the log.
    fn only_master(&mut self, is_master: bool) -> Result<(), LayerError> {
        if is_master {
            return Ok(());
        }
        self.log.trust(None);
        Err(refused("the server is a replica, or a master without any, which may lack records"))
    }

    /// Whether the log is known to go on whole under the server's present history. `before` is the cursor before the look
    /// that found this history.
    async fn goes_on(&mut self, before: &Cursor, history: String) -> Result<bool, LayerError> {
        let now = self.backplane.clock.monotonic();
        let Some(cursor) = self.cursor.clone().filter(|cursor| cursor.history != history) else {
            self.vouching = None;
            self.log.trust(Some(&history));
            return Ok(true);
        };
        let begun = self.vouching.take().filter(|vouching| vouching.history == history);
        let vouching = begun.unwrap_or(Vouching { history, since: now, seen_ms: before.position.millis() });
        let may_vouch = self.backplane.is_caught_up() || self.knows_own;
        if may_vouch {
            self.beat(&vouching.history, cursor.position).await?;
        }
        let census = self.log.census(&vouching.history).await?;
        let silent = if census.is_settled { Vec::new() } else { vouching.silent(&census) };
        if !census.is_settled && !may_vouch {
            // What the process before this one had written last nobody knows.
            self.give_up(Gap::HistoryChanged);
            return Ok(false);
        }
        if silent.is_empty() {
            tracing::info!("redis was restarted, or a replica took over; every node finds all its records there");
            self.log.go_on(&cursor.history, &vouching.history).await?;
            self.log.trust(Some(&vouching.history));
            let cursor = Cursor { history: vouching.history, ..cursor };
            self.effects.note(&cursor).await;
            self.cursor = Some(cursor);
            // What was settled since the look may be in a record that it did not see.
            return Ok(false);
        }
        if now.saturating_duration_since(vouching.since) >= VOUCH_WITHIN {
            self.give_up(Gap::HistoryChanged);
            return Ok(false);
        }
        let silent = silent.join(", ");
        self.backplane.note_trouble(Some(format!(
            "redis was restarted or replaced, and it is not known yet whether it has all that {silent} wrote"
        )));
        self.vouching = Some(vouching);
        sleep(VOUCH_POLL).await;
        Ok(false)
    }

    /// Records are missing: nothing is known any more.
    fn give_up(&mut self, gap: Gap) {
        if gap.concerns_all() {
            self.log.trust(None);
        }
        self.gap = Some(gap);
        self.cursor = None;
        self.vouching = None;
        self.backplane.lose_trust(gap);
    }

    /// Gives up everything, and begins at the head of the log.
    async fn start_over(&mut self) -> Result<(), LayerError> {
        let state = self.log.look(Position::LAST).await?.state;
        self.only_master(state.is_master)?;
        // Of a trimmed log nothing is lost but for this node; else the others must know.
        let is_certain = self.gap.is_some_and(Gap::is_certain);
        if self.gap.is_none_or(Gap::concerns_all) {
            self.log.begin(&state.history, self.backplane.position(), is_certain).await?;
        }
        let state = self.log.look(Position::LAST).await?.state;
        self.only_master(state.is_master)?;
        if state.epoch.is_none() {
            return Err(refused("the log was removed as soon as it was made"));
        }
        // Whatever was lost is below the floor now, and what is written from here on above it.
        self.log.trust(Some(&state.history));
        let cursor = Cursor { origins: vec![self.log.origin().to_owned()], ..Cursor::at_head(&state) };
        self.effects.start_over(&cursor).await;
        self.beat(&cursor.history, cursor.position).await?;
        self.backplane.advance(&cursor, 0, 0, (0, 0));
        self.cursor = Some(cursor);
        self.gap = None;
        // When that was confirmed is kept at once: what is stored from here on is to be trusted after a kill, too.
        self.note_due = self.backplane.clock.monotonic();
        Ok(())
    }
}

// === impl Vouching ===

impl Vouching {
    /// Nodes that had a part in the log when the history changed, and have not said that they find their records.
    fn silent<'a>(&self, census: &'a Census) -> Vec<&'a str> {
        // A record may bear a later time than the server's clock shows, once that was set back.
        let since_ms = self.seen_ms.min(census.now_ms).saturating_sub(ABSENT_MS);
        let silent =
            census.members.iter().filter(|member| member.history != self.history && member.seen_ms >= since_ms);
        silent.map(|member| member.name.as_str()).collect()
    }
}

fn refused(message: &str) -> LayerError {
    LayerError::new(LayerId::Redis, ErrorKind::Refused, message)
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

    /// What keeps the node from following, if anything does.
    pub(super) fn note_trouble(&self, trouble: Option<String>) {
        let now = self.clock.monotonic();
        let known = &mut *self.known();
        known.lost_since = trouble.as_ref().map(|_| known.lost_since.unwrap_or(now));
        known.trouble = trouble;
    }

    fn note_gap(&self, gap: Gap) {
        self.counts.gaps[gap as usize].fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now();
        let Known { gap: last, .. } = &mut *self.known();
        *last = Some((gap, now));
        tracing::warn!(reason = gap.label(), "records of the invalidation log are missing: {}", gap.sentence());
    }

    fn advance(&self, cursor: &Cursor, records: usize, own: usize, (behind, lag_ms): (u64, u64)) {
        let counts = &self.counts;
        self.applied.store(cursor.position.to_bits(), Ordering::Release);
        counts.received.fetch_add(records as u64, Ordering::Relaxed);
        counts.own.fetch_add(own as u64, Ordering::Relaxed);
        counts.applied.fetch_add((records - own) as u64, Ordering::Relaxed);
        counts.behind.store(behind, Ordering::Relaxed);
        counts.lag_ms.store(lag_ms, Ordering::Relaxed);
    }
}
