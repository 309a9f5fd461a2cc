//! The engine: does what each record says, on the thread that the record names or on one thread for all, and takes the
//! figures as it goes.
//!
//! With a thread for each recorded one, the global order is kept by handing over: `position` is the next record, only the
//! thread that this record names moves it, and the others are parked. So at any moment one thread owns the state, and its
//! CPU time is counted only while it does.
use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;
use std::thread::Thread;

use stepalloc::ArenaScope;
use stepalloc_measure::mapped::Mapped;
use stepalloc_measure::process::{self, Resident};

use crate::trace::{Op, Record, Trace};

/// Where the blocks come from.
pub trait Memory: Sync {
    /// # Safety
    /// As `std::alloc::alloc` and `alloc_zeroed`.
    unsafe fn make(&self, block: u32, layout: Layout, zeroed: bool) -> *mut u8;
    /// # Safety
    /// As `std::alloc::dealloc`.
    unsafe fn free(&self, place: *mut u8, layout: Layout);
    /// # Safety
    /// As `std::alloc::realloc`.
    unsafe fn resize(&self, place: *mut u8, layout: Layout, new_size: usize) -> *mut u8;
}

/// The program's global allocator.
pub struct Global;

impl Memory for Global {
    unsafe fn make(&self, _block: u32, layout: Layout, zeroed: bool) -> *mut u8 {
        // SAFETY: the caller's own promise.
        unsafe {
            match zeroed {
                false => std::alloc::alloc(layout),
                true => std::alloc::alloc_zeroed(layout),
            }
        }
    }
    unsafe fn free(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promise.
        unsafe { std::alloc::dealloc(place, layout) }
    }
    unsafe fn resize(&self, place: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's own promise.
        unsafe { std::alloc::realloc(place, layout, new_size) }
    }
}

/// What one replay is for. Each is a process of its own: sampling memory and checking bytes cost time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Time,
    Memory,
    Verify,
}

/// Where scopes open and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scopes {
    None,
    /// One around each recorded step, on the training thread.
    Step,
    /// Opened and closed at arbitrary records on every thread, closed in any order.
    Random(u64),
}

/// The figures of a replay. Those that its purpose does not take are empty or zero.
pub struct Outcome {
    /// CPU time of each step up to the begin of the next, in nanoseconds.
    pub step_cpu_ns: Mapped<u64>,
    /// Page faults of the process in the same time.
    pub step_faults: Mapped<u64>,
    /// The most resident bytes at once, above those resident just before the first record.
    pub peak_resident_bytes: u64,
    /// Blocks whose every byte was checked.
    pub checked_blocks: u64,
}

#[derive(Clone, Copy)]
struct Block {
    place: *mut u8,
    size: usize,
}

struct State {
    blocks: Mapped<Block>,
    resident: Resident,
    level: u64,
    /// The step that time is counted for; `None` before the first and after the last.
    step: Option<usize>,
    steps_begun: usize,
    faults_at_begin: u64,
    outcome: Outcome,
}

struct Replay<'t, M> {
    trace: &'t Trace,
    memory: &'t M,
    purpose: Purpose,
    scopes: Scopes,
    /// The next record. Stored (Release) by the thread that hands over, loaded (Acquire) by the one that takes over.
    position: AtomicUsize,
    parked: [OnceLock<Thread>; 256],
    /// Only the thread that owns the record at `position` touches it.
    state: UnsafeCell<State>,
}

// SAFETY: `state` has one owner at a time (see `position`, whose store and load order its accesses); the rest is Sync.
unsafe impl<M: Memory> Sync for Replay<'_, M> {}

/// Replays `trace` from its first record to its last.
pub fn replay<M: Memory>(trace: &Trace, memory: &M, purpose: Purpose, scopes: Scopes, threads: bool) -> Outcome {
    let resident = Resident::new();
    let outcome = Outcome {
        step_cpu_ns: Mapped::new(trace.step_count, 0),
        step_faults: Mapped::new(trace.step_count, 0),
        peak_resident_bytes: 0,
        checked_blocks: 0,
    };
    let none = Block {
        place: std::ptr::null_mut(),
        size: 0,
    };
    let replay = Replay {
        trace,
        memory,
        purpose,
        scopes,
        position: AtomicUsize::new(usize::MAX),
        parked: [const { OnceLock::new() }; 256],
        state: UnsafeCell::new(State {
            blocks: Mapped::new(trace.block_count, none),
            resident,
            level: 0,
            step: None,
            steps_begun: 0,
            faults_at_begin: 0,
            outcome,
        }),
    };
    if threads {
        std::thread::scope(|scope| {
            for number in 1..trace.thread_count {
                let replay = &replay;
                scope.spawn(move || replay.work(number as u8));
            }
            replay.register(0);
            while (1..trace.thread_count).any(|number| replay.parked[number].get().is_none()) {
                std::thread::yield_now();
            }
            replay.begin();
            replay.position.store(0, Ordering::Release);
            replay.wake_owner(0);
            replay.work(0);
        });
    } else {
        replay.begin();
        replay.run(0, 0, &mut OpenScopes::new(0, scopes));
    }
    let mut state = replay.state.into_inner();
    // The kernel's own peak sees what falls between two samples, but may be off by 64 pages a CPU.
    let kernel_peak = state.resident.peak_since_reset().saturating_sub(state.level);
    let outcome = &mut state.outcome;
    outcome.peak_resident_bytes = outcome.peak_resident_bytes.max(kernel_peak.saturating_sub(512 * 1024));
    state.outcome
}

impl<M: Memory> Replay<'_, M> {
    fn register(&self, thread: u8) {
        let _ = self.parked[thread as usize].set(std::thread::current());
    }

    /// The level above which memory is counted.
    fn begin(&self) {
        process::populate_code();
        // SAFETY: before the first record no other thread touches the state.
        let state = unsafe { &mut *self.state.get() };
        state.resident.reset_peak();
        state.level = state.resident.now();
    }

    fn wake_owner(&self, position: usize) {
        match self.trace.records.get(position) {
            Some(record) => self.wake(record.thread),
            None => (0..self.trace.thread_count).for_each(|number| self.wake(number as u8)),
        }
    }

    fn wake(&self, thread: u8) {
        if let Some(parked) = self.parked[thread as usize].get() {
            parked.unpark();
        }
    }

    /// A thread's life: wait for a record of its own, replay up to one of another's.
    fn work(&self, thread: u8) {
        if thread != 0 {
            self.register(thread);
        }
        let mut open = OpenScopes::new(thread, self.scopes);
        loop {
            let position = self.position.load(Ordering::Acquire);
            match self.trace.records.get(position) {
                Some(record) if record.thread == thread => {
                    let next = self.run(position, thread, &mut open);
                    self.position.store(next, Ordering::Release);
                    self.wake_owner(next);
                }
                None if position == self.trace.records.len() => break,
                _ => std::thread::park(),
            }
        }
    }

    /// Replays from `position` on; with threads, as long as the records are this thread's. Returns the next record.
    fn run(&self, position: usize, thread: u8, open: &mut OpenScopes) -> usize {
        // SAFETY: this thread owns the record at `position`, and so the state.
        let state = unsafe { &mut *self.state.get() };
        let alone = self.parked[0].get().is_none();
        match self.purpose {
            Purpose::Time => self.run_for::<false, false>(state, position, thread, alone, open),
            Purpose::Memory => self.run_for::<true, false>(state, position, thread, alone, open),
            Purpose::Verify => self.run_for::<false, true>(state, position, thread, alone, open),
        }
    }

    fn run_for<const SAMPLE: bool, const VERIFY: bool>(
        &self,
        state: &mut State,
        from: usize,
        thread: u8,
        alone: bool,
        open: &mut OpenScopes,
    ) -> usize {
        let mut clock = process::thread_cpu_ns();
        let mut position = from;
        while let Some(record) = self.trace.records.get(position) {
            if !alone && record.thread != thread {
                break;
            }
            if let Scopes::Random(_) = self.scopes {
                open.change_at_random();
            }
            match record.op {
                Op::StepBegin => {
                    state.count_time(&mut clock);
                    state.begin_step();
                    if self.scopes == Scopes::Step {
                        open.enter();
                    }
                }
                Op::StepEnd => {
                    if self.scopes == Scopes::Step {
                        open.leave();
                    }
                    if state.steps_begun == self.trace.step_count {
                        state.count_time(&mut clock);
                        state.end_step();
                    }
                }
                _ => {
                    // SAFETY: `Trace::check` has followed every block's life through these records.
                    unsafe { self.act::<VERIFY>(state, record) };
                    if SAMPLE && (position.is_multiple_of(16) || record.size >= 32 * 1024) {
                        let above = state.resident.now().saturating_sub(state.level);
                        state.outcome.peak_resident_bytes = state.outcome.peak_resident_bytes.max(above);
                    }
                }
            }
            position += 1;
        }
        state.count_time(&mut clock);
        position
    }

    /// # Safety
    /// The record fits the life of its block: made once, then resized or freed while it lives.
    #[inline]
    unsafe fn act<const VERIFY: bool>(&self, state: &mut State, record: &Record) {
        let align = 1 << record.align_log2;
        let size = record.size as usize;
        let block = &mut state.blocks[record.block as usize];
        match record.op {
            Op::Alloc | Op::AllocZeroed => {
                let zeroed = record.op == Op::AllocZeroed;
                // SAFETY: a recorded layout is valid; the place has `size` bytes.
                unsafe {
                    let layout = Layout::from_size_align_unchecked(size, align);
                    let place = self.memory.make(record.block, layout, zeroed);
                    assert!(!place.is_null(), "out of memory at {size} bytes");
                    *block = Block { place, size };
                    if VERIFY {
                        check_align(record, place);
                        if zeroed {
                            let bytes = std::slice::from_raw_parts(place, size);
                            assert!(bytes.iter().all(|&byte| byte == 0), "{record:?}: not zeroed");
                        }
                        fill(record.block, place, 0, size);
                    } else {
                        place.write_bytes(record.block as u8 | 1, size);
                    }
                }
            }
            Op::Realloc => {
                // SAFETY: the block lives at `block.place` with `block.size` bytes; growth is written before it is read.
                unsafe {
                    let layout = Layout::from_size_align_unchecked(block.size, align);
                    let place = self.memory.resize(block.place, layout, size);
                    assert!(!place.is_null(), "out of memory at {size} bytes");
                    let kept = block.size.min(size);
                    *block = Block { place, size };
                    if VERIFY {
                        check_align(record, place);
                        check(record, place, kept);
                        fill(record.block, place, kept, size);
                    } else {
                        place.add(kept).write_bytes(record.block as u8 | 1, size - kept);
                    }
                }
            }
            Op::Free => {
                // SAFETY: the block lives at `block.place` with `block.size` bytes, all of them written.
                unsafe {
                    if VERIFY {
                        check(record, block.place, block.size);
                        state.outcome.checked_blocks += 1;
                    }
                    self.memory
                        .free(block.place, Layout::from_size_align_unchecked(block.size, align));
                }
                block.place = std::ptr::null_mut();
            }
            Op::StepBegin | Op::StepEnd => {}
        }
    }
}

impl State {
    /// Adds the time since `clock` to the step that it belongs to.
    fn count_time(&mut self, clock: &mut u64) {
        let now = process::thread_cpu_ns();
        if let Some(step) = self.step {
            self.outcome.step_cpu_ns[step] += now - *clock;
        }
        *clock = now;
    }

    fn begin_step(&mut self) {
        self.end_step();
        self.step = Some(self.steps_begun);
        self.steps_begun += 1;
    }

    fn end_step(&mut self) {
        let faults = process::minor_faults();
        if let Some(step) = self.step.take() {
            self.outcome.step_faults[step] = faults - self.faults_at_begin;
        }
        self.faults_at_begin = faults;
    }
}

fn check_align(record: &Record, place: *mut u8) {
    assert_eq!(place as usize % (1 << record.align_log2), 0, "{record:?}: not aligned");
}

/// A byte of a block depends on the block and its place in it, so that an overlap of two blocks or a copy to the wrong
/// place shows.
fn pattern(block: u32) -> [u8; 8] {
    (u64::from(block) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

/// # Safety
/// `place` has `to` bytes.
unsafe fn fill(block: u32, place: *mut u8, from: usize, to: usize) {
    let pattern = pattern(block);
    for index in from..to {
        // SAFETY: `index < to`.
        unsafe { place.add(index).write(pattern[index % 8]) };
    }
}

/// # Safety
/// `place` has `len` bytes, all written.
unsafe fn check(record: &Record, place: *mut u8, len: usize) {
    let pattern = pattern(record.block);
    // SAFETY: the caller's own promise.
    let bytes = unsafe { std::slice::from_raw_parts(place, len) };
    let wrong = bytes
        .iter()
        .enumerate()
        .position(|(index, &byte)| byte != pattern[index % 8]);
    assert!(
        wrong.is_none(),
        "{record:?}: byte {wrong:?} of its block was overwritten"
    );
}

/// The scopes that one thread has open.
struct OpenScopes {
    guards: [Option<ArenaScope>; 32],
    random: u64,
}

impl OpenScopes {
    fn new(thread: u8, scopes: Scopes) -> Self {
        let seed = match scopes {
            Scopes::Random(seed) => seed,
            Scopes::None | Scopes::Step => 0,
        };
        OpenScopes {
            guards: [const { None }; 32],
            random: (seed << 8 | u64::from(thread)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn enter(&mut self) {
        if let Some(free) = self.guards.iter_mut().find(|guard| guard.is_none()) {
            *free = Some(ArenaScope::enter());
        }
    }

    fn leave(&mut self) {
        if let Some(last) = self.guards.iter_mut().rfind(|guard| guard.is_some()) {
            *last = None;
        }
    }

    /// On average at every 16th record opens a scope, or closes one of those open, whichever.
    fn change_at_random(&mut self) {
        // An xorshift of 64 bits; a generator of a crate would be as good, but this one lives without the heap.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if self.random.is_multiple_of(16) {
            let slot = &mut self.guards[(self.random >> 32) as usize % 32];
            *slot = match slot.take() {
                None => Some(ArenaScope::enter()),
                Some(_closed) => None,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(op: Op, block: u32, size: u64) -> Record {
        Record {
            size,
            block,
            step: 0,
            op,
            thread: (block % 2) as u8,
            align_log2: 3,
            moved: false,
        }
    }

    /// Two blocks of 100 B alive at once, of which the first grows to 200 B.
    fn trace() -> Trace {
        let records = [
            record(Op::StepBegin, 0, 0),
            record(Op::Alloc, 0, 100),
            record(Op::AllocZeroed, 1, 100),
            record(Op::Realloc, 0, 200),
            record(Op::Free, 1, 100),
            record(Op::Free, 0, 200),
            record(Op::StepEnd, 0, 0),
        ];
        Trace::check(Mapped::from_slice(&records)).expect("the records fit")
    }

    #[test]
    fn every_block_is_checked_on_one_thread_and_on_two() {
        for threads in [false, true] {
            let outcome = replay(&trace(), &Global, Purpose::Verify, Scopes::Random(3), threads);
            assert_eq!(outcome.checked_blocks, 2);
        }
    }

    #[test]
    fn the_peak_of_live_bytes_is_followed() {
        assert_eq!(trace().peak_live_bytes, 300);
        assert_eq!(
            (trace().block_count, trace().thread_count, trace().step_count),
            (2, 2, 1)
        );
    }

    /// Gives every block the same memory.
    struct Overlapping(Mapped<u8>);

    impl Memory for Overlapping {
        unsafe fn make(&self, _block: u32, _layout: Layout, _zeroed: bool) -> *mut u8 {
            self.0.as_ptr().cast_mut()
        }
        unsafe fn free(&self, _place: *mut u8, _layout: Layout) {}
        unsafe fn resize(&self, place: *mut u8, _layout: Layout, _new_size: usize) -> *mut u8 {
            place
        }
    }

    #[test]
    #[should_panic(expected = "not zeroed")]
    fn dirty_memory_is_noticed() {
        replay(
            &trace(),
            &Overlapping(Mapped::new(4096, 0)),
            Purpose::Verify,
            Scopes::None,
            false,
        );
    }

    /// As `Overlapping`, but honest about zeroes.
    struct Zeroing(Overlapping);

    impl Memory for Zeroing {
        unsafe fn make(&self, block: u32, layout: Layout, zeroed: bool) -> *mut u8 {
            // SAFETY: the memory of `Overlapping` is longer than any block here.
            unsafe {
                let place = self.0.make(block, layout, zeroed);
                place.write_bytes(0, layout.size());
                place
            }
        }
        unsafe fn free(&self, _place: *mut u8, _layout: Layout) {}
        unsafe fn resize(&self, place: *mut u8, _layout: Layout, _new_size: usize) -> *mut u8 {
            place
        }
    }

    #[test]
    #[should_panic(expected = "was overwritten")]
    fn overlapping_blocks_are_noticed() {
        replay(
            &trace(),
            &Zeroing(Overlapping(Mapped::new(4096, 0))),
            Purpose::Verify,
            Scopes::None,
            false,
        );
    }

    #[test]
    fn a_plan_holds_and_needs_no_more_than_what_lives() {
        let trace = trace();
        let places = crate::plan::pack(&trace);
        assert!(places[trace.block_count] <= 320);
        let planned = crate::plan::Planned::new(Mapped::from_slice(&places));
        assert_eq!(
            replay(&trace, &planned, Purpose::Verify, Scopes::None, false).checked_blocks,
            2
        );
    }
}
