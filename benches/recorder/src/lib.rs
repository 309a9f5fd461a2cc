//! A global allocator that records what a program asks of it:
//!
//! ```no_run
//! use stepalloc_recorder::{step, Recorder};
//!
//! #[global_allocator]
//! static GLOBAL: Recorder = Recorder::new();
//!
//! for _ in 0..20 {
//!     step(|| { /* a training step, a frame, a request */ });
//! }
//! ```
//!
//! It records where `STEPALLOC_TRACE` names a file, and passes everything to its backing where it does not. The records
//! hold sizes, alignments, threads and the order of events: no address, no content, no name.
//!
//! # How
//!
//! The file is mapped as a whole before the first block is handed out, at its largest, with holes; a record is written by
//! claiming the next place with one atomic addition and storing 20 bytes there. So there is no lock and no buffer, nothing
//! here allocates, and what was recorded is in the file even if the program is killed. At exit the file is cut to its
//! length.
//!
//! Each block has a header before it with its number, so that a free needs no table. A block is recorded after its backing
//! made it and a free before its backing sees it; hence the order of places is one in which one thread can replay all of
//! it, whatever threads made it. Place and number come out of the same atomic addition, so blocks are numbered in the
//! order of their records.
//!
//! Invariants:
//!
//! 1. [`STATE`] is `OFF` for ever or was never `OFF` once the first block was handed out: either all blocks of the process
//!    have a header or none has.
//! 2. A place is claimed by one thread only, and lies in the mapping: below `capacity`.
//! 3. No record is written after [`finish`] has seen `WRITERS` at 0.
//!
//! What it cannot do: record what C code allocates, or what a child process does after `fork` (its blocks keep their
//! headers, its records are dropped).
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicU8, AtomicUsize, Ordering};

use stepalloc_trace_format::{Op, Record, NO_BLOCK, RECORD_BYTES};

/// Nothing was asked for yet.
const NEW: u8 = 0;
/// A thread opens the file.
const STARTING: u8 = 1;
/// No file is named: no block has a header.
const OFF: u8 = 2;
/// Records are written.
const ON: u8 = 3;
/// Blocks have headers, and records are dropped: the file is full, or finished, or this is a forked child.
const ENDED: u8 = 4;

/// Synchronization: set to `ON` (Release) once the mapping's fields are; who reads `ON` (Acquire) sees them.
static STATE: AtomicU8 = AtomicU8::new(NEW);
/// Where the file is mapped. Synchronization: by `STATE`.
static PLACES: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
/// How many records the mapping holds. Synchronization: by `STATE`.
static CAPACITY: AtomicUsize = AtomicUsize::new(0);
/// The descriptor of the file. Synchronization: by `STATE`.
static FILE: AtomicU32 = AtomicU32::new(0);
/// The next place in the low half, the next block's number in the high half. Synchronization: the additions to it are the
/// order of the recording.
static NEXT: AtomicU64 = AtomicU64::new(0);
/// Threads between claiming a place and having written it. Synchronization: see `write`.
static WRITERS: AtomicUsize = AtomicUsize::new(0);
/// The number of the last step begun. Synchronization: none needed, it is one number.
static STEP: AtomicU32 = AtomicU32::new(0);
/// The next thread's number. Synchronization: none needed, it is one number.
static NEXT_THREAD: AtomicU32 = AtomicU32::new(0);

/// The largest file if `STEPALLOC_TRACE_MIB` says nothing: 53 million records.
const DEFAULT_MIB: usize = 1024;

/// No block of this process is aligned or padded below this, so that a header always has room for its number.
const LEAST_HEADER: usize = 16;

/// No number yet.
const UNNUMBERED: u32 = u32::MAX;

thread_local! {
    /// Without a destructor, so that reading it never allocates and works until the thread's last instruction.
    static THREAD: Cell<u32> = const { Cell::new(UNNUMBERED) };
}

/// The recording allocator, over another one.
#[derive(Debug, Default)]
pub struct Recorder<A = System> {
    backing: A,
}

impl Recorder {
    /// Over std's `System`.
    pub const fn new() -> Self {
        Recorder { backing: System }
    }
}

impl<A> Recorder<A> {
    /// Over `backing`. What is recorded does not depend on it, but for the mark of a `realloc` that moved its block.
    pub const fn with_backing(backing: A) -> Self {
        Recorder { backing }
    }
}

/// Runs `f` as a step: a mark in the recording before it and one after it, also when it unwinds. Steps are not nested.
pub fn step<R>(f: impl FnOnce() -> R) -> R {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            end_step();
        }
    }
    begin_step();
    let _end = End;
    f()
}

/// Marks the beginning of a step on this thread.
pub fn begin_step() {
    if is_recording() {
        // Relaxed: steps are begun on one thread, and a record made meanwhile on another may carry either number.
        STEP.fetch_add(1, Ordering::Relaxed);
        write(Op::StepBegin, NO_BLOCK, 0, 0, false);
    }
}

/// Marks the end of a step on this thread.
pub fn end_step() {
    if is_recording() {
        write(Op::StepEnd, NO_BLOCK, 0, 0, false);
    }
}

/// Whether records are being written.
pub fn is_recording() -> bool {
    STATE.load(Ordering::Acquire) == ON
}

/// Ends the recording: what follows is dropped, and the file is cut to its length. Called at exit by itself.
pub fn finish() {
    // SeqCst: partner of the check in `write`. Either that writer sees the end, or this sees that writer.
    if STATE
        .compare_exchange(ON, ENDED, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
    {
        cut();
    }
}

/// Waits for the last writers and cuts the file; only for the thread that ended the recording.
fn cut() {
    while WRITERS.load(Ordering::SeqCst) != 0 {
        std::hint::spin_loop();
    }
    let claimed = NEXT.load(Ordering::Acquire) as u32 as usize;
    let records = claimed.min(CAPACITY.load(Ordering::Relaxed));
    // SAFETY: the descriptor was opened by `start` and is never closed. A failure leaves zeros at the file's end, which
    // readers cut themselves.
    unsafe {
        libc::ftruncate(
            FILE.load(Ordering::Relaxed) as libc::c_int,
            (records * RECORD_BYTES) as libc::off_t,
        )
    };
}

extern "C" fn at_exit() {
    finish();
}

extern "C" fn in_child() {
    // The mapping is the parent's too: a record of the child would stand among its own.
    STATE.store(ENDED, Ordering::SeqCst);
}

/// Writes a line to standard error without the heap, and ends the process.
fn refuse(what: &'static [u8]) -> ! {
    // SAFETY: `what` is readable for its length.
    unsafe { libc::write(2, what.as_ptr().cast(), what.len()) };
    // SAFETY: abort has no preconditions.
    unsafe { libc::abort() }
}

/// Whether blocks have headers. Opens the file at the first call.
fn has_headers() -> bool {
    loop {
        match STATE.load(Ordering::Acquire) {
            OFF => return false,
            ON | ENDED => return true,
            // Relaxed on failure: the loop reads again.
            NEW => {
                let won = STATE.compare_exchange(NEW, STARTING, Ordering::Acquire, Ordering::Relaxed);
                if won.is_ok() {
                    let state = if start() { ON } else { OFF };
                    STATE.store(state, Ordering::Release);
                }
            }
            // Another thread opens the file; nothing in `start` comes back here, for nothing in it allocates with Rust.
            _ => std::hint::spin_loop(),
        }
    }
}

/// The value of an environment variable, null if it has none.
fn variable(name: &'static std::ffi::CStr) -> *const libc::c_char {
    // SAFETY: `name` ends in a zero byte. This runs before the program's first block, so before it can change a variable.
    unsafe { libc::getenv(name.as_ptr()) }
}

/// Opens and maps the file. `false` where none is named.
fn start() -> bool {
    let path = variable(c"STEPALLOC_TRACE");
    // SAFETY: `path` is null or ends in a zero byte, so its first byte is readable.
    if path.is_null() || unsafe { *path } == 0 {
        return false;
    }
    let limit = variable(c"STEPALLOC_TRACE_MIB");
    let mut mib = DEFAULT_MIB;
    if !limit.is_null() {
        // SAFETY: `limit` ends in a zero byte, as all variables do.
        mib = unsafe { libc::strtoul(limit, ptr::null_mut(), 10) } as usize;
    }
    // Half of what a place's 32 bits can count: writers that come after the last place count on for a while.
    let capacity = (mib.saturating_mul(1 << 20) / RECORD_BYTES).min(1 << 31);
    if capacity == 0 {
        refuse(b"stepalloc-recorder: STEPALLOC_TRACE_MIB is no size in MiB\n");
    }
    let bytes = capacity * RECORD_BYTES;
    // SAFETY: `path` ends in a zero byte.
    let file = unsafe {
        libc::open(
            path,
            libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC,
            0o644,
        )
    };
    if file < 0 {
        refuse(b"stepalloc-recorder: cannot open the file that STEPALLOC_TRACE names\n");
    }
    // SAFETY: `file` is open for writing.
    if unsafe { libc::ftruncate(file, bytes as libc::off_t) } != 0 {
        refuse(b"stepalloc-recorder: cannot make the recording's file as large as STEPALLOC_TRACE_MIB says\n");
    }
    // SAFETY: a new mapping at a place of the kernel's choice, of an open file of this length.
    let places = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file,
            0,
        )
    };
    if places == libc::MAP_FAILED {
        refuse(b"stepalloc-recorder: cannot map the recording's file\n");
    }
    // Relaxed: `STATE` publishes them.
    PLACES.store(places.cast(), Ordering::Relaxed);
    CAPACITY.store(capacity, Ordering::Relaxed);
    FILE.store(file as u32, Ordering::Relaxed);
    // SAFETY: both are plain functions of this program, which never unloads.
    let refused = unsafe { libc::atexit(at_exit) | libc::pthread_atfork(None, None, Some(in_child)) };
    if refused != 0 {
        refuse(b"stepalloc-recorder: cannot register its end\n");
    }
    true
}

/// This thread's number, by first record; the 256th thread and all after it share the last one.
fn thread_number() -> u8 {
    let own = THREAD.get();
    if own != UNNUMBERED {
        return own as u8;
    }
    // Relaxed: it is one number.
    let number = NEXT_THREAD.fetch_add(1, Ordering::Relaxed).min(u32::from(u8::MAX));
    THREAD.set(number);
    number as u8
}

/// Writes a record at the next place; returns the number of a block that begins its life, else `block`.
fn write(op: Op, block: u32, align: usize, size: usize, moved: bool) -> u32 {
    // SeqCst: partner of `finish`'s exchange and its look at `WRITERS`.
    WRITERS.fetch_add(1, Ordering::SeqCst);
    let mut number = block;
    if STATE.load(Ordering::SeqCst) == ON {
        let makes = op.makes();
        // AcqRel: a free's place is behind its block's, for whoever frees got the block from who made it.
        let next = NEXT.fetch_add(1 + (u64::from(makes) << 32), Ordering::AcqRel);
        let place = next as u32 as usize;
        if makes {
            number = (next >> 32) as u32;
        }
        if place < CAPACITY.load(Ordering::Relaxed) {
            let record = Record {
                size: size as u64,
                block: number,
                // Relaxed: see `begin_step`.
                step: STEP.load(Ordering::Relaxed),
                op,
                thread: thread_number(),
                align_log2: align.trailing_zeros() as u8 & 63,
                moved,
            };
            // Marks speak of no block and so of no alignment.
            let record = Record {
                align_log2: if op.is_mark() { 0 } else { record.align_log2 },
                ..record
            };
            let raw = record.to_bytes();
            // SAFETY: invariant 2: the place is this call's own and inside the mapping, which is never unmapped.
            unsafe {
                let at = PLACES.load(Ordering::Relaxed).add(place * RECORD_BYTES);
                ptr::copy_nonoverlapping(raw.as_ptr(), at, RECORD_BYTES);
            }
        } else if STATE
            .compare_exchange(ON, ENDED, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
        {
            // Full: whatever follows is dropped. All places are written or being written, so nothing is cut.
            let what = b"stepalloc-recorder: the recording is full and ends here; STEPALLOC_TRACE_MIB sets its size\n";
            // SAFETY: readable for its length.
            unsafe { libc::write(2, what.as_ptr().cast(), what.len()) };
        }
    }
    WRITERS.fetch_sub(1, Ordering::SeqCst);
    number
}

/// How far behind its backing's block a block begins.
fn header(align: usize) -> usize {
    align.max(LEAST_HEADER)
}

/// The layout that the backing is asked for; `None` where it would be too large.
fn with_header(size: usize, align: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(header(align))?, header(align)).ok()
}

/// Makes a block by `make` and records it.
fn alloc_by(op: Op, layout: Layout, make: impl FnOnce(Layout) -> *mut u8) -> *mut u8 {
    if !has_headers() {
        return make(layout);
    }
    let Some(outer) = with_header(layout.size(), layout.align()) else {
        return ptr::null_mut();
    };
    let base = make(outer);
    if base.is_null() {
        return base;
    }
    let number = write(op, NO_BLOCK, layout.align(), layout.size(), false);
    // SAFETY: the backing's block is `header` bytes longer than the request, and at least `LEAST_HEADER`-aligned.
    unsafe {
        base.cast::<u32>().write(number);
        base.add(header(layout.align()))
    }
}

// SAFETY: each block is the backing's, moved up by a multiple of its alignment and as much longer (or, without a file, the
// backing's as it is: invariant 1), so that blocks are as distinct, aligned and long as the backing's.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Recorder<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is not of zero bytes: the caller's promise, and a header only adds to it.
        alloc_by(Op::Alloc, layout, |layout| unsafe { self.backing.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`. The header is written before the block only.
        alloc_by(Op::AllocZeroed, layout, |layout| unsafe {
            self.backing.alloc_zeroed(layout)
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !has_headers() {
            // SAFETY: the backing's own block and layout.
            return unsafe { self.backing.dealloc(block, layout) };
        }
        let Some(outer) = with_header(layout.size(), layout.align()) else {
            refuse(b"stepalloc-recorder: freed with a layout that no block has\n");
        };
        // SAFETY: `alloc_by` or `realloc` made the block, `header` bytes into the backing's of this layout.
        unsafe {
            let base = block.sub(header(layout.align()));
            free_record(base.cast::<u32>().read(), layout);
            self.backing.dealloc(base, outer);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !has_headers() {
            // SAFETY: the backing's own block and layout, and the caller's promises for the new size.
            return unsafe { self.backing.realloc(block, layout, new_size) };
        }
        let (Some(old), Some(new)) = (
            with_header(layout.size(), layout.align()),
            with_header(new_size, layout.align()),
        ) else {
            return ptr::null_mut();
        };
        // SAFETY: as in `dealloc`; the new size with its header is a valid one, and the header moves with the block.
        unsafe {
            let base = block.sub(header(layout.align()));
            let moved = self.backing.realloc(base, old, new.size());
            if moved.is_null() {
                return moved;
            }
            let number = moved.cast::<u32>().read();
            if number != NO_BLOCK {
                write(Op::Realloc, number, layout.align(), new_size, moved != base);
            }
            moved.add(header(layout.align()))
        }
    }
}

/// Records the end of a block that has a number; those made after the recording's end have none.
fn free_record(number: u32, layout: Layout) {
    if number != NO_BLOCK {
        write(Op::Free, number, layout.align(), layout.size(), false);
    }
}
