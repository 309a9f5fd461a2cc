//! What the system says about this process: page faults and peak memory. `None` where it does not tell.

/// Page faults of all threads of the process so far, those served from memory and those from disk.
pub fn page_faults() -> Option<u64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{getrusage, UsageWho};
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        u64::try_from(usage.minor_page_faults() + usage.major_page_faults()).ok()
    }
    #[cfg(not(unix))]
    None
}

/// The most memory the process has had resident so far, in bytes.
///
/// From Linux's `VmHWM`. `ru_maxrss` is no substitute there: it survives `exec`, so that a child starts out with the
/// peak of the process that started it.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
