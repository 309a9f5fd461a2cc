//! Typed values in an arena: `alloc` and its kin, for [`Arena`] and for [`Scope`].
//!
//! Both offer the same methods; only the lifetime of what they return differs. A macro writes the methods twice over
//! one set of functions, whose lifetime is free, so that each is checked once.
//!
//! Every `x` is one line over `try_x`. A closure or an iterator runs after its memory is taken, so it may itself
//! allocate from the same arena. If it panics, the elements already made are dropped.

use super::{array, Arena, ArenaBox, Scope};
use crate::error::{self, AllocError};
use crate::zeroable::Zeroable;
use core::alloc::Layout;
use core::mem::{self, MaybeUninit};
use core::ptr::{self, NonNull};
use core::slice;

impl Arena {
    /// Room for a value.
    #[inline(always)]
    fn room_for<T>(&self) -> Result<NonNull<T>, AllocError> {
        if mem::size_of::<T>() == 0 {
            return Ok(self.dangling(mem::align_of::<T>()).cast());
        }
        Ok(self.bump(mem::size_of::<T>(), mem::align_of::<T>())?.cast())
    }

    /// Room for `len` values.
    #[inline(always)]
    fn room_for_slice<T>(&self, len: usize) -> Result<NonNull<T>, AllocError> {
        let layout = array::<T>(len)?;
        if layout.size() == 0 {
            return Ok(self.dangling(mem::align_of::<T>()).cast());
        }
        Ok(self.bump(layout.size(), mem::align_of::<T>())?.cast())
    }

    /// Room for a value that `make` then writes.
    ///
    /// # Safety
    /// Here and below: `'x` must end before the arena takes the block back.
    #[inline(always)]
    unsafe fn put_with<'x, T>(&self, make: impl FnOnce() -> T) -> Result<&'x mut T, AllocError> {
        let room = self.room_for::<T>()?;
        let value = make();
        // SAFETY: the room is fresh (A1), aligned and large enough for a `T`, and the caller bounds the lifetime.
        unsafe {
            room.write(value);
            Ok(&mut *room.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn put_zeroed<'x, T: Zeroable>(&self) -> Result<&'x mut T, AllocError> {
        let room = self.try_alloc_layout_zeroed(Layout::new::<T>())?.cast::<T>();
        // SAFETY: fresh room of zero bytes, which are a `T`.
        Ok(unsafe { &mut *room.as_ptr() })
    }

    #[inline(always)]
    unsafe fn put_uninit_slice<'x, T>(&self, len: usize) -> Result<&'x mut [MaybeUninit<T>], AllocError> {
        let room = self.room_for_slice::<MaybeUninit<T>>(len)?;
        // SAFETY: fresh room for `len` values, which may be uninitialised.
        Ok(unsafe { slice::from_raw_parts_mut(room.as_ptr(), len) })
    }

    #[inline(always)]
    unsafe fn put_zeroed_slice<'x, T: Zeroable>(&self, len: usize) -> Result<&'x mut [T], AllocError> {
        let room = self.try_alloc_layout_zeroed(array::<T>(len)?)?.cast::<T>();
        // SAFETY: fresh room for `len` values, of zero bytes, which are a `T` each.
        Ok(unsafe { slice::from_raw_parts_mut(room.as_ptr(), len) })
    }

    #[inline(always)]
    unsafe fn put_copy<'x, T: Copy>(&self, source: &[T]) -> Result<&'x mut [T], AllocError> {
        let room = self.room_for_slice::<T>(source.len())?;
        // SAFETY: the room is as long as the source and disjoint from it (A1), and `T` is `Copy`.
        unsafe {
            ptr::copy_nonoverlapping(source.as_ptr(), room.as_ptr(), source.len());
            Ok(slice::from_raw_parts_mut(room.as_ptr(), source.len()))
        }
    }

    #[inline(always)]
    unsafe fn put_fill_with<'x, T>(
        &self,
        len: usize,
        mut make: impl FnMut(usize) -> T,
    ) -> Result<&'x mut [T], AllocError> {
        let mut made = Growing::<T>::with_room(self, len)?;
        let room = made.room.as_ptr();
        for index in 0..len {
            let value = make(index);
            // SAFETY: there is room for `len` values, and it is ours until finished.
            unsafe { room.add(index).write(value) };
            if mem::needs_drop::<T>() {
                // Counted only where unwinding must know: the count keeps the loop from being vectorised.
                made.len = index + 1;
            }
        }
        made.len = len;
        // SAFETY: the caller bounds the lifetime.
        Ok(unsafe { made.finish() })
    }

    #[inline(always)]
    unsafe fn put_iter<'x, T>(&self, items: impl IntoIterator<Item = T>) -> Result<&'x mut [T], AllocError> {
        let items = items.into_iter();
        let mut made = Growing::with_room(self, items.size_hint().0)?;
        for item in items {
            made.push(item)?;
        }
        // SAFETY: the caller bounds the lifetime.
        Ok(unsafe { made.finish() })
    }

    #[inline(always)]
    unsafe fn put_str<'x>(&self, text: &str) -> Result<&'x mut str, AllocError> {
        // SAFETY: the caller bounds the lifetime; the bytes are those of a `str`.
        unsafe { Ok(core::str::from_utf8_unchecked_mut(self.put_copy(text.as_bytes())?)) }
    }
}

/// A slice in the making: drops what is in it, and gives its room back, unless finished.
struct Growing<'a, T> {
    arena: &'a Arena,
    room: NonNull<T>,
    /// How many values there is room for.
    capacity: usize,
    len: usize,
}

impl<'a, T> Growing<'a, T> {
    #[inline(always)]
    fn with_room(arena: &'a Arena, capacity: usize) -> Result<Growing<'a, T>, AllocError> {
        Ok(Growing {
            room: arena.room_for_slice::<T>(capacity)?,
            arena,
            capacity,
            len: 0,
        })
    }

    /// # Safety
    /// There is room for one more value.
    #[inline(always)]
    unsafe fn push_within(&mut self, value: T) {
        debug_assert!(self.len < self.capacity || mem::size_of::<T>() == 0);
        // SAFETY: by the caller's promise the place is within the room, which is ours until finished.
        unsafe { self.room.as_ptr().add(self.len).write(value) };
        self.len += 1;
    }

    fn push(&mut self, value: T) -> Result<(), AllocError> {
        if self.len == self.capacity {
            self.grow()?;
        }
        // SAFETY: there was room or `grow` made some.
        unsafe { self.push_within(value) };
        Ok(())
    }

    #[cold]
    fn grow(&mut self) -> Result<(), AllocError> {
        let capacity = self.capacity.saturating_mul(2).max(4);
        let (old, new) = (array::<T>(self.capacity)?, array::<T>(capacity)?);
        // SAFETY: the room was taken with layout `old` and is replaced by what comes back.
        self.room = unsafe { self.arena.grow(self.room.cast(), old, new)? }.cast();
        self.capacity = capacity;
        Ok(())
    }

    /// # Safety
    /// `'x` must end before the arena takes the block back.
    #[inline(always)]
    unsafe fn finish<'x>(self) -> &'x mut [T] {
        let this = mem::ManuallyDrop::new(self);
        if this.len < this.capacity {
            this.give_back(this.len);
        }
        // SAFETY: `len` values are in the room, and nobody else has them.
        unsafe { slice::from_raw_parts_mut(this.room.as_ptr(), this.len) }
    }

    /// Gives back the room beyond `len` values.
    fn give_back(&self, len: usize) {
        let (Ok(old), Ok(new)) = (array::<T>(self.capacity), array::<T>(len)) else {
            return;
        };
        // SAFETY: the room was taken with layout `old`; with the alignment unchanged it stays where it is.
        let _ = unsafe { self.arena.shrink(self.room.cast(), old, new) };
    }
}

impl<T> Drop for Growing<'_, T> {
    fn drop(&mut self) {
        if !mem::needs_drop::<T>() {
            return self.give_back(0);
        }
        // SAFETY: the first `len` values were written and are owned by nobody else.
        unsafe { ptr::slice_from_raw_parts_mut(self.room.as_ptr(), self.len).drop_in_place() };
        self.give_back(0);
    }
}

/// The value, or the end of an infallible call that could not have it.
macro_rules! or_refuse {
    ($result:expr, $layout:expr) => {
        match $result {
            Ok(value) => value,
            Err(refused) => error::refuse(refused, $layout),
        }
    };
}

/// What to report of a slice whose length may be absurd.
#[cold]
fn array_or_empty<T>(len: usize) -> Layout {
    array::<T>(len).unwrap_or(Layout::new::<[T; 0]>())
}

/// The methods of `Arena` (`$life` absent: values borrow `self`) and of `Scope` (`$life` is the scope's).
macro_rules! value_methods {
    ($arena:ident, [$($life:lifetime)?], [$($boxed:lifetime)?]) => {
        /// Puts a value into the arena; it will not be dropped.
        ///
        /// # Panics
        /// Where [`try_alloc`](Self::try_alloc) gives an error; without memory it ends the process as std's
        /// collections do. The same holds for every method here that has a `try_` form.
        ///
        /// # Examples
        /// ```
        /// let arena = stepalloc::Arena::new();
        /// let (x, y) = (arena.alloc(1), arena.alloc(2));
        /// *x += *y;
        /// assert_eq!(*x, 3);
        /// ```
        #[inline]
        #[track_caller]
        pub fn alloc<T>(&self, value: T) -> &$($life)? mut T {
            or_refuse!(self.try_alloc(value), Layout::new::<T>())
        }

        /// Puts a value into the arena; it will not be dropped.
        ///
        /// # Errors
        /// `LimitReached` at the arena's `max_bytes`, `OutOfMemory` if the system refuses, `BadLayout` if the size
        /// passes `isize::MAX`. The value is then dropped; [`try_alloc_with`](Self::try_alloc_with) does not make it.
        #[inline]
        pub fn try_alloc<T>(&self, value: T) -> Result<&$($life)? mut T, AllocError> {
            // SAFETY: the lifetime returned keeps the arena from taking the block back: it borrows the arena, or is
            // that of a scope that is still open.
            unsafe { self.$arena().put_with(|| value) }
        }

        /// Puts the value that `make` returns into the arena; it will not be dropped.
        #[inline]
        #[track_caller]
        pub fn alloc_with<T>(&self, make: impl FnOnce() -> T) -> &$($life)? mut T {
            or_refuse!(self.try_alloc_with(make), Layout::new::<T>())
        }

        /// Puts the value that `make` returns into the arena; without memory `make` is not called.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_with<T>(&self, make: impl FnOnce() -> T) -> Result<&$($life)? mut T, AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_with(make) }
        }

        /// Puts a value of zero bytes into the arena; memory that was never used is not touched for it.
        #[inline]
        #[track_caller]
        pub fn alloc_zeroed<T: Zeroable>(&self) -> &$($life)? mut T {
            or_refuse!(self.try_alloc_zeroed(), Layout::new::<T>())
        }

        /// Puts a value of zero bytes into the arena; memory that was never used is not touched for it.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_zeroed<T: Zeroable>(&self) -> Result<&$($life)? mut T, AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_zeroed() }
        }

        /// Takes room for `len` values.
        ///
        /// # Examples
        /// ```
        /// let arena = stepalloc::Arena::new();
        /// let room = arena.alloc_slice_uninit::<u16>(2);
        /// assert_eq!(*room[1].write(7), 7);
        /// ```
        #[inline]
        #[track_caller]
        pub fn alloc_slice_uninit<T>(&self, len: usize) -> &$($life)? mut [MaybeUninit<T>] {
            or_refuse!(self.try_alloc_slice_uninit(len), array_or_empty::<T>(len))
        }

        /// Takes room for `len` values.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_slice_uninit<T>(&self, len: usize) -> Result<&$($life)? mut [MaybeUninit<T>], AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_uninit_slice(len) }
        }

        /// Puts `len` values of zero bytes into the arena; memory that was never used is not touched for it.
        ///
        /// # Examples
        /// ```
        /// let arena = stepalloc::Arena::new();
        /// assert_eq!(arena.alloc_slice_zeroed::<f32>(3), [0.0; 3]);
        /// ```
        #[inline]
        #[track_caller]
        pub fn alloc_slice_zeroed<T: Zeroable>(&self, len: usize) -> &$($life)? mut [T] {
            or_refuse!(self.try_alloc_slice_zeroed(len), array_or_empty::<T>(len))
        }

        /// Puts `len` values of zero bytes into the arena; memory that was never used is not touched for it.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_slice_zeroed<T: Zeroable>(&self, len: usize) -> Result<&$($life)? mut [T], AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_zeroed_slice(len) }
        }

        /// Copies a slice into the arena.
        ///
        /// # Examples
        /// ```
        /// let arena = stepalloc::Arena::new();
        /// assert_eq!(arena.alloc_slice_copy(&[1, 2, 3]), [1, 2, 3]);
        /// ```
        #[inline]
        #[track_caller]
        pub fn alloc_slice_copy<T: Copy>(&self, source: &[T]) -> &$($life)? mut [T] {
            or_refuse!(self.try_alloc_slice_copy(source), Layout::for_value(source))
        }

        /// Copies a slice into the arena.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_slice_copy<T: Copy>(&self, source: &[T]) -> Result<&$($life)? mut [T], AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_copy(source) }
        }

        /// Clones a slice into the arena; the clones will not be dropped.
        #[inline]
        #[track_caller]
        pub fn alloc_slice_clone<T: Clone>(&self, source: &[T]) -> &$($life)? mut [T] {
            or_refuse!(self.try_alloc_slice_clone(source), Layout::for_value(source))
        }

        /// Clones a slice into the arena; the clones will not be dropped.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_slice_clone<T: Clone>(&self, source: &[T]) -> Result<&$($life)? mut [T], AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_fill_with(source.len(), |index| source[index].clone()) }
        }

        /// Puts `len` clones of a value into the arena; they will not be dropped.
        #[inline]
        #[track_caller]
        pub fn alloc_slice_fill<T: Clone>(&self, len: usize, value: T) -> &$($life)? mut [T] {
            or_refuse!(self.try_alloc_slice_fill(len, value), array_or_empty::<T>(len))
        }

        /// Puts `len` clones of a value into the arena; they will not be dropped.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_slice_fill<T: Clone>(&self, len: usize, value: T) -> Result<&$($life)? mut [T], AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_fill_with(len, |_| value.clone()) }
        }

        /// Puts the values `make(0)`, `make(1)`, ... into the arena; they will not be dropped.
        #[inline]
        #[track_caller]
        pub fn alloc_slice_fill_with<T>(&self, len: usize, make: impl FnMut(usize) -> T) -> &$($life)? mut [T] {
            or_refuse!(self.try_alloc_slice_fill_with(len, make), array_or_empty::<T>(len))
        }

        /// Puts the values `make(0)`, `make(1)`, ... into the arena; without memory `make` is not called.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_slice_fill_with<T>(
            &self,
            len: usize,
            make: impl FnMut(usize) -> T,
        ) -> Result<&$($life)? mut [T], AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_fill_with(len, make) }
        }

        /// Puts the items of an iterator into the arena; they will not be dropped.
        ///
        /// An iterator that tells its length is written once; another grows, in place while nothing else is allocated.
        ///
        /// # Examples
        /// ```
        /// let arena = stepalloc::Arena::new();
        /// let even = arena.alloc_slice_from_iter((0..10).filter(|n| n % 2 == 0));
        /// assert_eq!(even, [0, 2, 4, 6, 8]);
        /// ```
        #[inline]
        #[track_caller]
        pub fn alloc_slice_from_iter<T>(&self, items: impl IntoIterator<Item = T>) -> &$($life)? mut [T] {
            or_refuse!(self.try_alloc_slice_from_iter(items), Layout::new::<T>())
        }

        /// Puts the items of an iterator into the arena; they will not be dropped.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc); the items made so far are then dropped.
        #[inline]
        pub fn try_alloc_slice_from_iter<T>(
            &self,
            items: impl IntoIterator<Item = T>,
        ) -> Result<&$($life)? mut [T], AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_iter(items) }
        }

        /// Copies a string into the arena.
        ///
        /// # Examples
        /// ```
        /// let arena = stepalloc::Arena::new();
        /// assert_eq!(arena.alloc_str("step"), "step");
        /// ```
        #[inline]
        #[track_caller]
        pub fn alloc_str(&self, text: &str) -> &$($life)? mut str {
            or_refuse!(self.try_alloc_str(text), Layout::for_value(text))
        }

        /// Copies a string into the arena.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_str(&self, text: &str) -> Result<&$($life)? mut str, AllocError> {
            // SAFETY: as in `try_alloc`.
            unsafe { self.$arena().put_str(text) }
        }

        /// Puts a value into the arena that is dropped when its box is.
        ///
        /// # Examples
        /// ```
        /// use std::rc::Rc;
        ///
        /// let arena = stepalloc::Arena::new();
        /// let counted = Rc::new(());
        /// let boxed = arena.alloc_boxed(counted.clone());
        /// assert_eq!(Rc::strong_count(&counted), 2);
        /// drop(boxed);
        /// assert_eq!(Rc::strong_count(&counted), 1);
        /// ```
        #[inline]
        #[track_caller]
        pub fn alloc_boxed<T>(&self, value: T) -> ArenaBox<$($boxed)?, T> {
            or_refuse!(self.try_alloc_boxed(value), Layout::new::<T>())
        }

        /// Puts a value into the arena that is dropped when its box is.
        ///
        /// # Errors
        /// As [`try_alloc`](Self::try_alloc).
        #[inline]
        pub fn try_alloc_boxed<T>(&self, value: T) -> Result<ArenaBox<$($boxed)?, T>, AllocError> {
            self.try_alloc(value).map(ArenaBox::owning)
        }

        /// Puts the items of an iterator into the arena; they are dropped when their box is.
        #[inline]
        #[track_caller]
        pub fn alloc_boxed_slice<T>(&self, items: impl IntoIterator<Item = T>) -> ArenaBox<$($boxed)?, [T]> {
            or_refuse!(self.try_alloc_boxed_slice(items), Layout::new::<T>())
        }

        /// Puts the items of an iterator into the arena; they are dropped when their box is.
        ///
        /// # Errors
        /// As [`try_alloc_slice_from_iter`](Self::try_alloc_slice_from_iter).
        #[inline]
        pub fn try_alloc_boxed_slice<T>(
            &self,
            items: impl IntoIterator<Item = T>,
        ) -> Result<ArenaBox<$($boxed)?, [T]>, AllocError> {
            self.try_alloc_slice_from_iter(items).map(ArenaBox::owning)
        }
    };
}

#[allow(clippy::mut_from_ref)] // Each call returns a fresh block, disjoint from every other (A1).
impl Arena {
    value_methods!(itself, [], ['_]);

    #[inline(always)]
    fn itself(&self) -> &Arena {
        self
    }
}

#[allow(clippy::mut_from_ref)] // As above.
impl<'s> Scope<'s> {
    value_methods!(arena, ['s], ['s]);
}
