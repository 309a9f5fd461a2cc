//! The README's figures: what stands between its two markers, made of the results.
use stepalloc_measure::figures::Figures;
use stepalloc_measure::sample;
use stepalloc_measure::table::{figure, with_interval, Table};

use crate::groups::{Kind, GROUPS};
use crate::results::{Origin, Results};
use crate::sections::{best_peer, explicit_rows, verdict};

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// A row of the README: a pattern of workloads (`*` at its end: all that begin so, their geometric mean), the figure, and
/// the words for it.
type Row = (&'static str, &'static str, &'static str);

const TIMES: [Row; 17] = [
    ("pair-*", "ns", "allocate and free one small block (16 to 1,024 B)"),
    ("batch-1000-*", "ns", "1,000 mixed small blocks, then free all"),
    ("batch-100000-*", "ns", "100,000"),
    ("rc-graph", "ns", "a graph of `Rc` built and dropped"),
    ("json", "ns", "JSON documents parsed and dropped"),
    ("collections", "ns", "`String`, `HashMap`, `BTreeMap`"),
    ("grow-small", "ns", "a `Vec` pushed to 4 KiB"),
    ("vec-256mb", "ms", "a `Vec` pushed to 256 MB"),
    ("tensor-small", "ms", "a training step's buffers, 4 to 256 KiB"),
    ("tensor-medium", "ms", "64 KiB to 4 MiB"),
    ("tensor-large", "ms", "64 KiB to 64 MiB"),
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

/// Outside any scope, where `System` serves what is small.
const TIMES_OUTSIDE: [Row; 3] = [
    ("pair-*", "ns", "outside any scope: one small block"),
    ("batch-1000-*", "ns", "outside: 1,000 mixed small blocks"),
    ("tensor-large", "ms", "outside: a step's buffers, 64 KiB to 64 MiB"),
];

const MEMORY: [Row; 9] = [
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
        "tensor-medium",
        "peak_over_live",
        "a training step's buffers, 64 KiB to 4 MiB: peak resident to live",
    ),
    ("tensor-large", "peak_over_live", "64 KiB to 64 MiB"),
    ("tensor-large", "faults", "page faults in such a step"),
    (
        "thread-turns",
        "after_mib",
        "200 threads in turn that use 100 MB: MiB resident at the end",
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
    let incomplete: Vec<&Results> = all.iter().filter(|results| is_partial(results)).collect();
    if let (Some(results), false) = (incomplete.first(), draft) {
        return Err(format!(
            "{}: quick, partial, or of a commit that nobody can check out; --draft takes it all the same",
            results.group.name
        ));
    }
    // Tables of other groups would be lost.
    let missing = GROUPS
        .iter()
        .find(|group| all.iter().all(|results| results.group.name != group.name));
    if let (Some(group), false) = (missing, draft) {
        return Err(format!("{}: there are no results; --draft does without", group.name));
    }
    let mut text = said(all, !incomplete.is_empty() || missing.is_some());
    for results in all {
        let figures = &results.figures;
        text += &match results.group.name {
            "peers" => peers(figures),
            "traces" => traces(figures),
            "frameworks" => frameworks(figures),
            "explicit" => explicit(figures),
            "counts" => counts(figures),
            other => return Err(format!("the README has no place for {other}")),
        };
        text += "\n";
    }
    Ok(text)
}

fn is_partial(results: &Results) -> bool {
    let origin = &results.origin;
    !origin.is_complete()
        || origin.extent.quick
        || !origin.extent.work.is_empty()
        || !origin.extent.alloc.is_empty()
        || origin.commit.contains("changes")
        || (results.group.kind == Kind::Matrix && results.figures.round_count() < sample::LEAST_ROUNDS)
}

/// Where, when and by which commands the figures were made: once if that is the same for all.
fn said(all: &[Results], is_draft: bool) -> String {
    let words = |origin: &Origin| {
        let rounds = match origin.extent.rounds {
            1 => "one round".to_string(),
            rounds => format!("medians of {rounds} rounds"),
        };
        let short = if origin.extent.for_readme {
            " of short processes"
        } else {
            ""
        };
        let (command, machine, date, commit) = (&origin.command, &origin.machine, &origin.date, &origin.commit);
        format!("`{command}`: {rounds}{short}, commit {commit}, {date}, {machine}")
    };
    let mut origins: Vec<String> = all.iter().map(|results| words(&results.origin)).collect();
    origins.dedup();
    let made = match origins.as_slice() {
        [one] => format!("One command makes all of it, {one}."),
        _ => {
            let each = all
                .iter()
                .map(|results| format!("Of {}, {}.", results.group.name, words(&results.origin)));
            each.collect::<Vec<_>>().join(" ")
        }
    };
    let draft = if is_draft {
        " This is a draft: not the whole run."
    } else {
        ""
    };
    let text = format!(
        "{made}{draft} Of every figure less is better; in brackets is the 95 % confidence interval; bold is where stepalloc \
         loses, which is said where the interval leaves out 1. The peers are `System` (glibc), mimalloc 3, jemalloc, \
         snmalloc and rpmalloc."
    );
    wrapped(&text) + "\n"
}

/// Words in lines as long as the README's.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 120;
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += &(std::mem::take(&mut line) + "\n");
        }
        line += if line.is_empty() { "" } else { " " };
        line += word;
    }
    lines + &line + "\n"
}

fn mark(text: String, loses: bool) -> String {
    if loses {
        format!("**{text}**")
    } else {
        text
    }
}

/// The workloads that a pattern stands for, where ours has a figure.
fn matching(figures: &Figures, pattern: &str, name: &str, column: &str) -> Vec<String> {
    let fits = |row: &String| match pattern.strip_suffix('*') {
        Some(begin) => row.starts_with(begin),
        None => row == pattern,
    };
    let has = |row: &String| figures.median(row, name, column).is_some();
    figures.rows().into_iter().filter(|row| fits(row) && has(row)).collect()
}

/// The geometric mean over the rows; of one row its value, which may be zero.
fn mean(rows: &[String], value: impl Fn(&str) -> Option<f64>) -> Option<f64> {
    if let [one] = rows {
        return value(one).filter(|value| value.is_finite());
    }
    let values: Option<Vec<f64>> = rows.iter().map(|row| value(row).filter(|value| *value > 0.0)).collect();
    sample::geometric_mean(values?)
}

/// A column of ours over some rows, beside the best peer of each.
struct Compared {
    own: Option<f64>,
    best: Option<f64>,
    best_names: String,
    to_system: Option<f64>,
    to_best: Option<f64>,
    interval: Option<(f64, f64)>,
    /// To the first of `LIMITS` that has the row.
    to_limit: Option<f64>,
}

/// Columns that no program could use: buffers kept by hand, and a bump that counts and frees nothing.
const LIMITS: [&str; 2] = ["kept", "bump"];

impl Compared {
    /// `None` where nothing was measured.
    fn new(figures: &Figures, (pattern, name, _): Row, column: &str) -> Option<Self> {
        let rows = matching(figures, pattern, name, column);
        if rows.is_empty() {
            return None;
        }
        let best = |row: &str| best_peer(figures, row, name);
        let of_best = |row: &str| best(row).map_or("", |best| best.0);
        let mut names: Vec<&str> = rows.iter().map(|row| of_best(row)).collect();
        names.sort_unstable();
        names.dedup();
        let rounds: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| figures.ratios(row, name, column, of_best(row)))
            .collect();
        Some(Compared {
            own: mean(&rows, |row| figures.median(row, name, column)),
            best: mean(&rows, |row| best(row).map(|best| best.1)),
            best_names: if let [one] = names[..] {
                one.into()
            } else {
                "each row's".into()
            },
            to_system: mean(&rows, |row| figures.ratio(row, name, column, "System")),
            to_best: mean(&rows, |row| figures.ratio(row, name, column, of_best(row))),
            interval: sample::interval(&rounds),
            to_limit: mean(&rows, |row| {
                let ratio = |limit: &&str| figures.ratio(row, name, column, limit);
                LIMITS.iter().find_map(ratio)
            }),
        })
    }

    fn loses(&self) -> bool {
        match self.to_best {
            Some(ratio) => verdict(ratio, self.interval) == "loses",
            // No ratio to a peer that has none of it.
            None => self.own > self.best,
        }
    }
}

fn peers(figures: &Figures) -> String {
    let heads = [
        "work, in a scope",
        "time to `System`'s",
        "to the best peer's",
        "and that is",
        "to the limit's",
    ];
    let mut times = Table::new(heads);
    let scoped = TIMES.map(|row| (row, "stepalloc"));
    let outside = TIMES_OUTSIDE.map(|row| (row, "stepalloc-outside"));
    for (row, column) in scoped.into_iter().chain(outside) {
        if let Some(compared) = Compared::new(figures, row, column) {
            let to_best = with_interval(compared.to_best, compared.interval);
            times.row([
                row.2.to_string(),
                figure(compared.to_system),
                mark(to_best, compared.loses()),
                compared.best_names,
                figure(compared.to_limit.filter(|_| column == "stepalloc")),
            ]);
        }
    }
    let mut memory = Table::new(["memory", "stepalloc", "best peer", "and that is"]);
    for row in MEMORY {
        if let Some(compared) = Compared::new(figures, row, "stepalloc") {
            let own = mark(figure(compared.own), compared.loses());
            memory.row([row.2.to_string(), own, figure(compared.best), compared.best_names]);
        }
    }
    let limit =
        "The limit is buffers kept by hand, or else a bare bump in a thread's own memory that counts and frees \
                 nothing. Where the ratio is below 1 that has the worse memory: pages of 4 KiB, or always new ones.";
    format!("{times}\n{}\n{memory}", wrapped(limit))
}

fn traces(figures: &Figures) -> String {
    const COLUMNS: [(&str, &str); 7] = [
        ("System", "`System`"),
        ("mimalloc", "mimalloc 3"),
        ("jemalloc", "jemalloc"),
        ("snmalloc", "snmalloc"),
        ("stepalloc", "stepalloc, a scope a step"),
        ("stepalloc-outside", "stepalloc, no scope"),
        ("plan", "packed plan that knows every lifetime"),
    ];
    let rows = figures.rows();
    let is_there = |column: &str| rows.iter().any(|row| figures.median(row, "cpu_ms", column).is_some());
    let columns = || COLUMNS.into_iter().filter(|(column, _)| is_there(column));
    let mut table = Table::new(columns().map(|(_, words)| words));
    table.row(columns().map(|(column, _)| {
        let time = mean(&rows, |row| figures.ratio(row, "cpu_ms", column, "System"));
        let peak = mean(&rows, |row| figures.median(row, "peak_ratio", column));
        format!("{} / {}", figure(time), figure(peak))
    }));
    let words = format!(
        "Recordings of {} training programs, replayed with every byte written: CPU time of a step to `System`'s / peak \
         resident to the live peak, geometric means.",
        rows.len()
    );
    format!("{}\n{table}", wrapped(&words))
}

/// The programs, each with its threads: `candle-mlp-1t`.
fn frameworks(figures: &Figures) -> String {
    let heads = [
        "program, threads",
        "CPU time to `System`'s, a scope a step",
        "no scope",
        "to the best peer's, a scope a step",
        "and that is",
        "peak resident to `System`'s",
    ];
    let words = |row: &str| match row.rsplit_once('-') {
        Some((program, threads)) => format!("{}, {}", program.replace('-', " "), threads.trim_end_matches('t')),
        None => row.into(),
    };
    let mut table = Table::new(heads);
    for row in figures.rows() {
        let best = best_peer(figures, &row, "ms").map_or("", |best| best.0);
        let ratio = |name: &str, column: &str| figures.ratio(&row, name, column, "System");
        let to_best = figures.ratio(&row, "ms", "stepalloc", best);
        let interval = figures.interval(&row, "ms", "stepalloc", best);
        let loses = to_best.is_some_and(|ratio| verdict(ratio, interval) == "loses");
        table.row([
            words(&row),
            figure(ratio("ms", "stepalloc")),
            figure(ratio("ms", "stepalloc-outside")),
            mark(with_interval(to_best, interval), loses),
            best.to_string(),
            figure(ratio("peak_mib", "stepalloc")),
        ]);
    }
    let text =
        "Steps of unmodified frameworks on one thread and on two; the losses are the same in every bit under every \
                 allocator, or the command fails. A scope covers the training thread only.";
    format!("{}\n{table}", wrapped(text))
}

/// Our pieces beside the fastest peer of each group.
fn explicit(figures: &Figures) -> String {
    let mut table = Table::new(["the explicit pieces", "ns", "to the fastest peer's", "and that is"]);
    for row in explicit_rows(figures).into_iter().filter(|row| row.is_ours()) {
        table.row([
            row.label(),
            figure(row.median),
            mark(with_interval(row.ratio, row.interval), row.loses()),
            row.best.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

fn counts(figures: &Figures) -> String {
    let mut table = Table::new(["instructions an operation", "plain", "`hardened`"]);
    for row in figures.rows() {
        let count = |column: &str| figure(figures.median(&row, "instructions", column));
        table.row([row.clone(), count("plain"), count("hardened")]);
    }
    table.to_string()
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
