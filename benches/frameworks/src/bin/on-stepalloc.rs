//! The programs on stepalloc.
use stepalloc::StepAlloc;

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

fn main() {
    stepalloc_frameworks::child::main();
}
