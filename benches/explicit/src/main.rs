//! The explicit pieces beside their peers:
//!
//! ```sh
//! cargo run --release --manifest-path benches/explicit/Cargo.toml            # everything, some 15 seconds
//! cargo run --release --manifest-path benches/explicit/Cargo.toml -- scope   # the groups whose name contains it
//! ```
//!
//! | group | what an operation is | peers |
//! |---|---|---|
//! | `arena/alloc` | one value put into a warm arena; every 1,000 values it is reset | bumpalo, bump-scope |
//! | `arena/slice fill` | one slice of copies of a value, likewise | bumpalo, bump-scope |
//! | `arena/checkpoint and reset` | a checkpoint, so many words, and the way back | bump-scope |
//! | `arena/scope` | the same as a closure | bump-scope |
//! | `arena/10000 typed values` | one of 10,000 values in a new or a kept arena, its end included | typed-arena |
//! | `pool/pair`, `pool/batch` | a value taken and given back, at once or after 1,000 were taken | slab, general allocators |
//! | `shared pool/pair` | the same by one thread, and by two at once | a locked slab, free lists, object pools |
//!
//! A round runs every contender of a group once, in a fresh shuffled order, and the medians over the rounds are printed
//! with their ratio to the fastest peer: what disturbs the machine disturbs all of them. Where general allocators take
//! part they have a column of their own and are no peers. Each contender returns a checksum that must agree. The targets
//! are the project's own; nothing is judged here.

mod groups;

use std::hint::black_box;
use std::time::Instant;
use stepalloc_measure::rounds::Rounds;
use stepalloc_measure::sample::median;
use stepalloc_measure::table::{figure, Table};

/// How often each contender runs at least; the median is over these.
const ROUNDS: usize = 301;

/// How long a contender of a group runs at least, nanoseconds.
const LEAST_NANOS: f64 = 5e7;

/// One contender: a name and a closure that does `ops` operations and returns a checksum.
pub struct Contender<'a> {
    name: &'static str,
    run: Box<dyn FnMut() -> u64 + 'a>,
}

/// Makes a contender. Names of ours begin with "stepalloc", those of general allocators with "allocator".
pub fn contender<'a>(name: &'static str, run: impl FnMut() -> u64 + 'a) -> Contender<'a> {
    Contender {
        name,
        run: Box::new(run),
    }
}

/// Runs the contenders in shuffled turns, and prints their medians and ratios.
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
    let mut order = Rounds::new(0..contenders.len(), 0x5eed);
    for _ in 0..rounds.clamp(ROUNDS, 100 * ROUNDS) {
        for &who in order.next_round() {
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
    let medians: Vec<Option<f64>> = times.into_iter().map(median).collect();
    let fastest = |wanted: fn(&str) -> bool| {
        let peers = contenders.iter().zip(&medians).filter(|(who, _)| wanted(who.name));
        peers.filter_map(|(_, &median)| median).min_by(f64::total_cmp)
    };
    let peer = fastest(|name| !name.starts_with("stepalloc") && !name.starts_with("allocator"));
    let allocator = fastest(|name| name.starts_with("allocator"));
    let mut heads = vec![
        format!("{group} (target {target:.2})"),
        "ns".into(),
        "to the fastest peer".into(),
    ];
    heads.extend(allocator.map(|_| "to the fastest allocator".into()));
    let mut table = Table::new(heads);
    for (who, &median) in contenders.iter().zip(&medians) {
        let ratio = |to: Option<f64>| figure(median.zip(to).map(|(own, to)| own / to));
        let mut row = vec![who.name.into(), figure(median), ratio(peer)];
        row.extend(allocator.map(|_| ratio(allocator)));
        table.row(row);
    }
    println!("{table}");
}

fn main() {
    groups::values();
    groups::slices();
    groups::checkpoints();
    groups::typed();
    groups::pools();
    groups::shared_pools();
}
