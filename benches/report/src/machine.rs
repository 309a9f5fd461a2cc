//! Where and when the figures were taken.
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The machine, as far as it matters to an allocator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub rustc: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let field = |path: &str, name: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or("unknown");
            line.trim_start_matches([' ', '\t', ':']).trim().to_string()
        };
        let kib = field("/proc/meminfo", "MemTotal:");
        let kib: u64 = kib.trim_end_matches(" kB").parse().unwrap_or(0);
        Machine {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib + (1 << 19)) >> 20,
            kernel: format!("Linux {}", field("/proc/sys/kernel/osrelease", "")),
            rustc: output(Command::new("rustc").arg("--version")).unwrap_or("rustc unknown".into()),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine {
            cpu,
            cores,
            memory_gib,
            kernel,
            rustc,
        } = self;
        write!(f, "{cpu}, {cores} cores, {memory_gib} GiB, {kernel}, {rustc}")
    }
}

/// Today, in UTC.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// The commit that is measured, with a mark if a file differs from it.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        output(Command::new("git").arg("-C").arg(root).args(arguments))
    };
    let Some(hash) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "no commit known".into();
    };
    // The figures in the README may change without changing what is measured.
    match git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/",
        ":!/README.md",
    ]) {
        Some(changes) if changes.is_empty() => hash,
        _ => format!("{hash} with changes"),
    }
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(std::process::Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}
