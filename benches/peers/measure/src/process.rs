//! Figures of this process, taken without allocating: CPU time, page faults, resident memory.
use std::ffi::CStr;

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for a timespec.
    let failed = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(failed, 0, "clock_gettime");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time of the whole process in nanoseconds, system time included.
pub fn cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time of this thread in nanoseconds, system time included.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Page faults of the process so far that needed no input or output.
pub fn minor_faults() -> u64 {
    // SAFETY: all-zero bytes are a valid rusage, and getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_minflt as u64
}

/// Reads a file of /proc again and again through one descriptor and no heap.
struct ProcFile(libc::c_int);

impl ProcFile {
    fn open(path: &CStr, flags: libc::c_int) -> Self {
        // SAFETY: `path` ends in a zero byte.
        let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
        assert!(fd >= 0, "cannot open {path:?}: these figures need Linux's /proc");
        ProcFile(fd)
    }

    /// As much of the file as fits.
    fn read<'a>(&self, buffer: &'a mut [u8]) -> &'a str {
        let mut filled = 0;
        loop {
            let rest = &mut buffer[filled..];
            // SAFETY: `rest` is writable for its length.
            let got = unsafe { libc::pread(self.0, rest.as_mut_ptr().cast(), rest.len(), filled as libc::off_t) };
            if got <= 0 {
                break;
            }
            filled += got as usize;
        }
        std::str::from_utf8(&buffer[..filled]).unwrap_or("")
    }
}

impl Drop for ProcFile {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's own.
        unsafe { libc::close(self.0) };
    }
}

/// The process's resident memory.
///
/// `now` reads /proc/self/statm, which sums the kernel's counters exactly (kernels before 6.16 keep up to 32 pages a CPU
/// apart). The kernel's own peak is taken from those inexact counters in every version, so `peak_since_reset` can lag
/// by some hundred KiB; where that matters, sample `now`.
pub struct Resident {
    statm: ProcFile,
    status: ProcFile,
    page: u64,
}

impl Resident {
    /// Opens the files.
    pub fn new() -> Self {
        Resident {
            statm: ProcFile::open(c"/proc/self/statm", libc::O_RDONLY),
            status: ProcFile::open(c"/proc/self/status", libc::O_RDONLY),
            // SAFETY: sysconf has no preconditions.
            page: unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64,
        }
    }

    /// Resident bytes now.
    pub fn now(&self) -> u64 {
        let mut buffer = [0; 128];
        let text = self.statm.read(&mut buffer);
        let pages = text.split(' ').nth(1).and_then(|field| field.parse::<u64>().ok());
        pages.expect("statm has a second field") * self.page
    }

    /// Sets the kernel's peak to what is resident now.
    pub fn reset_peak(&self) {
        let file = ProcFile::open(c"/proc/self/clear_refs", libc::O_WRONLY);
        // SAFETY: one readable byte.
        let wrote = unsafe { libc::write(file.0, b"5".as_ptr().cast(), 1) };
        assert_eq!(wrote, 1, "cannot reset the peak of resident memory");
    }

    /// The most bytes resident at once since `reset_peak`.
    pub fn peak_since_reset(&self) -> u64 {
        let mut buffer = [0; 8192];
        let text = self.status.read(&mut buffer);
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.expect("status has VmHWM") * 1024
    }
}

impl Default for Resident {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes every page of the program and its libraries resident, so that code run for the first time later is not counted
/// as memory of the allocator.
pub fn populate_code() {
    let maps = ProcFile::open(c"/proc/self/maps", libc::O_RDONLY);
    let mut buffer = crate::mapped::Mapped::new(256 * 1024, 0_u8);
    for line in maps.read(&mut buffer).lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(access), Some(path)) = (fields.next(), fields.next(), fields.nth(3)) else {
            continue;
        };
        if !path.starts_with('/') || !access.starts_with('r') {
            continue;
        }
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else {
            continue;
        };
        // SAFETY: reading pages in changes no memory; ranges that cannot be read give an error, which does not matter.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_POPULATE_READ) };
    }
}

/// The end of a child's `main`: an error is said, and the process fails with it.
pub fn end(outcome: Result<(), String>) {
    if let Err(error) = outcome {
        eprintln!("{error}");
        std::process::exit(2);
    }
}
