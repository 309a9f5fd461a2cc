//! The explicit pieces beside their peers:
//!
//! ```sh
//! cargo run --release --manifest-path benches/explicit/Cargo.toml            # everything, some 15 seconds
//! cargo run --release --manifest-path benches/explicit/Cargo.toml -- scope   # the groups whose name contains it
//! cargo run --release --manifest-path benches/explicit/Cargo.toml -- --csv explicit.csv
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

use std::cell::RefCell;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use stepalloc_measure::figures::Figures;
use stepalloc_measure::rounds::Rounds;
use stepalloc_measure::sample::median;
use stepalloc_measure::table::{figure, Table};

/// How often each contender runs at least; the median is over these.
const ROUNDS: usize = 301;

/// Into how many parts a contender's times are put together for the file of values.
const PARTS: usize = 15;

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

/// The explicit pieces beside their peers.
#[derive(Parser)]
struct Options {
    /// Only the groups whose name contains this
    wanted: Option<String>,
    /// Also write the times here, comma-separated: of each contender the medians of so many parts of the run as
    /// confidence intervals need, as its rounds
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// As few rounds as run at all: to see that it works
    #[arg(long)]
    quick: bool,
}

/// The bench as it runs: what was asked for, and what came of it.
pub struct Bench {
    options: Options,
    figures: RefCell<Figures>,
}

impl Bench {
    /// Runs the contenders in shuffled turns, and prints their medians and ratios.
    pub fn compare(&self, group: &str, ops: u64, target: f64, mut contenders: Vec<Contender<'_>>) {
        if self
            .options
            .wanted
            .as_ref()
            .is_some_and(|wanted| !group.contains(wanted.as_str()))
        {
            return;
        }
        let mut times = vec![Vec::with_capacity(ROUNDS); contenders.len()];
        let start = Instant::now();
        let expected = (contenders[0].run)();
        let rounds = (LEAST_NANOS / start.elapsed().as_nanos() as f64) as usize;
        let mut order = Rounds::new(0..contenders.len(), 0x5eed);
        let rounds = if self.options.quick {
            PARTS
        } else {
            rounds.clamp(ROUNDS, 100 * ROUNDS)
        };
        for _ in 0..rounds {
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
        for (who, times) in contenders.iter().zip(&times) {
            for (part, times) in times.chunks(times.len().div_ceil(PARTS)).enumerate() {
                let time = median(times.iter().copied()).expect("no part is empty");
                self.figures
                    .borrow_mut()
                    .insert(&plain(group), "ns", &plain(who.name), part, time);
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
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bench = Bench {
        options: Options::parse(),
        figures: RefCell::default(),
    };
    groups::values(&bench);
    groups::slices(&bench);
    groups::checkpoints(&bench);
    groups::typed(&bench);
    groups::pools(&bench);
    groups::shared_pools(&bench);
    if let Some(path) = &bench.options.csv {
        std::fs::write(path, bench.figures.borrow().to_csv())?;
    }
    Ok(())
}

/// A name without the commas that part a file of values.
fn plain(name: &str) -> String {
    name.replace(',', ";")
}
