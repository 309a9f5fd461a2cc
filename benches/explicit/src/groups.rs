//! What is compared.

use crate::{contender, Bench};
use bump_scope::traits::*;
use std::hint::black_box;
use std::ptr::NonNull;

/// Values a round.
const VALUES: u64 = 1_000;

/// A word at a multiple of 64, as the arena's default alignment places it: the peers are asked for it by the type.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(u64);

/// Single values of one word, at its own alignment and at 64, and of a cache line, then back to the start.
pub fn values(bench: &Bench) {
    let mut ours = stepalloc::Arena::new();
    let mut packed = stepalloc::Arena::with_align(8);
    let mut bumpalo = bumpalo::Bump::with_capacity(1 << 20);
    let mut scope: bump_scope::Bump = bump_scope::Bump::with_capacity(std::alloc::Layout::new::<[u8; 1 << 20]>());
    bench.compare(
        "arena/alloc/u64",
        VALUES,
        1.05,
        vec![
            contender("stepalloc at align 8", || {
                let sum = (0..VALUES).map(|i| *black_box(packed.alloc(i))).sum();
                packed.reset();
                sum
            }),
            contender("bumpalo", || {
                let sum = (0..VALUES).map(|i| *black_box(bumpalo.alloc(i))).sum();
                bumpalo.reset();
                sum
            }),
            contender("bump-scope", || {
                let sum = (0..VALUES).map(|i| *black_box(scope.alloc(i).into_mut())).sum();
                scope.reset();
                sum
            }),
        ],
    );
    bench.compare(
        "arena/alloc/u64 at 64",
        VALUES,
        1.05,
        vec![
            contender("stepalloc", || {
                let sum = (0..VALUES).map(|i| *black_box(ours.alloc(i))).sum();
                ours.reset();
                sum
            }),
            contender("bumpalo", || {
                let sum = (0..VALUES).map(|i| black_box(bumpalo.alloc(Line(i))).0).sum();
                bumpalo.reset();
                sum
            }),
            contender("bump-scope", || {
                let sum = (0..VALUES).map(|i| black_box(scope.alloc(Line(i)).into_mut()).0).sum();
                scope.reset();
                sum
            }),
        ],
    );
    bench.compare(
        "arena/alloc/64 bytes",
        VALUES,
        1.05,
        vec![
            contender("stepalloc", || {
                let sum = (0..VALUES).map(|i| black_box(ours.alloc([i; 8]))[3]).sum();
                ours.reset();
                sum
            }),
            contender("bumpalo", || {
                let sum = (0..VALUES).map(|i| black_box(bumpalo.alloc([i; 8]))[3]).sum();
                bumpalo.reset();
                sum
            }),
            contender("bump-scope", || {
                let sum = (0..VALUES).map(|i| black_box(scope.alloc([i; 8]).into_mut())[3]).sum();
                scope.reset();
                sum
            }),
        ],
    );
}

/// Slices filled with a value.
pub fn slices(bench: &Bench) {
    for (group, len, count) in [
        ("arena/slice fill/16 f32", 16, 1_000),
        ("arena/slice fill/256 f32", 256, 300),
        ("arena/slice fill/16384 f32", 16_384, 20),
    ] {
        let mut ours = stepalloc::Arena::new();
        let mut bumpalo = bumpalo::Bump::with_capacity(4 << 20);
        let mut scope: bump_scope::Bump = bump_scope::Bump::with_capacity(std::alloc::Layout::new::<[u8; 4 << 20]>());
        bench.compare(
            group,
            count,
            1.05,
            vec![
                contender("stepalloc", || {
                    let sum = (0..count)
                        .map(|i| black_box(ours.alloc_slice_fill(len, i as f32))[7] as u64)
                        .sum();
                    ours.reset();
                    sum
                }),
                contender("bumpalo", || {
                    let sum = (0..count).map(|i| black_box(bumpalo.alloc_slice_fill_copy(len, i as f32))[7] as u64);
                    let sum = sum.sum();
                    bumpalo.reset();
                    sum
                }),
                contender("bump-scope", || {
                    let sum = (0..count)
                        .map(|i| black_box(scope.alloc_slice_fill(len, i as f32).into_mut())[7] as u64)
                        .sum();
                    scope.reset();
                    sum
                }),
            ],
        );
    }
}

/// A checkpoint and the way back, bare and around some blocks; raw and as a scope, which is slower where a checkpoint
/// was made outside it.
pub fn checkpoints(bench: &Bench) {
    let mut ours = stepalloc::Arena::with_align(8);
    let mut scope: bump_scope::Bump = bump_scope::Bump::with_capacity(std::alloc::Layout::new::<[u8; 1 << 20]>());
    for (group, blocks) in [
        ("arena/checkpoint and reset/0 blocks", 0u64),
        ("arena/checkpoint and reset/1 block", 1),
        ("arena/checkpoint and reset/4 blocks", 4),
        ("arena/checkpoint and reset/16 blocks", 16),
    ] {
        bench.compare(
            group,
            VALUES,
            1.05,
            vec![
                contender("stepalloc", || {
                    let mut sum = 0;
                    for _ in 0..VALUES {
                        let start = black_box(ours.checkpoint());
                        sum += (0..blocks).map(|i| *black_box(ours.alloc(i))).sum::<u64>();
                        // SAFETY: nothing made since `start` is used any more.
                        unsafe { ours.reset_to(&start) }.expect("live");
                    }
                    sum
                }),
                contender("bump-scope", || {
                    let mut sum = 0;
                    for _ in 0..VALUES {
                        let start = black_box(scope.checkpoint());
                        sum += (0..blocks).map(|i| *black_box(scope.alloc(i).into_mut())).sum::<u64>();
                        // SAFETY: nothing made since `start` is used any more.
                        unsafe { scope.reset_to(start) };
                    }
                    sum
                }),
            ],
        );
    }
    for (group, blocks, marked) in [
        ("arena/scope/0 blocks", 0u64, false),
        ("arena/scope/1 block", 1, false),
        ("arena/scope/4 blocks", 4, false),
        ("arena/scope/16 blocks", 16, false),
        ("arena/scope/1 block, a checkpoint outside", 1, true),
    ] {
        ours.reset();
        if marked {
            ours.checkpoint();
        }
        bench.compare(
            group,
            VALUES,
            1.05,
            vec![
                contender("stepalloc", || {
                    let mut sum = 0;
                    for _ in 0..VALUES {
                        ours.scope(|s| {
                            black_box(&mut *s);
                            sum += (0..blocks).map(|i| *black_box(s.alloc(i))).sum::<u64>();
                        });
                    }
                    sum
                }),
                contender("bump-scope", || {
                    let mut sum = 0;
                    for _ in 0..VALUES {
                        scope.scoped(|s| {
                            black_box(&s);
                            sum += (0..blocks).map(|i| *black_box(s.alloc(i).into_mut())).sum::<u64>();
                        });
                    }
                    sum
                }),
            ],
        );
    }
}

/// 10,000 values of one type in a new arena, and its end.
pub fn typed(bench: &Bench) {
    const COUNT: u64 = 10_000;
    let mut ours = stepalloc::Arena::new();
    let mut packed = stepalloc::Arena::with_align(8);
    bench.compare(
        "arena/10000 typed values/24 bytes",
        COUNT,
        1.1,
        vec![
            contender("stepalloc, kept", || {
                let sum = (0..COUNT).map(|i| black_box(ours.alloc((i, i, i))).1).sum();
                ours.reset();
                sum
            }),
            contender("stepalloc, kept, align 8", || {
                let sum = (0..COUNT).map(|i| black_box(packed.alloc((i, i, i))).1).sum();
                packed.reset();
                sum
            }),
            contender("stepalloc, new", || {
                let arena = stepalloc::Arena::new();
                (0..COUNT).map(|i| black_box(arena.alloc((i, i, i))).1).sum()
            }),
            contender("stepalloc, new, align 8", || {
                let arena = stepalloc::Arena::with_align(8);
                (0..COUNT).map(|i| black_box(arena.alloc((i, i, i))).1).sum()
            }),
            contender("typed-arena", || {
                let arena = typed_arena::Arena::new();
                (0..COUNT).map(|i| black_box(arena.alloc((i, i, i))).1).sum()
            }),
            contender("typed-arena, with capacity", || {
                let arena = typed_arena::Arena::with_capacity(COUNT as usize);
                (0..COUNT).map(|i| black_box(arena.alloc((i, i, i))).1).sum()
            }),
        ],
    );
}

/// One value taken and given back, and a thousand taken and then given back.
pub fn pools(bench: &Bench) {
    use std::alloc::{GlobalAlloc, Layout, System};
    type Node = [u64; 6];
    const LAYOUT: Layout = Layout::new::<Node>();

    /// A value in a block of a general allocator.
    fn put(from: &impl GlobalAlloc, node: Node) -> *mut Node {
        // SAFETY: the layout is not empty, and what comes back is checked.
        unsafe {
            let block = from.alloc(LAYOUT).cast::<Node>();
            assert!(!block.is_null());
            block.write(node);
            block
        }
    }
    fn take(from: &impl GlobalAlloc, block: *mut Node) -> u64 {
        // SAFETY: `put` made the block, and each is taken once.
        unsafe {
            let value = (*black_box(block))[2];
            from.dealloc(block.cast(), LAYOUT);
            value
        }
    }
    fn raw_batch(raw: &mut stepalloc::RawPool, objects: &mut Vec<NonNull<Node>>) -> u64 {
        for i in 0..VALUES {
            let object = raw.alloc().expect("room").cast::<Node>();
            // SAFETY: the object is ours, large enough and aligned.
            unsafe { object.write([i; 6]) };
            objects.push(object);
        }
        let mut sum = 0;
        for object in objects.drain(..) {
            // SAFETY: written above, and not given back yet.
            sum += unsafe { black_box(object).read() }[2];
            raw.free(object.cast()).expect("live");
        }
        sum
    }
    let pool = stepalloc::Pool::<Node>::new();
    let mut raw = stepalloc::RawPool::fixed(size_of::<Node>(), VALUES as usize).expect("memory");
    let mut slab = slab::Slab::<Node>::with_capacity(VALUES as usize);
    let mimalloc = mimalloc::MiMalloc;
    let jemalloc = tikv_jemallocator::Jemalloc;
    let snmalloc = snmalloc_rs::SnMalloc;
    bench.compare(
        "pool/pair (0.50 of the fastest allocator)",
        VALUES,
        1.0,
        vec![
            contender("stepalloc", || {
                (0..VALUES).map(|i| black_box(pool.alloc([i; 6]))[2]).sum()
            }),
            contender("stepalloc, raw", || {
                let mut sum = 0;
                for i in 0..VALUES {
                    let object = raw.alloc().expect("room");
                    // SAFETY: the object is ours, large enough and aligned.
                    unsafe {
                        object.cast::<Node>().write([i; 6]);
                        sum += black_box(object.cast::<Node>().as_ref())[2];
                    }
                    raw.free(object).expect("live");
                }
                sum
            }),
            contender("slab", || {
                let mut sum = 0;
                for i in 0..VALUES {
                    let key = black_box(slab.insert([i; 6]));
                    sum += black_box(&slab[key])[2];
                    slab.remove(key);
                }
                sum
            }),
            contender("allocator: System", || {
                (0..VALUES).map(|i| take(&System, put(&System, [i; 6]))).sum()
            }),
            contender("allocator: mimalloc", || {
                (0..VALUES).map(|i| take(&mimalloc, put(&mimalloc, [i; 6]))).sum()
            }),
            contender("allocator: jemalloc", || {
                (0..VALUES).map(|i| take(&jemalloc, put(&jemalloc, [i; 6]))).sum()
            }),
            contender("allocator: snmalloc", || {
                (0..VALUES).map(|i| take(&snmalloc, put(&snmalloc, [i; 6]))).sum()
            }),
        ],
    );
    let mut growing = stepalloc::RawPool::growing(size_of::<Node>(), 16).expect("memory");
    let mut grown = Vec::with_capacity(VALUES as usize);
    let mut keys = Vec::with_capacity(VALUES as usize);
    let mut objects = Vec::with_capacity(VALUES as usize);
    let mut system = Vec::with_capacity(VALUES as usize);
    let mut mi = Vec::with_capacity(VALUES as usize);
    let mut je = Vec::with_capacity(VALUES as usize);
    let mut sn = Vec::with_capacity(VALUES as usize);
    let mut handles = Vec::with_capacity(VALUES as usize);
    bench.compare(
        "pool/batch of 1000",
        VALUES,
        1.0,
        vec![
            contender("stepalloc", || {
                handles.extend((0..VALUES).map(|i| pool.alloc([i; 6])));
                handles.drain(..).map(|handle| black_box(handle)[2]).sum()
            }),
            contender("stepalloc, raw", || raw_batch(&mut raw, &mut objects)),
            contender("stepalloc, raw, grown", || raw_batch(&mut growing, &mut grown)),
            contender("slab", || {
                keys.extend((0..VALUES).map(|i| slab.insert([i; 6])));
                keys.drain(..).map(|key| slab.remove(black_box(key))[2]).sum()
            }),
            contender("allocator: System", || {
                system.extend((0..VALUES).map(|i| put(&System, [i; 6])));
                system.drain(..).map(|block| take(&System, block)).sum()
            }),
            contender("allocator: mimalloc", || {
                mi.extend((0..VALUES).map(|i| put(&mimalloc, [i; 6])));
                mi.drain(..).map(|block| take(&mimalloc, block)).sum()
            }),
            contender("allocator: jemalloc", || {
                je.extend((0..VALUES).map(|i| put(&jemalloc, [i; 6])));
                je.drain(..).map(|block| take(&jemalloc, block)).sum()
            }),
            contender("allocator: snmalloc", || {
                sn.extend((0..VALUES).map(|i| put(&snmalloc, [i; 6])));
                sn.drain(..).map(|block| take(&snmalloc, block)).sum()
            }),
        ],
    );
}

/// One value taken and given back in a pool for many threads, by one thread and by two at once.
pub fn shared_pools(bench: &Bench) {
    type Node = [u64; 6];
    /// Pairs of each thread a round, so many that starting the threads is little beside them.
    const PAIRS: u64 = 20_000;

    /// The sum over all threads of what `pair` makes of each number.
    fn on_threads(threads: u64, pair: impl Fn(u64) -> u64 + Sync) -> u64 {
        let work = || (0..PAIRS).map(&pair).sum::<u64>();
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            work()
                + others
                    .into_iter()
                    .map(|other| other.join().expect("no panic"))
                    .sum::<u64>()
        })
    }

    for (group, threads) in [("shared pool/pair/1 thread", 1), ("shared pool/pair/2 threads", 2)] {
        let ours = stepalloc::SharedPool::<Node>::new();
        let slab = parking_lot::Mutex::new(slab::Slab::<Node>::with_capacity(64));
        let sharded = sharded_slab::Slab::<Node>::new();
        let array = crossbeam_queue::ArrayQueue::<Box<Node>>::new(64);
        let seg = crossbeam_queue::SegQueue::<Box<Node>>::new();
        let objects = object_pool::Pool::<Node>::new(64, || [0; 6]);
        let reused = |free: Option<Box<Node>>, i| {
            let mut node = free.unwrap_or_default();
            *node = [i; 6];
            node
        };
        bench.compare(
            group,
            PAIRS * threads,
            1.0,
            vec![
                contender("stepalloc", || {
                    on_threads(threads, |i| black_box(ours.alloc([i; 6]))[2])
                }),
                contender("Mutex<slab>", || {
                    on_threads(threads, |i| {
                        let key = black_box(slab.lock().insert([i; 6]));
                        slab.lock().remove(key)[2]
                    })
                }),
                contender("sharded-slab", || {
                    on_threads(threads, |i| {
                        let key = black_box(sharded.insert([i; 6]).expect("room"));
                        sharded.take(key).expect("live")[2]
                    })
                }),
                contender("crossbeam ArrayQueue", || {
                    on_threads(threads, |i| {
                        let node = black_box(reused(array.pop(), i));
                        let value = node[2];
                        array.push(node).expect("room");
                        value
                    })
                }),
                contender("crossbeam SegQueue", || {
                    on_threads(threads, |i| {
                        let node = black_box(reused(seg.pop(), i));
                        let value = node[2];
                        seg.push(node);
                        value
                    })
                }),
                contender("object-pool", || {
                    on_threads(threads, |i| {
                        let mut node = objects.pull(|| [0; 6]);
                        *node = [i; 6];
                        black_box(&node)[2]
                    })
                }),
            ],
        );
    }
}
