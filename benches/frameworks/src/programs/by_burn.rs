//! The programs in burn on its flex backend, as its book writes a training loop by hand. A step takes the model and gives back another, and so
//! do the optimiser's moments: what a scope's step makes and keeps is every parameter, each time.
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLoss;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::prelude::*;
use burn::tensor::activation::relu;
use fastrand::Rng;

use super::{Outcome, Program};
use crate::draw;

const CLASSES: usize = 10;
const BATCHES: usize = 16;
const RATE: f64 = 1e-3;

/// What is trained on samples of rank `D`, the batch's dimension included.
trait Net<const D: usize>: Module {
    fn forward(&self, inputs: Tensor<D>) -> Tensor<2>;
}

struct Trained<M, const D: usize> {
    /// `None` only while a step runs.
    model: Option<M>,
    optimizer: ModuleOptimizer,
    batches: Vec<(Tensor<D>, Tensor<1, Int>)>,
    loss: CrossEntropyLoss,
}

impl<M: Net<D>, const D: usize> Program for Trained<M, D> {
    fn step(&mut self, index: usize) -> Outcome<f32> {
        let (inputs, labels) = self.batches[index % self.batches.len()].clone();
        let model = self.model.take().ok_or("a step before did not end")?;
        let loss = self.loss.forward(model.forward(inputs), labels);
        let value = loss
            .clone()
            .try_into_scalar::<f32>()
            .map_err(|error| format!("{error:?}"))?;
        let slopes = GradientsParams::from_grads(loss.backward(), &model);
        self.model = Some(self.optimizer.step(RATE, model, slopes));
        Ok(value)
    }
}

/// A program on batches of `size` samples, each of the shape `sample`.
fn program<M: Net<D> + 'static, const D: usize>(
    make: impl Fn(&Device) -> M,
    shape: [usize; D],
) -> Outcome<Box<dyn Program>> {
    let device = Device::flex().autodiff();
    device.seed(1);
    let size = shape[0];
    let width: usize = shape[1..].iter().product();
    let drawn = draw::samples(&mut Rng::with_seed(1), BATCHES * size, width, CLASSES);
    let pairs = drawn.inputs.chunks(size * width).zip(drawn.labels.chunks(size));
    let batch = |(inputs, labels): (&[f32], &[u32])| {
        let labels: Vec<i64> = labels.iter().map(|&label| label.into()).collect();
        (
            Tensor::from_data(TensorData::new(inputs.to_vec(), shape), &device),
            Tensor::from_data(TensorData::new(labels, [size]), &device),
        )
    };
    Ok(Box::new(Trained {
        model: Some(make(&device)),
        optimizer: AdamConfig::new().init(),
        batches: pairs.map(batch).collect(),
        loss: CrossEntropyLoss::new(None, &device),
    }))
}

#[derive(Module, Debug)]
struct Mlp {
    first: Linear,
    second: Linear,
    last: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Mlp {
            first: LinearConfig::new(64, 512).init(device),
            second: LinearConfig::new(512, 512).init(device),
            last: LinearConfig::new(512, CLASSES).init(device),
        }
    }
}

impl Net<2> for Mlp {
    fn forward(&self, inputs: Tensor<2>) -> Tensor<2> {
        let hidden = relu(self.second.forward(relu(self.first.forward(inputs))));
        self.last.forward(hidden)
    }
}

#[derive(Module, Debug)]
struct Cnn {
    first: Conv2d,
    second: Conv2d,
    pool: MaxPool2d,
    last: Linear,
}

impl Cnn {
    fn new(device: &Device) -> Self {
        let same = |from, to| Conv2dConfig::new([from, to], [3, 3]).with_padding(PaddingConfig2d::Same);
        Cnn {
            first: same(1, 16).init(device),
            second: same(16, 32).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            last: LinearConfig::new(32 * 4 * 4, CLASSES).init(device),
        }
    }
}

impl Net<4> for Cnn {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let once = self.pool.forward(relu(self.first.forward(images)));
        let twice = self.pool.forward(relu(self.second.forward(once)));
        self.last.forward(twice.flatten(1, 3))
    }
}

pub fn mlp() -> Outcome<Box<dyn Program>> {
    program(Mlp::new, [128, 64])
}

pub fn cnn() -> Outcome<Box<dyn Program>> {
    program(Cnn::new, [32, 1, 16, 16])
}
