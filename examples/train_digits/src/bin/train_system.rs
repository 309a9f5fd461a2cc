//! The training run under std's allocator.

use std::alloc::System;

#[global_allocator]
static GLOBAL: System = System;

fn main() -> std::process::ExitCode {
    train_digits::worker::main()
}
