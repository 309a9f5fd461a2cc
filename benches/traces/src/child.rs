//! What a child does: `replay-on-… TRACE PURPOSE SCOPES THREADS [PLAN]`, as the driver calls it. One figure a line to standard
//! output. Arguments are read by hand: a parser of command lines would leave its own blocks in the heap under test.
use std::path::Path;

use crate::plan::Planned;
use crate::replay::{replay, Global, Outcome, Purpose, Scopes};
use crate::trace::{load_places, Trace};

/// The whole of a child's `main`.
pub fn main() {
    // A thread that panics must not leave the others waiting for their turn.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::abort();
    }));
    stepalloc_measure::process::end(run());
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, purpose, scopes, threads, rest @ ..] = arguments.as_slice() else {
        return Err("usage: TRACE time|memory|verify none|step|random:SEED one|recorded [PLAN]".into());
    };
    let purpose = match purpose.as_str() {
        "time" => Purpose::Time,
        "memory" => Purpose::Memory,
        "verify" => Purpose::Verify,
        other => return Err(format!("unknown purpose {other}")),
    };
    let scopes = match (scopes.as_str(), scopes.strip_prefix("random:")) {
        ("none", _) => Scopes::None,
        ("step", _) => Scopes::Step,
        (_, Some(seed)) => Scopes::Random(seed.parse().map_err(|_| "the seed is no number")?),
        (other, _) => return Err(format!("unknown scopes {other}")),
    };
    let threads = threads == "recorded";
    let trace = Trace::load(Path::new(path))?;
    match rest.first() {
        Some(places) => {
            let planned = Planned::new(load_places(Path::new(places))?);
            print(&trace, purpose, &replay(&trace, &planned, purpose, scopes, threads));
        }
        None => print(&trace, purpose, &replay(&trace, &Global, purpose, scopes, threads)),
    }
    Ok(())
}

fn print(trace: &Trace, purpose: Purpose, outcome: &Outcome) {
    // Steady: neither the set-up nor the first step.
    let steady = |values: &[u64]| {
        let values = values.iter().skip(1).map(|&value| value as f64);
        stepalloc_measure::sample::median(values).unwrap_or(0.0)
    };
    match purpose {
        Purpose::Time => {
            println!("cpu_ms {}", steady(&outcome.step_cpu_ns) / 1e6);
            println!("faults {}", steady(&outcome.step_faults));
        }
        Purpose::Memory => {
            println!(
                "peak_ratio {}",
                outcome.peak_resident_bytes as f64 / trace.peak_live_bytes as f64
            );
            println!("peak_mib {}", outcome.peak_resident_bytes as f64 / (1 << 20) as f64);
        }
        Purpose::Verify => println!("checked_blocks {}", outcome.checked_blocks),
    }
}
