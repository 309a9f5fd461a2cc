//! The replayer on jemalloc.
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static GLOBAL: Jemalloc = Jemalloc;

fn main() {
    stepalloc_traces::child::main();
}
