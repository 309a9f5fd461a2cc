//! The workloads on snmalloc.
use snmalloc_rs::SnMalloc;

#[global_allocator]
static GLOBAL: SnMalloc = SnMalloc;

fn main() {
    stepalloc_peers::child::main();
}
