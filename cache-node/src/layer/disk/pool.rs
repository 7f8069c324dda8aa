//! A few threads for calls that block, with a bounded queue in front of them.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use tokio::sync::oneshot;

use crate::{
    clock::Clock,
    layer::{ErrorKind, LayerError, LayerId},
};

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end when the pool is dropped, after the jobs that wait.
pub(super) struct Pool {
    shared: Arc<Shared>,
    waiting_max: usize,
    clock: Clock,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    stopped: bool,
}

// === impl Pool ===

impl Pool {
    pub(super) fn start(
        name: &'static str,
        threads: usize,
        waiting_max: usize,
        clock: Clock,
    ) -> Result<Self, LayerError> {
        let shared = Arc::new(Shared { state: Mutex::default(), work: Condvar::new() });
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || shared.work())
                .map_err(|error| error_of(ErrorKind::Unreachable, format!("no thread {name}: {error}")))?;
        }
        Ok(Self { shared, waiting_max, clock })
    }

    /// Runs the job on a thread of the pool. With a deadline it is not begun past it, nor once nobody waits for it any more.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if the deadline passed, too many jobs wait or the job panicked, [`ErrorKind::Unreachable`] if
    /// the pool was stopped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LayerError> {
        let (answer, answered) = oneshot::channel();
        let clock = self.clock.clone();
        self.push(Box::new(move || {
            let late = deadline.is_some_and(|deadline| clock.monotonic() >= deadline);
            if !late && (deadline.is_none() || !answer.is_closed()) {
                // Nobody listens any more: the caller gave up.
                let _ = answer.send(job());
            }
        }))?;
        answered.await.map_err(|_| error_of(ErrorKind::Timeout, "the deadline passed before its turn came".to_owned()))
    }

    /// Ends the threads once the waiting jobs are done.
    pub(super) fn stop(&self) {
        self.shared.state().stopped = true;
        self.shared.work.notify_all();
    }

    fn push(&self, job: Job) -> Result<(), LayerError> {
        let mut state = self.shared.state();
        if state.stopped {
            return Err(error_of(ErrorKind::Unreachable, "the layer is closed".to_owned()));
        }
        if state.jobs.len() >= self.waiting_max {
            return Err(error_of(ErrorKind::Timeout, format!("{} calls wait already", self.waiting_max)));
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // A panic in one job must not take the thread from all others; its caller sees a lost answer.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                tracing::error!("a call of the disk layer panicked");
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.stopped {
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn error_of(kind: ErrorKind, message: String) -> LayerError {
    LayerError::new(LayerId::Disk, kind, message)
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            atomic::{AtomicBool, Ordering},
            mpsc::{SyncSender, sync_channel},
        },
        time::Duration,
    };

    use futures::FutureExt;

    use super::*;
    use crate::testing::START;

    /// A pool of one thread, which is busy until the sender is dropped.
    async fn busy(waiting_max: usize) -> (Pool, Clock, SyncSender<()>) {
        let clock = Clock::manual(START);
        let pool = Pool::start("test", 1, waiting_max, clock.clone()).unwrap();
        let (release, released) = sync_channel(1);
        let (begin, begun) = oneshot::channel();
        let hold = move || {
            begin.send(()).unwrap();
            let _ = released.recv();
        };
        assert!(pool.run(None, hold).now_or_never().is_none());
        begun.await.unwrap();
        (pool, clock, release)
    }

    /// A job that leaves a mark when it is begun.
    fn marking(mark: &Arc<AtomicBool>) -> impl FnOnce() + Send + 'static + use<> {
        let mark = Arc::clone(mark);
        move || mark.store(true, Ordering::SeqCst)
    }

    fn is_set(mark: &AtomicBool) -> bool {
        mark.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn one_job_more_than_may_wait_is_turned_away_at_once() {
        let (pool, _clock, release) = busy(2).await;
        let mut first = pin!(pool.run(None, || 1));
        let mut second = pin!(pool.run(None, || 2));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        let mark = Arc::<AtomicBool>::default();
        let third = pool.run(None, marking(&mark)).now_or_never().expect("it does not wait");
        let error = third.unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Timeout, "2 calls wait already"));
        drop(release);
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (1, 2));
        assert_eq!(pool.run(None, || 4).await.unwrap(), 4, "there is room again");
        assert!(!is_set(&mark));
    }

    #[tokio::test]
    async fn job_whose_turn_comes_at_its_deadline_is_not_begun() {
        let (pool, clock, release) = busy(9).await;
        let (late, in_time) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let deadline = clock.monotonic() + Duration::from_secs(1);
        let mut first = pin!(pool.run(Some(deadline), marking(&late)));
        let mut second = pin!(pool.run(Some(deadline + Duration::from_millis(1)), marking(&in_time)));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        clock.advance(Duration::from_secs(1));
        drop(release);
        assert_eq!(first.await.unwrap_err().kind, ErrorKind::Timeout);
        second.await.unwrap();
        assert_eq!((is_set(&late), is_set(&in_time)), (false, true));
    }

    #[tokio::test]
    async fn job_that_nobody_waits_for_is_not_begun_unless_it_has_no_deadline() {
        let (pool, clock, release) = busy(9).await;
        let (read, write) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let deadline = clock.monotonic() + Duration::from_secs(1);
        // Whoever asked is gone after each of these lines. A write without its caller is a write all the same.
        assert!(pool.run(Some(deadline), marking(&read)).now_or_never().is_none());
        assert!(pool.run(None, marking(&write)).now_or_never().is_none());
        drop(release);
        // Behind both of them.
        pool.run(None, || ()).await.unwrap();
        assert_eq!((is_set(&read), is_set(&write)), (false, true));
    }

    #[tokio::test]
    async fn panic_of_a_job_is_an_error_of_its_caller_and_spares_the_thread() {
        let pool = Pool::start("test", 1, 9, Clock::manual(START)).unwrap();
        let failed = pool.run(None, || -> u8 { panic!("as the test wants it") }).await;
        assert!(failed.is_err());
        // There is no other thread.
        assert_eq!(pool.run(None, || 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn stopped_pool_does_what_waits_and_takes_nothing_more() {
        let (pool, _clock, release) = busy(9).await;
        let mut waiting = pin!(pool.run(None, || 1));
        assert!(waiting.as_mut().now_or_never().is_none());
        pool.stop();
        let refused = pool.run(None, || 2).now_or_never().expect("it does not wait");
        assert_eq!(refused.unwrap_err().kind, ErrorKind::Unreachable);
        drop(release);
        assert_eq!(waiting.await.unwrap(), 1);
    }
}
