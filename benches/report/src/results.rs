//! The folder of results: for each group its values (`peers.csv`) and how they came about (`peers.json`).
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stepalloc_measure::figures::Figures;

use crate::groups::{Extent, Group, GROUPS};
use crate::machine::Machine;

/// How a group's values came about.
#[derive(Serialize, Deserialize)]
pub struct Origin {
    pub extent: Extent,
    /// What was measured: the commit, marked where files differed from it.
    pub commit: String,
    pub machine: Machine,
    pub date: String,
    /// The command that makes them again.
    pub command: String,
    /// `None` until the run has ended.
    pub seconds: Option<u64>,
    /// Processes that failed are missing among the values; nobody should take them for complete.
    pub has_failures: bool,
}

impl Origin {
    /// Whether a run of this extent at this commit could go on from these values.
    pub fn fits(&self, extent: &Extent, commit: &str, machine: &Machine) -> bool {
        self.extent == *extent && self.commit == commit && self.machine == *machine
    }

    /// Whether nothing is left to do.
    pub fn is_complete(&self) -> bool {
        self.seconds.is_some() && !self.has_failures
    }
}

/// A group's results.
pub struct Results {
    pub group: &'static Group,
    pub origin: Origin,
    pub figures: Figures,
}

/// Where a group's values lie.
pub fn csv_path(folder: &Path, group: &Group) -> PathBuf {
    folder.join(group.name).with_extension("csv")
}

fn origin_path(folder: &Path, group: &Group) -> PathBuf {
    folder.join(group.name).with_extension("json")
}

/// How the group's values came about; `None` if there are none.
///
/// # Errors
/// When the file is there and is none of these.
pub fn read_origin(folder: &Path, group: &Group) -> Result<Option<Origin>, String> {
    let path = origin_path(folder, group);
    if !path.exists() {
        return Ok(None);
    }
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&path).map_err(|error| fail(&error))?;
    serde_json::from_str(&text).map(Some).map_err(|error| fail(&error))
}

/// Keeps it.
///
/// # Errors
/// When it cannot be written.
pub fn write_origin(folder: &Path, group: &Group, origin: &Origin) -> Result<(), String> {
    let path = origin_path(folder, group);
    let text = serde_json::to_string_pretty(origin).map_err(|error| error.to_string())?;
    std::fs::write(&path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
}

/// All groups that have results.
///
/// # Errors
/// When a file cannot be read.
pub fn read_all(folder: &Path) -> Result<Vec<Results>, String> {
    let mut all = Vec::new();
    for group in &GROUPS {
        let csv = csv_path(folder, group);
        if let (Some(origin), true) = (read_origin(folder, group)?, csv.exists()) {
            let figures = Figures::read_csv(&csv)?;
            if figures.round_count() > 0 {
                all.push(Results { group, origin, figures });
            }
        }
    }
    if all.is_empty() {
        return Err(format!("{} holds no results", folder.display()));
    }
    Ok(all)
}
