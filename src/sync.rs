//! The one place that names the atomics, the lock and the thread: the maps and tables of every layer above are slices
//! of these, so that a model checker can put its own in their place. `--cfg loom` does so; see `sync/modelled.rs`.

#[cfg(loom)]
pub mod modelled;

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
#[cfg(not(loom))]
pub use parking_lot::{Mutex, MutexGuard};

#[cfg(loom)]
pub use modelled::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard};

pub use core::sync::atomic::Ordering;

use core::cell::UnsafeCell;

/// A value that one thread at a time may touch, by a rule that its user knows; under a model checker the rule is checked.
#[derive(Default)]
#[repr(transparent)]
pub struct Owned<T>(UnsafeCell<T>);

impl<T: Copy> Owned<T> {
    /// Reads the value.
    ///
    /// # Safety
    /// No other thread writes it meanwhile; else it may be torn.
    #[inline]
    pub unsafe fn read(&self) -> T {
        #[cfg(loom)]
        modelled::see(self.0.get().addr());
        // SAFETY: by the caller's promise.
        unsafe { *self.0.get() }
    }

    /// Writes the value.
    ///
    /// # Safety
    /// No other thread touches it meanwhile; else it may be torn.
    #[inline]
    pub unsafe fn write(&self, value: T) {
        #[cfg(loom)]
        modelled::touch(self.0.get().addr());
        // SAFETY: by the caller's promise.
        unsafe { *self.0.get() = value }
    }
}

/// A number that no other running thread has: the address of a thread-local.
#[cfg(not(loom))]
pub fn this_thread() -> usize {
    std::thread_local!(static MARK: u8 = const { 0 });
    MARK.try_with(|mark| core::ptr::from_ref(mark).addr())
        .unwrap_or(usize::MAX)
}

#[cfg(loom)]
pub use modelled::this_thread;
