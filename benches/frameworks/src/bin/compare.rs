//! Runs every program on every allocator, in interleaved rounds of processes, and prints Markdown tables. Ends with an
//! error where a process failed or where the losses of a program are not the same in every bit.
use std::ffi::OsString;

use clap::Parser;
use stepalloc_frameworks::programs::{Entry, PROGRAMS};
use stepalloc_measure::driver::Common;
use stepalloc_measure::figures::Figures;
use stepalloc_measure::matrix::{self, Cell};
use stepalloc_measure::table::{figure, Table};

/// A column: its name, its binary, and how its steps run.
struct Column {
    name: &'static str,
    binary: &'static str,
    way: &'static str,
}

const fn column(name: &'static str, binary: &'static str, way: &'static str) -> Column {
    Column { name, binary, way }
}

const COLUMNS: [Column; 5] = [
    column("System", "on-system", "plain"),
    column("mimalloc", "on-mimalloc", "plain"),
    column("jemalloc", "on-jemalloc", "plain"),
    column("stepalloc", "on-stepalloc", "scope"),
    column("stepalloc-outside", "on-stepalloc", "plain"),
];

/// The column that the aims are for.
const OURS: &str = "stepalloc";
/// A step's time to `System`'s is at most this ...
const TIME_AIM: f64 = 0.97;
/// ... at this resident memory to `System`'s.
const PEAK_AIM: f64 = 1.05;

/// Real training steps under several allocators.
#[derive(Parser)]
struct Options {
    /// Only programs whose name begins so (may be given again)
    #[arg(long, value_name = "PROGRAM")]
    only: Vec<String>,
    #[command(flatten)]
    common: Common,
    /// Threads of the framework (may be given again) [default: 1 and 2]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Vec<u16>,
    /// A fifth of the steps
    #[arg(long)]
    quick: bool,
    /// Show the programs and columns, and run nothing
    #[arg(long)]
    list: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = Options::parse();
    if options.list {
        list();
        return Ok(());
    }
    if let Some(name) = options.common.unknown(COLUMNS.iter().map(|column| column.name)) {
        return Err(format!("no column is called {name}; --list shows them").into());
    }
    if options.common.rounds == 0 {
        return Err("no rounds, no figures".into());
    }
    if options.threads.is_empty() {
        options.threads = vec![1, 2];
    }
    let columns: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| options.common.runs(column.name))
        .collect();
    let fits = |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.starts_with(part.as_str()));
    let programs: Vec<&Entry> = PROGRAMS.iter().filter(|entry| fits(entry.name)).collect();
    if programs.is_empty() {
        return Err("no program begins so; --list shows them".into());
    }
    // The binaries know the programs that the driver knows.
    let flags: &[&str] = if cfg!(feature = "burn") {
        &[]
    } else {
        &["--no-default-features"]
    };
    let binaries = options.common.binaries(env!("CARGO_MANIFEST_DIR"), flags)?;
    let (mut rows, mut cells) = (Vec::new(), Vec::new());
    for entry in &programs {
        for threads in &options.threads {
            let row = format!("{}-{threads}t", entry.name);
            let steps = if options.quick { entry.quick_steps } else { entry.steps };
            for column in &columns {
                cells.push(Cell {
                    row: row.clone(),
                    column: column.name.into(),
                    program: binaries.join(column.binary),
                    arguments: [entry.name, column.way, &threads.to_string(), &steps.to_string()]
                        .map(OsString::from)
                        .to_vec(),
                    figure: None,
                });
            }
            rows.push(row);
        }
    }
    let mut figures = matrix::run(&cells, &options.common.plan())?;
    figures.take_least = options.common.least;
    report(&rows, &columns, &figures, &options);
    let differing: Vec<String> = rows.iter().filter_map(|row| differs(row, &columns, &figures)).collect();
    for difference in &differing {
        eprintln!("{difference}");
    }
    match (figures.failures.len(), differing.len()) {
        (0, 0) => Ok(()),
        (failed, differing) => Err(format!("{failed} processes failed, the losses of {differing} rows differ").into()),
    }
}

fn list() {
    let mut table = Table::new(["program", "what"]);
    for entry in PROGRAMS {
        table.row([entry.name, entry.what]);
    }
    println!("{table}\ncolumns: {}", COLUMNS.map(|column| column.name).join(", "));
}

/// The row's columns and rounds whose losses are not those of the first that ran.
fn differs(row: &str, columns: &[&Column], figures: &Figures) -> Option<String> {
    let mut first = None;
    for column in columns {
        for (round, losses) in figures.rounds(row, "losses", column.name).into_iter().flatten() {
            match first {
                None => first = Some((column.name, losses)),
                Some((_, expected)) if expected == losses => {}
                Some((base, _)) => {
                    return Some(format!(
                        "{row}: losses on {}, round {round}, are not those on {base}",
                        column.name
                    ));
                }
            }
        }
    }
    None
}

fn report(rows: &[String], columns: &[&Column], figures: &Figures, options: &Options) {
    let quick = if options.quick { ", quick" } else { "" };
    let taken = options.common.taken();
    println!("{taken} of {} rounds{quick}.\n", options.common.rounds);

    println!("The aim: a step of {TIME_AIM} of System's at resident memory of {PEAK_AIM} of System's.\n");
    let heads = [
        "program",
        "CPU time",
        "",
        "wall time",
        "peak resident",
        "",
        "spread of the time",
    ];
    let mut table = Table::new(heads);
    for row in rows {
        let ratio = |name: &str| figures.ratio(row, name, OURS, "System");
        let (time, peak) = (ratio("ms"), ratio("peak_mib"));
        if time.is_none() {
            continue;
        }
        let spread = figures.spread(row, "ms");
        table.row([
            row.clone(),
            figure(time),
            verdict(time, TIME_AIM),
            figure(ratio("wall_ms")),
            figure(peak),
            verdict(peak, PEAK_AIM),
            spread.map_or("–".into(), |spread| format!("±{:.0} %", spread * 100.0)),
        ]);
    }
    println!("{table}");

    let heads = || {
        ["program", "figure"]
            .into_iter()
            .chain(columns.iter().map(|column| column.name))
    };
    println!("To System's in the same round:\n");
    let mut table = Table::new(heads());
    for row in rows {
        for name in ["ms", "wall_ms", "peak_mib"] {
            let cells = columns
                .iter()
                .map(|column| figure(figures.ratio(row, name, column.name, "System")));
            table.row([row.clone(), name.to_string()].into_iter().chain(cells));
        }
    }
    println!("{table}");

    println!("Absolute (ms CPU and wall time of a step, page faults a step, MiB; less is better):\n");
    let mut table = Table::new(heads());
    for row in rows {
        for name in ["ms", "wall_ms", "faults", "peak_mib"] {
            let cells = columns
                .iter()
                .map(|column| figure(figures.median(row, name, column.name)));
            table.row([row.clone(), name.to_string()].into_iter().chain(cells));
        }
    }
    println!("{table}");
}

fn verdict(ratio: Option<f64>, at_most: f64) -> String {
    if ratio.is_some_and(|ratio| ratio <= at_most) {
        "yes".into()
    } else {
        "**no**".into()
    }
}
