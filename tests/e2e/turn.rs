//! Which tests may run beside each other: most look at a namespace of their own only. Whoever cuts machines, replaces the
//! operator, counts what the whole cluster does or times it, is alone.
//!
//! All tests are started at once (`--test-threads` is above their number) and wait for their turn here: first one that
//! begins alone and goes on beside others, then those that may run beside each other, so many at a time that they just
//! keep the machine busy, then the others one by one, or two by two where they only look at the clock. Tests that bring
//! up clusters of their own begin at once, also one by one; only those that look at the clock wait for them.

use std::{
    io::{self, Write},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Tests that run beside each other. They wait for pods most of the time.
const BESIDE_MAX: usize = 5;
/// Tests that look at the clock beside each other. They hardly keep a processor busy.
const CALM_MAX: usize = 2;
/// Until every test that was started with this one has asked for its turn.
const ALL_ASK_WITHIN: Duration = Duration::from_millis(500);

static TURNS: Mutex<Turns> = Mutex::new(Turns {
    wait_to_be_first: 0,
    beside: 0,
    wait_to_be_beside: 0,
    is_aside: false,
    wait_to_be_aside: 0,
    calm: 0,
    wait_to_be_calm: 0,
    is_alone: false,
    wait_to_be_alone: 0,
});
static CHANGED: Condvar = Condvar::new();

struct Turns {
    wait_to_be_first: usize,
    beside: usize,
    wait_to_be_beside: usize,
    is_aside: bool,
    wait_to_be_aside: usize,
    calm: usize,
    wait_to_be_calm: usize,
    is_alone: bool,
    /// Without the one that comes last.
    wait_to_be_alone: usize,
}

/// The cluster is the holder's, until this is dropped, which says how long it was.
pub(crate) struct Turn {
    with: Company,
    begun: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Company {
    Beside,
    Aside,
    Calm,
    Alone,
}

/// The cluster, for one test alone, before all others. It is to go on [beside](Turn::goes_on_beside) them soon.
pub(crate) fn first() -> Turn {
    turns().wait_to_be_first += 1;
    let mut turns = wait(turns(), |turns| turns.is_alone || turns.beside > 0);
    turns.wait_to_be_first -= 1;
    turns.is_alone = true;
    Turn::begin(Company::Alone)
}

/// The cluster, beside others.
pub(crate) fn beside() -> Turn {
    turns().wait_to_be_beside += 1;
    thread::sleep(ALL_ASK_WITHIN);
    let mut turns = wait(turns(), |turns| turns.is_alone || turns.wait_to_be_first > 0 || turns.beside == BESIDE_MAX);
    turns.wait_to_be_beside -= 1;
    turns.beside += 1;
    Turn::begin(Company::Beside)
}

/// No part of the cluster, but much of the machine.
pub(crate) fn aside() -> Turn {
    turns().wait_to_be_aside += 1;
    let mut turns = wait(turns(), |turns| turns.is_aside);
    turns.wait_to_be_aside -= 1;
    turns.is_aside = true;
    Turn::begin(Company::Aside)
}

/// The cluster and the machine, for a test that looks at the clock and takes nothing, such as a machine, from others.
pub(crate) fn calm() -> Turn {
    turns().wait_to_be_calm += 1;
    thread::sleep(ALL_ASK_WITHIN);
    let has_to_wait =
        |turns: &Turns| turns.is_alone || turns.are_many() || turns.is_anybody_aside() || turns.calm == CALM_MAX;
    let mut turns = wait(turns(), has_to_wait);
    turns.wait_to_be_calm -= 1;
    turns.calm += 1;
    Turn::begin(Company::Calm)
}

/// The cluster, for one test alone.
pub(crate) fn alone() -> Turn {
    alone_once(Turns::is_taken)
}

/// The cluster and the machine, for one test alone that looks at the clock or at what is left on the machine.
pub(crate) fn quiet() -> Turn {
    alone_once(|turns| turns.is_taken() || turns.is_anybody_aside())
}

fn alone_once(has_to_wait: impl Fn(&Turns) -> bool) -> Turn {
    turns().wait_to_be_alone += 1;
    thread::sleep(ALL_ASK_WITHIN);
    let mut turns = wait(turns(), has_to_wait);
    turns.wait_to_be_alone -= 1;
    turns.is_alone = true;
    Turn::begin(Company::Alone)
}

/// The cluster, for one test alone, once all others have had their turn.
pub(crate) fn last() -> Turn {
    thread::sleep(ALL_ASK_WITHIN);
    let is_last = |turns: &Turns| {
        let are_more = turns.wait_to_be_calm + turns.wait_to_be_alone > 0;
        !(turns.is_taken() || turns.is_anybody_aside() || are_more)
    };
    wait(turns(), |turns| !is_last(turns)).is_alone = true;
    Turn::begin(Company::Alone)
}

// === impl Turns ===

impl Turns {
    /// Whether nobody can be alone now.
    fn is_taken(&self) -> bool {
        self.is_alone || self.calm > 0 || self.are_many()
    }

    /// Whether some are, or are to be, beside each other.
    fn are_many(&self) -> bool {
        self.beside + self.wait_to_be_beside > 0
    }

    fn is_anybody_aside(&self) -> bool {
        self.is_aside || self.wait_to_be_aside > 0
    }
}

// === impl Turn ===

impl Turn {
    fn begin(with: Company) -> Self {
        Self { with, begun: Instant::now() }
    }

    /// From here on others may run beside this test.
    pub(crate) fn goes_on_beside(&mut self) {
        let mut turns = turns();
        turns.is_alone = false;
        turns.beside += 1;
        self.with = Company::Beside;
        CHANGED.notify_all();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = turns();
        match self.with {
            Company::Beside => turns.beside -= 1,
            Company::Aside => turns.is_aside = false,
            Company::Calm => turns.calm -= 1,
            Company::Alone => turns.is_alone = false,
        }
        CHANGED.notify_all();
        // Not by a macro, whose lines the harness keeps to itself. Nobody depends on it.
        let (thread, seconds) = (thread::current(), self.begun.elapsed().as_secs());
        let name = thread.name().unwrap_or_default();
        let _ = writeln!(io::stderr(), "turn: {seconds:>4} s, {:?}: {name}", self.with);
    }
}

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait(turns: MutexGuard<'static, Turns>, has_to: impl Fn(&Turns) -> bool) -> MutexGuard<'static, Turns> {
    CHANGED.wait_while(turns, |turns| has_to(turns)).unwrap_or_else(PoisonError::into_inner)
}
