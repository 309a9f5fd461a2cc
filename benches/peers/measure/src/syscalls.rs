//! System calls of a step, counted in a run of its own that nobody times: `strace` follows the child, which marks the
//! beginning and the end of its steady steps by two calls that fail.
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::matrix::{self, Cell};

/// Advice that no kernel knows, so that the call does nothing and stands out.
const BEGIN: i32 = 0x57e9;
const END: i32 = 0x57ea;

/// What is counted: calls about memory and about waiting. The rest are the bench's own, which reads files of /proc.
const COUNTED: &str = "trace=%memory,futex,sched_yield,membarrier,clone,clone3";

fn mark(length: usize, advice: i32) {
    // SAFETY: unknown advice changes nothing.
    unsafe { libc::madvise(std::ptr::null_mut(), length, advice) };
}

/// Marks, in the child, the beginning of the steps that count.
pub fn begin() {
    mark(0, BEGIN);
}

/// Marks their end, and how many they were.
pub fn end(steps: usize) {
    mark(steps, END);
}

/// Whether there is an `strace` that can follow a process here.
pub fn can_count() -> bool {
    let mut trial = Command::new("strace");
    trial.args(["-f", "-qq", "-e", COUNTED, "-o", "/dev/null", "true"]);
    trial.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    trial.status().is_ok_and(|status| status.success())
}

/// Runs the cell under `strace`, its log in `scratch`, and returns the calls a step; `None` if the child marked no steps.
///
/// # Errors
/// When the process fails.
pub fn count(cell: &Cell, scratch: &Path, limit: Duration) -> Result<Option<f64>, String> {
    let log = scratch.join("strace.log");
    let mut traced = cell.clone();
    traced.program = "strace".into();
    traced.arguments = ["-f", "-qq", "-e", COUNTED, "-o"].map(Into::into).to_vec();
    traced
        .arguments
        .extend([log.clone().into(), cell.program.clone().into()]);
    traced.arguments.extend(cell.arguments.iter().cloned());
    matrix::run_cell(&traced, limit)?;
    let text = std::fs::read_to_string(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    Ok(calls_a_step(&text))
}

fn calls_a_step(log: &str) -> Option<f64> {
    let (begin, end) = (format!(", {BEGIN:#x}"), format!(", {END:#x}"));
    let after = log.lines().skip_while(|line| !line.contains(&begin)).skip(1);
    let mut calls = 0;
    for line in after {
        if line.contains(&end) {
            let length = line.split("madvise(NULL, ").nth(1)?.split(',').next()?;
            return Some(f64::from(calls) / length.parse::<f64>().ok().filter(|&steps| steps > 0.0)?);
        }
        // A call that another thread's interrupted is written twice; threads that end write no call.
        calls += i32::from(line.contains('(') && !line.contains(" resumed>"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_between_the_marks_are_counted() {
        let log = "7 brk(NULL) = 0x1\n7 madvise(NULL, 0, 0x57e9 /* MADV_??? */) = -1 EINVAL (Invalid argument)\n\
                   7 mmap(NULL, 4096 <unfinished ...>\n8 munmap(0x2, 4096) = 0\n7 <... mmap resumed>) = 0x2\n\
                   7 madvise(NULL, 4, 0x57ea /* MADV_??? */) = -1 EINVAL (Invalid argument)\n7 brk(NULL) = 0x1\n";
        assert_eq!(calls_a_step(log), Some(0.5));
        assert_eq!(calls_a_step("7 brk(NULL) = 0x1\n"), None);
    }
}
