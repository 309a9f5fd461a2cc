//! The error of the explicit pieces, and the one exit of their infallible forms.
//!
//! The global allocator reports failure as `GlobalAlloc` does, with a null pointer, and never comes here.
#![forbid(unsafe_code)]

use core::alloc::Layout;
use core::fmt;

/// Why memory was not handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocError {
    /// The size, rounded up to the alignment, passes `isize::MAX`, or the alignment is not a power of two.
    BadLayout,
    /// The system refused the memory.
    OutOfMemory,
    /// A limit that the caller set (`max_bytes`, a fixed capacity) would be passed.
    LimitReached,
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AllocError::BadLayout => "size and alignment do not make a layout",
            AllocError::OutOfMemory => "the system refused the memory",
            AllocError::LimitReached => "the limit set for this allocator is reached",
        })
    }
}

impl std::error::Error for AllocError {}

/// Ends an infallible call whose memory was refused, as std's collections do.
#[cold]
pub fn handle_alloc_error(layout: Layout) -> ! {
    std::alloc::handle_alloc_error(layout)
}

/// Ends an infallible call of an explicit piece: a panic for what the caller can mend (a bad layout, a limit of his
/// own), the exit of std's collections where the system has no memory.
#[cold]
#[track_caller]
pub fn refuse(error: AllocError, layout: Layout) -> ! {
    match error {
        AllocError::OutOfMemory => handle_alloc_error(layout),
        AllocError::BadLayout | AllocError::LimitReached => panic!("{error}"),
    }
}
