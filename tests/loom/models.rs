//! Interleavings of everything that two threads share, on the crate's own code.
//!
//! Each model is one small program of two or three threads; loom runs it in every order of their steps, and with every
//! value that the memory model lets a Relaxed load see. What a block holds is stood for by `touch` (writing) and `see`
//! (reading) of its address: two threads' that are not ordered are reported, so a missing Acquire or Release shows even
//! where every number comes out right. `MUTATIONS`, beside this file, lists orderings to weaken and the model that
//! must then fail; `.ci/loom mutants` does so.
//!
//! Where a model could pass because what it is about never happens, it counts that it did, over all executions.

use crate::heap::{Freed, Heap};
use crate::live_map::LiveMap;
use crate::segment::{self, Segment};
use crate::spans::Spans;
use crate::sync::modelled::{mappings, see, touch};
use crate::sync::{AtomicU64, AtomicUsize, Ordering};
use crate::thread::{self, Outcome};
use loom::thread::JoinHandle;
use std::sync::atomic::AtomicUsize as Count;
use std::sync::Arc;

/// Runs `model` in every order in which threads are interrupted at most three times.
fn check(model: impl Fn() + Send + Sync + 'static) {
    check_within(3, model);
}

/// Runs `model` in every order in which threads are interrupted at most so often. Waiting for another does not count.
fn check_within(interruptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // A heap's life is some thousand steps, nearly all on words that one thread alone touches.
    builder.max_branches = 200_000;
    builder.preemption_bound.get_or_insert(interruptions);
    let model = Arc::new(model);
    builder.check(move || {
        let model = model.clone();
        spawn(move || model()).join().unwrap();
    });
}

/// A thread of a model. Loom's own have a stack of 32 KiB, its first one too; a heap is 8 KiB.
fn spawn<T: Send + 'static>(f: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    const STACK_WORDS: usize = 1 << 16;
    /// Heaps are handed to another thread here where a program would end one's thread.
    struct Handed<F>(F);
    // SAFETY: loom's threads all run on one thread of the system.
    unsafe impl<F> Send for Handed<F> {}
    impl<T, F: FnOnce() -> T> Handed<F> {
        fn run(self) -> T {
            (self.0)()
        }
    }
    let f = Handed(f);
    let builder = loom::thread::Builder::new().stack_size(STACK_WORDS);
    builder.spawn(move || f.run()).unwrap()
}

/// Says over all executions of a model how often something happened.
#[derive(Clone)]
struct Seen(Arc<Count>);

impl Seen {
    fn new() -> Seen {
        Seen(Arc::new(Count::new(0)))
    }

    fn happened(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

// ---- Small blocks: remote free against fold ----

/// The maps of 128 granules.
struct Maps([AtomicU64; 4]);

impl Maps {
    fn new() -> Arc<Maps> {
        let maps = Arc::new(Maps([const { AtomicU64::new(0) }; 4]));
        for word in &maps.0 {
            word.load(Ordering::Relaxed);
        }
        maps
    }

    fn map(&self) -> LiveMap {
        // SAFETY: two words each, and the models ask about 128 granules only.
        unsafe { LiveMap::new(&self.0[0], &self.0[2]) }
    }
}

#[test]
fn what_a_remote_free_did_comes_before_the_next_use() {
    let (reused, not_yet) = (Seen::new(), Seen::new());
    let seen = (reused.clone(), not_yet.clone());
    check(move || {
        let maps = Maps::new();
        maps.map().set(60, 70); // a block in two words
        touch(60);
        touch(66);
        let other = maps.clone();
        let freer = spawn(move || {
            touch(60);
            touch(66);
            assert!(other.map().free_remote(60, 70));
        });
        let map = maps.map();
        if map.first_free(60, 64) == 60 {
            touch(60);
            seen.0.happened();
        } else {
            seen.1.happened();
        }
        if map.first_free(64, 70) == 64 {
            touch(66);
        }
        freer.join().unwrap();
        assert_eq!(map.count(2), 0);
    });
    assert!(reused.count() > 0 && not_yet.count() > 0);
}

#[test]
fn neighbours_in_one_word_freed_by_two_threads_are_both_folded_once() {
    check(|| {
        let maps = Maps::new();
        maps.map().set(0, 12);
        let freers: Vec<JoinHandle<()>> = [0, 4]
            .map(|start| {
                let maps = maps.clone();
                spawn(move || {
                    touch(start);
                    assert!(maps.map().free_remote(start, start + 4));
                })
            })
            .into();
        let map = maps.map();
        let live = map.fold(0);
        for start in [0, 4] {
            let block = live >> start & 15;
            assert!(block == 15 || block == 0, "a block is live or free, not in part");
            if block == 0 {
                touch(start);
                map.set(start, start + 4); // used again: no later fold may free it
            }
        }
        let again = map.fold(0);
        for freer in freers {
            freer.join().unwrap();
        }
        let last = map.fold(0);
        for start in [0, 4] {
            let used_again = live >> start & 15 == 0;
            assert_eq!(last >> start & 15 == 15, used_again, "lost, or folded twice");
            assert!(!used_again || again >> start & 15 == 15);
        }
        assert_eq!(last >> 8, 15, "the owner's own block was not touched");
    });
}

#[test]
fn the_owner_works_in_the_word_that_another_thread_frees_in() {
    check(|| {
        let maps = Maps::new();
        maps.map().set(0, 8);
        let other = maps.clone();
        let freer = spawn(move || assert!(other.map().free_remote(0, 4)));
        let map = maps.map();
        assert!(map.clear(4, 8), "its own block, freed once");
        map.set(8, 16);
        map.fold(0);
        assert!(map.clear(8, 12));
        freer.join().unwrap();
        assert_eq!(map.fold(0), 15 << 12);
    });
}

#[test]
fn of_two_threads_that_free_one_block_one_is_told() {
    check(|| {
        let maps = Maps::new();
        maps.map().set(0, 4);
        let other = maps.clone();
        let freer = spawn(move || other.map().free_remote(0, 4));
        let mine = maps.map().free_remote(0, 4);
        assert!(mine ^ freer.join().unwrap());
    });
}

// ---- Segments: who owns which ----

/// A reservation of two segments of 8 MiB, still to be made, with everything that two threads may touch first known to
/// loom.
fn two_segments() {
    segment::limit_reservation(24 << 20);
    crate::sys::page_size();
    segment::known_to_model();
}

/// A heap on the segment claimed, in a scope.
fn attach(segment: Segment) -> Heap {
    let mut heap = Heap::new();
    // SAFETY: the callers have just claimed it and give it back by `end`.
    unsafe { heap.attach(segment) };
    let _scope = heap.enter();
    heap
}

fn heap() -> Heap {
    attach(segment::claim().unwrap())
}

/// What the end of a thread does.
fn end(mut heap: Heap) {
    segment::give_back(heap.detach().unwrap());
}

/// A block of the heap: its address. What frees of it by others touch is made known to loom.
fn block(heap: &mut Heap, size: usize) -> usize {
    let addr = heap.alloc(size, 8).unwrap().expose_provenance();
    assert!(!heap.is_gone(addr));
    heap.settle();
    // SAFETY: the segment is the heap's, so its head is committed.
    let header = unsafe { segment::of(addr).unwrap().header() };
    header.orphan_freed.load(Ordering::Relaxed);
    addr
}

#[test]
fn two_threads_make_one_reservation_and_own_a_segment_each() {
    check(|| {
        two_segments();
        let claim = || {
            let segment = segment::claim().unwrap();
            touch(segment.base.addr());
            assert!(segment::contains(segment.base.addr()) && segment::contains(segment.base.addr() + (8 << 20) - 1));
            assert_eq!(
                segment::of(segment.base.addr() + 5000).map(|found| found.index),
                Some(segment.index)
            );
            (segment.base.addr(), segment.index)
        };
        let other = spawn(claim);
        let mine = claim();
        let others = other.join().unwrap();
        assert_eq!(mine.0.abs_diff(others.0), 8 << 20);
        assert_eq!(mine.1 + others.1, 1);
        assert_eq!(mappings(), 1, "the loser's reservation is given back");
        assert!(segment::claim().is_err(), "both have owners");
    });
}

#[test]
fn who_sees_the_size_of_the_reservation_sees_its_base() {
    check(|| {
        two_segments();
        let other = spawn(|| segment::claim().unwrap().base.addr());
        // Inside the reservation if its base were still 0.
        let reader = spawn(|| assert!(!segment::contains(4096)));
        let base = other.join().unwrap();
        reader.join().unwrap();
        assert!(segment::contains(base) && !segment::contains(4096));
    });
}

#[test]
fn an_owner_sees_all_that_the_last_one_wrote() {
    let taken_over = Seen::new();
    let seen = taken_over.clone();
    check(move || {
        two_segments();
        let own = || {
            let segment = segment::claim().unwrap();
            touch(segment.base.addr()); // stands for all plain memory of the segment
            let header = unsafe { segment.header() };
            // SAFETY: the owner's.
            let (mut small, spans) = unsafe { header.kept.read() };
            small.high += 1;
            // SAFETY: the owner's.
            unsafe { header.kept.write((small, spans)) };
            let index = segment.index;
            segment::give_back(index);
            (index, small.high)
        };
        let other = spawn(own);
        let mine = own();
        let others = other.join().unwrap();
        if mine.0 == others.0 {
            seen.happened();
            assert_eq!(mine.1 + others.1, 3, "each has counted");
        }
    });
    assert!(taken_over.count() > 0);
}

#[test]
fn a_segment_is_taken_over_while_a_block_of_its_dead_owner_is_freed() {
    let (reused, live) = (Seen::new(), Seen::new());
    let seen = (reused.clone(), live.clone());
    check_within(2, move || {
        two_segments();
        let mut first = heap();
        let (a, b) = (block(&mut first, 48), block(&mut first, 48));
        let seen = seen.clone();
        let taker = spawn(move || {
            // The first owner ends while the third thread frees what it left.
            end(first);
            let mut next = heap();
            let c = block(&mut next, 48);
            assert_ne!(c, b, "given to two");
            if c == a {
                seen.0.happened();
                touch(a);
            } else {
                seen.1.happened();
            }
            next.debug_check();
            let kept = next.live_granules();
            assert!(kept == 6 || kept == 9, "{kept}");
            end(next);
        });
        touch(a);
        assert_eq!(thread::free_remote(a, 48), Outcome::Done);
        taker.join().unwrap();
        let mut last = heap();
        assert_eq!(last.live_granules(), 6, "b and c");
        last.debug_check();
    });
    assert!(reused.count() > 0 && live.count() > 0);
}

#[test]
fn a_segment_is_whole_when_it_is_given_back() {
    let taken = Seen::new();
    let seen = taken.clone();
    check_within(2, move || {
        two_segments();
        let mut first = heap();
        let a = block(&mut first, 48);
        let index = first.segment_index();
        let ender = spawn(move || end(first));
        let seen = seen.clone();
        let taker = spawn(move || {
            let mut next = heap();
            if next.segment_index() == index {
                seen.happened();
                assert_ne!(block(&mut next, 48), a, "given to two");
                next.debug_check();
            }
            end(next);
        });
        ender.join().unwrap();
        taker.join().unwrap();
    });
    assert!(taken.count() > 0);
}

#[test]
fn an_orphan_is_reclaimed_taken_over_and_freed_in_at_once() {
    let (reclaimed, taken) = (Seen::new(), Seen::new());
    let seen = (reclaimed.clone(), taken.clone());
    check(move || {
        two_segments();
        let mut first = heap();
        let (a, b) = (block(&mut first, 48), block(&mut first, 48));
        let index = first.detach().unwrap();
        segment::give_back(index);
        let seen = seen.clone();
        let reclaimer = spawn(move || thread::reclaim(index, false));
        let taker = spawn(move || {
            let mut next = heap();
            let c = block(&mut next, 48);
            assert_ne!(c, b, "given to two");
            touch(c);
            if next.segment_index() == Some(index) {
                seen.1.happened();
            } else {
                seen.0.happened();
            }
            assert_eq!(next.free(c, 48), Freed::Yes);
            end(next);
        });
        touch(a);
        assert_eq!(thread::free_remote(a, 48), Outcome::Done);
        reclaimer.join().unwrap();
        taker.join().unwrap();
        let mut last = heap();
        assert_eq!((last.segment_index(), last.live_granules()), (Some(index), 3));
        last.debug_check();
    });
    assert!(reclaimed.count() > 0 && taken.count() > 0);
}

// ---- Spans ----

#[test]
fn what_a_remote_free_of_a_span_did_comes_before_the_next_use() {
    let (reused, not_yet) = (Seen::new(), Seen::new());
    let seen = (reused.clone(), not_yet.clone());
    check(move || {
        two_segments();
        let mut heap = heap();
        let a = block(&mut heap, 40_000);
        touch(a);
        let freer = spawn(move || {
            touch(a);
            assert_eq!(thread::free_remote(a, 40_000), Outcome::Done);
        });
        let b = block(&mut heap, 30_000);
        if b == a {
            touch(b);
            seen.0.happened();
        } else {
            seen.1.happened();
        }
        freer.join().unwrap();
        assert_eq!(heap.used_units(), 30);
        heap.debug_check();
    });
    assert!(reused.count() > 0 && not_yet.count() > 0);
}

/// Two threads free a span of `size` bytes each, of `units` units, while their owner folds and uses what it finds.
fn two_free_spans_while_their_owner_folds(size: usize, units: usize) {
    let early = Seen::new();
    let seen = early.clone();
    check(move || {
        two_segments();
        let mut heap = heap();
        let blocks = [0, 1].map(|_| block(&mut heap, size));
        let freers = blocks.map(|a| {
            spawn(move || {
                touch(a);
                assert_eq!(thread::free_remote(a, size), Outcome::Done);
            })
        });
        let seen = seen.clone();
        let folder = spawn(move || {
            // A fold in the middle takes the flag of both, and perhaps the bit of neither, of one or of both.
            if heap.used_units() < 2 * units {
                seen.happened();
            }
            let reused = block(&mut heap, size);
            touch(reused);
            for freer in freers {
                freer.join().unwrap();
            }
            assert_eq!(heap.free(reused, size), Freed::Yes);
            assert_eq!(
                heap.used_units(),
                0,
                "a flag or a bit was lost: nobody would fold the span again"
            );
            heap.debug_check();
        });
        folder.join().unwrap();
    });
    assert!(early.count() > 0);
}

#[test]
fn no_flag_of_freed_spans_is_lost() {
    // Each has its bit in a word of its own.
    two_free_spans_while_their_owner_folds(70_000, 69);
}

#[test]
fn no_bit_of_freed_spans_is_lost() {
    // Both have their bits in one word.
    two_free_spans_while_their_owner_folds(9_000, 9);
}

#[test]
fn a_span_freed_by_its_owner_and_by_another_thread_is_free_once() {
    check(|| {
        two_segments();
        let mut heap = heap();
        let (a, _b) = (block(&mut heap, 20_000), block(&mut heap, 20_000));
        let freer = spawn(move || thread::free_remote(a, 20_000));
        // A misuse. Both may be too early to see the other; the tiling must stand whoever was first.
        let mine = heap.free(a, 20_000);
        heap.debug_check();
        let others = freer.join().unwrap();
        assert!(mine == Freed::Yes || others == Outcome::Done);
        assert_eq!(heap.used_units(), 20);
        heap.debug_check();
        // Nothing of it is left that would free who has the place next.
        let (_c, d) = (block(&mut heap, 20_000), block(&mut heap, 20_000));
        assert_eq!(thread::free_remote(d, 20_000), Outcome::Done);
        assert_eq!(heap.used_units(), 40);
        heap.debug_check();
    });
}

#[test]
fn a_span_is_taken_over_while_it_is_freed() {
    let (reused, live) = (Seen::new(), Seen::new());
    let seen = (reused.clone(), live.clone());
    check(move || {
        two_segments();
        let mut first = heap();
        let a = block(&mut first, 20_000);
        touch(a);
        let seen = seen.clone();
        let taker = spawn(move || {
            end(first);
            let mut next = heap();
            let b = block(&mut next, 20_000);
            touch(b);
            if b == a {
                seen.0.happened();
            } else {
                seen.1.happened();
            }
            next.debug_check();
            end(next);
        });
        see(a);
        assert_eq!(thread::free_remote(a, 20_000), Outcome::Done);
        taker.join().unwrap();
        let mut last = heap();
        assert_eq!(last.used_units(), 20);
        last.debug_check();
    });
    assert!(reused.count() > 0 && live.count() > 0);
}

/// The spans of no segment have no flag.
#[test]
fn a_heap_without_a_segment_folds_nothing() {
    check(|| {
        let mut none = Spans::NONE;
        assert_eq!(none.fold(), 0);
    });
}

// ---- The explicit pieces ----

/// A value that is written when it is made and when it is dropped.
struct Tracked;

impl Tracked {
    fn addr(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }
}

/// As large as a slot's pointer.
struct Item(Tracked, #[allow(dead_code)] usize);

impl Drop for Item {
    fn drop(&mut self) {
        touch(self.0.addr());
    }
}

#[test]
fn a_shared_pool_gives_no_slot_to_two_threads() {
    static POOL: crate::SharedPool<Item> = crate::SharedPool::new();
    let reused = Seen::new();
    let seen = reused.clone();
    check(move || {
        // The pool's memory outlives an execution, so its slots are those of a used pool.
        assert_eq!(POOL.len(), 0);
        let work = || {
            let one = POOL.alloc(Item(Tracked, 1));
            touch(one.0.addr());
            let addr = one.0.addr();
            drop(one);
            let two = POOL.alloc(Item(Tracked, 2));
            touch(two.0.addr());
            addr
        };
        let (one, other) = (spawn(work), spawn(work));
        if one.join().unwrap() == other.join().unwrap() {
            seen.happened();
        }
        assert_eq!(POOL.len(), 0);
    });
    assert!(reused.count() > 0);
}

#[test]
fn a_slot_of_a_shared_pool_is_free_when_its_value_is_dropped() {
    static POOL: crate::SharedPool<Item> = crate::SharedPool::new();
    let passed_on = Seen::new();
    let handed = passed_on.clone();
    check(move || {
        assert_eq!(POOL.len(), 0);
        let one = POOL.alloc(Item(Tracked, 0));
        let place = one.0.addr();
        touch(place);
        let giver = spawn(move || drop(one));
        let taker = spawn(move || {
            let two = POOL.alloc(Item(Tracked, 3));
            touch(two.0.addr());
            two.0.addr() == place
        });
        giver.join().unwrap();
        if taker.join().unwrap() {
            handed.happened();
        }
        assert_eq!(POOL.len(), 0);
    });
    assert!(passed_on.count() > 0);
}

#[test]
fn a_slot_of_a_shared_pool_is_free_when_its_value_is_taken_out() {
    static POOL: crate::SharedPool<u64> = crate::SharedPool::new();
    let passed_on = Seen::new();
    let handed = passed_on.clone();
    check(move || {
        assert_eq!(POOL.len(), 0);
        let one = POOL.alloc(7);
        let place = core::ptr::from_ref(&*one).addr();
        let giver = spawn(move || crate::SharedPoolBox::into_inner(one));
        let taker = spawn(move || core::ptr::from_ref(&*POOL.alloc(3)).addr() == place);
        assert_eq!(giver.join().unwrap(), 7, "the other thread's value");
        if taker.join().unwrap() {
            handed.happened();
        }
        assert_eq!(POOL.len(), 0);
    });
    assert!(passed_on.count() > 0);
}

/// There is one tensor arena, so one model of it at a time.
static TENSOR_ARENA: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn the_tensor_arena_is_one_threads_at_a_time() {
    let _alone = TENSOR_ARENA.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let reused = Seen::new();
    let seen = reused.clone();
    check(move || {
        let settings = || crate::Arena::builder().block_size(1 << 16);
        crate::init_tensor_arena(settings()).unwrap();
        let work = || {
            let mut arena = crate::tensor_arena();
            assert_eq!(crate::try_tensor_arena().err(), Some(crate::TensorArenaError::Held));
            let addr = arena.scope(|step| {
                let value = core::ptr::from_mut(step.alloc(1u64)).addr();
                touch(value);
                value
            });
            drop(arena);
            addr
        };
        let other = spawn(work);
        let mine = work();
        if other.join().unwrap() == mine {
            seen.happened();
        }
        crate::cleanup_tensor_arena().unwrap();
    });
    assert!(
        reused.count() > 0,
        "both were given the same memory, one after the other"
    );
}

#[test]
fn one_of_two_threads_makes_the_tensor_arena_and_one_destroys_it() {
    let _alone = TENSOR_ARENA.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    check(|| {
        let settings = || crate::Arena::builder().block_size(1 << 16);
        // Left by the last execution as gone: no first use makes it.
        crate::cleanup_tensor_arena().unwrap_err();
        let make = move || crate::init_tensor_arena(settings()).is_ok();
        let other = spawn(make);
        let mine = make();
        assert!(mine ^ other.join().unwrap());
        let other = spawn(|| crate::cleanup_tensor_arena().is_ok());
        let mine = crate::cleanup_tensor_arena().is_ok();
        assert!(mine ^ other.join().unwrap());
    });
}

// ---- The models' own parts ----

#[test]
#[should_panic(expected = "Causality violation")]
fn the_seam_sees_a_block_written_by_two_threads() {
    check(|| {
        let flag = Arc::new(AtomicUsize::new(0));
        flag.load(Ordering::Relaxed);
        let other = flag.clone();
        let writer = spawn(move || {
            touch(4096);
            other.store(1, Ordering::Relaxed); // Release would do
        });
        if flag.load(Ordering::Acquire) == 1 {
            touch(4096);
        }
        writer.join().unwrap();
    });
}
