//! Records the example, then holds the recording against what the example does, and replays it.
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use stepalloc_trace_format::{records, Op, Record, RECORD_BYTES};
use stepalloc_traces::replay::{replay, Global, Purpose, Scopes};
use stepalloc_traces::trace::Trace;

const STEPS: usize = 30;

/// The example; cargo builds it before it runs this.
fn example() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(Path::parent).unwrap();
    folder.join("examples/record")
}

/// Runs the example with these variables; what it printed.
fn run(variables: &[(&str, &Path)]) -> String {
    let mut command = Command::new(example());
    command.env_remove("STEPALLOC_TRACE").env_remove("STEPALLOC_TRACE_MIB");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn recorded(scratch: &Path, mib: &str) -> Vec<u8> {
    let file = scratch.join("small.trace");
    let said = run(&[("STEPALLOC_TRACE", &file), ("STEPALLOC_TRACE_MIB", Path::new(mib))]);
    assert!(said.starts_with(&STEPS.to_string()), "{said}");
    std::fs::read(file).unwrap()
}

fn read(bytes: &[u8]) -> Vec<Record> {
    records(bytes).map(Result::unwrap).collect()
}

#[test]
fn what_the_example_does_is_in_its_recording() {
    let scratch = tempfile::tempdir().unwrap();
    let bytes = recorded(scratch.path(), "16");
    let records = read(&bytes);
    assert_eq!(
        records.len() * RECORD_BYTES,
        bytes.len(),
        "the file is cut to its length"
    );
    let count = |op: Op, fits: &dyn Fn(&Record) -> bool| records.iter().filter(|r| r.op == op && fits(r)).count();
    assert_eq!(count(Op::StepBegin, &|r| r.thread == 0), STEPS);
    assert_eq!(count(Op::StepEnd, &|r| r.thread == 0), STEPS);
    for step in 1..=STEPS as u32 {
        let in_step = |r: &Record| r.step == step;
        assert!(count(Op::Alloc, &|r| in_step(r) && r.size == 8 && r.align_log2 == 3) >= 1000);
        assert_eq!(count(Op::AllocZeroed, &|r| in_step(r) && r.size == 100_000), 1);
        assert_eq!(count(Op::Realloc, &|r| in_step(r) && r.size == 11_000 * 8), 1);
        // Made on a thread of its own, freed on the training thread.
        let made: Vec<u32> = (records.iter())
            .filter(|r| in_step(r) && r.op == Op::Alloc && r.size == 32 && r.align_log2 == 2 && r.thread != 0)
            .map(|r| r.block)
            .collect();
        assert_eq!(made.len(), 100);
        assert_eq!(
            count(Op::Free, &|r| r.thread == 0 && made.contains(&r.block)),
            made.len()
        );
    }
}

#[test]
fn numbers_are_dense_and_every_life_is_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let mut sizes: HashMap<u32, u64> = HashMap::new();
    let mut next = 0;
    for record in read(&recorded(scratch.path(), "16")) {
        match record.op {
            Op::Alloc | Op::AllocZeroed => {
                assert_eq!(record.block, next, "blocks are numbered in the order of their records");
                next += 1;
                sizes.insert(record.block, record.size);
            }
            Op::Realloc => assert!(sizes.insert(record.block, record.size).is_some()),
            Op::Free => assert_eq!(sizes.remove(&record.block), Some(record.size)),
            Op::StepBegin | Op::StepEnd => {}
        }
    }
    assert!(next > 5000);
}

#[test]
fn the_recording_replays_with_every_byte_verified() {
    let scratch = tempfile::tempdir().unwrap();
    let bytes = recorded(scratch.path(), "16");
    let made = read(&bytes).iter().filter(|record| record.op.makes()).count();
    let trace = Trace::load(&scratch.path().join("small.trace")).unwrap();
    assert_eq!((trace.block_count, trace.step_count), (made, STEPS));
    assert!(trace.thread_count >= 2);
    let checked = |threads| replay(&trace, &Global, Purpose::Verify, Scopes::Step, threads).checked_blocks;
    let one = checked(false);
    // Each block that was freed is checked when it is; those that the program never freed are left.
    let freed = read(&bytes).iter().filter(|record| record.op == Op::Free).count();
    assert_eq!(one, freed as u64);
    assert_eq!(checked(true), one);
}

#[test]
fn a_full_recording_ends_and_the_program_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = recorded(scratch.path(), "16");
    assert!(whole.len() > 1 << 20, "the example overruns a file of 1 MiB");
    let bytes = recorded(scratch.path(), "1");
    assert_eq!(bytes.len(), (1 << 20) / RECORD_BYTES * RECORD_BYTES);
    assert_eq!(read(&bytes).len(), (1 << 20) / RECORD_BYTES);
    assert!(Trace::load(&scratch.path().join("small.trace")).is_ok());
}

#[test]
fn without_a_file_nothing_is_recorded() {
    assert_eq!(run(&[]).trim(), format!("{STEPS} not recorded"));
}
