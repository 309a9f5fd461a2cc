//! Large buffers: time of a step, page faults from the second step on, peak resident memory.
use std::hint::black_box;

use stepalloc_measure::mapped::Mapped;
use stepalloc_measure::{process, sample};

use crate::run::{mib_above, Run, Way};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Where a step's buffers come from: fresh, or kept by hand for as long as the program lives.
struct Buffers<'r> {
    run: &'r Run,
    /// By role; only used where buffers are kept.
    kept: Vec<Vec<f32>>,
    live_bytes: usize,
    peak_live_bytes: usize,
    peak_resident_bytes: u64,
}

impl Buffers<'_> {
    /// An empty buffer with room for `bytes`. Its role says which kept buffer it is.
    fn take(&mut self, role: usize, bytes: usize) -> Vec<f32> {
        self.live_bytes += bytes;
        self.peak_live_bytes = self.peak_live_bytes.max(self.live_bytes);
        match self.run.way {
            Way::Kept => std::mem::take(&mut self.kept[role]),
            Way::Plain | Way::Scope | Way::Bump | Way::Arena(_) => Vec::with_capacity(bytes / size_of::<f32>()),
        }
    }

    /// The end of a buffer, full as it is.
    fn give(&mut self, role: usize, mut buffer: Vec<f32>) {
        self.live_bytes -= buffer.len() * size_of::<f32>();
        self.peak_resident_bytes = self.peak_resident_bytes.max(self.run.resident_bytes());
        if self.run.way == Way::Kept {
            buffer.clear();
            self.kept[role] = buffer;
        }
    }
}

/// Writes all of `out` from `of`, repeated if it is shorter.
fn map(out: &mut Vec<f32>, bytes: usize, of: &[f32], factor: f32) {
    let mut rest = bytes / size_of::<f32>();
    while rest > 0 {
        let part = &of[..of.len().min(rest)];
        out.extend(part.iter().map(|value| value * factor + 0.5));
        rest -= part.len();
    }
}

// Roles: a kept buffer each. Temporaries and gradients of all layers share theirs; activations and the gradients of the
// weights have one a layer.
const TEMPORARY: usize = 0;
const GRADIENT: usize = 1;
const NEXT_GRADIENT: usize = 2;
const PER_LAYER: usize = 3;

/// One step: forwards a temporary and an activation a layer, backwards a temporary, a gradient and a weight's gradient.
/// Returns a value that every buffer had a part in.
fn step(buffers: &mut Buffers, sizes: &[usize], input: &[f32]) -> f32 {
    let mut activations: Vec<Vec<f32>> = Vec::with_capacity(sizes.len());
    for (layer, &bytes) in sizes.iter().enumerate() {
        let mut temporary = buffers.take(TEMPORARY, bytes);
        map(
            &mut temporary,
            bytes,
            activations.last().map_or(input, Vec::as_slice),
            0.5,
        );
        let mut activation = buffers.take(PER_LAYER + 2 * layer, bytes);
        map(&mut activation, bytes, &temporary, 0.5);
        buffers.give(TEMPORARY, temporary);
        activations.push(activation);
    }
    let mut gradient = buffers.take(GRADIENT, sizes[sizes.len() - 1]);
    map(&mut gradient, sizes[sizes.len() - 1], input, 1.0);
    let (mut own_role, mut next_role) = (GRADIENT, NEXT_GRADIENT);
    let mut weights: Vec<Vec<f32>> = Vec::with_capacity(sizes.len());
    for (layer, &bytes) in sizes.iter().enumerate().rev() {
        let mut temporary = buffers.take(TEMPORARY, bytes);
        map(&mut temporary, bytes, &activations[layer], 0.5);
        let mut weight = buffers.take(PER_LAYER + 2 * layer + 1, bytes / 16);
        map(&mut weight, bytes / 16, &temporary, 1.0);
        weights.push(weight);
        let next_bytes = sizes[layer.saturating_sub(1)];
        let mut next = buffers.take(next_role, next_bytes);
        map(
            &mut next,
            next_bytes,
            if layer % 2 == 0 { &temporary } else { &gradient },
            0.5,
        );
        buffers.give(TEMPORARY, temporary);
        buffers.give(own_role, std::mem::replace(&mut gradient, next));
        std::mem::swap(&mut own_role, &mut next_role);
    }
    let mut result = gradient[gradient.len() - 1];
    buffers.give(own_role, gradient);
    for (layer, weight) in (0..sizes.len()).rev().zip(weights) {
        result += weight[weight.len() / 2];
        buffers.give(PER_LAYER + 2 * layer + 1, weight);
    }
    for (layer, activation) in activations.into_iter().enumerate() {
        result += activation[activation.len() - 1];
        buffers.give(PER_LAYER + 2 * layer, activation);
    }
    result
}

fn steps(run: &Run, sizes: &[usize], count: usize) {
    let input = vec![1.0_f32; sizes[0] / size_of::<f32>()];
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let level = run.level();
    let mut buffers = Buffers {
        run,
        kept: Vec::new(),
        live_bytes: 0,
        peak_live_bytes: 0,
        peak_resident_bytes: 0,
    };
    if run.way == Way::Kept {
        let layers = sizes.iter().flat_map(|&bytes| [bytes, bytes / 16]);
        let roles = [largest; PER_LAYER].into_iter().chain(layers);
        buffers.kept = roles
            .map(|bytes| Vec::with_capacity(bytes / size_of::<f32>()))
            .collect();
    }
    let (mut times, mut faults, mut result) = (Mapped::new(count - 1, 0.0), 0, None);
    for index in 0..count {
        if index == 1 {
            run.begin_steady();
        }
        let (clock, faults_before) = (process::cpu_ns(), process::minor_faults());
        let value = run.step(|| step(&mut buffers, sizes, black_box(&input)));
        if index > 0 {
            times[index - 1] = (process::cpu_ns() - clock) as f64 / 1e6;
            faults += process::minor_faults() - faults_before;
        }
        assert!(value.is_finite() && *result.get_or_insert(value) == value && buffers.live_bytes == 0);
    }
    run.end_steady(count - 1);
    run.figure("ms", sample::median(times.iter().copied()).unwrap_or(f64::NAN));
    run.figure("faults", faults as f64 / (count - 1) as f64);
    let peak = mib_above(buffers.peak_resident_bytes, level);
    run.figure("peak_mib", peak);
    run.figure("peak_over_live", peak / (buffers.peak_live_bytes as f64 / MIB as f64));
}

pub fn small(run: &Run) {
    let sizes = [4, 16, 64, 256, 128, 32, 8].map(|kib| kib * KIB);
    steps(run, &[sizes, sizes, sizes].concat(), run.pick(400, 100));
}

pub fn medium(run: &Run) {
    let sizes = [64, 256, 1024, 4096, 2048, 512, 128].map(|kib| kib * KIB);
    steps(run, &[sizes, sizes, sizes].concat(), run.pick(60, 20));
}

pub fn large(run: &Run) {
    let sizes = [64, 256, 1024, 4096, 16384, 65536, 32768, 8192, 2048, 512, 128].map(|kib| kib * KIB);
    steps(run, &sizes, run.pick(12, 5));
}

/// Times `f` as a step; the first apart.
fn repeat(run: &Run, count: usize, mut f: impl FnMut()) {
    let level = run.level();
    let (mut times, mut faults, mut peak) = (Mapped::new(count - 1, 0.0), 0, 0.0_f64);
    for index in 0..count {
        if index == 1 {
            run.begin_steady();
        }
        let (clock, faults_before) = (process::cpu_ns(), process::minor_faults());
        f();
        let ms = (process::cpu_ns() - clock) as f64 / 1e6;
        peak = peak.max(mib_above(run.resident_bytes(), level));
        if index == 0 {
            run.figure("first_ms", ms);
        } else {
            times[index - 1] = ms;
            faults += process::minor_faults() - faults_before;
        }
    }
    run.end_steady(count - 1);
    run.figure("ms", sample::median(times.iter().copied()).unwrap_or(f64::NAN));
    run.figure("faults", faults as f64 / (count - 1) as f64);
    run.figure("after_mib", peak);
}

pub fn vec_pushed(run: &Run) {
    const COUNT: u64 = (256 << 20) / 8;
    let mut kept: Vec<u64> = Vec::new();
    if run.way == Way::Kept {
        kept.reserve_exact(COUNT as usize);
    }
    repeat(run, run.pick(6, 4), || {
        let last = run.step(|| {
            let mut values = std::mem::take(&mut kept);
            for value in 0..COUNT {
                values.push(value);
            }
            let mut values = black_box(values);
            let sum = values[values.len() / 3] + values[values.len() - 1];
            if run.way == Way::Kept {
                values.clear();
                kept = values;
            }
            sum
        });
        assert_eq!(last, COUNT / 3 + COUNT - 1);
    });
}

pub fn zeroed(run: &Run) {
    repeat(run, run.pick(20, 8), || {
        let sum = run.step(|| {
            let mut bytes = black_box(vec![0_u8; 64 * MIB]);
            let mut sum = 0;
            for place in (17..bytes.len()).step_by(4096) {
                sum += u64::from(bytes[place]) + 1;
                bytes[place] = 1;
            }
            black_box(bytes);
            sum
        });
        assert_eq!(sum, (64 * MIB / 4096) as u64);
    });
}
