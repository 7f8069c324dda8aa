//! As in the standard library, and watched: inside a test of all orders, shuttle decides at every use which thread goes
//! on. Its threads are coroutines of one thread, so a lock that is taken is tried again rather than waited for.

use std::sync::{self as real, LockResult, MutexGuard, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult};

use shuttle::{current::try_get_current_task, thread};

/// A [`std::sync::Mutex`].
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(real::Mutex<T>);

/// A [`std::sync::RwLock`].
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(real::RwLock<T>);

/// Lets another thread go on here, inside a test of all orders.
pub(crate) fn may_switch() {
    if try_get_current_task().is_some() {
        // Time stands still; this is the plainest place to switch.
        thread::sleep(std::time::Duration::ZERO);
    }
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(real::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        taken(|| self.0.try_lock(), || self.0.lock())
    }
}

impl<T> RwLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(real::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        taken(|| self.0.try_read(), || self.0.read())
    }

    pub(crate) fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        taken(|| self.0.try_write(), || self.0.write())
    }
}

fn taken<G>(attempt: impl Fn() -> TryLockResult<G>, wait: impl FnOnce() -> LockResult<G>) -> LockResult<G> {
    if try_get_current_task().is_none() {
        return wait();
    }
    may_switch();
    loop {
        match attempt() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Err(poisoned),
            Err(TryLockError::WouldBlock) => thread::yield_now(),
        }
    }
}

/// As [`std::sync::atomic`]. Orders weaker than the strongest are not told apart.
pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::Ordering;
    use std::{ops::Deref, sync::atomic};

    use super::may_switch;

    macro_rules! watched {
        ($($name:ident of $value:ty),*) => {$(
            #[derive(Debug, Default)]
            pub(crate) struct $name(atomic::$name);

            impl $name {
                pub(crate) const fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }
            }

            impl Deref for $name {
                type Target = atomic::$name;

                fn deref(&self) -> &Self::Target {
                    may_switch();
                    &self.0
                }
            }
        )*};
    }

    watched!(AtomicBool of bool, AtomicU8 of u8, AtomicU64 of u64, AtomicUsize of usize);
}
