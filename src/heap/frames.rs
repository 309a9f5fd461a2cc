//! The frames that scopes leave on a thread's heap: entering, leaving, suspending.
//!
//! **Invariant.** H8: frames are a stack; each has a serial that its thread does not use again, and a ticket acts only while
//! its frame is there with its serial. **Consequence.** A frame says where to look for the next hole and nothing else, so
//! guards that are forgotten or dropped out of order cost memory or time, never safety.
//!
//! **What leaving does.** The hole is given up and taken again from where the scope began, cut at the first live
//! granule. A step so walks the same warm memory each time. If escapees have made that stretch so dense that the
//! scope had to walk many times what it allocated, the beginning moves on instead: the walk of a step is bounded
//! however many escapees there are.

use super::{grain, price, Heap, LANES};
use crate::align::align_up;
use crate::layout::HOLE_MAX;

/// Scopes with a mark of their own; deeper ones run in the mark of the last. 64 frames are 4 KiB of a thread's
/// static memory, and no program we recorded nests more than four.
pub const FRAMES: usize = 64;

/// What kind of extent a frame stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A scope.
    Scope,
    /// A scope that counts.
    Counted,
    /// A suspension of all scopes below.
    Outside,
    /// A scope that was left inside a suspension deeper than the table, whose count it keeps until that ends.
    Left,
}

/// What an extent saved on entry. A hint.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Frame {
    pub(super) serial: u64,
    /// Position of each lane; 1 where there was no segment.
    at: [usize; LANES],
    /// `debt` of each lane. Written by the first slow path after entering, before it changes: see `note_debts`.
    debts: [i64; LANES],
    pub(super) kind: Kind,
    /// Whether the thread was in a scope, not suspended, when it came in.
    was_active: bool,
    /// How many extents beyond the table suspend this frame.
    pub(super) suspended: u32,
}

impl Frame {
    pub(super) const NONE: Frame = Frame {
        serial: 0,
        at: [1; LANES],
        debts: [0; LANES],
        kind: Kind::Scope,
        was_active: false,
        suspended: 0,
    };
}

/// Names a frame, perhaps one that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    index: usize,
    serial: u64,
}

/// The index of a ticket for a scope deeper than the table.
const DEEPER: usize = FRAMES;
/// The index of a ticket for a suspension deeper than the table: it marked the topmost frame.
const DEEPER_OUTSIDE: usize = FRAMES + 1;

impl Ticket {
    /// Names no frame.
    pub const INERT: Ticket = Ticket {
        index: usize::MAX,
        serial: 0,
    };

    /// The serial of its frame.
    pub fn serial(self) -> u64 {
        self.serial
    }
}

impl Heap {
    /// Gives the frames that were pushed since the last slow path the `debts` of now, which are those of when they were
    /// pushed: entering has two words less to copy.
    #[inline]
    pub(super) fn note_debts(&mut self) {
        let debts = [self.lanes[0].debt, self.lanes[1].debt];
        let mut index = self.depth;
        while let Some(frame) = index.checked_sub(1).and_then(|below| self.frames.get_mut(below)) {
            if frame.serial <= self.noted {
                break;
            }
            frame.debts = debts;
            index = index.wrapping_sub(1);
        }
        self.noted = self.serial;
    }

    /// Opens a scope.
    #[inline]
    pub fn enter(&mut self) -> Ticket {
        if self.special != 0 || self.depth >= FRAMES {
            return self.enter_slow(Kind::Scope);
        }
        let was_active = core::mem::replace(&mut self.active, true);
        self.push(Kind::Scope, was_active)
    }

    #[inline(always)]
    pub(super) fn push(&mut self, kind: Kind, was_active: bool) -> Ticket {
        self.serial = self.serial.wrapping_add(1);
        let index = self.depth;
        if let Some(slot) = self.frames.get_mut(index) {
            // All but its debts, which come later.
            slot.serial = self.serial;
            slot.at = [self.lanes[0].pos, self.lanes[1].pos];
            slot.kind = kind;
            slot.was_active = was_active;
            slot.suspended = 0;
            self.depth = index.wrapping_add(1);
        }
        Ticket {
            index,
            serial: self.serial,
        }
    }

    /// Opens an extent of any kind.
    #[cold]
    pub fn enter_slow(&mut self, kind: Kind) -> Ticket {
        if self.depth >= FRAMES {
            return self.enter_deeper(kind);
        }
        if kind == Kind::Counted {
            self.stop_recycling();
        }
        self.show();
        let was_active = self.active;
        let ticket = self.push(kind, was_active);
        self.note_debts();
        self.active = kind != Kind::Outside;
        self.counting = self.counting.wrapping_add(u32::from(kind == Kind::Counted));
        self.hide();
        self.note_special();
        ticket
    }

    fn enter_deeper(&mut self, kind: Kind) -> Ticket {
        let Some(top) = self.frames.get_mut(FRAMES - 1) else {
            return Ticket::INERT;
        };
        if kind == Kind::Outside {
            top.suspended = top.suspended.wrapping_add(1);
            self.suspensions = self.suspensions.wrapping_add(1);
            let serial = top.serial;
            self.show();
            self.active = false;
            self.hide();
            self.note_special();
            return Ticket {
                index: DEEPER_OUTSIDE,
                serial,
            };
        }
        self.deeper = self.deeper.saturating_add(1);
        self.note_special();
        Ticket {
            index: DEEPER,
            serial: 0,
        }
    }

    /// Closes an extent; does nothing if it is closed already.
    #[inline]
    pub fn leave(&mut self, ticket: Ticket) {
        if self.special == 0 && ticket.index.wrapping_add(1) == self.depth {
            if let Some(&Frame {
                serial,
                at,
                was_active,
                kind: Kind::Scope,
                ..
            }) = self.frames.get(ticket.index)
            {
                if serial == ticket.serial && at[0] == self.lanes[0].pos && at[1] == self.lanes[1].pos {
                    self.depth = ticket.index;
                    self.active = was_active;
                    return;
                }
            }
        }
        self.leave_slow(ticket);
    }

    /// Whether the ticket's frame is still there.
    pub fn is_open(&self, ticket: Ticket) -> bool {
        self.find(ticket.index, ticket.serial).is_some()
    }

    /// Where the frame with this serial is now: at `index`, or below it if it is a suspension whose scope ended inside it.
    fn find(&self, index: usize, serial: u64) -> Option<usize> {
        if index >= FRAMES {
            return None;
        }
        let mut index = index.min(self.depth.checked_sub(1)?);
        loop {
            let frame = self.frames.get(index)?;
            if frame.serial <= serial {
                return (frame.serial == serial).then_some(index);
            }
            index = index.checked_sub(1)?;
        }
    }

    pub(super) fn top_is_active(&self) -> bool {
        let top = self.depth.checked_sub(1).and_then(|index| self.frames.get(index));
        top.is_some_and(|top| top.kind != Kind::Outside && top.suspended == 0)
    }

    #[inline(never)]
    fn leave_slow(&mut self, ticket: Ticket) {
        if ticket.index == DEEPER {
            self.deeper = self.deeper.saturating_sub(1);
            self.note_special();
            return;
        }
        if ticket.index == DEEPER_OUTSIDE {
            return self.leave_deeper_outside(ticket.serial);
        }
        let Some(closing) = self.find(ticket.index, ticket.serial) else {
            return;
        };
        self.show();
        let frame = self.frames.get(closing).copied().unwrap_or(Frame::NONE);
        let mut kept = closing;
        for index in closing..self.depth {
            let Some(&above) = self.frames.get(index) else { break };
            // A suspension is a closure that is still running: it stays, whichever frame below it ends.
            let suspends = above.kind == Kind::Outside && index != closing;
            if suspends || above.suspended != 0 {
                let kind = if suspends { Kind::Outside } else { Kind::Left };
                if let Some(slot) = self.frames.get_mut(kept) {
                    *slot = Frame { kind, ..above };
                    kept = kept.wrapping_add(1);
                }
            }
            self.counting = self.counting.wrapping_sub(u32::from(above.kind == Kind::Counted));
        }
        self.depth = kept;
        self.deeper = 0;
        if frame.kind != Kind::Outside && self.segment.is_some() {
            self.stop_recycling();
            for lane in 0..LANES {
                self.go_back(lane, &frame);
            }
            // Not forward: a look may have found room far below the scope's beginning.
            self.search_long = self.search_long.min(self.granule(self.lanes[1].limit));
        }
        self.active = self.top_is_active();
        self.hide();
        self.note_special();
    }

    fn leave_deeper_outside(&mut self, serial: u64) {
        let Some(index) = self.find(FRAMES - 1, serial) else {
            return;
        };
        let Some(frame) = self.frames.get_mut(index) else {
            return;
        };
        if frame.suspended == 0 {
            return;
        }
        frame.suspended = frame.suspended.wrapping_sub(1);
        self.suspensions = self.suspensions.wrapping_sub(1);
        let (suspended, kind) = (frame.suspended, frame.kind);
        if suspended != 0 {
            return;
        }
        self.show();
        if kind == Kind::Left {
            // Its scope is gone; so are those opened inside the suspension.
            let gone = self.frames.iter().take(self.depth).skip(index);
            let counted = gone.filter(|frame| frame.kind == Kind::Counted).count();
            self.counting = self.counting.wrapping_sub(counted as u32);
            self.depth = index;
            self.deeper = 0;
        }
        self.active = self.top_is_active();
        self.hide();
        self.note_special();
    }

    /// Takes the hole that begins where the frame began, as far as its memory is free.
    fn go_back(&mut self, index: usize, frame: &Frame) {
        let (Some(&lane), Some(&pos), Some(&debt)) =
            (self.lanes.get(index), frame.at.get(index), frame.debts.get(index))
        else {
            return;
        };
        let now = lane.debt.wrapping_sub(price(lane.pos));
        let walked = now.wrapping_sub(debt.wrapping_sub(price(pos)));
        let pos = match self.first.get(index) {
            _ if pos != 1 => pos,
            Some(&Some(first)) => first,
            _ => return, // no segment then, and no hole since
        };
        let start = lane.start.min(lane.pos);
        if pos <= lane.limit {
            if pos >= start && lane.pos <= pos {
                return; // all of it was freed, and perhaps a block from before
            }
            let (from, to) = (self.granule(pos), self.granule(lane.pos));
            // Longer than a hole, it is taken anew below: a step's end must not look at all that the step used. So is it behind
            // an empty one: a hole that ends where the last block did begins each step in another way.
            if from < to && to.wrapping_sub(from) <= HOLE_MAX && lane.pos < lane.limit {
                // Escapees in one piece at the beginning: the hole begins behind them.
                let free = align_up(self.map.first_free(from, to), grain(index));
                if self.map.first_live(free, to) == to {
                    self.set_free(free, to);
                    self.lanes[index % LANES].pos = self.addr(free);
                    return;
                }
            }
        }
        let mark = if walked > 0 && lane.pos < lane.limit {
            self.granule(start)
        } else {
            self.granule(pos)
        };
        self.give_up_hole(index);
        self.take_from(index, mark);
    }

    /// How many scopes the thread's allocations are nested in: 0 outside and while suspended.
    pub fn depth(&self) -> usize {
        let mut open = 0usize;
        for frame in self.frames.iter().take(self.depth).rev() {
            if frame.kind == Kind::Outside || frame.suspended != 0 {
                break;
            }
            open = open.wrapping_add(1);
        }
        // Those beyond the table are in the scope at its end; in a suspension there they have no effect.
        if open == 0 {
            0
        } else {
            open.wrapping_add(self.deeper as usize)
        }
    }

    /// Scopes entered so far.
    pub fn entered(&self) -> u64 {
        self.serial
    }
}
