//! Scopes however they are opened and left: panics, early returns, forgotten guards, guards in any order, nesting beyond
//! the frame table, suspensions. Where a block is shows in the figures of the thread's arena.

mod support;

use std::panic::catch_unwind;
use std::thread;
use stepalloc::{arena_scope, heap_stats, outside_scope, scope_depth, ArenaScope, StepAlloc};
use support::{in_thread, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// Scopes with a mark of their own; deeper ones run in the mark of the last.
const FRAMES: usize = 64;

/// Whether a small block made now is in the arena.
fn served_by_the_arena() -> bool {
    if !heap_stats().has_segment {
        // A segment taken over may hold blocks of its last owner.
        drop(Block::new(160, 8));
    }
    let before = heap_stats().small_in_use_bytes;
    let block = Block::new(160, 8);
    let after = heap_stats().small_in_use_bytes;
    drop(block);
    assert!(
        after == before || after == before + 160 || after == before + 192,
        "{before} {after}"
    );
    after != before
}

/// Nothing is left open: the thread is outside, and a step is served at the same address as the one before.
fn all_is_closed() {
    assert_eq!(scope_depth(), 0);
    assert!(!served_by_the_arena());
    let step = || arena_scope(|| (scope_depth(), served_by_the_arena(), Block::new(100, 8).addr()));
    let first = step();
    assert_eq!((first.0, first.1), (1, true));
    for _ in 0..100 {
        assert_eq!(step(), first);
    }
    assert_eq!(scope_depth(), 0);
}

#[test]
fn blocks_are_in_the_arena_inside_a_scope_only() {
    assert!(!served_by_the_arena());
    arena_scope(|| assert!(served_by_the_arena()));
    assert!(!served_by_the_arena());
    let guard = ArenaScope::enter();
    assert!(served_by_the_arena());
    drop(guard);
    let guard = ArenaScope::enter_counted();
    assert!(served_by_the_arena());
    drop(guard);
    all_is_closed();
}

#[test]
fn a_panic_leaves_the_scope_and_the_payload_lives() {
    for depth in [1, 5, FRAMES, FRAMES + 30] {
        fn dive(depth: usize) -> usize {
            arena_scope(|| {
                let block = Block::new(depth * 100, 8);
                if depth == 1 {
                    std::panic::resume_unwind(Box::new(vec![String::from("made in a scope"); 100]));
                }
                dive(depth - 1) + block.size()
            })
        }
        let payload = catch_unwind(|| dive(depth)).unwrap_err();
        assert_eq!(scope_depth(), 0);
        let lines = payload.downcast::<Vec<String>>().unwrap();
        arena_scope(|| drop(Block::new(1_000, 8)));
        assert!(lines.iter().all(|line| line == "made in a scope"));
        drop(lines);
        all_is_closed();
    }
}

#[test]
fn a_panic_inside_outside_scope_comes_back_into_the_scope() {
    arena_scope(|| {
        let caught = catch_unwind(|| outside_scope(|| arena_scope(|| std::panic::resume_unwind(Box::new(1)))));
        caught.unwrap_err();
        assert_eq!(scope_depth(), 1);
        assert!(served_by_the_arena());
    });
    all_is_closed();
}

#[test]
fn an_early_return_leaves_the_scope() {
    fn find(wanted: usize) -> Option<Block> {
        let _scope = ArenaScope::enter();
        for size in 1..100 {
            let block = Block::new(size, 8);
            if size == wanted {
                return Some(block);
            }
            (size < 90).then_some(())?;
        }
        None
    }
    let found = find(50).unwrap();
    assert!(find(1_000).is_none());
    assert_eq!(scope_depth(), 0);
    all_is_closed();
    assert_eq!(found.size(), 50);
}

#[test]
fn a_forgotten_guard_keeps_the_scope_open_and_the_one_around_it_closes_it() {
    let outer = ArenaScope::enter();
    std::mem::forget(ArenaScope::enter());
    assert_eq!(scope_depth(), 2);
    let block = Block::new(100, 8);
    drop(outer);
    all_is_closed();
    drop(block);
}

#[test]
fn guards_forgotten_many_times_cost_nothing_but_depth() {
    in_thread(|| {
        let outer = ArenaScope::enter();
        let mut kept: Vec<Block> = vec![];
        for round in 0..50_000 {
            std::mem::forget(ArenaScope::enter());
            let block = Block::new(1 + round % 200, 8);
            if round % 1_000 == 0 {
                kept.push(block);
            }
        }
        assert_eq!(scope_depth(), 50_001);
        assert!(heap_stats().committed_bytes < 4 << 20, "{:?}", heap_stats());
        drop(outer);
        all_is_closed();
        kept.iter().for_each(Block::verify);
    });
    // Without a guard around them the thread stays in a scope, which is still correct.
    in_thread(|| {
        (0..1_000).for_each(|_| std::mem::forget(ArenaScope::enter()));
        assert_eq!(scope_depth(), 1_000);
        assert!(served_by_the_arena());
        arena_scope(|| drop(Block::new(5_000, 8)));
        outside_scope(|| assert!(!served_by_the_arena()));
        assert!(served_by_the_arena());
    });
}

#[test]
fn guards_are_dropped_in_any_order() {
    for seed in 1..200 {
        let mut random = Random(seed);
        let mut guards: Vec<ArenaScope> = vec![];
        let mut blocks: Vec<Block> = vec![];
        for _ in 0..200 {
            match random.below(5) {
                0 | 1 => guards.push(ArenaScope::enter()),
                2 if !guards.is_empty() => drop(guards.swap_remove(random.below(guards.len()))),
                3 if !blocks.is_empty() => drop(blocks.swap_remove(random.below(blocks.len()))),
                _ => blocks.push(Block::new(random.size(3_000), 8)),
            }
            let open = scope_depth();
            assert!(open <= guards.len(), "{open} open, {} guards", guards.len());
            assert_eq!(served_by_the_arena(), open > 0);
        }
        blocks.iter().for_each(Block::verify);
        guards.reverse();
        drop(guards);
        assert_eq!(scope_depth(), 0);
    }
    all_is_closed();
}

#[test]
fn an_outer_guard_ends_the_scopes_inside_it_and_their_guards_do_nothing() {
    let a = ArenaScope::enter();
    let b = ArenaScope::enter();
    let c = ArenaScope::enter();
    let block = Block::new(300, 8);
    drop(a);
    assert_eq!(scope_depth(), 0);
    assert!(!served_by_the_arena());
    // A new scope in the frame of a dead one is not closed by its guard.
    let new = ArenaScope::enter();
    drop(b);
    drop(c);
    assert_eq!(scope_depth(), 1);
    assert!(served_by_the_arena());
    drop(new);
    drop(block);
    all_is_closed();
}

#[test]
fn an_outer_guard_below_inner_ones_leaves_those_below_it_open() {
    let a = ArenaScope::enter();
    let b = ArenaScope::enter();
    let c = ArenaScope::enter();
    drop(b);
    assert_eq!(scope_depth(), 1);
    assert!(served_by_the_arena());
    drop(c);
    assert_eq!(scope_depth(), 1);
    drop(a);
    all_is_closed();
}

/// A thread with a stack for deep recursion in a debug build.
fn on_a_big_stack(f: impl FnOnce() + Send + 'static) {
    thread::Builder::new()
        .stack_size(256 << 20)
        .spawn(f)
        .unwrap()
        .join()
        .unwrap();
}

const DEEP: usize = 10_000;

#[test]
fn closures_nest_ten_thousand_deep() {
    fn dive(left: usize) {
        if left == 0 {
            return;
        }
        let depth = DEEP - left + 1;
        arena_scope(|| {
            assert_eq!(scope_depth(), depth);
            let block = Block::new(1 + left % 300, 8);
            dive(left - 1);
            assert_eq!(scope_depth(), depth);
            if left % 1_000 == 0 || left > DEEP - 100 {
                assert!(served_by_the_arena());
            }
            drop(block);
        });
        assert_eq!(scope_depth(), depth - 1);
    }
    on_a_big_stack(|| {
        dive(DEEP);
        all_is_closed();
    });
}

#[test]
fn suspensions_nest_ten_thousand_deep() {
    fn dive(left: usize) {
        if left == 0 {
            return;
        }
        outside_scope(|| {
            assert_eq!(scope_depth(), 0);
            let block = Block::new(1 + left % 300, 8);
            dive(left - 1);
            if left % 1_000 == 0 || left > DEEP - 100 {
                assert!(!served_by_the_arena());
            }
            drop(block);
        });
    }
    on_a_big_stack(|| {
        arena_scope(|| {
            dive(DEEP);
            assert_eq!(scope_depth(), 1);
            assert!(served_by_the_arena());
        });
        all_is_closed();
        dive(DEEP);
        all_is_closed();
    });
}

#[test]
fn scopes_and_suspensions_alternate_within_the_table() {
    fn dive(left: usize) {
        if left == 0 {
            return;
        }
        arena_scope(|| {
            assert_eq!(scope_depth(), 1);
            let inside = Block::new(100 + left, 8);
            outside_scope(|| {
                assert_eq!(scope_depth(), 0);
                let outside = Block::new(100 + left, 8);
                assert!(!served_by_the_arena());
                dive(left - 1);
                assert!(!served_by_the_arena());
                drop(outside);
            });
            assert_eq!(scope_depth(), 1);
            assert!(served_by_the_arena());
            drop(inside);
        });
    }
    dive(FRAMES / 2);
    all_is_closed();
}

#[test]
fn scopes_and_suspensions_alternate_deeper_than_the_table_and_all_close() {
    fn dive(left: usize) {
        if left > 0 {
            arena_scope(|| {
                let inside = Block::new(100 + left, 8);
                outside_scope(|| {
                    let outside = Block::new(100 + left, 8);
                    dive(left - 1);
                    drop(outside);
                });
                drop(inside);
            });
        }
    }
    on_a_big_stack(|| {
        dive(5_000);
        all_is_closed();
    });
}

fn ten_thousand_guards(order: impl Fn(Vec<ArenaScope>)) {
    let mut kept = vec![];
    let guards: Vec<ArenaScope> = (0..DEEP)
        .map(|index| {
            let guard = ArenaScope::enter();
            let block = Block::new(1 + index % 500, 8);
            if index % 100 == 0 {
                kept.push(block);
            }
            guard
        })
        .collect();
    assert_eq!(scope_depth(), DEEP);
    order(guards);
    kept.iter().for_each(Block::verify);
    all_is_closed();
}

#[test]
fn ten_thousand_guards_are_dropped_first_to_last() {
    ten_thousand_guards(drop);
}

#[test]
fn ten_thousand_guards_are_dropped_last_to_first() {
    ten_thousand_guards(|mut guards| {
        while let Some(guard) = guards.pop() {
            drop(guard);
            assert_eq!(scope_depth(), guards.len());
        }
    });
}

#[test]
fn ten_thousand_guards_are_dropped_at_random() {
    ten_thousand_guards(|mut guards| {
        let mut random = Random(3);
        while !guards.is_empty() {
            drop(guards.swap_remove(random.below(guards.len())));
            let block = Block::new(random.size(500), 8);
            drop(block);
        }
    });
}

#[test]
fn an_outer_guard_dropped_inside_outside_scope_ends_its_scope_and_stays_outside() {
    let guard = ArenaScope::enter();
    outside_scope(|| {
        drop(guard);
        assert_eq!(scope_depth(), 0);
        assert!(!served_by_the_arena());
        arena_scope(|| assert!(served_by_the_arena()));
        assert!(!served_by_the_arena());
    });
    assert_eq!(scope_depth(), 0);
    assert!(!served_by_the_arena());
    all_is_closed();
}

/// Regression. A suspension whose scope ended inside it moved down in the frame table, and its end did not find it there: the
/// scope around both stayed suspended, and each time a frame was lost, until no scope worked any more.
#[test]
fn an_inner_guard_dropped_inside_outside_scope_leaves_the_scope_around_both_working() {
    let around = ArenaScope::enter();
    let guard = ArenaScope::enter();
    outside_scope(|| {
        outside_scope(|| drop(guard));
        assert!(!served_by_the_arena());
    });
    assert_eq!(scope_depth(), 1);
    assert!(served_by_the_arena());
    drop(around);
    all_is_closed();
}

/// Regression: as above, often.
#[test]
fn outer_guards_dropped_inside_outside_scope_many_times_lose_no_frames() {
    for _ in 0..3 * FRAMES {
        let guard = ArenaScope::enter();
        outside_scope(|| drop(guard));
        assert_eq!(scope_depth(), 0);
    }
    for _ in 0..3 * FRAMES {
        arena_scope(|| assert!(served_by_the_arena()));
    }
    all_is_closed();
}

/// Regression. Below the frame table a suspension is a count on the topmost frame; the count went with the frame when its
/// guard was dropped inside the suspension, and the closure went on in a scope.
#[test]
fn guards_dropped_inside_a_suspension_beyond_the_table_do_not_end_the_suspension() {
    let mut guards: Vec<ArenaScope> = (0..FRAMES + 10).map(|_| ArenaScope::enter()).collect();
    outside_scope(|| {
        assert!(!served_by_the_arena());
        while guards.len() > 20 {
            guards.pop();
            assert!(!served_by_the_arena(), "{} guards", guards.len());
        }
    });
    assert_eq!(scope_depth(), 20);
    assert!(served_by_the_arena());
    drop(guards);
    all_is_closed();
}

/// Regression: scopes beyond the frame table did not count where a suspension was in the table below them.
#[test]
fn scopes_inside_a_suspension_count_beyond_the_table_too() {
    let outer: Vec<ArenaScope> = (0..FRAMES - 2).map(|_| ArenaScope::enter()).collect();
    outside_scope(|| {
        let inner: Vec<ArenaScope> = (0..5).map(|_| ArenaScope::enter()).collect();
        assert_eq!(scope_depth(), 5);
        assert!(served_by_the_arena());
        drop(inner);
        assert_eq!(scope_depth(), 0);
    });
    assert_eq!(scope_depth(), FRAMES - 2);
    drop(outer);
    all_is_closed();
}

#[test]
fn a_guard_made_inside_outside_scope_ends_with_it() {
    arena_scope(|| {
        let guard = outside_scope(|| {
            let guard = ArenaScope::enter();
            assert!(served_by_the_arena());
            guard
        });
        assert_eq!(scope_depth(), 1);
        drop(guard);
        assert_eq!(scope_depth(), 1);
        assert!(served_by_the_arena());
    });
    let guard = outside_scope(ArenaScope::enter);
    assert_eq!(scope_depth(), 0);
    drop(guard);
    all_is_closed();
}

#[test]
fn a_counted_guard_forgotten_or_out_of_order_stops_counting_with_the_scope_around_it() {
    let outer = ArenaScope::enter();
    std::mem::forget(ArenaScope::enter_counted());
    let counted = ArenaScope::enter_counted();
    drop(Block::new(100, 8));
    drop(outer);
    assert_eq!(scope_depth(), 0);
    let report = counted.leave();
    assert!(!report.complete);
    all_is_closed();
}

#[test]
fn steps_walk_the_same_addresses() {
    in_thread(|| {
        let step = || {
            arena_scope(|| {
                let mut addresses = vec![];
                let mut blocks: Vec<Block> = Vec::with_capacity(700);
                let mut random = Random(1);
                for _ in 0..700 {
                    blocks.push(Block::new(random.size(40_000), 8));
                    addresses.push(blocks[blocks.len() - 1].addr());
                    if random.below(3) == 0 {
                        drop(blocks.swap_remove(random.below(blocks.len())));
                    }
                }
                addresses.iter().fold(0usize, |sum, &addr| sum.wrapping_mul(31) ^ addr)
            })
        };
        // The first steps find their place.
        (0..5).for_each(|_| assert_ne!(step(), 0));
        let first = step();
        for _ in 0..10 {
            assert_eq!(step(), first);
        }
    });
}

#[test]
fn escapees_stay_whole_over_many_steps() {
    let mut random = Random(77);
    let mut kept: Vec<Block> = vec![];
    for _ in 0..2_000 {
        arena_scope(|| {
            let mut blocks: Vec<Block> = (0..20).map(|_| Block::new(random.size(2_000), 8)).collect();
            kept.push(blocks.swap_remove(random.below(20)));
        });
        if kept.len() > 300 {
            kept.swap_remove(random.below(300));
        }
    }
    kept.iter().for_each(Block::verify);
}
