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

    /// Runs the job on a thread of the pool. Past the deadline, and if nobody waits any more, it is not begun.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if the deadline passed or too many jobs wait, [`ErrorKind::Unreachable`] if the pool was
    /// stopped.
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
