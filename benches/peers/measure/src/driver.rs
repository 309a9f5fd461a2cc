//! What the command lines of all drivers share: which columns run, how often, and what becomes of the values.
use std::path::PathBuf;
use std::time::Duration;

use crate::matrix::{build_binaries, Plan};

/// The column that all are compared with; it always runs.
const SYSTEM: &str = "System";
/// A process that takes longer is ended.
const LIMIT: Duration = Duration::from_secs(300);

/// The options; see their texts.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Only these columns (System always runs; --list shows them)
    #[arg(long, value_name = "NAME")]
    pub alloc: Vec<String>,
    /// Times that everything runs
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Take the least of the rounds instead of the median: steadier on a machine that others use too
    #[arg(long)]
    pub least: bool,
    /// Also write every value here, comma-separated, as soon as it is known
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Take from that file what it has already, and run the rest
    #[arg(long, requires = "csv")]
    pub resume: bool,
    /// Use the binaries beside the driver as they are
    #[arg(long)]
    pub no_build: bool,
}

impl Common {
    /// Whether the column of this name runs.
    pub fn runs(&self, column: &str) -> bool {
        self.alloc.is_empty() || column == SYSTEM || self.alloc.iter().any(|name| name == column)
    }

    /// A column that was asked for and is none of these.
    pub fn unknown<'c>(&self, columns: impl Iterator<Item = &'c str> + Clone) -> Option<&String> {
        let is_unknown = |name: &&String| !columns.clone().any(|column| column == **name);
        self.alloc.iter().find(is_unknown)
    }

    /// The folder of the binaries, built if that is wished, with these flags for cargo.
    ///
    /// # Errors
    /// When cargo fails.
    pub fn binaries(&self, manifest_dir: &str, flags: &[&str]) -> Result<PathBuf, String> {
        if !self.no_build {
            return build_binaries(manifest_dir, flags);
        }
        let driver = std::env::current_exe().map_err(|error| error.to_string())?;
        Ok(driver.with_file_name(""))
    }

    /// What the tables show of the rounds.
    pub fn taken(&self) -> &'static str {
        if self.least {
            "Least"
        } else {
            "Medians"
        }
    }

    /// How the matrix runs.
    pub fn plan(&self) -> Plan<'_> {
        Plan {
            rounds: self.rounds,
            limit: LIMIT,
            seed: 0x5eed,
            csv: self.csv.as_deref(),
            resume: self.resume,
            counts_syscalls: false,
        }
    }
}
