//! Trains the same model under std's allocator and under stepalloc, in processes in turn, and compares the runs:
//! `cargo run --release -p train_digits`
#![forbid(unsafe_code)]

mod compare;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{bail, ensure, Context, Result};
use clap::{value_parser, Parser};
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use train_digits::data::Digits;
use train_digits::message::{Message, Outcome};
use train_digits::worker::Training;

use compare::{Variant, VARIANTS};

/// Trains a digit classifier with candle under std's allocator, under stepalloc, and under stepalloc with a scope a
/// step; fails if the runs differ in any bit of any loss, or if the model does not reach 95 % on held-out digits
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    training: Training,
    /// Runs of each of the three, in turn
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Threads of candle's matrix products; at this size a second one gains nothing, and makes the times unsteady
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=1_024))]
    threads: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the comparison and prints it; `false` where the runs do not agree or the model is poor.
fn run(
    Arguments {
        training,
        rounds,
        threads,
    }: &Arguments,
) -> Result<bool> {
    // Bad data is found here, before anything is started.
    let digits = Digits::load(training.data.as_deref())?;
    let (train, held_out) = digits.split(&mut rand_chacha::ChaCha8Rng::seed_from_u64(training.seed))?;
    let steps = training.steps(train.len())?;
    let workers = find_workers()?;
    if cfg!(debug_assertions) {
        eprintln!("built without --release: slow, and the times say nothing");
    }
    println!(
        "{} digits to train on, {} held out; 64-{h}-{h}-10, {steps} steps of {} digits a run",
        train.len(),
        held_out.len(),
        training.batch,
        h = training.hidden
    );

    // Drawn on standard error, and only where that is a terminal.
    let bar = ProgressBar::new(u64::from(*rounds) * (VARIANTS.len() * steps) as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left  {msg}").expect("a valid template"),
    );
    let mut runs: [Vec<Outcome>; VARIANTS.len()] = Default::default();
    for round in 0..*rounds as usize {
        // Each round begins with another one, so that none is always the first.
        for turn in 0..VARIANTS.len() {
            let index = (round + turn) % VARIANTS.len();
            let variant = &VARIANTS[index];
            bar.set_message(variant.name);
            let outcome = run_worker(&workers, variant, training, *threads, &bar).context(variant.name)?;
            bar.suspend(|| {
                println!(
                    "round {}: {:<23} {}",
                    round + 1,
                    variant.name,
                    compare::one_line(&outcome)
                )
            });
            runs[index].push(outcome);
        }
    }
    bar.finish_and_clear();

    println!("\n{}", compare::table(&runs));
    println!("{}", compare::what_scopes_saw(&runs));
    let faults = compare::verdict(&runs);
    for fault in &faults {
        eprintln!("FAILED: {fault}");
    }
    if faults.is_empty() {
        let count: usize = runs.iter().map(Vec::len).sum();
        println!("all {count} runs agree in every bit of every loss");
    }
    Ok(faults.is_empty())
}

/// Runs one worker to its end, moving `bar` on as it goes.
fn run_worker(
    folder: &Path,
    variant: &Variant,
    training: &Training,
    threads: u32,
    bar: &ProgressBar,
) -> Result<Outcome> {
    let path = executable(folder, variant.worker);
    let start = bar.position();
    let mut command = Command::new(&path);
    command
        .args(training.to_args())
        .args(variant.scopes.then_some("--scopes"));
    // How candle, and rayon below it, are told.
    command.env("RAYON_NUM_THREADS", threads.to_string());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", path.display()))?;
    let mut outcome = None;
    for line in BufReader::new(child.stdout.take().expect("its output is piped")).lines() {
        match serde_json::from_str(&line?).context("the worker is of another version; build it again")? {
            Message::Steps(done) => bar.set_position(start + done as u64),
            Message::Done(done) => outcome = Some(done),
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "the worker ended with {status}");
    outcome.context("the worker ended without a result")
}

/// The folder of the workers: this program's own.
///
/// `cargo run` builds only the binary that it runs, so under cargo the others are built here (a moment: what they
/// share is built already).
fn find_workers() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    let folder = own.parent().context("this program is in no folder")?;
    if let Some(cargo) = env::var_os("CARGO") {
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let status = Command::new(cargo)
            .args([
                "build",
                "--quiet",
                "--bins",
                "--profile",
                profile,
                "--manifest-path",
                manifest,
            ])
            .status()
            .context("cannot start cargo")?;
        ensure!(status.success(), "the workers cannot be built");
    }
    for variant in VARIANTS {
        let path = executable(folder, variant.worker);
        if !path.is_file() {
            bail!(
                "{} is missing; build it with `cargo build --release -p train_digits`",
                path.display()
            );
        }
    }
    Ok(folder.to_path_buf())
}

fn executable(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).with_extension(env::consts::EXE_EXTENSION)
}
