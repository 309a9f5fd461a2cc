//! Seeded random numbers that never allocate.

/// xorshift64*: small, and good enough to choose what happens next.
#[derive(Debug, Clone, Copy)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed; neighbouring seeds give unrelated ones.
    pub const fn new(seed: u64) -> Random {
        // splitmix64's finish, so that small seeds do not begin with small numbers; never 0.
        let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((x ^ (x >> 31)) | 1)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.bits() >> 32) as usize * n) >> 32
    }

    /// Yes once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A size whose magnitude is evenly spread: from 1 to about `2^bits` bytes.
    pub fn size(&mut self, bits: usize) -> usize {
        let bits = 1 + self.below(bits);
        1 + self.below(1 << bits)
    }
}
