//! Aligned blocks and buffers of any size and alignment, hostile ones among them; the allocator is the crate's own.
#![no_main]

use stepalloc::{aligned_alloc, aligned_alloc_zeroed, aligned_free, arena_scope, AlignedBuf, StepAlloc};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

fn one_block(size: usize, align: usize, zeroed: bool, fill: u8) {
    let made = if zeroed {
        aligned_alloc_zeroed(size, align)
    } else {
        aligned_alloc(size, align)
    };
    let Ok(block) = made else {
        assert!(
            !align.is_power_of_two() || size > isize::MAX as usize - align,
            "{size} at {align} was refused"
        );
        return;
    };
    assert_eq!(block.addr().get() % align, 0);
    // SAFETY: the block has `size` bytes, zeroed if asked for, and is freed once.
    unsafe {
        if zeroed {
            assert!(std::slice::from_raw_parts(block.as_ptr(), size)
                .iter()
                .all(|&byte| byte == 0));
        }
        block.write_bytes(fill, size);
        aligned_free(block, size, align);
    }
}

fn one_buffer(len: usize, fill: u16) {
    let buffer: AlignedBuf<u16, 128> = AlignedBuf::from_fn(len, |at| fill.wrapping_add(at as u16));
    assert_eq!(buffer.as_ptr().addr() % 128, 0);
    let copy = buffer.clone();
    let collected: AlignedBuf<u16> = buffer.iter().copied().collect();
    drop(buffer);
    assert!(copy
        .iter()
        .enumerate()
        .all(|(at, &value)| value == fill.wrapping_add(at as u16)));
    assert_eq!(copy, collected);
    assert!(AlignedBuf::<u64, 4096>::zeroed(len).iter().all(|&value| value == 0));
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    for (op, a, b) in programs::operations(input) {
        let b = b as u8;
        let size = match op % 8 {
            0 if b < 16 => a as usize * 5,
            1 if b == 0 => usize::MAX - a as usize,
            _ => a as usize % 5_000,
        };
        let work = || match op / 8 % 4 {
            0 if size < 1 << 20 => one_buffer(size, a),
            1 => one_block(size, b as usize * 24, false, b),
            n => one_block(size, 1 << (b % 17), n == 2, b),
        };
        if op & 0x80 != 0 {
            arena_scope(work);
        } else {
            work();
        }
    }
});
