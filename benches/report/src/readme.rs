//! The README's figures: what stands between its two markers, made of the results.
use stepalloc_measure::figures::Figures;
use stepalloc_measure::sample;
use stepalloc_measure::table::{figure, with_interval, Table};

use crate::results::Results;
use crate::sections::{best_peer, verdict};

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// Rows of the README: a pattern of workloads (`*` at its end: all that begin so, their geometric mean), the figure, and
/// the words for it.
const TIMES: [(&str, &str, &str); 16] = [
    ("pair-*", "ns", "allocate and free one small block (16 to 1,024 B)"),
    ("batch-1000-*", "ns", "1,000 mixed small blocks, then free all"),
    ("batch-100000-*", "ns", "100,000"),
    ("rc-graph", "ns", "a graph of `Rc` built and dropped"),
    ("json", "ns", "JSON documents parsed and dropped"),
    ("collections", "ns", "`String`, `HashMap`, `BTreeMap`"),
    ("tensor-small", "ms", "a training step's buffers, 4 to 256 KiB"),
    ("tensor-medium", "ms", "64 KiB to 4 MiB"),
    ("tensor-large", "ms", "64 KiB to 64 MiB"),
    ("vec-256mb", "ms", "a `Vec` pushed to 256 MB"),
    ("zeroed-64mb", "ms", "64 MB zeroed"),
    ("enter-leave", "ns", "enter and leave an empty scope, to a pair of 32 B"),
    ("escape-*", "ns", "1,000 blocks a step of which some stay"),
    (
        "producer-consumer",
        "wall_ns",
        "blocks made here, freed by another thread",
    ),
    ("drift", "ns", "drifting sizes and lifetimes in one scope"),
    ("replace-*", "ns", "200,000 blocks replaced at random in one scope"),
];

const MEMORY: [(&str, &str, &str); 6] = [
    (
        "escapee-*",
        "bytes_a_kept_block",
        "resident bytes for each 24-byte escapee, one a step",
    ),
    (
        "replace-16-1024",
        "resident_over_live",
        "200,000 blocks of 16 to 1,024 B replaced at random: resident to live",
    ),
    ("replace-16-128", "resident_over_live", "of 16 to 128 B"),
    ("replace-16-32", "resident_over_live", "of 16 to 32 B"),
    (
        "drift",
        "peak_over_live",
        "drifting sizes and lifetimes: peak resident to live",
    ),
    (
        "tensor-large",
        "peak_over_live",
        "a training step's buffers, 64 KiB to 64 MiB: peak to live",
    ),
];

/// The README with its figures put in.
///
/// # Errors
/// When it has not exactly one pair of markers in their order.
pub fn put(readme: &str, figures: &str) -> Result<String, String> {
    let one = |marker: &str| match readme.match_indices(marker).collect::<Vec<_>>()[..] {
        [(at, _)] => Ok(at),
        [] => Err(format!("the README has no {marker}")),
        _ => Err(format!("the README has {marker} more than once")),
    };
    let (begin, end) = (one(BEGIN)? + BEGIN.len(), one(END)?);
    if end < begin {
        return Err("the README's markers stand the wrong way round".into());
    }
    Ok(format!(
        "{}\n\n{}\n\n{}",
        &readme[..begin],
        figures.trim(),
        &readme[end..]
    ))
}

/// What belongs between the markers.
///
/// # Errors
/// When results are not complete, unless `draft`: then the text says so.
pub fn figures(all: &[Results], draft: bool) -> Result<String, String> {
    let mut text = String::new();
    for results in all {
        let origin = &results.origin;
        let is_partial = !origin.is_complete()
            || origin.extent.quick
            || !origin.extent.work.is_empty()
            || !origin.extent.alloc.is_empty()
            || origin.commit.contains("changes")
            || (results.group.is_matrix && results.figures.round_count() < sample::LEAST_ROUNDS);
        if is_partial && !draft {
            return Err(format!(
                "{}: quick, partial, or of a commit that nobody can check out; --draft takes it all the same",
                results.group.name
            ));
        }
        let table = match results.group.name {
            "peers" => peers(&results.figures),
            "traces" => traces(&results.figures),
            _ => continue,
        };
        text += &format!(
            "{table}\nMedians of {} rounds{}; {}; {}, commit {}: `{}`\n\n",
            results.figures.round_count(),
            if is_partial {
                " (a draft: not the whole run)"
            } else {
                ""
            },
            origin.machine,
            origin.date,
            origin.commit,
            origin.command,
        );
    }
    if text.is_empty() {
        return Err("there are neither results of peers nor of traces".into());
    }
    Ok(text)
}

/// The workloads that a pattern stands for.
fn matching(figures: &Figures, pattern: &str, name: &str) -> Vec<String> {
    let fits = |row: &String| match pattern.strip_suffix('*') {
        Some(begin) => row.starts_with(begin),
        None => row == pattern,
    };
    let has = |row: &String| figures.median(row, name, "stepalloc").is_some();
    figures.rows().into_iter().filter(|row| fits(row) && has(row)).collect()
}

fn mean(rows: &[String], value: impl Fn(&str) -> Option<f64>) -> Option<f64> {
    let values: Option<Vec<f64>> = rows.iter().map(|row| value(row).filter(|value| *value > 0.0)).collect();
    sample::geometric_mean(values?)
}

fn peers(figures: &Figures) -> String {
    let mark = |text: String, loses: bool| if loses { format!("**{text}**") } else { text };
    let best_names = |rows: &[String], name: &str| {
        let mut names: Vec<&str> = rows
            .iter()
            .filter_map(|row| Some(best_peer(figures, row, name)?.0))
            .collect();
        names.sort_unstable();
        names.dedup();
        if names.len() == 1 {
            names[0].to_string()
        } else {
            "each row's".into()
        }
    };
    let mut text = String::from(
        "Less is better; in brackets the 95 % confidence interval; bold where stepalloc loses. The peers are mimalloc 3, \
         jemalloc,\nsnmalloc, rpmalloc and `System`.\n\n",
    );
    let mut table = Table::new([
        "work, in a scope",
        "time to `System`'s",
        "to the best peer's",
        "and that is",
    ]);
    for (pattern, name, words) in TIMES {
        let rows = matching(figures, pattern, name);
        if rows.is_empty() {
            continue;
        }
        let of_best = |row: &str| best_peer(figures, row, name).map_or("", |best| best.0);
        let ratio = mean(&rows, |row| figures.ratio(row, name, "stepalloc", of_best(row)));
        let samples: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| figures.ratios(row, name, "stepalloc", of_best(row)))
            .collect();
        let interval = sample::interval(&samples);
        let loses = ratio.is_some_and(|ratio| verdict(ratio, interval) == "loses");
        let to_system = mean(&rows, |row| figures.ratio(row, name, "stepalloc", "System"));
        table.row([
            words.to_string(),
            figure(to_system),
            mark(with_interval(ratio, interval), loses),
            best_names(&rows, name),
        ]);
    }
    text += &table.to_string();
    let mut table = Table::new(["memory", "stepalloc", "best peer", "and that is"]);
    let mut has_memory = false;
    for (pattern, name, words) in MEMORY {
        let rows = matching(figures, pattern, name);
        if rows.is_empty() {
            continue;
        }
        has_memory = true;
        let ours = mean(&rows, |row| figures.median(row, name, "stepalloc"));
        let best = mean(&rows, |row| best_peer(figures, row, name).map(|best| best.1));
        let loses = ours.zip(best).is_some_and(|(ours, best)| ours > best);
        table.row([
            words.to_string(),
            mark(figure(ours), loses),
            figure(best),
            best_names(&rows, name),
        ]);
    }
    if has_memory {
        text += &format!("\n{table}");
    }
    text
}

fn traces(figures: &Figures) -> String {
    let rows = figures.rows();
    let columns: Vec<String> = rows.first().map_or(Vec::new(), |row| figures.columns(row, "cpu_ms"));
    let order = [
        "System",
        "mimalloc",
        "jemalloc",
        "snmalloc",
        "stepalloc",
        "stepalloc-outside",
        "plan",
    ];
    let columns: Vec<&str> = order
        .into_iter()
        .filter(|name| columns.iter().any(|column| column == name))
        .collect();
    let mean = |value: &dyn Fn(&str) -> Option<f64>| sample::mean(rows.iter().filter_map(|row| value(row)));
    let cell = |column: &&str| {
        let time = mean(&|row| figures.ratio(row, "cpu_ms", column, "System"));
        let peak = mean(&|row| figures.median(row, "peak_ratio", column));
        format!("{} / {}", figure(time), figure(peak))
    };
    let words = |column: &&str| match *column {
        "stepalloc" => "stepalloc, a scope a step".to_string(),
        "stepalloc-outside" => "stepalloc, no scope".into(),
        "plan" => "packed plan that knows every lifetime".into(),
        other => other.into(),
    };
    let mut table = Table::new(columns.iter().map(words));
    table.row(columns.iter().map(cell));
    format!(
        "Recordings of {} training programs, replayed with every byte written: CPU time of a step to `System`'s / peak \
         resident\nto the live peak, means.\n\n{table}",
        rows.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_go_between_the_markers_and_nothing_else_changes() {
        let readme = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = put(&readme, "new\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(put(&once, "new\n").unwrap(), once);
    }

    #[test]
    fn a_readme_without_its_markers_is_refused() {
        assert!(put("text", "new").is_err());
        assert!(put(&format!("{END}{BEGIN}"), "new").is_err());
        assert!(put(&format!("{BEGIN}{BEGIN}{END}"), "new").is_err());
    }
}
