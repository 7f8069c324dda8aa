//! The backplane over a log in memory.

mod ready;

use super::*;
use crate::{
    layer::{
        Component, ErrorKind, HealthState, LayerError, LayerId,
        log::{Author, Census, Log, LogState, Look, Member, Recorded},
    },
    testing::START,
};

const OPTIONS: BackplaneOptions =
    BackplaneOptions { max_staleness: Duration::from_secs(3), serve_stale_for: Duration::from_secs(10) };

/// What the log says, and what was asked of it.
#[derive(Default)]
struct Told {
    state: LogState,
    records: Vec<Record>,
    is_away: bool,
    /// Why nobody can say anything.
    is_silenced: Option<ErrorKind>,
    is_anchored: bool,
    begun: u64,
    /// Histories that were settled.
    settled: Vec<String>,
    members: Vec<Member>,
    /// Milliseconds that were used up.
    turned: Vec<Position>,
    /// Under which history what is stored beside the log counts.
    trusted: Option<String>,
}

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Told>>);

#[async_trait]
impl Log for Paper {
    fn origin(&self) -> &str {
        "o"
    }

    fn trust(&mut self, history: Option<&str>) {
        self.0.lock().unwrap().trusted = history.map(str::to_owned);
    }

    fn know(&mut self, _before: &[String], _newest: Position) {}

    async fn wait(&mut self, _after: Position) -> Result<(), LayerError> {
        Ok(())
    }

    async fn look(&mut self, after: Position) -> Result<Look, LayerError> {
        let told = self.0.lock().unwrap();
        if told.is_away {
            let message = "away".to_owned();
            return Err(LayerError::new(LayerId::Redis, ErrorKind::Unreachable, message));
        }
        let records = told.records.iter().filter(|record| record.position > after).cloned().collect();
        let (state, is_anchored) = (told.state.clone(), told.is_anchored);
        Ok(Look { records, is_all: true, state, is_anchored, lost_own: false })
    }

    async fn begin(&mut self, history: &str, _seen: Position, _lost: bool) -> Result<(), LayerError> {
        let mut told = self.0.lock().unwrap();
        told.begun += 1;
        told.state.epoch = Some(format!("epoch {}", told.begun));
        told.settled.push(history.to_owned());
        Ok(())
    }

    async fn turn(&mut self, used_up: Position) -> Result<(), LayerError> {
        self.0.lock().unwrap().turned.push(used_up);
        Ok(())
    }

    async fn go_on(&mut self, _earlier: &str, history: &str) -> Result<(), LayerError> {
        self.0.lock().unwrap().settled.push(history.to_owned());
        Ok(())
    }

    async fn beat(&mut self, history: &str, position: Position, _trusts_for: Duration) -> Result<(), LayerError> {
        let mut told = self.0.lock().unwrap();
        if let Some(kind) = told.is_silenced {
            return Err(LayerError::new(LayerId::Redis, kind, "silenced"));
        }
        told.say("this", history, position);
        Ok(())
    }

    async fn census(&mut self, history: &str) -> Result<Census, LayerError> {
        let told = self.0.lock().unwrap();
        let is_settled = told.settled.iter().any(|settled| settled == history);
        let now_ms = told.state.last.millis();
        Ok(Census { now_ms, is_settled, whole_since_ms: Some(0), members: told.members.clone() })
    }
}

impl Told {
    /// Notes what a node says.
    fn say(&mut self, name: &str, history: &str, position: Position) {
        self.members.retain(|member| member.name != name);
        let (name, seen_ms, history) = (name.to_owned(), self.state.last.millis(), history.to_owned());
        let trusts_for = OPTIONS.max_staleness;
        self.members.push(Member { name, seen_ms, history, position, trusts_for });
    }
}

#[derive(Default)]
struct Node {
    done: Mutex<Vec<String>>,
    kept: Mutex<Option<Cursor>>,
    /// It can not tell what it has to tell.
    is_mute: AtomicBool,
}

#[async_trait]
impl Effects for Node {
    async fn cursor(&self) -> Option<Cursor> {
        self.kept.lock().unwrap().clone()
    }

    async fn apply(&self, records: &[Record], _cursor: &Cursor) -> bool {
        self.done.lock().unwrap().push(format!("applied {}", records.len()));
        records.iter().any(|record| record.what == Recorded::Uncertain)
    }

    async fn start_over(&self, _cursor: &Cursor) {
        self.done.lock().unwrap().push("started over".to_owned());
    }

    async fn tell(&self) -> bool {
        !self.is_mute.load(Ordering::SeqCst)
    }

    async fn note(&self, cursor: &Cursor) {
        *self.kept.lock().unwrap() = Some(cursor.clone());
    }
}

struct Fixture {
    clock: Clock,
    backplane: Arc<Backplane>,
    paper: Paper,
    node: Arc<Node>,
    follower: Follower,
}

impl Fixture {
    fn open() -> Self {
        let clock = Clock::manual(START);
        let backplane = Arc::new(Backplane::following(OPTIONS, clock.clone()));
        let (paper, node) = (Paper::default(), Arc::new(Node::default()));
        let state = LogState { is_master: true, history: "h1".to_owned(), ..LogState::default() };
        *paper.0.lock().unwrap() = Told { state, is_anchored: true, ..Told::default() };
        let effects = Arc::clone(&node) as Arc<dyn Effects>;
        let follower = Follower::new(Arc::clone(&backplane), Box::new(paper.clone()), effects);
        Self { clock, backplane, paper, node, follower }
    }

    fn trust(&self) -> Trust {
        self.backplane.trust(self.clock.monotonic())
    }

    fn record(&self, what: Recorded) {
        let mut told = self.paper.0.lock().unwrap();
        told.state.added += 1;
        told.state.length += 1;
        let position = Position::from_parts(START.0, told.state.added);
        told.state.last = position;
        told.records.push(Record { position, author: Author::Other, what });
    }

    /// A node says that it finds all its records under this history.
    fn says(&self, name: &str, history: &str) {
        let mut told = self.paper.0.lock().unwrap();
        let position = told.state.last;
        told.say(name, history, position);
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.node.done.lock().unwrap())
    }

    async fn steps(&mut self, count: usize) {
        for _ in 0..count {
            // A step that fails is tried again by whoever runs the follower.
            let _ = self.follower.step().await;
        }
    }
}

#[test]
fn a_node_that_shares_nothing_trusts_itself() {
    let clock = Clock::manual(START);
    let backplane = Backplane::none(clock.clone());
    clock.advance(Duration::from_secs(86_400));
    assert_eq!((backplane.trust(clock.monotonic()), backplane.is_caught_up()), (Trust::Full, true));
}

#[tokio::test]
async fn trust_begins_with_the_first_look_that_finds_the_end_and_ends_by_itself() {
    let mut f = Fixture::open();
    assert_eq!((f.trust(), f.backplane.keeps_from_ready().is_some()), (Trust::None, true));
    f.steps(2).await;
    assert_eq!((f.trust(), f.backplane.keeps_from_ready()), (Trust::Full, None));
    assert_eq!(f.done(), ["started over"]);
    f.paper.0.lock().unwrap().is_away = true;
    for (millis, trust) in [(2999, Trust::Full), (1, Trust::Stale), (9999, Trust::Stale), (1, Trust::None)] {
        f.clock.advance(Duration::from_millis(millis));
        f.steps(1).await;
        assert_eq!(f.trust(), trust);
    }
    f.paper.0.lock().unwrap().is_away = false;
    f.steps(2).await;
    assert_eq!((f.trust(), f.done().len()), (Trust::Full, 0), "nothing happened meanwhile");
}

#[tokio::test]
async fn records_take_effect_and_a_loss_makes_the_node_start_over_untrusted() {
    let mut f = Fixture::open();
    f.steps(2).await;
    f.record(Recorded::Cleared);
    f.record(Recorded::Cleared);
    f.steps(1).await;
    assert_eq!(f.done(), ["started over", "applied 2"]);
    f.paper.0.lock().unwrap().state.epoch = None;
    f.steps(1).await;
    assert_eq!((f.trust(), f.backplane.gaps(Gap::EpochChanged)), (Trust::None, 1));
    f.steps(2).await;
    assert_eq!((f.trust(), f.done()), (Trust::Full, vec!["started over".to_owned()]));
    assert_eq!(f.paper.0.lock().unwrap().begun, 2);
    f.record(Recorded::Uncertain);
    f.steps(1).await;
    assert_eq!((f.backplane.gaps(Gap::Announced), f.trust()), (1, Trust::Full));
    for _ in 0..5 {
        f.backplane.tick();
        f.clock.advance(Duration::from_millis(500));
        f.steps(1).await;
    }
    assert_eq!((f.backplane.health().state, f.backplane.health().reason), (HealthState::Degraded, "LogGap"));
}

#[tokio::test]
async fn a_node_has_caught_up_only_once_it_has_told_what_it_had_to_tell() {
    let mut f = Fixture::open();
    f.node.is_mute.store(true, Ordering::SeqCst);
    f.steps(3).await;
    assert_eq!((f.trust(), f.backplane.is_caught_up()), (Trust::None, false));
    f.node.is_mute.store(false, Ordering::SeqCst);
    f.steps(1).await;
    assert_eq!((f.trust(), f.backplane.is_caught_up()), (Trust::Full, true));
}

#[tokio::test]
async fn a_replica_confirms_nothing() {
    let mut f = Fixture::open();
    f.steps(2).await;
    f.paper.0.lock().unwrap().state.is_master = false;
    f.clock.advance(Duration::from_secs(3));
    f.steps(1).await;
    assert_eq!((f.trust(), f.paper.0.lock().unwrap().trusted.clone()), (Trust::Stale, None));
    f.paper.0.lock().unwrap().state.is_master = true;
    f.steps(2).await;
    assert_eq!(f.paper.0.lock().unwrap().trusted.as_deref(), Some("h1"));
}

#[tokio::test]
async fn a_node_does_not_trust_itself_before_it_has_said_that_it_is_there() {
    let mut f = Fixture::open();
    f.steps(1).await;
    f.clock.advance(Duration::from_secs(2));
    f.paper.0.lock().unwrap().is_silenced = Some(ErrorKind::Timeout);
    f.steps(2).await;
    assert_eq!(f.trust(), Trust::None, "it spoke too long ago");
    f.paper.0.lock().unwrap().is_silenced = None;
    f.steps(1).await;
    assert_eq!(f.trust(), Trust::None, "it has spoken after the look");
    f.steps(1).await;
    assert_eq!(f.trust(), Trust::Full);
}

#[tokio::test]
async fn where_nobody_can_write_a_node_goes_on_without_a_word() {
    let mut f = Fixture::open();
    f.steps(2).await;
    f.paper.0.lock().unwrap().is_silenced = Some(ErrorKind::Full);
    for _ in 0..20 {
        f.clock.advance(Duration::from_millis(500));
        f.steps(1).await;
        assert_eq!(f.trust(), Trust::Full);
    }
    f.paper.0.lock().unwrap().is_silenced = Some(ErrorKind::Refused);
    for _ in 0..20 {
        f.clock.advance(Duration::from_millis(500));
        f.steps(1).await;
    }
    assert_eq!(f.trust(), Trust::Stale, "it alone may not write, and is in nobody's receipt");
}

#[tokio::test]
async fn a_millisecond_that_is_used_up_is_left() {
    let mut f = Fixture::open();
    f.steps(2).await;
    f.record(Recorded::Cleared);
    f.steps(1).await;
    assert_eq!(f.paper.0.lock().unwrap().turned, []);
    f.paper.0.lock().unwrap().state.last = Position::from_parts(START.0, 1 << 19);
    f.steps(1).await;
    assert_eq!(f.paper.0.lock().unwrap().turned, [Position::from_parts(START.0, 1 << 19)]);
}

/// The node and another one follow; then the server has another history.
async fn restarted() -> Fixture {
    let mut f = Fixture::open();
    f.steps(2).await;
    f.record(Recorded::Cleared);
    f.steps(1).await;
    f.says("other", "h1");
    f.paper.0.lock().unwrap().state.history = "h2".to_owned();
    let _ = f.done();
    f.clock.advance(Duration::from_secs(3));
    f
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_log_goes_on_once_every_node_has_found_its_records() {
    let mut f = restarted().await;
    f.steps(3).await;
    assert_eq!(f.trust(), Trust::Stale, "the other may have written what is lost");
    assert_eq!(f.paper.0.lock().unwrap().trusted.as_deref(), Some("h1"));
    assert!(f.backplane.known().trouble.clone().is_some_and(|why| why.contains("other")));
    f.says("other", "h2");
    f.steps(1).await;
    assert_eq!(f.trust(), Trust::Stale, "what was settled since the look may be in a record that it did not see");
    assert_eq!(f.paper.0.lock().unwrap().settled.last().unwrap(), "h2");
    f.steps(1).await;
    assert_eq!((f.trust(), f.done().len()), (Trust::Full, 0), "nothing is given up");
    assert_eq!(f.paper.0.lock().unwrap().trusted.as_deref(), Some("h2"));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_what_another_node_has_settled_is_settled() {
    let mut f = restarted().await;
    f.paper.0.lock().unwrap().settled.push("h2".to_owned());
    f.steps(2).await;
    assert_eq!((f.trust(), f.done().len()), (Trust::Full, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_node_that_stays_silent_makes_the_others_start_over() {
    let mut f = restarted().await;
    f.steps(1).await;
    f.clock.advance(Duration::from_secs(5));
    f.steps(1).await;
    assert_eq!((f.trust(), f.backplane.gaps(Gap::HistoryChanged)), (Trust::None, 1));
    assert_eq!(f.paper.0.lock().unwrap().trusted, None);
    f.steps(2).await;
    assert_eq!((f.trust(), f.done()), (Trust::Full, vec!["started over".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_nobody_waits_for_a_node_that_had_gone_long_before() {
    let mut f = restarted().await;
    f.paper.0.lock().unwrap().members.retain(|member| member.name == "other");
    f.paper.0.lock().unwrap().members[0].seen_ms -= 61_000;
    f.steps(2).await;
    assert_eq!((f.trust(), f.done().len()), (Trust::Full, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_without_the_last_record_seen_nobody_is_asked() {
    let mut f = restarted().await;
    f.paper.0.lock().unwrap().is_anchored = false;
    f.steps(1).await;
    assert_eq!((f.trust(), f.backplane.gaps(Gap::HistoryChanged)), (Trust::None, 1));
}

/// A process of the node goes on where the one before it has ended, whose last word was this.
async fn start_again(f: &mut Fixture, newest: Option<Position>) {
    let cursor = f.node.kept.lock().unwrap().clone().unwrap();
    *f.node.kept.lock().unwrap() = Some(Cursor { newest, ..cursor });
    f.backplane = Arc::new(Backplane::following(OPTIONS, f.clock.clone()));
    let effects = Arc::clone(&f.node) as Arc<dyn Effects>;
    f.follower = Follower::new(Arc::clone(&f.backplane), Box::new(f.paper.clone()), effects);
    f.follower.recall().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_process_that_was_killed_can_not_be_vouched_for_by_the_next() {
    let mut f = restarted().await;
    f.paper.0.lock().unwrap().members.clear();
    start_again(&mut f, None).await;
    let _ = f.follower.step().await;
    assert!(f.paper.0.lock().unwrap().members.is_empty(), "it has said nothing");
    f.steps(1).await;
    assert_eq!(f.done(), ["applied 1", "started over"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_process_that_has_left_word_is_vouched_for_by_the_next() {
    let mut f = restarted().await;
    f.paper.0.lock().unwrap().members.clear();
    start_again(&mut f, Some(Position::from_parts(START.0, 1))).await;
    f.steps(2).await;
    assert_eq!(f.done(), ["applied 1"], "nothing is given up");
    assert_eq!(f.paper.0.lock().unwrap().settled.last().unwrap(), "h2");
    let kept = f.node.kept.lock().unwrap().clone().unwrap();
    assert_eq!(kept.newest, None, "from now on that is not the last word");
}

#[tokio::test]
async fn a_node_says_twice_a_second_how_far_it_has_come_and_at_once_if_somebody_waits() {
    let mut f = Fixture::open();
    f.steps(2).await;
    let said = |f: &Fixture| f.paper.0.lock().unwrap().members[0].position;
    let begun = said(&f);
    f.record(Recorded::Cleared);
    f.steps(1).await;
    assert_eq!(said(&f), begun);
    f.record(Recorded::Awaited);
    f.steps(1).await;
    let awaited = said(&f);
    assert!(awaited > begun);
    f.record(Recorded::Cleared);
    f.clock.advance(Duration::from_millis(500));
    f.steps(1).await;
    assert!(said(&f) > awaited);
}

#[tokio::test]
async fn a_node_that_is_started_without_its_log_is_trusted_for_as_long_as_if_it_had_gone_on() {
    let mut f = Fixture::open();
    f.steps(2).await;
    assert_eq!(f.trust(), Trust::Full);
    for (away, trust) in [(1, Trust::Stale), (11, Trust::Stale), (1, Trust::None)] {
        f.clock.advance(Duration::from_secs(away));
        start_again(&mut f, None).await;
        assert_eq!((f.trust(), f.backplane.is_caught_up()), (trust, false), "{away} s later");
    }
}

#[tokio::test]
async fn a_node_that_was_away_for_a_day_gives_nothing_up_if_the_log_still_has_its_place() {
    let mut f = Fixture::open();
    f.steps(2).await;
    f.record(Recorded::Cleared);
    f.clock.advance(Duration::from_secs(1));
    f.steps(1).await;
    f.clock.advance(Duration::from_secs(24 * 3600));
    (0..2).for_each(|_| f.record(Recorded::Cleared));
    // What it had read is trimmed by now.
    f.paper.0.lock().unwrap().state.length = 2;
    start_again(&mut f, None).await;
    assert_eq!(f.trust(), Trust::None);
    f.steps(2).await;
    assert_eq!(f.done(), ["started over", "applied 1", "applied 2"]);
    assert_eq!((f.trust(), Gap::ALL.map(|gap| f.backplane.gaps(gap))), (Trust::Full, [0; 6]));
}

/// Counts how often nothing that is kept outside is certain any more.
#[derive(Default)]
struct Outside(AtomicU64);

impl Listener for Outside {
    fn changed(&self, notice: &Notice<'_>) {
        assert!(matches!(notice.what, What::Everything));
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn who_keeps_copies_outside_is_told_each_time_that_a_node_trusts_itself_less() {
    let mut f = Fixture::open();
    let outside = Arc::new(Outside::default());
    f.backplane.listen(Arc::clone(&outside) as Arc<dyn Listener>);
    let told = |f: &Fixture| {
        f.backplane.tick();
        outside.0.load(Ordering::SeqCst)
    };
    assert_eq!(told(&f), 0);
    f.steps(2).await;
    assert_eq!((f.trust(), told(&f)), (Trust::Full, 0));
    f.clock.advance(OPTIONS.max_staleness);
    assert_eq!((f.trust(), told(&f), told(&f)), (Trust::Stale, 1, 1));
    f.clock.advance(OPTIONS.serve_stale_for);
    assert_eq!((f.trust(), told(&f), told(&f)), (Trust::None, 2, 2));
}
