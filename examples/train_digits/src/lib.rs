//! Trains a digit classifier with candle, step by step, under whatever allocator the binary has installed.
//!
//! A Rust program has one global allocator, chosen when it is compiled. So each allocator is a binary of a few
//! lines (`src/bin/`) around [`worker::main`], and the main binary starts them in turn and compares what they
//! say ([`message`]). All of it is deterministic: two runs with one seed must report the same losses, bit by bit.
//!
//! The files, lowest first: [`data`] reads the digits, [`model`] is the network and its training step, [`usage`]
//! asks the system for page faults and memory, [`message`] is what a worker tells, [`worker`] is a whole run.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod data;
pub mod message;
pub mod model;
pub mod usage;
pub mod worker;
