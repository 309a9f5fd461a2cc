//! What the benches share. It measures and never judges: figures of this process ([`process`]), memory that does not
//! come from the allocator under test ([`mapped`]), rounds of interleaved processes ([`rounds`], [`matrix`]), their results
//! ([`figures`]), system calls ([`syscalls`]), and the arithmetic and Markdown of the tables ([`sample`], [`table`]).
//! With the feature `driver` also what the drivers' command lines share.
//!
//! A child process prints one figure a line, `name value`; the driver runs every child once a round in a fresh shuffled
//! order and takes medians, so that a slow minute of the machine falls on all allocators alike.
#[cfg(feature = "driver")]
pub mod driver;
pub mod figures;
pub mod mapped;
pub mod matrix;
pub mod process;
pub mod rounds;
pub mod sample;
pub mod syscalls;
pub mod table;
