//! A dense network in ndarray, forward and backward written out with its operators: no pass is fused, no buffer kept.
use fastrand::Rng;
use ndarray::{Array1, Array2, Axis};

use super::{Outcome, Program};
use crate::draw;

const SIZES: [usize; 4] = [64, 512, 512, 10];
const BATCH: usize = 128;
const BATCHES: usize = 16;
const RATE: f32 = 0.05;
const MOMENTUM: f32 = 0.9;

struct Layer {
    weight: Array2<f32>,
    bias: Array1<f32>,
    weight_speed: Array2<f32>,
    bias_speed: Array1<f32>,
}

struct Mlp {
    layers: Vec<Layer>,
    batches: Vec<(Array2<f32>, Vec<u32>)>,
}

pub fn mlp() -> Outcome<Box<dyn Program>> {
    let mut random = Rng::with_seed(1);
    let drawn = draw::samples(&mut random, BATCH * BATCHES, SIZES[0], SIZES[3]);
    let mut batches = Vec::new();
    for (inputs, labels) in drawn.inputs.chunks(BATCH * SIZES[0]).zip(drawn.labels.chunks(BATCH)) {
        let inputs = Array2::from_shape_vec((BATCH, SIZES[0]), inputs.to_vec());
        batches.push((inputs.map_err(|error| error.to_string())?, labels.to_vec()));
    }
    let mut layers = Vec::new();
    for sizes in SIZES.windows(2) {
        let (inputs, outputs) = (sizes[0], sizes[1]);
        let values = draw::uniform(&mut random, inputs * outputs, 1.0 / (inputs as f32).sqrt());
        layers.push(Layer {
            weight: Array2::from_shape_vec((inputs, outputs), values).map_err(|error| error.to_string())?,
            bias: Array1::zeros(outputs),
            weight_speed: Array2::zeros((inputs, outputs)),
            bias_speed: Array1::zeros(outputs),
        });
    }
    Ok(Box::new(Mlp { layers, batches }))
}

impl Program for Mlp {
    fn step(&mut self, index: usize) -> Outcome<f32> {
        let (inputs, labels) = &self.batches[index % self.batches.len()];
        let last = self.layers.len() - 1;
        let mut seen = vec![inputs.clone()];
        for (place, layer) in self.layers.iter().enumerate() {
            let sums = seen[place].dot(&layer.weight) + &layer.bias;
            seen.push(if place < last {
                sums.mapv(|sum| sum.max(0.0))
            } else {
                sums
            });
        }
        let logits = &seen[last + 1];
        let most = logits.fold_axis(Axis(1), f32::NEG_INFINITY, |&most, &logit| most.max(logit));
        let raised = (logits - &most.insert_axis(Axis(1))).mapv(f32::exp);
        let mut slope = &raised / &raised.sum_axis(Axis(1)).insert_axis(Axis(1));
        let mut loss = 0.0;
        for (row, &label) in labels.iter().enumerate() {
            let share = &mut slope[[row, label as usize]];
            loss -= share.ln() / BATCH as f32;
            *share -= 1.0;
        }
        slope /= BATCH as f32;
        for (place, layer) in self.layers.iter_mut().enumerate().rev() {
            let weight_slope = seen[place].t().dot(&slope);
            let bias_slope = slope.sum_axis(Axis(0));
            if place > 0 {
                let is_open = seen[place].mapv(|value| if value > 0.0 { 1.0 } else { 0.0 });
                slope = slope.dot(&layer.weight.t()) * is_open;
            }
            layer.weight_speed = &layer.weight_speed * MOMENTUM + weight_slope;
            layer.bias_speed = &layer.bias_speed * MOMENTUM + bias_slope;
            layer.weight -= &(&layer.weight_speed * RATE);
            layer.bias -= &(&layer.bias_speed * RATE);
        }
        Ok(loss)
    }
}
