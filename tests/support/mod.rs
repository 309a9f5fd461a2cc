//! What several tests share: random numbers, a shadow map of live blocks, an allocator under chaos, blocks that know
//! their content.
#![allow(dead_code, reason = "each test uses a part of it")]

pub mod block;
pub mod chaos;
pub mod random;
pub mod shadow;
pub mod workload;
