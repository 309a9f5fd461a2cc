//! Replays every recording under every allocator, in interleaved rounds of processes, and prints Markdown tables.
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;
use stepalloc_measure::driver::Common;
use stepalloc_measure::figures::Figures;
use stepalloc_measure::matrix::{self, Cell};
use stepalloc_measure::sample;
use stepalloc_measure::table::{figure, with_interval, Table};
use stepalloc_traces::plan;
use stepalloc_traces::trace::Trace;

/// Column, binary, scopes, and whether it follows a plan.
const WAYS: [(&str, &str, &str, bool); 7] = [
    ("System", "replay-on-system", "none", false),
    ("mimalloc", "replay-on-mimalloc", "none", false),
    ("jemalloc", "replay-on-jemalloc", "none", false),
    ("snmalloc", "replay-on-snmalloc", "none", false),
    ("stepalloc", "replay-on-stepalloc", "step", false),
    ("stepalloc-outside", "replay-on-stepalloc", "none", false),
    ("plan", "replay-on-system", "none", true),
];

const COLUMNS: &str =
    "Only these columns (System always runs): System, mimalloc, jemalloc, snmalloc, stepalloc, stepalloc-outside, plan";

/// Recorded allocations replayed under several allocators.
#[derive(Parser)]
#[command(mut_arg("alloc", |arg| arg.help(COLUMNS)))]
struct Options {
    /// Only recordings whose name contains this (may be given again)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    #[command(flatten)]
    common: Common,
    /// A thread for each recorded thread, instead of one for all
    #[arg(long)]
    threads: bool,
    /// Check every byte of every block instead of measuring: both thread modes, scopes by step, at random and none
    #[arg(long)]
    verify: bool,
    /// How many seeds of random scopes `--verify` tries
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Another folder of recordings (`*.trace`, `*.trace.xz`)
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/traces"))]
    folder: PathBuf,
    /// Also write the ratios to System's and their confidence intervals here
    #[arg(long, value_name = "FILE")]
    ratios: Option<PathBuf>,
    /// Seed of the order of processes, anew in each round
    #[arg(long, default_value_t = 0x5eed)]
    seed: u64,
}

struct Recording {
    name: String,
    raw: PathBuf,
    plan: PathBuf,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    if let Some(name) = options.common.unknown(WAYS.iter().map(|way| way.0)) {
        return Err(format!("no allocator is called {name}").into());
    }
    let binaries = options.common.binaries(env!("CARGO_MANIFEST_DIR"), &[])?;
    let scratch = tempfile::tempdir()?;
    let recordings = unpack(&options, scratch.path())?;
    let mut cells = Vec::new();
    for recording in &recordings {
        for (column, binary, scopes, planned) in WAYS.iter().filter(|way| options.common.runs(way.0)) {
            let mut cell = |row: &str, purpose: &str, scopes: &str, threads: bool| {
                let threads = if threads { "recorded" } else { "one" };
                let mut arguments: Vec<OsString> = vec![recording.raw.clone().into()];
                arguments.extend([purpose, scopes, threads].map(OsString::from));
                if *planned {
                    arguments.push(recording.plan.clone().into());
                }
                cells.push(Cell {
                    row: row.into(),
                    column: (*column).into(),
                    program: binaries.join(binary),
                    arguments,
                    figure: match purpose {
                        "time" => Some("cpu_ms"),
                        "memory" => Some("peak_ratio"),
                        _ => None,
                    },
                });
            };
            if options.verify {
                let mut ways = vec![scopes.to_string()];
                if *column == "stepalloc" {
                    ways.extend((0..options.seeds).map(|seed| format!("random:{seed}")));
                }
                for scopes in &ways {
                    for threads in [false, true] {
                        let row = format!("{} scopes={scopes} threads={threads}", recording.name);
                        cell(&row, "verify", scopes, threads);
                    }
                }
            } else {
                // A process for each: sampling memory takes time.
                cell(&recording.name, "time", scopes, options.threads);
                cell(&recording.name, "memory", scopes, options.threads);
            }
        }
    }
    let plan = matrix::Plan {
        rounds: if options.verify { 1 } else { options.common.rounds },
        seed: options.seed,
        ..options.common.plan()
    };
    let mut figures = matrix::run(&cells, &plan)?;
    figures.take_least = options.common.least;
    if options.verify {
        println!(
            "{} replays verified, {} failed",
            cells.len() - figures.failures.len(),
            figures.failures.len()
        );
    } else {
        report(&recordings, &figures, &options);
        if let Some(path) = &options.ratios {
            std::fs::write(path, figures.ratios_csv(|_, _| Some("System".into())))?;
        }
    }
    if figures.failures.is_empty() {
        Ok(())
    } else {
        Err(format!("{} processes failed", figures.failures.len()).into())
    }
}

/// Unpacks the chosen recordings and plans them.
fn unpack(options: &Options, scratch: &Path) -> Result<Vec<Recording>, Box<dyn std::error::Error>> {
    let mut packed: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&options.folder)? {
        packed.push(entry?.path());
    }
    packed.sort();
    let mut recordings = Vec::new();
    for path in packed {
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_packed = file_name.ends_with(".xz");
        let Some(name) = file_name.trim_end_matches(".xz").strip_suffix(".trace") else {
            continue;
        };
        if !options.only.is_empty() && !options.only.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let raw = scratch.join(format!("{name}.trace"));
        let mut bytes = std::fs::read(&path)?;
        if is_packed {
            bytes = stepalloc_trace_format::unpack(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        std::fs::write(&raw, bytes)?;
        let places = plan::pack(&Trace::load(&raw)?);
        let plan = scratch.join(format!("{name}.plan"));
        std::fs::write(
            &plan,
            places.iter().flat_map(|place| place.to_le_bytes()).collect::<Vec<u8>>(),
        )?;
        recordings.push(Recording {
            name: name.into(),
            raw,
            plan,
        });
    }
    if recordings.is_empty() {
        return Err(format!("no recording in {} fits", options.folder.display()).into());
    }
    Ok(recordings)
}

fn report(recordings: &[Recording], figures: &Figures, options: &Options) {
    let columns: Vec<&str> = WAYS
        .iter()
        .map(|way| way.0)
        .filter(|column| options.common.runs(column))
        .collect();
    let heads = || std::iter::once("trace").chain(columns.iter().copied());
    let threads = if options.threads {
        "the recorded threads"
    } else {
        "one thread"
    };
    println!("CPU time of a steady step to System's / peak resident over peak live bytes, {threads},");
    println!(
        "{} of {} rounds:\n",
        if options.common.least { "least" } else { "medians" },
        options.common.rounds
    );
    let mut table = Table::new(heads().chain(["spread of times"]));
    let mut times = vec![Vec::new(); columns.len()];
    let mut peaks = vec![Vec::new(); columns.len()];
    for Recording { name, .. } in recordings {
        let mut row = vec![name.clone()];
        for (index, column) in columns.iter().enumerate() {
            let time = figures.ratio(name, "cpu_ms", column, "System");
            let peak = figures.median(name, "peak_ratio", column);
            row.push(format!("{} / {}", three(time), three(peak)));
            times[index].extend(time);
            peaks[index].extend(peak);
        }
        row.push(
            figures
                .spread(name, "cpu_ms")
                .map_or("–".into(), |spread| format!("±{:.0} %", spread * 100.0)),
        );
        table.row(row);
    }
    let mut row = vec!["mean".to_string()];
    for (times, peaks) in times.iter().zip(&peaks) {
        let (time, peak) = (sample::mean(times.iter().copied()), sample::mean(peaks.iter().copied()));
        row.push(format!("{} / {}", three(time), three(peak)));
    }
    table.row(row);
    println!("{table}");
    println!(
        "The ratios of time with their 95 % confidence intervals, from {} rounds on:\n",
        sample::LEAST_ROUNDS
    );
    let mut table = Table::new(heads());
    for Recording { name, .. } in recordings {
        let cell = |column: &&str| {
            let interval = figures
                .interval(name, "cpu_ms", column, "System")
                .filter(|_| *column != "System");
            with_interval(figures.ratio(name, "cpu_ms", column, "System"), interval)
        };
        table.row(std::iter::once(name.clone()).chain(columns.iter().map(cell)));
    }
    println!("{table}");
    println!("ms a steady step / page faults in it / peak resident MiB:\n");
    let mut table = Table::new(heads());
    for Recording { name, .. } in recordings {
        let cell = |column: &&str| {
            let median = |what: &str| figure(figures.median(name, what, column));
            format!("{} / {} / {}", median("cpu_ms"), median("faults"), median("peak_mib"))
        };
        table.row(std::iter::once(name.clone()).chain(columns.iter().map(cell)));
    }
    println!("{table}");
}

fn three(value: Option<f64>) -> String {
    value.map_or("–".into(), |value| format!("{value:.3}"))
}
