//! Regression: a suspension whose frame had moved was never ended.
//!
//! A guard that is dropped inside `outside_scope` pops its frame from under the suspension's, which moves down and stays,
//! because the closure still runs. The end of the closure then looked for it where it had been, found nothing, and left
//! it on the stack. After 64 such closures the table was full of them, and no scope of the thread had any effect again.

mod support;

use std::alloc::Layout;
use stepalloc::{arena_scope, in_arena, outside_scope, scope_depth, ArenaScope, StepAlloc};
use support::block::Block;

static ARENA: StepAlloc = StepAlloc::new();

#[test]
fn a_scope_left_inside_a_suspension_leaves_nothing_behind() {
    for round in 0..1_000 {
        let outermost = ArenaScope::enter();
        let outer = ArenaScope::enter();
        let inner = ArenaScope::enter();
        outside_scope(|| {
            outside_scope(|| drop(outer));
            assert_eq!(scope_depth(), 0);
            drop(inner);
        });
        assert_eq!(scope_depth(), 1, "the outermost goes on, round {round}");
        let block = Block::make(&ARENA, Layout::new::<u64>(), round, false);
        assert!(in_arena(block.ptr()), "round {round}");
        block.free(&ARENA);
        outside_scope(|| drop(outermost));
        assert_eq!(scope_depth(), 0);
    }
    arena_scope(|| assert_eq!(scope_depth(), 1));
}
