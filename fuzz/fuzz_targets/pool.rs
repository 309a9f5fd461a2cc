//! Pools of raw objects, with hostile frees, against the oracle of their property tests.
#![no_main]

use programs::pool_program::{run, Op};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut program = programs::operations(input);
    // The last says how the pool is made.
    let Some((shift, size, count)) = program.pop() else {
        return;
    };
    let size = if size % 16 == 0 {
        1_000_000 + size as usize
    } else {
        size as usize % 200
    };
    let ops = program.into_iter().map(|(op, a, _)| Op::from_numbers(op, a));
    run(size, u32::from(shift % 9), count as usize % 40, count & 0x80 != 0, ops);
});
