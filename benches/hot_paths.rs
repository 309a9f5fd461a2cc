//! Time of the hot paths, in a scope and outside any, beside `System` in the same run: `cargo bench --bench hot_paths`
//!
//! stepalloc is a value here, not the global allocator, so that both are called alike and criterion's own memory is in
//! neither. Compare within one run: the figures of a busy machine are ratios, not times. `benches/counts` has
//! instructions instead, which do not depend on who else uses the machine.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use stepalloc::{arena_scope, outside_scope, ArenaScope, StepAlloc};

static STEPALLOC: StepAlloc = StepAlloc::new();

/// Sizes of small blocks as programs have them.
const MIXED: [usize; 12] = [16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 256, 512];

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a layout")
}

/// Makes a block, writes its first word and reads it back.
fn make(allocator: &impl GlobalAlloc, layout: Layout) -> *mut u8 {
    // SAFETY: every layout of this file has room for a word at its alignment; null would fault on the write.
    unsafe {
        let block = black_box(allocator.alloc(layout));
        block.cast::<u64>().write(layout.size() as u64);
        assert_eq!(black_box(block).cast::<u64>().read(), layout.size() as u64);
        block
    }
}

fn free(allocator: &impl GlobalAlloc, block: *mut u8, layout: Layout) {
    // SAFETY: every caller hands in a live block with the layout it was made with, once.
    unsafe { allocator.dealloc(block, layout) }
}

/// The operations that all allocators are asked for.
fn operations(c: &mut Criterion, who: &str, allocator: &'static (impl GlobalAlloc + Sync)) {
    for size in [32, 1_024] {
        let layout = layout(size);
        c.bench_function(&format!("pair/{who}/{size}"), |b| {
            b.iter(|| free(allocator, make(allocator, layout), layout));
        });
    }
    let layouts: Vec<Layout> = (0..1_000).map(|i| layout(MIXED[i * 7 % MIXED.len()])).collect();
    let mut blocks = Vec::with_capacity(layouts.len());
    c.bench_function(&format!("batch/{who}/1000"), |b| {
        b.iter(|| {
            blocks.extend(layouts.iter().map(|&layout| make(allocator, layout)));
            blocks
                .drain(..)
                .zip(&layouts)
                .for_each(|(block, &layout)| free(allocator, block, layout));
        });
    });
    c.bench_function(&format!("grow/{who}/4096"), |b| {
        b.iter(|| {
            let mut block = make(allocator, layout(64));
            for size in (64..4_096).step_by(64) {
                // SAFETY: the block is live and of this size.
                block = unsafe { allocator.realloc(block, layout(size), size + 64) };
            }
            free(allocator, block, layout(4_096));
        });
    });
    let large = [128, 256, 1_024].map(|kib| layout(kib << 10));
    c.bench_function(&format!("spans/{who}/3"), |b| {
        b.iter(|| {
            let blocks = large.map(|layout| make(allocator, layout));
            for (block, layout) in blocks.into_iter().zip(large) {
                free(allocator, block, layout);
            }
        });
    });
}

/// Blocks made here and freed by another thread, 1,000 at a time.
fn remote(c: &mut Criterion, who: &str, allocator: &'static (impl GlobalAlloc + Sync)) {
    let (to, from) = sync_channel::<Vec<usize>>(1);
    let (done, back) = channel();
    let freeing = thread::spawn(move || {
        for mut blocks in from {
            blocks
                .drain(..)
                .for_each(|block| free(allocator, block as *mut u8, layout(64)));
            done.send(blocks).expect("the bench waits for it");
        }
    });
    let mut blocks = Vec::with_capacity(1_000);
    c.bench_function(&format!("remote/{who}/1000"), |b| {
        b.iter(|| {
            blocks.extend((0..1_000).map(|_| make(allocator, layout(64)).expose_provenance()));
            to.send(std::mem::take(&mut blocks)).expect("the other thread listens");
            blocks = back.recv().expect("the other thread answers");
        });
    });
    drop(to);
    freeing.join().expect("the other thread has not panicked");
}

fn hot_paths(c: &mut Criterion) {
    operations(c, "system", &System);
    remote(c, "system", &System);
    operations(c, "outside", &STEPALLOC);
    {
        let _scope = ArenaScope::enter();
        operations(c, "scope", &STEPALLOC);
        remote(c, "scope", &STEPALLOC);
    }
    let mut scopes = c.benchmark_group("scopes");
    scopes.bench_function(BenchmarkId::new("enter+leave", "empty"), |b| {
        b.iter(|| arena_scope(|| black_box(1)));
    });
    scopes.bench_function(BenchmarkId::new("enter+leave", "10 blocks"), |b| {
        b.iter(|| {
            arena_scope(|| {
                let blocks = [(); 10].map(|()| make(&STEPALLOC, layout(64)));
                for block in blocks {
                    free(&STEPALLOC, block, layout(64));
                }
            });
        });
    });
    scopes.bench_function(BenchmarkId::new("outside_scope", "empty"), |b| {
        let _scope = ArenaScope::enter();
        b.iter(|| outside_scope(|| black_box(1)));
    });
    scopes.finish();
}

fn main() {
    // Short: these are operations of nanoseconds, and what matters is to run all of them in one go.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_000))
        .sample_size(30)
        .configure_from_args();
    hot_paths(&mut criterion);
    criterion.final_summary();
}
