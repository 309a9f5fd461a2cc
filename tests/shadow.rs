//! The shadow map and the chaos around it, shown to go red: under allocators that are broken on purpose, a process of
//! its own must die with the right message, and under a sound one live.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use support::chaos::Chaos;

/// How an allocator can be broken.
#[derive(Clone, Copy, PartialEq)]
enum Broken {
    /// Not at all.
    Sound,
    /// The third block begins inside the second.
    Overlap,
    /// Blocks begin 16 bytes after what was asked to be aligned.
    Misaligned,
    /// Zeroed blocks hold old data.
    Dirty,
    /// `realloc` forgets to copy.
    Forgetful,
}

struct Hostile {
    how: Broken,
    made: AtomicUsize,
    last: AtomicUsize,
}

// SAFETY: none of it is sound, on purpose; the blocks come from `System` with room to spare and are never freed.
unsafe impl GlobalAlloc for Hostile {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let room = Layout::from_size_align(layout.size() + 8192, 4096).unwrap();
        // SAFETY: the size is not 0.
        let p = unsafe { System.alloc_zeroed(room) };
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        let last = self.last.swap(p.addr(), Ordering::Relaxed);
        match self.how {
            Broken::Overlap if made == 2 => p.with_addr(last + 64),
            Broken::Misaligned => p.wrapping_add(16),
            _ => p,
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let p = unsafe { self.alloc(layout) };
        if self.how == Broken::Dirty {
            // SAFETY: inside the block just made.
            unsafe { p.add(layout.size() - 1).write(1) };
        }
        p
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; the new block is at least as long as what is copied.
        unsafe {
            let to = self.alloc(Layout::from_size_align(new_size, layout.align()).unwrap());
            if self.how != Broken::Forgetful {
                p.copy_to_nonoverlapping(to, layout.size().min(new_size));
            }
            to
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

/// What a child process does, by name.
fn act(name: &str) {
    let over = |how| {
        Chaos::over(Hostile {
            how,
            made: AtomicUsize::new(0),
            last: AtomicUsize::new(0),
        })
    };
    let work = |chaos: &Chaos<Hostile>| {
        let layout = Layout::from_size_align(100, 64).unwrap();
        // SAFETY: sizes are not 0 and each block is freed once with its layout: what is wrong is the allocator.
        unsafe {
            let blocks = [(); 4].map(|()| chaos.alloc(layout));
            let zeroed = chaos.alloc_zeroed(layout);
            zeroed.write_bytes(1, layout.size());
            chaos.dealloc(
                chaos.realloc(zeroed, layout, 300),
                Layout::from_size_align(300, 64).unwrap(),
            );
            for p in blocks {
                chaos.dealloc(p, layout);
            }
        }
    };
    let chaos = over(Broken::Sound);
    let layout = Layout::from_size_align(100, 8).unwrap();
    // SAFETY: deliberately wrong frees; the shadow map stops them before the allocator sees them.
    let wrong = |frees: &[(usize, usize)]| unsafe {
        let p = chaos.alloc(layout);
        for &(offset, size) in frees {
            chaos.dealloc(p.add(offset), Layout::from_size_align(size, 8).unwrap());
        }
    };
    match name {
        "sound" => work(&chaos),
        "overlap" => work(&over(Broken::Overlap)),
        "misaligned" => work(&over(Broken::Misaligned)),
        "dirty" => work(&over(Broken::Dirty)),
        "forgetful" => work(&over(Broken::Forgetful)),
        "freed_twice" => wrong(&[(0, 100), (0, 100)]),
        "inside" => wrong(&[(16, 84)]),
        "another_size" => wrong(&[(0, 99)]),
        other => panic!("{other}?"),
    }
}

const CHILD: &str = "STEPALLOC_TEST_CHILD";

#[test]
#[ignore = "runs as the child of `each_fault_is_seen`"]
fn child() {
    if let Ok(name) = std::env::var(CHILD) {
        act(&name);
    }
}

#[test]
fn each_fault_is_seen() {
    let cases = [
        ("overlap", "shadow: overlap"),
        ("misaligned", "shadow: misaligned"),
        ("dirty", "is not zero"),
        ("forgetful", "changed what it kept"),
        ("freed_twice", "shadow: freed twice"),
        ("inside", "shadow: freed twice or never made"),
        ("another_size", "shadow: another layout"),
        ("sound", ""),
    ];
    for (name, message) in cases {
        let mut child = support::this_program();
        child
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(CHILD, name);
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), name == "sound", "{name}: {said}");
        assert!(said.contains(message), "{name}: {said}");
    }
}
