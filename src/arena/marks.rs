//! Which checkpoints still hold.
//!
//! A checkpoint is a plain value that its owner may keep for ever, copy, and bring back in any order, so the arena
//! itself must know which ones are live. Each gets a serial that no arena of the process ever uses again: an arena
//! draws ranges of them from a counter, each twice as long as the last. Going back to a checkpoint kills every later one.
//! Live checkpoints therefore form a stack; those made at one place with nothing allocated between share an entry, a
//! **mark**, which holds the range of their serials:
//!
//! ```text
//!   serials   1..=3      5..=5        8..=9  <- the newest mark
//!   place      a     <=   b      <=    c = floor
//! ```
//!
//! The serial of a checkpoint brought back is looked up by bisection; one that falls between the ranges, or above the
//! last, was killed. A loop that makes a checkpoint each step at the same place extends one range for ever.
//!
//! Memory: one entry for each place where a live checkpoint was made, and at most `RUN` for one place. Where programs
//! make and kill more than that at a single place the ranges are joined, and a killed checkpoint of exactly that place
//! counts as live again. It frees what any live one of that place frees.
//!
//! A scope hides the marks made outside it until it ends: going back past its start would free what it lends out. Most
//! scopes make no checkpoint and take no block, nor has what is around them. So nothing is written down when such a scope
//! begins but the floor; how many marks and blocks there were then is noted when the first one is made.

use crate::error::AllocError;
use crate::sync::{AtomicU64, Ordering};
use core::cell::{Cell, RefCell};
use core::fmt;
use core::ptr;

/// How many ranges of serials one place keeps apart.
const RUN: usize = 32;

/// How many serials an arena draws at first; each later range is twice as long. A power of two, and small enough that
/// no process runs out: at ten million arenas a second, each with a checkpoint, 2^64 serials last for 57 years.
const SERIALS: u64 = 1024;

// What `newest` says when there is no newest mark: multiples of `SERIALS` below every serial.

/// No checkpoint was made and no block taken since the innermost scope began, nor in the scopes around it.
pub(super) const UNTOUCHED: u64 = 0;
/// In the innermost scope one was made or taken.
const TOUCHED: u64 = SERIALS;
/// Not in the innermost scope, but in one around it.
const AROUND: u64 = 2 * SERIALS;
/// The arena has no block yet, and no scope is open.
const EMPTY: u64 = 3 * SERIALS;

/// The next range begins after this serial.
static DRAWN: AtomicU64 = AtomicU64::new(4 * SERIALS);

/// A place in an arena to go back to.
///
/// Made by [`Arena::checkpoint`](crate::Arena::checkpoint). It borrows nothing, and a stale one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    pub(super) serial: u64,
    pub(super) position: *mut u8,
}

// SAFETY: the pointer is only compared with those of the arena it came from.
unsafe impl Send for Checkpoint {}
// SAFETY: as above; a shared checkpoint is read only.
unsafe impl Sync for Checkpoint {}

/// Why a checkpoint was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointError {
    /// It was made by another arena.
    Foreign,
    /// The arena has since gone back past it, or a scope opened since is still open.
    Stale,
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CheckpointError::Foreign => "the checkpoint was made by another arena",
            CheckpointError::Stale => "the arena has gone back past this checkpoint, or is in a scope opened after it",
        })
    }
}

impl std::error::Error for CheckpointError {}

/// Where an arena is or was. What else going back restores stands with the blocks taken since (`Block::before`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) position: *mut u8,
    pub(super) in_use: usize,
}

/// The marks of one arena.
///
/// - **M1** If `newest` is above `EMPTY` it is the last serial given out, and the newest mark is the serials
///   `first..=newest` at `floor` with the blocks in use now. So its common case needs neither a search nor more than one
///   write.
/// - **M2** `entries` holds the other live marks, serials ascending. `touched` has an entry for each open scope, and for
///   the arena outside all scopes, in which a checkpoint was made or a block taken (the first block is not counted).
///   The last one is the innermost scope's, with the marks from `start` on, exactly if `newest` is `TOUCHED` or a serial.
/// - **M3** `floor` is the position of the newest live checkpoint or open scope, if the current block is still the one of
///   that time, else the start of the current block.
/// - **M4** Each serial given out is in one of `ranges`, and in the ranges of no other arena.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Marks {
    newest: Cell<u64>,
    floor: Cell<*mut u8>,
    first: Cell<u64>,
    /// The last serial given out, unless `newest` is.
    serial: Cell<u64>,
    touched: RefCell<Vec<Touched>>,
    entries: RefCell<Vec<Entry>>,
    /// Serials above the first number, up to the second.
    ranges: RefCell<Vec<(u64, u64)>>,
}

#[derive(Debug)]
struct Entry {
    first: u64,
    last: u64,
    place: Place,
}

/// How much there was when a scope began.
#[derive(Debug)]
struct Touched {
    /// Where it began.
    position: *mut u8,
    /// Entries of `entries`.
    start: usize,
    /// Blocks in use.
    in_use: usize,
}

/// What a scope restores at its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hidden {
    state: u64,
    floor: *mut u8,
}

impl Marks {
    pub(super) const fn new() -> Marks {
        Marks {
            newest: Cell::new(EMPTY),
            floor: Cell::new(ptr::null_mut()),
            first: Cell::new(0),
            serial: Cell::new(0),
            touched: RefCell::new(Vec::new()),
            entries: RefCell::new(Vec::new()),
            ranges: RefCell::new(Vec::new()),
        }
    }

    #[inline(always)]
    pub(super) fn floor(&self) -> *mut u8 {
        self.floor.get()
    }

    /// Kills every checkpoint; no scope is open. The arena begins again at `floor`, null if it has no block.
    pub(super) fn clear(&mut self, floor: *mut u8) {
        self.forget_newest(if floor.is_null() { EMPTY } else { UNTOUCHED });
        self.entries.get_mut().clear();
        self.touched.get_mut().clear();
        self.floor.set(floor);
    }

    /// The serial of a checkpoint at `position`, if nothing was allocated since the newest one was made.
    #[inline(always)]
    pub(super) fn extend(&self, position: *mut u8) -> Option<u64> {
        let newest = self.newest.get();
        // Ranges end at multiples of `SERIALS`, and without a newest mark there is one too: both need the slow path.
        if newest % SERIALS == 0 || self.floor.get() != position {
            return None;
        }
        self.newest.set(newest + 1);
        Some(newest + 1)
    }

    /// Whether this is the serial of the newest checkpoint: it is of this arena (M4), its place is the floor, and
    /// going back there kills none.
    #[inline(always)]
    pub(super) fn is_newest(&self, serial: u64) -> bool {
        serial == self.newest.get()
    }

    /// Whether a checkpoint of this arena has this serial.
    pub(super) fn is_ours(&self, serial: u64) -> bool {
        let ranges = self.ranges.borrow();
        ranges.iter().any(|&(before, last)| before < serial && serial <= last)
    }

    /// Makes sure that `bury` needs no memory.
    pub(super) fn try_reserve(&self) -> Result<(), AllocError> {
        let (mut entries, mut touched) = (self.entries.borrow_mut(), self.touched.borrow_mut());
        let entries = entries.try_reserve(1);
        entries
            .and_then(|()| touched.try_reserve(1))
            .map_err(|_| AllocError::OutOfMemory)
    }

    /// Puts the newest mark, if there is one, among the others, for a checkpoint is made elsewhere, a block taken, or a
    /// scope begun; `in_use` blocks were in use until now.
    #[inline(never)]
    pub(super) fn bury(&self, in_use: usize) {
        let state = self.newest.get();
        if state == EMPTY {
            return self.newest.set(UNTOUCHED);
        }
        if state == UNTOUCHED || state == AROUND {
            self.touched.borrow_mut().push(Touched {
                // M3: nothing has moved the floor since.
                position: self.floor.get(),
                start: self.entries.borrow().len(),
                in_use,
            });
        }
        if state > EMPTY {
            let (first, last) = (self.first.get(), state);
            let position = self.floor.get();
            let place = Place { position, in_use };
            self.entries.borrow_mut().push(Entry { first, last, place });
        }
        self.forget_newest(TOUCHED);
    }

    /// The current block is another one from now on.
    pub(super) fn set_floor(&self, floor: *mut u8) {
        debug_assert!(self.newest.get() <= TOUCHED);
        self.floor.set(floor);
    }

    /// Makes a newest mark of one checkpoint, at `now`, and returns its serial.
    pub(super) fn push(&self, now: Place) -> u64 {
        self.bury(now.in_use);
        let serial = self.next_serial();
        let mut first = serial;
        let mut entries = self.entries.borrow_mut();
        let len = entries.len();
        let start = self.touched.borrow().last().map_or(0, |touched| touched.start);
        if len - start >= RUN && entries[len - RUN].place == now {
            first = entries[len - RUN].first;
            entries.truncate(len - RUN);
        }
        self.first.set(first);
        self.newest.set(serial);
        self.floor.set(now.position);
        serial
    }

    /// A serial above all that were given out.
    fn next_serial(&self) -> u64 {
        debug_assert!(self.newest.get() <= TOUCHED);
        let mut ranges = self.ranges.borrow_mut();
        let serial = self.serial.get();
        match ranges.last() {
            Some(&(_, last)) if serial < last => serial + 1,
            newest => {
                let len = newest.map_or(SERIALS, |&(before, last)| (last - before).saturating_mul(2));
                // Relaxed: only the uniqueness of the range matters, and a read-modify-write gives that.
                let before = DRAWN.fetch_add(len, Ordering::Relaxed);
                ranges.push((before, before.saturating_add(len)));
                before + 1
            }
        }
    }

    /// The place of a live checkpoint of this arena; those made after it are dead from now on.
    pub(super) fn rewind(&self, checkpoint: &Checkpoint, in_use: usize) -> Option<Place> {
        let serial = checkpoint.serial;
        if matches!(self.newest.get(), UNTOUCHED | AROUND | EMPTY) {
            return None;
        }
        // The newest mark is buried before the search, which changes nothing for a checkpoint that is then refused.
        self.bury(in_use);
        let mut entries = self.entries.borrow_mut();
        let start = self.touched.borrow().last().map_or(0, |touched| touched.start);
        let later = entries[start..].partition_point(|entry| entry.first <= serial);
        let index = start + later.checked_sub(1)?;
        let entry = &mut entries[index];
        if serial > entry.last || checkpoint.position != entry.place.position {
            return None;
        }
        entry.last = serial;
        let (first, place) = (entry.first, entry.place);
        entries.truncate(index + 1);
        self.floor.set(place.position);
        if serial == self.serial.get() {
            // No later one was ever made, so that the mark may be the newest again (M1).
            entries.pop();
            self.first.set(first);
            self.newest.set(serial);
        }
        Some(place)
    }

    /// Whether neither in the innermost scope nor around it a checkpoint was made or a block taken.
    #[inline(always)]
    pub(super) fn is_untouched(&self) -> bool {
        self.newest.get() == UNTOUCHED
    }

    /// Hides all marks: a scope begins at `position`.
    ///
    /// `state` is what `begin_touched` returned, if the arena is not untouched.
    #[inline(always)]
    pub(super) fn hide(&self, position: *mut u8, state: u64) -> Hidden {
        Hidden {
            state,
            floor: self.floor.replace(position),
        }
    }

    /// Makes ready for a scope where something has happened around it.
    pub(super) fn begin_touched(&self, in_use: usize) -> u64 {
        if self.newest.get() >= EMPTY {
            self.bury(in_use);
        }
        let state = self.newest.get();
        if state != UNTOUCHED {
            self.newest.set(AROUND);
        }
        state
    }

    /// Ends the innermost scope, if it is untouched: shows the marks that it hid, and returns where it began.
    #[inline(always)]
    pub(super) fn show(&self, hidden: &Hidden) -> *mut u8 {
        debug_assert!(self.is_untouched());
        self.floor.replace(hidden.floor)
    }

    /// Ends the innermost scope, if it is not untouched: kills its checkpoints, shows the marks that it hid, and returns
    /// where it began. `in_use` blocks are in use.
    pub(super) fn kill(&self, hidden: &Hidden, in_use: usize) -> Place {
        let floor = self.floor.replace(hidden.floor);
        if self.newest.get() == AROUND {
            self.newest.set(hidden.state);
            return Place {
                position: floor,
                in_use,
            };
        }
        let Some(touched) = self.touched.borrow_mut().pop() else {
            unreachable!("M2: the scope has an entry")
        };
        self.entries.borrow_mut().truncate(touched.start);
        self.forget_newest(hidden.state);
        Place {
            position: touched.position,
            in_use: touched.in_use,
        }
    }

    /// Leaves no newest mark.
    fn forget_newest(&self, state: u64) {
        let newest = self.newest.replace(state);
        if newest > EMPTY {
            self.serial.set(newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::arena::Arena;

    #[test]
    fn the_stack_stays_short_whatever_the_number_of_steps() {
        let arena = Arena::new();
        let oldest = arena.checkpoint();
        for _ in 0..10_000 {
            let step = arena.checkpoint();
            arena.alloc(1u8);
            let inner = arena.checkpoint();
            // SAFETY: nothing made since either is used.
            unsafe {
                arena.reset_to(&inner).unwrap();
                arena.reset_to(&step).unwrap();
                assert!(arena.reset_to(&inner).is_err());
            }
            assert!(arena.marks.entries.borrow().len() <= 40);
        }
        // SAFETY: as above.
        unsafe { arena.reset_to(&oldest).unwrap() };
    }
}
