//! Every figure of a report, exact in constructed cases. Nothing but the blocks named here is made in the scopes.

mod support;

use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread::{self, JoinHandle};
use stepalloc::{
    arena_scope, arena_scope_report, outside_scope, scope_depth, stats, ArenaScope, Fallbacks, ScopeReport, StepAlloc,
};
use support::{in_thread, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// The figures that the program alone decides, in the order of the struct.
fn figures(report: &ScopeReport) -> [u64; 6] {
    assert!(report.installed && report.complete, "{report:?}");
    [
        report.blocks,
        report.bytes,
        report.peak_live_bytes,
        report.escapees,
        report.escapee_bytes,
        report.remote_frees,
    ]
}

/// Another thread, which frees what this one gives it.
struct Freer {
    give: Sender<Block>,
    done: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Freer {
    fn start() -> Freer {
        let (give, take) = channel::<Block>();
        let (tell, done) = channel();
        let thread = thread::spawn(move || {
            for block in take {
                drop(block);
                tell.send(()).unwrap();
            }
        });
        Freer { give, done, thread }
    }

    /// Waits until the block is freed.
    fn free(&self, block: Block) {
        self.give.send(block).unwrap();
        self.done.recv().unwrap();
    }

    fn end(self) {
        drop(self.give);
        self.thread.join().unwrap();
    }
}

fn block(size: usize) -> Block {
    Block::new(size, 8)
}

#[test]
fn an_empty_scope_saw_nothing() {
    let ((), report) = arena_scope_report(|| ());
    assert_eq!(figures(&report), [0; 6]);
    assert_eq!(report.fallbacks, Fallbacks::default());
    let told = cfg!(any(target_os = "linux", target_os = "android"));
    assert_eq!(report.page_faults.is_some(), told);
    // An emulator has its own.
    assert!(cfg!(stepalloc_small_space) || report.page_faults.is_none_or(|faults| faults < 20));
}

#[test]
fn blocks_bytes_and_peak_are_as_asked_for() {
    let ((), report) = arena_scope_report(|| {
        let a = block(100);
        let b = block(1);
        drop(a);
        let c = block(70_000); // large
        drop(c);
        let d = block(10_000);
        drop((b, d));
    });
    assert_eq!(figures(&report), [4, 80_101, 70_001, 0, 0, 0]);
}

#[test]
fn zeroed_and_aligned_blocks_count() {
    let ((), report) = arena_scope_report(|| {
        drop(Block::zeroed(50, 8));
        drop(Block::zeroed(50_000, 8));
        drop(Block::new(10, 1 << 20));
        drop(Block::new(3_000, 4_096));
    });
    assert_eq!(figures(&report), [4, 53_060, 50_000, 0, 0, 0]);
}

#[test]
fn escapees_are_those_still_live() {
    let (kept, report) = arena_scope_report(|| {
        let gone = [block(11), block(60_000), block(2_000)];
        let kept = [block(22), block(333), block(90_000)];
        drop(gone);
        kept
    });
    assert_eq!(figures(&report), [6, 152_366, 152_366, 3, 90_355, 0]);
    let ((), report) = arena_scope_report(|| drop(kept));
    assert_eq!(figures(&report), [0; 6], "blocks from before are not this scope's");
}

#[test]
#[cfg_attr(any(feature = "hardened", feature = "asan"), ignore = "checked blocks always move")]
fn growth_in_place_counts_bytes_and_a_move_counts_a_block() {
    let (_kept, report) = arena_scope_report(|| {
        let mut last = block(1_000);
        assert!(last.resize(1_500)); // at the position: in place
        assert!(last.resize(500));
        let behind = block(64);
        let addr = last.addr();
        assert!(last.resize(4_000)); // moves
        assert_ne!(last.addr(), addr);
        (last, behind)
    });
    // 1,000 + 500 more + 64 + 4,000 anew; the copy is live beside the original.
    assert_eq!(figures(&report), [3, 5_564, 4_564, 2, 4_064, 0]);
}

#[test]
#[cfg_attr(any(feature = "hardened", feature = "asan"), ignore = "checked blocks always move")]
fn spans_grow_in_place_and_count_what_they_grew_by() {
    let (_kept, report) = arena_scope_report(|| {
        let mut large = block(100_000);
        let addr = large.addr();
        assert!(large.resize(1_000_000) && large.resize(10_000_000) && large.resize(200_000));
        assert_eq!(large.addr(), addr);
        large
    });
    assert_eq!(figures(&report), [1, 10_000_000, 10_000_000, 1, 200_000, 0]);
}

#[test]
fn nested_counted_scopes_count_for_all_around_them() {
    let outer = ArenaScope::enter_counted();
    let a = block(100);
    let middle = ArenaScope::enter_counted();
    let b = block(200);
    let inner = ArenaScope::enter_counted();
    let c = block(400);
    drop(a);
    let inner = inner.leave();
    drop(b);
    let d = block(800);
    let middle = middle.leave();
    let e = block(1_600);
    let outer = outer.leave();
    assert_eq!(figures(&inner), [1, 400, 400, 1, 400, 0]);
    assert_eq!(figures(&middle), [3, 1_400, 1_200, 2, 1_200, 0]);
    assert_eq!(figures(&outer), [5, 3_100, 2_800, 3, 2_800, 0]);
    drop((c, d, e));
}

#[test]
fn a_counted_scope_counts_inside_plain_ones_and_around_them() {
    arena_scope(|| {
        let (kept, report) = arena_scope_report(|| {
            drop(block(5));
            let kept = arena_scope(|| {
                drop(block(10));
                let guard = ArenaScope::enter();
                let kept = block(20);
                drop(guard);
                kept
            });
            drop(block(40));
            kept
        });
        assert_eq!(figures(&report), [4, 75, 60, 1, 20, 0]);
        drop(kept);
        assert_eq!(scope_depth(), 1);
    });
}

#[test]
fn blocks_freed_by_other_threads_are_seen() {
    for large in [false, true] {
        let scale = if large { 1_000 } else { 1 };
        let (kept, report) = arena_scope_report(|| {
            let mut blocks: ManuallyDrop<[Option<Block>; 5]> =
                ManuallyDrop::new([1, 2, 3, 4, 5].map(|n| Some(block(n * 100 * scale))));
            let given = [blocks[1].take(), blocks[3].take()];
            outside_scope(|| in_thread(|| drop(given)));
            drop(blocks[4].take());
            ManuallyDrop::into_inner(blocks)
        });
        let scale = scale as u64;
        let [blocks, _, _, escapees, escapee_bytes, remote_frees] = figures(&report);
        // What the runtime itself makes to start a thread comes on top where it is large; it is not.
        assert_eq!((blocks, escapees, escapee_bytes, remote_frees), (5, 2, 400 * scale, 2));
        drop(kept);
    }
}

#[test]
fn memory_freed_by_other_threads_and_used_again_is_counted_once() {
    let other = Freer::start();
    outside_scope(|| {
        other.free(block(1));
    });
    let mut kept: Vec<Block> = Vec::with_capacity(100);
    let ((), report) = arena_scope_report(|| {
        for round in 0..3_000 {
            let given = block(500 + round % 5_000);
            if round % 30 == 29 {
                kept.push(given); // perhaps where one stood that the other thread freed
                continue;
            }
            outside_scope(|| {
                other.free(given);
            });
        }
    });
    let [blocks, bytes, peak, escapees, escapee_bytes, remote_frees] = figures(&report);
    assert_eq!((blocks, escapees, remote_frees), (3_000, 100, 2_900));
    let kept_bytes: usize = (0..100).map(|kept| 500 + kept * 30 + 29).sum();
    assert_eq!(escapee_bytes, kept_bytes as u64);
    assert!(peak <= bytes);
    drop(kept);
    other.end();
}

/// Regression. A block that grew in place over memory that another thread had freed left the freed block's entry behind, and
/// the entry looked live at the end.
#[test]
#[cfg_attr(any(feature = "hardened", feature = "asan"), ignore = "checked blocks always move")]
fn growth_over_memory_freed_by_another_thread_is_no_escapee() {
    let (kept, report) = arena_scope_report(|| {
        let mut a = block(1_024);
        let b = block(1_024);
        let c = block(64);
        outside_scope(|| in_thread(|| drop(b)));
        let addr = a.addr();
        assert!(a.resize(2_048));
        assert_eq!(a.addr(), addr, "in place");
        (a, c)
    });
    let [blocks, bytes, _, escapees, escapee_bytes, remote_frees] = figures(&report);
    assert_eq!(
        (blocks, bytes, escapees, escapee_bytes, remote_frees),
        (3, 3_136, 2, 2_112, 1)
    );
    drop(kept);
}

#[test]
fn many_blocks_freed_by_another_thread_and_many_escapees_are_told_apart() {
    for round in 0..20 {
        let mut random = Random(round + 1);
        let (mut kept, mut given) = (Vec::with_capacity(1_900), Vec::with_capacity(1_900));
        let (kept, report) = arena_scope_report(|| {
            for _ in 0..1_900 {
                let block = block(random.size(100));
                if random.below(2) == 0 {
                    kept.push(block);
                } else {
                    given.push(block);
                }
            }
            let freed = given.len();
            outside_scope(|| in_thread(|| drop(given)));
            (kept, freed)
        });
        let (kept, freed) = kept;
        let [blocks, _, _, escapees, escapee_bytes, remote_frees] = figures(&report);
        let bytes: usize = kept.iter().map(Block::size).sum();
        assert_eq!(
            (blocks, escapees, escapee_bytes, remote_frees),
            (1_900, kept.len() as u64, bytes as u64, freed as u64),
            "{round}"
        );
    }
}

#[test]
fn a_table_that_grows_stays_exact() {
    let mut kept: Vec<Block> = Vec::with_capacity(30_000);
    let (kept, report) = arena_scope_report(|| {
        for n in 0..30_000 {
            kept.push(block(1 + n % 100));
        }
        let mut n = 0;
        kept.retain(|_| {
            n += 1;
            n % 3 == 0
        });
        kept
    });
    let bytes: usize = kept.iter().map(Block::size).sum();
    let all: u64 = (0..30_000).map(|n| 1 + n % 100).sum();
    assert_eq!(figures(&report), [30_000, all, all, 10_000, bytes as u64, 0]);
}

/// What is in one place of a table when it grows depends on addresses: so there are several, and all blocks stay.
#[test]
fn no_place_of_a_table_that_grows_is_lost() {
    for round in 0..6 {
        in_thread(|| {
            let mut kept: Vec<Block> = Vec::with_capacity(30_000);
            let (kept, report) = arena_scope_report(|| {
                kept.extend((0..30_000).map(|n| block(1 + (n + 17 * round) % 100)));
                kept
            });
            let all: usize = kept.iter().map(Block::size).sum();
            assert_eq!(
                figures(&report),
                [30_000, all as u64, all as u64, 30_000, all as u64, 0]
            );
        });
    }
}

#[test]
fn small_blocks_outside_are_not_counted_and_large_ones_are() {
    let ((small, large), report) = arena_scope_report(|| {
        drop(block(7));
        outside_scope(|| {
            drop(block(100));
            arena_scope(|| drop(block(31))); // a scope inside is counted
            (block(1_000), block(200_000))
        })
    });
    assert_eq!(figures(&report), [3, 200_038, 200_000, 1, 200_000, 0]);
    drop((small, large));
}

#[test]
fn a_counted_scope_inside_outside_scope_counts() {
    arena_scope(|| {
        outside_scope(|| {
            let ((), report) = arena_scope_report(|| drop(block(100)));
            assert_eq!(figures(&report), [1, 100, 100, 0, 0, 0]);
        })
    });
}

#[test]
fn fallbacks_are_counted_by_reason() {
    let huge = support::layout(1 << 46, 8);
    let before = stats().fallbacks;
    let outer = ArenaScope::enter_counted();
    // SAFETY: the layout has a size.
    assert!(black_box(unsafe { std::alloc::alloc(huge) }).is_null());
    let ((), inner) = arena_scope_report(|| {
        // SAFETY: as above.
        (0..2).for_each(|_| assert!(black_box(unsafe { std::alloc::alloc_zeroed(huge) }).is_null()));
        drop(block(10));
    });
    let outer = outer.leave();
    assert_eq!((inner.fallbacks.no_room, inner.fallbacks.total()), (2, 2));
    assert_eq!((outer.fallbacks.no_room, outer.fallbacks.total()), (3, 3));
    assert_eq!(figures(&outer), [1, 10, 10, 0, 0, 0]);
    assert!(stats().fallbacks.no_room >= before.no_room + 3);
}

#[cfg(all(target_os = "linux", not(stepalloc_small_space)))]
#[test]
fn page_faults_are_those_of_the_scope() {
    in_thread(|| {
        let touch = || drop(Block::new(3 << 20, 64));
        let ((), first) = arena_scope_report(touch);
        let ((), second) = arena_scope_report(touch);
        let (first, second) = (first.page_faults.unwrap(), second.page_faults.unwrap());
        assert!(first >= 2 && second <= 4 && second < first, "{first} {second}");
    });
}

#[test]
fn a_scope_left_by_the_one_around_it_is_not_complete() {
    let outer = ArenaScope::enter();
    let counted = ArenaScope::enter_counted();
    let kept = block(100);
    drop(outer);
    let report = counted.leave();
    assert!(report.installed && !report.complete, "{report:?}");
    drop(kept);
    let ((), report) = arena_scope_report(|| drop(block(100)));
    assert_eq!(figures(&report), [1, 100, 100, 0, 0, 0], "the next one is");
}

#[test]
fn an_outer_counted_scope_left_first_is_complete_and_ends_the_inner_one() {
    let outer = ArenaScope::enter_counted();
    let inner = ArenaScope::enter_counted();
    let kept = block(100);
    let outer = outer.leave();
    assert_eq!(figures(&outer), [1, 100, 100, 1, 100, 0]);
    assert!(!inner.leave().complete);
    drop(kept);
}

#[test]
fn more_counted_scopes_than_are_kept_say_so() {
    let scopes: Vec<_> = (0..40).map(|_| ArenaScope::enter_counted()).collect();
    drop(block(100));
    for (index, scope) in scopes.into_iter().enumerate().rev() {
        let report = scope.leave();
        assert_eq!(report.complete, index < 32, "{index}");
        assert_eq!(report.blocks, u64::from(index < 32));
    }
    assert_eq!(scope_depth(), 0);
}

#[test]
fn a_counted_scope_beyond_the_frame_table_says_so() {
    let guards: Vec<ArenaScope> = (0..64).map(|_| ArenaScope::enter()).collect();
    let counted = ArenaScope::enter_counted();
    drop(block(10));
    assert!(!counted.leave().complete);
    drop(guards);
    assert_eq!(scope_depth(), 0);
}

#[test]
fn dropping_a_counted_guard_stops_counting() {
    drop(ArenaScope::enter_counted());
    let counted = ArenaScope::enter_counted();
    let forgotten = ArenaScope::enter_counted();
    std::mem::forget(forgotten);
    drop(block(100));
    assert_eq!(figures(&counted.leave()), [1, 100, 100, 0, 0, 0]);
    let ((), report) = arena_scope_report(|| drop(block(1)));
    assert_eq!(figures(&report), [1, 1, 1, 0, 0, 0]);
}

/// What one scope must have seen, counted by hand.
#[derive(Default)]
struct Naive {
    /// The number of the first block that is its own.
    first: usize,
    blocks: u64,
    bytes: u64,
    live: u64,
    peak: u64,
    remote_frees: u64,
}

impl Naive {
    fn made(&mut self, bytes: usize) {
        self.blocks += 1;
        self.grew(0, bytes);
    }

    fn grew(&mut self, old: usize, new: usize) {
        self.bytes += new.saturating_sub(old) as u64;
        self.live = self.live + new as u64 - old as u64;
        self.peak = self.peak.max(self.live);
    }

    /// `live` has all blocks, each with its number.
    fn agrees(&self, report: &ScopeReport, live: &[(Block, usize)], what: &str) {
        let escapees = || live.iter().filter(|one| one.1 >= self.first);
        let bytes: usize = escapees().map(|one| one.0.size()).sum();
        let [blocks, bytes_made, peak, count, escapee_bytes, remote_frees] = figures(report);
        assert_eq!(
            (blocks, bytes_made, remote_frees),
            (self.blocks, self.bytes, self.remote_frees),
            "{what}"
        );
        assert_eq!(
            (count, escapee_bytes),
            (escapees().count() as u64, bytes as u64),
            "{what}"
        );
        // What others free is live until it is seen.
        assert!(
            peak == self.peak || self.remote_frees > 0 && (self.peak..=self.bytes).contains(&peak),
            "{what}: {peak}, not {}",
            self.peak
        );
    }
}

/// Programs of blocks made, resized, freed here and by another thread, in counted scopes nested up to five deep.
#[test]
fn reports_agree_with_a_naive_count() {
    let other = Freer::start();
    for seed in 1..=150 {
        let mut random = Random(seed);
        // Room for all, so that nothing but the blocks is made in the scopes.
        let mut live: Vec<(Block, usize)> = Vec::with_capacity(800);
        let mut open: Vec<(stepalloc::CountedScope, Naive)> = Vec::with_capacity(5);
        let mut made = 0;
        let size = |random: &mut Random| match random.below(20) {
            0 => 20_000 + random.below(60_000),
            1 | 2 => 1_000 + random.below(7_000),
            _ => 1 + random.below(200),
        };
        let what = format!("seed {seed}");
        for step in 0..700 {
            match random.below(14) {
                _ if open.is_empty() || step % 97 == 96 && open.len() < 5 => {
                    let scope = ArenaScope::enter_counted();
                    let first = made;
                    open.push((
                        scope,
                        Naive {
                            first,
                            ..Naive::default()
                        },
                    ));
                }
                0 if step % 5 == 0 => {
                    if let Some((scope, naive)) = open.pop() {
                        let report = scope.leave();
                        naive.agrees(&report, &live, &what);
                    }
                }
                1..=5 if !live.is_empty() => {
                    let remote = random.below(3) == 0;
                    let (block, number) = live.swap_remove(random.below(live.len()));
                    for (_, naive) in open.iter_mut().filter(|(_, naive)| naive.first <= number) {
                        naive.live -= block.size() as u64;
                        naive.remote_frees += u64::from(remote);
                    }
                    if remote {
                        outside_scope(|| {
                            other.free(block);
                        });
                    }
                }
                6 if !live.is_empty() => {
                    let which = random.below(live.len());
                    let (block, number) = &mut live[which];
                    let (addr, old, new) = (block.addr(), block.size(), size(&mut random));
                    assert!(block.resize(new));
                    let moved = block.addr() != addr;
                    let before = std::mem::replace(number, if moved { made } else { *number });
                    made += usize::from(moved);
                    for (_, naive) in &mut open {
                        if moved {
                            naive.made(new);
                        }
                        if naive.first <= before {
                            match moved {
                                true => naive.live -= old as u64,
                                false => naive.grew(old, new),
                            }
                        }
                    }
                }
                _ => {
                    let bytes = size(&mut random);
                    live.push((block(bytes), made));
                    made += 1;
                    open.iter_mut().for_each(|(_, naive)| naive.made(bytes));
                }
            }
        }
        while let Some((scope, naive)) = open.pop() {
            let report = scope.leave();
            naive.agrees(&report, &live, &what);
        }
        assert_eq!(scope_depth(), 0);
    }
    other.end();
}
