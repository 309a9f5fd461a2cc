//! What a child does: `on-… PROGRAM plain|scope THREADS STEPS`, as the driver calls it. One figure a line to standard
//! output. Arguments are read by hand: a parser of command lines would leave its own blocks in the heap under test.
use std::time::Instant;

use candle_core::Device;
use stepalloc_measure::mapped::Mapped;
use stepalloc_measure::process::{self, Resident};
use stepalloc_measure::sample;

use crate::programs::{Entry, PROGRAMS};

/// Steps that are trained but not timed: the first ones fault their memory in under any allocator.
pub const WARM_UP_STEPS: usize = 5;

/// The whole of a child's `main`.
pub fn main() {
    process::end(run());
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, name, way, threads, steps] = arguments.as_slice() else {
        return Err("usage: PROGRAM plain|scope THREADS STEPS".into());
    };
    let entry = PROGRAMS.iter().find(|entry| entry.name == name);
    let entry = entry.ok_or_else(|| format!("no program is called {name}"))?;
    let scopes = match way.as_str() {
        "plain" => false,
        "scope" => true,
        other => return Err(format!("unknown way {other}")),
    };
    let steps: usize = steps.parse().map_err(|_| "the steps are no number")?;
    if steps <= WARM_UP_STEPS {
        return Err(format!("the first {WARM_UP_STEPS} steps are not timed"));
    }
    // Read once, by the frameworks' first parallel work; this process has one thread yet.
    for variable in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS", "MATMUL_NUM_THREADS"] {
        std::env::set_var(variable, threads);
    }
    if scopes && !stepalloc::is_installed() {
        return Err("scopes, but stepalloc is not the global allocator".into());
    }
    if entry.is_candle {
        // On a thread of candle's own pool. A scope out here would belong to the main thread and see nothing: they are
        // opened inside, one a step.
        return Device::Cpu.with_context(|| train(entry, scopes, steps));
    }
    train(entry, scopes, steps)
}

fn train(entry: &Entry, scopes: bool, steps: usize) -> Result<(), String> {
    // In mappings of their own, so that they are no part of the heap under test.
    let mut losses = Mapped::new(steps, 0_f32);
    let mut figures = [(); 3].map(|()| Mapped::new(steps, 0_f64));
    let resident = Resident::new();
    process::populate_code();
    let level = resident.now();
    resident.reset_peak();
    let mut peak_bytes = 0;

    let mut program = (entry.make)()?;
    for step in 0..steps {
        let (cpu, wall, faults) = (process::cpu_ns(), Instant::now(), process::minor_faults());
        let loss = if scopes {
            stepalloc::arena_scope(|| program.step(step))?
        } else {
            program.step(step)?
        };
        figures[1][step] = wall.elapsed().as_nanos() as f64 / 1e6;
        figures[0][step] = (process::cpu_ns() - cpu) as f64 / 1e6;
        figures[2][step] = (process::minor_faults() - faults) as f64;
        losses[step] = loss;
        peak_bytes = peak_bytes.max(resident.now());
    }
    peak_bytes = peak_bytes.max(resident.peak_since_reset());
    check(&losses)?;
    let steady = |figure: &[f64]| sample::median(figure[WARM_UP_STEPS..].iter().copied()).unwrap_or(f64::NAN);
    for (name, figure) in ["ms", "wall_ms", "faults"].iter().zip(&figures) {
        println!("{name} {}", steady(figure));
    }
    println!(
        "peak_mib {}",
        peak_bytes.saturating_sub(level) as f64 / (1 << 20) as f64
    );
    println!("losses {}", digest(&losses));
    Ok(())
}

/// A program that learns nothing measures nothing.
fn check(losses: &[f32]) -> Result<(), String> {
    if let Some(step) = losses.iter().position(|loss| !loss.is_finite()) {
        return Err(format!("the loss of step {step} is {}", losses[step]));
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    if last >= first {
        return Err(format!("nothing was learned: the loss went from {first} to {last}"));
    }
    Ok(())
}

/// A number that depends on every bit of every loss (FNV-1a), cut to the 52 bits that a figure can carry.
fn digest(losses: &[f32]) -> u64 {
    let bytes = losses.iter().flat_map(|loss| loss.to_bits().to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_one_loss_changes_the_digest() {
        let losses = [2.5_f32, 1.25, 0.5];
        for step in 0..losses.len() {
            for bit in 0..32 {
                let mut other = losses;
                other[step] = f32::from_bits(losses[step].to_bits() ^ (1 << bit));
                assert_ne!(digest(&losses), digest(&other));
            }
        }
        assert!(digest(&losses) < 1 << 52);
    }

    #[test]
    fn losses_that_do_not_fall_are_an_error() {
        assert!(check(&[2.0, 1.0]).is_ok());
        assert!(check(&[1.0, 1.0]).is_err());
        assert!(check(&[2.0, f32::NAN, 1.0]).is_err());
    }
}
