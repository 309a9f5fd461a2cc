//! The benches that can be run, each a package of its own but for the counts, and how long it takes them.
use std::path::{Path, PathBuf};

/// How a bench runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A matrix of processes, all of them once a round; it can go on where it was stopped.
    Matrix,
    /// One process that does its own rounds.
    Once,
    /// A bench target of the crate itself, once as it is and once hardened. It counts; rounds would tell nothing more.
    Counts,
}

/// One bench.
pub struct Group {
    pub name: &'static str,
    pub title: &'static str,
    /// What its rows are, for the page.
    pub what: &'static str,
    pub kind: Kind,
    /// Whether `--quick` shortens it.
    has_quick: bool,
    /// What leaves out most that the README does not show, and shortens the rest.
    readme_arguments: &'static [&'static str],
    /// Seconds to build it from nothing, a round, and a quick round, on two idle cores. Only for the estimate that is
    /// shown first; what a run took is kept beside its results and used from then on.
    build_seconds: u64,
    round_seconds: u64,
    quick_seconds: u64,
}

/// All of them, in the order of the page. A bench whose folder is not there is left out.
pub const GROUPS: [Group; 5] = [
    Group {
        name: "peers",
        title: "One kind of work each, beside the general allocators",
        what: "Each workload on each allocator is a process of its own; stepalloc runs each step in a scope. The explicit \
               arenas (bumpalo, bump-scope, blink-alloc, typed-arena) run where there is code for them; bump and kept are \
               limits that no program could use.",
        kind: Kind::Matrix,
        has_quick: true,
        readme_arguments: &[
            "--quick",
            "--no-syscalls",
            "--alloc=mimalloc",
            "--alloc=jemalloc",
            "--alloc=snmalloc",
            "--alloc=rpmalloc",
            "--alloc=stepalloc",
            "--alloc=stepalloc-outside",
            "--alloc=bump",
            "--alloc=kept",
        ],
        build_seconds: 150,
        round_seconds: 480,
        quick_seconds: 140,
    },
    Group {
        name: "traces",
        title: "Recorded training programs, replayed",
        what: "What real programs asked of their allocator, replayed with every byte written, on one thread. The plan is \
               packed beforehand and knows every lifetime: a limit.",
        kind: Kind::Matrix,
        has_quick: false,
        readme_arguments: &[],
        build_seconds: 120,
        round_seconds: 20,
        quick_seconds: 20,
    },
    Group {
        name: "frameworks",
        title: "Training steps in real frameworks",
        what: "Unmodified candle, burn and ndarray on one thread and on two; the losses are the same in every bit under every \
               allocator. stepalloc runs each step in a scope, stepalloc-outside in none.",
        kind: Kind::Matrix,
        has_quick: true,
        readme_arguments: &["--quick"],
        build_seconds: 600,
        round_seconds: 420,
        quick_seconds: 140,
    },
    Group {
        name: "explicit",
        title: "The explicit pieces, beside their peers",
        what: "Arenas and pools with an owner, in one process, in shuffled turns.",
        kind: Kind::Once,
        has_quick: true,
        readme_arguments: &[],
        build_seconds: 120,
        round_seconds: 60,
        quick_seconds: 5,
    },
    Group {
        name: "counts",
        title: "Instructions of the hot paths",
        what: "Counted by valgrind, so that who else uses the machine does not matter: of the plain build, and with the \
               feature hardened, which checks every free.",
        kind: Kind::Counts,
        has_quick: false,
        readme_arguments: &[],
        build_seconds: 120,
        round_seconds: 60,
        quick_seconds: 60,
    },
];

/// How much is run.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extent {
    pub rounds: usize,
    pub quick: bool,
    /// As much as the README's figures need.
    #[serde(default)]
    pub for_readme: bool,
    /// Only work of these names; all where it is empty.
    pub work: Vec<String>,
    /// Only these columns; all where it is empty.
    pub alloc: Vec<String>,
}

impl Group {
    /// Where its package lies.
    pub fn folder(&self) -> PathBuf {
        let benches = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        match self.kind {
            Kind::Counts => benches.join(".."),
            Kind::Matrix | Kind::Once => benches.join(self.name),
        }
    }

    /// What is asked of cargo, one after the other: all but the last build.
    pub fn runs(&self) -> Vec<Vec<&'static str>> {
        match self.kind {
            Kind::Matrix | Kind::Once => vec![vec!["run", "--release"]],
            Kind::Counts => {
                let plain = ["bench", "--bench", "counts"];
                vec![plain.to_vec(), [&plain[..], &["--features", "hardened"]].concat()]
            }
        }
    }

    /// The same, built only.
    pub fn builds(&self) -> Vec<Vec<&'static str>> {
        match self.kind {
            Kind::Matrix | Kind::Once => vec![vec!["build", "--release"]],
            Kind::Counts => self
                .runs()
                .into_iter()
                .map(|run| [&run[..], &["--no-run"]].concat())
                .collect(),
        }
    }

    /// The arguments of its driver.
    pub fn arguments(&self, extent: &Extent) -> Vec<String> {
        let mut arguments = Vec::new();
        if extent.for_readme {
            arguments.extend(self.readme_arguments.iter().map(|&part| part.into()));
        } else if self.has_quick && extent.quick {
            arguments.push("--quick".into());
        }
        if self.kind == Kind::Matrix {
            arguments.extend(["--rounds".into(), extent.rounds.to_string()]);
            arguments.extend(extent.work.iter().flat_map(|name| ["--only".into(), name.clone()]));
            arguments.extend(extent.alloc.iter().flat_map(|name| ["--alloc".into(), name.clone()]));
        }
        arguments
    }

    /// The seconds that it takes if nothing is known of this machine: of a build, and of the run.
    pub fn estimate(&self, extent: &Extent) -> (u64, u64) {
        let is_short = extent.quick || (extent.for_readme && self.readme_arguments.contains(&"--quick"));
        let round = if is_short {
            self.quick_seconds
        } else {
            self.round_seconds
        };
        let rounds = if self.kind == Kind::Matrix {
            extent.rounds as u64
        } else {
            1
        };
        (self.build_seconds, round * rounds)
    }
}
