//! The atomics, the lock and the ownership rule as loom sees them, for `--cfg loom` only.
//!
//! The allocator casts committed zero memory to its maps and keeps its tables in statics; loom's own atomics can be
//! neither. So the types here are as large as the real ones and only stand for an address: the first time a model
//! touches it, a loom object is made for it, with the value that lies there, and every later access is that object's.
//! Real memory is never written, so that statics are as at the program's start in every execution.
//!
//! Loom wants the making of an object to come before its uses. A model therefore touches on its main thread, before
//! it starts others, what two of them may be the first to touch; forgotten, loom reports it, and nothing is missed.
//!
//! `touch` and `see` stand for writing and reading a block at an address: loom reports two that are not ordered.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

/// What one execution of a model has touched, and what is to be done at its end.
#[derive(Default)]
struct Table {
    objects: std::sync::Mutex<HashMap<(usize, &'static str), Arc<dyn Any + Send + Sync>>>,
    mappings: std::sync::Mutex<HashMap<usize, Box<dyn FnOnce() + Send>>>,
    threads: std::sync::atomic::AtomicUsize,
}

impl Drop for Table {
    fn drop(&mut self) {
        for (_, end) in self.mappings.get_mut().unwrap().drain() {
            end();
        }
    }
}

loom::lazy_static! {
    static ref TABLE: Table = Table::default();
}

/// The object that stands for `addr`, made now if it was not.
fn object<T: Any + Send + Sync>(addr: usize, make: impl FnOnce() -> T) -> Arc<T> {
    // No thread of a model runs while this lock is held: nothing in here lets loom switch.
    let mut objects = TABLE.objects.lock().unwrap();
    let object = objects
        .entry((addr, core::any::type_name::<T>()))
        .or_insert_with(|| Arc::new(make()));
    Arc::clone(object).downcast().unwrap()
}

/// `end` is run when this execution ends, unless `drop_mapping` comes before.
pub fn keep_mapping(addr: usize, end: Box<dyn FnOnce() + Send>) {
    TABLE.mappings.lock().unwrap().insert(addr, end);
}

/// Takes `keep_mapping` back.
pub fn drop_mapping(addr: usize) {
    TABLE.mappings.lock().unwrap().remove(&addr);
}

/// How many mappings are kept.
pub fn mappings() -> usize {
    TABLE.mappings.lock().unwrap().len()
}

/// Loom's cells are for one thread's hands unless said otherwise.
struct Content(loom::cell::UnsafeCell<()>);

// SAFETY: loom itself reports accesses that are not ordered; that is what it is for.
unsafe impl Send for Content {}
// SAFETY: as above.
unsafe impl Sync for Content {}

fn content(addr: usize) -> Arc<Content> {
    object(addr, || Content(loom::cell::UnsafeCell::new(())))
}

/// Stands for writing the block at `addr`.
pub fn touch(addr: usize) {
    content(addr).0.with_mut(|_| ());
}

/// Stands for reading the block at `addr`.
pub fn see(addr: usize) {
    content(addr).0.with(|_| ());
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        /// See the file's head.
        #[repr(transparent)]
        pub struct $name(UnsafeCell<$value>);

        // SAFETY: the value is only read, and once for each execution; all else is loom's.
        unsafe impl Sync for $name {}
        // SAFETY: as above.
        unsafe impl Send for $name {}

        impl Default for $name {
            fn default() -> $name {
                $name::new(0)
            }
        }

        #[allow(dead_code)] // each has all that any of them needs
        impl $name {
            pub const fn new(value: $value) -> $name {
                $name(UnsafeCell::new(value))
            }

            fn object(&self) -> Arc<loom::sync::atomic::$name> {
                let at = self.0.get();
                // SAFETY: nothing writes what is behind the pointer.
                object(at.addr(), || loom::sync::atomic::$name::new(unsafe { *at }))
            }

            pub fn load(&self, order: Ordering) -> $value {
                self.object().load(order)
            }

            pub fn store(&self, value: $value, order: Ordering) {
                self.object().store(value, order);
            }

            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                self.object().swap(value, order)
            }

            pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                self.object().fetch_or(value, order)
            }

            pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                self.object().fetch_and(value, order)
            }

            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                self.object().fetch_add(value, order)
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
atomic!(AtomicUsize, usize);

/// See the file's head.
#[repr(transparent)]
pub struct AtomicPtr<T>(UnsafeCell<*mut T>);

// SAFETY: the pointer is only read, and once for each execution; all else is loom's.
unsafe impl<T> Sync for AtomicPtr<T> {}

impl<T: 'static> AtomicPtr<T> {
    pub const fn new(value: *mut T) -> AtomicPtr<T> {
        AtomicPtr(UnsafeCell::new(value))
    }

    fn object(&self) -> Arc<loom::sync::atomic::AtomicPtr<T>> {
        let at = self.0.get();
        // SAFETY: nothing writes what is behind the pointer.
        object(at.addr(), || loom::sync::atomic::AtomicPtr::new(unsafe { *at }))
    }

    pub fn load(&self, order: Ordering) -> *mut T {
        self.object().load(order)
    }

    pub fn compare_exchange(
        &self,
        current: *mut T,
        new: *mut T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<*mut T, *mut T> {
        self.object().compare_exchange(current, new, success, failure)
    }
}

/// A lock with `parking_lot`'s face: no poison, made in a `const`.
#[derive(Debug)]
pub struct Mutex<T> {
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached under loom's lock only, as with std's `Mutex`.
unsafe impl<T: Send> Sync for Mutex<T> {}

/// The lock's value, until dropped.
pub struct MutexGuard<'a, T> {
    value: &'a mut T,
    /// Dropped before the lock that it borrows.
    _guard: loom::sync::MutexGuard<'static, ()>,
    _opened: Opened,
    _not_send: PhantomData<*mut ()>,
}

/// A lock, and how often it was opened.
struct Lock {
    lock: loom::sync::Mutex<()>,
    opened: loom::sync::atomic::AtomicUsize,
}

/// Lets loom switch to another thread after a lock was opened, which it does only where threads change one atomic: what a thread
/// does outside the lock would else be one step with what it did inside.
struct Opened(Arc<Lock>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.opened.fetch_add(1, Ordering::Relaxed);
    }
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Mutex<T> {
        Mutex {
            value: UnsafeCell::new(value),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        let lock = object(self.value.get().addr(), || Lock {
            lock: loom::sync::Mutex::new(()),
            opened: loom::sync::atomic::AtomicUsize::new(0),
        });
        // SAFETY: the guard keeps the lock alive and is dropped before it.
        let guard = unsafe { &*Arc::as_ptr(&lock) }.lock.lock().unwrap();
        MutexGuard {
            // SAFETY: the lock is held, so this is the only reference.
            value: unsafe { &mut *self.value.get() },
            _guard: guard,
            _opened: Opened(lock),
            _not_send: PhantomData,
        }
    }
}

impl<T> core::ops::Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
    }
}

impl<T> core::ops::DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value
    }
}

/// A number that no other thread of the model has.
pub fn this_thread() -> usize {
    // Not an address: it would be another in every execution, and perhaps that of a thread that has ended.
    loom::thread_local!(static NUMBER: usize = 1 + TABLE.threads.fetch_add(1, Ordering::Relaxed));
    NUMBER.with(|number| *number)
}
