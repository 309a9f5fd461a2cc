//! Pools against a naive oracle, with hostile frees, drop counts and threads.

#[path = "support/pool_program.rs"]
mod pool_program;

use pool_program::Op;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use stepalloc::{AllocError, Pool, PoolBox, PoolFreeError, RawPool, SharedPool, SharedPoolBox};

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => Just(Op::Alloc),
        4 => any::<usize>().prop_map(Op::Free),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(which, offset)| Op::FreeInside(which, offset)),
        1 => any::<usize>().prop_map(Op::FreeTwice),
        1 => any::<usize>().prop_map(Op::FreeForeign),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 512 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn raw_pools_agree_with_the_oracle(
        size in prop_oneof![0usize..200, 1_000_000usize..1_200_000],
        shift in 0u32..9,
        count in 0usize..40,
        growing in any::<bool>(),
        ops in prop::collection::vec(op(), 1..200),
    ) {
        pool_program::run(size, shift, count, growing, ops);
    }

    #[test]
    fn typed_pools_agree_with_the_oracle(ops in prop::collection::vec((0u8..8, any::<usize>()), 1..300)) {
        let live = Cell::new(0);
        let pool = Pool::new();
        let mut handles: Vec<(PoolBox<Counted>, usize)> = Vec::new();
        let mut leaked = 0;
        for (op, which) in ops {
            match op {
                0..4 => handles.push((pool.alloc(Counted::new(&live, which)), which)),
                4..6 if !handles.is_empty() => {
                    let (handle, value) = handles.swap_remove(which % handles.len());
                    assert_eq!(handle.1, value);
                }
                6 if !handles.is_empty() => {
                    let (handle, value) = handles.swap_remove(which % handles.len());
                    assert_eq!(PoolBox::into_inner(handle).1, value);
                }
                7 if !handles.is_empty() => {
                    let (handle, value) = handles.swap_remove(which % handles.len());
                    assert_eq!(PoolBox::leak(handle).1, value);
                    leaked += 1;
                }
                _ => {}
            }
            assert!(handles.iter().all(|(handle, value)| handle.1 == *value));
            assert_eq!(pool.len(), handles.len() + leaked);
            assert_eq!(live.get(), pool.len());
        }
        drop(handles);
        assert_eq!(live.get(), leaked);
        drop(pool);
        assert_eq!(live.get(), 0, "a leaked value was not dropped with its pool");
    }
}

/// A value that counts itself.
struct Counted<'a>(&'a Cell<usize>, usize);

impl<'a> Counted<'a> {
    fn new(live: &'a Cell<usize>, value: usize) -> Counted<'a> {
        live.set(live.get() + 1);
        Counted(live, value)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[test]
fn hostile_sizes_are_errors() {
    assert_eq!(RawPool::fixed(usize::MAX, 1).err(), Some(AllocError::BadLayout));
    assert_eq!(RawPool::fixed(usize::MAX / 2, 4).err(), Some(AllocError::BadLayout));
    assert_eq!(RawPool::fixed(16, usize::MAX).err(), Some(AllocError::BadLayout));
    assert_eq!(RawPool::fixed(16, usize::MAX / 16).err(), Some(AllocError::BadLayout));
    assert_eq!(RawPool::fixed_aligned(16, 24, 1).err(), Some(AllocError::BadLayout));
    assert_eq!(RawPool::fixed_aligned(16, 0, 1).err(), Some(AllocError::BadLayout));
    assert!(RawPool::growing(16, usize::MAX).unwrap().alloc().is_err());
    assert!(RawPool::fixed(1 << 40, 1 << 10).is_err());
    assert_eq!(Pool::<u64>::fixed(usize::MAX).err(), Some(AllocError::BadLayout));
    assert_eq!(
        Pool::<u64>::fixed(0).unwrap().try_alloc(1).err(),
        Some(AllocError::LimitReached)
    );
    assert_eq!(RawPool::fixed(8, 0).unwrap().alloc(), Err(AllocError::LimitReached));
}

/// The C library threads its free list through the freed objects, so that a write after a free breaks the pool.
#[test]
#[cfg_attr(feature = "asan", ignore = "the sanitizer reports what it does")]
fn writing_to_a_freed_object_does_not_break_the_pool() {
    let mut pool = RawPool::fixed(32, 10).unwrap();
    let objects: Vec<_> = (0..10).map(|_| pool.alloc().unwrap()).collect();
    for &object in &objects {
        pool.free(object).unwrap();
        // SAFETY: the memory is the pool's still, and nobody reads it.
        unsafe { object.write_bytes(0xFF, 32) };
    }
    let again: HashSet<_> = (0..10).map(|_| pool.alloc().unwrap()).collect();
    assert_eq!(again, objects.into_iter().collect());
}

/// A pool that kept the pointer of a free would hand it out again, though it may lead to less than the object.
#[test]
fn what_a_free_was_given_does_not_limit_the_next_object() {
    let mut pool = RawPool::fixed(24, 1).unwrap();
    for _ in 0..2 {
        let object = pool.alloc().unwrap();
        // SAFETY: the object is live and has 24 bytes. (Under Miri: if the pointer may be used for all of them.)
        unsafe { object.write_bytes(1, 24) };
        pool.free(NonNull::without_provenance(object.addr())).unwrap();
    }
}

/// Every block of a pool that has grown knows its objects, whatever the order, and nothing beside them.
#[test]
fn a_grown_pool_checks_the_objects_of_all_its_blocks() {
    let count = if cfg!(miri) { 300 } else { 30_000 };
    for (size, first) in [(1usize, 1usize), (16, 1), (24, 7), (4000, 3), (70_000, 1)] {
        let count = count.min(400_000_000 / size);
        let mut pool = RawPool::growing(size, first).unwrap();
        let mut live: Vec<_> = (0..count).map(|_| pool.alloc().unwrap()).collect();
        let places: HashSet<_> = live.iter().map(|object| object.addr().get()).collect();
        assert_eq!(places.len(), count);
        for step in 0..count {
            let object = live.swap_remove(step * 7919 % live.len());
            // Its neighbours, which may be of another block, or nobody's.
            for offset in [pool.stride(), 0usize.wrapping_sub(pool.stride()), 1, 4096] {
                let Some(addr) = std::num::NonZero::new(object.addr().get().wrapping_add(offset)) else {
                    continue;
                };
                let there = object.with_addr(addr);
                if !places.contains(&addr.get()) {
                    assert!(pool.free(there).is_err() && !pool.is_live(there));
                }
            }
            assert!(pool.is_live(object));
            assert_eq!(pool.free(object), Ok(()));
            assert_eq!(pool.free(object), Err(PoolFreeError::NotLive));
        }
        assert!(pool.is_empty());
        let again: HashSet<_> = (0..count).map(|_| pool.alloc().unwrap().addr().get()).collect();
        assert_eq!(again, places);
    }
}

#[test]
fn never_handed_out_slots_are_not_live() {
    let mut pool = RawPool::fixed(64, 4).unwrap();
    let first = pool.alloc().unwrap();
    let next = first.map_addr(|addr| addr.saturating_add(64));
    assert_eq!(pool.free(next), Err(PoolFreeError::NotLive));
    let beyond = first.map_addr(|addr| addr.saturating_add(4 * 64));
    assert_eq!(pool.free(beyond), Err(PoolFreeError::Foreign));
    assert_eq!(pool.len(), 1);
}

#[test]
fn a_panicking_drop_frees_its_slot_and_the_pools_end_goes_on() {
    struct Bomb<'a>(Counted<'a>, bool);
    impl Drop for Bomb<'_> {
        fn drop(&mut self) {
            assert!(!self.1, "a bomb");
        }
    }
    let live = Cell::new(0);
    let pool = Pool::new();
    let bomb = |armed| Bomb(Counted::new(&live, 0), armed);
    let handle = pool.alloc(bomb(true));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(handle))).is_err());
    assert_eq!((pool.len(), live.get()), (0, 0));
    for n in 0..200 {
        assert_eq!(PoolBox::leak(pool.alloc(bomb(n == 3))).0 .1, 0);
    }
    assert!(catch_unwind(AssertUnwindSafe(|| drop(pool))).is_err());
    assert_eq!(live.get(), 0);
}

#[test]
fn a_panicking_constructor_gives_its_slot_back() {
    let pool = Pool::<String>::fixed(1).unwrap();
    let made = catch_unwind(AssertUnwindSafe(|| {
        pool.try_alloc_with(|| panic!("no value")).map(drop)
    }));
    assert!(made.is_err());
    assert_eq!(*pool.alloc(String::from("room")), "room");
}

#[test]
fn a_pool_may_be_used_while_its_values_are_made_and_dropped() {
    struct Node<'p> {
        next: Option<PoolBox<'p, Node<'p>>>,
    }
    let pool: &Pool<Node> = Box::leak(Box::new(Pool::new()));
    let mut head = None;
    for _ in 0..1_000 {
        head = Some(pool.try_alloc_with(|| Node { next: head.take() }).unwrap());
    }
    assert_eq!(pool.len(), 1_000);
    while let Some(mut node) = head {
        head = node.next.take();
    }
    assert_eq!(pool.len(), 0);
    // SAFETY: the pool was leaked from a box a moment ago, and nothing borrows it any more.
    drop(unsafe { Box::from_raw(std::ptr::from_ref(pool).cast_mut()) });
}

#[test]
fn memory_comes_round() {
    let pool = Pool::new();
    let place = |n: u16| std::ptr::from_ref(&*pool.alloc([n as u8; 100]));
    let first = place(0);
    for n in 0..1_000 {
        assert_eq!(place(n), first);
    }
    assert_eq!(pool.capacity(), 64);
    let many: Vec<_> = (0..1_000u16).map(|n| pool.alloc([n as u8; 100])).collect();
    assert_eq!((many[999][50], pool.capacity()), (999u16 as u8, 1024));
}

#[test]
fn zero_sized_values_are_counted_and_dropped() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    struct Unit;
    impl Drop for Unit {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Ordering::Relaxed);
        }
    }
    let pool = Pool::new();
    let handles: Vec<_> = (0..10).map(|_| pool.alloc(Unit)).collect();
    assert_eq!(pool.len(), 10);
    handles.into_iter().for_each(std::mem::forget);
    drop(pool);
    assert_eq!(DROPS.load(Ordering::Relaxed), 10);
}

#[test]
fn a_shared_pool_never_hands_a_slot_out_twice() {
    static LIVE: AtomicUsize = AtomicUsize::new(0);
    struct Value(usize, Box<usize>);
    impl Drop for Value {
        fn drop(&mut self) {
            assert_eq!(self.0, *self.1);
            LIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let rounds = if cfg!(miri) { 20 } else { 5_000 };
    let pool = SharedPool::new();
    let (sender, receiver) = std::sync::mpsc::channel::<SharedPoolBox<Value>>();
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let (sender, pool) = (sender.clone(), &pool);
            threads.spawn(move || {
                for n in 0..rounds {
                    LIVE.fetch_add(1, Ordering::Relaxed);
                    let id = thread * rounds + n;
                    let mut value = pool.alloc(Value(id, Box::new(id)));
                    value.0 = *value.1;
                    match n % 3 {
                        0 => sender.send(value).unwrap(),
                        1 => drop(value),
                        _ => assert_eq!(*SharedPoolBox::into_inner(value).1, id),
                    }
                }
            });
        }
        drop(sender);
        receiver.into_iter().for_each(drop);
    });
    assert_eq!((pool.len(), LIVE.load(Ordering::Relaxed)), (0, 0));
    LIVE.fetch_add(1, Ordering::Relaxed);
    SharedPoolBox::leak(pool.alloc(Value(1, Box::new(1))));
    drop(pool);
    assert_eq!(LIVE.load(Ordering::Relaxed), 0);
    assert_eq!(
        SharedPool::<u8>::fixed(0).unwrap().try_alloc(1).err(),
        Some(AllocError::LimitReached)
    );
}
