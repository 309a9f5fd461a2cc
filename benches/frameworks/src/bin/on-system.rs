//! The programs on System.
use std::alloc::System;

#[global_allocator]
static GLOBAL: System = System;

fn main() {
    stepalloc_frameworks::child::main();
}
