//! The replayer on system.
use std::alloc::System;

#[global_allocator]
static GLOBAL: System = System;

fn main() {
    stepalloc_traces::child::main();
}
