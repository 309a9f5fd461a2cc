//! What the targets share: programs of operations through the public API, every block's content verified, and a count of
//! the operations, which is told when the process ends.
//!
//! Each program of the heap runs on threads of its own, so that its segment begins as a dead thread left it: empty. A
//! finding is so replayed by its input alone, but for what the other threads do meanwhile.

#[path = "../../tests/support/arena_program.rs"]
pub mod arena_program;
#[path = "../../tests/support/block.rs"]
pub mod block;
#[path = "../../tests/support/pool_program.rs"]
pub mod pool_program;

use block::Block;
use std::alloc::Layout;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::Once;
use stepalloc::{outside_scope, ArenaScope, CountedScope, StepAlloc};

/// The allocator under test, used by hand: the fuzzer's own memory is elsewhere.
pub static ARENA: StepAlloc = StepAlloc::new();

static OPERATIONS: AtomicU64 = AtomicU64::new(0);
static LOOKED_AT: AtomicU64 = AtomicU64::new(0);
static SERVED: AtomicU64 = AtomicU64::new(0);

extern "C" fn tell() {
    let (looked_at, served) = (LOOKED_AT.load(Relaxed), SERVED.load(Relaxed));
    eprintln!("operations: {}", OPERATIONS.load(Relaxed));
    if looked_at != 0 {
        let share = 100.0 * served as f64 / looked_at as f64;
        eprintln!("the arena served {share:.1} % of the blocks made in scopes");
        if looked_at > 1_000 && share < 90.0 {
            eprintln!("the fuzzer ran in the fallback");
            std::process::abort();
        }
    }
}

/// Counts the operations of a program; at the end of the process their sum is printed.
fn count(operations: usize) {
    static ONCE: Once = Once::new();
    // SAFETY: registers a function that only prints.
    ONCE.call_once(|| unsafe {
        libc::atexit(tell);
    });
    OPERATIONS.fetch_add(operations as u64, Relaxed);
}

/// An operation: which, and two numbers for it.
pub type Op = (u8, u16, u16);

/// The operations that an input says, five bytes each. (Not by `Arbitrary`, whose vectors spend a byte on whether to go on
/// and so are two long on the average.)
pub fn operations(input: &[u8]) -> Vec<Op> {
    let number = |low, high| u16::from_le_bytes([low, high]);
    let ops: Vec<Op> = input
        .chunks_exact(5)
        .map(|b| (b[0], number(b[1], b[2]), number(b[3], b[4])))
        .collect();
    count(ops.len());
    ops
}

enum Guard {
    Plain(#[allow(dead_code, reason = "kept for its drop")] ArenaScope),
    Counted(CountedScope),
}

/// One thread of a program of the heap: its blocks, its guards, and where it sends blocks to be freed abroad.
#[derive(Default)]
pub struct Runner {
    blocks: Vec<Block>,
    guards: Vec<Guard>,
    made: u64,
    abroad: Option<(Sender<Block>, Receiver<Block>)>,
}

impl Runner {
    /// A thread that exchanges blocks with another.
    pub fn with_peer(to: Sender<Block>, from: Receiver<Block>) -> Runner {
        Runner {
            abroad: Some((to, from)),
            ..Runner::default()
        }
    }

    fn pick(&mut self, which: u16) -> Option<usize> {
        // Three of four times one of the last four blocks, as programs do.
        let (last, which) = (self.blocks.len().checked_sub(1)?, which as usize);
        Some(if which % 4 != 0 {
            last - which / 4 % (last + 1).min(4)
        } else {
            which / 4 % (last + 1)
        })
    }

    fn make(&mut self, a: u16, b: u16) {
        let (a, kind) = (a as usize, b as usize);
        let size = match kind % 32 {
            0 => a * 3,
            1 | 2 => a % 40_000,
            3..=8 => a % 1_500,
            _ => a % 130,
        };
        let align = [1, 8, 16, 16, 32, 64, 256, 4096, 16384][kind / 32 % 9];
        let layout = Layout::from_size_align(size.max(1), align).unwrap();
        self.made += 1;
        let (id, zeroed) = (self.made, kind / 512 % 4 == 0);
        let make = || Block::make(&ARENA, layout, id, zeroed);
        let block = if kind / 2048 % 16 == 0 {
            outside_scope(make)
        } else {
            make()
        };
        if stepalloc::scope_depth() > 0 && kind / 2048 % 16 != 0 {
            LOOKED_AT.fetch_add(1, Relaxed);
            SERVED.fetch_add(u64::from(stepalloc::in_arena(block.ptr())), Relaxed);
        }
        self.blocks.push(block);
    }

    /// One operation from three numbers.
    pub fn step(&mut self, op: u8, a: u16, b: u16) {
        match op % 20 {
            0 if self.guards.len() < 70 => self.guards.push(match a % 8 {
                0 => Guard::Counted(ArenaScope::enter_counted()),
                _ => Guard::Plain(ArenaScope::enter()),
            }),
            1 | 2 if !self.guards.is_empty() => {
                let last = self.guards.len() - 1;
                let at = if a % 10 < 7 { last } else { b as usize % (last + 1) };
                match self.guards.remove(at) {
                    guard if a % 50 == 0 => std::mem::forget(guard),
                    Guard::Counted(scope) if a % 3 == 0 => {
                        let report = scope.leave();
                        assert!(report.escapees <= report.blocks && report.escapee_bytes <= report.bytes);
                    }
                    guard => drop(guard),
                }
            }
            3..=8 => self.make(a, b),
            9 | 10 => {
                if let Some(at) = self.pick(a) {
                    let size = if b % 8 == 0 {
                        b as usize * 3 + 1
                    } else {
                        b as usize % 300 + 1
                    };
                    self.blocks[at].resize(&ARENA, size);
                }
            }
            11 if a % 64 == 0 => {
                stepalloc::trim();
            }
            11 | 12 => {
                if let (Some(at), Some((to, _))) = (self.pick(a), &self.abroad) {
                    let block = self.blocks.swap_remove(at);
                    // The other may have ended: then it comes back.
                    if let Err(lost) = to.send(block) {
                        self.blocks.push(lost.0);
                    }
                }
            }
            13 | 14 => {
                if let Some((_, from)) = &self.abroad {
                    self.blocks.extend(from.try_iter().take(1 + a as usize % 4));
                }
            }
            _ => {
                if let Some(at) = self.pick(a) {
                    self.blocks.swap_remove(at).free(&ARENA);
                }
            }
        }
    }

    /// What is left, guards dropped oldest first.
    pub fn finish(mut self) -> Vec<Block> {
        self.guards.drain(..).for_each(drop);
        self.blocks.iter().for_each(Block::verify);
        if let Some((to, from)) = self.abroad {
            drop(to);
            // Until the other has ended too.
            self.blocks.extend(from);
        }
        self.blocks
    }
}

/// No byte of an arena may be in use when all threads of a program have ended and all blocks are freed.
pub fn nothing_is_left() {
    // A span freed in a segment without an owner is used until somebody folds it in.
    stepalloc::trim();
    let stats = stepalloc::stats();
    assert_eq!(stats.in_use_bytes, 0, "memory is left over: {stats:?}");
    assert_eq!(stats.segments, 0, "a segment has no living owner: {stats:?}");
}
