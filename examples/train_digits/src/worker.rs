//! A whole training run in this process, under the allocator that the binary has installed.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use candle_core::Device;
use clap::{value_parser, Args, Parser};
use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::data::Digits;
use crate::message::{Message, Outcome, Seen};
use crate::model::{Batches, Mlp};
use crate::usage;

/// Steps at the start that are trained but not timed: the first faults its memory in under any allocator.
const WARM_UP_STEPS: usize = 5;
/// Steps in counted scopes after the timed ones; a counted scope costs time, so none is both.
const COUNTED_STEPS: usize = 10;

/// What to train, the same for every worker.
#[derive(Debug, Clone, Args)]
pub struct Training {
    /// Passes over the training digits
    #[arg(long, default_value_t = 12, value_parser = value_parser!(u32).range(1..=10_000))]
    pub epochs: u32,
    /// Digits a step
    #[arg(long, default_value_t = 128, value_parser = value_parser!(u32).range(1..))]
    pub batch: u32,
    /// Width of the two hidden layers
    #[arg(long, default_value_t = 512, value_parser = value_parser!(u32).range(1..=16_384))]
    pub hidden: u32,
    /// Seed of the split, the initial weights and the shuffles
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// CSV to train on, plain or gzip: 64 pixels of 0 to 16, then the label [default: the bundled digits]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
}

impl Training {
    /// The arguments that tell another process the same.
    pub fn to_args(&self) -> Vec<OsString> {
        let numbers = [
            ("--epochs", u64::from(self.epochs)),
            ("--batch", u64::from(self.batch)),
            ("--hidden", u64::from(self.hidden)),
            ("--seed", self.seed),
        ];
        let mut args: Vec<_> = numbers
            .iter()
            .flat_map(|(flag, n)| [(*flag).into(), n.to_string().into()])
            .collect();
        if let Some(path) = &self.data {
            let mut flag = OsString::from("--data=");
            flag.push(path);
            args.push(flag);
        }
        args
    }

    /// How many steps a run has, for `images` to train on; the rest of a pass that fills no batch is left out.
    ///
    /// # Errors
    ///
    /// Less than a batch, or nothing left to time.
    pub fn steps(&self, images: usize) -> Result<usize> {
        let batches = images / self.batch as usize;
        ensure!(
            batches > 0,
            "a batch of {} is more than the {images} digits to train on",
            self.batch
        );
        let steps = batches * self.epochs as usize;
        ensure!(
            steps > WARM_UP_STEPS,
            "{steps} steps in all, but the first {WARM_UP_STEPS} are not timed"
        );
        Ok(steps)
    }
}

#[derive(Debug, Parser)]
#[command(about = "One training run under this binary's allocator; train_digits starts it and reads what it prints")]
struct WorkerArgs {
    #[command(flatten)]
    training: Training,
    /// Open a scope around each step
    #[arg(long)]
    scopes: bool,
}

/// The `main` of a worker: trains as the command line says and prints [`Message`]s; errors go to standard error.
pub fn main() -> ExitCode {
    let WorkerArgs { training, scopes } = WorkerArgs::parse();
    match run(&training, scopes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(training: &Training, scopes: bool) -> Result<()> {
    let digits = Digits::load(training.data.as_deref())?;
    // candle runs this on a thread of its own pool, so that matrix products need no hand-over to one. A scope out
    // here would belong to the main thread and see nothing: the scopes are opened inside, around each step.
    let outcome = Device::Cpu.with_context(|| train(training, &digits, scopes))?;
    tell(&Message::Done(outcome))
}

fn tell(message: &Message) -> Result<()> {
    let line = serde_json::to_string(message)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("nobody reads what this prints")
}

fn train(training: &Training, digits: &Digits, scopes: bool) -> Result<Outcome> {
    let mut rng = ChaCha8Rng::seed_from_u64(training.seed);
    let (train, held_out) = digits.split(&mut rng)?;
    let steps = training.steps(train.len())?;
    let mut order: Vec<u32> = (0..train.len() as u32).collect();
    let (train, held_out) = (Batches::new(&train)?, Batches::new(&held_out)?);
    let mut model = Mlp::new(training.hidden as usize, &mut rng)?;

    // What lives longer than a step is made before the scopes open.
    let batch = training.batch as usize;
    let mut loss_bits = Vec::with_capacity(steps);
    let mut step_nanos = Vec::with_capacity(steps);
    let mut step_faults = Vec::with_capacity(steps);
    let mut first_step = None;

    for _ in 0..training.epochs {
        order.shuffle(&mut rng);
        for rows in order.chunks_exact(batch) {
            let step = loss_bits.len();
            let faults_before = usage::page_faults();
            let start = Instant::now();
            let loss = match scopes {
                false => model.step(&train, rows)?,
                true if step == 0 => {
                    let (loss, report) = stepalloc::arena_scope_report(|| model.step(&train, rows));
                    first_step = Some(Seen::from(report));
                    loss?
                }
                true => stepalloc::arena_scope(|| model.step(&train, rows))?,
            };
            let nanos = start.elapsed().as_nanos() as u64;
            loss_bits.push(loss.to_bits());
            if step >= WARM_UP_STEPS {
                step_nanos.push(nanos);
                step_faults.extend(
                    faults_before
                        .zip(usage::page_faults())
                        .map(|(before, after)| after - before),
                );
            }
        }
        tell(&Message::Steps(loss_bits.len()))?;
    }

    let accuracy = model.accuracy(&held_out)?;
    let peak_resident_bytes = usage::peak_resident_bytes();
    let mut counted_steps = Vec::new();
    if scopes {
        for rows in order.chunks_exact(batch).cycle().take(COUNTED_STEPS) {
            let (loss, report) = stepalloc::arena_scope_report(|| model.step(&train, rows));
            loss?;
            counted_steps.push(Seen::from(report));
        }
    }
    Ok(Outcome {
        loss_bits,
        accuracy,
        step_nanos,
        step_faults,
        peak_resident_bytes,
        first_step,
        counted_steps,
    })
}
