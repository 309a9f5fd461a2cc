//! Powers of two and rounding: integers in, integers out.
//!
//! Everything here is `const`, total and free of panics, so that allocation paths may call it. A sum that
//! could pass `usize::MAX` is an `Option`; the wrapping forms are for callers who have bounded their numbers.
#![forbid(unsafe_code)]

/// Bytes in a cache line, and the width of an AVX-512 register: what blocks for SIMD work are aligned to.
///
/// Source: Intel's and AMD's optimisation manuals (64-byte lines on every x86-64); 64 also on most aarch64.
pub const CACHE_LINE: usize = 64;

/// `x` rounded up to a multiple of `align`, a power of two; `None` where the result does not fit.
pub const fn checked_align_up(x: usize, align: usize) -> Option<usize> {
    match x.checked_add(align.wrapping_sub(1)) {
        Some(sum) => Some(sum & !align.wrapping_sub(1)),
        None => None,
    }
}

/// `x` rounded up to a multiple of `align`, a power of two, for sums the caller has bounded.
#[inline(always)]
pub const fn align_up(x: usize, align: usize) -> usize {
    let mask = align.wrapping_sub(1);
    x.wrapping_add(mask) & !mask
}

/// `x` rounded down to a multiple of `align`, a power of two.
#[inline(always)]
pub const fn align_down(x: usize, align: usize) -> usize {
    x & !align.wrapping_sub(1)
}

/// How many whole `unit`s, a power of two, hold `bytes`, for sums the caller has bounded.
#[inline(always)]
pub const fn units_for(bytes: usize, unit: usize) -> usize {
    align_up(bytes, unit) / unit
}

/// The larger of two numbers, in `const`.
#[inline(always)]
pub const fn max(a: usize, b: usize) -> usize {
    if a > b {
        a
    } else {
        b
    }
}

/// The smaller of two numbers, in `const`.
#[inline(always)]
pub const fn min(a: usize, b: usize) -> usize {
    if a < b {
        a
    } else {
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_division_for_all_small_numbers() {
        for shift in 0..8 {
            let align = 1 << shift;
            for x in 0..2_000usize {
                let up = x.div_ceil(align) * align;
                assert_eq!(align_up(x, align), up);
                assert_eq!(checked_align_up(x, align), Some(up));
                assert_eq!(align_down(x, align), x / align * align);
                assert_eq!(units_for(x, align), up / align);
            }
        }
    }

    #[test]
    fn rounding_past_the_end_is_refused() {
        assert_eq!(checked_align_up(usize::MAX, 64), None);
        assert_eq!(checked_align_up(usize::MAX - 62, 64), None);
        assert_eq!(checked_align_up(usize::MAX - 63, 64), Some(usize::MAX - 63));
    }
}
