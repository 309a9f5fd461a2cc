//! What happens when memory is refused: address space, pages, and the backing itself. Nothing is lost, nothing panics,
//! and the figures say why the arena did not serve.
#![cfg(all(target_os = "linux", not(stepalloc_small_space)))]

mod support;

use std::alloc::{alloc, alloc_zeroed, dealloc, realloc, GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stepalloc::{arena_scope, arena_scope_report, outside_scope, stats, AllocError, Arena, ArenaScope, StepAlloc};
use support::{child_passes, figure, role, set_limit, status_bytes, stock_backing, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc<Refusing> = StepAlloc::with_backing(Refusing);

/// A backing that refuses every n-th request of a thread that asks for it; 0 refuses none.
struct Refusing;

thread_local! {
    static REFUSE: Cell<usize> = const { Cell::new(0) };
    static ASKED: Cell<usize> = const { Cell::new(0) };
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}

impl Refusing {
    fn refuses(&self) -> bool {
        let every = REFUSE.get();
        if every == 0 {
            return false;
        }
        ASKED.set(ASKED.get() + 1);
        let refused = ASKED.get() % every == 0;
        REFUSED.set(REFUSED.get() + usize::from(refused));
        refused
    }
}

// SAFETY: passes everything on to `System`, or answers null.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if self.refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.realloc(p, layout, new_size) }
    }
}

/// Runs `f` with every `n`-th request to the backing refused; how many were.
fn refusing<R>(n: usize, f: impl FnOnce() -> R) -> (R, usize) {
    REFUSED.set(0);
    ASKED.set(0);
    REFUSE.set(n);
    let result = f();
    REFUSE.set(0);
    (result, REFUSED.get())
}

/// Steps with small blocks that must be served, by whomever, and large ones that may be refused; all verified.
fn steps(random: &mut Random) {
    let mut kept: Vec<Block> = Vec::with_capacity(64);
    for step in 0..30 {
        let scope = ArenaScope::enter();
        let mut blocks: Vec<Block> = Vec::with_capacity(40);
        for _ in 0..40 {
            blocks.push(Block::new(random.size(500), 8));
            if random.below(3) == 0 {
                drop(blocks.swap_remove(random.below(blocks.len())));
            }
            if let Some(block) = blocks.last_mut() {
                assert!(block.resize(random.size(500)));
            }
        }
        let large: Vec<Option<Block>> = (15..22).map(|bits| Block::try_new(1 << bits, 64)).collect();
        large.iter().flatten().for_each(Block::verify);
        blocks.iter().for_each(Block::verify);
        if kept.len() == kept.capacity() {
            kept.clear();
        }
        kept.extend(blocks.pop());
        if step % 3 == 0 {
            drop(scope);
            drop(blocks);
        }
    }
}

#[test]
fn address_space_is_refused_from_nothing_left_up() {
    if let Some(role) = role() {
        let spare: u64 = role.parse().unwrap();
        stock_backing(&[32, 64, 128, 256, 512, 1024, 4096], 400);
        let mut random = Random(7 + spare);
        set_limit(libc::RLIMIT_AS, status_bytes("VmSize:") as u64 + spare);
        steps(&mut random);
        let ((), report) = arena_scope_report(|| steps(&mut random));
        set_limit(libc::RLIMIT_AS, libc::RLIM_INFINITY);
        let stats = stats();
        println!(
            "reserved={} no_reservation={} total={} complete={} seen={} blocks={}",
            stats.reserved_bytes,
            stats.fallbacks.no_reservation,
            stats.fallbacks.total(),
            u8::from(report.complete),
            report.fallbacks.no_reservation,
            report.blocks,
        );
        return;
    }
    const MIB: u64 = 1 << 20;
    let spares = [
        0,
        65_536,
        MIB,
        5 * MIB,
        20 * MIB,
        34 * MIB,
        50 * MIB,
        70 * MIB,
        140 * MIB,
        600 * MIB,
        3 << 30,
        40 << 30,
        1 << 45,
    ];
    let (mut last, mut small, mut partly) = (0, 0, 0);
    for spare in spares {
        let text = child_passes("address_space_is_refused_from_nothing_left_up", &spare.to_string());
        let reserved = figure(&text, "reserved");
        assert!(reserved >= last, "more room, smaller reservation: {spare} {text}");
        assert!(reserved <= spare / 2, "{spare}: {text}");
        last = reserved;
        if reserved == 0 {
            assert!(figure(&text, "no_reservation") > 1_000, "{spare}: {text}");
            if figure(&text, "complete") == 1 {
                assert!(figure(&text, "seen") > 500, "the report shows it: {spare} {text}");
            }
            small += 1;
        } else {
            assert!(figure(&text, "blocks") > 500, "the arena serves: {spare} {text}");
            partly += u32::from(reserved < 1 << 40);
        }
        if spare == 1 << 45 {
            assert_eq!(figure(&text, "total"), 0, "{text}");
            assert!(reserved > 1 << 40, "{text}");
        }
    }
    assert!(
        small >= 3 && partly >= 3,
        "both sides of the edge were walked: {small} {partly}"
    );
}

/// What one of the forked processes below tells the one that forks it, in memory that both see.
struct Told {
    reserved: AtomicU64,
    blocks: AtomicU64,
    no_reservation: AtomicU64,
    total: AtomicU64,
}

/// Every limit, densely where most of what happens is decided: by 64 KiB up to 4 MiB, then by a tenth. One process
/// that never used an arena forks one for each, so that they differ in the limit alone.
#[test]
fn address_space_is_refused_at_every_point() {
    if role().is_none() {
        let text = child_passes("address_space_is_refused_at_every_point", "walk");
        assert!(figure(&text, "points") > 200, "{text}");
        return;
    }
    stock_backing(&[32, 64, 128, 256, 512, 1024, 4096], 400);
    assert_eq!(stats().reserved_bytes, 0);
    // SAFETY: a fresh mapping, zero and large enough, is a valid `Told`, and it is never unmapped.
    let told: &Told = unsafe {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANON);
        let p = libc::mmap(std::ptr::null_mut(), size_of::<Told>(), protection, flags, -1, 0);
        assert_ne!(p, libc::MAP_FAILED);
        &*p.cast::<Told>()
    };
    let fine = (0..64).map(|step| step << 16);
    let coarse = std::iter::successors(Some(4u64 << 20), |&spare| Some(spare + spare / 10));
    let spares = fine.chain(coarse.take_while(|&spare| spare < 1 << 46));
    let (mut points, mut last) = (0, 0);
    let mut sizes = std::collections::BTreeSet::new();
    for spare in spares {
        let child = || {
            set_limit(libc::RLIMIT_AS, status_bytes("VmSize:") as u64 + spare);
            let mut random = Random(spare + 1);
            steps(&mut random);
            let ((), report) = arena_scope_report(|| steps(&mut random));
            set_limit(libc::RLIMIT_AS, libc::RLIM_INFINITY);
            let figures = stats();
            told.reserved.store(figures.reserved_bytes as u64, Relaxed);
            told.blocks.store(report.blocks, Relaxed);
            told.no_reservation.store(figures.fallbacks.no_reservation, Relaxed);
            told.total.store(figures.fallbacks.total(), Relaxed);
        };
        // SAFETY: the child uses this thread only, and ends by `_exit`.
        let pid = unsafe { libc::fork() };
        assert_ne!(pid, -1, "fork was refused");
        // Each may take as long as `role` allows a child, in the parent too.
        // SAFETY: asks for a signal.
        unsafe { libc::alarm(30) };
        if pid == 0 {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert_eq!(status, 0, "{spare} bytes more: panicked or died");
        let reserved = told.reserved.load(Relaxed);
        assert!(reserved >= last, "{spare}: more room, smaller reservation");
        assert!(reserved <= spare / 2, "{spare}: {reserved} reserved");
        if reserved == 0 {
            assert!(told.no_reservation.load(Relaxed) > 1_000, "{spare}");
        } else {
            assert!(told.blocks.load(Relaxed) > 500, "{spare}: the arena serves");
        }
        if spare > 1 << 36 {
            assert_eq!(told.total.load(Relaxed), 0, "{spare}: plenty is enough");
        }
        last = reserved;
        points += 1;
        sizes.insert(reserved);
    }
    assert!(sizes.len() > 10, "both sides of the edge, and many sizes: {sizes:?}");
    println!("points={points}");
}

#[test]
fn commit_is_refused_half_way() {
    if let Some(role) = role() {
        let (kind, spare) = role.split_once(' ').unwrap();
        let (size, count) = if kind == "small" { (1000, 12_000) } else { (50_000, 400) };
        let mut blocks: Vec<Block> = Vec::with_capacity(count);
        drop(arena_scope(|| Block::new(size, 8)));
        // The backing sees large blocks with an alignment of 64, which needs a little more room.
        stock_backing(&[size + 128], count);
        let before = stats().fallbacks;
        let committed = stats().committed_bytes;
        set_limit(
            libc::RLIMIT_DATA,
            status_bytes("VmData:") as u64 + spare.parse::<u64>().unwrap(),
        );
        arena_scope(|| {
            while blocks.len() < count {
                // The backing's stock may run out too: then the answer is null.
                let Some(block) = Block::try_new(size, 8) else { break };
                blocks.push(block);
            }
        });
        let refused = stats().fallbacks.commit_refused - before.commit_refused;
        let grown = stats().committed_bytes - committed;
        blocks.iter().for_each(Block::verify);
        let reached = blocks.len();
        blocks.clear();
        // What is committed serves on.
        let held = stats().fallbacks;
        arena_scope(|| blocks.extend((0..15).map(|_| Block::new(size, 8))));
        blocks.clear();
        let held = stats().fallbacks.total() - held.total();
        // And so does all of it when the limit is gone.
        set_limit(libc::RLIMIT_DATA, libc::RLIM_INFINITY);
        let freed = stats().fallbacks;
        arena_scope(|| blocks.extend((0..count).map(|_| Block::new(size, 8))));
        let freed = stats().fallbacks.total() - freed.total();
        println!("refused={refused} reached={reached} grown={grown} held={held} after={freed}");
        return;
    }
    for kind in ["small", "large"] {
        for spare in [0, 40 << 10, 200 << 10, 1_200 << 10, 2_100 << 10, 5_000 << 10] {
            let text = child_passes("commit_is_refused_half_way", &format!("{kind} {spare}"));
            assert!(figure(&text, "refused") > 0, "{kind} {spare}: {text}");
            assert!(figure(&text, "reached") > 40, "{kind} {spare}: {text}");
            // What there is, is used: steps ahead are a wish.
            let least = (spare as u64).saturating_sub(160 << 10);
            assert!(figure(&text, "grown") >= least, "{kind} {spare}: {text}");
            assert_eq!(figure(&text, "held"), 0, "{kind} {spare}: {text}");
            assert_eq!(figure(&text, "after"), 0, "{kind} {spare}: {text}");
        }
    }
}

/// An explicit arena commits ahead as well, and takes less where that is all there is.
#[test]
fn an_arena_uses_what_a_limit_leaves() {
    let name = "an_arena_uses_what_a_limit_leaves";
    let Some(spare) = role() else {
        for spare in [300 << 10, 1_200 << 10, 5_000 << 10] {
            let text = child_passes(name, &spare.to_string());
            let least = (spare as u64).saturating_sub(160 << 10);
            assert!(figure(&text, "used") >= least, "{spare}: {text}");
        }
        return;
    };
    let arena = Arena::new();
    let block = support::layout(10_000, 8);
    set_limit(
        libc::RLIMIT_DATA,
        status_bytes("VmData:") as u64 + spare.parse::<u64>().unwrap(),
    );
    let refused = loop {
        match arena.try_alloc_layout_zeroed(block) {
            // SAFETY: a block just made, of so many bytes.
            Ok(at) => unsafe { at.write_bytes(1, block.size()) },
            Err(refused) => break refused,
        }
    };
    set_limit(libc::RLIMIT_DATA, libc::RLIM_INFINITY);
    assert_eq!(refused, AllocError::OutOfMemory);
    assert!(arena.try_alloc_layout(block).is_ok());
    println!("used={}", arena.stats().used_bytes);
}

/// All four methods with layouts that nobody can serve: null, and the block at hand stays as it was.
fn monstrous_layouts_are_refused() {
    const MOST: usize = isize::MAX as usize;
    let mut tried = 0;
    for less in [
        0,
        1,
        14,
        15,
        16,
        17,
        62,
        63,
        64,
        65,
        127,
        4_094,
        4_095,
        4_096,
        8_192,
        1 << 20,
        1 << 30,
    ] {
        for align in [1, 2, 16, 32, 64, 128, 4_096, 8_192, 1 << 20, 1 << 30] {
            let size = MOST - less;
            let Ok(layout) = Layout::from_size_align(size, align) else {
                continue;
            };
            tried += 1;
            // SAFETY: the layout has a size.
            assert!(black_box(unsafe { alloc(layout) }).is_null(), "{layout:?}");
            // SAFETY: as above.
            assert!(black_box(unsafe { alloc_zeroed(layout) }).is_null(), "{layout:?}");
            for have in [1, 40, 64, 3_000, 50_000, 200_000] {
                let mut block = Block::new(have, align.min(4_096));
                if Layout::from_size_align(size, align.min(4_096)).is_ok() {
                    assert!(!block.resize(size), "{layout:?}");
                }
            }
        }
    }
    assert!(tried > 40, "{tried}");
    // Alignments that no segment can give, small sizes.
    for bits in [37, 40, 45, 62] {
        let layout = Layout::from_size_align(8, 1 << bits).unwrap();
        // SAFETY: the layout has a size, and what is handed out is handed back.
        unsafe {
            for p in [black_box(alloc(layout)), black_box(alloc_zeroed(layout))] {
                if !p.is_null() {
                    assert_eq!(p.addr() % (1 << bits), 0);
                    dealloc(p, layout);
                }
            }
        }
    }
}

#[test]
fn layouts_near_the_end_of_the_address_space_are_refused_outside_scopes() {
    monstrous_layouts_are_refused();
}

#[test]
fn layouts_near_the_end_of_the_address_space_are_refused_in_scopes() {
    arena_scope(monstrous_layouts_are_refused);
    arena_scope(|| arena_scope(|| outside_scope(monstrous_layouts_are_refused)));
}

#[test]
fn layouts_near_the_end_of_the_address_space_are_refused_in_counted_scopes() {
    let ((), report) = arena_scope_report(monstrous_layouts_are_refused);
    assert!(report.complete && report.fallbacks.no_room > 100, "{report:?}");
    assert_eq!(report.escapees, 0);
}

#[test]
fn a_backing_that_refuses_everything_yields_null_and_loses_nothing() {
    let mut kept: Vec<Block> = Vec::with_capacity(8);
    kept.extend([1, 64, 1_000, 2_040, 3_000, 100_000].map(|size| Block::new(size, 8)));
    let ((), refused) = refusing(1, || {
        for size in [1, 100, 2_047, 2_048, 10_000, 131_071] {
            for align in [1, 16, 64, 4_096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the layout has a size.
                unsafe { assert!(black_box(alloc(layout)).is_null() && black_box(alloc_zeroed(layout)).is_null()) };
            }
        }
        for block in &mut kept {
            // Growth below both thresholds, across the alignment threshold, and shrinking: all asked of the backing.
            for size in [5, 200, 1_500, 2_500, 60_000, 120_000] {
                assert!(!block.resize(size));
            }
        }
    });
    assert_eq!(refused, 6 * 4 * 2 + 6 * 6);
    // In a scope the backing is not asked, and large blocks have spans outside too.
    let ((), refused) = refusing(1, || {
        let large = Block::new(200_000, 64);
        let small = arena_scope(|| {
            [
                Block::new(1, 1),
                Block::new(1_000, 8),
                Block::new(30_000, 8),
                Block::new(1 << 20, 8),
            ]
        });
        drop((large, small));
    });
    assert_eq!(refused, 0);
    // A block of the backing that grows into a span moves there.
    let ((), refused) = refusing(1, || {
        for block in &mut kept {
            assert!(block.resize(140_000));
        }
    });
    assert_eq!(refused, 0);
}

#[test]
fn what_the_arena_cannot_serve_and_the_backing_refuses_is_null() {
    let (report, refused) = refusing(1, || {
        let layout = Layout::from_size_align(1 << 40, 8).unwrap();
        let scope = ArenaScope::enter_counted();
        let mut block = Block::new(100, 8);
        // SAFETY: the layout has a size.
        unsafe { assert!(black_box(alloc(layout)).is_null() && black_box(alloc_zeroed(layout)).is_null()) };
        assert!(!block.resize(1 << 40));
        // SAFETY: `realloc` has left a block of its own alone before; here one of the arena's is asked to grow.
        unsafe {
            let own = Layout::from_size_align(100_000, 8).unwrap();
            let p = black_box(alloc(own));
            assert!(!p.is_null() && black_box(realloc(p, own, 1 << 40)).is_null());
            dealloc(p, own);
        }
        drop(block);
        scope.leave()
    });
    assert_eq!((refused, report.fallbacks.no_room, report.fallbacks.total()), (4, 4, 4));
}

#[test]
fn a_backing_that_refuses_now_and_then_corrupts_nothing() {
    for every in [2, 3, 7, 50] {
        let mut random = Random(every as u64);
        let mut blocks: Vec<Block> = Vec::with_capacity(100);
        let ((), refused) = refusing(every, || {
            for _ in 0..5_000 {
                let scope = (random.below(2) == 0).then(ArenaScope::enter);
                match random.below(4) {
                    0 | 1 if blocks.len() < 100 => blocks.extend(Block::try_new(random.size(200_000), 8)),
                    2 if !blocks.is_empty() => {
                        let which = random.below(blocks.len());
                        blocks[which].resize(random.size(200_000));
                    }
                    _ if !blocks.is_empty() => drop(blocks.swap_remove(random.below(blocks.len()))),
                    _ => {}
                }
                drop(scope);
            }
        });
        assert!(refused > 20, "{every}: {refused}");
    }
}
