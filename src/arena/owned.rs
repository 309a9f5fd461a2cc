//! A value in an arena that is dropped with its box; its memory stays the arena's.

use core::borrow::{Borrow, BorrowMut};
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// Owns a value in an arena and runs its `Drop`.
///
/// The memory is freed with the arena's or the scope's. Made by [`Arena::alloc_boxed`](crate::Arena::alloc_boxed).
///
/// # Examples
/// ```
/// let arena = stepalloc::Arena::new();
/// let mut words = arena.alloc_boxed(vec!["a", "b"]);
/// words.push("c");
/// assert_eq!(words.into_inner().len(), 3);
/// ```
/// A box cannot outlive its scope:
/// ```compile_fail,E0521
/// let mut arena = stepalloc::Arena::new();
/// let mut kept = None;
/// arena.scope(|scope| kept = Some(scope.alloc_boxed(String::new())));
/// ```
pub struct ArenaBox<'a, T: ?Sized> {
    value: NonNull<T>,
    /// Borrows the arena as a `&'a mut T` would, and owns a `T`.
    _owns: PhantomData<(&'a mut T, T)>,
}

// SAFETY: a box is the only way to its value, as a `Box<T>` is.
unsafe impl<T: ?Sized + Send> Send for ArenaBox<'_, T> {}
// SAFETY: a shared box gives shared access to its value only.
unsafe impl<T: ?Sized + Sync> Sync for ArenaBox<'_, T> {}

impl<'a, T: ?Sized> ArenaBox<'a, T> {
    /// Owns a value that was just put into the arena.
    #[inline(always)]
    pub(super) fn owning(value: &'a mut T) -> ArenaBox<'a, T> {
        ArenaBox {
            value: NonNull::from(value),
            _owns: PhantomData,
        }
    }

    /// Gives up the right to drop the value.
    ///
    /// # Examples
    /// ```
    /// let arena = stepalloc::Arena::new();
    /// let value = stepalloc::ArenaBox::leak(arena.alloc_boxed(5));
    /// assert_eq!(*value, 5);
    /// ```
    pub fn leak(boxed: ArenaBox<'a, T>) -> &'a mut T {
        let boxed = ManuallyDrop::new(boxed);
        // SAFETY: the box was the only way to its value, which lives for `'a`, and it will not drop it.
        unsafe { &mut *boxed.value.as_ptr() }
    }
}

impl<T> ArenaBox<'_, T> {
    /// Moves the value out of the arena.
    pub fn into_inner(self) -> T {
        let boxed = ManuallyDrop::new(self);
        // SAFETY: the value is ours, and the box will not drop it.
        unsafe { boxed.value.read() }
    }
}

impl<T: ?Sized> Drop for ArenaBox<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the box owns the value, and this is its end.
        unsafe { self.value.drop_in_place() }
    }
}

impl<T: ?Sized> Deref for ArenaBox<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the value is alive as long as the box, and borrowed as the box is.
        unsafe { self.value.as_ref() }
    }
}

impl<T: ?Sized> DerefMut for ArenaBox<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the box is the only way to the value.
        unsafe { self.value.as_mut() }
    }
}

impl<T: ?Sized> AsRef<T> for ArenaBox<'_, T> {
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: ?Sized> AsMut<T> for ArenaBox<'_, T> {
    fn as_mut(&mut self) -> &mut T {
        self
    }
}

impl<T: ?Sized> Borrow<T> for ArenaBox<'_, T> {
    fn borrow(&self) -> &T {
        self
    }
}

impl<T: ?Sized> BorrowMut<T> for ArenaBox<'_, T> {
    fn borrow_mut(&mut self) -> &mut T {
        self
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for ArenaBox<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for ArenaBox<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + PartialEq> PartialEq for ArenaBox<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: ?Sized + Eq> Eq for ArenaBox<'_, T> {}

impl<T: ?Sized + PartialOrd> PartialOrd for ArenaBox<'_, T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (**self).partial_cmp(&**other)
    }
}

impl<T: ?Sized + Ord> Ord for ArenaBox<'_, T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<T: ?Sized + Hash> Hash for ArenaBox<'_, T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state)
    }
}
