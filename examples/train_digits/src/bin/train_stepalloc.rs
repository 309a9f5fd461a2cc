//! The training run under stepalloc; with `--scopes`, a scope a step.

use stepalloc::StepAlloc;

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

fn main() -> std::process::ExitCode {
    train_digits::worker::main()
}
