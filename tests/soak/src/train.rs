//! A small perceptron on made-up data, written out by hand: every temporary of a step is a `Vec<f32>` made in its scope.

use crate::random::Random;
use crate::Shared;
use stepalloc::arena_scope;

const BATCH: usize = 32;
const SIZES: [usize; 3] = [16, 48, 4];

/// Weights of one layer, row by row, made outside any scope.
struct Layer {
    weights: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

impl Layer {
    fn new(inputs: usize, outputs: usize, random: &mut Random) -> Layer {
        let scale = 1.0 / (inputs as f32).sqrt();
        let weights = (0..inputs * outputs)
            .map(|_| (random.below(2001) as f32 / 1000.0 - 1.0) * scale)
            .collect();
        Layer {
            weights,
            inputs,
            outputs,
        }
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let row = |x: &[f32], output| dot(x, &self.weights[output * self.inputs..][..self.inputs]);
        x.chunks(self.inputs)
            .flat_map(|x| (0..self.outputs).map(|output| row(x, output)).collect::<Vec<_>>())
            .collect()
    }

    /// The gradient of the inputs; the weights learn.
    fn backward(&mut self, x: &[f32], gradient: &[f32], rate: f32) -> Vec<f32> {
        let mut back = vec![0.0; x.len()];
        let before = self.weights.clone();
        for ((x, gradient), back) in x
            .chunks(self.inputs)
            .zip(gradient.chunks(self.outputs))
            .zip(back.chunks_mut(self.inputs))
        {
            for (output, &slope) in gradient.iter().enumerate() {
                for input in 0..self.inputs {
                    back[input] += slope * before[output * self.inputs + input];
                    self.weights[output * self.inputs + input] -= rate * slope * x[input];
                }
            }
        }
        back
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Inputs, and for each what the network is to say: which quarter of the inputs is largest in sum.
fn batch(random: &mut Random) -> (Vec<f32>, Vec<usize>) {
    let x: Vec<f32> = (0..BATCH * SIZES[0])
        .map(|_| random.below(2001) as f32 / 1000.0 - 1.0)
        .collect();
    let label = |x: &[f32]| {
        let sums: Vec<f32> = x.chunks(SIZES[0] / SIZES[2]).map(|part| part.iter().sum()).collect();
        (0..SIZES[2]).max_by(|&a, &b| sums[a].total_cmp(&sums[b])).unwrap()
    };
    let labels = x.chunks(SIZES[0]).map(label).collect();
    (x, labels)
}

fn step(first: &mut Layer, second: &mut Layer, random: &mut Random, shared: &Shared) -> f32 {
    let (x, labels) = batch(random);
    let hidden = first.forward(&x);
    let active: Vec<f32> = hidden.iter().map(|&h| h.max(0.0)).collect();
    let out = second.forward(&active);
    shared.look(&out);
    shared.look(&hidden);
    let mut loss = 0.0;
    let mut gradient = Vec::new(); // grows as it goes
    for (out, &label) in out.chunks(SIZES[2]).zip(&labels) {
        let most = out.iter().copied().fold(f32::MIN, f32::max);
        let powers: Vec<f32> = out.iter().map(|&o| (o - most).exp()).collect();
        let sum: f32 = powers.iter().sum();
        loss -= (powers[label] / sum).ln();
        gradient.extend(
            powers
                .iter()
                .enumerate()
                .map(|(i, &p)| p / sum - f32::from(u8::from(i == label))),
        );
    }
    let rate = 0.05 / BATCH as f32;
    let mut back = second.backward(&active, &gradient, rate);
    back.iter_mut()
        .zip(&hidden)
        .for_each(|(back, &hidden)| *back *= f32::from(u8::from(hidden > 0.0)));
    first.backward(&x, &back, rate);
    if random.below(4) == 0 {
        let len = 1 + random.below(300);
        shared.keep(random, len);
    }
    loss / BATCH as f32
}

/// Trains networks until told to stop; each must learn.
pub fn run(shared: &Shared, mut random: Random) {
    while shared.goes_on() {
        let mut first = Layer::new(SIZES[0], SIZES[1], &mut random);
        let mut second = Layer::new(SIZES[1], SIZES[2], &mut random);
        let (mut early, mut late, mut done) = (0.0, 0.0, 0);
        while done < 2_000 && shared.goes_on() {
            let loss = arena_scope(|| step(&mut first, &mut second, &mut random, shared));
            early += if done < 200 { loss } else { 0.0 };
            late += if done >= 1_800 { loss } else { 0.0 };
            done += 1;
            shared.step_ends();
        }
        assert!(done < 2_000 || late < early * 0.8, "it does not learn: {early} {late}");
    }
}
