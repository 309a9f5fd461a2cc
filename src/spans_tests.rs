//! The spans against a naive oracle: programs of allocations, local and remote frees, growth, shrinking, folding and
//! discarding over three regions, shrunk by proptest where they fail.
//!
//! The oracle keeps the used spans in a map and finds the lowest fit by walking it. It knows where each span must be, so
//! that a policy that is not address-ordered first fit is seen as well as a tiling that is broken; and it writes each
//! span, so that memory said to be zero is looked at.

use super::*;
use crate::layout::{HUGE_PAGE, PART};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Two regions and a bit: spans cross the border between regions, and the last region is not whole.
const UNITS: usize = 2 * REGION_UNITS + 5 * CHUNK_UNITS;
const REGIONS: usize = 3;

/// What backs the ranges of a reservation at `raw`, by a table with a byte for each 2 MiB and one more.
fn huge_pages(raw: *mut u8, table: &mut [u8]) -> HugePages {
    // SAFETY: the table is as long as said, zero, and lives as long as the spans.
    unsafe { HugePages::new(table.as_mut_ptr(), raw.map_addr(|addr| align_down(addr, HUGE_PAGE))) }
}

struct Oracle {
    raw: *mut u8,
    bytes: usize,
    longest: Box<[u32; REGIONS]>,
    flag: Box<AtomicU64>,
    _backing: Vec<u8>,
    spans: Spans,
    /// Used spans: first unit to units and pattern.
    used: BTreeMap<usize, (usize, u8)>,
    order: Vec<usize>,
    /// Freed by another thread and not folded: still used for the owner.
    freed: BTreeSet<usize>,
    top: usize,
    made: u8,
}

impl Oracle {
    fn new() -> Oracle {
        let tables = (REGIONS * REGION_BYTES).next_multiple_of(PART);
        let bytes = tables + UNITS * UNIT;
        let raw = sys::reserve(bytes);
        assert!(!raw.is_null());
        let (mut longest, flag) = (Box::new([0; REGIONS]), Box::new(AtomicU64::new(0)));
        let mut backing = vec![0; bytes / HUGE_PAGE + 2];
        let huge = huge_pages(raw, &mut backing);
        // SAFETY: tables and area are parts of the reservation just made, `longest` and `flag` live as long as the spans.
        let spans = unsafe {
            let area = raw.add(tables);
            Spans::new(
                raw,
                longest.as_mut_ptr(),
                &*flag,
                area,
                UNITS,
                SpanState::default(),
                huge,
            )
        };
        Oracle {
            raw,
            bytes,
            longest,
            flag,
            _backing: backing,
            spans,
            used: BTreeMap::new(),
            order: vec![],
            freed: BTreeSet::new(),
            top: 0,
            made: 0,
        }
    }

    fn bytes(&mut self, unit: usize, units: usize) -> &mut [u8] {
        // SAFETY: the units are in a used span of the committed area.
        unsafe { std::slice::from_raw_parts_mut(self.spans.base.add(unit * UNIT), units * UNIT) }
    }

    /// Writes a span's ends: all of its units, but not all of their bytes, to be quick.
    fn write(&mut self, unit: usize, units: usize, pattern: u8) {
        for at in unit..unit + units {
            let bytes = self.bytes(at, 1);
            (bytes[0], bytes[UNIT - 1]) = (pattern, pattern);
        }
    }

    fn verify(&mut self, unit: usize) {
        let (units, pattern) = self.used[&unit];
        for at in unit..unit + units {
            let bytes = self.bytes(at, 1);
            assert!(
                bytes[0] == pattern && bytes[UNIT - 1] == pattern,
                "unit {at} was written"
            );
        }
    }

    /// Free runs below the top in address order, by walking the used spans.
    fn holes(&self) -> Vec<(usize, usize)> {
        let (mut holes, mut at) = (vec![], 0);
        for (&unit, &(units, _)) in &self.used {
            if unit > at {
                holes.push((at, unit));
            }
            at = unit + units;
        }
        if at < self.top {
            holes.push((at, self.top));
        }
        holes
    }

    fn fold(&mut self) {
        for unit in std::mem::take(&mut self.freed) {
            self.used.remove(&unit);
        }
    }

    fn aligned(&self, unit: usize, align: usize) -> usize {
        let base = self.spans.base.addr() / UNIT;
        (base + unit).next_multiple_of(align) - base
    }

    /// Where the next span must be: in the lowest hole that holds it wherever that begins, else at the top.
    fn place(&self, units: usize, align: usize) -> Option<usize> {
        let holes = self.holes();
        let fits = |&&(from, to): &&(usize, usize)| to - from >= units + align - 1;
        let start = match holes.iter().find(fits) {
            Some(&(from, _)) => from,
            None => holes
                .last()
                .filter(|hole| hole.1 == self.top)
                .map_or(self.top, |hole| hole.0),
        };
        let unit = self.aligned(start, align);
        (unit + units <= UNITS).then_some(unit)
    }

    fn alloc(&mut self, units: usize, align: usize) {
        self.fold();
        let expected = self.place(units, align);
        let made = self.spans.alloc(units, align);
        assert_eq!(
            made.map(|made| made.unit),
            expected.ok_or(Refused::NoRoom),
            "{units} units at {align}"
        );
        let Ok(made) = made else { return };
        let known = self.bytes(made.unit + made.dirty, units - made.dirty);
        assert!(known.iter().all(|&byte| byte == 0), "memory said to be zero is not");
        self.top = self.top.max(made.unit + units);
        self.made = self.made.wrapping_add(1).max(1);
        self.write(made.unit, units, self.made);
        self.used.insert(made.unit, (units, self.made));
        self.order.push(made.unit);
    }

    fn free(&mut self, which: usize, remote: bool) {
        if self.order.is_empty() {
            return;
        }
        let unit = self.order.swap_remove(which % self.order.len());
        self.verify(unit);
        let units = self.used[&unit].0;
        self.write(unit, units, 0xdd);
        if remote {
            // SAFETY: the tables are committed, the span is used and this test's to free.
            unsafe {
                assert_eq!(used_len_remote(self.raw, unit), units);
                assert!(free_remote(self.raw, &*self.flag, unit));
                assert!(!free_remote(self.raw, &*self.flag, unit), "a second free");
            }
            assert!(self.spans.is_freed_remotely(unit));
            assert!(!self.spans.free(unit), "freed by another thread before");
            self.freed.insert(unit);
        } else {
            assert!(self.spans.free(unit));
            assert!(!self.spans.free(unit), "a second free");
            self.used.remove(&unit);
        }
    }

    fn resize(&mut self, which: usize, units: usize) {
        if self.order.is_empty() {
            return;
        }
        let unit = self.order[which % self.order.len()];
        self.verify(unit);
        let (old, pattern) = self.used[&unit];
        if units < old {
            self.spans.shrink(unit, units);
            self.write(unit + units, old - units, 0xdd);
            self.used.insert(unit, (units, pattern));
        } else {
            self.fold();
            let next = self.used.range(unit + 1..).next().map(|(&next, _)| next);
            let fits = unit + units <= next.unwrap_or(UNITS);
            let grown = self.spans.grow(unit, units);
            assert_eq!(grown.is_some(), fits, "from {old} to {units} units");
            let Some(made) = grown else { return };
            let from = made.dirty.max(old);
            let known = self.bytes(unit + from, units - from);
            assert!(known.iter().all(|&byte| byte == 0), "memory said to be zero is not");
            self.write(unit, units, pattern);
            self.used.insert(unit, (units, pattern));
            self.top = self.top.max(unit + units);
        }
    }

    fn step(&mut self, op: u8, a: u16, b: u16) {
        let (a, b) = (a as usize, b as usize);
        let units = match b % 16 {
            0 => 1 + a % 3000,
            1..=4 => 1 + a % 200,
            _ => 1 + a % 9,
        };
        match op % 16 {
            0..=6 => self.alloc(units, [1, 1, 1, 4, 64, 1024][b / 16 % 6]),
            7..=10 => self.free(a, false),
            11 | 12 => self.free(a, true),
            13 => self.resize(b, units),
            14 if a % 4 == 0 => {
                self.fold();
                self.spans.discard_free(a % 8 == 0, false);
                if a % 16 == 0 {
                    self.spans.age();
                }
            }
            _ => {
                let freed = self.freed.len();
                self.fold();
                assert_eq!(self.spans.fold(), freed, "each remote free is folded once");
            }
        }
        self.spans.debug_check();
        let used: usize = self.used.values().map(|span| span.0).sum();
        assert_eq!((self.spans.state.used, self.spans.state.top), (used, self.top));
    }

    fn finish(mut self) {
        while !self.order.is_empty() {
            self.free(self.order.len() / 2, self.order.len() % 3 == 0);
        }
        self.spans.fold();
        self.spans.debug_check();
        assert_eq!(self.spans.state.used, 0);
        assert_eq!(
            *self.longest.iter().max().unwrap() as usize,
            self.top,
            "all is one free span"
        );
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // SAFETY: made in `new`; nothing uses it any more.
        unsafe { sys::release(self.raw, self.bytes) };
    }
}

proptest! {
    // A program walks all units after each operation.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

    #[test]
    fn programs_agree_with_the_oracle(program in prop::collection::vec(any::<(u8, u16, u16)>(), 1..200)) {
        let mut oracle = Oracle::new();
        for (op, a, b) in program {
            oracle.step(op, a, b);
        }
        oracle.finish();
    }
}

/// What other threads free comes back from every region, of which there are more than the flag's word has bits.
#[test]
fn spans_freed_by_others_come_back_wherever_they_are() {
    const MANY: usize = 150;
    let tables = (MANY * REGION_BYTES).next_multiple_of(PART);
    let bytes = tables + MANY * REGION_UNITS * UNIT;
    let raw = sys::reserve(bytes);
    assert!(!raw.is_null());
    let (mut longest, flag) = ([0; MANY], AtomicU64::new(0));
    let mut backing = vec![0; bytes / HUGE_PAGE + 2];
    let huge = huge_pages(raw, &mut backing);
    // SAFETY: tables and area are parts of the reservation just made; `longest` and `flag` live as long as the spans.
    let mut spans = unsafe {
        let (area, limit) = (raw.add(tables), MANY * REGION_UNITS);
        Spans::new(
            raw,
            longest.as_mut_ptr(),
            &flag,
            area,
            limit,
            SpanState::default(),
            huge,
        )
    };
    // Nobody touches their memory, so that they cost none.
    let units = REGION_UNITS / 2 - 5;
    let mut blocks: Vec<usize> = (0..2 * MANY).map(|_| spans.alloc(units, 1).unwrap().unit).collect();
    for lots in [1, 3, 70, 2 * MANY] {
        let mut left = 2 * MANY;
        for lot in blocks.chunks(lots) {
            for &unit in lot {
                // SAFETY: the tables are committed, the span is used and this test's to free.
                assert!(unsafe { free_remote(raw, &flag, unit) });
            }
            assert_eq!(spans.fold(), lot.len(), "{lot:?}");
            left -= lot.len();
            assert_eq!(spans.state.used, left * units);
        }
        let again: Vec<usize> = blocks.iter().map(|_| spans.alloc(units, 1).unwrap().unit).collect();
        assert_eq!(again, blocks, "the same places");
        blocks = again;
    }
    spans.debug_check();
    // SAFETY: made above; nothing uses it any more.
    unsafe { sys::release(raw, bytes) };
}
