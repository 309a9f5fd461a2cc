//! The programs in candle, as its users write them: every operation makes its result.
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{loss, ops, AdamW, Embedding, Linear, Module, Optimizer, ParamsAdamW};
use fastrand::Rng;

use super::{Outcome, Program};
use crate::draw;

const CLASSES: usize = 10;
const BATCHES: usize = 16;

/// Makes variables and keeps them for the optimiser.
struct Maker {
    random: Rng,
    vars: Vec<Var>,
}

impl Maker {
    fn new() -> Self {
        Maker {
            random: Rng::with_seed(1),
            vars: Vec::new(),
        }
    }

    /// A variable within ±1/√`inputs`. It shares its storage with the tensor returned.
    fn var(&mut self, shape: &[usize], inputs: usize) -> Result<Tensor> {
        let bound = 1.0 / (inputs as f32).sqrt();
        let values = draw::uniform(&mut self.random, shape.iter().product(), bound);
        let var = Var::from_vec(values, shape, &Device::Cpu)?;
        let tensor = var.as_tensor().clone();
        self.vars.push(var);
        Ok(tensor)
    }

    fn linear(&mut self, inputs: usize, outputs: usize) -> Result<Linear> {
        Ok(Linear::new(
            self.var(&[outputs, inputs], inputs)?,
            Some(self.var(&[outputs], inputs)?),
        ))
    }

    fn norm(&mut self, width: usize) -> Result<Norm> {
        let scale = Var::ones(width, DType::F32, &Device::Cpu)?;
        let shift = Var::zeros(width, DType::F32, &Device::Cpu)?;
        let norm = Norm {
            scale: scale.as_tensor().clone(),
            shift: shift.as_tensor().clone(),
        };
        self.vars.extend([scale, shift]);
        Ok(norm)
    }

    /// The program whose loss on a batch is `loss`.
    fn finish(
        self,
        batches: Vec<(Tensor, Tensor)>,
        loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + 'static,
    ) -> Result<Box<dyn Program>> {
        let optimizer = AdamW::new(self.vars, ParamsAdamW::default())?;
        Ok(Box::new(Trained {
            optimizer,
            batches,
            loss: Box::new(loss),
        }))
    }
}

type Loss = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor>>;

struct Trained {
    optimizer: AdamW,
    batches: Vec<(Tensor, Tensor)>,
    loss: Loss,
}

impl Program for Trained {
    fn step(&mut self, index: usize) -> Outcome<f32> {
        let (inputs, targets) = &self.batches[index % self.batches.len()];
        let mut step = || {
            let loss = (self.loss)(inputs, targets)?;
            self.optimizer.backward_step(&loss)?;
            loss.to_scalar::<f32>()
        };
        step().map_err(|error| error.to_string())
    }
}

/// Layer norm from operations that have gradients; candle's fused one has none.
struct Norm {
    scale: Tensor,
    shift: Tensor,
}

impl Module for Norm {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        ops::layer_norm_slow(input, &self.scale, &self.shift, 1e-5)
    }
}

/// Batches of samples, each of the shape `sample`.
fn sample_batches(maker: &mut Maker, size: usize, sample: &[usize]) -> Result<Vec<(Tensor, Tensor)>> {
    let width = sample.iter().product();
    let drawn = draw::samples(&mut maker.random, BATCHES * size, width, CLASSES);
    let shape: Vec<usize> = std::iter::once(size).chain(sample.iter().copied()).collect();
    let pairs = drawn.inputs.chunks(size * width).zip(drawn.labels.chunks(size));
    pairs
        .map(|(inputs, labels)| {
            Ok((
                Tensor::from_slice(inputs, shape.as_slice(), &Device::Cpu)?,
                Tensor::from_slice(labels, size, &Device::Cpu)?,
            ))
        })
        .collect()
}

fn told(program: Result<Box<dyn Program>>) -> Outcome<Box<dyn Program>> {
    program.map_err(|error| error.to_string())
}

pub fn mlp() -> Outcome<Box<dyn Program>> {
    let make = || {
        let mut maker = Maker::new();
        let batches = sample_batches(&mut maker, 128, &[64])?;
        let layers = [
            maker.linear(64, 512)?,
            maker.linear(512, 512)?,
            maker.linear(512, CLASSES)?,
        ];
        maker.finish(batches, move |inputs, labels| {
            let [first, second, last] = &layers;
            let hidden = second.forward(&first.forward(inputs)?.relu()?)?.relu()?;
            loss::cross_entropy(&last.forward(&hidden)?, labels)
        })
    };
    told(make())
}

pub fn cnn() -> Outcome<Box<dyn Program>> {
    let make = || {
        let mut maker = Maker::new();
        let batches = sample_batches(&mut maker, 32, &[1, 16, 16])?;
        let first = maker.var(&[16, 1, 3, 3], 9)?;
        let second = maker.var(&[32, 16, 3, 3], 16 * 9)?;
        let last = maker.linear(32 * 4 * 4, CLASSES)?;
        maker.finish(batches, move |images, labels| {
            let once = images.conv2d(&first, 1, 1, 1, 1)?.relu()?.max_pool2d(2)?;
            let twice = once.conv2d(&second, 1, 1, 1, 1)?.relu()?.max_pool2d(2)?;
            loss::cross_entropy(&last.forward(&twice.flatten_from(1)?)?, labels)
        })
    };
    told(make())
}

const TOKENS: usize = 64;
const LENGTH: usize = 32;
const SEQUENCES: usize = 16;
const WIDTH: usize = 64;
const HEADS: usize = 4;

struct Block {
    before: Norm,
    qkv: Linear,
    joined: Linear,
    between: Norm,
    wide: Linear,
    narrow: Linear,
}

impl Block {
    fn new(maker: &mut Maker) -> Result<Self> {
        Ok(Block {
            before: maker.norm(WIDTH)?,
            qkv: maker.linear(WIDTH, 3 * WIDTH)?,
            joined: maker.linear(WIDTH, WIDTH)?,
            between: maker.norm(WIDTH)?,
            wide: maker.linear(WIDTH, 4 * WIDTH)?,
            narrow: maker.linear(4 * WIDTH, WIDTH)?,
        })
    }

    fn forward(&self, input: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let parts = self.qkv.forward(&self.before.forward(input)?)?.chunk(3, 2)?;
        let heads = |part: &Tensor| {
            let split = part.reshape((SEQUENCES, LENGTH, HEADS, WIDTH / HEADS))?;
            split.transpose(1, 2)?.contiguous()
        };
        let (query, key, value) = (heads(&parts[0])?, heads(&parts[1])?, heads(&parts[2])?);
        let scores = (query.matmul(&key.t()?.contiguous()?)? / ((WIDTH / HEADS) as f64).sqrt())?;
        let weights = ops::softmax(&scores.broadcast_add(mask)?, 3)?;
        let seen = weights.matmul(&value)?.transpose(1, 2)?.contiguous()?;
        let seen = seen.reshape((SEQUENCES, LENGTH, WIDTH))?;
        let middle = (input + self.joined.forward(&seen)?)?;
        let wide = self.wide.forward(&self.between.forward(&middle)?)?.gelu()?;
        middle + self.narrow.forward(&wide)?
    }
}

pub fn transformer() -> Outcome<Box<dyn Program>> {
    let make = || {
        let mut maker = Maker::new();
        // The next token follows from the one before by a fixed rule.
        let mut batches = Vec::new();
        for _ in 0..BATCHES {
            let (mut inputs, mut targets) = (Vec::new(), Vec::new());
            for _ in 0..SEQUENCES {
                let mut token = maker.random.u32(..TOKENS as u32);
                for _ in 0..LENGTH {
                    inputs.push(token);
                    token = (token * 5 + 3) % TOKENS as u32;
                    targets.push(token);
                }
            }
            batches.push((
                Tensor::from_vec(inputs, (SEQUENCES, LENGTH), &Device::Cpu)?,
                Tensor::from_vec(targets, SEQUENCES * LENGTH, &Device::Cpu)?,
            ));
        }
        let later = |place: usize| if place % LENGTH > place / LENGTH { -1e9_f32 } else { 0.0 };
        let mask = Tensor::from_vec(
            (0..LENGTH * LENGTH).map(later).collect(),
            (1, 1, LENGTH, LENGTH),
            &Device::Cpu,
        )?;
        let tokens = Embedding::new(maker.var(&[TOKENS, WIDTH], WIDTH)?, WIDTH);
        let places = maker.var(&[LENGTH, WIDTH], WIDTH)?;
        let blocks = [Block::new(&mut maker)?, Block::new(&mut maker)?];
        let last = maker.linear(WIDTH, TOKENS)?;
        maker.finish(batches, move |inputs, targets| {
            let mut state = tokens.forward(inputs)?.broadcast_add(&places)?;
            for block in &blocks {
                state = block.forward(&state, &mask)?;
            }
            let logits = last.forward(&state)?.reshape((SEQUENCES * LENGTH, TOKENS))?;
            loss::cross_entropy(&logits, targets)
        })
    };
    told(make())
}

pub fn elementwise() -> Outcome<Box<dyn Program>> {
    const SHAPE: [usize; 2] = [256, 512];
    let make = || {
        let mut maker = Maker::new();
        let mut batches = Vec::new();
        for _ in 0..BATCHES {
            let inputs = draw::uniform(&mut maker.random, SHAPE[0] * SHAPE[1], 1.0);
            let inputs = Tensor::from_vec(inputs, &SHAPE, &Device::Cpu)?;
            let targets = (inputs.sin()? * 0.5)?;
            batches.push((inputs, targets));
        }
        let scale = maker.var(&SHAPE, 1)?;
        let shift = maker.var(&SHAPE, 1)?;
        let gate = maker.var(&SHAPE, 1)?;
        maker.finish(batches, move |inputs, targets| {
            let bent = ((inputs * &scale)? + &shift)?.tanh()?;
            let open = ((inputs * &gate)?.neg()?.exp()? + 1.0)?.recip()?;
            let mixed = ((&bent * &open)? + (bent.sqr()? * 0.1)?)?.gelu()?;
            loss::mse(&mixed, targets)
        })
    };
    told(make())
}
