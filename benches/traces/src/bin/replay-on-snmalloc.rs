//! The replayer on snmalloc.
use snmalloc_rs::SnMalloc;

#[global_allocator]
static GLOBAL: SnMalloc = SnMalloc;

fn main() {
    stepalloc_traces::child::main();
}
