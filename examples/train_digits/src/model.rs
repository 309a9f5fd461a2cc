//! The network, and one training step of it.
//!
//! Three dense layers with ReLU between them, cross-entropy, AdamW: the plainest model that learns the digits well.
//!
//! What a step allocates, and what of it stays, in candle 0.11 on the CPU: every operation makes its result, and
//! every matrix product its packing buffer, with `Vec` on the thread that calls it; other threads only fill in parts
//! of a product. At the default size that is some 1,200 blocks and 31 MiB a step, two thirds of it in 20 blocks of
//! 1 MiB, the temporaries of AdamW for the middle layer. Parameters and AdamW's moments are made once, before the first
//! step, and `Var::set` copies new values into them, so they are no escapees. What stays is what gemm and rayon make
//! once, in the first step that a thread takes part in: a buffer as large as the second-level cache, and queues.

use candle_core::{DType, Device, Result, Tensor, Var, D};
use candle_nn::{loss, AdamW, Linear, Module, Optimizer, ParamsAdamW};
use rand::{Rng, RngExt};

use crate::data::{Digits, CLASSES, PIXELS};

/// AdamW's learning rate; its other settings are candle's.
const LEARNING_RATE: f64 = 1e-3;

/// Images and labels as tensors.
pub struct Batches {
    pixels: Tensor,
    labels: Tensor,
}

impl Batches {
    /// Copies `digits` into tensors.
    pub fn new(digits: &Digits) -> Result<Batches> {
        Ok(Batches {
            pixels: Tensor::from_slice(&digits.pixels, (digits.len(), PIXELS), &Device::Cpu)?,
            labels: Tensor::from_slice(&digits.labels, digits.len(), &Device::Cpu)?,
        })
    }
}

/// The network with its optimizer.
pub struct Mlp {
    layers: [Linear; 3],
    optimizer: AdamW,
}

impl Mlp {
    /// Draws the weights of a 64-`hidden`-`hidden`-10 network from `rng`: candle's generator for the CPU takes no seed.
    pub fn new(hidden: usize, rng: &mut impl Rng) -> Result<Mlp> {
        let mut vars = Vec::new();
        let mut layer = |inputs: usize, outputs: usize| {
            // Uniform within ±1/√inputs, for weights and biases alike, as PyTorch's dense layer starts.
            let bound = 1.0 / (inputs as f32).sqrt();
            let mut draw = |count: usize| {
                (0..count)
                    .map(|_| rng.random_range(-bound..bound))
                    .collect::<Vec<f32>>()
            };
            let weight = Var::from_vec(draw(outputs * inputs), (outputs, inputs), &Device::Cpu)?;
            let bias = Var::from_vec(draw(outputs), outputs, &Device::Cpu)?;
            // A layer shares its variables' storage, so it sees what the optimizer writes.
            let layer = Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
            vars.extend([weight, bias]);
            Result::Ok(layer)
        };
        let layers = [layer(PIXELS, hidden)?, layer(hidden, hidden)?, layer(hidden, CLASSES)?];
        let params = ParamsAdamW {
            lr: LEARNING_RATE,
            ..ParamsAdamW::default()
        };
        Ok(Mlp {
            layers,
            optimizer: AdamW::new(vars, params)?,
        })
    }

    fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let [first, second, last] = &self.layers;
        last.forward(&second.forward(&first.forward(pixels)?.relu()?)?.relu()?)
    }

    /// One step on the images `rows` of `train`: gathers the batch, runs forward and back, updates the parameters.
    /// Returns the loss as a plain number, so that no tensor leaves a scope around this call.
    pub fn step(&mut self, train: &Batches, rows: &[u32]) -> Result<f32> {
        let rows = Tensor::from_slice(rows, rows.len(), &Device::Cpu)?;
        let pixels = train.pixels.index_select(&rows, 0)?;
        let labels = train.labels.index_select(&rows, 0)?;
        let loss = loss::cross_entropy(&self.logits(&pixels)?, &labels)?;
        self.optimizer.backward_step(&loss)?;
        loss.to_scalar()
    }

    /// The share of `held_out` that is classified right, 0 to 1.
    pub fn accuracy(&self, held_out: &Batches) -> Result<f64> {
        let guess = self.logits(&held_out.pixels)?.argmax(D::Minus1)?;
        let right = guess.eq(&held_out.labels)?.to_dtype(DType::F64)?;
        right.mean_all()?.to_scalar()
    }
}
