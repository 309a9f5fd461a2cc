//! stub
use std::alloc::{GlobalAlloc, Layout, System};
/// The allocator.
pub struct StepAlloc<A = System> {
    backing: A,
    simd_threshold: usize,
    large_threshold: usize,
}
impl StepAlloc<System> {
    /// over System
    pub const fn new() -> Self {
        Self::with_backing(System)
    }
}
impl<A> StepAlloc<A> {
    /// over any
    pub const fn with_backing(backing: A) -> Self {
        StepAlloc {
            backing,
            simd_threshold: 2048,
            large_threshold: 65536,
        }
    }
    /// from which size 64-byte alignment outside scopes
    pub const fn simd_threshold(mut self, bytes: usize) -> Self {
        self.simd_threshold = bytes;
        self
    }
    /// from which size spans outside scopes
    pub const fn large_threshold(mut self, bytes: usize) -> Self {
        self.large_threshold = bytes;
        self
    }
}
// SAFETY: passes everything on.
unsafe impl<A: GlobalAlloc> GlobalAlloc for StepAlloc<A> {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        unsafe { self.backing.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        unsafe { self.backing.dealloc(p, l) }
    }
    unsafe fn alloc_zeroed(&self, l: Layout) -> *mut u8 {
        unsafe { self.backing.alloc_zeroed(l) }
    }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, n: usize) -> *mut u8 {
        unsafe { self.backing.realloc(p, l, n) }
    }
}
/// installed?
pub fn is_installed() -> bool {
    false
}
