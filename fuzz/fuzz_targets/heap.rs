//! Scopes, allocations, reallocations and frees on one thread; its escapees are freed after its death.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let program = programs::operations(input);
    let thread = std::thread::spawn(move || {
        let scope = (program.len() % 8 != 0).then(stepalloc::ArenaScope::enter);
        let mut runner = programs::Runner::default();
        program.into_iter().for_each(|(op, a, b)| runner.step(op, a, b));
        drop(scope);
        runner.finish()
    });
    let left = thread.join().unwrap();
    left.into_iter().for_each(|block| block.free(&programs::ARENA));
    programs::nothing_is_left();
});
