//! How a workload runs: in scopes or not, quickly or not; and the figures it hands over.
use std::cell::RefCell;

use stepalloc_measure::process::{self, Resident};
use stepalloc_measure::{sample, syscalls};

/// Who frees a step's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The allocator as it is.
    Plain,
    /// Each step in an arena scope.
    Scope,
    /// Each step on a bare bump allocator, rewound at its end.
    Bump,
    /// Each step in an explicit arena, where the workload has code for that.
    Arena(Arena),
    /// No allocation in a step: its buffers are kept by hand. Only the tensor steps know this.
    Kept,
}

/// The explicit arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arena {
    Bumpalo,
    BumpScope,
    Blink,
    /// For one type each: it serves the graph only.
    Typed,
}

/// How much of the work a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Full,
    /// A tenth to a third of it, to steer by.
    Quick,
    /// As little, and the steady steps are marked for who counts system calls.
    Counted,
}

/// A run of one workload.
pub struct Run {
    pub way: Way,
    length: Length,
    resident: Resident,
    figures: RefCell<Vec<(&'static str, f64)>>,
}

impl Run {
    pub fn new(way: Way, length: Length) -> Self {
        Run {
            way,
            length,
            resident: Resident::new(),
            figures: RefCell::new(Vec::with_capacity(16)),
        }
    }

    /// Runs `f` as a step: in a scope where this run has scopes.
    #[inline(always)]
    pub fn step<R>(&self, f: impl FnOnce() -> R) -> R {
        match self.way {
            Way::Scope => stepalloc::arena_scope(f),
            Way::Bump => bump::step(f),
            Way::Plain | Way::Arena(_) | Way::Kept => f(),
        }
    }

    /// One of two sizes of the work.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        match self.length {
            Length::Full => full,
            Length::Quick | Length::Counted => quick,
        }
    }

    /// Whether this run is under strace, which makes each system call slow.
    pub fn is_counted(&self) -> bool {
        self.length == Length::Counted
    }

    /// The steady steps begin: system calls count from here.
    pub fn begin_steady(&self) {
        if self.is_counted() {
            syscalls::begin();
        }
    }

    /// They end, and were so many.
    pub fn end_steady(&self, steps: usize) {
        if self.is_counted() {
            syscalls::end(steps);
        }
    }

    /// Hands over a figure; of all figures less is better.
    pub fn figure(&self, name: &'static str, value: f64) {
        self.figures.borrow_mut().push((name, value));
    }

    /// Prints all figures, one a line.
    pub fn print(self) {
        for (name, value) in self.figures.into_inner() {
            println!("{name} {value}");
        }
    }

    /// Times `f`, which does `operations` of what the row is named for, again and again, and hands over the median CPU time
    /// of one operation as `ns`.
    pub fn time(&self, operations: usize, mut f: impl FnMut()) {
        if self.is_counted() {
            const STEPS: usize = 16;
            f();
            self.begin_steady();
            for _ in 0..STEPS {
                f();
            }
            return self.end_steady(STEPS);
        }
        let budget = self.pick(400_000_000, 100_000_000);
        let started = process::cpu_ns();
        f();
        let first = process::cpu_ns() - started;
        // Samples of a millisecond at least: reading the clock must not count.
        let repeats = (1_000_000 / first.max(1) + 1) as usize;
        for _ in 0..repeats.min(1000) {
            f();
        }
        let (begin, mut samples) = (process::cpu_ns(), Vec::with_capacity(1024));
        while samples.len() < 5 || (process::cpu_ns() - begin < budget && samples.len() < 1024) {
            let clock = process::cpu_ns();
            for _ in 0..repeats {
                f();
            }
            samples.push((process::cpu_ns() - clock) as f64 / (repeats * operations) as f64);
        }
        self.figure("ns", sample::median(samples).unwrap_or(f64::NAN));
    }

    /// Resident bytes now.
    pub fn resident_bytes(&self) -> u64 {
        self.resident.now()
    }

    /// Makes the program's code resident and returns the level above which memory is counted.
    pub fn level(&self) -> u64 {
        process::populate_code();
        self.resident.now()
    }
}

/// The bare bump allocator: one thread, no counts, no reuse.
pub mod bump {
    use std::alloc::Layout;
    use std::cell::{Cell, OnceCell};

    use stepalloc_measure::mapped::Mapped;

    const BYTES: usize = 64 << 20;

    thread_local! {
        static POSITION: Cell<usize> = const { Cell::new(0) };
        /// 0 outside steps, so that one compare sends a request elsewhere.
        static END: Cell<usize> = const { Cell::new(0) };
        static START: Cell<usize> = const { Cell::new(0) };
        static MEMORY: OnceCell<Mapped<u8>> = const { OnceCell::new() };
    }

    /// A block of this step, if there is one and it has room.
    #[inline]
    pub fn alloc(layout: Layout) -> Option<*mut u8> {
        let mask = layout.align().max(16) - 1;
        let start = (POSITION.get() + mask) & !mask;
        let end = start + layout.size();
        (end <= END.get()).then(|| {
            POSITION.set(end);
            start as *mut u8
        })
    }

    /// Whether the block was made in a step.
    #[inline]
    pub fn contains(place: *mut u8) -> bool {
        (place as usize).wrapping_sub(START.get()) < BYTES
    }

    /// Runs `f` as a step; all its blocks end with it.
    pub fn step<R>(f: impl FnOnce() -> R) -> R {
        if START.get() == 0 {
            START.set(MEMORY.with(|memory| memory.get_or_init(|| Mapped::new(BYTES, 0)).as_ptr() as usize));
        }
        POSITION.set(START.get());
        END.set(START.get() + BYTES);
        let result = f();
        END.set(0);
        result
    }
}

/// MiB of bytes above a level.
pub fn mib_above(bytes: u64, level: u64) -> f64 {
    bytes.saturating_sub(level) as f64 / (1 << 20) as f64
}
