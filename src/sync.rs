//! The one place that names the atomics: the maps and tables of every layer above are slices of these, so that
//! a model checker can put its own in their place.

pub use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
