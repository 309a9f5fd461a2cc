//! The workloads on stepalloc-mimalloc.
use mimalloc::MiMalloc;
use stepalloc::StepAlloc;

#[global_allocator]
static GLOBAL: StepAlloc<MiMalloc> = StepAlloc::with_backing(MiMalloc);

fn main() {
    stepalloc_peers::child::main();
}
