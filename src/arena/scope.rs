//! Checkpoints by borrow: what is made in a scope cannot leave it, the compiler sees to that.
//!
//! A scope's values live for its lifetime `'s`, not for the borrow of the `Scope` itself, so that they stay usable
//! while an inner scope is open. Two facts make that sound: opening an inner scope borrows the outer one mutably, so
//! nothing can be taken from the outer one while the inner one is open; and `'s` is chosen by [`Arena::scope`], so no
//! value of it can be named outside the closure.

use super::marks::{Hidden, UNTOUCHED};
use super::Arena;
use core::ops::Deref;

/// A part of an arena's life: everything made in it is freed when its closure ends.
///
/// It offers the arena's `alloc` methods with values that live for the scope, and every other method of [`Arena`]
/// that takes `&self` by deref.
///
/// # Examples
/// Values of a scope stay usable in the scopes inside it:
/// ```
/// let mut arena = stepalloc::Arena::new();
/// arena.scope(|outer| {
///     let weights = outer.alloc_slice_fill(4, 1.0f32);
///     for _step in 0..2 {
///         outer.scope(|inner| {
///             let grads = inner.alloc_slice_fill(4, 0.25f32);
///             weights.iter_mut().zip(grads).for_each(|(w, g)| *w -= *g);
///         });
///     }
///     assert_eq!(weights[3], 0.5);
/// });
/// ```
/// They cannot leave:
/// ```compile_fail,E0521
/// let mut arena = stepalloc::Arena::new();
/// let mut kept: Option<&mut i32> = None;
/// arena.scope(|scope| kept = Some(scope.alloc(1)));
/// ```
/// Nor can a value of an inner scope get into the outer one:
/// ```compile_fail,E0521
/// let mut arena = stepalloc::Arena::new();
/// arena.scope(|outer| {
///     let slot: &mut Option<&mut i32> = outer.alloc(None);
///     outer.scope(|inner| *slot = Some(inner.alloc(1)));
/// });
/// ```
/// The outer scope is out of reach while an inner one is open:
/// ```compile_fail,E0502
/// let mut arena = stepalloc::Arena::new();
/// arena.scope(|outer| {
///     outer.scope(|_inner| {
///         outer.alloc(1);
///     });
/// });
/// ```
/// So is a value taken from it by deref, whose borrow the inner scope would end:
/// ```compile_fail,E0502
/// let mut arena = stepalloc::Arena::new();
/// arena.scope(|outer| {
///     let value = stepalloc::Arena::alloc(&*outer, 1);
///     outer.scope(|_inner| {});
///     *value += 1;
/// });
/// ```
#[derive(Debug)]
pub struct Scope<'s> {
    arena: &'s Arena,
}

impl Scope<'_> {
    /// Runs `f` in a scope inside this one; see [`Arena::scope`].
    #[inline]
    pub fn scope<R>(&mut self, f: impl FnOnce(&mut Scope<'_>) -> R) -> R {
        // SAFETY: nothing can be taken from this scope while it is borrowed mutably, so whatever the arena hands out
        // until the inner scope ends is the inner scope's, and its lifetime ends with `f`.
        unsafe { in_scope(self.arena, f) }
    }

    /// The arena of this scope.
    pub(super) fn arena(&self) -> &Arena {
        self.arena
    }
}

impl Deref for Scope<'_> {
    type Target = Arena;

    // The lifetime must be the borrow's, not `'s`: an arena borrowed for `'s` could hand out memory of an inner scope
    // for that long.
    #[inline]
    fn deref(&self) -> &Arena {
        self.arena
    }
}

impl Arena {
    /// Runs `f`, then frees everything that was made in it, in constant time, and keeps the memory.
    ///
    /// It is freed too if `f` panics. Nothing is dropped, except what [`ArenaBox`](crate::ArenaBox) owns.
    ///
    /// # Examples
    /// ```
    /// let mut arena = stepalloc::Arena::new();
    /// let total = arena.scope(|scope| scope.alloc_slice_fill_with(10, |i| i).iter().sum::<usize>());
    /// assert_eq!((total, arena.stats().used_bytes), (45, 0));
    /// ```
    /// What was made in the arena itself is borrowed from it, and cannot be used across a scope:
    /// ```compile_fail,E0502
    /// let mut arena = stepalloc::Arena::new();
    /// let value = arena.alloc(1);
    /// arena.scope(|_scope| {});
    /// *value += 1;
    /// ```
    /// The same holds for a reset, and for the arena's end:
    /// ```compile_fail,E0502
    /// let mut arena = stepalloc::Arena::new();
    /// let value = arena.alloc(1);
    /// arena.reset();
    /// *value += 1;
    /// ```
    /// ```compile_fail,E0505
    /// let arena = stepalloc::Arena::new();
    /// let value = arena.alloc(1);
    /// drop(arena);
    /// *value += 1;
    /// ```
    /// One arena is not for two threads at once:
    /// ```compile_fail,E0277
    /// let arena = stepalloc::Arena::new();
    /// std::thread::scope(|threads| {
    ///     threads.spawn(|| arena.alloc(1));
    /// });
    /// ```
    #[inline]
    pub fn scope<R>(&mut self, f: impl FnOnce(&mut Scope<'_>) -> R) -> R {
        // SAFETY: the arena is borrowed mutably: no value of it is borrowed, and nothing but the scope reaches it.
        unsafe { in_scope(self, f) }
    }
}

/// Runs `f` with a scope of `arena` and goes back at its end.
///
/// # Safety
/// Until this returns nothing is taken from `arena` but through the scope handed to `f`.
#[inline(always)]
unsafe fn in_scope<R>(arena: &Arena, f: impl FnOnce(&mut Scope<'_>) -> R) -> R {
    let state = match arena.marks.is_untouched() {
        true => UNTOUCHED,
        false => arena.begin_touched(),
    };
    let hidden = arena.marks.hide(arena.position.get(), state);
    let scope = Scope { arena };
    f(&mut GoBack { scope, hidden }.scope)
}

/// Goes back to where the arena was, on return and on unwinding.
///
/// It holds the scope too, so that both are kept in memory once and not also in registers, across `f`.
struct GoBack<'a> {
    scope: Scope<'a>,
    hidden: Hidden,
}

impl Drop for GoBack<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let arena = self.scope.arena;
        if arena.marks.is_untouched() {
            arena.note_high();
            arena.position.set(arena.marks.show(&self.hidden));
            arena.poison_free();
        } else {
            self.go_far();
        }
    }
}

impl GoBack<'_> {
    /// Ends a scope in which or around which a checkpoint was made or a block taken.
    #[cold]
    #[inline(never)]
    fn go_far(&self) {
        let arena = self.scope.arena;
        arena.go_to(arena.marks.kill(&self.hidden, arena.in_use.get()));
    }
}
