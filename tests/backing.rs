//! The other side of the door: a backing with a shadow map of its own, which aborts when it is handed a block back with
//! another layout than it gave it with, twice, or when two of its blocks share a byte; and which counts what it has.
//!
//! The work is that of the chaos tests, in scopes and out of them, with blocks that grow from the backing's into spans, and
//! aligned buffers.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use stepalloc::{aligned_alloc, aligned_free, arena_scope, outside_scope, AlignedBuf, StepAlloc};
use support::random::Random;
use support::{chaos, shadow, workload};

/// Thresholds so low that all kinds of requests reach the backing often.
#[global_allocator]
static GLOBAL: StepAlloc<Watched> = StepAlloc::with_backing(Watched)
    .simd_threshold(512)
    .large_threshold(32 << 10);

/// `System`, watched.
struct Watched;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands on what `System` does, for the same layouts.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let p = unsafe { System.alloc(layout) };
        shadow::add(p, layout);
        LIVE.fetch_add(layout.size(), Relaxed);
        p
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let p = unsafe { System.alloc_zeroed(layout) };
        shadow::add(p, layout);
        LIVE.fetch_add(layout.size(), Relaxed);
        p
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        shadow::remove(p, layout);
        // SAFETY: the caller's promise; what reads it now reads this.
        unsafe {
            p.write_bytes(0xdf, layout.size());
            System.dealloc(p, layout);
        }
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        shadow::remove(p, layout);
        // SAFETY: the caller's promise, which also makes the new layout a valid one.
        let (new, made) = unsafe {
            (
                System.realloc(p, layout, size),
                Layout::from_size_align_unchecked(size, layout.align()),
            )
        };
        shadow::add(new, made);
        LIVE.fetch_add(size, Relaxed);
        LIVE.fetch_sub(layout.size(), Relaxed);
        new
    }
}

/// A vector that grows through all thresholds, in scopes and out of them, and shrinks again.
fn vector(random: &mut Random) {
    let mut numbers: Vec<u32> = vec![];
    for _ in 0..30 {
        let len = numbers.len() as u32;
        let more = random.size(12) as u32;
        let grow = |numbers: &mut Vec<u32>| numbers.extend(len..len + more);
        if random.one_in(2) {
            arena_scope(|| grow(&mut numbers));
        } else {
            grow(&mut numbers);
        }
        if random.one_in(5) {
            numbers.truncate(random.below(numbers.len()));
            numbers.shrink_to_fit();
        }
    }
    assert!(numbers.iter().enumerate().all(|(at, &number)| at as u32 == number));
}

/// Aligned buffers and blocks: what they free is what they took.
fn aligned(random: &mut Random) {
    let buffer: AlignedBuf<u16, 128> = AlignedBuf::from_fn(random.size(15), |at| at as u16);
    let copy = buffer.clone();
    drop(buffer);
    assert!(copy.iter().enumerate().all(|(at, &value)| value == at as u16));
    assert!(AlignedBuf::<u64>::zeroed(random.size(14))
        .iter()
        .all(|&value| value == 0));
    let (size, align) = (random.size(18), 1 << random.below(13));
    let block = aligned_alloc(size, align).unwrap();
    // SAFETY: the block has `size` bytes and is freed with the numbers that it was made with.
    unsafe {
        block.write_bytes(1, size);
        aligned_free(block, size, align);
    }
}

fn work(number: u64, rounds: usize) {
    let mut random = Random::new(chaos::seed() ^ number);
    for _ in 0..rounds {
        let one = |random: &mut Random| match random.below(4) {
            0 => vector(random),
            1 => aligned(random),
            _ => workload::any(random),
        };
        match random.below(4) {
            0 => one(&mut random),
            1 => arena_scope(|| outside_scope(|| one(&mut random))),
            _ => arena_scope(|| one(&mut random)),
        }
    }
}

#[test]
fn the_backing_gets_back_what_it_gave() {
    let run = |rounds| {
        let threads: Vec<_> = (0..3)
            .map(|number| std::thread::spawn(move || work(number, rounds)))
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        LIVE.load(Relaxed)
    };
    // What std and the thread library keep for themselves is there after the first run.
    let first = run(50);
    let last = run(300);
    assert!(
        last < first + (16 << 10),
        "the backing has {last} bytes, {first} before"
    );
    assert!(LIVE.load(Relaxed) > 0, "nothing ever reached the backing");
}
