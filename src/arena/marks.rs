//! Which checkpoints still hold.
//!
//! A checkpoint is a plain value that its owner may keep for ever, copy, and bring back in any order, so the arena
//! itself must know which ones are live. Each gets a serial that the arena never uses again. Going back to one kills
//! every later one. Live checkpoints therefore form a stack; those made at one place with nothing allocated between
//! share an entry, a **mark**, which holds the range of their serials:
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
//! A scope hides the marks made outside it until it ends: going back past its start would free what it lends out.

use crate::error::AllocError;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::ptr;

/// How many ranges of serials one place keeps apart.
const RUN: usize = 32;

/// A place in an arena to go back to.
///
/// Made by [`Arena::checkpoint`](crate::Arena::checkpoint). It borrows nothing, and a stale one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    pub(super) arena: u64,
    pub(super) serial: u64,
    pub(super) position: *mut u8,
}

// SAFETY: the pointer is only compared, and set as the position of the arena it came from, which is used by one
// thread at a time.
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
/// - **M1** The newest mark is the serials `first..=newest` at `floor` with the blocks in use now, if `newest` is not
///   0; then `newest` is also the last serial given out. So its common case needs neither a search nor a write.
/// - **M2** `entries` holds the other live marks, serials ascending; those below `hidden` were made outside the
///   innermost open scope.
/// - **M3** `floor` is the position of the newest live checkpoint or scope, if the current block is still the one of
///   that time, else the start of the current block.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Marks {
    newest: Cell<u64>,
    floor: Cell<*mut u8>,
    first: Cell<u64>,
    /// The last serial given out, unless `newest` is later.
    serial: Cell<u64>,
    hidden: Cell<usize>,
    len: Cell<usize>,
    entries: RefCell<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    first: u64,
    last: u64,
    place: Place,
}

/// What a scope restores at its end.
#[derive(Debug)]
pub(super) struct Hidden {
    floor: *mut u8,
    hidden: usize,
    len: usize,
}

impl Marks {
    pub(super) const fn new() -> Marks {
        Marks {
            newest: Cell::new(0),
            floor: Cell::new(ptr::null_mut()),
            first: Cell::new(0),
            serial: Cell::new(0),
            hidden: Cell::new(0),
            len: Cell::new(0),
            entries: RefCell::new(Vec::new()),
        }
    }

    #[inline(always)]
    pub(super) fn floor(&self) -> *mut u8 {
        self.floor.get()
    }

    /// Kills every checkpoint.
    pub(super) fn clear(&mut self, floor: *mut u8) {
        self.forget_newest();
        self.entries.get_mut().clear();
        self.len.set(0);
        self.hidden.set(0);
        self.floor.set(floor);
    }

    /// The serial of a checkpoint at `position`, if nothing was allocated since the newest one was made.
    #[inline(always)]
    pub(super) fn extend(&self, position: *mut u8) -> Option<u64> {
        let newest = self.newest.get();
        if newest == 0 || self.floor.get() != position {
            return None;
        }
        self.newest.set(newest + 1);
        Some(newest + 1)
    }

    /// Whether this is the serial of the newest checkpoint, so that going back to it kills none.
    #[inline(always)]
    pub(super) fn is_newest(&self, serial: u64) -> bool {
        serial == self.newest.get()
    }

    /// Makes sure that `bury` needs no memory.
    pub(super) fn try_reserve(&self) -> Result<(), AllocError> {
        let mut entries = self.entries.borrow_mut();
        entries.try_reserve(1).map_err(|_| AllocError::OutOfMemory)
    }

    /// Puts the newest mark, if there is one, among the others; `in_use` blocks are in use as they were when it was
    /// made.
    #[inline(never)]
    pub(super) fn bury(&self, in_use: usize) {
        let (first, last) = (self.first.get(), self.newest.get());
        if last != 0 {
            let position = self.floor.get();
            let place = Place { position, in_use };
            let mut entries = self.entries.borrow_mut();
            entries.push(Entry { first, last, place });
            self.len.set(entries.len());
            self.forget_newest();
        }
    }

    /// The current block is another one from now on.
    pub(super) fn set_floor(&self, floor: *mut u8) {
        debug_assert_eq!(self.newest.get(), 0);
        self.floor.set(floor);
    }

    /// Makes a newest mark of one checkpoint, at `now`, and returns its serial.
    pub(super) fn push(&self, now: Place) -> u64 {
        self.bury(now.in_use);
        let serial = self.serial.get() + 1;
        let mut first = serial;
        let mut entries = self.entries.borrow_mut();
        let len = entries.len();
        if len - self.hidden.get() >= RUN && entries[len - RUN].place == now {
            first = entries[len - RUN].first;
            entries.truncate(len - RUN);
            self.len.set(len - RUN);
        }
        self.first.set(first);
        self.newest.set(serial);
        self.floor.set(now.position);
        serial
    }

    /// The place of a live checkpoint; those made after it are dead from now on.
    pub(super) fn rewind(&self, checkpoint: &Checkpoint, in_use: usize) -> Option<Place> {
        let serial = checkpoint.serial;
        // The newest mark is buried before the search, which changes nothing for a checkpoint that is then refused.
        self.bury(in_use);
        let mut entries = self.entries.borrow_mut();
        let hidden = self.hidden.get();
        let later = entries[hidden..].partition_point(|entry| entry.first <= serial);
        let index = hidden + later.checked_sub(1)?;
        let entry = &mut entries[index];
        if serial > entry.last || checkpoint.position != entry.place.position {
            return None;
        }
        entry.last = serial;
        let place = entry.place;
        entries.truncate(index + 1);
        self.len.set(index + 1);
        self.floor.set(place.position);
        Some(place)
    }

    /// Hides all marks: a scope begins at `now`.
    #[inline(always)]
    pub(super) fn hide(&self, now: Place) -> Hidden {
        if self.newest.get() != 0 {
            self.bury(now.in_use);
        }
        let before = Hidden {
            floor: self.floor.get(),
            hidden: self.hidden.get(),
            len: self.len.get(),
        };
        self.hidden.set(before.len);
        self.floor.set(now.position);
        before
    }

    /// Kills the checkpoints made since `hide` and shows those that it hid.
    #[inline(always)]
    pub(super) fn show(&self, before: &Hidden) {
        if self.newest.get() != 0 || self.len.get() != before.len {
            self.kill(before.len);
        }
        self.hidden.set(before.hidden);
        self.floor.set(before.floor);
    }

    #[cold]
    #[inline(never)]
    fn kill(&self, len: usize) {
        self.forget_newest();
        self.entries.borrow_mut().truncate(len);
        self.len.set(len);
    }

    fn forget_newest(&self) {
        self.serial.set(self.serial.get().max(self.newest.replace(0)));
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
            assert!(arena.marks.len.get() <= 40);
        }
        // SAFETY: as above.
        unsafe { arena.reset_to(&oldest).unwrap() };
    }
}
