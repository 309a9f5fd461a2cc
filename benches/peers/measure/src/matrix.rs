//! Runs every cell of a table as a process, once a round, in an order shuffled anew each round. A cell that fails or
//! hangs is reported and left out of that round; the others go on.
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One process to run: a row and a column of the table, the program and its arguments.
#[derive(Clone, Debug)]
pub struct Cell {
    pub row: String,
    pub column: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
}

/// Every figure of every round, by row, figure's name and column. `None` where that round's process failed or printed no
/// such figure.
#[derive(Default)]
pub struct Figures {
    values: BTreeMap<(String, String, String), BTreeMap<usize, f64>>,
    pub failures: Vec<String>,
    /// Take the least of the rounds where else the median is taken. The least is steadier where other work slows some
    /// rounds, and says nothing of how an allocator fares in slow ones.
    pub take_least: bool,
}

impl Figures {
    /// The figure's values, by round.
    pub fn rounds(&self, row: &str, name: &str, column: &str) -> Option<&BTreeMap<usize, f64>> {
        self.values.get(&(row.into(), name.into(), column.into()))
    }

    /// The median over the rounds.
    pub fn median(&self, row: &str, name: &str, column: &str) -> Option<f64> {
        let values = self.rounds(row, name, column)?.values().copied();
        if self.take_least {
            return values.min_by(f64::total_cmp);
        }
        crate::sample::median(values)
    }

    /// The median over the rounds of `column`'s figure to `base`'s of the same round.
    pub fn ratio(&self, row: &str, name: &str, column: &str, base: &str) -> Option<f64> {
        if self.take_least {
            return Some(self.median(row, name, column)? / self.median(row, name, base)?);
        }
        let base = self.rounds(row, name, base)?;
        let own = self.rounds(row, name, column)?;
        crate::sample::median(own.iter().filter_map(|(round, value)| Some(value / base.get(round)?)))
    }

    /// The widest spread of the row's columns.
    pub fn spread(&self, row: &str, name: &str) -> Option<f64> {
        let rows = self.values.iter().filter(|((r, n, _), _)| r == row && n == name);
        rows.filter_map(|(_, rounds)| crate::sample::spread(&rounds.values().copied().collect::<Vec<_>>()))
            .max_by(f64::total_cmp)
    }

    /// Every value, as lines of comma-separated row, figure, column, round and value.
    pub fn to_csv(&self) -> String {
        let mut lines = String::from("row,figure,column,round,value\n");
        for ((row, name, column), rounds) in &self.values {
            for (round, value) in rounds {
                lines.push_str(&format!("{row},{name},{column},{round},{value}\n"));
            }
        }
        lines
    }

    /// The names of the row's figures.
    pub fn names(&self, row: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .values
            .keys()
            .filter(|(r, ..)| r == row)
            .map(|(_, name, _)| name.clone())
            .collect();
        names.dedup();
        names
    }
}

/// Builds all binaries of the package at `manifest_dir` into the target folder that the running driver stands in, and
/// returns the folder of the binaries.
///
/// # Errors
/// When cargo fails.
pub fn build_binaries(manifest_dir: &str) -> Result<PathBuf, String> {
    let driver = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = driver.parent().ok_or("the driver stands in no folder")?.to_path_buf();
    let target = folder.parent().ok_or("the driver stands in no target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--bins", "--quiet", "--manifest-path"])
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

/// Runs all cells `rounds` times. A process that takes longer than `limit` is ended.
pub fn run(cells: &[Cell], rounds: usize, limit: Duration, seed: u64) -> Figures {
    let mut figures = Figures::default();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut order: Vec<&Cell> = cells.iter().collect();
    let (started, total) = (Instant::now(), rounds * cells.len());
    let terminal = std::io::stderr().is_terminal();
    let mut done = 0;
    for round in 0..rounds {
        random.shuffle(&mut order);
        for cell in &order {
            match run_cell(cell, limit) {
                Ok(lines) => {
                    for (name, value) in lines {
                        let key = (cell.row.clone(), name, cell.column.clone());
                        figures.values.entry(key).or_default().insert(round, value);
                    }
                }
                Err(error) => {
                    let failure = format!("{} on {}, round {round}: {error}", cell.row, cell.column);
                    eprintln!("{}{failure}", if terminal { "\r\x1b[K" } else { "" });
                    figures.failures.push(failure);
                }
            }
            done += 1;
            let seconds = started.elapsed().as_secs();
            if terminal {
                eprint!(
                    "\r\x1b[K{done}/{total} processes, {seconds} s, last {} on {}",
                    cell.row, cell.column
                );
                let _ = std::io::stderr().flush();
            } else if done % 50 == 0 || done == total {
                eprintln!("{done}/{total} processes, {seconds} s");
            }
        }
    }
    if terminal {
        eprintln!();
    }
    figures
}

fn run_cell(cell: &Cell, limit: Duration) -> Result<Vec<(String, f64)>, String> {
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
