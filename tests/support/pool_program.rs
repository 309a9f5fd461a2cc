//! Programs of operations on a pool of raw objects, hostile frees among them, against a naive oracle. The property tests
//! make them at random and shrink them; the fuzzer makes them of bytes.

use std::ptr::NonNull;
use stepalloc::{AllocError, PoolFreeError, RawPool};

#[derive(Debug, Clone)]
pub enum Op {
    Alloc,
    Free(usize),
    FreeInside(usize, usize),
    FreeTwice(usize),
    FreeForeign(usize),
}

impl Op {
    /// An operation from two numbers.
    #[allow(dead_code, reason = "the fuzzer's")]
    pub fn from_numbers(op: u8, a: u16) -> Op {
        let a = a as usize;
        match op % 13 {
            0..=5 => Op::Alloc,
            6..=9 => Op::Free(a),
            10 => Op::FreeInside(a, a / 7),
            11 => Op::FreeTwice(a),
            _ => Op::FreeForeign(a),
        }
    }
}

/// Runs a program on a pool of `count` objects of `size` bytes, aligned to `1 << shift`.
pub fn run(size: usize, shift: u32, count: usize, growing: bool, ops: impl IntoIterator<Item = Op>) {
    let align = 1 << shift;
    let mut pool = match growing {
        true => RawPool::growing_aligned(size, align, count),
        false => RawPool::fixed_aligned(size, align, count),
    }
    .unwrap();
    let mut live: Vec<(NonNull<u8>, u8)> = Vec::new();
    let mut fill = 0u8;
    let shown = size.min(64);
    for op in ops {
        match op {
            Op::Alloc => match pool.alloc() {
                Ok(object) => {
                    assert_eq!(object.addr().get() % align, 0);
                    let apart =
                        |other: &(NonNull<u8>, u8)| other.0.addr().get().abs_diff(object.addr().get()) >= size.max(1);
                    assert!(live.iter().all(apart), "handed out twice");
                    fill = fill.wrapping_add(1);
                    // SAFETY: the object is live and has `size` bytes.
                    unsafe { object.write_bytes(fill, shown) };
                    live.push((object, fill));
                }
                Err(error) => {
                    assert!(!growing && live.len() == count);
                    assert_eq!(error, AllocError::LimitReached);
                }
            },
            Op::Free(which) if !live.is_empty() => {
                let (object, fill) = live.swap_remove(which % live.len());
                // SAFETY: the object is live and was filled; after the free it is only written through the pool.
                unsafe {
                    assert!(std::slice::from_raw_parts(object.as_ptr(), shown)
                        .iter()
                        .all(|&byte| byte == fill))
                };
                assert!(pool.is_live(object));
                pool.free(object).unwrap();
                assert!(!pool.is_live(object));
            }
            Op::FreeInside(which, offset) if !live.is_empty() && pool.stride() > 1 => {
                let (object, _) = live[which % live.len()];
                let inside = object.map_addr(|addr| addr.saturating_add(1 + offset % (pool.stride() - 1)));
                assert_eq!(pool.free(inside), Err(PoolFreeError::Interior));
            }
            Op::FreeTwice(which) if !live.is_empty() => {
                let (object, _) = live.swap_remove(which % live.len());
                pool.free(object).unwrap();
                assert_eq!(pool.free(object), Err(PoolFreeError::NotLive));
            }
            Op::FreeForeign(address) => {
                let mut foreign = [0u8; 2];
                assert_eq!(
                    pool.free(NonNull::from(&mut foreign[address % 2])),
                    Err(PoolFreeError::Foreign)
                );
                assert_eq!(pool.free(NonNull::<u8>::dangling()), Err(PoolFreeError::Foreign));
            }
            _ => {}
        }
        assert_eq!(pool.len(), live.len());
        assert!(pool.len() <= pool.capacity());
    }
}
