//! What the results say, as tables and the charts that go with them; Markdown, the page and the SVG files are made of these.
//! Of every figure less is better. A row where stepalloc loses is one like the others, and marked.
use stepalloc_measure::figures::Figures;
use stepalloc_measure::sample;
use stepalloc_measure::table::{figure, with_interval, Table};

use crate::groups::Kind;
use crate::results::Results;

/// Who a bar belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Ours,
    /// Ours, and more than the peer.
    OursLosing,
    Peer,
    /// Explicit arenas, and limits that no program could use.
    Other,
}

/// One bar of a chart.
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub interval: Option<(f64, f64)>,
    pub who: Who,
}

/// A chart of horizontal bars.
pub struct Chart {
    /// Names its file and its place on the page.
    pub id: String,
    pub title: String,
    pub bars: Vec<Bar>,
    /// Where equal stands, if the values are ratios.
    pub reference: Option<f64>,
}

/// A row of a table.
pub struct Row {
    pub cells: Vec<String>,
    pub loses: bool,
}

/// A chart and its table; either may be without the other's detail, none is without a table.
pub struct Section {
    pub title: String,
    pub chart: Chart,
    pub heads: Vec<String>,
    pub rows: Vec<Row>,
    /// Folded on the page until asked for.
    pub is_detail: bool,
}

/// A group's sections.
pub struct Part {
    pub title: String,
    pub what: String,
    pub origin: String,
    pub command: String,
    pub sections: Vec<Section>,
}

/// Times and levels of memory that a chart may show, the first that a row has.
const MAIN: [&str; 6] = ["ns", "ms", "wall_ns", "cpu_ms", "ms_a_step", "step_ms"];

/// Figures that are compared with the best peer besides the main one.
const MEMORY: [&str; 6] = [
    "peak_over_live",
    "resident_over_live",
    "bytes_a_kept_block",
    "peak_ratio",
    "peak_mib",
    "after_mib",
];

/// A number that stands for all losses of a training program. Its driver compares it; it is no size.
const DIGEST: &str = "losses";

/// The general allocators.
pub const PEERS: [&str; 5] = ["System", "mimalloc", "jemalloc", "snmalloc", "rpmalloc"];

/// In the order of the drivers' tables, unknown ones last.
const ORDER: [&str; 16] = [
    "System",
    "mimalloc",
    "jemalloc",
    "snmalloc",
    "rpmalloc",
    "stepalloc",
    "stepalloc-outside",
    "stepalloc-mimalloc",
    "stepalloc-mimalloc-outside",
    "bumpalo",
    "bump-scope",
    "blink-alloc",
    "typed-arena",
    "bump",
    "kept",
    "plan",
];

fn who(column: &str) -> Who {
    match column {
        _ if column.starts_with("stepalloc") => Who::Ours,
        _ if PEERS.contains(&column) => Who::Peer,
        _ => Who::Other,
    }
}

/// What a figure's name means, for readers.
pub fn meaning(name: &str) -> &str {
    match name {
        "ns" => "ns an operation",
        "ms" | "cpu_ms" | "ms_a_step" | "step_ms" => "ms a step",
        "wall_ns" => "ns an operation, by the clock",
        "wall_ms" => "ms a step, by the clock",
        "instructions" => "instructions an operation",
        "first_ms" => "ms of the first step",
        "faults" => "page faults a step",
        "syscalls" => "system calls a step",
        "peak_mib" => "peak resident, MiB",
        "after_mib" => "resident at the end, MiB",
        "peak_over_live" | "peak_ratio" => "peak resident to live",
        "resident_over_live" => "resident to live",
        "bytes_a_kept_block" => "bytes resident a kept block",
        "last_to_first" => "last steps' time to the first's",
        other => other,
    }
}

/// The peer that does best, and its median.
pub fn best_peer(figures: &Figures, row: &str, name: &str) -> Option<(&'static str, f64)> {
    let medians = PEERS
        .iter()
        .filter_map(|&peer| Some((peer, figures.median(row, name, peer)?)));
    medians.min_by(|(_, one), (_, other)| one.total_cmp(other))
}

/// Ours to the best peer: the median of the ratios within rounds, and its interval.
pub fn to_best(figures: &Figures, row: &str, name: &str) -> Option<(f64, Option<(f64, f64)>)> {
    let (peer, _) = best_peer(figures, row, name)?;
    let ratio = figures
        .ratio(row, name, "stepalloc", peer)
        .filter(|ratio| ratio.is_finite())?;
    Some((ratio, figures.interval(row, name, "stepalloc", peer)))
}

/// What is said of a ratio in words, so that nobody needs the colour.
pub fn verdict(ratio: f64, interval: Option<(f64, f64)>) -> &'static str {
    match interval {
        Some((low, high)) if low <= 1.0 && 1.0 <= high => "level",
        _ if ratio < 1.0 => "wins",
        _ if ratio > 1.0 => "loses",
        _ => "level",
    }
}

/// All parts of the report.
pub fn parts(all: &[Results]) -> Vec<Part> {
    all.iter().map(part).collect()
}

fn part(results: &Results) -> Part {
    let (group, figures, origin) = (results.group, &results.figures, &results.origin);
    let mut sections = Vec::new();
    match group.kind {
        Kind::Once => sections.extend(explicit(figures)),
        Kind::Counts => sections.extend(counts(figures)),
        Kind::Matrix => {
            sections.extend(against_best(group.name, figures));
            let rows = figures.rows();
            sections.extend(rows.iter().filter_map(|row| one_row(group.name, figures, row)));
        }
    }
    let state = if origin.is_complete() {
        ""
    } else {
        " Not complete: the run was stopped, or processes failed."
    };
    Part {
        title: group.title.into(),
        what: group.what.into(),
        origin: format!(
            "{} {}; {}; commit {}.{state}",
            how_often(results),
            origin.machine,
            origin.date,
            origin.commit,
        ),
        command: origin.command.clone(),
        sections,
    }
}

fn how_often(results: &Results) -> String {
    let (rounds, extent) = (results.figures.round_count(), &results.origin.extent);
    match results.group.kind {
        Kind::Counts => return "One count each.".into(),
        Kind::Once => return format!("Medians of {rounds} parts of one run."),
        Kind::Matrix => {}
    }
    let short = match (extent.quick, extent.for_readme) {
        (true, _) => ", quick",
        (_, true) => ", short processes",
        _ => "",
    };
    let too_few = if rounds < sample::LEAST_ROUNDS {
        ", too few for confidence intervals"
    } else {
        ""
    };
    let plural = if rounds == 1 { "" } else { "s" };
    format!("Medians of {rounds} round{plural}{short}{too_few}.")
}

/// Ours beside the best peer, all rows: time in one section, memory in another.
fn against_best(group: &str, figures: &Figures) -> Vec<Section> {
    let kinds = [("time", "Time", &MAIN), ("memory", "Memory", &MEMORY)];
    let section = |(id, title, names): (&str, &str, &[&str; 6])| {
        let (mut bars, mut rows) = (Vec::new(), Vec::new());
        for row in figures.rows() {
            for name in names
                .iter()
                .filter(|name| figures.rounds(&row, name, "stepalloc").is_some())
            {
                let Some((ratio, interval)) = to_best(figures, &row, name) else {
                    continue;
                };
                let Some((peer, peer_median)) = best_peer(figures, &row, name) else {
                    continue;
                };
                let verdict = verdict(ratio, interval);
                let loses = verdict == "loses";
                let is_alone = names
                    .iter()
                    .filter(|name| figures.rounds(&row, name, "stepalloc").is_some())
                    .count()
                    == 1;
                bars.push(Bar {
                    label: if is_alone {
                        row.clone()
                    } else {
                        format!("{row} {}", short(name))
                    },
                    value: ratio,
                    interval,
                    who: if loses { Who::OursLosing } else { Who::Ours },
                });
                let system = figures
                    .ratio(&row, name, "stepalloc", "System")
                    .filter(|ratio| ratio.is_finite());
                rows.push(Row {
                    cells: vec![
                        row.clone(),
                        with_interval(Some(ratio), interval),
                        verdict.into(),
                        with_interval(system, figures.interval(&row, name, "stepalloc", "System")),
                        figure(figures.median(&row, name, "stepalloc")),
                        format!("{} ({peer})", figure(Some(peer_median))),
                        figure(figures.median(&row, name, "System")),
                        meaning(name).into(),
                    ],
                    loses,
                });
            }
        }
        // What matters most stands where a phone shows it without scrolling.
        let heads = [
            "work",
            "to the best peer",
            "verdict",
            "to System",
            "stepalloc",
            "best peer",
            "System",
            "figure",
        ];
        Section {
            title: format!("{title}: stepalloc to the best general allocator"),
            chart: Chart {
                id: format!("{group}-{id}"),
                title: format!("{title}, stepalloc to the best peer"),
                bars,
                reference: Some(1.0),
            },
            heads: heads.map(Into::into).to_vec(),
            rows,
            is_detail: false,
        }
    };
    kinds
        .into_iter()
        .map(section)
        .filter(|section| !section.rows.is_empty())
        .collect()
}

fn short(name: &str) -> &str {
    match name {
        "peak_mib" => "peak",
        "after_mib" => "after",
        "peak_over_live" | "peak_ratio" => "peak/live",
        "resident_over_live" => "held/live",
        "bytes_a_kept_block" => "B kept",
        other => other,
    }
}

/// All columns of one row.
fn one_row(group: &str, figures: &Figures, row: &str) -> Option<Section> {
    let mut names = figures.names(row);
    names.retain(|name| name != DIGEST);
    let main = MAIN
        .iter()
        .find(|name| names.iter().any(|other| other == *name))
        .copied();
    let main = main.map(String::from).or_else(|| names.first().cloned())?;
    let mut columns: Vec<String> = names.iter().flat_map(|name| figures.columns(row, name)).collect();
    let place = |column: &String| {
        (
            ORDER.iter().position(|name| name == column).unwrap_or(ORDER.len()),
            column.clone(),
        )
    };
    columns.sort_by_key(place);
    columns.dedup();
    let best = best_peer(figures, row, &main).map_or("", |(peer, _)| peer);
    let loses = |column: &str| {
        let ratio = figures
            .ratio(row, &main, column, best)
            .filter(|_| who(column) == Who::Ours);
        ratio.is_some_and(|ratio| verdict(ratio, figures.interval(row, &main, column, best)) == "loses")
    };
    let bar = |column: &String| {
        let value = figures.median(row, &main, column)?;
        let values: Vec<f64> = figures.rounds(row, &main, column)?.values().copied().collect();
        Some(Bar {
            label: column.clone(),
            value,
            interval: sample::interval(&[values]),
            who: match who(column) {
                Who::Ours if loses(column) => Who::OursLosing,
                other => other,
            },
        })
    };
    let table_row = |column: &String| {
        let loses = loses(column);
        let mut cells = vec![if loses {
            format!("{column} (loses)")
        } else {
            column.clone()
        }];
        cells.extend(names.iter().map(|name| figure(figures.median(row, name, column))));
        let ratio = figures
            .ratio(row, &main, column, "System")
            .filter(|ratio| ratio.is_finite());
        let interval = figures
            .interval(row, &main, column, "System")
            .filter(|_| column != "System");
        cells.push(with_interval(ratio, interval));
        Row { cells, loses }
    };
    let bars: Vec<Bar> = columns.iter().filter_map(bar).collect();
    let heads = std::iter::once("allocator").chain(names.iter().map(|name| meaning(name)));
    Some(Section {
        title: row.into(),
        chart: Chart {
            id: format!(
                "{group}-{}",
                row.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-")
            ),
            title: format!("{row}: {}", meaning(&main)),
            bars,
            reference: None,
        },
        heads: heads.chain(["time to System's"]).map(Into::into).collect(),
        rows: columns.iter().map(table_row).collect(),
        is_detail: true,
    })
}

/// A contender among the explicit pieces.
pub struct Contender {
    group: String,
    column: String,
    pub median: Option<f64>,
    /// To the fastest of the peers, and its name.
    pub ratio: Option<f64>,
    pub interval: Option<(f64, f64)>,
    pub best: Option<String>,
}

impl Contender {
    pub fn is_ours(&self) -> bool {
        self.column.starts_with("stepalloc")
    }

    pub fn loses(&self) -> bool {
        self.verdict() == "loses"
    }

    fn verdict(&self) -> &'static str {
        let ratio = self.ratio.filter(|_| self.is_ours());
        ratio.map_or("", |ratio| verdict(ratio, self.interval))
    }

    /// The group, and what sets ours apart in it.
    pub fn label(&self) -> String {
        let (group, way) = (
            self.group.trim_start_matches("arena/"),
            self.column.trim_start_matches("stepalloc"),
        );
        format!("{group}{way}")
    }
}

/// Every contender beside the fastest of the peers of its group. General allocators are no peers of an arena or a pool;
/// they stand in the table.
pub fn explicit_rows(figures: &Figures) -> Vec<Contender> {
    let mut rows = Vec::new();
    for group in figures.rows() {
        let columns = figures.columns(&group, "ns");
        let is_peer = |column: &&String| !column.starts_with("stepalloc") && !column.starts_with("allocator");
        let peers = columns.iter().filter(is_peer);
        let medians = peers.filter_map(|peer| Some((peer, figures.median(&group, "ns", peer)?)));
        let best = medians
            .min_by(|(_, one), (_, other)| one.total_cmp(other))
            .map(|(peer, _)| peer);
        rows.extend(columns.iter().map(|column| {
            Contender {
                group: group.clone(),
                column: column.clone(),
                median: figures.median(&group, "ns", column),
                ratio: best.and_then(|peer| figures.ratio(&group, "ns", column, peer)),
                interval: best
                    .filter(|&peer| peer != column)
                    .and_then(|peer| figures.interval(&group, "ns", column, peer)),
                best: best.cloned(),
            }
        }));
    }
    rows
}

fn explicit(figures: &Figures) -> Option<Section> {
    let contenders = explicit_rows(figures);
    let bar = |row: &Contender| {
        let who = if row.loses() { Who::OursLosing } else { Who::Ours };
        Some(Bar {
            label: row.label(),
            value: row.ratio?,
            interval: row.interval,
            who,
        })
    };
    let cells = |row: &Contender| {
        let to_peer = with_interval(row.ratio, row.interval);
        let (group, column) = (row.group.clone(), row.column.clone());
        vec![group, column, row.verdict().into(), figure(row.median), to_peer]
    };
    (!contenders.is_empty()).then(|| Section {
        title: "Time: the pieces to the fastest of their peers".into(),
        chart: Chart {
            id: "explicit-time".into(),
            title: "Time, stepalloc's pieces to the fastest peer".into(),
            bars: contenders.iter().filter(|row| row.is_ours()).filter_map(bar).collect(),
            reference: Some(1.0),
        },
        heads: [
            "group",
            "contender",
            "verdict",
            "ns an operation",
            "to the fastest peer",
        ]
        .map(Into::into)
        .to_vec(),
        rows: contenders
            .iter()
            .map(|row| Row {
                cells: cells(row),
                loses: row.loses(),
            })
            .collect(),
        is_detail: false,
    })
}

/// Both builds of the crate; there are no peers whose instructions were counted.
fn counts(figures: &Figures) -> Option<Section> {
    let count = |row: &str, column: &str| figures.median(row, "instructions", column);
    let rows = figures.rows();
    let bar = |row: &String| {
        Some(Bar {
            label: row.clone(),
            value: count(row, "plain")?,
            interval: None,
            who: Who::Ours,
        })
    };
    let table_row = |row: &String| {
        let ratio = count(row, "hardened")
            .zip(count(row, "plain"))
            .map(|(checked, plain)| checked / plain);
        let counts = ["plain", "hardened"].map(|column| figure(count(row, column)));
        Row {
            cells: [row.clone()].into_iter().chain(counts).chain([figure(ratio)]).collect(),
            loses: false,
        }
    };
    (!rows.is_empty()).then(|| Section {
        title: "Instructions an operation".into(),
        chart: Chart {
            id: "counts".into(),
            title: "Instructions an operation, the plain build".into(),
            bars: rows.iter().filter_map(bar).collect(),
            reference: None,
        },
        heads: ["operation", "plain", "hardened", "hardened to plain"]
            .map(Into::into)
            .to_vec(),
        rows: rows.iter().map(table_row).collect(),
        is_detail: false,
    })
}

impl Chart {
    /// What the chart shows, in words.
    pub fn description(&self) -> String {
        let bar = |bar: &Bar| format!("{} {}", bar.label, with_interval(Some(bar.value), bar.interval));
        let bars: Vec<String> = self.bars.iter().map(bar).collect();
        let reference = match self.reference {
            Some(_) => " 1 is equal, less is better.",
            None => " Less is better.",
        };
        format!("Horizontal bars.{reference} {}.", bars.join("; "))
    }
}

/// The whole report as Markdown.
pub fn markdown(parts: &[Part]) -> String {
    let mut text = String::from(
        "# stepalloc, measured\n\nOf every figure less is better; rows where stepalloc loses are in bold.\n",
    );
    for part in parts {
        text += &format!(
            "\n## {}\n\n{}\n\n{}\n\n```sh\n{}\n```\n",
            part.title, part.what, part.origin, part.command
        );
        for section in &part.sections {
            let mut table = Table::new(section.heads.clone());
            for row in &section.rows {
                let bold = |cell: &String| {
                    if row.loses && !cell.is_empty() {
                        format!("**{cell}**")
                    } else {
                        cell.clone()
                    }
                };
                table.row(row.cells.iter().map(bold));
            }
            text += &format!("\n### {}\n\n{table}", section.title);
        }
    }
    text
}
