//! JSON documents made, written, read and compared in scopes; some of what was read escapes.

use crate::random::Random;
use crate::Shared;
use serde_json::Value;
use std::collections::HashMap;
use stepalloc::{arena_scope, outside_scope};

/// What one thread has read so far: a bounded table that is filled outside scopes, as the README advises, and now and
/// then inside one, as people do.
pub struct Corpus {
    seen: HashMap<String, usize>,
    depth: usize,
}

impl Corpus {
    pub fn new(random: &mut Random) -> Corpus {
        Corpus {
            seen: HashMap::new(),
            depth: 2 + random.below(3),
        }
    }

    /// One document.
    pub fn step(&mut self, shared: &Shared, random: &mut Random) {
        arena_scope(|| {
            let made = document(random, self.depth);
            let text = if random.below(2) == 0 {
                serde_json::to_string(&made).unwrap()
            } else {
                serde_json::to_string_pretty(&made).unwrap()
            };
            let read: Value = serde_json::from_str(&text).unwrap();
            assert!(read == made, "a document changed");
            shared.look(text.as_bytes());
            let word = format!("{}", text.len() % 500);
            if random.below(50) == 0 {
                *self.seen.entry(word).or_default() += 1;
            } else {
                outside_scope(|| *self.seen.entry(word.clone()).or_default() += 1);
            }
            if random.below(3) == 0 {
                shared.keep(random, 1 + text.len() % 2_000);
            }
        });
        if self.seen.len() > 400 {
            self.seen = HashMap::new();
        }
        shared.step_ends();
    }
}

fn document(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 4 } else { 7 }) {
        0 => Value::from(random.bits()),
        1 => Value::from(format!("{:b}", random.below(1 << 20))),
        2 => Value::from(random.below(1 << 30) as f64 / 8.0),
        3 => Value::Null,
        4 => (0..random.below(8)).map(|_| document(random, depth - 1)).collect(),
        _ => Value::Object(
            (0..random.below(9))
                .map(|n| (format!("key {n}"), document(random, depth - 1)))
                .collect(),
        ),
    }
}

/// Parses until told to stop.
pub fn run(shared: &Shared, mut random: Random) {
    let mut corpus = Corpus::new(&mut random);
    while shared.goes_on() {
        corpus.step(shared, &mut random);
    }
}
