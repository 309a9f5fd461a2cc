//! What a worker tells the process that started it: one JSON object a line, on its standard output.

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// So many steps of the run are done.
    Steps(usize),
    /// The run is done; the last line.
    Done(Outcome),
}

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The bits of each step's loss (JSON's numbers are no place for an `f32` that must be compared exactly).
    pub loss_bits: Vec<u32>,
    /// The share of the held-out digits classified right, 0 to 1.
    pub accuracy: f64,
    /// The time of each timed step.
    pub step_nanos: Vec<u64>,
    /// Page faults of the process in each timed step; empty where the system does not tell.
    pub step_faults: Vec<u64>,
    /// The most memory the process had resident, before the counted steps at the end.
    pub peak_resident_bytes: Option<u64>,
    /// What the scopes saw in the first step; with scopes only.
    pub first_step: Option<Seen>,
    /// What the scopes saw in each counted step after the timed ones.
    pub counted_steps: Vec<Seen>,
}

/// The part of a scope's report that is shown.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Seen {
    /// Whether the program's global allocator is stepalloc; a scope sees nothing where it is not.
    pub installed: bool,
    /// Blocks made.
    pub blocks: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// The most bytes live at a time.
    pub peak_live_bytes: u64,
    /// Blocks still live at the end of the step.
    pub escapees: u64,
    /// The bytes of those.
    pub escapee_bytes: u64,
}

impl From<stepalloc::ScopeReport> for Seen {
    fn from(report: stepalloc::ScopeReport) -> Seen {
        Seen {
            installed: report.installed,
            blocks: report.blocks,
            bytes: report.bytes,
            peak_live_bytes: report.peak_live_bytes,
            escapees: report.escapees,
            escapee_bytes: report.escapee_bytes,
        }
    }
}
