//! The benches that can be run, each a package of its own, and how long it takes them.
use std::path::{Path, PathBuf};

/// One bench.
pub struct Group {
    pub name: &'static str,
    pub title: &'static str,
    /// What its rows are, for the page.
    pub what: &'static str,
    /// Arguments of every run.
    arguments: &'static [&'static str],
    /// Whether it takes `--only`, `--rounds` and `--resume`: it runs as a matrix of processes.
    pub is_matrix: bool,
    /// Whether `--quick` shortens it.
    has_quick: bool,
    /// Seconds to build it from nothing, a round, and a quick round, on two idle cores. Only for the estimate that is
    /// shown first; what a run took is kept beside its results and used from then on.
    build_seconds: u64,
    round_seconds: u64,
    quick_seconds: u64,
}

/// All of them, in the order of the page. A bench whose folder is not there is left out.
pub const GROUPS: [Group; 4] = [
    Group {
        name: "peers",
        title: "One kind of work each, beside the general allocators",
        what: "Each workload on each allocator is a process of its own; stepalloc runs each step in a scope. The explicit \
               arenas (bumpalo, bump-scope, blink-alloc, typed-arena) run where there is code for them; bump and kept are \
               limits that no program could use.",
        arguments: &[],
        is_matrix: true,
        has_quick: true,
        build_seconds: 150,
        round_seconds: 480,
        quick_seconds: 140,
    },
    Group {
        name: "traces",
        title: "Recorded training programs, replayed",
        what: "What real programs asked of their allocator, replayed with every byte written, on one thread. The plan is \
               packed beforehand and knows every lifetime: a limit.",
        arguments: &[],
        is_matrix: true,
        has_quick: false,
        build_seconds: 120,
        round_seconds: 20,
        quick_seconds: 20,
    },
    Group {
        name: "explicit",
        title: "The explicit pieces, beside their peers",
        what: "Arenas and pools with an owner, in one process, in shuffled turns.",
        arguments: &[],
        is_matrix: false,
        has_quick: true,
        build_seconds: 120,
        round_seconds: 60,
        quick_seconds: 5,
    },
    Group {
        name: "frameworks",
        title: "Training steps in real frameworks",
        what: "Unmodified candle, burn and ndarray; losses are the same in every bit.",
        arguments: &[],
        is_matrix: true,
        has_quick: true,
        build_seconds: 600,
        round_seconds: 300,
        quick_seconds: 100,
    },
];

/// How much is run.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extent {
    pub rounds: usize,
    pub quick: bool,
    /// Only work of these names; all where it is empty.
    pub work: Vec<String>,
    /// Only these columns; all where it is empty.
    pub alloc: Vec<String>,
}

impl Group {
    /// Where its package lies.
    pub fn folder(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(self.name)
    }

    /// The arguments of its driver.
    pub fn arguments(&self, extent: &Extent) -> Vec<String> {
        let mut arguments: Vec<String> = self.arguments.iter().map(|&part| part.into()).collect();
        if self.has_quick && extent.quick {
            arguments.push("--quick".into());
        }
        if self.is_matrix {
            arguments.extend(["--rounds".into(), extent.rounds.to_string()]);
            arguments.extend(extent.work.iter().flat_map(|name| ["--only".into(), name.clone()]));
            arguments.extend(extent.alloc.iter().flat_map(|name| ["--alloc".into(), name.clone()]));
        }
        arguments
    }

    /// The seconds that it takes if nothing is known of this machine: of a build, and of the run.
    pub fn estimate(&self, extent: &Extent) -> (u64, u64) {
        let round = if extent.quick {
            self.quick_seconds
        } else {
            self.round_seconds
        };
        let rounds = if self.is_matrix { extent.rounds as u64 } else { 1 };
        (self.build_seconds, round * rounds)
    }
}
