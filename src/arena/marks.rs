//! Which checkpoints still hold.
//!
//! A checkpoint is a plain value that its owner may keep for ever, copy, and bring back in any order, so the arena
//! itself must know which ones are live. Each gets a serial that the arena never uses again. Going back to one kills
//! every later one. Live checkpoints therefore form a stack; those made at one place with nothing allocated between
//! share an entry, a **mark**, which holds the range of their serials:
//!
//! ```text
//!   serials   1..=3      5..=5        8..=9  <- the newest mark, in the arena's hot fields
//!   place      a     <=   b      <=    c
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
use core::cell::Cell;
use core::fmt;

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

/// Everything that going back restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) position: *mut u8,
    pub(super) in_use: usize,
    pub(super) current: usize,
    pub(super) filled: usize,
}

/// The newest mark: the serials `first..=last` at the floor, with the blocks that are in use now.
#[derive(Debug)]
pub(super) struct Mark {
    first: Cell<u64>,
    last: Cell<u64>,
    floor: Cell<*mut u8>,
}

/// The serials of no checkpoint: no serial follows `NONE.1` and none reaches `NONE.0`.
const NONE: (u64, u64) = (u64::MAX, u64::MAX - 1);

/// A mark as a scope saves it.
#[derive(Debug, Clone, Copy)]
pub(super) struct SavedMark(u64, u64, *mut u8);

impl Mark {
    pub(super) fn none(floor: *mut u8) -> Mark {
        Mark {
            first: Cell::new(NONE.0),
            last: Cell::new(NONE.1),
            floor: Cell::new(floor),
        }
    }

    pub(super) fn set_none(&self, floor: *mut u8) {
        self.set(SavedMark(NONE.0, NONE.1, floor));
    }

    #[inline(always)]
    pub(super) fn floor(&self) -> *mut u8 {
        self.floor.get()
    }

    #[inline(always)]
    pub(super) fn save(&self) -> SavedMark {
        SavedMark(self.first.get(), self.last.get(), self.floor.get())
    }

    #[inline(always)]
    pub(super) fn set(&self, saved: SavedMark) {
        self.first.set(saved.0);
        self.last.set(saved.1);
        self.floor.set(saved.2);
    }

    /// Adds a checkpoint to the mark if it follows the last one with nothing allocated between.
    #[inline(always)]
    pub(super) fn extend(&self, serial: u64, position: *mut u8) -> bool {
        let follows = self.last.get() + 1 == serial && self.floor.get() == position;
        if follows {
            self.last.set(serial);
        }
        follows
    }

    /// Kills the later checkpoints of this mark if `checkpoint` is one of it.
    #[inline(always)]
    pub(super) fn rewind(&self, checkpoint: &Checkpoint) -> bool {
        let serial = checkpoint.serial;
        let here = serial >= self.first.get() && serial <= self.last.get() && checkpoint.position == self.floor.get();
        if here {
            self.last.set(serial);
        }
        here
    }
}

#[derive(Debug)]
struct Entry {
    first: u64,
    last: u64,
    place: Place,
}

/// The marks below the newest one, oldest first.
#[derive(Debug)]
pub(super) struct Marks {
    entries: Vec<Entry>,
    /// Entries below this index were made outside the innermost open scope.
    hidden: usize,
}

impl Marks {
    pub(super) const fn new() -> Marks {
        Marks {
            entries: Vec::new(),
            hidden: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.hidden = 0;
    }

    /// Makes sure that `push_live` needs no memory.
    pub(super) fn try_reserve(&mut self) -> Result<(), AllocError> {
        self.entries.try_reserve(1).map_err(|_| AllocError::OutOfMemory)
    }

    /// Puts the newest mark onto the stack if it has checkpoints; `now` supplies the blocks in use, as they still are.
    pub(super) fn push_live(&mut self, mark: &Mark, now: Place) {
        let SavedMark(first, last, floor) = mark.save();
        if first <= last {
            let place = Place { position: floor, ..now };
            self.entries.push(Entry { first, last, place });
        }
    }

    /// Makes a new newest mark for one checkpoint at `now`.
    pub(super) fn push(&mut self, mark: &Mark, now: Place, serial: u64) {
        self.push_live(mark, now);
        let mut first = serial;
        let len = self.entries.len();
        if len - self.hidden >= RUN && self.entries[len - RUN].place == now {
            first = self.entries[len - RUN].first;
            self.entries.truncate(len - RUN);
        }
        mark.set(SavedMark(first, serial, now.position));
    }

    /// Finds the place of a checkpoint that is not of the newest mark, and makes its mark the newest.
    pub(super) fn rewind(&mut self, mark: &Mark, checkpoint: &Checkpoint) -> Option<Place> {
        let serial = checkpoint.serial;
        let visible = &self.entries[self.hidden..];
        let index = visible.partition_point(|entry| entry.first <= serial).checked_sub(1)?;
        let entry = &visible[index];
        if serial > entry.last || checkpoint.position != entry.place.position {
            return None;
        }
        let place = entry.place;
        mark.set(SavedMark(entry.first, serial, place.position));
        self.entries.truncate(self.hidden + index);
        Some(place)
    }

    /// Hides all entries; what `show` wants back is returned.
    #[inline(always)]
    pub(super) fn hide(&mut self) -> (usize, usize) {
        let before = (self.entries.len(), self.hidden);
        self.hidden = before.0;
        before
    }

    /// Forgets the entries made since `hide` and shows those that it hid.
    #[inline(always)]
    pub(super) fn show(&mut self, before: (usize, usize)) {
        if self.entries.len() > before.0 {
            self.entries.truncate(before.0);
        }
        self.hidden = before.1;
    }
}
