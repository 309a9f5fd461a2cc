//! The explicit arena against the oracle of its property tests.
#![no_main]

use programs::arena_program::{Block, Op, Oracle};
use stepalloc::Arena;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // Short programs: the oracle looks at all blocks after each operation.
    for program in programs::operations(input).chunks(150) {
        // The first operation says how the arena is made.
        let (how, block, most) = program[0];
        let mut settings = Arena::builder()
            .align(1 << (how % 13))
            .block_size(1 + block as usize * 2);
        if how & 0x40 != 0 {
            settings = settings.blocks_from_global();
        }
        if how & 0x80 != 0 {
            settings = settings.max_bytes(most as usize * 15);
        }
        let mut arena = settings.build();
        let mut oracle = Oracle::default();
        program[1..]
            .iter()
            .for_each(|&(op, a, b)| oracle.run(&mut arena, Op::from_numbers(op, a, b)));
        oracle.blocks.iter().for_each(Block::verify);
    }
});
