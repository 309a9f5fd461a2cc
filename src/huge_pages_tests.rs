//! What Linux makes of it, as `/proc` tells: how much of a range is in huge pages, and how many of those were split. Where
//! this system joins nothing (older than 6.1, or forbidden) what is left is that refusals do no harm.

use super::*;
use std::fs::read_to_string;
use std::vec::Vec;

const PAGE: usize = 4096;
/// Ranges of a reservation of a test.
const COUNT: usize = 7;
const RESERVED: usize = (COUNT + 2) * HUGE_PAGE;

struct Area {
    raw: *mut u8,
    p: *mut u8,
    table: Vec<u8>,
    pass: Pass,
}

impl Area {
    /// Committed, and nothing of it touched; what is not committed on both sides keeps it apart from others in `/proc`.
    fn new() -> Area {
        let raw = sys::reserve(RESERVED);
        assert!(!raw.is_null());
        let p = raw.map_addr(|addr| (addr + 1).next_multiple_of(HUGE_PAGE));
        // SAFETY: inside the reservation just made.
        assert!(unsafe { sys::commit(p, COUNT * HUGE_PAGE) });
        let table = vec![0; COUNT];
        let pass = Pass::NEW;
        Area { raw, p, table, pass }
    }

    fn huge(&mut self) -> HugePages {
        // SAFETY: a byte for each range, which lives as long as the area.
        unsafe { HugePages::new(self.table.as_mut_ptr(), self.p) }
    }

    fn at(&self, page: usize) -> *mut u8 {
        self.p.wrapping_add(page * PAGE)
    }

    /// Writes to each of these pages.
    fn touch(&self, from: usize, to: usize) {
        for page in from..to {
            // SAFETY: a committed page of ours.
            unsafe { self.at(page).cast::<usize>().write(page + 1) };
        }
    }

    /// Writes to the first page of four ranges, of which the last three were asked for. How many came in huge pages: three,
    /// where those are to be had.
    fn touch_three_asked_for(&self) -> usize {
        (0..4).for_each(|range| self.touch(range * ALL, range * ALL + 1));
        let huge_pages = self.in_huge_pages() / HUGE_PAGE;
        assert!(huge_pages <= 3);
        assert_eq!(self.resident(), huge_pages * ALL + 4 - huge_pages);
        huge_pages
    }

    /// Looks whether these pages have what was written.
    fn check(&self, from: usize, to: usize) {
        for page in from..to {
            // SAFETY: as above.
            assert_eq!(unsafe { self.at(page).cast::<usize>().read() }, page + 1);
        }
    }

    /// Pages of the area that are in memory.
    fn resident(&self) -> usize {
        // SAFETY: committed pages.
        unsafe { sys::resident(self.p, COUNT * HUGE_PAGE) / PAGE }
    }

    fn go(&mut self, from: usize, to: usize) {
        let (p, bytes) = (self.at(from), (to - from) * PAGE);
        // SAFETY: committed pages of ours that nobody reads again before they are written.
        unsafe {
            assert!(sys::discard(p, bytes));
            self.huge().gone(p, bytes);
        }
    }

    /// A whole pass over the first ranges, one after the other.
    fn pass(&mut self, ranges: usize) {
        let huge = self.huge();
        for call in 1.. {
            self.pass.worked = usize::MAX;
            // SAFETY: committed pages of ours.
            unsafe { huge.join(&mut self.pass, self.p, ranges * HUGE_PAGE) };
            if self.pass.next == 0 {
                return;
            }
            assert_eq!(self.pass.worked, 0, "a range was joined without being paid for");
            assert!(call < ranges, "the pass does not end");
        }
    }

    /// As many passes as it takes to join these: the system may refuse for a moment. And no others are joined.
    fn join(&mut self, ranges: usize, expected: [u8; COUNT]) {
        let can_join = can_join();
        for _ in 0..if can_join { 100 } else { 1 } {
            self.pass(ranges);
            assert!(self
                .table
                .iter()
                .zip(expected)
                .all(|(&now, then)| now == then || now == SMALL));
            if self.table == expected {
                let joined = expected.iter().filter(|&&backing| backing == JOINED).count();
                assert_eq!(self.in_huge_pages(), joined * HUGE_PAGE);
                return;
            }
        }
        assert!(!can_join, "{:?} are joined", self.table);
    }

    /// Bytes of the area that are in huge pages.
    fn in_huge_pages(&self) -> usize {
        let (from, to) = (self.p.addr(), self.p.addr() + COUNT * HUGE_PAGE);
        let (mut is_ours, mut kib) = (false, 0);
        for line in read_to_string("/proc/self/smaps").unwrap().lines() {
            let mut words = line.split_whitespace();
            let (first, second) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            if let Some((start, end)) = first.split_once('-').filter(|_| !first.ends_with(':')) {
                let [start, end] = [start, end].map(|hex| usize::from_str_radix(hex, 16).unwrap());
                is_ours = start < to && end > from;
            } else if is_ours && first == "AnonHugePages:" {
                kib += second.parse::<usize>().unwrap();
            }
        }
        kib << 10
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the reservation that `new` has made.
        unsafe { sys::release(self.raw, RESERVED) };
    }
}

/// Whether this system joins pages at all.
fn can_join() -> bool {
    let area = Area::new();
    area.touch(0, ALL);
    // SAFETY: a committed range, all in memory.
    (0..100).any(|_| unsafe { sys::join(area.p, HUGE_PAGE) })
}

/// How many huge pages this system has split. Others may split some meanwhile, so that more is no sign.
fn splits() -> usize {
    let text = read_to_string("/proc/vmstat").unwrap();
    let number = text.lines().find_map(|line| line.strip_prefix("thp_split_page "));
    number.map_or(0, |number| number.parse().unwrap())
}

const ALL: usize = HUGE_PAGE / PAGE;

#[test]
fn only_full_ranges_are_joined_and_nothing_is_held_for_it() {
    let mut area = Area::new();
    // Range 2 lacks a page, range 4 is empty, the last is not the area's.
    area.touch(0, 3 * ALL - 1);
    area.touch(3 * ALL, 4 * ALL);
    area.touch(5 * ALL, 7 * ALL);
    let held = area.resident();
    assert_eq!((held, area.in_huge_pages()), (6 * ALL - 1, 0));
    area.join(6, [JOINED, JOINED, SMALL, JOINED, SMALL, JOINED, SMALL]);
    assert_eq!(area.resident(), held);
    area.check(0, 3 * ALL - 1);
    area.check(3 * ALL, 4 * ALL);
    area.check(5 * ALL, 7 * ALL);
    // What is full by now comes in a later pass.
    area.touch(3 * ALL - 1, 3 * ALL);
    area.join(6, [JOINED, JOINED, JOINED, JOINED, SMALL, JOINED, SMALL]);
    assert_eq!(area.resident(), held + 1);
    area.check(0, 4 * ALL);
}

#[test]
fn what_went_back_whole_comes_again_in_small_pages() {
    let mut area = Area::new();
    area.touch(0, 3 * ALL);
    let all = [JOINED, JOINED, JOINED, SMALL, SMALL, SMALL, SMALL];
    area.join(3, all);
    area.go(ALL, 2 * ALL);
    assert_eq!((area.resident(), area.table[1]), (2 * ALL, SMALL));
    area.touch(ALL + 7, ALL + 8);
    assert_eq!(area.resident(), 2 * ALL + 1, "a touch brings a page");
    area.check(0, ALL);
    area.check(2 * ALL, 3 * ALL);
    // And is joined again when it is full.
    area.touch(ALL, 2 * ALL);
    area.join(3, all);
    area.check(0, 3 * ALL);
}

#[test]
fn what_went_back_in_part_is_not_kept_by_the_system() {
    let mut area = Area::new();
    area.touch(0, 3 * ALL);
    area.join(3, [JOINED, JOINED, JOINED, SMALL, SMALL, SMALL, SMALL]);
    let (before, joined) = (splits(), area.in_huge_pages() / HUGE_PAGE);
    area.go(1, ALL);
    area.go(2 * ALL - 5, 2 * ALL + 5);
    assert_eq!(area.resident(), 3 * ALL - (ALL - 1) - 10);
    assert_eq!(area.table, [SMALL; COUNT]);
    assert!(
        splits() >= before + joined,
        "parts of huge pages that went back are kept"
    );
    area.check(0, 1);
    area.check(ALL, 2 * ALL - 5);
    area.check(2 * ALL + 5, 3 * ALL);
}

#[test]
fn what_was_asked_for_is_huge_until_a_part_goes_back() {
    let mut area = Area::new();
    let huge = area.huge();
    // SAFETY: committed pages of ours.
    unsafe { huge.ask(area.at(1), 4 * HUGE_PAGE) };
    assert_eq!(area.table, [SMALL, ASKED, ASKED, ASKED, SMALL, SMALL, SMALL]);
    let huge_pages = area.touch_three_asked_for();
    area.pass(7);
    assert_eq!(area.table, [SMALL, ASKED, ASKED, ASKED, SMALL, SMALL, SMALL]);
    // One goes back whole, one in part.
    area.go(ALL, 2 * ALL + 1);
    assert_eq!(area.table, [SMALL, ASKED, SMALL, ASKED, SMALL, SMALL, SMALL]);
    area.go(2 * ALL, 3 * ALL);
    let before = area.resident();
    area.touch(2 * ALL, 2 * ALL + 1);
    assert_eq!(area.resident(), before + 1, "a touch brings a page");
    area.touch(ALL, ALL + 1);
    let brought = area.resident() - before - 1;
    assert!(brought == 1 || brought == ALL && huge_pages > 0, "{brought} pages");
}

#[test]
fn what_was_asked_for_once_is_huge_until_it_goes_back() {
    let mut area = Area::new();
    let huge = area.huge();
    // SAFETY: committed pages of ours.
    unsafe { huge.ask_once(area.at(1), 5 * HUGE_PAGE) };
    let asked = [SMALL, ASKED_ONCE, ASKED_ONCE, ASKED_ONCE, ASKED_ONCE, SMALL, SMALL];
    assert_eq!(area.table, asked);
    let huge_pages = area.touch_three_asked_for();
    area.pass(7);
    assert_eq!(area.table, asked);
    // What came along with a page is the rest of its range, where it was asked for.
    for (page, along) in [(7, 0), (ALL, 0), (ALL + 1, ALL - 1), (3 * ALL - 1, 1), (5 * ALL + 1, 0)] {
        assert_eq!(huge.came_along(area.at(page)), along * PAGE, "page {page}");
    }
    // One goes back whole, one in part; the one behind them is as it was.
    let before = splits();
    area.go(ALL, 2 * ALL);
    area.go(2 * ALL + 1, 3 * ALL);
    assert_eq!(area.table, [SMALL, SMALL, SMALL, ASKED_ONCE, ASKED_ONCE, SMALL, SMALL]);
    assert!(huge_pages < 3 || splits() > before, "a part that went back is kept");
    let before = area.resident();
    area.touch(ALL + 3, ALL + 4);
    area.touch(2 * ALL + 3, 2 * ALL + 4);
    assert_eq!(area.resident(), before + 2, "a touch brings a page");
    area.check(0, 1);
    area.check(2 * ALL, 2 * ALL + 1);
    area.check(3 * ALL, 3 * ALL + 1);
    assert_eq!(area.resident(), before + 2);
}

#[test]
fn passes_and_ranges_are_paid_for_and_refusals_double_it() {
    let bytes = 10 * HUGE_PAGE;
    let mut pass = Pass::NEW;
    pass.worked = 100 * 10 * SETTLED;
    assert!(pass.is_due(99, bytes) && !pass.is_due(100, bytes));
    assert!(pass.is_due(999, HUGE_PAGE - 1) && !pass.is_due(1_000, 0));
    pass.next = 3;
    assert!(pass.is_due(1_999, bytes) && !pass.is_due(2_000, bytes));
    pass.refusals = 3;
    assert!(pass.is_due(249, bytes) && !pass.is_due(250, bytes));
}
