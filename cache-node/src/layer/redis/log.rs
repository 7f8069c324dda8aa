//! Reading the log, over a connection of its own: whoever waits for a record must not keep reads and writes waiting.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use redis::{Cmd, FromRedisValue, Value, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{Endpoint, Redis, Shared, connect::connect, place, secrets::Secrets, trouble::Trouble};
use crate::{
    entry::Position,
    layer::{
        ErrorKind, LayerError,
        log::{Author, Census, Log, LogState, Look, Member, Record, Recorded},
    },
};

/// How long one call waits for a record.
const WAIT: Duration = Duration::from_millis(500);

/// How long a call may take that does not wait. The connection carries nothing else, so there is no queue before it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A node that has said nothing for so long, and for as long as it may trust what it holds, is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// If no node has said anything for so long, though each does so twice a second, then what they said may be lost, or
/// could not be noted, or the clock was set.
const ALL_QUIET_AFTER: Duration = Duration::from_secs(2);

/// Records read at once.
const RECORDS: usize = 2000;

/// Records of this process that are remembered until they are found in the log, or until their answer comes. More than
/// these are taken as found.
const REMEMBERED: usize = 100_000;

/// The reader of the log.
pub struct RedisLog {
    shared: Arc<Shared>,
    connection: Option<(Endpoint, MultiplexedConnection)>,
    /// Processes of this node before this one.
    before: Vec<String>,
}

/// What this process has written, until it is found in the log: a record that was confirmed and is not there was lost.
#[derive(Default)]
pub(super) struct Published(Mutex<Unfound>);

#[derive(Default)]
struct Unfound {
    /// Whether somebody reads the log.
    is_followed: bool,
    newest: Position,
    confirmed: BTreeSet<Position>,
    /// What is up to here is not missed.
    forgotten: Position,
    /// Found before the answer came.
    early: BTreeSet<Position>,
}

type Reply = (Option<String>, String, Vec<u8>, u64, u64, Vec<RecordReply>, u64);
type RecordReply = (Vec<u8>, Vec<Vec<u8>>);
/// The time in milliseconds, what is settled, and the nodes with what they said.
pub(super) type CensusReply = (u64, Option<String>, Vec<(String, String)>);

// === impl Redis ===

impl Redis {
    /// A reader of the log that this layer keeps. From now on records of this process that are not found are noticed, so
    /// there must be one reader.
    pub fn log(&self) -> RedisLog {
        self.shared.log.unfound().is_followed = true;
        self.shared.is_followed.store(true, Ordering::Release);
        RedisLog { shared: Arc::clone(&self.shared), connection: None, before: Vec::new() }
    }
}

// === impl RedisLog ===

impl RedisLog {
    /// The connection, to the server that has the writes.
    async fn connected(&mut self) -> Result<MultiplexedConnection, Trouble> {
        let endpoint = self.shared.link.endpoint().ok_or_else(|| Trouble::unreachable("not connected"))?;
        if let Some((known, connection)) = &self.connection
            && *known == endpoint
        {
            return Ok(connection.clone());
        }
        let options = &self.shared.options;
        let secrets = Secrets::read(options).await;
        let secrets = secrets.map_err(|message| Trouble::refused("SecretsUnreadable", message))?;
        let connected = connect(options, &self.shared.keys, &secrets, &endpoint).await?;
        self.connection = Some((endpoint, connected.connection.clone()));
        Ok(connected.connection)
    }

    async fn call<T: FromRedisValue>(&mut self, command: Cmd, patience: Duration) -> Result<T, Trouble> {
        let mut connection = self.connected().await?;
        let answer = timeout(patience, command.query_async(&mut connection)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.connection = None;
                Err(Trouble::from(&error))
            }
            Err(_) => {
                self.connection = None;
                Err(Trouble::timeout("a look at the log"))
            }
        }
    }

    fn records(&self, replies: Vec<RecordReply>) -> Vec<Record> {
        let record = |(id, fields): RecordReply| {
            let position = place::position(&id)?;
            let mut fields = fields.into_iter().skip(1).step_by(2);
            let (kind, what, origin) = (fields.next()?, fields.next()?, fields.next()?);
            let author = match &origin[..] {
                own if own == self.shared.origin.as_bytes() => Author::Own,
                other if self.before.iter().any(|before| before.as_bytes() == other) => Author::Before,
                _ => Author::Other,
            };
            Some(Record { position, author, what: Recorded::parse(&kind, what.into(), position) })
        };
        let uncertain = |position| Record { position, author: Author::Other, what: Recorded::Uncertain };
        replies
            .into_iter()
            .map(|reply| {
                let position = place::position(&reply.0).unwrap_or(Position::NONE);
                record(reply).unwrap_or_else(|| uncertain(position))
            })
            .collect()
    }
}

#[async_trait]
impl Log for RedisLog {
    fn origin(&self) -> &str {
        &self.shared.origin
    }

    fn trust(&mut self, history: Option<&str>) {
        let settled = self.shared.settled.load();
        if settled.as_deref().map(String::as_str) != history {
            self.shared.settled.store(history.map(|history| Arc::new(history.to_owned())));
        }
    }

    fn know(&mut self, before: &[String], newest: Position) {
        before.clone_into(&mut self.before);
        let mut unfound = self.shared.log.unfound();
        unfound.newest = unfound.newest.max(newest);
    }

    async fn wait(&mut self, after: Position) -> Result<(), LayerError> {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(u64::try_from(WAIT.as_millis()).unwrap_or(500));
        read.arg("STREAMS").arg(self.shared.keys.log()).arg(after.to_string());
        Ok(self.call::<Value>(read, WAIT + PATIENCE).await.map(drop)?)
    }

    async fn look(&mut self, after: Position) -> Result<Look, LayerError> {
        let keys = &self.shared.keys;
        let keys = [keys.log(), keys.epoch(), keys.floor(), keys.history(), keys.tags()].map(str::as_bytes);
        // What was confirmed before the log is asked must be in it.
        let confirmed = self.shared.log.newest();
        let mut look = self.shared.scripts.look.whole(&keys);
        look.arg(after.to_string()).arg(RECORDS);
        let (epoch, info, last, added, length, replies, anchor) = self.call::<Reply>(look, PATIENCE).await?;
        let is_all = replies.len() < RECORDS;
        let records = self.records(replies);
        let last = place::position(&last).unwrap_or(Position::NONE);
        let until = if is_all { last } else { records.last().map_or(last, |record| record.position) };
        if after == Position::LAST {
            // Whoever asks for nothing but the state begins there.
            self.shared.log.forget(last);
        }
        let ends_early = after != Position::LAST && last < confirmed;
        let lost_own = self.shared.log.find(&records, until) || ends_early;
        let state = LogState { epoch, last, added, length, ..replication(&info) };
        Ok(Look { records, is_all, state, is_anchored: anchor > 0, lost_own })
    }

    async fn begin(&mut self, history: &str, seen: Position, lost: bool) -> Result<(), LayerError> {
        let keys = &self.shared.keys;
        let keys = [keys.log(), keys.epoch(), keys.floor(), keys.history(), keys.nodes(), keys.tags()];
        let keys = keys.map(str::as_bytes);
        let seen = seen.max(self.shared.log.newest());
        let mut begin = self.shared.scripts.begin.whole(&keys);
        begin.arg(&self.shared.origin).arg(format!("{:032x}", rand::random::<u128>())).arg(history);
        begin.arg(seen.millis()).arg(seen.sequence()).arg(u8::from(lost));
        let done: bool = self.call(begin, PATIENCE).await?;
        if done {
            self.shared.reclaim.notify_one();
        }
        Ok(())
    }

    async fn turn(&mut self, used_up: Position) -> Result<(), LayerError> {
        let mut turn = self.shared.scripts.turn.whole(&[self.shared.keys.log().as_bytes()]);
        turn.arg(used_up.millis()).arg(&self.shared.origin);
        Ok(self.call::<Value>(turn, PATIENCE).await.map(drop)?)
    }

    async fn go_on(&mut self, earlier: &str, history: &str) -> Result<(), LayerError> {
        let mut go_on = self.shared.scripts.go_on.whole(&[self.shared.keys.history().as_bytes()]);
        go_on.arg(earlier).arg(history);
        Ok(self.call::<Value>(go_on, PATIENCE).await.map(drop)?)
    }

    async fn beat(&mut self, history: &str, position: Position, trusts_for: Duration) -> Result<(), LayerError> {
        let mut beat = self.shared.scripts.beat.whole(&[self.shared.keys.nodes().as_bytes()]);
        beat.arg(&self.shared.options.node).arg(history).arg(position.to_string());
        for span in [FORGOTTEN_AFTER, ALL_QUIET_AFTER, trusts_for] {
            beat.arg(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        }
        let outcome = self.call::<Value>(beat, PATIENCE).await;
        outcome.map(drop).map_err(|trouble| {
            let takes_no_writes = trouble.reason == "WritesRefused";
            let error = LayerError::from(trouble);
            if takes_no_writes { LayerError { kind: ErrorKind::Full, ..error } } else { error }
        })
    }

    async fn census(&mut self, history: &str) -> Result<Census, LayerError> {
        let keys = [self.shared.keys.nodes(), self.shared.keys.history()].map(str::as_bytes);
        let script = self.shared.scripts.census.whole(&keys);
        Ok(self::census(self.call(script, PATIENCE).await?, history))
    }
}

/// What INFO says of the replication.
pub(super) fn replication(info: &str) -> LogState {
    let word = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    // A master without a replica that answers takes no writes where that is asked of it (`min-replicas-to-write`), because
    // another may have taken its place.
    let is_master = word("role") == "master" && word("min_slaves_good_slaves") != "0";
    LogState { is_master, history: word("master_replid"), ..LogState::default() }
}

/// Who follows the log, from what Redis answers, and whether this history is settled.
pub(super) fn census((now_ms, settled, members): CensusReply, history: &str) -> Census {
    let is_settled =
        settled.as_deref().and_then(|settled| settled.split_once(' ')).is_some_and(|(of, _)| of == history);
    let whole = members.iter().find(|(name, _)| name.is_empty()).and_then(|(_, said)| said.split_once(' '));
    let whole_since_ms = whole.and_then(|(_last, since)| since.parse().ok());
    let members = members.into_iter().filter_map(|(name, said)| member(name, &said)).collect();
    Census { now_ms, is_settled, whole_since_ms, members }
}

/// A node, from what it said.
fn member(name: String, said: &str) -> Option<Member> {
    let words: Vec<&str> = said.split(' ').collect();
    let [seen_ms, history, position, trusts_ms] = words[..] else { return None };
    Some(Member {
        name,
        seen_ms: seen_ms.parse().ok()?,
        history: history.to_owned(),
        position: place::position(position.as_bytes())?,
        trusts_for: Duration::from_millis(trusts_ms.parse().ok()?),
    })
}

// === impl Published ===

impl Published {
    /// The newest record that Redis has confirmed.
    pub(super) fn newest(&self) -> Position {
        self.unfound().newest
    }

    /// Redis has confirmed a record.
    pub(super) fn published(&self, position: Position) {
        let mut unfound = self.unfound();
        unfound.newest = unfound.newest.max(position);
        if unfound.is_followed && position > unfound.forgotten && !unfound.early.remove(&position) {
            remember(&mut unfound.confirmed, position);
        }
    }

    /// Finds own records among these, which are all up to `until`. Answers whether a confirmed one is not there.
    fn find(&self, records: &[Record], until: Position) -> bool {
        let mut unfound = self.unfound();
        for record in records.iter().filter(|record| record.author == Author::Own) {
            if !unfound.confirmed.remove(&record.position) {
                remember(&mut unfound.early, record.position);
            }
        }
        unfound.confirmed.first().is_some_and(|first| *first <= until)
    }

    /// What was written up to here is not missed from here on, also if its answer comes later.
    fn forget(&self, until: Position) {
        let mut unfound = self.unfound();
        unfound.forgotten = until;
        unfound.confirmed = unfound.confirmed.split_off(&until.next());
    }

    fn unfound(&self) -> MutexGuard<'_, Unfound> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remember(positions: &mut BTreeSet<Position>, position: Position) {
    positions.insert(position);
    if positions.len() > REMEMBERED {
        positions.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Position {
        Position::from_parts(1_800_000_000_000, sequence)
    }

    fn own(sequence: u64) -> Record {
        Record { position: at(sequence), author: Author::Own, what: Recorded::Cleared }
    }

    #[test]
    fn a_confirmed_record_that_is_not_in_the_log_is_missed_and_one_that_is_found_first_is_not() {
        let published = Published::default();
        published.unfound().is_followed = true;
        assert!(!published.find(&[own(1)], at(1)));
        published.published(at(1));
        published.published(at(3));
        assert!(!published.find(&[], at(2)), "it comes later");
        assert!(!published.find(&[own(3)], at(3)));
        published.published(at(4));
        let foreign = Record { author: Author::Other, ..own(5) };
        assert!(published.find(&[foreign], at(5)));
        published.forget(at(5));
        published.published(at(4));
        assert!(!published.find(&[], at(5)), "not even if its answer comes late");
        published.published(at(6));
        assert!(published.find(&[], at(9)));
    }

    #[test]
    fn what_nobody_follows_is_not_remembered() {
        let published = Published::default();
        published.published(at(1));
        assert!(published.unfound().confirmed.is_empty());
    }

    #[test]
    fn replication_is_read_from_the_servers_own_words() {
        let info = "# Replication\r\nrole:master\r\nmaster_replid:aa\r\nmaster_replid2:bb\r\n";
        let state = replication(info);
        assert_eq!((state.is_master, state.history.as_str()), (true, "aa"));
        assert!(replication(&format!("{info}min_slaves_good_slaves:1\r\n")).is_master);
        let cut_off = replication(&format!("{info}min_slaves_good_slaves:0\r\n"));
        assert!(!cut_off.is_master, "another may have taken its place");
    }

    #[test]
    fn a_list_of_nodes_says_since_when_it_misses_nobody_or_that_this_is_not_known() {
        let of = |said: &[(&str, &str)]| {
            let said = said.iter().map(|&(name, said)| (name.to_owned(), said.to_owned())).collect();
            let census = census((9, Some("h begun".to_owned()), said), "h");
            (census.is_settled, census.whole_since_ms, census.members.len())
        };
        assert_eq!(of(&[("", "8 5"), ("n", "8 h 1-1 3000")]), (true, Some(5), 1));
        assert_eq!(of(&[("n", "8 h 1-1 3000")]), (true, None, 1));
        assert_eq!(of(&[("", "8")]), (true, None, 0));
    }

    #[test]
    fn nodes_are_read_as_they_were_written_and_what_is_foreign_is_passed_over() {
        let of = |said| member("n".to_owned(), said);
        let (name, history, trusts_for) = ("n".to_owned(), "h".to_owned(), Duration::from_secs(3));
        assert_eq!(
            of("5 h 1800000000000-7 3000"),
            Some(Member { name, seen_ms: 5, history, position: at(7), trusts_for })
        );
        assert!(
            ["", "5 h", "5 6", "5 h 1-1", "5 h x 1", "x h 1-1 1", "5 h 1-1 z", "5 h 1-1 1 1"]
                .into_iter()
                .all(|said| of(said).is_none())
        );
    }
}
