//! One command for figures: runs the benches, and makes Markdown, charts, a page and the README's tables of the results.
//!
//! From below to above: [`machine`], [`groups`] (what can be run), [`results`] (what came of it), [`run`], [`sections`]
//! (tables and charts as values), [`chart`], [`page`], [`readme`].
mod chart;
mod groups;
mod machine;
mod page;
mod readme;
mod results;
mod run;
mod sections;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use groups::{Extent, Group, GROUPS};

/// Runs stepalloc's benches and shows their results as Markdown, SVG and one HTML page.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Option<What>,
    #[command(flatten)]
    run: RunOptions,
}

#[derive(Subcommand)]
enum What {
    /// Makes tables, charts and the page again of what the folder holds, and runs nothing
    Page(Folder),
    /// Puts the figures between the README's markers
    Readme {
        #[command(flatten)]
        folder: Folder,
        /// The file to change
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md"))]
        file: PathBuf,
        /// Take results of a quick or partial run too; the text says so
        #[arg(long)]
        draft: bool,
    },
}

#[derive(Args)]
struct Folder {
    /// Where the results are
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/report"))]
    folder: PathBuf,
}

#[derive(Args)]
struct RunOptions {
    #[command(flatten)]
    folder: Folder,
    /// Only these groups: peers, traces, frameworks, explicit, counts (may be given again)
    #[arg(long, value_name = "GROUP")]
    only: Vec<String>,
    /// Only workloads and recordings of this name (may be given again)
    #[arg(long, value_name = "NAME")]
    work: Vec<String>,
    /// Only these allocators (may be given again; System always runs)
    #[arg(long, value_name = "NAME")]
    alloc: Vec<String>,
    /// Times that everything runs [default: 5; with --quick 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// A tenth to a third of the work, once: to steer by
    #[arg(long)]
    quick: bool,
    /// As much as the README's figures need: five rounds of short processes, and no columns that it does not show
    #[arg(long, conflicts_with_all = ["quick", "only", "work", "alloc"])]
    for_readme: bool,
    /// Go on with an interrupted run: what is complete is not run again
    #[arg(long)]
    resume: bool,
}

impl RunOptions {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    match options.command {
        Some(What::Page(folder)) => write_all(&folder.folder)?,
        Some(What::Readme { folder, file, draft }) => {
            let figures = readme::figures(&results::read_all(&folder.folder)?, draft)?;
            let changed = readme::put(&std::fs::read_to_string(&file)?, &figures)?;
            std::fs::write(&file, changed)?;
            eprintln!("{}: figures put in", file.display());
        }
        None => run_all(&options.run)?,
    }
    Ok(())
}

fn run_all(options: &RunOptions) -> Result<(), String> {
    let groups = chosen(&options.only)?;
    let extent = Extent {
        rounds: options.rounds(),
        quick: options.quick,
        for_readme: options.for_readme,
        work: options.work.clone(),
        alloc: options.alloc.clone(),
    };
    let folder = &options.folder.folder;
    let outcome = run::run(&groups, &extent, folder, options.resume, &command(options));
    // What there is is shown even if something failed.
    write_all(folder)?;
    outcome
}

fn chosen(only: &[String]) -> Result<Vec<&'static Group>, String> {
    let is_there = |group: &Group| group.folder().join("Cargo.toml").exists();
    for name in only {
        match GROUPS.iter().find(|group| group.name == name) {
            None => {
                let names = GROUPS.map(|group| group.name).join(", ");
                return Err(format!("no group is called {name}; there are {names}"));
            }
            Some(group) if !is_there(group) => return Err(format!("there is no folder {}", group.folder().display())),
            Some(_) => {}
        }
    }
    let is_chosen = |group: &&Group| is_there(group) && (only.is_empty() || only.iter().any(|name| name == group.name));
    Ok(GROUPS.iter().filter(is_chosen).collect())
}

/// The command that gives these results, from the top of the repository.
fn command(options: &RunOptions) -> String {
    let mut command = String::from("cargo run --release --manifest-path benches/report/Cargo.toml --");
    let lists = [
        ("--only", &options.only),
        ("--work", &options.work),
        ("--alloc", &options.alloc),
    ];
    for (flag, names) in lists {
        names.iter().for_each(|name| command += &format!(" {flag} {name}"));
    }
    for (flag, is_given) in [("--quick", options.quick), ("--for-readme", options.for_readme)] {
        if is_given {
            command += &format!(" {flag}");
        }
    }
    command + &format!(" --rounds {}", options.rounds())
}

/// Markdown, charts, ratios and the page.
fn write_all(folder: &Path) -> Result<(), String> {
    let all = results::read_all(folder)?;
    let parts = sections::parts(&all);
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.and_then(|()| std::fs::write(&path, text))
            .map_err(|error| format!("{}: {error}", path.display()))
    };
    for results in &all {
        let base = |row: &str, name: &str| {
            let columns = results.figures.columns(row, name);
            columns.into_iter().find(|column| column == "System")
        };
        write(
            &format!("{}-ratios.csv", results.group.name),
            results.figures.ratios_csv(base),
        )?;
    }
    for section in parts.iter().flat_map(|part| &part.sections) {
        write(
            &format!("charts/{}.svg", section.chart.id),
            chart::file(&section.chart)?,
        )?;
    }
    write("report.md", sections::markdown(&parts))?;
    write("report.html", page::page(&parts)?)?;
    eprintln!("{}: report.html, report.md, charts/", folder.display());
    Ok(())
}
