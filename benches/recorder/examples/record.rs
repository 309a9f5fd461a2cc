//! A small program with steps, recorded: `STEPALLOC_TRACE=small.trace cargo run --release --example record`.
//!
//! It prints how many blocks it made in steps, so that a test can hold the recording against that.
use std::collections::BTreeMap;
use std::hint::black_box;

use stepalloc_recorder::{finish, is_recording, step, Recorder};

#[global_allocator]
static GLOBAL: Recorder = Recorder::new();

const STEPS: usize = 30;

fn main() {
    let mut kept: Vec<String> = Vec::with_capacity(STEPS);
    let mut sum = 0;
    for number in 0..STEPS {
        step(|| {
            let boxes: Vec<Box<usize>> = (0..1000).map(Box::new).collect();
            let zeroed = black_box(vec![0_u8; 100_000]);
            let mut grown = Vec::new();
            grown.extend(boxes.iter().map(|value| **value));
            grown.reserve_exact(10_000);
            let map: BTreeMap<usize, usize> = grown.iter().map(|&value| (value, value)).collect();
            sum += map.len() + usize::from(zeroed[number]);
            kept.push(format!("step {number}"));
            // Blocks made on another thread and freed on this one.
            let made = std::thread::spawn(|| (0..100).map(|value| Box::new([value; 8])).collect::<Vec<_>>());
            sum += made.join().expect("the thread ends").len();
        });
    }
    assert_eq!((sum, kept.len()), (STEPS * 1100, STEPS));
    let recorded = is_recording();
    finish();
    println!("{} {}", STEPS, if recorded { "recorded" } else { "not recorded" });
}
