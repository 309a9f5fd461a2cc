//! Runs every workload on every allocator, in interleaved rounds of processes, and prints Markdown tables.
use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use stepalloc_measure::driver::Common;
use stepalloc_measure::figures::Figures;
use stepalloc_measure::matrix::{self, Cell};
use stepalloc_measure::table::{figure, with_interval, Table};
use stepalloc_measure::{sample, syscalls};
use stepalloc_peers::workloads::{Arenas, Workload, WORKLOADS};

/// A column: its name, its binary, how its steps run, and whether it is one of the peers that are compared with.
struct Column {
    name: &'static str,
    binary: &'static str,
    way: &'static str,
    is_peer: bool,
}

const fn column(name: &'static str, binary: &'static str, way: &'static str, is_peer: bool) -> Column {
    Column {
        name,
        binary,
        way,
        is_peer,
    }
}

const COLUMNS: [Column; 15] = [
    column("System", "on-system", "plain", true),
    column("mimalloc", "on-mimalloc", "plain", true),
    column("jemalloc", "on-jemalloc", "plain", true),
    column("snmalloc", "on-snmalloc", "plain", true),
    column("rpmalloc", "on-rpmalloc", "plain", true),
    column("stepalloc", "on-stepalloc", "scope", false),
    column("stepalloc-outside", "on-stepalloc", "plain", false),
    column("stepalloc-mimalloc", "on-stepalloc-mimalloc", "scope", false),
    column("stepalloc-mimalloc-outside", "on-stepalloc-mimalloc", "plain", false),
    column("bumpalo", "on-system", "bumpalo", false),
    column("bump-scope", "on-system", "bump-scope", false),
    column("blink-alloc", "on-system", "blink-alloc", false),
    column("typed-arena", "on-system", "typed-arena", false),
    column("bump", "on-bump", "bump", false),
    column("kept", "on-system", "kept", false),
];

/// The column that the aims are for.
const OURS: &str = "stepalloc";

/// What a figure is compared with.
enum Of {
    /// The best peer's.
    Peer,
    /// This column's.
    Column(&'static str),
    /// Nothing: it is an absolute figure.
    One,
}

/// `(row, figure, at most, of)`; a row ending in `*` stands for the geometric mean of the rows that begin so.
const AIMS: [(&str, &str, f64, Of); 37] = [
    ("pair-*", "ns", 0.75, Of::Peer),
    ("batch-1000-*", "ns", 0.45, Of::Peer),
    ("batch-100000-*", "ns", 0.45, Of::Peer),
    ("rc-graph", "ns", 0.78, Of::Peer),
    ("json", "ns", 0.82, Of::Peer),
    ("tensor-small", "ms", 1.0, Of::Peer),
    ("tensor-medium", "ms", 1.0, Of::Peer),
    ("tensor-large", "ms", 0.9, Of::Peer),
    ("tensor-small", "ms", 1.05, Of::Column("kept")),
    ("tensor-medium", "ms", 1.05, Of::Column("kept")),
    ("tensor-large", "ms", 1.05, Of::Column("kept")),
    ("tensor-medium", "faults", 0.0, Of::One),
    ("tensor-large", "faults", 0.0, Of::One),
    ("tensor-medium", "peak_mib", 1.05, Of::Column("kept")),
    ("tensor-large", "peak_mib", 1.05, Of::Column("kept")),
    ("vec-256mb", "ms", 0.4, Of::Peer),
    ("zeroed-64mb", "ms", 1.0, Of::Peer),
    ("enter-leave", "ns", 1.0, Of::Peer),
    ("enter-leave-depth-8", "ns", 1.0, Of::Peer),
    ("producer-consumer", "wall_ns", 0.9, Of::Peer),
    ("drift", "peak_over_live", 2.1, Of::One),
    ("replace-16-1024", "resident_over_live", 1.5, Of::One),
    ("replace-16-128", "resident_over_live", 1.5, Of::One),
    ("replace-16-32", "resident_over_live", 1.7, Of::One),
    ("replace-16-1024", "ns", 1.0, Of::Peer),
    ("replace-16-128", "ns", 1.0, Of::Peer),
    ("replace-16-32", "ns", 1.0, Of::Peer),
    ("escapee-first", "bytes_a_kept_block", 40.0, Of::One),
    ("escapee-middle", "bytes_a_kept_block", 40.0, Of::One),
    ("escapee-last", "bytes_a_kept_block", 40.0, Of::One),
    ("escapee-first", "last_to_first", 1.3, Of::One),
    ("escapee-middle", "last_to_first", 1.3, Of::One),
    ("escapee-last", "last_to_first", 1.3, Of::One),
    ("thread-turns", "after_mib", 64.0, Of::One),
    ("collections", "ns", 1.0, Of::Peer),
    ("grow-small", "ns", 1.0, Of::Peer),
    ("escape-*", "ns", 1.0, Of::Peer),
];

/// stepalloc beside the general allocators.
#[derive(Parser)]
struct Options {
    /// Only workloads whose name begins so (may be given again)
    #[arg(long, value_name = "WORKLOAD")]
    only: Vec<String>,
    #[command(flatten)]
    common: Common,
    /// A tenth to a third of the work in each process
    #[arg(long)]
    quick: bool,
    /// Also write the ratios to System's and their confidence intervals here
    #[arg(long, value_name = "FILE")]
    ratios: Option<PathBuf>,
    /// Do not count system calls, in a run of its own after the rounds (they are counted where there is an strace)
    #[arg(long)]
    no_syscalls: bool,
    /// Show the workloads and columns, and run nothing
    #[arg(long)]
    list: bool,
    /// Only say how many processes it would run
    #[arg(long)]
    count: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    if options.list {
        list();
        return Ok(());
    }
    if let Some(name) = options.common.unknown(COLUMNS.iter().map(|column| column.name)) {
        return Err(format!("no column is called {name}; --list shows them").into());
    }
    let chosen_row = |row: &Workload| options.only.is_empty() || options.only.iter().any(|part| fits(row.name, part));
    let rows: Vec<&Workload> = WORKLOADS.iter().filter(|row| chosen_row(row)).collect();
    let columns: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| options.common.runs(column.name))
        .collect();
    if rows.is_empty() {
        return Err("no workload begins so; --list shows them".into());
    }
    let binaries = options.common.binaries(env!("CARGO_MANIFEST_DIR"), &[])?;
    let mut cells = Vec::new();
    for row in &rows {
        for column in columns.iter().filter(|column| can_run(column, row)) {
            let length = if options.quick { "quick" } else { "full" };
            cells.push(Cell {
                row: row.name.into(),
                column: column.name.into(),
                program: binaries.join(column.binary),
                arguments: [row.name, column.way, length].map(OsString::from).to_vec(),
                figure: None,
            });
        }
    }
    let counts = !options.no_syscalls && syscalls::can_count();
    let plan = matrix::Plan {
        counts_syscalls: counts,
        ..options.common.plan()
    };
    if options.count {
        println!("{}", plan.processes(cells.len()));
        return Ok(());
    }
    let mut figures = matrix::run(&cells, &plan)?;
    figures.take_least = options.common.least;
    println!(
        "{} of {} rounds{}.\n",
        options.common.taken(),
        options.common.rounds,
        if options.quick { ", quick" } else { "" }
    );
    println!("{}", aims(&rows, &columns, &figures));
    println!("Absolute (ns and wall_ns an operation, ms a step, MiB, system calls a step; less is better):\n");
    println!("{}", absolute(&rows, &columns, &figures));
    if !counts {
        println!(
            "System calls: n/a ({}).\n",
            if options.no_syscalls {
                "not asked for"
            } else {
                "there is no strace that works"
            }
        );
    }
    println!(
        "Time to System's in the same round [95 % confidence interval, from {} rounds on]:\n",
        sample::LEAST_ROUNDS
    );
    println!("{}", to_system(&rows, &columns, &figures));
    println!("Outside any scope, time to the backing used directly:\n");
    println!("{}", outside(&rows, &figures));
    if let Some(path) = &options.ratios {
        std::fs::write(path, figures.ratios_csv(|_, _| Some("System".into())))?;
    }
    if figures.failures.is_empty() {
        Ok(())
    } else {
        Err(format!("{} processes failed", figures.failures.len()).into())
    }
}

fn list() {
    let mut table = Table::new(["workload", "what"]);
    for row in WORKLOADS {
        table.row([row.name, row.what]);
    }
    println!("{table}\ncolumns: {}", COLUMNS.map(|column| column.name).join(", "));
}

/// Whether the column has a way to run the row.
fn can_run(column: &Column, row: &Workload) -> bool {
    match column.way {
        "kept" => row.keeps,
        "bump" => row.bumps,
        "bumpalo" | "bump-scope" | "blink-alloc" => row.arenas != Arenas::None,
        "typed-arena" => row.arenas == Arenas::All,
        _ => true,
    }
}

/// Whether `name` begins with `part`; `part` may end in `*`.
fn fits(name: &str, part: &str) -> bool {
    name.starts_with(part.trim_end_matches('*'))
}

/// The rows that a pattern stands for: one by its whole name, or all that begin as it does.
fn matching<'r>(rows: &[&'r Workload], pattern: &str) -> Vec<&'r Workload> {
    let is_one = |row: &&&Workload| {
        if pattern.ends_with('*') {
            fits(row.name, pattern)
        } else {
            row.name == pattern
        }
    };
    rows.iter().filter(is_one).copied().collect()
}

/// The peers and their medians, least first.
fn peers(columns: &[&Column], figures: &Figures, row: &str, name: &str) -> Vec<(&'static str, f64)> {
    let peers = columns.iter().filter(|column| column.is_peer);
    let median = |column: &&Column| Some((column.name, figures.median(row, name, column.name)?));
    let mut medians: Vec<_> = peers.filter_map(median).collect();
    medians.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    medians
}

fn best_peer(columns: &[&Column], figures: &Figures, row: &str, name: &str) -> Option<(&'static str, f64)> {
    peers(columns, figures, row, name).first().copied()
}

/// Our figures where something is aimed at.
fn aims(rows: &[&Workload], columns: &[&Column], figures: &Figures) -> Table {
    let heads = [
        "work",
        "figure",
        "best peer",
        OURS,
        "to System",
        "to the best peer",
        "aim",
        "",
        "spread",
    ];
    let mut table = Table::new(heads);
    for (pattern, name, at_most, of) in &AIMS {
        let rows = matching(rows, pattern);
        let each = |ratio: &dyn Fn(&str) -> Option<f64>| {
            let values: Vec<f64> = rows.iter().filter_map(|row| ratio(row.name)).collect();
            match values.as_slice() {
                [one] => Some(*one),
                several => sample::geometric_mean(several.iter().copied()),
            }
        };
        let Some(ours) = each(&|row| figures.median(row, name, OURS)) else {
            continue;
        };
        let best = each(&|row| Some(best_peer(columns, figures, row, name)?.1));
        let mut bests: Vec<&str> = rows
            .iter()
            .filter_map(|row| Some(best_peer(columns, figures, row.name, name)?.0))
            .collect();
        bests.dedup();
        let to_best = each(&|row| Some(figures.median(row, name, OURS)? / best_peer(columns, figures, row, name)?.1));
        let to_best_rounds = rows.iter().map(|row| {
            let best = best_peer(columns, figures, row.name, name).map_or("", |best| best.0);
            figures.ratios(row.name, name, OURS, best)
        });
        let interval = sample::interval(&to_best_rounds.collect::<Vec<_>>()).filter(|_| !figures.take_least);
        let to_system = each(&|row| figures.ratio(row, name, OURS, "System"));
        let (judged, aim) = match of {
            Of::Peer => (to_best, format!("{at_most} of the best peer")),
            Of::One => (Some(ours), at_most.to_string()),
            Of::Column(base) => (
                each(&|row| figures.ratio(row, name, OURS, base)),
                format!("{at_most} of {base}"),
            ),
        };
        let verdict = match judged {
            Some(value) if value <= *at_most => "yes".into(),
            value => format!("**no** ({})", figure(value)),
        };
        let spread = rows
            .iter()
            .filter_map(|row| figures.spread(row.name, name))
            .max_by(f64::total_cmp);
        table.row([
            (*pattern).to_string(),
            (*name).to_string(),
            format!(
                "{} ({})",
                figure(best),
                if bests.len() == 1 { bests[0] } else { "each row's" }
            ),
            figure(Some(ours)),
            figure(to_system.filter(|value| value.is_finite())),
            with_interval(to_best.filter(|value| value.is_finite()), interval),
            aim,
            verdict,
            spread.map_or("–".into(), |spread| format!("±{:.0} %", spread * 100.0)),
        ]);
    }
    table
}

fn absolute(rows: &[&Workload], columns: &[&Column], figures: &Figures) -> Table {
    let mut table = Table::new(
        ["work", "figure"]
            .into_iter()
            .chain(columns.iter().map(|column| column.name)),
    );
    for row in rows {
        for name in figures.names(row.name) {
            let cells = columns
                .iter()
                .map(|column| figure(figures.median(row.name, &name, column.name)));
            table.row([row.name.to_string(), name.clone()].into_iter().chain(cells));
        }
    }
    table
}

fn times(figures: &Figures, row: &Workload) -> Vec<String> {
    let mut names = figures.names(row.name);
    names.retain(|name| ["ns", "ms", "wall_ns"].contains(&name.as_str()));
    names
}

fn to_system(rows: &[&Workload], columns: &[&Column], figures: &Figures) -> Table {
    let mut table = Table::new(["work"].into_iter().chain(columns.iter().map(|column| column.name)));
    for row in rows {
        for name in times(figures, row) {
            let cells = columns.iter().map(|column| {
                let interval = figures.interval(row.name, &name, column.name, "System");
                let interval = interval.filter(|_| column.name != "System");
                with_interval(figures.ratio(row.name, &name, column.name, "System"), interval)
            });
            table.row(std::iter::once(row.name.to_string()).chain(cells));
        }
    }
    table
}

fn outside(rows: &[&Workload], figures: &Figures) -> Table {
    let mut table = Table::new(["work", "over System", "over mimalloc"]);
    for row in rows {
        for name in times(figures, row) {
            let ratio = |column: &str, base: &str| figure(figures.ratio(row.name, &name, column, base));
            let over_mimalloc = ratio("stepalloc-mimalloc-outside", "mimalloc");
            table.row([
                row.name.to_string(),
                ratio("stepalloc-outside", "System"),
                over_mimalloc,
            ]);
        }
    }
    table
}
