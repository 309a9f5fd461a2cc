//! The training loop of the C page, twice: `cargo run --release --example training_loop`.
//!
//! Save, forward, backward, restore becomes a scope of an explicit arena, whose values the compiler keeps inside; or
//! `arena_scope` around code that knows nothing of arenas. Both compute the same.

use stepalloc::{arena_scope, Arena, Scope, StepAlloc};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

const INPUTS: usize = 64;
const SAMPLES: usize = 256;
const STEPS: usize = 200;
const RATE: f32 = 0.001;

/// The inputs of sample `n`, and what they should give.
fn sample(n: usize) -> (impl Iterator<Item = f32> + Clone, f32) {
    let inputs = (0..INPUTS).map(move |i| ((n * 31 + i * 17) % 13) as f32 / 13.0 - 0.5);
    let wanted = inputs.clone().enumerate().map(|(i, x)| x * (i % 3) as f32).sum();
    (inputs, wanted)
}

/// One step with its temporaries in the arena; they are freed when the scope ends.
fn step_in_arena(step: &Scope<'_>, weights: &mut [f32]) -> f32 {
    let grads = step.alloc_slice_zeroed::<f32>(INPUTS);
    let mut loss = 0.0;
    for n in 0..SAMPLES {
        let (inputs, wanted) = sample(n);
        let x = step.alloc_slice_from_iter(inputs);
        let error = x.iter().zip(&*weights).map(|(x, w)| x * w).sum::<f32>() - wanted;
        loss += error * error / SAMPLES as f32;
        grads.iter_mut().zip(x).for_each(|(g, x)| *g += error * *x);
    }
    weights.iter_mut().zip(grads).for_each(|(w, g)| *w -= RATE * *g);
    loss
}

/// The same step in plain Rust.
fn step_in_vectors(weights: &mut [f32]) -> f32 {
    let mut grads = vec![0.0f32; INPUTS];
    let mut loss = 0.0;
    for n in 0..SAMPLES {
        let (inputs, wanted) = sample(n);
        let x: Vec<f32> = inputs.collect();
        let error = x.iter().zip(&*weights).map(|(x, w)| x * w).sum::<f32>() - wanted;
        loss += error * error / SAMPLES as f32;
        grads.iter_mut().zip(&x).for_each(|(g, x)| *g += error * x);
    }
    weights.iter_mut().zip(&grads).for_each(|(w, g)| *w -= RATE * g);
    loss
}

fn main() {
    let mut arena = Arena::new();
    let explicit = arena.scope(|model| {
        let weights = model.alloc_slice_zeroed::<f32>(INPUTS);
        (0..STEPS)
            .map(|_| model.scope(|step| step_in_arena(step, weights)))
            .collect::<Vec<_>>()
    });

    let mut weights = vec![0.0f32; INPUTS];
    let mut implicit = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        implicit.push(arena_scope(|| step_in_vectors(&mut weights)));
    }

    println!(
        "loss {:.4} at first, {:.6} at last; arena {:?}",
        explicit[0],
        explicit[STEPS - 1],
        arena.stats()
    );
    assert!(explicit[STEPS - 1] < 0.1 * explicit[0]);
    assert_eq!(explicit, implicit);
}
