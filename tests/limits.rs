//! What happens when the system refuses address space or pages, by limits on the process. Nothing is lost, nothing panics,
//! and the figures say why the arena did not serve.
#![cfg(all(target_os = "linux", not(stepalloc_small_space)))]

mod support;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stepalloc::{arena_scope, arena_scope_report, stats, AllocError, Arena, ArenaScope, StepAlloc};
use support::{child_passes, figure, hang_at_most, role, set_limit, status_bytes, stock_backing, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

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
        hang_at_most(); // each of them, in the parent too
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
