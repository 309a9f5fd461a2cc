//! Two threads with a program each, which send each other blocks to resize and free.
#![no_main]

use programs::{Runner, ARENA};
use std::sync::mpsc::channel;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut first = programs::operations(input);
    let second = first.split_off(first.len() / 2);
    let both = [first, second];
    let ((to_second, from_first), (to_first, from_second)) = (channel(), channel());
    let ends = [(to_second, from_second), (to_first, from_first)];
    let threads = both.into_iter().zip(ends).map(|(program, (to, from))| {
        std::thread::spawn(move || {
            let scope = stepalloc::ArenaScope::enter();
            let mut runner = Runner::with_peer(to, from);
            program.into_iter().for_each(|(op, a, b)| runner.step(op, a, b));
            drop(scope);
            runner.finish()
        })
    });
    let threads: Vec<_> = threads.collect();
    let left: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    left.into_iter().for_each(|block| block.free(&ARENA));
    programs::nothing_is_left();
});
