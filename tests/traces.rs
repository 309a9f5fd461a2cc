//! Recorded allocations of six real training programs, replayed: each block filled with a pattern of its own when made
//! and verified whole when resized or freed; on one thread, and with a thread for each recorded one in the recorded
//! order; in a scope for each step, in scopes at random, and outside any.
//!
//! The allocator is a value used by hand, not the global one, so that the replay's own tables are elsewhere.

mod support;

use std::alloc::Layout;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::thread;
use stepalloc::{in_arena, outside_scope, scope_depth, ArenaScope, StepAlloc};
use stepalloc_trace_format::{Op, Record};
use support::block::Block;
use support::random::Random;

static ARENA: StepAlloc = StepAlloc::new().large_threshold(LARGE);
/// From this size blocks outside scopes are the arena's too.
const LARGE: usize = 128 * 1024;

/// A recording's records; what they mean stands in `tests/traces/README.md`.
fn decode(path: &Path) -> Vec<Record> {
    let bytes = stepalloc_trace_format::unpack(&std::fs::read(path).unwrap()).unwrap();
    stepalloc_trace_format::records(&bytes).map(Result::unwrap).collect()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scopes {
    /// One around each step of the training thread.
    ByStep,
    /// Entered, left and dropped out of order at arbitrary records, on every thread.
    AtRandom(u64),
    /// None.
    Outside,
}

/// What all threads of a replay share.
struct Replay {
    records: Vec<Record>,
    scopes: Scopes,
    blocks: Mutex<Vec<Option<Block>>>,
    /// The record whose turn it is.
    turn: AtomicUsize,
    /// Requests in scopes, and those of them that the arena served.
    asked: AtomicUsize,
    served: AtomicUsize,
}

impl Replay {
    fn request(&self, record: &Record, block: &mut Option<Block>) {
        let size = record.size as usize;
        let layout = || Layout::from_size_align(size, 1 << record.align_log2).unwrap();
        match record.op {
            Op::Alloc | Op::AllocZeroed => {
                let zeroed = record.op == Op::AllocZeroed;
                *block = Some(Block::make(&ARENA, layout(), record.block.into(), zeroed));
            }
            Op::Realloc => block.as_mut().unwrap().resize(&ARENA, size),
            Op::Free => return block.take().unwrap().free(&ARENA),
            Op::StepBegin | Op::StepEnd => return,
        }
        let at = block.as_ref().unwrap().ptr();
        if size >= LARGE {
            assert!(
                in_arena(at),
                "{record:?}: a large block is the arena's, in a scope or not"
            );
        }
        // A block of the backing stays there when it is resized, in a scope too.
        if scope_depth() > 0 && (record.op != Op::Realloc || in_arena(at)) {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.served.fetch_add(usize::from(in_arena(at)), Ordering::Relaxed);
        }
    }

    /// Plays the records of `thread`, or all of them, each when it is its turn.
    fn play(&self, thread: Option<u8>) {
        let mut guards: Vec<ArenaScope> = vec![];
        let mut random = match self.scopes {
            Scopes::AtRandom(seed) => Random::new(seed ^ u64::from(thread.unwrap_or(99))),
            _ => Random::new(0),
        };
        for (index, record) in self.records.iter().enumerate() {
            if thread.is_some_and(|thread| thread != record.thread) {
                continue;
            }
            while self.turn.load(Ordering::Acquire) != index {
                thread::yield_now();
            }
            let mut suspend = false;
            match (self.scopes, record.op) {
                (Scopes::ByStep, Op::StepBegin) => guards.push(ArenaScope::enter()),
                (Scopes::ByStep, Op::StepEnd) => drop(guards.pop()),
                (Scopes::AtRandom(_), _) => {
                    match random.below(64) {
                        0 | 1 => guards.push(ArenaScope::enter()),
                        2 if !guards.is_empty() => drop(guards.pop()),
                        3 if !guards.is_empty() => drop(guards.swap_remove(random.below(guards.len()))),
                        4 => suspend = true,
                        _ => {}
                    }
                    if guards.len() > 12 {
                        guards.drain(..).for_each(drop);
                    }
                }
                _ => {}
            }
            if !record.op.is_mark() {
                let mut blocks = self.blocks.lock().unwrap();
                let block = &mut blocks[record.block as usize];
                if suspend {
                    outside_scope(|| self.request(record, block));
                } else {
                    self.request(record, block);
                }
            }
            self.turn.store(index + 1, Ordering::Release);
        }
    }
}

fn replay(name: &str, records: &[Record], scopes: Scopes, own_threads: bool) {
    let made = records.iter().filter(|record| !record.op.is_mark());
    let blocks = 1 + made.map(|record| record.block).max().unwrap();
    let replay = Replay {
        records: records.to_vec(),
        scopes,
        blocks: Mutex::new((0..blocks).map(|_| None).collect()),
        turn: AtomicUsize::new(0),
        asked: AtomicUsize::new(0),
        served: AtomicUsize::new(0),
    };
    let threads = 1 + records.iter().map(|record| record.thread).max().unwrap();
    // Every thread ends with blocks of its own still live. Joined one by one: the end of `scope` alone does not wait for
    // the destructors of thread-locals, and so not for the arenas' teardown.
    thread::scope(|scope| {
        let players = if own_threads {
            (0..threads).map(Some).collect()
        } else {
            vec![None]
        };
        let replay = &replay;
        let started: Vec<_> = players
            .into_iter()
            .map(|player| scope.spawn(move || replay.play(player)))
            .collect();
        for thread in started {
            thread.join().unwrap();
        }
    });
    assert_eq!(replay.turn.load(Ordering::Relaxed), records.len());
    for block in replay.blocks.into_inner().unwrap().into_iter().flatten() {
        block.free(&ARENA);
    }
    stepalloc::trim();
    assert_eq!(
        stepalloc::stats().in_use_bytes,
        0,
        "{name}, {scopes:?}: everything was freed"
    );
    let (asked, served) = (replay.asked.into_inner(), replay.served.into_inner());
    let who = if own_threads { threads } else { 1 };
    println!("{name}, {who} thread(s), {scopes:?}: the arena served {served} of {asked} requests in scopes");
    match scopes {
        Scopes::Outside => assert_eq!(asked, 0),
        _ => assert!(
            served * 10 >= asked * 9 && asked > 500,
            "{name}, {scopes:?}: replayed in the fallback"
        ),
    }
}

#[test]
fn recorded_programs_keep_every_byte() {
    let seed = support::chaos::seed();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.retain(|path| path.extension().is_some_and(|ext| ext == "xz"));
    names.sort();
    assert!(names.len() >= 6);
    for path in names {
        let name = path.file_name().unwrap().to_str().unwrap();
        let records = decode(&path);
        let several = records.iter().any(|record| record.thread != 0);
        for scopes in [Scopes::ByStep, Scopes::AtRandom(seed), Scopes::Outside] {
            replay(name, &records, scopes, false);
            if several {
                replay(name, &records, scopes, true);
            }
        }
    }
}
