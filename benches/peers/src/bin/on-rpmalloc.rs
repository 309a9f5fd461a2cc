//! The workloads on rpmalloc.
use rpmalloc::RpMalloc;

#[global_allocator]
static GLOBAL: RpMalloc = RpMalloc;

fn main() {
    stepalloc_peers::child::main();
}
