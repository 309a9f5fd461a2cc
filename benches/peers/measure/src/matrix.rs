//! Runs every cell of a table as a process, once a round, in an order shuffled anew each round. A cell that fails or
//! hangs is reported and left out of that round; the others go on.
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::figures::{self, Figures};
use crate::rounds::Rounds;
use crate::syscalls;

/// The figure of system calls a step.
pub(crate) const SYSCALLS: &str = "syscalls";

/// One process to run: a row and a column of the table, the program and its arguments.
#[derive(Clone, Debug)]
pub struct Cell {
    pub row: String,
    pub column: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Where several processes share a row and a column: a figure that only this one prints.
    pub figure: Option<&'static str>,
}

/// Builds all binaries of the package at `manifest_dir` into the target folder that the running driver stands in, and
/// returns the folder of the binaries.
///
/// # Errors
/// When cargo fails.
pub fn build_binaries(manifest_dir: &str, flags: &[&str]) -> Result<PathBuf, String> {
    let driver = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = driver.parent().ok_or("the driver stands in no folder")?.to_path_buf();
    let target = folder.parent().ok_or("the driver stands in no target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--bins", "--quiet"])
        .args(flags)
        .arg("--manifest-path")
        .arg(Path::new(manifest_dir).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() {
        Ok(folder)
    } else {
        Err("cargo build failed".into())
    }
}

/// How a matrix runs.
pub struct Plan<'p> {
    pub rounds: usize,
    /// A process that takes longer is ended.
    pub limit: Duration,
    pub seed: u64,
    /// Every value goes here at once, so that an interrupted run loses no more than one process.
    pub csv: Option<&'p Path>,
    /// Values that the file has already are taken from it, and their processes are not run.
    pub resume: bool,
    /// Whether, after the rounds, each cell runs once more with its last argument `counted`, for its system calls a step.
    pub counts_syscalls: bool,
}

impl Plan<'_> {
    /// How many processes it runs.
    pub fn processes(&self, cells: usize) -> usize {
        cells * (self.rounds + usize::from(self.counts_syscalls))
    }
}

/// Runs all cells, all once a round.
///
/// # Errors
/// When the file of values cannot be read or written, or holds something else. A process that fails is no error here but
/// one of the figures' failures.
pub fn run(cells: &[Cell], plan: &Plan) -> Result<Figures, String> {
    let mut figures = match plan.csv {
        Some(path) if plan.resume && path.exists() => Figures::read_csv(path)?,
        _ => Figures::default(),
    };
    let mut journal = plan.csv.map(|path| Journal::open(path, &figures)).transpose()?;
    let known = figures.processes();
    let mut order = Rounds::new(cells, plan.seed);
    let mut progress = Progress::new(plan.processes(cells.len()));
    for round in 0..plan.rounds {
        for cell in order.next_round() {
            let is_known = match cell.figure {
                Some(name) => figures
                    .rounds(&cell.row, name, &cell.column)
                    .is_some_and(|rounds| rounds.contains_key(&round)),
                None => known.contains(&(cell.row.clone(), cell.column.clone(), round)),
            };
            if is_known {
                progress.done(cell);
                continue;
            }
            match run_cell(cell, plan.limit) {
                Ok(lines) => {
                    for (name, value) in &lines {
                        figures.insert(&cell.row, name, &cell.column, round, *value);
                    }
                    if let Some(journal) = &mut journal {
                        journal.write(cell, round, &lines)?;
                    }
                }
                Err(error) => {
                    let failure = format!("{} on {}, round {round}: {error}", cell.row, cell.column);
                    progress.say(&failure);
                    figures.failures.push(failure);
                }
            }
            progress.done(cell);
        }
    }
    if plan.counts_syscalls {
        let scratch = std::env::temp_dir().join(format!("stepalloc-calls-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
        for cell in cells {
            if figures.rounds(&cell.row, SYSCALLS, &cell.column).is_none() {
                match count_calls(cell, &scratch, plan.limit) {
                    Ok(Some(calls)) => {
                        figures.insert(&cell.row, SYSCALLS, &cell.column, 0, calls);
                        if let Some(journal) = &mut journal {
                            journal.write(cell, 0, &[(SYSCALLS.into(), calls)])?;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let failure = format!("{} on {}, system calls: {error}", cell.row, cell.column);
                        progress.say(&failure);
                        figures.failures.push(failure);
                    }
                }
            }
            progress.done(cell);
        }
        let _ = std::fs::remove_dir_all(&scratch);
    }
    Ok(figures)
}

fn count_calls(cell: &Cell, scratch: &Path, limit: Duration) -> Result<Option<f64>, String> {
    let mut counted = cell.clone();
    counted.arguments.pop();
    counted.arguments.push("counted".into());
    syscalls::count(&counted, scratch, limit)
}

/// The file of values while it grows.
struct Journal {
    file: std::fs::File,
    path: PathBuf,
}

impl Journal {
    /// Begins the file anew, with what is known.
    fn open(path: &Path, known: &Figures) -> Result<Self, String> {
        let fail = |error| format!("{}: {error}", path.display());
        // By way of a second file: a stop in between keeps the old one.
        let fresh = path.with_extension("csv.new");
        std::fs::write(&fresh, known.to_csv()).map_err(fail)?;
        std::fs::rename(&fresh, path).map_err(fail)?;
        let file = std::fs::OpenOptions::new().append(true).open(path).map_err(fail)?;
        Ok(Journal {
            file,
            path: path.into(),
        })
    }

    /// A process's values, in one piece.
    fn write(&mut self, cell: &Cell, round: usize, values: &[(String, f64)]) -> Result<(), String> {
        let lines = values
            .iter()
            .map(|(name, value)| figures::csv_line(&cell.row, name, &cell.column, round, *value));
        let written = self.file.write_all(lines.collect::<String>().as_bytes());
        written.map_err(|error| format!("{}: {error}", self.path.display()))
    }
}

/// Says how far the run is, on standard error: in place on a terminal, else in lines. A program that shows progress
/// itself sets `STEPALLOC_PROGRESS` and gets a line for each process.
struct Progress {
    started: Instant,
    done: usize,
    total: usize,
    is_terminal: bool,
    lines_every: usize,
}

impl Progress {
    fn new(total: usize) -> Self {
        Progress {
            started: Instant::now(),
            done: 0,
            total,
            is_terminal: std::io::stderr().is_terminal(),
            lines_every: if std::env::var_os("STEPALLOC_PROGRESS").is_some() {
                1
            } else {
                50
            },
        }
    }

    fn say(&self, line: &str) {
        eprintln!("{}{line}", if self.is_terminal { "\r\x1b[K" } else { "" });
    }

    fn done(&mut self, cell: &Cell) {
        self.done += 1;
        let (done, total, seconds) = (self.done, self.total, self.started.elapsed().as_secs());
        if self.is_terminal {
            let end = if done == total { "\n" } else { "" };
            let Cell { row, column, .. } = cell;
            eprint!("\r\x1b[K{done}/{total} processes, {seconds} s, last {row} on {column}{end}");
            let _ = std::io::stderr().flush();
        } else if done.is_multiple_of(self.lines_every) || done == total {
            eprintln!("{done}/{total} processes, {seconds} s");
        }
    }
}

pub(crate) fn run_cell(cell: &Cell, limit: Duration) -> Result<Vec<(String, f64)>, String> {
    let mut child = Command::new(&cell.program)
        .args(&cell.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("cannot run {}: {error}", cell.program.display()))?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            break status;
        }
        if started.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("ended after {} s", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // A child prints a few lines, less than a pipe holds, so it never waits for this read.
    let mut output = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut output).map_err(|error| error.to_string())?;
    }
    if !status.success() {
        return Err(format!("failed: {status}"));
    }
    let parse = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((
            name.to_string(),
            value.parse::<f64>().ok().filter(|value| value.is_finite())?,
        ))
    };
    output
        .lines()
        .map(|line| parse(line).ok_or(format!("printed {line:?}, not `name value`")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_run_goes_on_with_what_is_missing() {
        let folder = std::env::temp_dir().join(format!("stepalloc-matrix-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (csv, log) = (folder.join("values.csv"), folder.join("log"));
        let cell = |row: &str| Cell {
            row: row.into(),
            column: "System".into(),
            program: "sh".into(),
            arguments: [
                "-c".into(),
                format!("echo {row} >> {}; echo ns 1", log.display()).into(),
            ]
            .to_vec(),
            figure: None,
        };
        let cells = [cell("one"), cell("two")];
        let plan = |resume| Plan {
            rounds: 3,
            limit: Duration::from_secs(60),
            seed: 1,
            csv: Some(&csv),
            resume,
            counts_syscalls: false,
        };
        let runs = || std::fs::read_to_string(&log).unwrap().lines().count();
        let whole = run(&cells, &plan(false)).unwrap().to_csv();
        assert_eq!(runs(), 6);
        let written = std::fs::read_to_string(&csv).unwrap();
        let mut lines: Vec<&str> = written.lines().collect();
        assert_eq!(lines.len(), 7);
        // Stopped within the last line.
        let torn = lines.pop().unwrap();
        std::fs::write(&csv, lines.join("\n") + "\n" + &torn[..torn.len() - 1]).unwrap();
        assert_eq!(run(&cells, &plan(true)).unwrap().to_csv(), whole);
        assert_eq!(runs(), 7);
        assert_eq!(Figures::read_csv(&csv).unwrap().to_csv(), whole);
        run(&cells, &plan(true)).unwrap();
        assert_eq!(runs(), 7);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
