//! How a workload runs: in scopes or not, quickly or not; and the figures it hands over.
use std::cell::RefCell;

use stepalloc_measure::process::{self, Resident};
use stepalloc_measure::sample;

/// Who frees a step's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The allocator as it is.
    Plain,
    /// Each step in an arena scope.
    Scope,
    /// No allocation in a step: its buffers are kept by hand. Only the tensor steps know this.
    Kept,
}

/// A run of one workload.
pub struct Run {
    pub way: Way,
    /// A tenth to a third of the work, to steer by.
    pub quick: bool,
    resident: Resident,
    figures: RefCell<Vec<(&'static str, f64)>>,
}

impl Run {
    pub fn new(way: Way, quick: bool) -> Self {
        Run {
            way,
            quick,
            resident: Resident::new(),
            figures: RefCell::new(Vec::with_capacity(16)),
        }
    }

    /// Runs `f` as a step: in a scope where this run has scopes.
    #[inline(always)]
    pub fn step<R>(&self, f: impl FnOnce() -> R) -> R {
        match self.way {
            Way::Scope => stepalloc::arena_scope(f),
            Way::Plain | Way::Kept => f(),
        }
    }

    /// One of two sizes of the work.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick {
            quick
        } else {
            full
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

/// MiB of bytes above a level.
pub fn mib_above(bytes: u64, level: u64) -> f64 {
    bytes.saturating_sub(level) as f64 / (1 << 20) as f64
}
