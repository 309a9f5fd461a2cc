//! stub
/// Process totals.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Stats {
    /// bytes
    pub reserved_bytes: usize,
}
/// This thread's.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct HeapStats {
    /// bytes
    pub in_use_bytes: usize,
}
/// totals
pub fn stats() -> Stats {
    Stats::default()
}
/// this thread's
pub fn heap_stats() -> HeapStats {
    HeapStats::default()
}
/// give back
pub fn trim() -> usize {
    0
}
