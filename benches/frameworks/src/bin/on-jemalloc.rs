//! The programs on jemalloc.
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static GLOBAL: Jemalloc = Jemalloc;

fn main() {
    stepalloc_frameworks::child::main();
}
