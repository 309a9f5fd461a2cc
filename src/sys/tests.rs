//! The contract, call by call, on whatever system this is: what `mod.rs` says of each, and no more than that.
//!
//! Nothing here goes through an allocator: a system file that breaks its promise shows here first, and by its name. What a
//! call may not do to pages beside its own is looked at as well. Where the system may not be touched at all a child touches.

use super::*;
use crate::layout::HUGE_PAGE;
use std::process::Command;
use std::string::String;
use std::vec::Vec;

/// A reservation, its pages by number. Tests that release say so themselves.
struct Pages {
    base: *mut u8,
    count: usize,
}

impl Pages {
    fn reserve(count: usize) -> Pages {
        let base = reserve(count * page_size());
        assert!(!base.is_null(), "{count} pages are refused");
        assert_eq!(base.addr() % page_size(), 0);
        Pages { base, count }
    }

    fn committed(count: usize) -> Pages {
        let pages = Pages::reserve(count);
        assert!(pages.commit(0, count));
        pages
    }

    fn at(&self, page: usize) -> *mut u8 {
        assert!(page <= self.count);
        self.base.wrapping_add(page * page_size())
    }

    fn commit(&self, from: usize, to: usize) -> bool {
        // SAFETY: whole pages of our reservation.
        unsafe { commit(self.at(from), (to - from) * page_size()) }
    }

    fn discard(&self, from: usize, to: usize) -> bool {
        // SAFETY: whole pages that the test has committed, and no test relies on what they held.
        unsafe { discard(self.at(from), (to - from) * page_size()) }
    }

    fn decommit(&self, from: usize, to: usize) -> bool {
        // SAFETY: as above.
        unsafe { decommit(self.at(from), (to - from) * page_size()) }
    }

    fn resident(&self, from: usize, to: usize) -> usize {
        // SAFETY: whole pages that the test has committed.
        unsafe { resident(self.at(from), (to - from) * page_size()) / page_size() }
    }

    /// The bytes of committed pages.
    fn bytes(&self, from: usize, to: usize) -> &[u8] {
        // SAFETY: committed by the test, which writes to none of them while it looks.
        unsafe { core::slice::from_raw_parts(self.at(from), (to - from) * page_size()) }
    }

    /// Writes this byte all over committed pages.
    fn set(&self, from: usize, to: usize, byte: u8) {
        // SAFETY: committed by the test.
        unsafe { self.at(from).write_bytes(byte, (to - from) * page_size()) };
    }

    /// Gives each page its own contents.
    fn fill(&self, from: usize, to: usize) {
        for page in from..to {
            self.set(page, page + 1, page as u8 % 200 + 1);
        }
    }

    /// Whether every byte of the page is `byte`: the first, and each as the one before it, which is one `memcmp`.
    fn is_all(&self, page: usize, byte: u8) -> bool {
        let bytes = self.bytes(page, page + 1);
        bytes[0] == byte && bytes[..bytes.len() - 1] == bytes[1..]
    }

    fn assert_filled(&self, from: usize, to: usize) {
        (from..to).for_each(|page| assert!(self.is_all(page, page as u8 % 200 + 1), "page {page}"));
    }

    fn assert_zero(&self, from: usize, to: usize) {
        (from..to).for_each(|page| assert!(self.is_all(page, 0), "page {page}"));
    }

    fn release(self) {
        // SAFETY: made by `reserve` with this size, and the test is through with it.
        unsafe { release(self.base, self.count * page_size()) };
    }
}

#[test]
fn the_page_is_the_systems() {
    assert!(page_size().is_power_of_two() && page_size() >= 4096);
    // SAFETY: sysconf reads a constant of the system.
    #[cfg(unix)]
    assert_eq!(page_size(), unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize);
}

#[test]
fn a_system_without_reservations_refuses_them() {
    assert_eq!(reserve(page_size()).is_null(), !HAS_RESERVATIONS);
    assert_eq!(address_space() > 0, HAS_RESERVATIONS);
    assert!(address_space() <= 1 << 47);
}

#[test]
fn committed_pages_are_zero_and_keep_what_is_written() {
    if !HAS_RESERVATIONS {
        return;
    }
    for count in [1, 2, 3, 16, 17, 1_000] {
        let pages = Pages::reserve(count);
        assert!(pages.commit(count - 1, count));
        pages.assert_zero(count - 1, count);
        pages.fill(count - 1, count);
        assert!(pages.commit(count / 2, count), "some of it once more");
        pages.assert_zero(count / 2, count - 1);
        pages.fill(count / 2, count - 1);
        assert!(pages.commit(0, count) && pages.commit(0, 0));
        pages.assert_zero(0, count / 2);
        pages.assert_filled(count / 2, count);
        pages.release();
    }
}

#[test]
fn a_large_reservation_takes_pages_anywhere() {
    if !HAS_RESERVATIONS {
        return;
    }
    let pages = Pages::reserve((1 << 30) / page_size());
    for page in [0, 1, pages.count / 3, pages.count / 2, pages.count - 1] {
        assert!(pages.commit(page, page + 1));
        pages.assert_zero(page, page + 1);
        pages.fill(page, page + 1);
    }
    pages.assert_filled(pages.count / 3, pages.count / 3 + 1);
    pages.assert_filled(pages.count - 1, pages.count);
    pages.release();
}

#[test]
fn reservations_are_apart_and_go_one_by_one() {
    if !HAS_RESERVATIONS {
        return;
    }
    let mut all: Vec<Pages> = (1..20).map(Pages::committed).collect();
    for pages in &all {
        pages.fill(0, pages.count);
    }
    while !all.is_empty() {
        all.iter().for_each(|pages| pages.assert_filled(0, pages.count));
        all.swap_remove(all.len() / 2).release();
    }
}

/// Committing pages of a reservation that was given back is refused, for there is nothing any more. Another thread may have
/// got the place in between, so not every round need show it, but one must.
#[test]
fn a_released_reservation_is_gone_to_its_end() {
    if !HAS_RESERVATIONS {
        return;
    }
    const PAGES: usize = 64;
    for page in [0, 1, PAGES / 2, PAGES - 1] {
        let gone = (0..20).any(|_| {
            let pages = Pages::committed(PAGES);
            let at = pages.at(page);
            pages.release();
            // SAFETY: asks for what is refused; if it is not, it makes usable what is reserved, and changes nothing in it.
            !unsafe { commit(at, page_size()) }
        });
        assert!(gone, "page {page} is still there");
    }
}

#[test]
fn discarded_pages_are_usable_and_hold_no_memory() {
    if !HAS_RESERVATIONS {
        return;
    }
    let pages = Pages::committed(96);
    for round in 0..3 {
        pages.fill(0, 96);
        assert_eq!(pages.resident(32, 64), 32);
        assert!(pages.discard(32, 64) && pages.discard(70, 70));
        let held = pages.resident(32, 64);
        assert!(held < 8, "round {round}: {held} of 32 pages are still in memory");
        pages.assert_filled(0, 32);
        pages.assert_filled(64, 96);
        if cfg!(unix) {
            pages.assert_zero(32, 64);
        } else {
            for page in 32..64 {
                let was = page as u8 % 200 + 1;
                assert!(pages.bytes(page, page + 1).iter().all(|&byte| byte == 0 || byte == was));
            }
        }
    }
    // Zeros stay zeros, wherever they are.
    pages.set(32, 64, 0);
    assert!(pages.discard(32, 64));
    pages.assert_zero(32, 64);
    pages.fill(32, 64);
    pages.assert_filled(0, 96);
    pages.release();
}

#[test]
fn decommitted_pages_come_back_as_zeros() {
    if !HAS_RESERVATIONS {
        return;
    }
    let pages = Pages::committed(96);
    for _ in 0..3 {
        pages.fill(0, 96);
        assert!(pages.decommit(32, 64) && pages.decommit(70, 70));
        pages.assert_filled(0, 32);
        pages.assert_filled(64, 96);
        assert!(pages.commit(48, 64) && pages.commit(32, 48));
        assert_eq!(pages.resident(32, 64), 0, "pages are in memory before they are touched");
        pages.assert_zero(32, 64);
    }
    pages.fill(32, 64);
    pages.assert_filled(0, 96);
    assert!(pages.decommit(0, 96), "all of it");
    pages.release();
}

#[test]
fn the_clock_goes_on() {
    if !HAS_RESERVATIONS {
        return;
    }
    let before = coarse_millis();
    std::thread::sleep(std::time::Duration::from_millis(100));
    let passed = coarse_millis() - before;
    assert!((50..60_000).contains(&passed), "{passed} ms");
}

/// What a child does at its end.
fn end(how: &str) {
    let touch = |p: *mut u8| {
        // SAFETY: none: the page may not be touched, and the child is to end by that.
        let byte = unsafe { p.read_volatile() };
        println!("it reads as {byte}");
    };
    let pages = Pages::committed(3);
    pages.fill(0, 3);
    match how {
        "reserved" => touch(Pages::reserve(3).at(1)),
        "committed" => touch(pages.at(1)),
        "decommitted" => {
            assert!(pages.decommit(1, 2));
            touch(pages.at(1));
        }
        "beside" => {
            assert!(pages.decommit(1, 2));
            touch(pages.at(2));
        }
        _ => die("stepalloc: a message of its own\n"),
    }
}

#[test]
fn what_is_only_reserved_may_not_be_touched() {
    const ROLE: &str = "STEPALLOC_SYS_ROLE";
    if !HAS_RESERVATIONS {
        return;
    }
    if let Ok(how) = std::env::var(ROLE) {
        return end(&how);
    }
    for (how, lives, says) in [
        ("committed", true, "it reads as 2"),
        ("beside", true, "it reads as 3"),
        ("reserved", false, ""),
        ("decommitted", false, ""),
        ("die", false, "stepalloc: a message of its own"),
    ] {
        let program = std::env::current_exe().unwrap();
        let mut command = match std::env::var_os("STEPALLOC_TEST_RUNNER") {
            None => Command::new(&program),
            Some(runner) => {
                let mut command = Command::new(runner);
                command.arg(&program);
                command
            }
        };
        let name = "sys::tests::what_is_only_reserved_may_not_be_touched";
        let output = command
            .args([name, "--exact", "--nocapture"])
            .env(ROLE, how)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("running 1 test"), "{how}: {text}");
        assert_eq!(output.status.success(), lives, "{how}: {}\n{text}", output.status);
        assert!(text.contains(says), "{how}: {text}");
        assert!(lives || !text.contains("it reads as"), "{how}: {text}");
    }
}

#[test]
fn joining_and_splitting_change_no_contents() {
    let per_huge = HUGE_PAGE / page_size();
    if !HAS_RESERVATIONS || per_huge < 4 {
        return;
    }
    let pages = Pages::committed(4 * per_huge);
    let first = (pages.base.addr().next_multiple_of(HUGE_PAGE) - pages.base.addr()) / page_size();
    pages.fill(0, 4 * per_huge);
    // Whatever the system says of it.
    // SAFETY: two huge pages' worth of committed pages, aligned to them.
    let _joined = unsafe { join(pages.at(first), 2 * HUGE_PAGE) };
    pages.assert_filled(0, 4 * per_huge);
    // Over the border between the two.
    let (from, to) = (first + per_huge - 1, first + 2 * per_huge - 1);
    assert!(pages.discard(from, to));
    // SAFETY: as above.
    unsafe { split(pages.at(first), 2 * HUGE_PAGE) };
    pages.assert_filled(0, from);
    pages.assert_filled(to, 4 * per_huge);
    if cfg!(unix) {
        pages.assert_zero(from, to);
    }
    pages.fill(from, to);
    pages.assert_filled(0, 4 * per_huge);
    pages.release();
}

#[cfg(all(any(target_os = "linux", target_os = "android"), not(stepalloc_small_space)))]
#[test]
fn page_faults_are_the_threads_own() {
    let touch = || {
        let before = thread_faults().unwrap();
        let pages = Pages::committed(1_000);
        for page in 0..1_000 {
            // SAFETY: a page of our own, just committed.
            unsafe { pages.base.add(page * page_size()).write(1) };
        }
        thread_faults().unwrap() - before
    };
    let before = thread_faults().unwrap();
    let others = std::thread::spawn(touch).join().unwrap();
    let mine = thread_faults().unwrap() - before;
    assert!(others >= 1_000, "{others} faults for 1,000 pages");
    assert!(
        mine < 500,
        "{mine} of {others} faults of another thread are counted here"
    );
}
