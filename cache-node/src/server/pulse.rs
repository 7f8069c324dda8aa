//! Signs of life of the event loops; the source of `/livez`.
//!
//! A thread that hangs is the classic fault that nobody notices: the port is open, probes of other threads answer, and
//! its clients wait for ever. So every event loop beats when it gives a connection its turn and once a second besides,
//! and somebody else looks on. Looks are counted instead of time: a process that was stopped as a whole, or starved of
//! its processor, has neither beaten nor looked, and is not called dead for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;

/// Time from one beat of an idle event loop to the next, and from one look to the next.
pub const BEAT: Duration = Duration::from_secs(1);

/// Looks without a beat between them after which an event loop hangs: ten seconds.
const LOOKS_MAX: u32 = 10;

/// The pulse of one event loop. On cache lines of its own: it beats on the hot path.
#[derive(Debug)]
#[repr(align(128))]
pub struct Pulse {
    name: String,
    beats: AtomicU64,
    /// As of the last look.
    seen: AtomicU64,
    missed: AtomicU32,
    /// It ended because it was told to.
    ended: AtomicBool,
}

/// The pulses of all event loops of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pulses(Arc<[Arc<Pulse>]>);

// === impl Pulse ===

impl Pulse {
    /// The pulse of the event loop of this thread.
    pub fn new(name: String) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self { name, beats: zero(), seen: zero(), missed: AtomicU32::new(0), ended: AtomicBool::new(false) })
    }

    /// A sign of life. Only the thread whose pulse it is gives any.
    #[inline]
    pub fn beat(&self) {
        self.beats.store(self.beats.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Its name, which is that of the thread.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Beats once a [`BEAT`], for ever, so that a thread without work is seen to be alive.
    pub async fn keep_beating(&self) {
        loop {
            self.beat();
            sleep(BEAT).await;
        }
    }

    /// The event loop ends as asked and will not beat any more.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn look(&self) {
        let beats = self.beats.load(Ordering::Relaxed);
        if self.seen.swap(beats, Ordering::Relaxed) == beats {
            self.missed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.missed.store(0, Ordering::Relaxed);
        }
    }

    fn hangs(&self) -> bool {
        self.missed.load(Ordering::Relaxed) >= LOOKS_MAX && !self.ended.load(Ordering::Relaxed)
    }
}

// === impl Pulses ===

impl Pulses {
    /// Those of one server.
    pub fn new(pulses: Vec<Arc<Pulse>>) -> Self {
        Self(pulses.into())
    }

    /// Looks at every pulse once.
    pub fn look(&self) {
        self.0.iter().for_each(|pulse| pulse.look());
    }

    /// What is wrong, if anything, for people.
    pub fn trouble(&self) -> Option<String> {
        let hanging: Vec<&str> = self.0.iter().filter(|pulse| pulse.hangs()).map(|pulse| pulse.name.as_str()).collect();
        let seconds = BEAT.as_secs() * u64::from(LOOKS_MAX);
        (!hanging.is_empty()).then(|| format!("no sign of life for {seconds} s from {}", hanging.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Arc<Pulse>, Arc<Pulse>, Pulses) {
        let (one, other) = (Pulse::new("resp-0".to_owned()), Pulse::new("resp-1".to_owned()));
        (Arc::clone(&one), Arc::clone(&other), Pulses::new(vec![one, other]))
    }

    #[test]
    fn an_event_loop_without_a_beat_for_ten_looks_hangs_until_it_beats_again() {
        let (one, other, pulses) = two();
        for _ in 0..10 {
            assert_eq!(pulses.trouble(), None);
            one.beat();
            pulses.look();
        }
        assert_eq!(pulses.trouble().unwrap(), "no sign of life for 10 s from resp-1");
        other.beat();
        pulses.look();
        assert_eq!(pulses.trouble(), None);
    }

    #[test]
    fn an_event_loop_that_ended_as_asked_does_not_hang() {
        let (one, other, pulses) = two();
        one.end();
        other.end();
        (0..20).for_each(|_| pulses.look());
        assert_eq!(pulses.trouble(), None);
    }
}
