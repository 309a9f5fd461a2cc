//! Slices in anonymous mappings: the tables of a bench live here, so that neither their bytes nor their page faults are
//! counted as the allocator's. Every page is touched before `new` returns.
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A fixed slice of `T` in a mapping of its own.
pub struct Mapped<T: Copy> {
    base: NonNull<T>,
    len: usize,
}

impl<T: Copy> Mapped<T> {
    /// `len` copies of `fill`.
    ///
    /// # Panics
    /// When the system refuses the mapping.
    pub fn new(len: usize, fill: T) -> Self {
        assert!(align_of::<T>() <= 4096);
        let bytes = (len * size_of::<T>()).max(1);
        // SAFETY: a new anonymous mapping at a place of the kernel's choice touches no memory in use.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert!(base != libc::MAP_FAILED, "mmap of {bytes} bytes refused");
        let base = NonNull::new(base.cast::<T>()).expect("mmap never returns the page at 0");
        for index in 0..len {
            // SAFETY: `index < len`, and the mapping holds `len` values of T at T's alignment (a page's is larger).
            unsafe { base.add(index).write(fill) };
        }
        Mapped { base, len }
    }

    /// A copy of `values`.
    pub fn from_slice(values: &[T]) -> Self {
        let mut copy = match values.first() {
            Some(&first) => Self::new(values.len(), first),
            None => Mapped {
                base: NonNull::dangling(),
                len: 0,
            },
        };
        copy.copy_from_slice(values);
        copy
    }
}

impl<T: Copy> Deref for Mapped<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `new` wrote `len` values; the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl<T: Copy> DerefMut for Mapped<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl<T: Copy> Drop for Mapped<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping of `new`, of this length, to which no reference is left.
            unsafe { libc::munmap(self.base.as_ptr().cast(), (self.len * size_of::<T>()).max(1)) };
        }
    }
}

// SAFETY: `Mapped` owns its values as a `Box<[T]>` does.
unsafe impl<T: Copy + Send> Send for Mapped<T> {}
// SAFETY: as above; shared access gives only `&[T]`.
unsafe impl<T: Copy + Sync> Sync for Mapped<T> {}
