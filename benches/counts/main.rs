//! Instructions of the hot paths, as callgrind counts them: `cargo bench --bench counts`
//!
//! Unlike times they do not depend on who else uses the machine, so a change that costs the hot paths something shows at
//! once. Each operation runs as a process of its own under valgrind, with two numbers of rounds; the difference has no
//! start-up in it. The figures are compared with `counts.txt` beside this file, and the program fails if one is more than
//! `TOLERANCE` above. `cargo bench --bench counts -- --bless` writes the file anew.
//!
//! They are the compiler's figures too: the file names the version that they were made with, and with another one
//! they are printed and not judged, nor are those of the feature `hardened`. Without valgrind nothing is counted, and the
//! program says so.
//!
//! `cargo bench --bench counts -- --csv FILE` judges nothing and adds the counts to a file for `benches/report`.

use std::alloc::{alloc, dealloc, realloc, Layout};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Instant;

use stepalloc::{arena_scope, outside_scope, ArenaScope, StepAlloc};

// valgrind has no room for the usual reservation.
#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new().reservation(1 << 34);

/// How much more than in the file a count may be.
const TOLERANCE: f64 = 0.05;
/// The two numbers of rounds.
const ROUNDS: [u64; 2] = [200, 1_200];
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts/counts.txt");

/// An operation: its name, what one round does, and how many operations that is.
type Operation = (&'static str, fn(), u64);

const OPERATIONS: [Operation; 13] = [
    ("pair-32", pair::<32>, 1),
    ("pair-1024", pair::<1_024>, 1),
    ("pair-32-in-scope", in_scope_pair::<32>, 100),
    ("pair-1024-in-scope", in_scope_pair::<1_024>, 100),
    ("batch-in-scope", batch, 200),
    ("replace-in-scope", replace, 10_000),
    ("enter+leave", enter_leave, 1),
    ("enter+leave-used", enter_leave_used, 1),
    ("outside-in-scope", outside, 1),
    ("remote-free", remote_free, 100),
    ("remote-free-mixed", remote_free_mixed, 1_000),
    ("grow-in-scope", grow, 63),
    ("span", span, 1),
];

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a layout")
}

fn make(size: usize) -> *mut u8 {
    // SAFETY: no size of this file is 0.
    unsafe { black_box(alloc(layout(size))) }
}

fn free(block: *mut u8, size: usize) {
    // SAFETY: every caller hands in a live block of this size, once.
    unsafe { dealloc(black_box(block), layout(size)) }
}

fn pair<const SIZE: usize>() {
    free(make(SIZE), SIZE);
}

fn in_scope_pair<const SIZE: usize>() {
    arena_scope(|| (0..100).for_each(|_| pair::<SIZE>()));
}

const SIZES: [usize; 8] = [16, 24, 32, 48, 64, 96, 160, 512];

/// 200 small blocks of mixed sizes, freed in the order of making.
fn batch() {
    arena_scope(|| {
        let mut blocks = [std::ptr::null_mut(); 200];
        for (index, block) in blocks.iter_mut().enumerate() {
            *block = make(SIZES[index % 8]);
        }
        for (index, block) in blocks.into_iter().enumerate() {
            free(block, SIZES[index % 8]);
        }
    });
}

/// 1,000 small blocks of mixed sizes, then 9,000 in the place of one of them each, so that the next goes into some hole.
fn replace() {
    arena_scope(|| {
        let mut blocks = [(std::ptr::null_mut(), 0); 1_000];
        for (index, block) in blocks.iter_mut().enumerate() {
            let size = SIZES[index % 8];
            *block = (make(size), size);
        }
        let mut number = 1u64;
        for _ in 0..9_000 {
            number = number.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            let block = &mut blocks[(number >> 33) as usize % 1_000];
            let size = SIZES[(number >> 28) as usize % 8];
            free(block.0, block.1);
            *block = (make(size), size);
        }
        for (block, size) in blocks {
            free(block, size);
        }
    });
}

fn enter_leave() {
    arena_scope(|| black_box(()));
}

/// A scope that ends with its blocks still live, so that leaving has to take its hole anew.
fn enter_leave_used() {
    let blocks = arena_scope(|| [make(48), make(48)]);
    for block in blocks {
        free(block, 48);
    }
}

fn outside() {
    outside_scope(|| black_box(()));
}

/// 100 blocks freed by another thread; a hundredth of what it costs to start one is in the figure.
fn remote_free() {
    arena_scope(|| {
        let blocks = [(); 100].map(|()| make(64).expose_provenance());
        let freeing = thread::spawn(move || blocks.into_iter().for_each(|block| free(block as *mut u8, 64)));
        freeing.join().expect("it has not panicked");
    });
}

/// 1,000 blocks of 16 to 1,023 bytes freed by another thread; a thousandth of what it costs to start one is in the figure.
fn remote_free_mixed() {
    arena_scope(|| {
        let size = |index: usize| 16 + index * 617 % 1_008;
        let blocks: Vec<usize> = (0..1_000).map(|index| make(size(index)).expose_provenance()).collect();
        let freeing = thread::spawn(move || {
            for (index, &block) in blocks.iter().enumerate() {
                free(block as *mut u8, size(index));
            }
        });
        freeing.join().expect("it has not panicked");
    });
}

/// A block that grows in place, 64 bytes at a time.
fn grow() {
    arena_scope(|| {
        let mut block = make(64);
        for size in (64..4_096).step_by(64) {
            // SAFETY: the block is live and of this size.
            block = unsafe { realloc(block, layout(size), size + 64) };
        }
        free(block, 4_096);
    });
}

fn span() {
    pair::<{ 256 << 10 }>();
}

/// The child: one operation, so often.
fn run(name: &str, rounds: u64) {
    let (_, operation, _) = OPERATIONS.into_iter().find(|known| known.0 == name).expect("its name");
    // `outside-in-scope` runs in one; the others open their own.
    let _scope = name.starts_with("outside").then(ArenaScope::enter);
    (0..rounds).for_each(|_| operation());
    assert!(stepalloc::is_installed());
}

/// All instructions of a child.
fn instructions(name: &str, rounds: u64) -> Option<u64> {
    let this = std::env::current_exe().expect("its own path");
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(this)
        .args(["--run", name, &rounds.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{name}: {}\n{text}", out.status);
    let line = text
        .lines()
        .find_map(|line| line.split("Collected :").nth(1))
        .expect("callgrind's total");
    Some(line.trim().parse().expect("a number"))
}

/// Adds the counts to a file of values, as `benches/report` reads them: this build's are a column of their own.
fn add_to(path: &str, counts: &[(&str, f64)]) {
    let is_new = !Path::new(path).exists();
    let column = if cfg!(feature = "hardened") {
        "hardened"
    } else {
        "plain"
    };
    let mut text = String::from(if is_new { "row,figure,column,round,value\n" } else { "" });
    for (name, count) in counts {
        writeln!(text, "{name},instructions,{column},0,{count}").expect("a string takes it");
    }
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.expect("the file can be written");
}

fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let out = Command::new(rustc).arg("--version").output().expect("rustc runs");
    let version = String::from_utf8_lossy(&out.stdout);
    let version = version.split(' ').nth(1).unwrap_or("unknown");
    format!("{version} {}", std::env::consts::ARCH)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, run_child, name, rounds] = &arguments[..] {
        if run_child == "--run" {
            run(name, rounds.parse().expect("a number"));
            return ExitCode::SUCCESS;
        }
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: there is no valgrind to count with");
        return ExitCode::SUCCESS;
    }
    let bless = arguments.iter().any(|argument| argument == "--bless");
    let compiler = compiler();
    let file = std::fs::read_to_string(Path::new(FILE)).unwrap_or_default();
    let known: BTreeMap<&str, f64> = file
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, count)| Some((name, count.trim().parse().ok()?)))
        .collect();
    let csv = arguments.iter().skip_while(|argument| *argument != "--csv").nth(1);
    let judged =
        csv.is_none() && !cfg!(feature = "hardened") && file.lines().any(|line| line == format!("compiler {compiler}"));
    let mut text = format!(
        "Instructions an operation; written by `cargo bench --bench counts -- --bless`.\ncompiler {compiler}\n"
    );
    let (mut more, mut counts, started) = (0, Vec::new(), Instant::now());
    println!("{:<20} {:>10} {:>10}", "operation", "now", "in file");
    for (name, _, operations) in OPERATIONS {
        let [few, many] = ROUNDS.map(|rounds| instructions(name, rounds).expect("valgrind was there before"));
        let count = (many - few) as f64 / ((ROUNDS[1] - ROUNDS[0]) * operations) as f64;
        let before = known.get(name).copied();
        let ratio = before.map_or(1.0, |before| count / before);
        let verdict = match before {
            None => "new",
            _ if ratio > 1.0 + TOLERANCE => "MORE",
            _ if ratio < 1.0 - TOLERANCE => "less: --bless records it",
            _ => "",
        };
        more += u32::from(ratio > 1.0 + TOLERANCE);
        println!(
            "{name:<20} {count:>10.1} {:>10.1} {verdict}",
            before.unwrap_or(f64::NAN)
        );
        writeln!(text, "{name} {count:.1}").expect("a string takes it");
        counts.push((name, count));
        // For who shows progress itself.
        if std::env::var_os("STEPALLOC_PROGRESS").is_some() {
            let (done, all) = (2 * counts.len(), 2 * OPERATIONS.len());
            eprintln!("{done}/{all} processes, {} s", started.elapsed().as_secs());
        }
    }
    if let Some(path) = csv {
        add_to(path, &counts);
    }
    if bless {
        std::fs::write(FILE, text).expect("the file can be written");
        println!("written to {FILE}");
        return ExitCode::SUCCESS;
    }
    if !judged {
        println!("not judged: only the plain build is, by the compiler that the file names");
        return ExitCode::SUCCESS;
    }
    println!(
        "{more} of {} counts are more than {TOLERANCE} above the file's",
        OPERATIONS.len()
    );
    if more == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
