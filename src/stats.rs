//! Figures: process totals, the calling thread's heap, and memory given back on demand.
//!
//! Each byte is in one class. `reserved = uncommitted + committed`, `committed = table + in_use + pinned + free`.

use crate::layout::{GRANULE, REGION_BYTES, UNIT, WORD_GRANULES};
use crate::scope::Fallbacks;
use crate::segment::{self, Segment};
use crate::sync::Ordering;
use crate::{sys, thread};

/// Totals over all arenas of the process.
///
/// Owners publish on slow paths (when a hole is refilled from fresh memory, when a span is made, resized or freed, when a
/// thread ends), and the small area's bits are read as they stand. So while other threads work, `in_use_bytes` counts
/// each thread's current holes (at most 64 KiB each) and what it last freed of others' (at most 16 KiB) as in use, remotely
/// freed spans as in use until their owner folds them, and the rest is as of each owner's last slow path. With all threads
/// at rest the sums are exact but for those three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Address space set aside for arenas, bytes; it costs no memory.
    pub reserved_bytes: usize,
    /// Usable part of it, bytes: `table_bytes + in_use_bytes + pinned_bytes + free_bytes`. Not all of it is resident.
    pub committed_bytes: usize,
    /// The rest of it, bytes: `reserved_bytes - committed_bytes`.
    pub uncommitted_bytes: usize,
    /// Headers, maps and tables, bytes.
    pub table_bytes: usize,
    /// Live blocks of the arenas, bytes, rounded to what they occupy: whole granules of 16 bytes, from 64 bytes on whole
    /// cache lines, and whole units of 1 KiB for large ones.
    pub in_use_bytes: usize,
    /// Free bytes on pages that a live small block keeps from being given back.
    pub pinned_bytes: usize,
    /// Other free bytes: ready for the next block, resident or not.
    pub free_bytes: usize,
    /// Segments that have an owner now.
    pub segments: usize,
    /// Segments that had an owner at any time.
    pub segments_peak: usize,
    /// Scopes entered so far: those of ended threads, of this thread, and of others as of their last slow path.
    pub scopes_entered: u64,
    /// Requests so far that an arena should have served and the backing did.
    pub fallbacks: Fallbacks,
}

/// The calling thread's arena, exact: remote frees folded in, the hole counted as free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeapStats {
    /// Whether the thread has an arena; if not, all bytes are 0.
    pub has_segment: bool,
    /// Address space of the thread's segment, bytes.
    pub reserved_bytes: usize,
    /// Usable part of it, bytes: `table_bytes + in_use_bytes + pinned_bytes + free_bytes`.
    pub committed_bytes: usize,
    /// Headers, maps and tables, bytes.
    pub table_bytes: usize,
    /// Live blocks, bytes, rounded to what they occupy.
    pub in_use_bytes: usize,
    /// The part of it in small blocks.
    pub small_in_use_bytes: usize,
    /// The part of it in large blocks.
    pub large_in_use_bytes: usize,
    /// Free bytes on pages that a live small block keeps from being given back.
    pub pinned_bytes: usize,
    /// Other free bytes.
    pub free_bytes: usize,
    /// Scopes this thread has entered, suspensions by `outside_scope` included.
    pub scopes_entered: u64,
    /// As [`scope_depth`](crate::scope_depth).
    pub depth: usize,
}

/// The bytes of one segment by class.
#[derive(Default, Clone, Copy)]
struct Classes {
    table: usize,
    small_in_use: usize,
    large_in_use: usize,
    pinned: usize,
    free: usize,
}

impl Classes {
    fn of(segment: &Segment) -> Classes {
        let l = &segment.layout;
        // SAFETY: the segment was claimed once, so its head is committed.
        let published = unsafe { &segment.header().published };
        // Relaxed: snapshots; the maps are committed as far as any `small_high` ever published.
        let high = published.small_high.load(Ordering::Relaxed);
        let small_committed = published.small_committed.load(Ordering::Relaxed);
        let span_committed = published.span_committed.load(Ordering::Relaxed);
        let tables = published.span_tables.load(Ordering::Relaxed);
        let large = published.span_used.load(Ordering::Relaxed).min(span_committed);
        // SAFETY: as above; the map is only read, below `high`.
        let map = unsafe { segment.live_map() };
        let page_words = sys::page_size() / GRANULE / WORD_GRANULES;
        let (mut live, mut pinned, mut word) = (0, 0, 0);
        while word < high.div_ceil(WORD_GRANULES) {
            let on_page: usize = (word..word + page_words)
                .take_while(|&word| word < small_committed / WORD_GRANULES)
                .map(|word| map.peek(word).count_ones() as usize)
                .sum();
            live += on_page;
            if on_page != 0 {
                pinned += page_words * WORD_GRANULES - on_page;
            }
            word += page_words;
        }
        let map_bytes = 2 * (small_committed / 8).next_multiple_of(sys::page_size());
        Classes {
            table: l.head_bytes + map_bytes + (tables * REGION_BYTES).next_multiple_of(sys::page_size()),
            small_in_use: live * GRANULE,
            large_in_use: large * UNIT,
            pinned: pinned * GRANULE,
            free: (small_committed * GRANULE).saturating_sub((live + pinned) * GRANULE)
                + (span_committed - large) * UNIT,
        }
    }

    fn committed(&self) -> usize {
        self.table + self.small_in_use + self.large_in_use + self.pinned + self.free
    }
}

/// Totals over all arenas of the process; see [`Stats`] for how stale they may be. Costs time in proportion to the small
/// blocks' memory: a pass over one bit for 16 bytes.
///
/// # Examples
/// ```
/// let stats = stepalloc::stats();
/// assert_eq!(stats.reserved_bytes, stats.committed_bytes + stats.uncommitted_bytes);
/// ```
pub fn stats() -> Stats {
    thread::tell();
    let hole = thread::with_heap(|heap| heap.settle());
    let mut stats = Stats {
        reserved_bytes: segment::reserved_bytes(),
        ..Stats::default()
    };
    segment::each_made(|segment| {
        let classes = Classes::of(&segment);
        stats.committed_bytes += classes.committed();
        stats.table_bytes += classes.table;
        stats.in_use_bytes += classes.small_in_use + classes.large_in_use;
        stats.pinned_bytes += classes.pinned;
        stats.free_bytes += classes.free;
        stats.segments += usize::from(segment::is_owned(segment.index));
        stats.segments_peak += 1;
    });
    // This thread's hole is known.
    let hole = hole.min(stats.in_use_bytes);
    stats.in_use_bytes -= hole;
    stats.free_bytes += hole;
    stats.uncommitted_bytes = stats.reserved_bytes.saturating_sub(stats.committed_bytes);
    stats.scopes_entered = thread::entered();
    let [no_reservation, no_segment, no_room, commit_refused, thread_ending] = thread::fallbacks();
    stats.fallbacks = Fallbacks {
        no_reservation,
        no_segment,
        no_room,
        commit_refused,
        thread_ending,
    };
    stats
}

/// The calling thread's arena, exact but for what others freed of it last: at most 16 KiB each. Costs as [`stats`] does, for
/// one segment.
///
/// # Examples
/// ```
/// let heap = stepalloc::heap_stats();
/// assert_eq!(heap.in_use_bytes, heap.small_in_use_bytes + heap.large_in_use_bytes);
/// ```
pub fn heap_stats() -> HeapStats {
    thread::tell();
    thread::with_heap(|heap| {
        let hole = heap.settle();
        let mut stats = HeapStats {
            scopes_entered: heap.entered(),
            depth: heap.depth(),
            ..HeapStats::default()
        };
        let Some(segment) = heap.segment() else { return stats };
        let classes = Classes::of(&segment);
        stats.has_segment = true;
        stats.reserved_bytes = segment.layout.bytes;
        stats.committed_bytes = classes.committed();
        stats.table_bytes = classes.table;
        stats.small_in_use_bytes = classes.small_in_use - hole;
        stats.large_in_use_bytes = classes.large_in_use;
        stats.in_use_bytes = stats.small_in_use_bytes + stats.large_in_use_bytes;
        stats.pinned_bytes = classes.pinned;
        stats.free_bytes = classes.free + hole;
        stats
    })
}

/// Gives the pages of free arena memory back to the system now: the calling thread's, and those of threads that have
/// ended. Returns the bytes that were resident and are not any more.
///
/// Other live threads keep theirs; they give back at their end, and what no step has used for some time. The next step
/// faults its pages in again, so call this when a phase is over, not in every step.
///
/// # Examples
/// ```
/// stepalloc::arena_scope(|| drop(vec![1u8; 1 << 20]));
/// let _bytes = stepalloc::trim();
/// ```
pub fn trim() -> usize {
    thread::tell();
    let own = thread::with_heap(|heap| (heap.trim(), heap.segment_index()));
    let mut given = own.0;
    segment::each_made(|segment| {
        if Some(segment.index) != own.1 && !segment::is_owned(segment.index) {
            given += thread::reclaim(segment.index, true);
        }
    });
    given
}
