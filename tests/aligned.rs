//! Aligned memory under the crate's own allocator: addresses, zeros, hostile numbers, drop counts.

use aligned_vec::{AVec, ConstAlign};
use proptest::prelude::*;
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use stepalloc::{aligned_alloc, aligned_alloc_zeroed, aligned_free, AlignedBuf, AllocError};

#[global_allocator]
static GLOBAL: stepalloc::StepAlloc = stepalloc::StepAlloc::new();

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_are_aligned_disjoint_and_whole(
        wanted in prop::collection::vec((prop_oneof![0usize..5_000, 100_000usize..300_000], 0u32..17, any::<bool>()), 1..20),
    ) {
        let blocks: Vec<_> = wanted
            .iter()
            .enumerate()
            .map(|(fill, &(size, shift, zeroed))| {
                let align = 1 << shift;
                let block = if zeroed { aligned_alloc_zeroed(size, align) } else { aligned_alloc(size, align) }.unwrap();
                assert_eq!(block.addr().get() % align, 0);
                // SAFETY: the block has `size` bytes, zeroed if asked for.
                unsafe {
                    if zeroed {
                        assert!(std::slice::from_raw_parts(block.as_ptr(), size).iter().all(|&byte| byte == 0));
                    }
                    block.write_bytes(fill as u8, size);
                }
                (block, size, align, fill as u8)
            })
            .collect();
        for (block, size, align, fill) in blocks {
            // SAFETY: the block is live with these numbers, and freed once.
            unsafe {
                assert!(std::slice::from_raw_parts(block.as_ptr(), size).iter().all(|&byte| byte == fill));
                aligned_free(block, size, align);
            }
        }
    }
}

#[test]
fn hostile_numbers_are_errors() {
    for size in (usize::MAX - 130..=usize::MAX).chain([isize::MAX as usize, isize::MAX as usize + 1]) {
        for align in [1, 8, 64, 4096, 1 << 40, 1 << 63] {
            assert!(aligned_alloc(size, align).is_err(), "{size} {align}");
            assert!(aligned_alloc_zeroed(size, align).is_err(), "{size} {align}");
        }
    }
    for align in [0, 3, 48, 63, usize::MAX] {
        assert_eq!(aligned_alloc(10, align), Err(AllocError::BadLayout));
    }
    assert_eq!(
        AlignedBuf::<u64>::try_zeroed(usize::MAX / 4).err(),
        Some(AllocError::BadLayout)
    );
    assert!(AlignedBuf::<u64>::try_from_fn(1 << 59, |_| panic!("called without memory")).is_err());
}

#[test]
fn a_block_of_no_bytes_is_aligned_and_can_be_freed() {
    for align in [1, 64, 1 << 30] {
        let block = aligned_alloc(0, align).unwrap();
        assert_eq!(block.addr().get() % align, 0);
        // SAFETY: made with these numbers.
        unsafe { aligned_free(block, 0, align) };
    }
}

#[cfg(all(target_os = "linux", not(miri), not(stepalloc_small_space)))]
#[test]
fn zeroed_pages_are_not_touched() {
    fn faults() -> i64 {
        // SAFETY: a zeroed rusage is a valid one, and getrusage fills it.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
            usage.ru_minflt + usage.ru_majflt
        }
    }
    let before = faults();
    let buf: AlignedBuf<f32> = AlignedBuf::zeroed(16 << 20);
    // The thread may have taken over a segment that another test used: what it used is zeroed by hand.
    let pages = (64 << 20) / 4096;
    assert!(faults() - before < pages / 8, "{} pages touched", faults() - before);
    assert_eq!(buf[12345678], 0.0);
}

#[test]
fn buffers_behave_as_slices() {
    let buf: AlignedBuf<u32> = (0..1000).collect();
    assert_eq!(buf.as_ptr().addr() % 64, 0);
    assert_eq!(buf.len(), 1000);
    let mut copy = buf.clone();
    assert_eq!(buf, copy);
    copy[3] = 0;
    assert_ne!(buf, copy);
    assert_eq!(format!("{:?}", AlignedBuf::<u8>::from_slice(&[1, 2])), "[1, 2]");
    assert_eq!(
        AlignedBuf::<u8>::from(vec![1, 2]),
        AlignedBuf::<u8, 8>::from_slice(&[1, 2])
    );
    assert!(AlignedBuf::<String>::default().is_empty());
    assert_eq!(buf.iter().map(|&n| u64::from(n)).sum::<u64>(), 499_500);
    let wide = AlignedBuf::<u128, 1>::zeroed(3);
    assert_eq!(wide.as_ptr().addr() % align_of::<u128>(), 0);
    let units: AlignedBuf<()> = AlignedBuf::zeroed(usize::MAX);
    assert_eq!(units.len(), usize::MAX);
    let unknown: AlignedBuf<u8> = (0..100).filter(|n| n % 3 == 0).collect();
    assert_eq!(unknown.len(), 34);
    fn both<T: Send + Sync>(_: &T) {}
    both(&buf);
}

struct Counted<'a>(&'a Cell<i64>);

impl<'a> Counted<'a> {
    fn new(live: &'a Cell<i64>) -> Counted<'a> {
        live.set(live.get() + 1);
        Counted(live)
    }
}

impl Clone for Counted<'_> {
    fn clone(&self) -> Self {
        Counted::new(self.0)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[test]
fn every_value_is_dropped_once_also_on_panics() {
    let live = Cell::new(0);
    let buf: AlignedBuf<Counted> = AlignedBuf::from_fn(10, |_| Counted::new(&live));
    let copy = buf.clone();
    assert_eq!(live.get(), 20);
    drop((buf, copy));
    assert_eq!(live.get(), 0);
    let made = catch_unwind(AssertUnwindSafe(|| {
        AlignedBuf::<Counted>::from_fn(10, |i| {
            assert!(i < 5, "the sixth");
            Counted::new(&live)
        })
    }));
    assert!(made.is_err());
    assert_eq!(live.get(), 0);
    assert_eq!((0..7).map(|_| Counted::new(&live)).collect::<AlignedBuf<_>>().len(), 7);
    assert_eq!(live.get(), 0);

    struct Bomb<'a>(Counted<'a>, bool);
    impl Drop for Bomb<'_> {
        fn drop(&mut self) {
            assert!(!self.1, "a bomb");
        }
    }
    let bombs: AlignedBuf<Bomb> = AlignedBuf::from_fn(5, |i| Bomb(Counted::new(&live), i == 2));
    assert_eq!(bombs[0].0 .0.get(), 5);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(bombs))).is_err());
    assert_eq!(live.get(), 0);
}

/// Growable aligned vectors are the `aligned-vec` crate's: it must keep its alignment through every growth here.
#[test]
fn aligned_vec_works_under_this_allocator() {
    let mut vector: AVec<f32, ConstAlign<64>> = AVec::new(64);
    for n in 0..200_000 {
        vector.push(n as f32);
        if n % 1_000 == 0 {
            stepalloc::arena_scope(|| vector.push(n as f32));
        }
        assert_eq!(vector.as_ptr().addr() % 64, 0);
    }
    assert_eq!(vector.iter().filter(|&&n| n == 5_000.0).count(), 2);
}
