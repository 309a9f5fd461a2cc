//! The explicit pieces beside their peers: `cargo run --release --manifest-path benches/explicit/Cargo.toml`.
//!
//! Every contender of a group runs in turn, many times over, and the median of its times is reported, with the ratio
//! of ours to the fastest peer: what disturbs the machine disturbs all of them. Each contender returns a checksum that
//! must agree. An argument selects the groups whose name contains it.

mod groups;

use std::hint::black_box;
use std::time::Instant;

/// How often each contender runs at least; the median is over these.
const ROUNDS: usize = 301;

/// How long a contender of a group runs at least, nanoseconds.
const LEAST_NANOS: f64 = 5e7;

/// One contender: a name and a closure that does `ops` operations and returns a checksum.
pub struct Contender<'a> {
    name: &'static str,
    run: Box<dyn FnMut() -> u64 + 'a>,
}

/// Makes a contender.
pub fn contender<'a>(name: &'static str, run: impl FnMut() -> u64 + 'a) -> Contender<'a> {
    Contender {
        name,
        run: Box::new(run),
    }
}

/// Runs the contenders in turn; the first ones, whose names begin with "stepalloc", are ours.
pub fn compare(group: &str, ops: u64, target: f64, mut contenders: Vec<Contender<'_>>) {
    if let Some(wanted) = std::env::args().nth(1) {
        if !group.contains(&wanted) {
            return;
        }
    }
    let mut times = vec![Vec::with_capacity(ROUNDS); contenders.len()];
    let start = Instant::now();
    let expected = (contenders[0].run)();
    let rounds = (LEAST_NANOS / start.elapsed().as_nanos() as f64) as usize;
    for round in 0..rounds.clamp(ROUNDS, 100 * ROUNDS) {
        for turn in 0..contenders.len() {
            // Whoever runs first in a round would always meet the caches of the last: rotate.
            let who = (turn + round) % contenders.len();
            let start = Instant::now();
            let sum = black_box((contenders[who].run)());
            times[who].push(start.elapsed().as_nanos() as f64 / ops as f64);
            assert_eq!(
                sum, expected,
                "{group}: {} computes something else",
                contenders[who].name
            );
        }
    }
    let medians: Vec<f64> = times
        .iter_mut()
        .map(|times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
        .collect();
    let peers = contenders
        .iter()
        .zip(&medians)
        .filter(|(who, _)| !who.name.starts_with("stepalloc"));
    let fastest = peers.map(|(_, &median)| median).fold(f64::INFINITY, f64::min);
    println!("{group} (ns an operation; target {target:.2} of the fastest peer)");
    for (who, median) in contenders.iter().zip(&medians) {
        println!("  {:<28} {median:>9.2}   {:>5.2}", who.name, median / fastest);
    }
}

fn main() {
    groups::values();
    groups::slices();
    groups::checkpoints();
    groups::typed();
    groups::pools();
}
