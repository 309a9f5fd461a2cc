//! The programs on mimalloc.
use mimalloc::MiMalloc;

#[global_allocator]
static GLOBAL: MiMalloc = MiMalloc;

fn main() {
    stepalloc_frameworks::child::main();
}
