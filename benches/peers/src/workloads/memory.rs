//! Resident memory over what lives, under random lifetimes and under escapees.
use std::alloc::Layout;
use std::ptr;

use stepalloc_measure::mapped::Mapped;
use stepalloc_measure::process;

use crate::run::Run;

/// A block that knows its layout, with its first and last word written.
#[derive(Clone, Copy)]
struct Block {
    place: *mut u8,
    size: usize,
}

const NONE: Block = Block {
    place: ptr::null_mut(),
    size: 0,
};

impl Block {
    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("sizes are small")
    }

    #[inline]
    fn make(size: usize) -> Block {
        // SAFETY: the size is 16 or more; both words lie in the block. Writing at both ends and, in larger blocks, once a
        // page makes all of it resident.
        unsafe {
            let place = std::alloc::alloc(Self::layout(size));
            assert!(!place.is_null());
            place.cast::<usize>().write(size);
            for page in (4096..size).step_by(4096) {
                place.add(page).write(1);
            }
            place.add(size - 8).cast::<usize>().write_unaligned(!size);
            Block { place, size }
        }
    }

    #[inline]
    fn free(self) {
        // SAFETY: the block was made by `make` and is freed once.
        unsafe {
            assert_eq!(
                self.place.add(self.size - 8).cast::<usize>().read_unaligned(),
                !self.size
            );
            assert_eq!(self.place.cast::<usize>().read(), self.size);
            std::alloc::dealloc(self.place, Self::layout(self.size));
        }
    }
}

/// Blocks of `LOW` to `HIGH` bytes, replaced at random in one scope.
pub fn replace<const LOW: usize, const HIGH: usize>(run: &Run) {
    const COUNT: usize = 200_000;
    let times = run.pick(30, 10);
    let mut blocks = Mapped::new(COUNT, NONE);
    let mut random = fastrand::Rng::with_seed(19);
    let level = run.level();
    run.step(|| {
        for block in blocks.iter_mut() {
            *block = Block::make(random.usize(LOW..=HIGH));
        }
        run.begin_steady();
        let clock = process::cpu_ns();
        for _ in 0..times * COUNT {
            let block = &mut blocks[random.usize(..COUNT)];
            block.free();
            *block = Block::make(random.usize(LOW..=HIGH));
        }
        run.figure("ns", (process::cpu_ns() - clock) as f64 / (times * COUNT) as f64);
        run.end_steady(times * COUNT);
        let live: usize = blocks.iter().map(|block| block.size).sum();
        run.figure(
            "resident_over_live",
            run.resident_bytes().saturating_sub(level) as f64 / live as f64,
        );
        for block in blocks.iter() {
            block.free();
        }
    });
}

/// Live bytes stay the same while sizes drift from tens of bytes to tens of KiB and back; lifetimes are random.
pub fn drift(run: &Run) {
    const LIVE: usize = 64 << 20;
    let mut blocks = Mapped::new(LIVE / 32, NONE);
    let (mut count, mut live, mut operations) = (0, 0, 0_usize);
    let mut random = fastrand::Rng::with_seed(23);
    let level = run.level();
    run.step(|| {
        run.begin_steady();
        let clock = process::cpu_ns();
        let mut peak = 0;
        let up_and_down = (0..9).chain((0..8).rev());
        for phase in up_and_down.step_by(if run.is_counted() { 2 } else { 1 }) {
            let base = 32 << phase;
            let mut made = 0;
            while made < 2 * LIVE {
                let size = random.usize(base..4 * base);
                while live + size > LIVE || count == blocks.len() {
                    let index = random.usize(..count);
                    let block = blocks[index];
                    live -= block.size;
                    block.free();
                    count -= 1;
                    blocks[index] = blocks[count];
                }
                blocks[count] = Block::make(size);
                count += 1;
                live += size;
                made += size;
                operations += 1;
                if operations % 8192 == 0 {
                    peak = peak.max(run.resident_bytes());
                }
            }
            peak = peak.max(run.resident_bytes());
        }
        run.figure("ns", (process::cpu_ns() - clock) as f64 / operations as f64);
        run.end_steady(operations);
        run.figure("peak_over_live", peak.saturating_sub(level) as f64 / LIVE as f64);
        run.figure(
            "resident_over_live",
            run.resident_bytes().saturating_sub(level) as f64 / live as f64,
        );
        for block in blocks.iter().take(count) {
            block.free();
        }
    });
}

/// Steps of ten temporaries of varied size that each leave one block of 24 B, made after the first `BEFORE` temporaries.
pub fn escapee<const BEFORE: usize>(run: &Run) {
    let steps = run.pick(1_000_000, 200_000);
    let mut kept = Mapped::new(steps, NONE);
    let mut random = fastrand::Rng::with_seed(29);
    let level = run.level();
    let (early, late) = (steps / 100..steps * 6 / 100, steps - steps / 20..steps);
    let (mut clock, mut early_ns, mut late_ns) = (process::cpu_ns(), 0, 0);
    let started = clock;
    run.begin_steady();
    for (step, kept) in kept.iter_mut().enumerate() {
        if step == early.start || step == late.start {
            clock = process::cpu_ns();
        } else if step == early.end {
            early_ns = process::cpu_ns() - clock;
        }
        run.step(|| {
            let mut temporaries = [NONE; 10];
            for (index, temporary) in temporaries.iter_mut().enumerate() {
                if index == BEFORE {
                    *kept = Block::make(24);
                }
                *temporary = Block::make(random.usize(16..512));
            }
            if BEFORE == 10 {
                *kept = Block::make(24);
            }
            temporaries.iter().for_each(|temporary| temporary.free());
        });
    }
    late_ns += process::cpu_ns() - clock;
    run.end_steady(steps);
    run.figure("ns", (process::cpu_ns() - started) as f64 / steps as f64);
    run.figure(
        "bytes_a_kept_block",
        run.resident_bytes().saturating_sub(level) as f64 / steps as f64,
    );
    run.figure("last_to_first", late_ns as f64 / early_ns as f64);
    kept.iter().for_each(|block| block.free());
}
