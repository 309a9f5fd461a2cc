//! Aligned memory: two functions for raw blocks, and a slice of fixed length that owns one.
//!
//! Blocks come from the global allocator, whichever it is. One case needs care: std's `System` zeroes an over-aligned
//! block by hand, which touches every page of it. From `PADDED_FROM` bytes on a block is therefore taken with the
//! alignment of a word and a little larger, so that `alloc_zeroed` gets fresh pages untouched, and begins inside it at
//! the alignment asked for:
//!
//! ```text
//!   taken                        start                          start + size
//!     |  padding  | address taken  |  the caller's block          |  unused |
//! ```
//!
//! Which form a block has follows from its size and alignment alone, so `aligned_free` knows it.
//!
//! Growable aligned vectors are not here: the `aligned-vec` crate has them, and they work under this allocator.

use crate::align::{max, CACHE_LINE};
use crate::error::{self, AllocError};
use crate::zeroable::Zeroable;
use core::alloc::Layout;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop};
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};
use core::slice;

/// From this size on, bytes, an over-aligned block is taken padded: glibc's threshold for blocks of their own pages.
const PADDED_FROM: usize = 128 << 10;

/// What a padded block is aligned to as taken: what every allocator gives, and `System` zeroes lazily.
const WORD: usize = mem::align_of::<usize>();

/// The layout that is really taken for a block, and whether it is padded.
fn taken(size: usize, align: usize) -> Result<(Layout, bool), AllocError> {
    let plain = Layout::from_size_align(size, align).map_err(|_| AllocError::BadLayout)?;
    if size < PADDED_FROM || align <= WORD {
        return Ok((plain, false));
    }
    // The start is at most `align` bytes in, and at least a word: the taken block begins at a multiple of a word.
    let padded = size.checked_add(align).ok_or(AllocError::BadLayout)?;
    let layout = Layout::from_size_align(padded, WORD).map_err(|_| AllocError::BadLayout)?;
    Ok((layout, true))
}

fn take(size: usize, align: usize, zeroed: bool) -> Result<NonNull<u8>, AllocError> {
    let (layout, padded) = taken(size, align)?;
    if size == 0 {
        // SAFETY: an alignment is not zero.
        return Ok(unsafe { NonNull::new_unchecked(ptr::without_provenance_mut(align)) });
    }
    let block = match zeroed {
        // SAFETY: the layout's size is not zero.
        true => unsafe { std::alloc::alloc_zeroed(layout) },
        // SAFETY: as above.
        false => unsafe { std::alloc::alloc(layout) },
    };
    let block = NonNull::new(block).ok_or(AllocError::OutOfMemory)?;
    if !padded {
        return Ok(block);
    }
    let addr = block.addr().get();
    let skip = align - (addr & (align - 1));
    debug_assert!(skip >= WORD && skip <= align);
    // SAFETY: `WORD <= skip <= align` (both `addr` and `align` are multiples of a word), so that the start, and the
    // word before it, are inside the `size + align` bytes taken; the word is aligned, as the start is.
    unsafe {
        let start = block.add(skip);
        start.cast::<*mut u8>().sub(1).write(block.as_ptr());
        Ok(start)
    }
}

/// Takes `size` bytes at a multiple of `align`: `ac_aligned_alloc`.
///
/// The usual `align` is 64, a cache line and the width of AVX-512. A size of zero takes nothing and gives an aligned
/// pointer that must not be read, which `aligned_free` accepts.
///
/// # Errors
/// `BadLayout` if `align` is not a power of two, or the size rounded up to it passes `isize::MAX`; `OutOfMemory` if the
/// allocator refuses.
///
/// # Examples
/// ```
/// use stepalloc::{aligned_alloc, aligned_free, AllocError};
///
/// let block = aligned_alloc(1000, 64).unwrap();
/// assert_eq!(block.addr().get() % 64, 0);
/// // SAFETY: the block was taken with these numbers and is not used again.
/// unsafe { aligned_free(block, 1000, 64) };
///
/// assert_eq!(aligned_alloc(usize::MAX - 10, 64), Err(AllocError::BadLayout));
/// assert_eq!(aligned_alloc(1, 48), Err(AllocError::BadLayout));
/// ```
pub fn aligned_alloc(size: usize, align: usize) -> Result<NonNull<u8>, AllocError> {
    take(size, align, false)
}

/// Takes `size` zeroed bytes at a multiple of `align`; the pages of a large block are not touched for it.
///
/// # Errors
/// As [`aligned_alloc`].
///
/// # Examples
/// ```
/// use stepalloc::{aligned_alloc_zeroed, aligned_free};
///
/// let block = aligned_alloc_zeroed(256, 64).unwrap();
/// // SAFETY: the block has 256 bytes, is freed once, and not used again.
/// unsafe {
///     assert_eq!(block.add(255).read(), 0);
///     aligned_free(block, 256, 64);
/// }
/// ```
pub fn aligned_alloc_zeroed(size: usize, align: usize) -> Result<NonNull<u8>, AllocError> {
    take(size, align, true)
}

/// Frees a block of [`aligned_alloc`] or [`aligned_alloc_zeroed`]: `ac_aligned_free`.
///
/// # Safety
/// `block` came from one of the two with this `size` and `align`, is freed once, and not used afterwards: its memory
/// will be another block's.
pub unsafe fn aligned_free(block: NonNull<u8>, size: usize, align: usize) {
    let known = taken(size, align);
    debug_assert!(known.is_ok(), "no block has this size and alignment");
    let Ok((layout, padded)) = known else { return };
    if size == 0 {
        return;
    }
    let block = match padded {
        // SAFETY: `take` wrote the address taken into the word before the start.
        true => unsafe { block.cast::<*mut u8>().sub(1).read() },
        false => block.as_ptr(),
    };
    // SAFETY: by the caller's promise the block was taken with this layout, and nobody uses it any more.
    unsafe { std::alloc::dealloc(block, layout) }
}

/// An owned slice of fixed length that begins at a multiple of `ALIGN`, 64 unless told otherwise.
///
/// An `ALIGN` that is not a power of two does not compile. For a vector that grows see the `aligned-vec` crate.
///
/// # Examples
/// ```
/// use stepalloc::AlignedBuf;
///
/// let mut buf: AlignedBuf<f32> = AlignedBuf::zeroed(1000);
/// buf[3] = 1.5;
/// assert_eq!(buf.as_ptr().addr() % 64, 0);
/// assert_eq!(buf.iter().sum::<f32>(), 1.5);
/// ```
/// ```compile_fail,E0080
/// let buf: stepalloc::AlignedBuf<u8, 48> = stepalloc::AlignedBuf::zeroed(1);
/// ```
pub struct AlignedBuf<T, const ALIGN: usize = CACHE_LINE> {
    start: NonNull<T>,
    len: usize,
    _owns: PhantomData<T>,
}

// SAFETY: the buffer owns its values, as a `Box<[T]>` does.
unsafe impl<T: Send, const ALIGN: usize> Send for AlignedBuf<T, ALIGN> {}
// SAFETY: a shared buffer gives shared access to its values only.
unsafe impl<T: Sync, const ALIGN: usize> Sync for AlignedBuf<T, ALIGN> {}

impl<T, const ALIGN: usize> AlignedBuf<T, ALIGN> {
    /// What the buffer begins at a multiple of, in bytes: `ALIGN`, or the alignment of `T` if that is larger.
    pub const ALIGN: usize = {
        assert!(ALIGN.is_power_of_two(), "the alignment must be a power of two");
        max(ALIGN, mem::align_of::<T>())
    };

    /// Room for `len` values, which the caller then writes; until `len` is set the buffer drops none.
    fn take(len: usize, zeroed: bool) -> Result<AlignedBuf<T, ALIGN>, AllocError> {
        let bytes = len.checked_mul(mem::size_of::<T>()).ok_or(AllocError::BadLayout)?;
        Ok(AlignedBuf {
            start: take(bytes, Self::ALIGN, zeroed)?.cast(),
            len,
            _owns: PhantomData,
        })
    }

    /// Makes a buffer of `len` values of zero bytes, whose pages are not touched for it.
    ///
    /// # Panics
    /// If the size passes `isize::MAX`; without memory it ends the process as std's collections do. The same holds for
    /// every constructor here that has a `try_` form.
    pub fn zeroed(len: usize) -> AlignedBuf<T, ALIGN>
    where
        T: Zeroable,
    {
        Self::or_refuse(Self::try_zeroed(len), len)
    }

    /// Makes a buffer of `len` values of zero bytes, whose pages are not touched for it.
    ///
    /// # Errors
    /// `BadLayout` if the size passes `isize::MAX`, `OutOfMemory` if the allocator refuses.
    pub fn try_zeroed(len: usize) -> Result<AlignedBuf<T, ALIGN>, AllocError>
    where
        T: Zeroable,
    {
        // Zero bytes are a `T`, so the room is a buffer as it is.
        Self::take(len, true)
    }

    /// Makes a buffer of `make(0)`, `make(1)`, ...
    ///
    /// # Examples
    /// ```
    /// let squares: stepalloc::AlignedBuf<usize> = stepalloc::AlignedBuf::from_fn(4, |i| i * i);
    /// assert_eq!(*squares, [0, 1, 4, 9]);
    /// ```
    pub fn from_fn(len: usize, make: impl FnMut(usize) -> T) -> AlignedBuf<T, ALIGN> {
        Self::or_refuse(Self::try_from_fn(len, make), len)
    }

    /// Makes a buffer of `make(0)`, `make(1)`, ...; without memory `make` is not called.
    ///
    /// # Errors
    /// As [`try_zeroed`](AlignedBuf::try_zeroed).
    pub fn try_from_fn(len: usize, mut make: impl FnMut(usize) -> T) -> Result<AlignedBuf<T, ALIGN>, AllocError> {
        let mut made = Filling(ManuallyDrop::new(Self::take(len, false)?), 0);
        for index in 0..len {
            let value = make(index);
            // SAFETY: there is room for `len` values.
            unsafe { made.0.start.add(index).write(value) };
            made.1 = index + 1;
        }
        Ok(made.finish())
    }

    /// Clones a slice into a buffer.
    ///
    /// # Examples
    /// ```
    /// let buf: stepalloc::AlignedBuf<u8, 4096> = stepalloc::AlignedBuf::from_slice(b"page");
    /// assert_eq!(&*buf, b"page");
    /// assert_eq!(buf.as_ptr().addr() % 4096, 0);
    /// ```
    pub fn from_slice(source: &[T]) -> AlignedBuf<T, ALIGN>
    where
        T: Clone,
    {
        Self::or_refuse(Self::try_from_slice(source), source.len())
    }

    /// Clones a slice into a buffer.
    ///
    /// # Errors
    /// As [`try_zeroed`](AlignedBuf::try_zeroed).
    pub fn try_from_slice(source: &[T]) -> Result<AlignedBuf<T, ALIGN>, AllocError>
    where
        T: Clone,
    {
        Self::try_from_fn(source.len(), |index| source[index].clone())
    }

    /// Moves the items of an iterator into a buffer; they are collected first, since the length must be known.
    ///
    /// # Errors
    /// As [`try_zeroed`](AlignedBuf::try_zeroed); the items are then dropped.
    pub fn try_from_iter(items: impl IntoIterator<Item = T>) -> Result<AlignedBuf<T, ALIGN>, AllocError> {
        let mut vec = Vec::new();
        let items = items.into_iter();
        let least = items.size_hint().0;
        vec.try_reserve(least).map_err(|_| AllocError::OutOfMemory)?;
        for item in items {
            if vec.len() == vec.capacity() {
                vec.try_reserve(1).map_err(|_| AllocError::OutOfMemory)?;
            }
            vec.push(item);
        }
        let buf = Self::take(vec.len(), false)?;
        // SAFETY: the room is for as many values as the vector has, which then no longer owns them.
        unsafe {
            ptr::copy_nonoverlapping(vec.as_ptr(), buf.start.as_ptr(), vec.len());
            vec.set_len(0);
        }
        Ok(buf)
    }

    fn or_refuse(made: Result<AlignedBuf<T, ALIGN>, AllocError>, len: usize) -> AlignedBuf<T, ALIGN> {
        match made {
            Ok(buf) => buf,
            Err(refused) => {
                let bytes = len.saturating_mul(mem::size_of::<T>());
                let layout = Layout::from_size_align(bytes, Self::ALIGN);
                error::refuse(refused, layout.unwrap_or(Layout::new::<T>()))
            }
        }
    }
}

/// A buffer whose first values are written: unwinding drops those and frees the room.
struct Filling<T, const ALIGN: usize>(ManuallyDrop<AlignedBuf<T, ALIGN>>, usize);

impl<T, const ALIGN: usize> Filling<T, ALIGN> {
    /// The buffer, all of whose values are written.
    fn finish(self) -> AlignedBuf<T, ALIGN> {
        debug_assert_eq!(self.1, self.0.len);
        let mut this = ManuallyDrop::new(self);
        // SAFETY: taken once, from a value that is not dropped.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

impl<T, const ALIGN: usize> Drop for Filling<T, ALIGN> {
    fn drop(&mut self) {
        // SAFETY: the room was taken for `len` values; the first `self.1` are written, and the guard owns them.
        unsafe { free(self.0.start, self.0.len, self.1, AlignedBuf::<T, ALIGN>::ALIGN) }
    }
}

/// Drops the first `written` values and frees the room for `len`, even if a value's `Drop` panics.
///
/// # Safety
/// The room was taken for `len` values at `align`, the first `written` are initialised, and nobody uses it any more.
unsafe fn free<T>(start: NonNull<T>, len: usize, written: usize, align: usize) {
    struct Room(NonNull<u8>, usize, usize);
    impl Drop for Room {
        fn drop(&mut self) {
            // SAFETY: by the promise of `free`.
            unsafe { aligned_free(self.0, self.1, self.2) }
        }
    }
    let _room = Room(start.cast(), len * mem::size_of::<T>(), align);
    // SAFETY: by the promise of `free`.
    unsafe { ptr::slice_from_raw_parts_mut(start.as_ptr(), written).drop_in_place() }
}

impl<T, const ALIGN: usize> Drop for AlignedBuf<T, ALIGN> {
    fn drop(&mut self) {
        // SAFETY: a buffer owns its room and all of its values.
        unsafe { free(self.start, self.len, self.len, Self::ALIGN) }
    }
}

impl<T, const ALIGN: usize> Deref for AlignedBuf<T, ALIGN> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the buffer owns `len` values from `start` on.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T, const ALIGN: usize> DerefMut for AlignedBuf<T, ALIGN> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T, const ALIGN: usize> AsRef<[T]> for AlignedBuf<T, ALIGN> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T, const ALIGN: usize> AsMut<[T]> for AlignedBuf<T, ALIGN> {
    fn as_mut(&mut self) -> &mut [T] {
        self
    }
}

impl<T: Clone, const ALIGN: usize> Clone for AlignedBuf<T, ALIGN> {
    fn clone(&self) -> Self {
        Self::from_slice(self)
    }
}

impl<T, const ALIGN: usize> Default for AlignedBuf<T, ALIGN> {
    /// An empty buffer, which takes no memory.
    fn default() -> Self {
        Self::from_fn(0, |_| unreachable!("an empty buffer makes no value"))
    }
}

impl<T: Clone, const ALIGN: usize> From<&[T]> for AlignedBuf<T, ALIGN> {
    fn from(source: &[T]) -> Self {
        Self::from_slice(source)
    }
}

impl<T, const ALIGN: usize> From<Vec<T>> for AlignedBuf<T, ALIGN> {
    fn from(source: Vec<T>) -> Self {
        source.into_iter().collect()
    }
}

impl<T, const ALIGN: usize> FromIterator<T> for AlignedBuf<T, ALIGN> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self::or_refuse(Self::try_from_iter(items), 0)
    }
}

impl<'a, T, const ALIGN: usize> IntoIterator for &'a AlignedBuf<T, ALIGN> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> slice::Iter<'a, T> {
        self.iter()
    }
}

impl<'a, T, const ALIGN: usize> IntoIterator for &'a mut AlignedBuf<T, ALIGN> {
    type Item = &'a mut T;
    type IntoIter = slice::IterMut<'a, T>;

    fn into_iter(self) -> slice::IterMut<'a, T> {
        self.iter_mut()
    }
}

impl<T: fmt::Debug, const ALIGN: usize> fmt::Debug for AlignedBuf<T, ALIGN> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: PartialEq, const A: usize, const B: usize> PartialEq<AlignedBuf<T, B>> for AlignedBuf<T, A> {
    fn eq(&self, other: &AlignedBuf<T, B>) -> bool {
        **self == **other
    }
}

impl<T: Eq, const ALIGN: usize> Eq for AlignedBuf<T, ALIGN> {}

impl<T: Hash, const ALIGN: usize> Hash for AlignedBuf<T, ALIGN> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state)
    }
}
