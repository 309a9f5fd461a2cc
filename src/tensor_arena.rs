//! The process-wide arena, `g_tensor_arena` of the C library: made on first use, lent to one thread at a time.
//!
//! ```text
//!   not made --init or first use--> live --cleanup--> gone --init--> live ...
//! ```
//!
//! The C library's arena is a plain global: two threads that allocate at once get the same memory, a use before
//! `ac_init` or after `ac_cleanup` dereferences what is not there. Here the arena is behind a lock, and what is taken
//! from it borrows the lock's guard, so it cannot be used once another thread may reset it. Misuse that a lock cannot
//! rule out is an error: asking again on the thread that has it, which would wait for itself; initialising twice; use
//! after the end.
//!
//! The lock and the once-cell may allocate and wait; nothing here is reached from `GlobalAlloc`.

use crate::arena::{Arena, ArenaBuilder, Scope};
use crate::error::AllocError;
use crate::sync::{this_thread, AtomicUsize, Mutex, MutexGuard, Ordering};
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use once_cell::sync::OnceCell;

static ARENA: OnceCell<Mutex<State>> = OnceCell::new();

/// The states of the picture above.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // There is one, in a static.
enum State {
    NotMade,
    Live(Arena),
    Gone,
}

fn cell() -> &'static Mutex<State> {
    ARENA.get_or_init(|| Mutex::new(State::NotMade))
}

/// The thread that has the arena, as `this_thread` says, or 0.
///
/// Synchronization: a thread writes its own number after it has the lock and 0 before it gives it up, and looks only
/// for its own number, which no other thread writes: Relaxed is enough.
static HOLDER: AtomicUsize = AtomicUsize::new(0);

/// Why the process-wide arena was not lent, made or destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorArenaError {
    /// This thread has the arena already: a second guard would wait for the first for ever.
    Held,
    /// The arena is live: initialise it before its first use, and once.
    AlreadyMade,
    /// There is no arena: it was destroyed, or, for `cleanup_tensor_arena`, never made.
    NotMade,
    /// The memory of the first block was refused.
    Alloc(AllocError),
}

impl fmt::Display for TensorArenaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorArenaError::Held => f.write_str("this thread already has the tensor arena"),
            TensorArenaError::AlreadyMade => f.write_str("the tensor arena is made already"),
            TensorArenaError::NotMade => f.write_str("there is no tensor arena"),
            TensorArenaError::Alloc(refused) => refused.fmt(f),
        }
    }
}

impl std::error::Error for TensorArenaError {}

impl From<AllocError> for TensorArenaError {
    fn from(refused: AllocError) -> TensorArenaError {
        TensorArenaError::Alloc(refused)
    }
}

/// The process-wide arena, this thread's until dropped.
///
/// It derefs to [`Arena`]; other threads wait for it.
pub struct TensorArena {
    guard: MutexGuard<'static, State>,
    /// The guard must be dropped where it was made, or `HOLDER` would name the wrong thread.
    _not_send: PhantomData<*mut ()>,
}

/// Takes the lock, or says that this thread has it.
fn lock() -> Result<TensorArena, TensorArenaError> {
    let me = this_thread();
    if HOLDER.load(Ordering::Relaxed) == me {
        return Err(TensorArenaError::Held);
    }
    let guard = cell().lock();
    HOLDER.store(me, Ordering::Relaxed);
    Ok(TensorArena {
        guard,
        _not_send: PhantomData,
    })
}

/// Lends the process-wide arena to this thread; the first call makes it, with blocks of 64 MiB.
///
/// Waits while another thread has it. What is taken from it lives as long as the guard is borrowed.
///
/// # Panics
/// If this thread has it already, or it was destroyed; see [`try_tensor_arena`].
///
/// # Examples
/// ```
/// use stepalloc::tensor_arena;
///
/// let mut arena = tensor_arena();
/// let total = arena.scope(|step| step.alloc_slice_fill(1000, 0.5f32).iter().sum::<f32>());
/// assert_eq!(total, 500.0);
/// ```
/// What it hands out does not outlive the guard:
/// ```compile_fail,E0716
/// let value: &mut i32 = stepalloc::tensor_arena().alloc(1);
/// *value += 1;
/// ```
/// The guard stays on its thread:
/// ```compile_fail,E0277
/// let arena = stepalloc::tensor_arena();
/// std::thread::spawn(move || drop(arena));
/// ```
#[track_caller]
pub fn tensor_arena() -> TensorArena {
    match try_tensor_arena() {
        Ok(arena) => arena,
        Err(misuse) => panic!("{misuse}"),
    }
}

/// Lends the process-wide arena to this thread; the first call makes it, with blocks of 64 MiB.
///
/// # Errors
/// `Held` if this thread has it already, `NotMade` after [`cleanup_tensor_arena`].
///
/// # Examples
/// ```
/// use stepalloc::{try_tensor_arena, TensorArenaError};
///
/// let arena = try_tensor_arena().unwrap();
/// assert_eq!(try_tensor_arena().err(), Some(TensorArenaError::Held));
/// ```
pub fn try_tensor_arena() -> Result<TensorArena, TensorArenaError> {
    let mut arena = lock()?;
    match &*arena.guard {
        State::NotMade => *arena.guard = State::Live(Arena::new()),
        State::Live(_) => {}
        State::Gone => return Err(TensorArenaError::NotMade),
    }
    Ok(arena)
}

/// Makes the process-wide arena with these settings, before its first use or after its end, and takes a first block:
/// `ac_init`.
///
/// # Errors
/// `AlreadyMade` if it is live, `Held` if this thread has it, `Alloc` if the settings or the memory are refused.
///
/// # Examples
/// ```
/// use stepalloc::{init_tensor_arena, tensor_arena, Arena, TensorArenaError};
///
/// init_tensor_arena(Arena::builder().block_size(1 << 20)).unwrap();
/// assert_eq!(tensor_arena().stats().reserved_bytes, 1 << 20);
/// assert_eq!(init_tensor_arena(Arena::builder()), Err(TensorArenaError::AlreadyMade));
/// ```
pub fn init_tensor_arena(settings: ArenaBuilder) -> Result<(), TensorArenaError> {
    // The lock is taken first, so that of two threads one makes the arena and the other hears that it is made.
    let mut arena = lock()?;
    if let State::Live(_) = &*arena.guard {
        return Err(TensorArenaError::AlreadyMade);
    }
    let made = settings.try_build()?;
    made.commit(1)?;
    *arena.guard = State::Live(made);
    Ok(())
}

/// Destroys the process-wide arena and gives its memory back: `ac_cleanup`.
///
/// Waits while another thread has it. Nothing that borrows it can exist then; raw pointers into it dangle. Afterwards
/// [`init_tensor_arena`] may make a new one.
///
/// # Errors
/// `Held` if this thread has it, `NotMade` if there is none.
///
/// # Examples
/// ```
/// use stepalloc::{cleanup_tensor_arena, tensor_arena, try_tensor_arena, TensorArenaError};
///
/// tensor_arena().alloc(1);
/// cleanup_tensor_arena().unwrap();
/// assert_eq!(try_tensor_arena().err(), Some(TensorArenaError::NotMade));
/// ```
pub fn cleanup_tensor_arena() -> Result<(), TensorArenaError> {
    let mut arena = lock()?;
    match &*arena.guard {
        State::NotMade | State::Gone => Err(TensorArenaError::NotMade),
        State::Live(_) => {
            *arena.guard = State::Gone;
            Ok(())
        }
    }
}

impl TensorArena {
    fn arena(&mut self) -> &mut Arena {
        match &mut *self.guard {
            State::Live(arena) => arena,
            _ => unreachable!("a guard is lent for a live arena only"),
        }
    }

    /// Runs `f` and frees what was made in it; see [`Arena::scope`].
    pub fn scope<R>(&mut self, f: impl FnOnce(&mut Scope<'_>) -> R) -> R {
        self.arena().scope(f)
    }

    /// Frees everything, for all threads, and keeps the memory; see [`Arena::reset`].
    pub fn reset(&mut self) {
        self.arena().reset();
    }

    /// Frees everything, for all threads; see [`Arena::reset_with`].
    pub fn reset_with(&mut self, retain: crate::arena::Retain) {
        self.arena().reset_with(retain);
    }
}

impl Deref for TensorArena {
    type Target = Arena;

    fn deref(&self) -> &Arena {
        match &*self.guard {
            State::Live(arena) => arena,
            _ => unreachable!("a guard is lent for a live arena only"),
        }
    }
}

impl Drop for TensorArena {
    fn drop(&mut self) {
        // The guard itself is dropped after this, so the number is gone before the lock is.
        HOLDER.store(0, Ordering::Relaxed);
    }
}

impl fmt::Debug for TensorArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TensorArena").field(&*self.guard).finish()
    }
}
