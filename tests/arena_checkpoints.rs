//! Checkpoints and scopes: which hold, what they free, and what a step costs once its memory is warm.

mod support;

use std::panic::{catch_unwind, AssertUnwindSafe};
use stepalloc::{Arena, CheckpointError};

/// Goes back; the blocks made since are not used any more in these tests.
fn back(arena: &Arena, to: &stepalloc::Checkpoint) -> Result<(), CheckpointError> {
    // SAFETY: by the tests' construction nothing made since is used.
    unsafe { arena.reset_to(to) }
}

#[test]
fn a_checkpoint_may_be_gone_back_to_again_and_again() {
    let arena = Arena::new();
    arena.alloc(0u8);
    let start = arena.checkpoint();
    let at = arena.alloc(1u8) as *mut u8;
    for _ in 0..100 {
        back(&arena, &start).unwrap();
        assert_eq!(arena.alloc(2u8) as *mut u8, at);
    }
}

#[test]
fn nested_checkpoints_are_a_stack() {
    let arena = Arena::builder().block_size(4096).build();
    let marks: Vec<_> = (0..50)
        .map(|_| {
            arena.alloc_slice_fill(1000, 1u8);
            (arena.checkpoint(), arena.stats().used_bytes)
        })
        .collect();
    for (mark, used) in marks.iter().rev() {
        back(&arena, mark).unwrap();
        assert_eq!(arena.stats().used_bytes, *used);
    }
    for (mark, _) in &marks[1..] {
        assert_eq!(back(&arena, mark), Err(CheckpointError::Stale));
    }
    back(&arena, &marks[0].0).unwrap();
}

#[test]
fn an_out_of_order_checkpoint_is_stale_even_where_nothing_was_allocated_between() {
    let arena = Arena::new();
    let (first, second) = (arena.checkpoint(), arena.checkpoint());
    back(&arena, &second).unwrap();
    back(&arena, &first).unwrap();
    assert_eq!(back(&arena, &second), Err(CheckpointError::Stale));
    let third = arena.checkpoint();
    assert_eq!(back(&arena, &second), Err(CheckpointError::Stale));
    back(&arena, &third).unwrap();
    back(&arena, &first).unwrap();
    assert_eq!(back(&arena, &third), Err(CheckpointError::Stale));
}

#[test]
fn a_foreign_checkpoint_is_refused_also_from_an_arena_at_the_same_place() {
    let arena = Arena::new();
    let elsewhere = Arena::new().checkpoint();
    assert_eq!(back(&arena, &elsewhere), Err(CheckpointError::Foreign));
    arena.checkpoint();
    assert_eq!(back(&arena, &elsewhere), Err(CheckpointError::Foreign));
}

/// The serials of two arenas are drawn in ranges, one behind the other: their ends are nobody else's either.
#[test]
fn all_checkpoints_of_two_arenas_are_foreign_to_the_other() {
    for _ in 0..8 {
        let (one, other) = (Arena::new(), Arena::new());
        let (mut ones, mut others) = (vec![one.checkpoint()], vec![other.checkpoint()]);
        for _ in 0..3_100 {
            ones.push(one.checkpoint());
            others.push(other.checkpoint());
        }
        assert!(others
            .iter()
            .all(|theirs| back(&one, theirs) == Err(CheckpointError::Foreign)));
        assert!(ones
            .iter()
            .all(|theirs| back(&other, theirs) == Err(CheckpointError::Foreign)));
        assert_eq!(back(&one, &ones[3_100]), Ok(()));
        assert_eq!(back(&other, &others[0]), Ok(()));
    }
}

#[test]
fn a_reset_makes_every_checkpoint_stale() {
    let mut arena = Arena::new();
    let start = arena.checkpoint();
    arena.reset();
    assert_eq!(back(&arena, &start), Err(CheckpointError::Stale));
    let again = arena.checkpoint();
    assert_eq!(back(&arena, &start), Err(CheckpointError::Stale));
    assert_eq!(back(&arena, &again), Ok(()));
}

#[test]
fn checkpoints_do_not_cross_the_borders_of_scopes() {
    let mut arena = Arena::new();
    arena.scope(|outer| {
        let before = outer.checkpoint();
        let inside = outer.scope(|inner| {
            inner.alloc(1);
            assert_eq!(
                back(inner, &before),
                Err(CheckpointError::Stale),
                "would free what the scope lends out"
            );
            let inside = inner.checkpoint();
            inner.alloc(2);
            back(inner, &inside).unwrap();
            inside
        });
        assert_eq!(back(outer, &inside), Err(CheckpointError::Stale));
        outer.alloc(3);
        back(outer, &before).unwrap();
    });
    assert_eq!(arena.stats().used_bytes, 0);
}

/// The stack of marks must not grow with the number of steps, whatever the pattern.
#[test]
fn a_million_steps_keep_the_oldest_and_the_newest_checkpoint_live() {
    let steps = if cfg!(miri) { 200 } else { 1_000_000 };
    let arena = Arena::new();
    let oldest = arena.checkpoint();
    for _ in 0..steps {
        let step = arena.checkpoint();
        arena.alloc(1u8);
        let inner = arena.checkpoint();
        arena.alloc(2u8);
        back(&arena, &inner).unwrap();
        back(&arena, &step).unwrap();
        assert_eq!(back(&arena, &inner), Err(CheckpointError::Stale));
    }
    back(&arena, &oldest).unwrap();
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
fn scopes_nest_and_free_on_return_and_on_panic() {
    let mut arena = Arena::builder().block_size(4096).build();
    let mut used = 0;
    arena.scope(|outer| {
        let kept = outer.alloc_slice_fill(3000, 1u8);
        used = outer.stats().used_bytes;
        for _ in 0..10 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                outer.scope(|inner| {
                    inner.alloc_slice_fill(10_000, 2u8);
                    inner.scope(|innermost| {
                        innermost.alloc_slice_fill(100_000, 3u8);
                        panic!("inside");
                    })
                })
            }));
            assert!(caught.is_err());
            assert_eq!(outer.stats().used_bytes, used);
        }
        assert!(kept.iter().all(|&byte| byte == 1));
    });
    assert_eq!(arena.stats().used_bytes, 0);
    assert!(used >= 3000);
}

#[test]
fn boxes_in_a_scope_drop_before_it_ends() {
    let counted = std::rc::Rc::new(());
    let mut arena = Arena::new();
    arena.scope(|scope| {
        let _boxes: Vec<_> = (0..10).map(|_| scope.alloc_boxed(counted.clone())).collect();
        assert_eq!(std::rc::Rc::strong_count(&counted), 11);
    });
    assert_eq!(std::rc::Rc::strong_count(&counted), 1);
}

#[test]
fn the_tip_of_a_scope_can_still_grow_after_an_inner_scope() {
    use std::alloc::Layout;
    let mut arena = Arena::new();
    arena.scope(|outer| {
        let (small, large) = (Layout::new::<[u8; 64]>(), Layout::new::<[u8; 256]>());
        let block = outer.alloc_layout(small);
        outer.scope(|inner| {
            inner.alloc(1);
        });
        // SAFETY: the block is live with layout `small`.
        assert_eq!(unsafe { outer.grow(block, small, large) }, Ok(block));
    });
}

/// One training step: some hundred blocks, small and large, over several blocks of the arena.
fn step(arena: &mut Arena) -> f32 {
    let mut loss = 0.0;
    arena.scope(|scope| {
        let x = scope.alloc_slice_fill(100_000, 0.5f32);
        for layer in 1..20 {
            let y = scope.alloc_slice_from_iter(x.iter().take(layer * 1_000).map(|x| x * 2.0));
            let zero = scope.alloc_slice_zeroed::<f32>(10_000);
            scope.scope(|inner| {
                let grads = inner.alloc_slice_fill_with(y.len(), |i| y[i] - 1.0 + zero[i % 10_000]);
                loss += grads.iter().sum::<f32>();
                inner.alloc_slice_fill(300_000, 1u8);
            });
        }
        let start = scope.checkpoint();
        scope.alloc_slice_fill(2_000_000, 1u8);
        back(scope, &start).unwrap();
    });
    loss
}

#[cfg(all(target_os = "linux", not(miri), not(stepalloc_small_space)))]
mod costs {
    use super::support::{faults, resident};
    use super::*;
    // A fork by one test makes the others' pages fault anew: one at a time.
    use serial_test::serial;

    /// Whether the address sanitizer is in the process, whose shadow memory faults pages of its own.
    ///
    /// That memory begins at a fixed address.
    fn sanitized() -> bool {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .contains("7fff7000-")
    }

    #[test]
    #[serial]
    fn from_the_second_step_on_no_page_faults() {
        for block_size in [1 << 20, 64 << 20] {
            let mut arena = Arena::with_block_size(block_size);
            let before = faults();
            step(&mut arena);
            assert!(faults() > before, "the first step must fault: the count works");
            for _ in 0..3 {
                let before = faults();
                step(&mut arena);
                arena.reset();
                assert!(faults() == before || sanitized());
            }
        }
    }

    /// Runs `f` in a child process that may read, write and end, and is killed for any other system call.
    fn survives_without_system_calls(f: impl FnOnce()) -> bool {
        // SAFETY: the child uses its own copy of everything, makes no call but those below and what `f` makes, and
        // ends without running any destructor.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) != 0 {
                    libc::syscall(libc::SYS_exit, 77);
                }
                f();
                libc::syscall(libc::SYS_exit, 0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            assert!(
                !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 77,
                "no seccomp here"
            );
            libc::WIFEXITED(status)
        }
    }

    #[test]
    #[serial]
    fn from_the_second_step_on_no_system_calls() {
        let mut arena = Arena::with_block_size(1 << 20);
        step(&mut arena);
        assert!(survives_without_system_calls(|| {
            for _ in 0..5 {
                step(&mut arena);
                arena.reset();
            }
        }));
        // The fixture must be able to fail.
        let mut cold = Arena::new();
        assert!(!survives_without_system_calls(|| {
            step(&mut cold);
        }));
    }

    #[test]
    #[serial]
    fn committed_ahead_means_no_system_calls_in_the_first_step() {
        let mut arena = Arena::with_block_size(1 << 20);
        arena.commit(8 << 20).unwrap();
        assert!(survives_without_system_calls(|| {
            // The list of blocks has its place already; the blocks are small, so that all fit.
            arena.scope(|scope| {
                for _ in 0..1000 {
                    scope.alloc_slice_fill(8_000, 1u8);
                }
            });
        }));
    }

    #[test]
    #[serial]
    fn retention_gives_pages_back_and_keeps_what_it_says() {
        let mut arena = Arena::builder().block_size(256 << 20).build();
        arena.alloc_slice_fill(200 << 20, 1u8);
        let full = resident();
        arena.reset_with(stepalloc::Retain::UpTo(8 << 20));
        assert!(full - resident() > 150 << 20, "pages were not given back");
        let before = faults();
        arena.alloc_slice_fill(7 << 20, 1u8);
        assert!(faults() == before || sanitized(), "what was kept is not warm");
        assert!(arena.alloc_slice_zeroed::<u8>(100 << 20).iter().all(|&byte| byte == 0));
    }

    #[test]
    #[serial]
    fn zeroed_memory_from_the_system_is_not_touched() {
        let arena = Arena::new();
        let before = faults();
        let zeroed = arena.alloc_slice_zeroed::<u8>(32 << 20);
        assert!(faults() - before < 64, "{} pages touched", faults() - before);
        assert_eq!(zeroed[20 << 20], 0);
    }
}

#[test]
fn the_step_computes_the_same_each_time() {
    if cfg!(miri) {
        return;
    }
    let mut arena = Arena::with_block_size(1 << 20);
    let first = step(&mut arena);
    assert_eq!(step(&mut arena), first);
    let blocks = arena.stats();
    step(&mut arena);
    assert_eq!(arena.stats(), blocks);
}

/// Programs of checkpoints, ways back and nested scopes, in blocks so small that most scopes take some, against an oracle
/// that keeps every checkpoint of every open scope.
mod programs {
    use super::*;
    use proptest::prelude::*;
    use stepalloc::{Checkpoint, Scope};

    #[derive(Debug, Clone)]
    enum Op {
        Alloc(usize),
        Checkpoint,
        /// To any checkpoint ever made.
        ResetTo(usize),
        Scope(Vec<Op>),
    }

    fn op() -> impl Strategy<Value = Op> {
        let leaf = prop_oneof![
            4 => prop_oneof![1usize..200, 1usize..9000].prop_map(Op::Alloc),
            2 => Just(Op::Checkpoint),
            3 => (0usize..64).prop_map(Op::ResetTo),
        ];
        leaf.prop_recursive(4, 24, 6, |inner| prop::collection::vec(inner, 0..6).prop_map(Op::Scope))
    }

    #[derive(Default)]
    struct Oracle {
        made: Vec<Checkpoint>,
        /// For each open scope its live checkpoints, and the arena's used bytes and live blocks at each.
        scopes: Vec<Vec<(usize, usize, usize)>>,
        blocks: Vec<(*const u8, usize, u8)>,
        peak: usize,
    }

    fn run(scope: &mut Scope<'_>, ops: &[Op], oracle: &mut Oracle) {
        oracle.scopes.push(Vec::new());
        let begin = (scope.stats().used_bytes, oracle.blocks.len());
        for op in ops {
            let used = scope.stats().used_bytes;
            match op {
                Op::Alloc(size) => {
                    let fill = oracle.blocks.len() as u8;
                    let block = scope.alloc_slice_fill(*size, fill);
                    oracle.blocks.push((block.as_ptr(), *size, fill));
                }
                Op::Checkpoint => {
                    let live = (oracle.made.len(), used, oracle.blocks.len());
                    oracle.made.push(scope.checkpoint());
                    oracle.scopes.last_mut().unwrap().push(live);
                }
                Op::ResetTo(which) if !oracle.made.is_empty() => {
                    let which = which % oracle.made.len();
                    let marks = oracle.scopes.last_mut().unwrap();
                    match marks.iter().position(|mark| mark.0 == which) {
                        Some(index) => {
                            assert_eq!(back(scope, &oracle.made[which]), Ok(()));
                            assert_eq!(scope.stats().used_bytes, marks[index].1);
                            oracle.blocks.truncate(marks[index].2);
                            marks.truncate(index + 1);
                        }
                        None => {
                            assert_eq!(back(scope, &oracle.made[which]), Err(CheckpointError::Stale));
                            assert_eq!(scope.stats().used_bytes, used);
                        }
                    }
                }
                Op::ResetTo(_) => {}
                Op::Scope(ops) => {
                    scope.scope(|inner| run(inner, ops, oracle));
                    assert_eq!(scope.stats().used_bytes, used);
                }
            }
            oracle.peak = oracle.peak.max(scope.stats().used_bytes);
            assert_eq!(scope.stats().peak_bytes, oracle.peak);
            for &(block, size, fill) in &oracle.blocks {
                // SAFETY: the block is live and was filled.
                let bytes = unsafe { std::slice::from_raw_parts(block, size) };
                assert!(bytes.iter().all(|&byte| byte == fill));
            }
        }
        oracle.scopes.pop();
        oracle.blocks.truncate(begin.1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 512 }, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn scopes_and_checkpoints_agree_with_the_oracle(
            before in (0usize..9000, any::<bool>()),
            steps in prop::collection::vec(prop::collection::vec(op(), 0..12), 1..4),
        ) {
            let mut arena = Arena::builder().block_size(4096).align(8).build();
            let weights = before.0;
            if weights != 0 {
                arena.alloc_slice_fill(weights, 1u8);
            }
            let outside = before.1.then(|| arena.checkpoint());
            let start = arena.stats().used_bytes;
            let mut oracle = Oracle { peak: start, ..Oracle::default() };
            for ops in &steps {
                oracle.made.clear();
                oracle.made.extend(outside);
                arena.scope(|scope| run(scope, ops, &mut oracle));
                prop_assert_eq!(arena.stats().used_bytes, start);
                if let Some(outside) = &outside {
                    prop_assert_eq!(back(&arena, outside), Ok(()));
                    prop_assert_eq!(arena.stats().used_bytes, start);
                }
            }
        }
    }
}
