//! Seeded numbers: weights and data. candle's own generator for the CPU takes no seed.
use fastrand::Rng;

/// Inputs with their class, drawn around one centre for each class so that there is something to learn.
pub struct Samples {
    pub inputs: Vec<f32>,
    pub labels: Vec<u32>,
}

/// `count` values within ±`bound`.
pub fn uniform(random: &mut Rng, count: usize, bound: f32) -> Vec<f32> {
    (0..count).map(|_| (random.f32() * 2.0 - 1.0) * bound).collect()
}

/// `count` samples of `width` values each, of `classes` classes.
pub fn samples(random: &mut Rng, count: usize, width: usize, classes: usize) -> Samples {
    let centres = uniform(random, classes * width, 1.0);
    let mut inputs = Vec::with_capacity(count * width);
    let mut labels = Vec::with_capacity(count);
    for _ in 0..count {
        let class = random.usize(..classes);
        labels.push(class as u32);
        let centre = &centres[class * width..][..width];
        inputs.extend(centre.iter().map(|middle| middle + random.f32() - 0.5));
    }
    Samples { inputs, labels }
}
