//! The results of a matrix: every value of every round; medians, ratios and their intervals; and the file that keeps them.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::sample;

const HEAD: &str = "row,figure,column,round,value\n";

/// Every figure of every round, by row, figure's name and column. There is no value where that round's process failed or
/// printed no such figure.
#[derive(Default)]
pub struct Figures {
    values: BTreeMap<(String, String, String), BTreeMap<usize, f64>>,
    pub failures: Vec<String>,
    /// Take the least of the rounds where else the median is taken. The least is steadier where other work slows some
    /// rounds, and says nothing of how an allocator fares in slow ones.
    pub take_least: bool,
}

impl Figures {
    /// Adds a value.
    ///
    /// # Panics
    /// When a name holds what would break the file of values.
    pub fn insert(&mut self, row: &str, name: &str, column: &str, round: usize, value: f64) {
        for part in [row, name, column] {
            assert!(
                !part.contains([',', '"', '\n']),
                "{part:?} cannot stand in a file of values"
            );
        }
        let key = (row.into(), name.into(), column.into());
        self.values.entry(key).or_default().insert(round, value);
    }

    /// The figure's values, by round.
    pub fn rounds(&self, row: &str, name: &str, column: &str) -> Option<&BTreeMap<usize, f64>> {
        self.values.get(&(row.into(), name.into(), column.into()))
    }

    /// The median over the rounds.
    pub fn median(&self, row: &str, name: &str, column: &str) -> Option<f64> {
        let values = self.rounds(row, name, column)?.values().copied();
        if self.take_least {
            return values.min_by(f64::total_cmp);
        }
        sample::median(values)
    }

    /// The ratios of `column`'s figure to `base`'s of the same round.
    pub fn ratios(&self, row: &str, name: &str, column: &str, base: &str) -> Vec<f64> {
        let (Some(own), Some(base)) = (self.rounds(row, name, column), self.rounds(row, name, base)) else {
            return Vec::new();
        };
        own.iter()
            .filter_map(|(round, value)| Some(value / base.get(round)?))
            .collect()
    }

    /// The median over the rounds of `column`'s figure to `base`'s of the same round.
    pub fn ratio(&self, row: &str, name: &str, column: &str, base: &str) -> Option<f64> {
        if self.take_least {
            return Some(self.median(row, name, column)? / self.median(row, name, base)?);
        }
        sample::median(self.ratios(row, name, column, base))
    }

    /// The 95 % interval of that ratio. The least of the rounds has none.
    pub fn interval(&self, row: &str, name: &str, column: &str, base: &str) -> Option<(f64, f64)> {
        if self.take_least {
            return None;
        }
        sample::interval(&[self.ratios(row, name, column, base)])
    }

    /// The widest spread of the row's columns.
    pub fn spread(&self, row: &str, name: &str) -> Option<f64> {
        let rows = self.values.iter().filter(|((r, n, _), _)| r == row && n == name);
        rows.filter_map(|(_, rounds)| sample::spread(&rounds.values().copied().collect::<Vec<_>>()))
            .max_by(f64::total_cmp)
    }

    /// The names of the row's figures.
    pub fn names(&self, row: &str) -> Vec<String> {
        let of_row = self.values.keys().filter(|(r, ..)| r == row);
        let mut names: Vec<String> = of_row.map(|(_, name, _)| name.clone()).collect();
        names.dedup();
        names
    }

    /// The names of the rows.
    pub fn rows(&self) -> Vec<String> {
        let mut rows: Vec<String> = self.values.keys().map(|(row, ..)| row.clone()).collect();
        rows.dedup();
        rows
    }

    /// The columns that have this figure in this row.
    pub fn columns(&self, row: &str, name: &str) -> Vec<String> {
        let keys = self.values.keys().filter(|(r, n, _)| r == row && n == name);
        keys.map(|(_, _, column)| column.clone()).collect()
    }

    /// How many rounds there are at most.
    pub fn round_count(&self) -> usize {
        self.values.values().map(BTreeMap::len).max().unwrap_or(0)
    }

    /// Row, column and round of every process that has a value, but for those that counted system calls.
    pub fn processes(&self) -> BTreeSet<(String, String, usize)> {
        let of_key = |((row, _, column), rounds): (&(String, String, String), &BTreeMap<usize, f64>)| {
            let (row, column) = (row.clone(), column.clone());
            let rounds: Vec<usize> = rounds.keys().copied().collect();
            rounds
                .into_iter()
                .map(move |round| (row.clone(), column.clone(), round))
        };
        let timed = self
            .values
            .iter()
            .filter(|((_, name, _), _)| name != crate::matrix::SYSCALLS);
        timed.flat_map(of_key).collect()
    }

    /// Every value, as lines of comma-separated row, figure, column, round and value.
    pub fn to_csv(&self) -> String {
        let mut lines = String::from(HEAD);
        for ((row, name, column), rounds) in &self.values {
            for (&round, &value) in rounds {
                lines.push_str(&csv_line(row, name, column, round, value));
            }
        }
        lines
    }

    /// Reads `to_csv` back. A last line without its end is left out: there a run was stopped.
    ///
    /// # Errors
    /// When the file cannot be read or is none of these.
    pub fn read_csv(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let lines = text.strip_prefix(HEAD);
        let lines = lines.ok_or_else(|| format!("{}: is no file of values", path.display()))?;
        let mut figures = Figures::default();
        for line in lines.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let fields: Vec<&str> = line.split(',').collect();
            let [row, name, column, round, value] = fields[..] else {
                return Err(format!("{}: {line:?} is no value", path.display()));
            };
            let (Ok(round), Ok(value)) = (round.parse(), value.parse()) else {
                return Err(format!("{}: {line:?} is no value", path.display()));
            };
            figures.insert(row, name, column, round, value);
        }
        Ok(figures)
    }

    /// The ratios of every figure to `base`'s of its row, with their 95 % intervals, comma-separated; no interval where
    /// the rounds are too few.
    pub fn ratios_csv(&self, base: impl Fn(&str, &str) -> Option<String>) -> String {
        let mut lines = String::from("row,figure,column,base,ratio,low,high,rounds\n");
        for ((row, name, column), rounds) in &self.values {
            let Some(base) = base(row, name) else { continue };
            let Some(ratio) = self.ratio(row, name, column, &base).filter(|ratio| ratio.is_finite()) else {
                continue;
            };
            let (low, high) = match self.interval(row, name, column, &base) {
                Some((low, high)) => (low.to_string(), high.to_string()),
                None => Default::default(),
            };
            lines.push_str(&format!(
                "{row},{name},{column},{base},{ratio},{low},{high},{}\n",
                rounds.len()
            ));
        }
        lines
    }
}

pub(crate) fn csv_line(row: &str, name: &str, column: &str, round: usize, value: f64) -> String {
    format!("{row},{name},{column},{round},{value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Figures {
        let mut figures = Figures::default();
        for round in 0..6 {
            figures.insert("pair", "ns", "System", round, 10.0 + round as f64);
            figures.insert("pair", "ns", "other", round, (10.0 + round as f64) / 2.0);
        }
        figures
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let figures = some();
        assert_eq!(figures.ratio("pair", "ns", "other", "System"), Some(0.5));
        assert_eq!(figures.interval("pair", "ns", "other", "System"), Some((0.5, 0.5)));
        assert!(figures
            .ratios_csv(|_, _| Some("System".into()))
            .contains("pair,ns,other,System,0.5,0.5,0.5,6\n"));
    }

    #[test]
    fn a_file_of_values_is_read_back_without_its_torn_line() {
        let path = std::env::temp_dir().join(format!("stepalloc-figures-{}.csv", std::process::id()));
        let text = some().to_csv() + "pair,ns,other,6,1";
        std::fs::write(&path, text).unwrap();
        let read = Figures::read_csv(&path).unwrap();
        std::fs::write(&path, "something else\n").unwrap();
        assert!(Figures::read_csv(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.to_csv(), some().to_csv());
        assert_eq!(read.processes().len(), 12);
        assert!(!read.processes().contains(&("pair".into(), "other".into(), 6)));
    }
}
