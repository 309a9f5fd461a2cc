//! Blocks that outlive the scope, the thread, and both: made in the scopes of one thread, resized and freed by others,
//! some after their maker's death, some in destructors of thread-locals, all with their content verified. At the end
//! every byte has come back.
//!
//! The allocator is a value used by hand, not the global one, so that only blocks of the test live in the arenas.

mod support;

use serial_test::serial;
use std::alloc::Layout;
use std::cell::RefCell;
use std::sync::mpsc::{channel, sync_channel, Receiver, Sender};
use std::thread;
use stepalloc::{outside_scope, ArenaScope, StepAlloc};
use support::block::Block;
use support::random::Random;

static ARENA: StepAlloc = StepAlloc::new();

fn layout(random: &mut Random) -> Layout {
    let bits = [4, 7, 10, 11, 15, 17, 21][random.below(7)];
    let align = match random.below(24) {
        0 => 8192,
        1 => 4096,
        2 => 128,
        3 | 4 => 64,
        5 => 32,
        n => 1 << (n % 5),
    };
    Layout::from_size_align(random.size(bits), align).unwrap()
}

/// Blocks that a thread-local frees in its destructor, at a thread's end: before or after the arena's own teardown.
struct Late(RefCell<Vec<Block>>);

impl Drop for Late {
    fn drop(&mut self) {
        for block in self.0.take() {
            block.free(&ARENA);
        }
    }
}

thread_local! {
    static EARLY: Late = const { Late(RefCell::new(vec![])) };
    static LATE: Late = const { Late(RefCell::new(vec![])) };
}

/// What one thread does: makes blocks in and out of scopes, keeps some, sends some away, resizes and frees what it has
/// and what it gets.
fn live(seed: u64, steps: usize, peers: &[Sender<Block>], inbox: &Receiver<Block>) -> Vec<Block> {
    let mut random = Random::new(seed);
    // One destructor is registered before the arena's teardown, and so runs after it; the other the other way round.
    EARLY.with(|_| ());
    let (mut blocks, mut scopes): (Vec<Block>, Vec<ArenaScope>) = (vec![], vec![]);
    for step in 0..steps {
        match random.below(16) {
            0 => scopes.push(ArenaScope::enter()),
            1 if !scopes.is_empty() => {
                let newest = scopes.len() - 1;
                let which = if random.one_in(3) {
                    random.below(scopes.len())
                } else {
                    newest
                };
                let scope = scopes.remove(which);
                if random.one_in(12) {
                    std::mem::forget(scope);
                }
            }
            2..=6 => {
                let (layout, id, zeroed) = (layout(&mut random), random.bits(), random.one_in(4));
                let make = || Block::make(&ARENA, layout, id, zeroed);
                blocks.push(if random.one_in(16) { outside_scope(make) } else { make() });
            }
            7 if !blocks.is_empty() => {
                let which = random.below(blocks.len());
                let block = &mut blocks[which];
                let old = block.layout().size();
                let new = match random.below(3) {
                    0 => old + random.size(12),
                    1 => random.size(16),
                    _ => 1 + random.below(old),
                };
                block.resize(&ARENA, new);
            }
            8 | 9 if !blocks.is_empty() && !peers.is_empty() => {
                let block = blocks.swap_remove(random.below(blocks.len()));
                let _ = peers[random.below(peers.len())]
                    .send(block)
                    .map_err(|lost| blocks.push(lost.0));
            }
            10..=13 => {
                // Mostly the last block, as programs do.
                let newest = blocks.len().saturating_sub(1);
                let which = if random.one_in(3) {
                    random.below(blocks.len().max(1))
                } else {
                    newest
                };
                if which < blocks.len() {
                    blocks.swap_remove(which).free(&ARENA);
                }
            }
            14 => blocks.extend(inbox.try_iter().take(4)),
            15 if !blocks.is_empty() && random.one_in(8) => {
                let kept = if random.one_in(2) { &EARLY } else { &LATE };
                kept.with(|kept| kept.0.borrow_mut().push(blocks.swap_remove(0)));
            }
            _ => {}
        }
        if blocks.len() > 600 {
            blocks.drain(..300).for_each(|block| block.free(&ARENA));
        }
        if step % 512 == 0 {
            blocks.iter().for_each(Block::verify);
        }
    }
    // Guards are dropped oldest first, in the wrong order.
    scopes.into_iter().for_each(drop);
    blocks
}

fn generation(seed: u64, threads: usize, steps: usize) {
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..threads).map(|_| channel::<Block>()).unzip();
    let start = |(number, inbox): (usize, Receiver<Block>)| {
        let peers = senders.clone();
        let seed = seed.wrapping_mul(1_000).wrapping_add(number as u64);
        thread::spawn(move || {
            let blocks = live(seed, steps, &peers, &inbox);
            drop(peers);
            (blocks, inbox)
        })
    };
    let workers: Vec<_> = inboxes.into_iter().enumerate().map(start).collect();
    // An inbox is emptied when nobody sends any more.
    let ended: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    let mut left = vec![];
    for (blocks, inbox) in ended {
        left.extend(blocks);
        left.extend(inbox.try_iter());
    }
    // Their makers are dead. Half of them are freed by one more thread, in a scope in a segment that one of the dead had.
    let half = left.split_off(left.len() / 2);
    let last = thread::spawn(move || {
        let _scope = ArenaScope::enter();
        Block::make(&ARENA, Layout::new::<[u64; 20]>(), 1, false).free(&ARENA);
        half.into_iter().rev().for_each(|block| block.free(&ARENA));
    });
    left.into_iter().for_each(|mut block| {
        let size = block.layout().size();
        if size % 3 == 0 {
            block.resize(&ARENA, size / 2 + 1);
        }
        block.free(&ARENA);
    });
    last.join().unwrap();
}

/// Bytes of live blocks in all arenas. Exact while no other thread has one: the tests of this file run one by one.
fn in_use() -> usize {
    stepalloc::trim();
    stepalloc::stats().in_use_bytes
}

#[test]
#[serial]
fn escapees_of_living_and_dead_threads() {
    let seed = support::chaos::seed();
    for round in 0..50 {
        let threads = 1 + round as usize % 5;
        generation(seed.wrapping_add(round), threads, 6_000 / threads + 500);
        assert_eq!(in_use(), 0, "everything was freed, seed {seed}, round {round}");
    }
    let stats = stepalloc::stats();
    assert_eq!(
        stats.fallbacks.no_room + stats.fallbacks.no_segment + stats.fallbacks.commit_refused,
        0
    );
}

/// Memory that other threads free must come round again in its maker's arena: a producer makes a thousand times what is
/// ever live at once, a consumer frees all of it, and the producer's arena stays small.
#[test]
#[serial]
fn memory_freed_by_others_comes_round() {
    let (to_consumer, from_producer) = sync_channel::<Block>(200);
    let consumer = thread::spawn(move || from_producer.into_iter().for_each(|block| block.free(&ARENA)));
    let producer = thread::spawn(move || {
        let mut random = Random::new(support::chaos::seed());
        let _scope = ArenaScope::enter();
        // Small and large blocks stand in areas of their own: bytes made there, lowest and highest address.
        let mut areas = [(0, usize::MAX, 0); 2];
        for id in 0..100_000 {
            let size = if id % 64 == 0 { 100_000 } else { random.size(10) };
            let block = Block::make(&ARENA, Layout::from_size_align(size, 8).unwrap(), id, false);
            let (made, low, high) = &mut areas[usize::from(size == 100_000)];
            let at = block.ptr().addr();
            (*made, *low, *high) = (*made + size, at.min(*low), (at + size).max(*high));
            to_consumer.send(block).unwrap();
        }
        for (made, low, high) in areas {
            assert!(
                (high - low) * 6 < made,
                "{} bytes used for {made} that were made",
                high - low
            );
        }
    });
    producer.join().unwrap();
    consumer.join().unwrap();
}
