//! Which types may be made of zero bytes, so that zeroed memory needs no pass over it.
//!
//! The trait is the proof that `alloc_slice_zeroed` and `AlignedBuf::zeroed` need: pages fresh from the system are
//! zero already, and calling them a `[T]` is sound exactly for these types.

use core::mem::MaybeUninit;

/// A type whose all-zero bytes are a valid value.
///
/// # Safety
/// A `T` whose bytes are all zero must be a valid, fully initialised value: no reference, no `NonZero`, no enum
/// without a variant at zero.
///
/// # Examples
/// ```
/// use stepalloc::{Arena, Zeroable};
///
/// #[derive(Clone, Copy)]
/// struct Weight(f32);
/// // SAFETY: a struct of one f32, for which zero bytes are 0.0.
/// unsafe impl Zeroable for Weight {}
///
/// let arena = Arena::new();
/// assert_eq!(arena.alloc_slice_zeroed::<Weight>(3)[2].0, 0.0);
/// ```
pub unsafe trait Zeroable: Sized {}

macro_rules! zeroable {
    ($($type:ty),*) => {
        $(
            // SAFETY: a plain number (or bool, char, unit) for which zero bytes are a value.
            unsafe impl Zeroable for $type {}
        )*
    };
}
zeroable!(
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    bool,
    char,
    ()
);

// SAFETY: each element is a value when its bytes are zero, and an array is its elements.
unsafe impl<T: Zeroable, const N: usize> Zeroable for [T; N] {}

// SAFETY: every byte pattern is a valid MaybeUninit.
unsafe impl<T> Zeroable for MaybeUninit<T> {}

// SAFETY: zero bytes are the null pointer.
unsafe impl<T> Zeroable for *mut T {}

// SAFETY: zero bytes are the null pointer.
unsafe impl<T> Zeroable for *const T {}

// SAFETY: std promises that zero bytes of an `Option<Box<T>>` or of an `Option` of a reference are `None`.
unsafe impl<T> Zeroable for Option<Box<T>> {}

// SAFETY: as above.
unsafe impl<T> Zeroable for Option<&T> {}
