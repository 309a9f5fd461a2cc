//! The random numbers of the main package's tests.

#[path = "../../support/random.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod inner;

pub use inner::Random;
