//! The heap against a naive oracle: programs of allocations, local and remote frees, reallocations in place and scopes
//! entered and left in and out of order, forgotten or suspended, on a small segment of its own.
//!
//! The oracle is a map of live blocks by address. It looks for two live blocks that share a byte, for blocks whose
//! pattern changed, for invariants that do not hold after an operation, and for memory left over at the end.

use super::*;
use crate::layout::{SegmentLayout, CHUNK_GRANULES, HOLE_MAX, MAGAZINE_ROOM, SEGMENT_MIN};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A segment outside the reservation.
struct Private {
    raw: *mut u8,
    segment: Segment,
}

impl Private {
    fn new() -> Private {
        Private::of(SEGMENT_MIN)
    }

    fn of(bytes: usize) -> Private {
        let raw = sys::reserve(2 * bytes);
        assert!(!raw.is_null());
        let layout = SegmentLayout::for_size(bytes);
        let base = raw.map_addr(|addr| align_up(addr, bytes));
        // SAFETY: the head is inside the reservation just made.
        assert!(unsafe { sys::commit(base, layout.head_bytes) });
        Private {
            raw,
            segment: Segment { base, index: 0, layout },
        }
    }
    fn heap(&self) -> Heap {
        let mut heap = Heap::new();
        // SAFETY: the test hands the segment to one heap at a time.
        unsafe { heap.attach(self.segment) };
        heap
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // SAFETY: all heaps and blocks of the segment are gone with the test.
        unsafe { sys::release(self.raw, 2 * self.segment.layout.bytes) };
    }
}

/// Makes a block by the paths that a thread tries, in their order.
fn make(heap: &mut Heap, size: usize, align: usize) -> Result<*mut u8, Refused> {
    match heap.bump(size, align) {
        Bumped::Made(p) => Ok(p),
        Bumped::No => heap
            .alloc_again(size, align)
            .or_else(|| heap.next_hole(size, align))
            .map_or_else(|| heap.alloc(size, align), Ok),
        Bumped::Outside => heap.alloc(size, align),
    }
}

/// Frees a block by the paths that a thread tries, in their order.
fn free(heap: &mut Heap, addr: usize, size: usize) -> Freed {
    if heap.free_short(addr, size) == FreedShort::Yes || heap.free_near(addr, size) {
        return Freed::Yes;
    }
    heap.free(addr, size)
}

struct Oracle<'a> {
    private: &'a Private,
    heap: Heap,
    /// Address to (size, pattern).
    live: BTreeMap<usize, (usize, u8)>,
    order: Vec<usize>,
    guards: Vec<Ticket>,
    made: u8,
}

impl<'a> Oracle<'a> {
    fn new(private: &'a Private) -> Oracle<'a> {
        Oracle {
            private,
            heap: private.heap(),
            live: BTreeMap::new(),
            order: vec![],
            guards: vec![],
            made: 0,
        }
    }

    fn ptr(&self, addr: usize) -> *mut u8 {
        self.private.segment.base.with_addr(addr)
    }

    fn check_room(&self, addr: usize, size: usize) {
        if let Some((&other, &(len, _))) = self.live.range(..addr + size).next_back() {
            assert!(other + len <= addr, "overlap: {addr:#x}+{size} and {other:#x}+{len}");
        }
        let base = self.private.segment.base.addr();
        assert!(addr >= base && addr + size <= base + SEGMENT_MIN, "outside the segment");
    }

    fn add(&mut self, addr: usize, size: usize) {
        self.check_room(addr, size);
        self.made = self.made.wrapping_add(1);
        // SAFETY: the heap handed out `size` bytes there.
        unsafe { self.ptr(addr).write_bytes(self.made, size) };
        self.live.insert(addr, (size, self.made));
        self.order.push(addr);
    }

    fn verify(&self, addr: usize) -> (usize, u8) {
        let (size, pattern) = self.live[&addr];
        // SAFETY: the block is live.
        let bytes = unsafe { std::slice::from_raw_parts(self.ptr(addr), size) };
        assert!(bytes.iter().all(|&byte| byte == pattern), "a block's content changed");
        (size, pattern)
    }

    fn alloc(&mut self, size: usize, align: usize) {
        if size > SMALL_MAX || align > SMALL_ALIGN_MAX {
            return self.alloc_span(size, align);
        }
        let Ok(p) = make(&mut self.heap, size, align) else {
            return;
        };
        let wanted = if size >= 64 && self.heap.is_active() {
            align.max(64)
        } else {
            align.max(16)
        };
        assert_eq!(p.addr() % wanted, 0, "alignment {wanted} of {size} bytes");
        self.add(p.addr(), size.max(1));
    }

    fn alloc_span(&mut self, size: usize, align: usize) {
        let Ok((p, dirty)) = self.heap.alloc_span(size, align) else {
            return;
        };
        assert_eq!(p.addr() % align.max(64), 0);
        // SAFETY: the heap handed out `size` bytes there.
        let bytes = unsafe { std::slice::from_raw_parts(p, size) };
        let known = bytes.get(dirty..).unwrap_or_default();
        assert!(known.iter().all(|&byte| byte == 0), "memory said to be zero is not");
        self.add(p.addr(), size.max(1));
    }

    fn pick(&self, which: usize) -> Option<usize> {
        // Three of four frees hit one of the last four blocks, as programs do.
        let last = self.order.len().checked_sub(1)?;
        Some(if which % 4 != 0 {
            last - (which / 4) % (last + 1).min(4)
        } else {
            (which / 4) % (last + 1)
        })
    }

    fn free(&mut self, which: usize, remote: bool) {
        let Some(at) = self.pick(which) else { return };
        let addr = self.order.swap_remove(at);
        self.free_block(addr, remote);
    }

    /// Frees a block that is no longer in `order`.
    fn free_block(&mut self, addr: usize, remote: bool) {
        let (size, _) = self.verify(addr);
        self.live.remove(&addr);
        // SAFETY: the block is dead from here on; whatever reads it now reads this.
        unsafe { self.ptr(addr).write_bytes(0xDD, size) };
        if remote {
            let l = &self.private.segment.layout;
            let offset = addr - self.private.segment.base.addr();
            if offset < l.spans {
                let start = (offset - l.small) / GRANULE;
                // SAFETY: a block is live there, so its bits are committed, whether the segment has an owner or not.
                let map = unsafe { self.private.segment.live_map() };
                assert!(map.free_remote(start, start + granules(size)));
            } else {
                // SAFETY: a span of this segment is live there.
                let done = unsafe {
                    let flag = &self.private.segment.header().span_flag;
                    crate::spans::free_remote(self.private.segment.base.add(l.tables), flag, (offset - l.spans) / UNIT)
                };
                assert!(done);
            }
        } else {
            assert_eq!(free(&mut self.heap, addr, size), Freed::Yes);
        }
    }

    fn resize(&mut self, which: usize, new: usize) {
        let Some(at) = self.pick(which) else { return };
        let addr = self.order[at];
        let (old, pattern) = self.verify(addr);
        if self.heap.resize(addr, old, new) {
            assert!(
                new <= old || new < 64 || addr % 64 == 0,
                "{old} grew to {new} bytes, not at a line"
            );
            self.live.remove(&addr);
            self.check_room(addr, new);
            // SAFETY: the block has `new` bytes now, and the guard behind them: those who ask for checked blocks move
            // them instead, so `resize` does not see to it.
            unsafe {
                guard::made(self.ptr(addr), new);
                self.ptr(addr).write_bytes(pattern, new);
            }
            self.live.insert(addr, (new, pattern));
        }
    }

    /// Gives pages back; no whole page without a byte of a live block is in memory afterwards.
    fn trim(&mut self) {
        self.heap.trim();
        let (small, large) = (self.heap.small_base.addr(), self.heap.span_base.addr());
        self.check_pages(small, small + self.heap.small.high * GRANULE, self.small_blocks());
        let occupied = |(&addr, &(size, _)): (&usize, &(usize, u8))| (addr, addr + units(size) * UNIT);
        let blocks = self.live.range(large..).map(occupied).collect();
        self.check_pages(large, large + self.heap.spans.state.top * UNIT, blocks);
    }

    /// From where to where the live blocks of the small area reach.
    fn small_blocks(&self) -> Vec<(usize, usize)> {
        let blocks = self.live.range(..self.heap.span_base.addr());
        let occupied = |(&addr, &(size, _)): (&usize, &(usize, u8))| (addr, addr + granules(size) * GRANULE);
        blocks.map(occupied).collect()
    }

    /// No whole page of `[from, to)` is in memory but those of `occupied`.
    fn check_pages(&self, from: usize, to: usize, mut occupied: Vec<(usize, usize)>) {
        let (page, mut at) = (sys::page_size(), from);
        occupied.sort_unstable();
        for (start, end) in occupied.into_iter().chain([(to, to)]) {
            let (first, last) = (align_up(at, page), align_down(start, page));
            if first < last {
                // SAFETY: committed memory of the segment.
                let resident = unsafe { sys::resident(self.ptr(first), last - first) };
                assert_eq!(resident, 0, "pages of free memory from {first:#x} to {last:#x} stay");
            }
            at = at.max(end);
        }
    }

    /// Frees of addresses where no block begins: refused, and nothing has changed.
    fn free_nothing(&mut self, which: usize, offset: usize) {
        let l = self.private.segment.layout;
        let base = self.private.segment.base.addr();
        let beyond = [
            self.heap.small_base.addr() + self.heap.small.high * GRANULE,
            base + l.spans - GRANULE,
            base + l.spans + self.heap.spans.state.top * UNIT,
            base + SEGMENT_MIN - UNIT,
            base,
        ];
        let small = self.heap.small.high < l.small_granules();
        let large = self.heap.spans.state.top < l.span_units;
        let addr = match self.pick(which) {
            Some(at) if offset % 4 != 0 => {
                let addr = self.order[at];
                let grain = if addr < base + l.spans { GRANULE } else { UNIT };
                addr + 1 + offset % (grain - 1)
            }
            _ => match offset / 4 % beyond.len() {
                0 | 1 if !small => return,
                2 | 3 if !large => return,
                place => beyond[place],
            },
        };
        let size = 1 + offset % 700;
        assert_eq!(
            self.heap.free(addr, size),
            Freed::Misuse,
            "no block begins at {addr:#x}"
        );
    }

    /// One operation from three numbers.
    fn step(&mut self, op: u8, a: usize, b: usize) {
        match op % 16 {
            0 if self.guards.len() < 70 => {
                let ticket = match a % 8 {
                    0 => self.heap.enter_slow(Kind::Outside),
                    1 => self.heap.enter_slow(Kind::Counted),
                    _ => self.heap.enter(),
                };
                self.guards.push(ticket);
            }
            1 | 2 if !self.guards.is_empty() => {
                let last = self.guards.len() - 1;
                let at = if a % 10 < 7 { last } else { b % (last + 1) };
                let ticket = self.guards.remove(at);
                if a % 50 != 0 {
                    self.heap.leave(ticket); // else forgotten
                }
            }
            3..=7 => {
                let size = match b % 32 {
                    0 => a % 200_000,
                    1 | 2 => a % 40_000,
                    3..=8 => a % 1_500,
                    _ => a % 130,
                };
                let align = [1, 8, 16, 16, 32, 64, 256, 4096, 16384][(b / 32) % 9];
                self.alloc(size, align);
            }
            8 | 9 => {
                let sizes = [b * 3 + 1, 64, b % 70 + 1, b % 300 + 1];
                self.resize(a, sizes[(b / 4 % 8).min(3)]);
            }
            10 => self.free(a, true),
            11 if a % 8 == 0 => self.heap.start_recycling(),
            15 if a % 64 == 0 => self.trim(),
            15 if a % 64 < 20 => self.free_nothing(a / 64, b),
            _ => self.free(a, false),
        }
    }

    /// Many operations of one kind from three numbers: states that single ones at random seldom come to.
    fn phase(&mut self, op: u8, a: usize, b: usize) {
        let size = [1, 16, 40, 48, 63, 64, 65, 200, 1_000, 1_024, 1_100, 5_000][b % 12];
        let align = [1, 1, 1, 1, 16, 64, 256, 4_096][b / 12 % 8];
        let (count, made) = (1 + a % 100, self.order.len());
        let newest = made.saturating_sub(count)..made;
        match op % 16 {
            0..=2 => (0..count).for_each(|_| self.alloc(size, align)),
            3 | 4 => self.use_hole_up(a % LANES),
            5 => self.free_range(newest, 1, b),
            6 => self.free_range(newest, 2, b),
            7 => self.free_range(0..count.min(made), 1, b),
            8 => (0..count).for_each(|_| self.free(1, b % 4 == 0)),
            9 => (0..count % 8).for_each(|at| self.resize(1 + 4 * at, size)),
            10 => (0..1 + a % 3).for_each(|_| self.step(0, b, 0)),
            11 | 12 => (0..1 + a % 3).for_each(|_| self.step(1, b, b / 7)),
            13 => self.heap.start_recycling(),
            14 => self.trim(),
            _ => match a % 8 {
                0 => self.hand_over(b),
                1..=3 => self.end_intervals(1 + b % 20),
                _ => self.step(b as u8, a, b),
            },
        }
    }

    /// Intervals in which nothing happens; after a dozen no whole page of the small area is in memory but for live blocks,
    /// holes and what is kept.
    fn end_intervals(&mut self, count: usize) {
        for _ in 0..count {
            self.heap.show();
            self.heap.end_interval();
            self.heap.hide();
        }
        if count < 12 || self.heap.is_recycling() {
            return;
        }
        let small = self.heap.small_base.addr();
        let mut occupied = self.small_blocks();
        occupied.extend(self.heap.real_holes());
        self.check_pages(small, small + self.heap.small.high * GRANULE, occupied);
    }

    /// The thread ends, others free some of what it left, and the next thread carries on.
    fn hand_over(&mut self, which: usize) {
        assert_eq!(self.heap.detach(), Some(0));
        self.guards.clear();
        (0..which % 30).for_each(|at| self.free(which * (at + 1), true));
        self.heap = self.private.heap();
        self.guards.push(self.heap.enter());
    }

    /// Makes blocks of a lane's grain until its hole is used up.
    fn use_hole_up(&mut self, lane: usize) {
        for _ in 0..HOLE_MAX {
            let (pos, limit) = self.heap.real_holes()[lane];
            if pos == limit || !self.heap.is_active() {
                break;
            }
            self.alloc(grain(lane) * GRANULE, 1);
        }
    }

    /// Frees each `each`th of these blocks, the oldest first.
    fn free_range(&mut self, range: std::ops::Range<usize>, each: usize, how: usize) {
        // From the last on, so that the places of the others stay.
        let mut chosen: Vec<_> = range
            .step_by(each)
            .rev()
            .map(|at| (at, self.order.remove(at)))
            .collect();
        chosen.reverse();
        for (at, addr) in chosen {
            self.free_block(addr, [false, true, at % 2 == 0][how % 3]);
        }
    }

    /// What is in use is what the live blocks occupy, to the granule and to the unit.
    fn check_figures(&mut self) {
        let spans = self.private.segment.base.addr() + self.private.segment.layout.spans;
        let (mut small, mut large) = (0, 0);
        for (&addr, &(size, _)) in &self.live {
            if addr < spans {
                small += granules(size);
            } else {
                large += units(size);
            }
        }
        assert_eq!(self.heap.live_granules(), small, "granules in use");
        assert_eq!(self.heap.used_units(), large, "units in use");
    }

    /// Frees all that is left; nothing may remain.
    fn finish(mut self) {
        while !self.order.is_empty() {
            self.free(0, self.order.len() % 3 == 0);
        }
        assert_eq!(self.heap.live_granules(), 0, "granules left over");
        assert_eq!(self.heap.used_units(), 0, "units left over");
        self.trim();
        self.heap.debug_check();
        assert_eq!(self.heap.detach(), Some(0));
        assert_eq!(self.heap.depth(), 0);
    }
}

fn run(program: &[(u8, u16, u16)], check_every: usize) {
    let private = Private::new();
    let mut oracle = Oracle::new(&private);
    oracle.guards.push(oracle.heap.enter());
    for (at, &(op, a, b)) in program.iter().enumerate() {
        oracle.step(op, a as usize, b as usize);
        if at % check_every == 0 {
            oracle.heap.debug_check();
        }
        // Seldom, for the figures fold what others have freed.
        if at % 61 == 60 {
            oracle.check_figures();
        }
    }
    oracle.finish();
}

proptest! {
    // `PROPTEST_CASES=n` runs more programs.
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn programs_agree_with_the_oracle(program in prop::collection::vec(any::<(u8, u16, u16)>(), 1..400)) {
        run(&program, 1);
    }

    #[test]
    fn programs_of_phases_agree_with_the_oracle(program in prop::collection::vec(any::<(u8, u16, u16)>(), 1..60)) {
        let private = Private::new();
        let mut oracle = Oracle::new(&private);
        oracle.guards.push(oracle.heap.enter());
        for (op, a, b) in program {
            oracle.phase(op, a as usize, b as usize);
            oracle.heap.debug_check();
            oracle.check_figures();
        }
        oracle.finish();
    }
}

#[test]
fn long_programs_agree_with_the_oracle() {
    for seed in 1..=60u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let program: Vec<_> = (0..12_000)
            .map(|_| (next() as u8, next() as u16, next() as u16))
            .collect();
        println!("seed {seed}");
        run(&program, 500);
    }
}

/// An area to its last granule, by blocks of all alignments: each is served whole or refused.
#[test]
fn areas_run_full_at_all_sizes_and_alignments() {
    for seed in 1..=12usize {
        let private = Private::new();
        let mut oracle = Oracle::new(&private);
        oracle.guards.push(oracle.heap.enter());
        let mut number = seed;
        for round in 0..2 {
            let mut refused = 0;
            while refused < 60 {
                number = number.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(seed) ^ number >> 29;
                let most = [200, 1_000, 1_024, 8_192, 3_000_000][(number >> 20) % (3 + seed % 3)];
                let before = oracle.order.len();
                oracle.alloc(1 + (number >> 33) % most, 1 << ((number >> 8) % 13));
                refused += usize::from(oracle.order.len() == before);
            }
            oracle.heap.debug_check();
            oracle.check_figures();
            // Two of three go, and it is filled again.
            for which in 0..oracle.order.len() * 2 / 3 * (1 - round) {
                oracle.free(which * 4 * 7, which % 5 == 0);
            }
        }
        oracle.finish();
    }
}

#[test]
fn a_step_walks_the_same_memory_each_time() {
    let private = Private::new();
    let mut heap = private.heap();
    let mut first = vec![];
    for step in 0..50 {
        let scope = heap.enter();
        let blocks: Vec<usize> = (0..5_000)
            .map(|i| make(&mut heap, 16 + i % 200, 8).unwrap().addr())
            .collect();
        if step == 0 {
            first.clone_from(&blocks);
        }
        assert!(blocks == first, "step {step} walks other memory");
        for (i, &addr) in blocks.iter().enumerate() {
            assert_eq!(heap.free(addr, 16 + i % 200), Freed::Yes);
        }
        heap.leave(scope);
        if step % 7 == 3 {
            heap.trim(); // which gives pages back and leaves the places alone
        }
    }
}

/// Where what was used ends need not be where lane 1 may begin; what a scope's end takes back must not reach past it.
#[test]
fn a_scope_takes_back_no_more_than_was_used() {
    if guard::CHECKED {
        return; // positions are masked, past which this test reaches
    }
    for odd in [0, 2, 3] {
        let private = Private::new();
        let mut heap = private.heap();
        let outer = heap.enter();
        let line = 100;
        heap.grow(0, line + odd, line + odd).unwrap();
        heap.take_from(1, line - 4);
        heap.take_from(0, 0);
        let end = heap.small.high;
        for _ in 0..end - 4 {
            make(&mut heap, 1, 1).unwrap();
        }
        let inner = heap.enter();
        make(&mut heap, 64, 64).unwrap();
        assert_eq!(heap.map.first_free(0, end), end);
        // Lane 1 finds no room behind its hole, and another thread then makes some before that.
        heap.take_from(1, line);
        assert!(heap.map.free_remote(line - 4, end));
        heap.leave(inner);
        let lines = [(); 2].map(|()| make(&mut heap, 64, 64).unwrap().addr());
        for _ in 0..10 {
            let addr = make(&mut heap, 1, 1).unwrap().addr();
            assert!(
                lines.iter().all(|&line| addr.wrapping_sub(line) >= 64),
                "memory handed out twice"
            );
        }
        heap.debug_check();
        heap.leave(outer);
    }
}

/// Memory whose pages went back and that is taken again, by a scope's end and by a block that grows, may have pages again.
#[test]
fn what_is_taken_again_counts_as_held() {
    if guard::CHECKED {
        return; // blocks are longer by their guards
    }
    let private = Private::new();
    let mut heap = private.heap();
    let per_chunk = CHUNK_GRANULES / (1_024 / GRANULE);
    let _outer = heap.enter();
    make(&mut heap, 16, 16).unwrap(); // the first chunk is its lane's
    let make_some =
        |heap: &mut Heap, count| -> Vec<usize> { (0..count).map(|_| make(heap, 1_024, 64).unwrap().addr()).collect() };
    let mut first = make_some(&mut heap, per_chunk);
    let second = make_some(&mut heap, per_chunk);
    let third = make_some(&mut heap, per_chunk / 2);
    let inner = heap.enter();
    let fourth = make_some(&mut heap, per_chunk - 1);
    for addr in second.into_iter().chain(third).chain(fourth) {
        let start = heap.granule(addr);
        assert!(heap.map.free_remote(start, start + granules(1_024)));
    }
    heap.trim();
    assert!([2, 3].iter().all(|&chunk| !heap.marks.is_dirty(chunk)));
    heap.leave(inner);
    assert!(heap.marks.is_dirty(3), "the scope's hole begins there");
    assert!(heap.resize(first.pop().unwrap(), 1_024, 1_100) && heap.marks.is_dirty(2));
    heap.debug_check();
}

#[test]
fn a_block_does_not_grow_past_what_was_used() {
    let private = Private::new();
    let mut heap = private.heap();
    let _scope = heap.enter();
    make(&mut heap, 48, 8).unwrap();
    for size in [1_100, 2_000, 3_000, 5_000, 7_000] {
        let addr = make(&mut heap, size, 8).unwrap().addr();
        for more in [64, 300, 1_000] {
            if heap.resize(addr, size, size + more) {
                assert!(heap.resize(addr, size + more, size), "shrinking stays in place");
            }
            heap.debug_check();
        }
        heap.resize(addr, size, 8_192);
        heap.debug_check();
    }
}

/// `count` blocks of `sizes`, each of which is replaced `times` times on average, at random. What they occupy to the granule,
/// and what the area is long.
fn replace_at_random(
    heap: &mut Heap,
    sizes: std::ops::RangeInclusive<usize>,
    count: usize,
    times: usize,
) -> [usize; 2] {
    let mut random = 88172645463325252usize;
    let mut below = |limit: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    let (low, spread) = (*sizes.start(), sizes.end() - sizes.start() + 1);
    let mut live: Vec<(usize, usize)> = vec![];
    let mut taken = BTreeMap::new();
    for round in 0..count * (1 + times) {
        let size = low + below(spread);
        let at = if round < count { round } else { below(count) };
        if round >= count {
            let (addr, size) = live[at];
            assert_eq!(taken.remove(&addr), Some(size));
            assert_eq!(free(heap, addr, size), Freed::Yes);
        }
        let addr = make(heap, size, 8).unwrap().addr();
        if let Some((&other, &len)) = taken.range(..addr + size).next_back() {
            assert!(other + len <= addr, "overlap: {addr:#x}+{size} and {other:#x}+{len}");
        }
        assert_eq!(addr % if size < 64 { 16 } else { 64 }, 0);
        taken.insert(addr, size);
        if round < count {
            live.push((addr, size));
        } else {
            live[at] = (addr, size);
        }
        if round % 4_096 == 0 {
            heap.debug_check();
        }
    }
    let rounded: usize = live.iter().map(|&(_, size)| granules(size) * GRANULE).sum();
    assert_eq!(heap.live_granules() * GRANULE, rounded);
    for (addr, size) in live {
        assert_eq!(heap.free(addr, size), Freed::Yes);
    }
    [rounded, heap.small.high * GRANULE]
}

#[test]
fn what_is_replaced_at_random_is_replaced_in_place() {
    if guard::CHECKED {
        return;
    }
    // Recycling ends the area's growth soon; without it these are 127, 132 and 135.
    for (sizes, count, most_per_cent) in [
        (16..=32, 40_000, 115),
        (16..=128, 15_000, 115),
        (16..=1_024, 2_500, 130),
    ] {
        let private = Private::new();
        let mut heap = private.heap();
        let scope = heap.enter();
        let [rounded, high] = replace_at_random(&mut heap, sizes.clone(), count, 8);
        assert!(heap.is_recycling());
        assert!(
            high >= rounded && high * 100 < rounded * most_per_cent,
            "{sizes:?}: {rounded} bytes live in {high}"
        );
        heap.leave(scope);
        heap.debug_check();
        assert!(!heap.is_recycling());
        assert_eq!(heap.live_granules(), 0);
    }
}

/// Runs a test in a scope of a fresh heap, and sees to the invariants at its end; nothing where blocks are checked, for then all is
/// masked.
fn in_plain_scope(test: impl FnOnce(&mut Heap, Ticket)) {
    if guard::CHECKED {
        return;
    }
    let private = Private::new();
    let mut heap = private.heap();
    let scope = heap.enter();
    test(&mut heap, scope);
    heap.debug_check();
}

/// Two blocks of each of some sizes, freed and remembered.
fn remember_some(heap: &mut Heap) -> Vec<(usize, usize)> {
    make(heap, 16, 8).unwrap(); // the area's first granule is none that is remembered
    let sizes = [16, 40, 63, 65, 500, 1_024];
    let blocks: Vec<_> = sizes
        .into_iter()
        .chain(sizes)
        .map(|size| (make(heap, size, 8).unwrap().addr(), size))
        .collect();
    let last = [48, 200].map(|size| make(heap, size, 8).unwrap()); // so that none of them ends at a position
    assert!(last.iter().all(|p| !p.is_null()));
    heap.start_recycling();
    for &(addr, size) in &blocks {
        assert_eq!(heap.free_short(addr, size), FreedShort::Elsewhere);
        assert_eq!(free(heap, addr, size), Freed::Yes);
    }
    heap.debug_check();
    assert_eq!(heap.remembered(), blocks.len());
    blocks
}

fn give_up_holes(heap: &mut Heap) {
    (0..LANES).for_each(|lane| heap.give_up_hole(lane));
}

#[test]
fn a_remembered_block_goes_to_the_next_request_of_its_size() {
    in_plain_scope(|heap, _scope| {
        let blocks = remember_some(heap);
        let live = heap.live_granules();
        give_up_holes(heap);
        for &(addr, size) in blocks.iter().rev() {
            assert_eq!(heap.bump(size, 8), Bumped::No);
            assert_eq!(heap.alloc_again(size, 2_048), None, "no block is aligned so");
            assert_eq!(heap.alloc_again(size, 8).map(|p| p.addr()), Some(addr), "{size} bytes");
        }
        heap.debug_check();
        assert_eq!(heap.remembered(), 0);
        let made: usize = blocks.iter().map(|&(_, size)| granules(size)).sum();
        assert_eq!(heap.live_granules(), live + made);
    });
}

/// What is remembered is free: others may take it, and then nobody takes it again.
#[test]
fn a_remembered_block_that_was_taken_is_passed_by() {
    if guard::CHECKED {
        return;
    }
    for part in 0..3 {
        let private = Private::new();
        let mut heap = private.heap();
        let _scope = heap.enter();
        let blocks = remember_some(&mut heap);
        give_up_holes(&mut heap);
        for &(addr, size) in &blocks {
            let (start, end) = (heap.granule(addr), heap.granule(addr) + granules(size));
            match part {
                0 => heap.set_free(start, end),
                1 => heap.set_free(start, start + 1),
                _ => heap.set_free(end - 1, end),
            }
        }
        let live = heap.live_granules();
        for &(_, size) in &blocks {
            assert_eq!(heap.alloc_again(size, 8), None, "{size} bytes");
        }
        assert_eq!(
            (heap.live_granules(), heap.remembered()),
            (live, 0),
            "all were looked at"
        );
        heap.debug_check();
    }
}

/// Blocks of 49 to 63 bytes and of 64 share a magazine, but only the latter begin at a line.
#[test]
fn a_line_begins_at_a_line() {
    in_plain_scope(|heap, _scope| {
        make(heap, 16, 8).unwrap();
        let off = make(heap, 60, 8).unwrap().addr();
        let at = make(heap, 64, 8).unwrap().addr();
        let last = [48, 200].map(|size| make(heap, size, 8).unwrap());
        assert!(last.iter().all(|p| !p.is_null()) && off % 64 != 0);
        heap.start_recycling();
        for (addr, size) in [(at, 64), (off, 60)] {
            assert_eq!(free(heap, addr, size), Freed::Yes);
        }
        assert_eq!(heap.alloc_again(64, 8), None, "it begins beside a line");
        assert_eq!(heap.alloc_again(60, 8).map(|p| p.addr()), Some(at), "a line will do");
    });
}

/// Of more blocks than a magazine has room for the last are remembered, last first.
#[test]
fn the_oldest_are_forgotten() {
    in_plain_scope(|heap, _scope| {
        let blocks: Vec<_> = (0..300).map(|_| make(heap, 100, 8).unwrap().addr()).collect();
        make(heap, 100, 8).unwrap();
        heap.start_recycling();
        for &addr in &blocks {
            assert_eq!(free(heap, addr, 100), Freed::Yes);
        }
        assert_eq!(heap.remembered(), MAGAZINE_ROOM);
        for &addr in blocks.iter().rev().take(MAGAZINE_ROOM) {
            assert_eq!(heap.alloc_again(100, 8).map(|p| p.addr()), Some(addr));
        }
        assert_eq!(heap.alloc_again(100, 8), None);
        assert_eq!(
            (
                heap.remembered(),
                heap.map.is_live(heap.granule(blocks[1]), heap.granule(blocks[1]) + 1)
            ),
            (0, false)
        );
    });
}

#[test]
fn a_remembered_block_is_not_freed_again() {
    in_plain_scope(|heap, _scope| {
        for (addr, size) in remember_some(heap) {
            assert!(!heap.free_near(addr, size));
            assert_eq!(heap.free(addr, size), Freed::Misuse, "{size} bytes");
            assert!(!heap.free_near(addr + 1, size), "no block begins there");
        }
        assert!(!heap.free_near(heap.small_base.addr() + heap.small.high * GRANULE, 16));
        let live = make(heap, 400, 8).unwrap().addr();
        assert!(
            !heap.free_near(live + 8, 300) && !heap.free_near(live + 16, 300),
            "none begins there"
        );
        assert_eq!(free(heap, live, 400), Freed::Yes);
    });
}

/// A second free while blocks are remembered is seen by its bits, the last block's too: the position stays where it is.
#[test]
fn what_is_free_is_not_freed_again() {
    for size in [16, 40, 64, 500, 1_024] {
        in_plain_scope(|heap, _scope| {
            let [early, _live, last] = [(); 3].map(|()| make(heap, size, 8).unwrap().addr());
            assert_eq!(heap.free_short(early, size), FreedShort::Yes);
            heap.start_recycling();
            let live = heap.live_granules();
            assert_eq!(free(heap, early, size), Freed::Misuse, "freed before, {size} bytes");
            assert_eq!(free(heap, last, size), Freed::Yes);
            for _ in 0..2 {
                assert_eq!(free(heap, last, size), Freed::Misuse, "at the position, {size} bytes");
            }
            assert_eq!(heap.live_granules(), live - granules(size));
            assert_eq!(heap.alloc_again(size, 8).map(|p| p.addr()), Some(last));
        });
    }
}

#[test]
fn recycling_begins_with_empty_holes() {
    for (size, count, other) in [(16, 64, 1), (1_024, 1, 0)] {
        in_plain_scope(|heap, _scope| {
            let blocks: Vec<usize> = (0..count).map(|_| make(heap, size, 8).unwrap().addr()).collect();
            let _behind = make(heap, size, 8).unwrap();
            assert!(blocks.iter().all(|&addr| heap.free(addr, size) == Freed::Yes));
            let start = heap.granule(blocks[0]);
            heap.give_up_hole(other);
            heap.take(other, start, start + 64);
            let live = heap.live_granules();
            heap.start_recycling();
            heap.debug_check();
            for &addr in &blocks {
                assert_eq!(free(heap, addr, size), Freed::Misuse, "{size} bytes");
            }
            assert_eq!(heap.live_granules(), live);
        });
    }
}

/// What is new is used to the end though no hole holds it.
#[test]
fn while_blocks_are_remembered_the_area_grows_without_gaps() {
    in_plain_scope(|heap, _scope| {
        make(heap, 640, 8).unwrap();
        heap.start_recycling();
        let (start, before) = (heap.lanes[1].pos, heap.small.high);
        for index in 0..150 {
            assert_eq!(make(heap, 640, 8).unwrap().addr(), start + index * 640);
            heap.debug_check();
        }
        assert!(heap.is_recycling());
        let end = heap.granule(start) + 150 * granules(640);
        assert!(
            before < end && heap.small.high < end + 64,
            "{before}, {end}, {}",
            heap.small.high
        );
    });
}

/// Whatever is made, resized or given back meanwhile.
#[test]
fn while_blocks_are_remembered_holes_are_empty() {
    in_plain_scope(|heap, _scope| {
        let early: Vec<_> = (0..200).map(|_| make(heap, 100, 8).unwrap().addr()).collect();
        heap.start_recycling();
        for round in 0..40 {
            for (size, align) in [
                (16, 8),
                (100, 8),
                (40, 512),
                (64, 4_096),
                (1_000, 2_048),
                (5_000, 8),
                (70, 8),
            ] {
                let block = make(heap, size, align).unwrap().addr();
                heap.debug_check();
                assert!(heap.resize(block, size, size / 2), "{size} bytes");
                heap.debug_check();
            }
            assert_eq!(free(heap, early[2 * round], 100), Freed::Yes);
            heap.trim();
            heap.debug_check();
        }
        assert!(heap.is_recycling());
    });
}

#[test]
fn a_block_of_another_thread_is_not_remembered() {
    if guard::CHECKED {
        return;
    }
    let privates = [Private::new(), Private::new()];
    let [mut heap, mut other] = [privates[0].heap(), privates[1].heap()];
    let _scopes = [heap.enter(), other.enter()];
    let count = remember_some(&mut heap).len();
    let theirs = make(&mut other, 100, 8).unwrap().addr();
    assert!(!heap.free_near(theirs, 100));
    assert_eq!(heap.remembered(), count);
    assert_eq!(free(&mut other, theirs, 100), Freed::Yes);
    // Nor is a span of its own.
    let span = heap.alloc(100_000, 8).unwrap().addr();
    assert!(!heap.free_near(span, 100));
    assert_eq!(free(&mut heap, span, 100_000), Freed::Yes);
    heap.debug_check();
}

/// Who asks whether a request comes through here must not be served by a magazine.
#[test]
fn what_is_diverted_is_served_by_no_magazine() {
    in_plain_scope(|heap, _scope| {
        let blocks = remember_some(heap);
        let diverted = heap.divert();
        for &(_, size) in &blocks {
            assert_eq!(heap.bump(size, 1), Bumped::No);
            assert_eq!(heap.alloc_again(size, 1), None);
            assert_eq!(heap.next_hole(size, 1), None);
        }
        heap.undivert(diverted);
        heap.debug_check();
        assert_eq!(heap.remembered(), blocks.len());
    });
}

/// Requests that find a block are work too: the area that they use is joined to huge pages sooner for it.
#[test]
fn what_is_replaced_in_place_pays_for_huge_pages() {
    in_plain_scope(|heap, _scope| {
        remember_some(heap);
        let worked = heap.pass.worked;
        for _ in 0..1_000 {
            let addr = heap.alloc_again(40, 8).unwrap().addr();
            assert!(heap.free_near(addr, 40));
        }
        heap.note_miss();
        assert!(
            (10..=50).contains(&(heap.pass.worked - worked)),
            "{} calls",
            heap.pass.worked
        );
    });
}

/// The rest of a huge page that came with the area's last blocks goes back like other free pages, and what was used does not.
#[test]
fn what_came_along_behind_the_area_goes_back() {
    let private = Private::of(4 * SEGMENT_MIN);
    let mut heap = private.heap();
    let area = private.segment.layout.small_granules();
    assert!(heap.commit(area));
    // SAFETY: committed just now, and the segment's own.
    unsafe { heap.huge.ask_once(heap.small_base, area * GRANULE) };
    let scope = heap.enter();
    let blocks: Vec<usize> = (0..700).map(|_| make(&mut heap, 1_000, 8).unwrap().addr()).collect();
    for &block in &blocks {
        // SAFETY: the block is live.
        unsafe { heap.small_ptr(block).write_bytes(7, 1_000) };
    }
    heap.trim();
    let above = align_up(heap.small.high * GRANULE, sys::page_size());
    // SAFETY: committed above.
    let along = unsafe { sys::resident(heap.small_base.add(above), area * GRANULE - above) };
    assert_eq!(along, 0, "bytes never used stay");
    for block in blocks {
        // SAFETY: as above; and it is freed once.
        assert!((0..1_000).all(|at| unsafe { heap.small_ptr(block + at).read() } == 7));
        assert!(free(&mut heap, block, 1_000) == Freed::Yes);
    }
    heap.leave(scope);
    heap.debug_check();
}

#[test]
fn a_suspension_ends_no_recycling() {
    in_plain_scope(|heap, scope| {
        let count = remember_some(heap).len();
        let suspension = heap.enter_slow(Kind::Outside);
        heap.debug_check();
        heap.leave(suspension);
        heap.debug_check();
        assert!(heap.is_recycling() && heap.remembered() == count);
        // Not so a scope that ends inside one.
        let suspension = heap.enter_slow(Kind::Outside);
        heap.leave(scope);
        heap.debug_check();
        assert!(!heap.is_recycling());
        heap.leave(suspension);
    });
}

#[test]
fn recycling_ends_with_the_scope_the_counting_and_the_thread() {
    if guard::CHECKED {
        return;
    }
    type End = fn(&mut Heap, Ticket);
    let ends: [(&str, End); 3] = [
        ("leaving", |heap, scope| heap.leave(scope)),
        ("counting", |heap, _| {
            assert_ne!(heap.enter_slow(Kind::Counted), Ticket::INERT)
        }),
        ("the thread's end", |heap, _| assert_eq!(heap.detach(), Some(0))),
    ];
    for (name, end) in ends {
        let private = Private::new();
        let mut heap = private.heap();
        let scope = heap.enter();
        let (addr, size) = remember_some(&mut heap)[0];
        end(&mut heap, scope);
        heap.debug_check();
        assert!(!heap.is_recycling(), "{name}");
        assert!(
            !heap.free_near(addr, size) && heap.alloc_again(size, 8).is_none(),
            "{name}"
        );
        if heap.segment.is_some() {
            heap.start_recycling();
            assert_eq!(heap.remembered(), 0, "{name}");
        }
    }
}

/// A page that went back is not taken for one that was used: its chunk would stay clean.
#[test]
fn what_goes_back_is_forgotten() {
    in_plain_scope(|heap, _scope| {
        make(heap, 16, 8).unwrap();
        let blocks: Vec<_> = (0..256).map(|_| make(heap, 1_024, 8).unwrap().addr()).collect();
        make(heap, 1_024, 8).unwrap();
        heap.start_recycling();
        for &addr in &blocks {
            assert_eq!(free(heap, addr, 1_024), Freed::Yes);
        }
        assert_eq!(heap.remembered(), 256);
        heap.trim();
        assert!(heap.is_recycling());
        heap.debug_check();
        let again = heap.alloc_again(1_024, 8);
        heap.debug_check();
        assert_eq!((again, heap.remembered()), (None, 0));
    });
}

/// Chunks in which blocks are made in the place of others are in use, though no hole is taken there.
#[test]
fn where_blocks_are_replaced_in_place_nothing_ages() {
    in_plain_scope(|heap, scope| {
        let blocks: Vec<_> = (0..1_400).map(|_| make(heap, 1_024, 8).unwrap().addr()).collect();
        let (busy, idle) = (
            heap.granule(blocks[600]) / CHUNK_GRANULES,
            heap.granule(blocks[1_300]) / CHUNK_GRANULES,
        );
        heap.start_recycling();
        for _ in 0..3 {
            assert_eq!(free(heap, blocks[600], 1_024), Freed::Yes);
            assert_eq!(heap.alloc_again(1_024, 8).map(|p| p.addr()), Some(blocks[600]));
            heap.end_interval();
            heap.debug_check();
            assert!(!heap.marks.is_aged(busy));
        }
        assert!(heap.marks.is_aged(idle) || !heap.marks.is_dirty(idle));
        // What the last interval saw is not lost where recycling ends in it.
        assert_eq!(free(heap, blocks[600], 1_024), Freed::Yes);
        assert!(heap.alloc_again(1_024, 8).is_some());
        heap.leave(scope);
        heap.end_interval();
        assert!(!heap.marks.is_aged(busy));
    });
}

#[test]
fn recycling_ends_where_nothing_is_found() {
    in_plain_scope(|heap, _scope| {
        remember_some(heap);
        let mut made = 0;
        while heap.is_recycling() {
            make(heap, 300, 8).unwrap();
            made += 1;
            assert!(made < 2_000, "it does not end");
        }
        assert!(made > 100, "it ended after {made}");
    });
}

#[test]
fn steps_stay_short_and_dense_as_escapees_add_up() {
    for escapee_at in [0, 5, 10] {
        let private = Private::new();
        let mut heap = private.heap();
        const STEPS: usize = 20_000;
        let walked = |heap: &Heap| {
            let holes = heap.real_holes(); // the positions, masked or not
            [0, 1].map(|lane: usize| heap.lanes[lane].debt.wrapping_sub(price(holes[lane].0)))
        };
        let mut first = [0; LANES];
        for step in 0..STEPS {
            if step == 1 {
                first = walked(&heap);
            }
            let scope = heap.enter();
            let mut temporaries = vec![];
            for i in 0..=10 {
                let size = if i == escapee_at { 24 } else { 40 + 17 * i };
                let p = make(&mut heap, size, 8).unwrap().addr();
                if i != escapee_at {
                    temporaries.push((p, size));
                }
            }
            for (p, size) in temporaries {
                assert_eq!(heap.free(p, size), Freed::Yes);
            }
            heap.leave(scope);
        }
        // What was walked in search of holes since the first step, less eight times what was found and used.
        let more = walked(&heap)
            .into_iter()
            .zip(first)
            .map(|(now, then)| now.wrapping_sub(then));
        let more = more.max().unwrap();
        assert!(
            more < 1 << 20,
            "escapee at {escapee_at}: {more} bytes walked more than paid for"
        );
        let high = heap.small.high * GRANULE;
        assert!(
            high / STEPS < 64,
            "escapee at {escapee_at}: {} bytes each",
            high / STEPS
        );
    }
}

/// Regression: all that a step makes escapes and is freed by another thread some steps later. Each step that came to the
/// area's end looked at all of it, found room at its start, and on leaving went back to the end, so that the next grew it.
#[test]
fn the_area_stays_small_where_whole_steps_escape_and_are_freed_by_others() {
    // What a step makes: all alike, or as requests are: words, a body, and now and then a long one.
    let kinds: [fn(usize) -> usize; 5] = [
        |_| 24,
        |_| 300,
        |_| 3_000,
        |at| if at % 20 == 19 { at * 7 % 2_000 } else { 24 + at % 9 },
        |at| [32, 100, 700, 1_500, 5_000][at / 3 % 5],
    ];
    for (kind, size_of) in kinds.into_iter().enumerate() {
        let private = Private::new();
        let mut heap = private.heap();
        let mut waiting = std::collections::VecDeque::new();
        let (mut made, mut live, mut peak) = (0, 0, 0);
        while made < 4_000_000 / 24 {
            let scope = heap.enter();
            for _ in 0..20 {
                let size = size_of(made).max(1);
                let addr = make(&mut heap, size, 8).unwrap().addr();
                waiting.push_back((heap.granule(addr), granules(size)));
                live += granules(size) * GRANULE;
                made += 1;
            }
            heap.leave(scope);
            peak = peak.max(live);
            while waiting.len() > 200 {
                let (start, count) = waiting.pop_front().unwrap();
                assert!(heap.map.free_remote(start, start + count));
                live -= count * GRANULE;
            }
        }
        let high = heap.small.high * GRANULE;
        assert!(
            high <= 4 * peak + (512 << 10),
            "{kind}: {peak} bytes live at most, in an area of {high}"
        );
    }
}

#[test]
fn a_second_free_is_seen() {
    let private = Private::new();
    let mut heap = private.heap();
    let scope = heap.enter();
    let sizes = [16, 100, 1_000, 5_000, 100_000];
    let blocks: Vec<usize> = sizes
        .iter()
        .map(|&size| make(&mut heap, size, 8).unwrap().addr())
        .collect();
    for (&addr, &size) in blocks.iter().zip(&sizes) {
        assert_eq!(heap.free(addr, size), Freed::Yes);
        assert_ne!(heap.free_short(addr, size), FreedShort::Yes);
        assert_eq!(heap.free(addr, size), Freed::Misuse, "{size} bytes");
    }
    let last = make(&mut heap, 48, 8).unwrap().addr();
    if CHECKED {
        // The inline half sends everything on.
        assert_eq!(heap.free_short(last, 48), FreedShort::Elsewhere);
        assert_eq!(heap.free(last, 48), Freed::Yes);
    } else {
        assert_eq!(heap.free_short(last, 48), FreedShort::Yes);
    }
    assert_ne!(
        heap.free_short(last, 48),
        FreedShort::Yes,
        "the position moved back over it"
    );
    assert_eq!(heap.free(last, 48), Freed::Misuse);
    heap.leave(scope);
    assert_eq!(heap.free(last, 48), Freed::Misuse, "in the parked hole");
}

#[test]
fn a_free_of_no_bytes_frees_nothing_inline() {
    let private = Private::new();
    let mut heap = private.heap();
    let scope = heap.enter();
    for size in [16, 100, 1_000, 5_000] {
        // Not where a word of the map begins.
        let _before = [make(&mut heap, 16, 8).unwrap(), make(&mut heap, 100, 8).unwrap()];
        let block = make(&mut heap, size, 8).unwrap().addr();
        let _behind = make(&mut heap, size, 8).unwrap();
        let before = heap.live_granules();
        heap.free_short(block, 0);
        assert_eq!(heap.live_granules(), before, "{size} bytes");
        assert_eq!(heap.free(block, size), Freed::Yes);
    }
    heap.leave(scope);
}

#[test]
fn a_new_owner_goes_on_where_the_last_one_stopped() {
    let private = Private::new();
    let mut heap = private.heap();
    let scope = heap.enter();
    let kept: Vec<(usize, usize)> = (1..200)
        .map(|i| (make(&mut heap, i * 40, 8).unwrap().addr(), i * 40))
        .collect();
    heap.leave(scope);
    heap.detach();
    let mut oracle = Oracle::new(&private);
    for &(addr, size) in &kept {
        oracle.add(addr, size);
    }
    oracle.guards.push(oracle.heap.enter());
    for i in 0..20_000 {
        oracle.step(i as u8, i * 7, i * 31);
    }
    oracle.finish();
}

#[test]
fn the_second_step_walks_the_memory_of_the_first() {
    // In the first scope there is no segment yet when it begins: both lanes go back to where they began.
    let private = Private::new();
    let mut heap = Heap::new();
    let scope = heap.enter();
    // SAFETY: the segment is this test's own.
    unsafe { heap.attach(private.segment) };
    let step = |heap: &mut Heap| -> Vec<usize> {
        let sizes = [200, 4096, 96, 8192, 64, 5000];
        let made = sizes.map(|size| (make(heap, size, 8).unwrap().addr(), size));
        for (addr, size) in made {
            assert_eq!(heap.free(addr, size), Freed::Yes);
        }
        made.map(|block| block.0).to_vec()
    };
    let first = step(&mut heap);
    heap.leave(scope);
    for _ in 0..10 {
        let scope = heap.enter();
        assert_eq!(step(&mut heap), first);
        heap.leave(scope);
    }
}

/// The frames against a naive stack: what is open, how deep, whether the thread is in a scope, and whose guard still acts.
struct Frames<'a> {
    heap: Heap,
    /// What is open, innermost last.
    open: Vec<(Ticket, Kind)>,
    /// Guards that are gone with their frames.
    gone: Vec<Ticket>,
    _private: &'a Private,
}

impl Frames<'_> {
    fn enter(&mut self, kind: Kind) {
        if self.open.len() < FRAMES {
            let ticket = match kind {
                Kind::Scope => self.heap.enter(),
                _ => self.heap.enter_slow(kind),
            };
            self.open.push((ticket, kind));
        }
    }

    /// Leaving ends what was opened inside, but for suspensions: those are closures that still run.
    fn leave(&mut self, at: usize) {
        let (ticket, kind) = self.open[at];
        self.heap.leave(ticket);
        let inside = self.open.split_off(at);
        for (ticket, inner) in inside {
            if inner == Kind::Outside && kind != Kind::Outside {
                self.open.push((ticket, inner));
            } else {
                self.gone.push(ticket);
            }
        }
    }

    fn step(&mut self, op: u8, which: u8) {
        let which = which as usize;
        match op % 8 {
            0..=2 => self.enter(Kind::Scope),
            3 => self.enter(if which % 2 == 0 { Kind::Outside } else { Kind::Counted }),
            4 | 5 if !self.open.is_empty() => {
                // A closure ends last in, first out: only the innermost suspension may be left.
                let at = which % self.open.len();
                let innermost = self.open.iter().rposition(|one| one.1 == Kind::Outside);
                if self.open[at].1 != Kind::Outside || innermost == Some(at) {
                    self.leave(at);
                }
            }
            6 if !self.gone.is_empty() => {
                let ticket = self.gone[which % self.gone.len()];
                self.heap.leave(ticket); // does nothing
            }
            _ => {
                let size = 1 + which * 5;
                if let Ok(p) = make(&mut self.heap, size, 8) {
                    if which % 3 != 0 {
                        assert_eq!(self.heap.free(p.addr(), size), Freed::Yes);
                    }
                }
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let inner = self.open.iter().rev().take_while(|one| one.1 != Kind::Outside).count();
        assert_eq!(self.heap.depth(), inner);
        let active = self.open.last().is_some_and(|one| one.1 != Kind::Outside);
        assert_eq!(self.heap.is_active(), active);
        assert_eq!(self.heap.bump(usize::MAX, 1) == Bumped::Outside, !active);
        assert_eq!(
            self.heap.is_counting(),
            self.open.iter().any(|one| one.1 == Kind::Counted)
        );
        assert!(
            self.open.iter().all(|one| self.heap.is_open(one.0)),
            "an open frame is lost"
        );
        assert!(
            !self.gone.iter().any(|&ticket| self.heap.is_open(ticket)),
            "a guard acts though its frame is gone"
        );
        let inline = self.heap.bump(16, 8);
        assert!(
            !matches!(inline, Bumped::Made(_)) || (active && !self.heap.is_counting()),
            "the inline path serves outside scopes"
        );
        self.heap.debug_check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

    #[test]
    fn frames_agree_with_a_naive_stack(program in prop::collection::vec(any::<(u8, u8)>(), 1..300)) {
        let private = Private::new();
        let mut frames = Frames { heap: private.heap(), open: vec![], gone: vec![], _private: &private };
        for (at, (op, which)) in program.into_iter().enumerate() {
            frames.step(op, which);
            if at % 16 == 0 {
                frames.heap.debug_check();
            }
        }
        while !frames.open.is_empty() {
            let last = frames.open.len() - 1;
            frames.leave(last);
            frames.check();
        }
    }
}

/// One program on two heaps, one of which looks for the next hole by the long search alone: they find the same, and think
/// the same of what they walked, found and touched. How often the short search found something.
fn search(program: &[(u8, u8, u8)]) -> usize {
    let privates = [Private::new(), Private::new()];
    let mut heaps = [privates[0].heap(), privates[1].heap()];
    let mut live: Vec<(usize, usize)> = vec![];
    let mut scopes: Vec<[Ticket; 2]> = vec![heaps.each_mut().map(Heap::enter)];
    let mut near = 0;
    for &(op, a, b) in program {
        let size = 1 + a as usize * if b % 4 == 0 { 4 } else { 1 };
        match op % 8 {
            0..=3 => {
                for _ in 0..=b % 32 {
                    let [quick, slow] = &mut heaps;
                    let inline = quick.bump(size, 8);
                    assert_eq!(inline == Bumped::No, slow.bump(size, 8) == Bumped::No);
                    let at = match inline {
                        Bumped::Made(p) => p,
                        _ => {
                            let again = quick.alloc_again(size, 8);
                            let found = again.or_else(|| quick.next_hole(size, 8));
                            near += usize::from(again.is_none() && found.is_some());
                            let other = slow.alloc_again(size, 8);
                            let other = other.unwrap_or_else(|| slow.alloc(size, 8).unwrap());
                            let one = found.unwrap_or_else(|| quick.alloc(size, 8).unwrap());
                            assert_eq!(one.addr() - quick.base, other.addr() - slow.base);
                            one
                        }
                    };
                    live.push((at.addr() - quick.base, size));
                }
            }
            4 | 5 => {
                // Every so manieth, so that holes stay between blocks.
                let each = 1 + a as usize % 4;
                let mut index = 0;
                live.retain(|&(offset, size)| {
                    index += 1;
                    let goes = index % each == 0 && (b % 2 == 0 || index % 64 < 32);
                    for heap in heaps.iter_mut().filter(|_| goes) {
                        assert_eq!(free(heap, heap.base + offset, size), Freed::Yes);
                    }
                    !goes
                });
            }
            6 => scopes.push(heaps.each_mut().map(Heap::enter)),
            _ if a % 4 == 0 => {
                let aged = heaps.each_mut().map(|heap| {
                    let chunks = heap.small.high.div_ceil(crate::layout::CHUNK_GRANULES);
                    heap.marks.age(chunks);
                    (0..chunks).filter(|&chunk| heap.marks.is_aged(chunk)).count()
                });
                assert_eq!(aged[0], aged[1]);
            }
            _ => {
                if let Some(tickets) = scopes.pop() {
                    heaps
                        .iter_mut()
                        .zip(tickets)
                        .for_each(|(heap, ticket)| heap.leave(ticket));
                }
                if scopes.is_empty() {
                    scopes.push(heaps.each_mut().map(Heap::enter));
                }
            }
        }
        let [one, other] = heaps.each_ref().map(|heap| {
            let lanes = heap.lanes.map(|lane| {
                let places = [lane.pos, lane.limit, lane.start].map(|at| at - heap.base);
                (places, lane.debt - price(lane.limit))
            });
            let clock = (heap.ticks, heap.tick_millis == 0);
            (
                lanes,
                heap.since_look,
                heap.dirtied,
                heap.look_at,
                clock,
                heap.small.high,
            )
        });
        assert_eq!(one, other, "they think differently");
        heaps[0].debug_check();
    }
    near
}

#[test]
fn the_short_search_finds_what_the_long_one_would() {
    if guard::CHECKED {
        return; // all is masked, so there is no short search
    }
    let near = std::cell::Cell::new(0);
    let strategy = prop::collection::vec(any::<(u8, u8, u8)>(), 1..120);
    let mut runner = proptest::test_runner::TestRunner::default();
    let ran = runner.run(&strategy, |program| {
        near.set(near.get() + search(&program));
        Ok(())
    });
    ran.unwrap();
    println!("the short search found {} holes", near.get());
    assert!(near.get() > 5 * runner.config().cases as usize);
}

/// Regression. What is held was compared with what lives before the next large block was made, not after one was made or
/// grew: in a program that makes one a step nothing lived then, and the second step faulted all of it in again.
#[test]
fn a_step_of_one_large_block_keeps_its_memory() {
    if guard::CHECKED {
        return; // its marks are kept by the layer above
    }
    const BYTES: usize = 9 << 19;
    for first in [BYTES, BYTES / 9] {
        let private = Private::new();
        let mut heap = private.heap();
        for step in 0..3 {
            let scope = heap.enter();
            let (p, _) = heap.alloc_span(first, 64).unwrap();
            assert!(heap.resize(p.addr(), first, BYTES), "nothing is behind it");
            assert_eq!(heap.spans.dirtied, 0, "it was looked at");
            assert_eq!(heap.free(p.addr(), BYTES), Freed::Yes);
            heap.leave(scope);
            assert_eq!(heap.gave_up_in, 0, "given back in step {step}, made of {first} bytes");
        }
    }
}

/// Closures alone, so last in, first out, at and beyond the table's end, where an extent has no frame of its own: the
/// innermost extent still says whether the thread is in a scope, and each end is the end of what was begun last.
fn nest(program: &[(u8, u8)], before: usize) {
    let private = Private::new();
    let mut heap = private.heap();
    let mut open: Vec<(Ticket, Kind)> = (0..before).map(|_| (heap.enter(), Kind::Scope)).collect();
    for &(op, size) in program {
        match op % 8 {
            0..=2 => open.push((heap.enter(), Kind::Scope)),
            3 => open.push((heap.enter_slow(Kind::Outside), Kind::Outside)),
            4 if size % 4 == 0 => open.push((heap.enter_slow(Kind::Counted), Kind::Counted)),
            4..=6 => {
                if let Some((ticket, _)) = open.pop() {
                    heap.leave(ticket);
                }
            }
            _ => {
                let _served = make(&mut heap, 1 + 9 * size as usize, 8);
            }
        }
        let (table, beyond) = open.split_at(open.len().min(FRAMES));
        // Beyond the table only a suspension changes anything, and a scope inside it does not undo it.
        let suspended = beyond.iter().any(|one| one.1 == Kind::Outside);
        let inside = table.last().is_some_and(|one| one.1 != Kind::Outside) && !suspended;
        assert_eq!(heap.is_active(), inside, "{} open", open.len());
        assert_eq!(heap.bump(usize::MAX, 1) == Bumped::Outside, !inside);
        let innermost = table.iter().rev().take_while(|one| one.1 != Kind::Outside).count();
        assert_eq!(heap.depth(), if inside { innermost + beyond.len() } else { 0 });
        assert_eq!(heap.is_counting(), table.iter().any(|one| one.1 == Kind::Counted));
        heap.debug_check();
    }
    while let Some((ticket, _)) = open.pop() {
        heap.leave(ticket);
        heap.debug_check();
    }
    assert_eq!((heap.depth(), heap.is_active()), (0, false));
}

/// Guards in any order among closures, around the table's end: whatever stays open, the heap's sums are those of its
/// frames, and nothing is left when all have ended.
fn mix(program: &[(u8, u8)], before: usize) {
    let private = Private::new();
    let mut heap = private.heap();
    let mut guards: Vec<Ticket> = (0..before).map(|_| heap.enter()).collect();
    let mut closures: Vec<Ticket> = vec![];
    for &(op, which) in program {
        let which = which as usize;
        match op % 8 {
            0 | 1 => guards.push(heap.enter()),
            2 => guards.push(heap.enter_slow(Kind::Counted)),
            3 | 4 if !guards.is_empty() => {
                // The last ones above all: the table's end is not left at once.
                let last = guards.len() - 1;
                let back = if which % 8 == 0 { which } else { which % 4 };
                heap.leave(guards.remove(last - back.min(last)));
            }
            5 | 6 => closures.push(heap.enter_slow(Kind::Outside)),
            _ => {
                if let Some(ticket) = closures.pop() {
                    heap.leave(ticket);
                }
            }
        }
        heap.debug_check();
        assert!(closures.is_empty() || heap.depth() <= guards.len());
    }
    while let Some(ticket) = closures.pop() {
        heap.leave(ticket);
        heap.debug_check();
    }
    for ticket in guards {
        heap.leave(ticket);
        heap.debug_check();
    }
    assert_eq!((heap.depth(), heap.is_active(), heap.is_counting()), (0, false, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

    #[test]
    fn closures_nest_beyond_the_table(program in prop::collection::vec(any::<(u8, u8)>(), 1..200), before in 40..80usize) {
        nest(&program, before);
    }

    #[test]
    fn guards_and_closures_mix_around_the_tables_end(
        program in prop::collection::vec(any::<(u8, u8)>(), 1..200), before in 50..75usize
    ) {
        mix(&program, before);
    }
}
