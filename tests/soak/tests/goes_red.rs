//! The soak must fail when there is something to find: a leak of some bytes a step, and one block that is kept.

use std::process::Command;

fn soak(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_soak"))
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    (output.status.success(), text)
}

#[test]
fn a_leak_is_a_slope() {
    let (passed, text) = soak(&["--seconds", "6", "--leak", "256"]);
    assert!(!passed && text.contains("resident memory has a slope"), "{text}");
}

#[test]
fn a_block_that_is_kept_is_counted() {
    let (passed, text) = soak(&["--seconds", "2", "--keep"]);
    assert!(!passed && text.contains("bytes are still in use"), "{text}");
}
