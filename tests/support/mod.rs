//! What the integration tests share: blocks that know their pattern, fresh processes and threads, and what the system
//! says about memory.
#![allow(dead_code)] // each test file is its own crate and uses a part of this

pub mod block;
pub mod chaos;
pub mod random;
pub mod shadow;
pub mod workload;

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::{Command, Output};

/// A block of some allocator, filled with one byte when it is made and grown, verified when it is freed.
pub struct Block<A: GlobalAlloc + 'static = Global> {
    allocator: &'static A,
    ptr: *mut u8,
    layout: Layout,
    pattern: u8,
}

// SAFETY: a block is memory and nothing else; the allocator is shared by reference between all threads anyway.
unsafe impl<A: GlobalAlloc + Sync> Send for Block<A> {}

/// The program's global allocator as a value.
pub struct Global;

// SAFETY: every call is passed on to the program's global allocator.
unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { std::alloc::alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { std::alloc::dealloc(p, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { std::alloc::alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { std::alloc::realloc(p, layout, new_size) }
    }
}

pub fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

impl Block<Global> {
    /// A block of the global allocator; panics where it is refused.
    pub fn new(size: usize, align: usize) -> Block {
        Block::try_new(size, align).expect("the allocator refused a block")
    }

    pub fn try_new(size: usize, align: usize) -> Option<Block> {
        Block::from(&Global, layout(size, align), false)
    }

    pub fn zeroed(size: usize, align: usize) -> Block {
        Block::from(&Global, layout(size, align), true).expect("the allocator refused a block")
    }
}

impl<A: GlobalAlloc> Block<A> {
    /// A block of `allocator`; asked for as zeroed, it is seen to be so.
    pub fn from(allocator: &'static A, layout: Layout, zeroed: bool) -> Option<Block<A>> {
        // SAFETY: a block of size 0 is asked for only from values that promise to serve it.
        let ptr = unsafe {
            if zeroed {
                allocator.alloc_zeroed(layout)
            } else {
                allocator.alloc(layout)
            }
        };
        if ptr.is_null() {
            return None;
        }
        assert_eq!(ptr.addr() % layout.align(), 0, "{layout:?} at {ptr:?}");
        block::check_line(ptr, layout);
        let pattern = (ptr.addr() >> 4 ^ layout.size() ^ ptr.addr() >> 13) as u8 | 1;
        let mut block = Block {
            allocator,
            ptr,
            layout,
            pattern,
        };
        if zeroed {
            assert!(is_uniform(block.bytes(), 0), "{layout:?} is not zero");
        }
        block.bytes_mut().fill(pattern);
        Some(block)
    }

    pub fn addr(&self) -> usize {
        self.ptr.addr()
    }

    pub fn size(&self) -> usize {
        self.layout.size()
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block is live and this long.
        unsafe { std::slice::from_raw_parts(self.ptr, self.layout.size()) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.layout.size()) }
    }

    /// Panics unless every byte is what was written.
    pub fn verify(&self) {
        assert!(
            is_uniform(self.bytes(), self.pattern),
            "a block of {:?} at {:?} changed",
            self.layout,
            self.ptr
        );
    }

    /// Reallocates; `false` if that was refused, and then nothing has changed.
    pub fn resize(&mut self, size: usize) -> bool {
        // SAFETY: the block is live with this layout, the new size is not 0 and makes a layout.
        let p = unsafe { self.allocator.realloc(self.ptr, self.layout, size) };
        if p.is_null() {
            self.verify();
            return false;
        }
        let kept = size.min(self.layout.size());
        self.ptr = p;
        self.layout = layout(size, self.layout.align());
        assert_eq!(p.addr() % self.layout.align(), 0);
        block::check_line(p, self.layout);
        let pattern = self.pattern;
        assert!(is_uniform(&self.bytes()[..kept], pattern), "realloc lost bytes");
        self.bytes_mut()[kept..].fill(pattern);
        true
    }

    /// Gives the pointer up, not freed.
    pub fn into_raw(self) -> (*mut u8, Layout) {
        self.verify();
        let raw = (self.ptr, self.layout);
        std::mem::forget(self);
        raw
    }
}

impl<A: GlobalAlloc> Drop for Block<A> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.verify();
        }
        // A block that is used after its free should not look right.
        self.bytes_mut().fill(0xDB);
        // SAFETY: the block is live with this layout and not used again.
        unsafe { self.allocator.dealloc(self.ptr, self.layout) };
    }
}

/// Whether all bytes are `byte`. Compares the slice with itself shifted by one, which is quick in debug builds too.
pub fn is_uniform(bytes: &[u8], byte: u8) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == byte && rest == &bytes[..rest.len()],
    }
}

/// xorshift64*: a stream of numbers from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    /// A size from 1 to about `most`, small ones as likely as large ones by magnitude.
    pub fn size(&mut self, most: usize) -> usize {
        let bits = self.below(most.ilog2() as usize + 1);
        (1 << bits) + self.below(1 << bits)
    }
}

/// Bytes of a page.
pub fn page_size() -> usize {
    #[cfg(unix)]
    // SAFETY: asks for a number.
    return unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    #[cfg(not(unix))]
    4_096
}

/// What a child is told to do; `None` in the parent.
pub fn role() -> Option<String> {
    let role = std::env::var("STEPALLOC_TEST_ROLE").ok()?;
    #[cfg(unix)]
    hang_at_most();
    Some(role)
}

/// A child that hangs is a failure, not a wait. One that forks under a sanitizer, on a machine that others use too, has
/// been seen to need more than thirty seconds, so it gets several times that.
#[cfg(unix)]
pub fn hang_at_most() {
    const SECONDS: u32 = 150;
    // SAFETY: asks for a signal that ends the process.
    unsafe { libc::alarm(SECONDS) };
}

/// This program again, through `STEPALLOC_TEST_RUNNER` where the system cannot start it by itself.
pub fn this_program() -> Command {
    let program = std::env::current_exe().unwrap();
    match std::env::var_os("STEPALLOC_TEST_RUNNER") {
        None => Command::new(program),
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(program);
            command
        }
    }
}

/// Runs the named test of this program again, alone in a fresh process with a role.
pub fn run_child(test: &str, role: &str) -> Output {
    this_program()
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("STEPALLOC_TEST_ROLE", role)
        .env("RUST_BACKTRACE", "0") // a backtrace needs memory, which some children have none of
        .output()
        .unwrap()
}

/// Runs the named test in a child and returns what it printed; the child must pass.
pub fn child_passes(test: &str, role: &str) -> String {
    let output = run_child(test, role);
    let text = text(&output);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{test} {role}: {}\n{text}",
        output.status
    );
    text
}

/// Runs `act` in a child that is told to do right (`false`), which must pass, and in one that is told to do wrong, whose
/// output is returned; in the children themselves `None`.
pub fn told_wrong(test: &str, act: impl FnOnce(bool)) -> Option<Output> {
    match role().as_deref() {
        Some("right") => act(false),
        Some(_) => act(true),
        None => {
            let right = run_child(test, "right");
            assert!(right.status.success(), "{}: {}", right.status, text(&right));
            return Some(run_child(test, "wrong"));
        }
    }
    None
}

/// All that a child printed.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The number behind `name=` in a text.
pub fn figure(text: &str, name: &str) -> u64 {
    let key = format!("{name}=");
    let at = text.find(&key).unwrap_or_else(|| panic!("no {name} in {text}")) + key.len();
    let digits: String = text[at..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// Runs `f` on a thread of its own and waits until that has ended, its thread-local destructors included.
pub fn in_thread<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    // Joined by handle: the scope alone does not wait for thread-local destructors.
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Whether the process was ended by its own abort.
pub fn aborted(status: std::process::ExitStatus) -> bool {
    #[cfg(unix)]
    return std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGABRT);
    // STATUS_STACK_BUFFER_OVERRUN, which is what a fast failure is called for history's sake.
    #[cfg(not(unix))]
    return status.code() == Some(0xC000_0409_u32 as i32);
}

/// A line of a file of `/proc/self` that is in kB, in bytes.
pub fn proc_bytes(file: &str, name: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// The same of its `status`.
pub fn status_bytes(name: &str) -> usize {
    proc_bytes("status", name)
}

/// Resident memory of the process, bytes.
pub fn resident() -> usize {
    status_bytes("VmRSS:")
}

/// Page faults of the calling thread so far.
#[cfg(target_os = "linux")]
pub fn faults() -> u64 {
    // SAFETY: zero bytes are a valid rusage, and getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage
    };
    (usage.ru_minflt + usage.ru_majflt) as u64
}

/// Sets the soft limit of a resource.
#[cfg(target_os = "linux")]
pub fn set_limit(resource: libc::__rlimit_resource_t, bytes: u64) {
    // SAFETY: plain structs handed to the system.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(resource, &mut limit), 0);
        limit.rlim_cur = bytes;
        assert_eq!(libc::setrlimit(resource, &limit), 0);
    }
}

/// Fills the backing's own free lists with `count` blocks of each of these sizes, so that it can serve a while when the
/// system gives nothing more.
pub fn stock_backing(sizes: &[usize], count: usize) {
    let mut blocks = Vec::with_capacity(count);
    for &size in sizes {
        let layout = layout(size, 16);
        for _ in 0..count {
            // SAFETY: the layout has a size; each block is freed below, but one for each size.
            blocks.push(unsafe { System.alloc(layout) });
            // SAFETY: as above. Freed blocks with a live one between them stay apart and are not given back.
            let _pin = unsafe { System.alloc(self::layout(16, 16)) };
        }
        for p in blocks.drain(..) {
            // SAFETY: made above with this layout.
            unsafe { System.dealloc(p, layout) };
        }
    }
}
