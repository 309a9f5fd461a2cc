//! Trains, parses and serves in a loop for a given time, with escapees that live for a random time and threads that die
//! all along, and asserts that resident memory has no slope and that every count returns to zero.
//!
//! ```text
//! cargo run --release --manifest-path tests/soak/Cargo.toml                    one minute
//! cargo run --release --manifest-path tests/soak/Cargo.toml -- --seconds 3600  an hour
//! ... -- --leak 64         leaks so many bytes a step: it must fail
//! ... -- --keep            keeps one escapee to the end: it must fail
//! ```
//!
//! **The statistic.** Resident memory (`VmRSS`, the backing's memory too) is sampled 200 times. The first quarter is
//! warm-up. Through the other 150 samples goes a line by least squares; its rise over their time, a minute's or an hour's,
//! is the *growth*, and the run fails if that is more than `GROWTH_MOST`. Its standard error is told beside it: some 0.03
//! MiB, so that the bound is a matter of the program and not of chance. A leak of 16 bytes a step (170,000 steps a
//! second on the machine it was written on) is seen within a minute.
//!
//! **The counts.** When all threads are joined and all that they kept is dropped, no byte of an arena is in use, no
//! segment has an owner but the main thread's, and nothing fell back for want of room. Nine requests in ten of those
//! looked at in scopes were the arena's.

mod parse;
mod random;
mod serve;
mod train;

use clap::Parser;
use random::Random;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use stepalloc::StepAlloc;

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// The growth that is allowed over the measured time, MiB.
const GROWTH_MOST: f64 = 1.0;
const SAMPLES: usize = 200;

/// Trains, parses and serves, and asserts that memory has no slope.
#[derive(Parser)]
struct Options {
    /// How long it runs.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Leaks so many bytes in each step, to see that it is noticed.
    #[arg(long, default_value_t = 0)]
    leak: usize,
    /// Keeps one escapee to the end, to see that it is noticed.
    #[arg(long)]
    keep: bool,
    /// Replays the choices of a run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What all threads share.
struct Shared {
    stop: AtomicBool,
    leak: usize,
    steps: AtomicU64,
    deaths: AtomicU64,
    looked_at: AtomicU64,
    served: AtomicU64,
    kept: Mutex<Vec<Vec<u8>>>,
}

/// What a thread does until it is told to stop.
type Work = Box<dyn FnOnce(&Shared) + Send>;

/// Escapees that are kept at most; one in the way of another goes, whoever made it.
const KEPT: usize = 4_000;

impl Shared {
    /// Ends a step: counts it, and leaks if that was asked for.
    fn step_ends(&self) {
        self.steps.fetch_add(1, Relaxed);
        if self.leak != 0 {
            // Else the compiler may leave the block out: nobody reads it.
            std::mem::forget(std::hint::black_box(vec![1u8; self.leak]));
        }
    }

    /// Notes whether the arena made a block that was made in a scope.
    fn look<T>(&self, block: &[T]) {
        self.looked_at.fetch_add(1, Relaxed);
        self.served
            .fetch_add(u64::from(stepalloc::in_arena(block.as_ptr().cast())), Relaxed);
    }

    /// Keeps a block made in a scope for a random time. Each is filled with its length, and verified when it goes.
    fn keep(&self, random: &mut Random, len: usize) {
        let block = vec![len as u8; len];
        let gone = {
            let mut kept = self.kept.lock().unwrap();
            if kept.len() < KEPT {
                kept.push(block);
                return;
            }
            let place = random.below(KEPT);
            std::mem::replace(&mut kept[place], block)
        };
        assert!(
            gone.iter().all(|&byte| byte == gone.len() as u8),
            "an escapee was written"
        );
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }
}

/// Threads that live for some steps, leave escapees behind and die; another takes their place.
fn mortals(shared: &Shared, mut random: Random) {
    while shared.goes_on() {
        let seed = random.bits();
        std::thread::scope(|scope| {
            let mortal = scope.spawn(|| {
                let mut random = Random::new(seed);
                let mut corpus = parse::Corpus::new(&mut random);
                for _ in 0..random.below(30) {
                    corpus.step(shared, &mut random);
                    if random.below(8) == 0 {
                        // Forgotten: the thread dies in a scope.
                        std::mem::forget(stepalloc::ArenaScope::enter());
                    }
                }
            });
            mortal.join().unwrap();
        });
        shared.deaths.fetch_add(1, Relaxed);
    }
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Mean, growth over the whole, and its standard error, of samples at even distances.
fn fit(samples: &[f64]) -> (f64, f64, f64) {
    let count = samples.len() as f64;
    let at: Vec<f64> = (0..samples.len()).map(|at| at as f64 / (count - 1.0)).collect();
    let (slope, start): (f64, f64) = linreg::linear_regression(&at, samples).unwrap();
    let off: f64 = at
        .iter()
        .zip(samples)
        .map(|(at, sample)| (sample - start - slope * at).powi(2))
        .sum();
    // The variance of evenly spaced numbers from 0 to 1.
    let spread = at.iter().map(|at| (at - 0.5).powi(2)).sum::<f64>();
    let mean = samples.iter().sum::<f64>() / count;
    (mean, slope, (off / (count - 2.0) / spread).sqrt())
}

fn main() -> ExitCode {
    let options = Options::parse();
    let shared = Shared {
        stop: AtomicBool::new(false),
        leak: options.leak,
        steps: AtomicU64::new(0),
        deaths: AtomicU64::new(0),
        looked_at: AtomicU64::new(0),
        served: AtomicU64::new(0),
        kept: Mutex::new(Vec::with_capacity(KEPT)),
    };
    let mut samples = Vec::with_capacity(SAMPLES);
    println!("soak: {} s, seed {}", options.seconds, options.seed);
    std::thread::scope(|scope| {
        let seed = options.seed;
        let random = move |number: u64| Random::new(seed.wrapping_mul(1_000) + number);
        let workers: [(&str, Work); 4] = [
            ("train", Box::new(move |shared| train::run(shared, random(1)))),
            ("parse", Box::new(move |shared| parse::run(shared, random(2)))),
            ("serve", Box::new(move |shared| serve::run(shared, random(3)))),
            ("mortals", Box::new(move |shared| mortals(shared, random(4)))),
        ];
        let start_one = |(name, work): (&str, Work)| {
            let (shared, stop_too) = (&shared, StopOnPanic(&shared.stop));
            let run = move || {
                let stop_too = stop_too;
                work(shared);
                std::mem::forget(stop_too);
            };
            let builder = std::thread::Builder::new().name(name.into());
            builder.spawn_scoped(scope, run).unwrap()
        };
        let workers = workers.map(start_one);
        let start = Instant::now();
        for number in 1..=SAMPLES {
            let at = Duration::from_secs_f64(options.seconds * number as f64 / SAMPLES as f64);
            std::thread::sleep(at.saturating_sub(start.elapsed()));
            samples.push(resident());
            if !shared.goes_on() {
                break;
            }
        }
        shared.stop.store(true, Relaxed);
        // By handle: the end of the scope waits for closures, not for what a thread does at its end.
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    judge(&options, shared, &samples)
}

struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn judge(options: &Options, shared: Shared, samples: &[f64]) -> ExitCode {
    let mut faults = vec![];
    let (mean, growth, error) = fit(&samples[SAMPLES / 4..]);
    let (steps, deaths) = (shared.steps.load(Relaxed), shared.deaths.load(Relaxed));
    let share = shared.served.load(Relaxed) as f64 / shared.looked_at.load(Relaxed).max(1) as f64;
    println!(
        "soak: {steps} steps, {deaths} threads died, the arena served {:.1} %",
        100.0 * share
    );
    println!("soak: resident {mean:.1} MiB, growth {growth:+.2} MiB (± {error:.2}), allowed {GROWTH_MOST}");
    if growth > GROWTH_MOST {
        faults.push(format!(
            "resident memory has a slope: {growth:.2} MiB more in the measured time"
        ));
    }
    let last = if options.keep {
        shared.kept.lock().unwrap().pop()
    } else {
        None
    };
    drop(shared);
    stepalloc::trim();
    let stats = stepalloc::stats();
    println!(
        "soak: {} bytes of arenas in use at the end, {:?}",
        stats.in_use_bytes, stats.fallbacks
    );
    drop(last);
    if stats.in_use_bytes != 0 {
        faults.push(format!("{} bytes are still in use", stats.in_use_bytes));
    }
    if stats.segments > 1 {
        faults.push(format!("{} segments still have owners", stats.segments));
    }
    let fallbacks = stats.fallbacks;
    if fallbacks.total() != fallbacks.thread_ending {
        faults.push(format!("the arena refused: {fallbacks:?}"));
    }
    if share < 0.9 || steps < 1_000 || deaths < 10 {
        faults.push("too little of it ran in the arena, or at all".into());
    }
    faults.iter().for_each(|fault| println!("soak: FAILED: {fault}"));
    if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
