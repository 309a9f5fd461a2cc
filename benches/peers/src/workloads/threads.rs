//! Threads: memory after they have ended, and blocks freed by another thread than their maker.
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use stepalloc_measure::process::{self, Resident};

use crate::run::{mib_above, Run, Way};

/// Threads in turn, each of which makes 90 MB of large and 10 MB of small blocks, writes them and ends.
pub fn turns(run: &Run) {
    let threads = run.pick(200, 40);
    let in_scope = run.way == Way::Scope;
    let level = run.level();
    let (clock, mut peak) = (process::cpu_ns(), 0);
    run.begin_steady();
    for _ in 0..threads {
        let (sum, resident) = std::thread::scope(|scope| {
            let used = scope.spawn(|| {
                run_step(in_scope, || {
                    let large: Vec<Vec<u8>> = (0..45).map(|value| vec![value + 1; 2_000_000]).collect();
                    let small: Vec<Vec<u8>> = (0..10_000).map(|_| vec![1; 1000]).collect();
                    let resident = Resident::new().now();
                    let large: u64 = large.iter().map(|block| u64::from(block[block.len() - 1])).sum();
                    let small: u64 = small.iter().map(|block| u64::from(block[500])).sum();
                    (large + small, resident)
                })
            });
            used.join().expect("the thread does not panic")
        });
        assert_eq!(sum, 45 * 46 / 2 + 10_000);
        peak = peak.max(resident);
    }
    run.end_steady(threads);
    run.figure("ms", (process::cpu_ns() - clock) as f64 / 1e6 / threads as f64);
    run.figure("after_mib", mib_above(run.resident_bytes(), level));
    run.figure("peak_mib", mib_above(peak, level));
}

/// As `Run::step`, on any thread: a `Run` is its own thread's.
fn run_step<R>(in_scope: bool, f: impl FnOnce() -> R) -> R {
    match in_scope {
        true => stepalloc::arena_scope(f),
        false => f(),
    }
}

/// One thread makes blocks of 16 to 1,024 B, a scope for each 64 batches of 256; another checks and frees them.
pub fn producer_consumer(run: &Run) {
    const BATCH: usize = 256;
    let batches: usize = run.pick(8192, 2048);
    let (sender, receiver) = sync_channel::<Vec<Vec<u8>>>(32);
    let mut random = fastrand::Rng::with_seed(31);
    run.begin_steady();
    let started = Instant::now();
    let sum = std::thread::scope(|scope| {
        let consumer = scope.spawn(move || {
            let mut sum = 0;
            for batch in receiver {
                sum += batch
                    .iter()
                    .map(|block| block.len() as u64 + u64::from(block[0]))
                    .sum::<u64>();
            }
            sum
        });
        let mut expected = 0;
        for _ in 0..batches / 64 {
            run.step(|| {
                for _ in 0..64 {
                    let mut batch = Vec::with_capacity(BATCH);
                    for _ in 0..BATCH {
                        let mut block = Vec::with_capacity(random.usize(16..=1024));
                        block.push(7);
                        expected += block.len() as u64 + 7;
                        batch.push(block);
                    }
                    sender.send(batch).expect("the consumer lives");
                }
            });
        }
        drop(sender);
        let sum = consumer.join().expect("the consumer does not panic");
        assert_eq!(sum, expected);
        sum
    });
    assert!(sum > 0);
    run.end_steady(batches / 64);
    run.figure(
        "wall_ns",
        started.elapsed().as_nanos() as f64 / (batches * BATCH) as f64,
    );
}
