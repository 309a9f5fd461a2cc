//! Where things are inside a segment, and the arithmetic of granules, units and chunks: integers in, integers out.
//!
//! ```text
//! segment, a power of two
//! ├── head: the header, then marks of the small area's chunks, then the longest free span of each region
//! ├── live map       one bit for a granule of the small area
//! ├── remote map     as long
//! ├── span tables    a record for each region of the span area
//! ├── small area     a quarter of the segment; a multiple of 64 KiB
//! └── span area      the rest, in units
//! ```
//!
//! The maps and tables are committed in step with the areas that they describe, so that a large segment costs
//! address space only. Everything here is `const`, total and free of panics.
#![forbid(unsafe_code)]

use crate::align::{align_down, align_up, max, min, CACHE_LINE};

/// Bytes that one bit of the live map stands for: the smallest alignment that every allocator must give on 64-bit
/// systems, and so the smallest block.
pub const GRANULE: usize = 16;
/// Granules that one word of a map stands for.
pub const WORD_GRANULES: usize = 64;
/// Bytes that one word of a map stands for: 1 KiB.
pub const WORD_BYTES: usize = GRANULE * WORD_GRANULES;
/// The longest block whose bits are in at most two words, bytes: the inline paths stop here.
pub const SHORT_MAX: usize = WORD_BYTES;
/// The longest block of the small area, bytes. Longer ones get spans: from here the rounding to a unit costs at most
/// an eighth, and first fit keeps them dense. (With 32 KiB the recorded random forest, whose live blocks are mostly of 14
/// KiB, needs 1.32 times its live peak; with 8 KiB 1.09.)
pub const SMALL_MAX: usize = 8 * 1024;
/// Freed blocks of as many granules that are remembered while a thread recycles.
pub const MAGAZINE_ROOM: usize = 256;
/// Chunks of the small area that are warm together: half a megabyte.
pub const WARM_CHUNKS: usize = 8;
/// Bytes of all magazines: a `u32` for each block, for each number of granules of a short block.
const MAGAZINES_BYTES: usize = SHORT_MAX / GRANULE * MAGAZINE_ROOM * 4;
/// The largest alignment of the small area, bytes; beyond it a block gets a span.
pub const SMALL_ALIGN_MAX: usize = 4096;
/// From this size a block in a scope is aligned to a cache line, bytes.
pub const LINE_FROM: usize = CACHE_LINE;

/// Bytes of a unit, the grain of spans: a quarter of a page. Blocks just over `SMALL_MAX` lose little to rounding, and
/// tensors of a power of two do not all begin at the same place of a page.
pub const UNIT: usize = 1024;
/// Units of a region, whose tables stand together: 4 MiB.
pub const REGION_UNITS: usize = 4096;
/// Bytes that one use mark stands for, in both areas.
pub const CHUNK: usize = 64 * 1024;
/// Units of a chunk.
pub const CHUNK_UNITS: usize = CHUNK / UNIT;
/// Granules of a chunk.
pub const CHUNK_GRANULES: usize = CHUNK / GRANULE;
/// The longest hole, granules: its bits are 64 words, so that taking or giving it up is bounded.
pub const HOLE_MAX: usize = 64 * WORD_GRANULES;

/// Parts of a segment start at multiples of this, the largest page size of the systems served.
pub const PART: usize = 64 * 1024;
/// Room for the header at the start of a segment, bytes.
pub const HEADER_BYTES: usize = 4096;
/// Bytes of a huge page where pages have 4 KiB: what one page of the page table maps.
pub const HUGE_PAGE: usize = 2 * 1024 * 1024;
/// The areas start at multiples of this, so that huge pages can fill them.
const AREA_ALIGN: usize = HUGE_PAGE;
/// The smallest segment, bytes.
pub const SEGMENT_MIN: usize = 8 * 1024 * 1024;
/// The largest segment, bytes: 64 GiB, or what an address of 32 bits can say (no system of those has segments).
pub const SEGMENT_MAX: usize = 1 << min(36, usize::BITS as usize - 4);
/// No reservation has more segments.
pub const SEGMENTS_MAX: usize = 256;

/// Bytes behind each block that nobody may use, in the builds that check blocks: see `guard`.
pub const GUARD: usize = if cfg!(any(feature = "hardened", feature = "asan")) {
    16
} else {
    0
};

/// The span that a block of `size` bytes needs, in units.
#[inline]
pub const fn units(size: usize) -> usize {
    max(align_up(size.wrapping_add(GUARD), UNIT) / UNIT, 1)
}

/// One less than the bytes that a block of the small area occupies, from one less than its size: whole granules, and whole
/// cache lines from [`LINE_FROM`] on, so that the next such block needs no gap before it.
#[inline(always)]
pub const fn last_byte(size_less_one: usize) -> usize {
    size_less_one | line_mask(size_less_one)
}

/// One less than the alignment that the size alone asks for in the small area.
#[inline(always)]
pub const fn line_mask(size_less_one: usize) -> usize {
    if size_less_one >= LINE_FROM - 1 {
        CACHE_LINE - 1
    } else {
        GRANULE - 1
    }
}

/// How many granules of a block are behind its first, from one less than its size; `is_line`: it is 64 bytes or more.
#[inline(always)]
pub const fn granules_behind(size_less_one: usize, is_line: bool) -> usize {
    (size_less_one / GRANULE) | ((CACHE_LINE / GRANULE - 1) * is_line as usize)
}

/// The granules that a block of `size` bytes occupies; size 0 counts as 1.
#[inline(always)]
pub const fn granules(size: usize) -> usize {
    last_byte(max(size, 1).wrapping_add(GUARD).wrapping_sub(1)).wrapping_add(1) / GRANULE
}

/// The bits of `count` granules (1 to 64) from bit `first` on that fall into the first word.
#[inline(always)]
pub const fn low_mask(first: usize, count: usize) -> u64 {
    (u64::MAX >> (64usize.wrapping_sub(count) & 63)) << (first & 63)
}

/// The alignment that a block in a scope gets, bytes: what was asked, 64 from [`LINE_FROM`] on, a granule at least.
#[inline(always)]
pub const fn scope_align(size: usize, align: usize) -> usize {
    max(align, line_mask(max(size, 1).wrapping_sub(1)).wrapping_add(1))
}

/// Offsets and lengths of a segment's parts, bytes unless named otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLayout {
    /// The whole segment, a power of two.
    pub bytes: usize,
    /// The header, marks, stayed pages, region table, what backs the segment and magazines, committed when it is claimed first.
    pub head_bytes: usize,
    /// Three bitmaps of the small area's chunks, each of `mark_words` words.
    pub marks: usize,
    /// Words of one bitmap of marks.
    pub mark_words: usize,
    /// For each chunk of the small area which of its pages stayed, an array of `u16`.
    pub stayed: usize,
    /// The longest free span of each region, an array of `u32`.
    pub region_longest: usize,
    /// What backs each 2 MiB of the segment, a byte each.
    pub backing: usize,
    /// A byte for every `WARM_CHUNKS` chunks of the small area: whether a block was made in the place of another there of late.
    pub warm: usize,
    /// A magazine of `MAGAZINE_ROOM` times `u32` for each number of granules of a short block.
    pub magazines: usize,
    /// The live map.
    pub live: usize,
    /// The remote map.
    pub remote: usize,
    /// The region records.
    pub tables: usize,
    /// The small area.
    pub small: usize,
    /// Bytes of the small area.
    pub small_bytes: usize,
    /// The span area.
    pub spans: usize,
    /// Units of the span area.
    pub span_units: usize,
    /// Regions of the span area, the last perhaps in part.
    pub regions: usize,
}

/// Bytes of a region's record: two tables of `u32`, the remote bits, two levels of longest free spans, chunk marks.
pub const REGION_BYTES: usize = 36 * 1024;

impl SegmentLayout {
    /// Divides a segment of `bytes`, a power of two from [`SEGMENT_MIN`] to [`SEGMENT_MAX`].
    pub const fn for_size(bytes: usize) -> SegmentLayout {
        let small_bytes = bytes / 4;
        let mark_words = max(small_bytes / CHUNK / 64, 1);
        let regions_most = bytes / (REGION_UNITS * UNIT) + 1;
        let marks = HEADER_BYTES;
        let stayed = marks + mark_words * 8 * 3;
        let region_longest = stayed + mark_words * 64 * 2;
        let backing = region_longest + regions_most * 4;
        let warm = backing + bytes / HUGE_PAGE;
        let magazines = align_up(warm + small_bytes.div_ceil(CHUNK * WARM_CHUNKS), CACHE_LINE);
        let head_bytes = align_up(magazines + MAGAZINES_BYTES, PART);
        let map_bytes = align_up(small_bytes / GRANULE / 8, PART);
        let live = head_bytes;
        let remote = live + map_bytes;
        let tables = remote + map_bytes;
        let area_align = min(AREA_ALIGN, bytes / 16);
        let small = align_up(tables + align_up(regions_most * REGION_BYTES, PART), area_align);
        let spans = align_up(small + small_bytes, area_align);
        let span_units = align_down(bytes - spans, CHUNK) / UNIT;
        SegmentLayout {
            bytes,
            head_bytes,
            marks,
            mark_words,
            stayed,
            region_longest,
            backing,
            warm,
            magazines,
            live,
            remote,
            tables,
            small,
            small_bytes,
            spans,
            span_units,
            regions: span_units.div_ceil(REGION_UNITS),
        }
    }

    /// Granules of the small area.
    pub const fn small_granules(&self) -> usize {
        self.small_bytes / GRANULE
    }
}

/// Divides a reservation of `bytes` into segments: the bytes of one (a power of two) and how many; `None` if too small.
///
/// 16 TiB become 256 segments of 64 GiB. With less room the segments shrink to 1 GiB before their number does: a
/// thread without a segment only loses speed, while a segment that holds no tensor serves nobody.
pub const fn divide(bytes: usize) -> Option<(usize, usize)> {
    let wish = max(bytes / SEGMENTS_MAX, min(bytes / 8, 1 << 30));
    let wish = max(min(wish, SEGMENT_MAX), SEGMENT_MIN);
    let size = 1 << (usize::BITS - 1 - wish.leading_zeros());
    let count = min(bytes / size, SEGMENTS_MAX);
    if count == 0 {
        None
    } else {
        Some((size, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_agree_with_setting_bit_by_bit() {
        for first in 0..64 {
            for count in 1..=64 {
                let mut bits = 0u128;
                for bit in first..first + count {
                    bits |= 1 << bit;
                }
                assert_eq!(low_mask(first, count), bits as u64, "{first} {count}");
            }
        }
    }

    #[test]
    fn the_constants_are_what_they_are_said_to_be() {
        assert_eq!((GRANULE, WORD_BYTES, SHORT_MAX), (16, 1 << 10, 1 << 10));
        assert_eq!((SMALL_MAX, SMALL_ALIGN_MAX, LINE_FROM), (8 << 10, 4 << 10, 64));
        assert_eq!((UNIT, UNIT * REGION_UNITS, CHUNK), (1 << 10, 4 << 20, 64 << 10));
        assert_eq!((CHUNK_UNITS * UNIT, CHUNK_GRANULES * GRANULE), (CHUNK, CHUNK));
        assert_eq!((HOLE_MAX * GRANULE, PART, HEADER_BYTES), (64 << 10, 64 << 10, 4 << 10));
        assert_eq!((AREA_ALIGN, SEGMENT_MIN, REGION_BYTES), (2 << 20, 8 << 20, 36 << 10));
        #[cfg(target_pointer_width = "64")]
        assert_eq!(SEGMENT_MAX, 64 << 30);
    }

    #[test]
    fn sizes_become_granules_and_units() {
        for size in 0..5_000 {
            let whole = size.max(1) + GUARD;
            let line = if whole >= 64 { 64 } else { 16 };
            assert_eq!(granules(size), whole.next_multiple_of(line) / GRANULE);
            assert_eq!(units(size), whole.div_ceil(UNIT));
            let line = if size >= 64 { 64 } else { 16 };
            assert_eq!(line_mask(size.max(1) - 1), line - 1);
            let behind = size.max(1).next_multiple_of(line) / GRANULE - 1;
            assert_eq!(granules_behind(size.max(1) - 1, line == 64), behind);
            for shift in 0..14 {
                assert_eq!(scope_align(size, 1 << shift), line.max(1 << shift));
            }
        }
    }

    #[test]
    fn parts_of_every_segment_follow_each_other_and_fit() {
        let mut bytes = SEGMENT_MIN;
        while bytes <= SEGMENT_MAX {
            let l = SegmentLayout::for_size(bytes);
            let map_bytes = l.small_granules() / 8;
            // As tight as the parts' alignment lets them be.
            let part = |bytes: usize| bytes.next_multiple_of(PART);
            assert_eq!(
                (l.small_bytes * 4, l.small_granules() * GRANULE),
                (bytes, l.small_bytes)
            );
            assert_eq!(l.mark_words, (l.small_bytes / CHUNK).div_ceil(64));
            let most = bytes / (4 << 20) + 1;
            assert_eq!(l.marks, HEADER_BYTES);
            assert_eq!(l.stayed, HEADER_BYTES + 24 * l.mark_words);
            assert_eq!(l.region_longest, l.stayed + 128 * l.mark_words);
            assert_eq!(l.backing, l.region_longest + 4 * most);
            assert_eq!(l.warm, l.backing + bytes / (2 << 20));
            assert_eq!(l.magazines, (l.warm + l.small_bytes / (512 << 10)).next_multiple_of(64));
            assert_eq!(l.head_bytes, part(l.magazines + 64 * 256 * 4));
            assert_eq!((l.live, l.remote), (l.head_bytes, l.head_bytes + part(map_bytes)));
            assert_eq!(l.tables, l.remote + part(map_bytes));
            let area = (2 << 20).min(bytes / 16);
            assert_eq!(l.small, (l.tables + part(most * REGION_BYTES)).next_multiple_of(area));
            assert_eq!(l.spans, (l.small + l.small_bytes).next_multiple_of(area));
            assert_eq!(l.span_units, (bytes - l.spans) / CHUNK * CHUNK_UNITS);
            assert_eq!(l.regions, l.span_units.div_ceil(REGION_UNITS));
            assert!(l.marks >= HEADER_BYTES && l.marks + l.mark_words * 24 <= l.stayed);
            assert!(l.mark_words * 64 * CHUNK >= l.small_bytes);
            assert!(l.stayed + l.small_bytes / CHUNK * 2 <= l.region_longest);
            assert!(l.region_longest + l.regions * 4 <= l.backing);
            assert!(l.head_bytes <= l.live && l.live + map_bytes <= l.remote);
            assert!(l.remote + map_bytes <= l.tables && l.tables + l.regions * REGION_BYTES <= l.small);
            assert!(l.small + l.small_bytes <= l.spans && l.spans + l.span_units * UNIT <= bytes);
            assert!(l.span_units * UNIT >= bytes / 2, "{bytes}: {l:?}");
            assert!(l.regions * REGION_UNITS >= l.span_units && l.span_units < 1 << 31);
            for part in [l.live, l.remote, l.tables, l.small, l.spans] {
                assert_eq!(part % PART, 0);
            }
            bytes *= 2;
        }
    }

    #[test]
    fn reservations_divide_into_segments_that_fit() {
        assert_eq!(divide(1 << 44), Some((1 << 36, 256)));
        assert_eq!(divide(1 << 20), None);
        for (bytes, size, count) in [
            (40, 32, 256),
            (36, 30, 64),
            (33, 30, 8),
            (30, 27, 8),
            (24, 23, 2),
            (23, 23, 1),
        ] {
            assert_eq!(divide(1 << bytes), Some((1 << size, count)), "{bytes}");
        }
        let mut bytes = SEGMENT_MIN;
        while bytes < 1 << 45 {
            let (size, count) = divide(bytes).unwrap();
            assert!(size.is_power_of_two() && (SEGMENT_MIN..=SEGMENT_MAX).contains(&size));
            assert!((1..=SEGMENTS_MAX).contains(&count) && size * count <= bytes);
            bytes += bytes / 7;
        }
    }
}
