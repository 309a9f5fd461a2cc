//! Markdown tables: cells padded so that the source reads as a table too.

/// A table under construction.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these column heads.
    pub fn new(heads: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Table {
            rows: vec![heads.into_iter().map(Into::into).collect()],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, &width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                write!(f, "| {cell:width$} ")?;
            }
            writeln!(f, "|")?;
            if index == 0 {
                let line: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
                writeln!(f, "|{}|", line.join("|"))?;
            }
        }
        Ok(())
    }
}

/// Three significant digits, two of what is less than one, without an exponent; a dash for nothing.
pub fn figure(value: Option<f64>) -> String {
    let Some(value) = value else { return "–".into() };
    match value.abs() {
        size if size == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// A figure and its interval, `0.52 [0.50, 0.55]`; the figure alone where there is none.
pub fn with_interval(value: Option<f64>, interval: Option<(f64, f64)>) -> String {
    match interval {
        Some((low, high)) => format!("{} [{}, {}]", figure(value), figure(Some(low)), figure(Some(high))),
        None => figure(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_padded_and_ruled() {
        let mut table = Table::new(["a", "bb"]);
        table.row(["ccc", "1"]);
        assert_eq!(table.to_string(), "| a   | bb |\n|-----|----|\n| ccc | 1  |\n");
    }

    #[test]
    fn figures_keep_the_digits_that_mean_something() {
        assert_eq!(figure(Some(0.1234)), "0.12");
        assert_eq!(figure(Some(0.01234)), "0.012");
        assert_eq!(figure(Some(0.001234)), "0.0012");
        assert_eq!(figure(Some(12.34)), "12.3");
        assert_eq!(figure(Some(1234.4)), "1234");
        assert_eq!(figure(None), "–");
        assert_eq!(with_interval(Some(0.5), Some((0.4, 0.6))), "0.50 [0.40, 0.60]");
        assert_eq!(with_interval(Some(0.5), None), "0.50");
    }
}
