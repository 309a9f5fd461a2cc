//! What is trained. A program is made once, outside any scope; then its steps run, each the same work on another batch.
#[cfg(feature = "burn")]
mod by_burn;
mod by_candle;
mod by_ndarray;

/// A loss, or what the framework says of its failure.
pub type Outcome<T> = Result<T, String>;

/// A model with its optimiser and data.
pub trait Program {
    /// One training step: forward, backward, update. Returns the loss before the update.
    ///
    /// # Errors
    /// When the framework fails.
    fn step(&mut self, index: usize) -> Outcome<f32>;
}

/// What can be run, and for how long.
pub struct Entry {
    pub name: &'static str,
    pub what: &'static str,
    pub steps: usize,
    pub quick_steps: usize,
    /// Whether it runs inside `Device::with_context`, on a thread of candle's pool, as candle's own work does. The others
    /// run on the main thread.
    pub is_candle: bool,
    /// Draws the weights and the data.
    pub make: fn() -> Outcome<Box<dyn Program>>,
}

/// Every program.
pub const PROGRAMS: &[Entry] = &[
    Entry {
        name: "candle-mlp",
        what: "candle: dense 64-512-512-10, batches of 128, AdamW",
        steps: 120,
        quick_steps: 20,
        is_candle: true,
        make: by_candle::mlp,
    },
    Entry {
        name: "candle-cnn",
        what: "candle: two convolutions with pooling on 16 by 16 images, batches of 32, AdamW",
        steps: 100,
        quick_steps: 20,
        is_candle: true,
        make: by_candle::cnn,
    },
    Entry {
        name: "candle-transformer",
        what: "candle: two causal blocks, width 64, 4 heads, 16 sequences of 32 tokens, AdamW",
        steps: 80,
        quick_steps: 15,
        is_candle: true,
        make: by_candle::transformer,
    },
    Entry {
        name: "candle-elementwise",
        what: "candle: a chain of element-wise operations on 256 by 512 values, AdamW",
        steps: 100,
        quick_steps: 20,
        is_candle: true,
        make: by_candle::elementwise,
    },
    #[cfg(feature = "burn")]
    Entry {
        name: "burn-mlp",
        what: "burn, flex backend: dense 64-512-512-10, batches of 128, Adam",
        steps: 120,
        quick_steps: 20,
        is_candle: false,
        make: by_burn::mlp,
    },
    #[cfg(feature = "burn")]
    Entry {
        name: "burn-cnn",
        what: "burn, flex backend: two convolutions with pooling on 16 by 16 images, batches of 32, Adam",
        steps: 100,
        quick_steps: 20,
        is_candle: false,
        make: by_burn::cnn,
    },
    Entry {
        name: "ndarray-mlp",
        what: "ndarray: dense 64-512-512-10, batches of 128, its backward pass and momentum by hand",
        steps: 200,
        quick_steps: 30,
        is_candle: false,
        make: by_ndarray::mlp,
    },
];
