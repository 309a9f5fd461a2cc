//! Programs of operations on an arena, and the naive oracle that runs them: every block is filled when it is made and
//! verified before it goes. The property tests make them at random and shrink them; the fuzzer makes them of bytes.

use std::alloc::Layout;
use std::ptr::NonNull;
use stepalloc::{AllocError, Arena, Checkpoint, CheckpointError, Retain};

/// A live block as the oracle knows it.
#[derive(Debug, Clone)]
pub struct Block {
    at: NonNull<u8>,
    layout: Layout,
    fill: u8,
}

impl Block {
    fn fill(&self) {
        // SAFETY: the block is live and has so many bytes.
        unsafe { self.at.write_bytes(self.fill, self.layout.size()) }
    }

    /// Panics unless every byte is as it was written.
    pub fn verify(&self) {
        // SAFETY: the block is live and was filled.
        let bytes = unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.layout.size()) };
        assert!(
            bytes.iter().all(|&byte| byte == self.fill),
            "a block was written by another"
        );
    }
}

/// A checkpoint, how many blocks there were, and whether going back to it is still allowed.
#[derive(Clone)]
struct Mark {
    checkpoint: Checkpoint,
    blocks: usize,
    used: usize,
    live: bool,
}

#[derive(Debug, Clone)]
pub enum Op {
    /// Size, and the logarithm of the alignment.
    Alloc(usize, u32),
    /// The same.
    Zeroed(usize, u32),
    FreeNewest,
    /// How many blocks back, new size, and the logarithm of the new alignment.
    Resize(usize, usize, u32),
    Checkpoint,
    ResetTo(usize),
    Commit(usize),
    Reset(u8),
}

impl Op {
    /// An operation from three numbers.
    #[allow(dead_code, reason = "the fuzzer's")]
    pub fn from_numbers(op: u8, a: u16, b: u16) -> Op {
        let (a, shift) = (a as usize, u32::from(b % 14));
        let size = match b / 14 % 10 {
            0 => a * 3,
            1..=3 => a % 9_000,
            _ => a % 300,
        };
        match op % 28 {
            0..=9 => Op::Alloc(size, shift),
            10..=12 => Op::Zeroed(size, shift % 8),
            13 | 14 => Op::FreeNewest,
            15..=17 => Op::Resize(b as usize % 8, size, shift % 9),
            18..=21 => Op::Checkpoint,
            22..=25 => Op::ResetTo(a % 64),
            26 => Op::Commit(size),
            _ => Op::Reset((b % 3) as u8),
        }
    }
}

/// What should be.
#[derive(Default)]
pub struct Oracle {
    /// Live blocks, oldest first.
    pub blocks: Vec<Block>,
    marks: Vec<Mark>,
    peak: usize,
    fill: u8,
}

impl Oracle {
    fn check(&mut self, arena: &Arena) {
        let stats = arena.stats();
        self.peak = self.peak.max(stats.used_bytes);
        assert_eq!(stats.peak_bytes, self.peak);
        assert!(stats.used_bytes <= stats.committed_bytes && stats.committed_bytes <= stats.reserved_bytes);
        assert!(stats.used_bytes <= arena.max_bytes().unwrap_or(usize::MAX));
        assert!(self.blocks.iter().map(|block| block.layout.size()).sum::<usize>() <= stats.used_bytes);
    }

    fn push(&mut self, arena: &Arena, at: NonNull<u8>, layout: Layout) {
        assert_eq!(at.addr().get() % layout.align().max(arena.align()), 0);
        let (start, end) = (at.addr().get(), at.addr().get() + layout.size());
        for other in &self.blocks {
            let (from, to) = (other.at.addr().get(), other.at.addr().get() + other.layout.size());
            assert!(
                end <= from || to <= start || start == end || from == to,
                "two live blocks overlap"
            );
        }
        self.fill = self.fill.wrapping_add(1);
        let block = Block {
            at,
            layout,
            fill: self.fill,
        };
        block.fill();
        self.blocks.push(block);
    }

    /// A refusal is right only where a limit is near: the system has memory for these sizes.
    fn refused(&self, arena: &Arena, error: AllocError, size: usize, align: usize) {
        assert_eq!(error, AllocError::LimitReached);
        let most = arena
            .max_bytes()
            .expect("an arena without a limit refused a small request");
        assert!(arena.stats().used_bytes + size + 2 * align.max(arena.align()) > most);
    }

    fn newest_mark(&self) -> usize {
        self.marks
            .iter()
            .filter(|mark| mark.live)
            .map(|mark| mark.blocks)
            .max()
            .unwrap_or(0)
    }

    /// Runs one operation and compares.
    pub fn run(&mut self, arena: &mut Arena, op: Op) {
        match op {
            Op::Alloc(size, shift) => {
                let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                match arena.try_alloc_layout(layout) {
                    Ok(at) => self.push(arena, at, layout),
                    Err(error) => self.refused(arena, error, size, 1 << shift),
                }
            }
            Op::Zeroed(size, shift) => {
                let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                match arena.try_alloc_layout_zeroed(layout) {
                    Ok(at) => {
                        // SAFETY: the block was just made and has so many zeroed bytes.
                        let bytes = unsafe { std::slice::from_raw_parts(at.as_ptr(), size) };
                        assert!(bytes.iter().all(|&byte| byte == 0), "a zeroed block is not zero");
                        self.push(arena, at, layout);
                    }
                    Err(error) => self.refused(arena, error, size, 1 << shift),
                }
            }
            Op::FreeNewest => {
                if let Some(block) = self.blocks.pop() {
                    block.verify();
                    // SAFETY: the block is live, and the oracle forgets it.
                    unsafe { arena.dealloc(block.at, block.layout) };
                    let left = self.blocks.len();
                    for mark in &mut self.marks {
                        mark.blocks = mark.blocks.min(left);
                    }
                }
            }
            Op::Resize(back, size, shift) => {
                // Growing a block from before a checkpoint makes it one from after it: the oracle leaves those alone.
                let movable = self.blocks.len() - self.newest_mark();
                if movable == 0 {
                    return;
                }
                let which = self.blocks.len() - 1 - back % movable;
                let old = self.blocks[which].clone();
                old.verify();
                let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                // SAFETY: the block is live with this layout, and what comes back takes its place.
                let resized = unsafe {
                    if size >= old.layout.size() {
                        arena.grow(old.at, old.layout, layout)
                    } else {
                        arena.shrink(old.at, old.layout, layout)
                    }
                };
                match resized {
                    Ok(at) => {
                        self.blocks.remove(which);
                        let kept = Block {
                            at,
                            layout: Layout::from_size_align(size.min(old.layout.size()), 1).unwrap(),
                            ..old
                        };
                        kept.verify();
                        self.push(arena, at, layout);
                        // It keeps its place in time only if it is the newest; put it back where it was.
                        let block = self.blocks.pop().unwrap();
                        self.blocks.insert(which, block);
                    }
                    Err(error) => {
                        self.refused(arena, error, size, layout.align());
                        old.verify();
                    }
                }
            }
            Op::Checkpoint => {
                let checkpoint = arena.checkpoint();
                let (blocks, used) = (self.blocks.len(), arena.stats().used_bytes);
                self.marks.push(Mark {
                    checkpoint,
                    blocks,
                    used,
                    live: true,
                });
            }
            Op::ResetTo(which) => {
                if self.marks.is_empty() {
                    return;
                }
                let which = which % self.marks.len();
                let mark = self.marks[which].clone();
                self.blocks.iter().for_each(Block::verify);
                let before = arena.stats();
                // SAFETY: if it succeeds the oracle forgets the blocks made since.
                let done = unsafe { arena.reset_to(&mark.checkpoint) };
                if mark.live {
                    assert_eq!(done, Ok(()));
                    assert_eq!(arena.stats().used_bytes, mark.used);
                    self.blocks.truncate(mark.blocks);
                    self.marks[which + 1..].iter_mut().for_each(|later| later.live = false);
                } else {
                    assert_eq!(done, Err(CheckpointError::Stale));
                    assert_eq!(arena.stats(), before, "a refused checkpoint changed the arena");
                }
            }
            Op::Commit(bytes) => match arena.commit(bytes) {
                Ok(()) => {
                    let stats = arena.stats();
                    assert!(stats.committed_bytes >= bytes);
                    assert!(stats.used_bytes + bytes <= arena.max_bytes().unwrap_or(usize::MAX));
                }
                Err(error) => self.refused(arena, error, bytes, 1),
            },
            Op::Reset(how) => {
                self.blocks.drain(..).for_each(|block| block.verify());
                self.marks.iter_mut().for_each(|mark| mark.live = false);
                match how {
                    0 => arena.reset(),
                    1 => arena.reset_with(Retain::UpTo(100_000)),
                    _ => arena.reset_with(Retain::None),
                }
                let stats = arena.stats();
                assert_eq!(stats.used_bytes, 0);
                match how {
                    0 => {}
                    1 => assert!(stats.committed_bytes <= 100_000),
                    _ => assert_eq!((stats.committed_bytes, stats.block_count), (0, 0)),
                }
            }
        }
        self.check(arena);
    }
}
