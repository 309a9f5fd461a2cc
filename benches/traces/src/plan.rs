//! The limit: every block's place packed beforehand, knowing all sizes and lifetimes, as no allocator can.
//!
//! A block has one place for its whole life, of its largest size. Blocks of `LARGE` bytes or more, or of an alignment above 16, are placed largest first,
//! each at the lowest offset where no block placed before it lives at the same time; the many small ones by first fit in
//! the order of their births, in an area after them.
use std::alloc::Layout;
use std::collections::BTreeMap;

use stepalloc_measure::mapped::Mapped;

use crate::replay::Memory;
use crate::trace::{Op, Trace};

const LARGE: u64 = 4096;

#[derive(Clone, Copy)]
struct Life {
    block: usize,
    size: u64,
    align: u64,
    begin: usize,
    end: usize,
}

/// The offset of every block, by its number; the last value is the total.
pub fn pack(trace: &Trace) -> Vec<u64> {
    let lives = lives(trace);
    let mut places = vec![0; trace.block_count + 1];
    let (mut large, small): (Vec<Life>, Vec<Life>) = lives
        .into_iter()
        .partition(|life| life.size >= LARGE || life.align > 16);
    large.sort_by_key(|life| std::cmp::Reverse(life.size));
    let large_end = pack_large(&large, &mut places);
    let total = pack_small(&small, large_end.next_multiple_of(4096), &mut places);
    places[trace.block_count] = total;
    places
}

fn lives(trace: &Trace) -> Vec<Life> {
    let mut lives: Vec<Option<Life>> = vec![None; trace.block_count];
    for (index, record) in trace.records.iter().enumerate() {
        let block = record.block as usize;
        let align = (1_u64 << record.align_log2).max(if record.size >= LARGE { 64 } else { 16 });
        let size = record.size.next_multiple_of(align);
        match (record.op, lives.get_mut(block)) {
            (Op::Alloc | Op::AllocZeroed, Some(life)) => {
                *life = Some(Life {
                    block,
                    size,
                    align,
                    begin: index,
                    end: usize::MAX,
                });
            }
            (Op::Realloc, Some(Some(life))) => life.size = life.size.max(size),
            (Op::Free, Some(Some(life))) => life.end = index,
            _ => {}
        }
    }
    lives.into_iter().flatten().collect()
}

fn pack_large(lives: &[Life], places: &mut [u64]) -> u64 {
    // Kept in the order of their offsets, so that the first gap is found in one pass.
    let mut placed: Vec<(u64, Life)> = Vec::new();
    let mut total = 0;
    for life in lives {
        let mut offset = 0;
        for (start, other) in &placed {
            if other.begin < life.end && life.begin < other.end {
                if offset + life.size <= *start {
                    break;
                }
                offset = offset.max((start + other.size).next_multiple_of(life.align));
            }
        }
        let index = placed.partition_point(|(start, _)| *start < offset);
        placed.insert(index, (offset, *life));
        places[life.block] = offset;
        total = total.max(offset + life.size);
    }
    total
}

fn pack_small(lives: &[Life], base: u64, places: &mut [u64]) -> u64 {
    let mut events: Vec<(usize, bool, &Life)> = Vec::new();
    for life in lives {
        events.push((life.begin, true, life));
        if life.end != usize::MAX {
            events.push((life.end, false, life));
        }
    }
    events.sort_by_key(|(index, ..)| *index);
    let (mut holes, mut end) = (BTreeMap::<u64, u64>::new(), base);
    for (_, is_birth, life) in events {
        if is_birth {
            let hole = holes
                .iter()
                .find(|(_, size)| **size >= life.size)
                .map(|(start, size)| (*start, *size));
            places[life.block] = match hole {
                Some((start, size)) => {
                    holes.remove(&start);
                    if size > life.size {
                        holes.insert(start + life.size, size - life.size);
                    }
                    start
                }
                None => {
                    end += life.size;
                    end - life.size
                }
            };
        } else {
            let (mut start, mut size) = (places[life.block], life.size);
            if let Some(after) = holes.remove(&(start + size)) {
                size += after;
            }
            if let Some((before, length)) = holes.range(..start).next_back().map(|(start, size)| (*start, *size)) {
                if before + length == start {
                    holes.remove(&before);
                    (start, size) = (before, length + size);
                }
            }
            if size > 0 {
                holes.insert(start, size);
            }
        }
    }
    end
}

/// Memory by plan.
pub struct Planned {
    base: *mut u8,
    places: Mapped<u64>,
}

// SAFETY: `base` is where a mapping begins that lives as long as the process; the places are only read.
unsafe impl Sync for Planned {}

impl Planned {
    /// Reserves the plan's memory, untouched.
    pub fn new(places: Mapped<u64>) -> Self {
        let total = places.last().copied().unwrap_or(0).max(1) as usize;
        // SAFETY: a new anonymous mapping at a place of the kernel's choice touches no memory in use.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                total,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(base != libc::MAP_FAILED, "mmap of {total} bytes refused");
        Planned {
            base: base.cast(),
            places,
        }
    }
}

impl Memory for Planned {
    unsafe fn make(&self, block: u32, layout: Layout, zeroed: bool) -> *mut u8 {
        let offset = self.places[block as usize] as usize;
        // SAFETY: the plan gives the block `layout.size()` bytes at `offset`, inside the mapping.
        unsafe {
            let place = self.base.add(offset);
            if zeroed {
                place.write_bytes(0, layout.size());
            }
            place
        }
    }
    unsafe fn free(&self, _place: *mut u8, _layout: Layout) {}
    unsafe fn resize(&self, place: *mut u8, _layout: Layout, _new_size: usize) -> *mut u8 {
        place
    }
}
