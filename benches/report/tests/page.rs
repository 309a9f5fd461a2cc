//! The page, opened from disk in a headless Chromium: its charts and tables are there and can be read by those who see none,
//! it fits a phone, it says nothing on the console and asks no network for anything. Skipped where there is no Chromium.
//!
//! `STEPALLOC_SCREENSHOTS=folder` keeps pictures at the widths of a phone and of a desk, light and dark.
mod chromium;

use std::path::{Path, PathBuf};
use std::process::Command;

use chromium::Chromium;
use serde_json::{json, Value};

/// Results as the drivers write them: two rounds too few for intervals in one group, enough in the others.
fn fixture(folder: &Path) {
    let values = |rows: &[&str], figures: &[(&str, f64)], columns: &[(&str, f64)], rounds: usize| {
        let mut text = String::from("row,figure,column,round,value\n");
        for (at, row) in rows.iter().enumerate() {
            for (figure, level) in figures {
                for (column, factor) in columns {
                    for round in 0..rounds {
                        // Ours loses in every third row.
                        let turn = if column.starts_with("stepalloc") && at % 3 == 2 {
                            3.0
                        } else {
                            1.0
                        };
                        let value = level * factor * turn * (1.0 + 0.01 * ((at + 7 * round) % 5) as f64);
                        text += &format!("{row},{figure},{column},{round},{value}\n");
                    }
                }
            }
        }
        text
    };
    let allocators = [
        ("System", 1.0),
        ("mimalloc", 0.5),
        ("jemalloc", 0.6),
        ("stepalloc", 0.3),
        ("stepalloc-mimalloc-outside", 0.7),
        ("bump", 0.05),
    ];
    let works = [
        "pair-16",
        "batch-100000-in-order",
        "json",
        "enter-leave-depth-8",
        "producer-consumer",
        "rc-graph",
    ];
    let origin = |rounds: usize| {
        json!({
            "extent": { "rounds": rounds, "quick": false, "work": [], "alloc": [] },
            "commit": "0123456789ab",
            "machine": { "cpu": "A <CPU> & more", "cores": 2, "memory_gib": 8, "kernel": "Linux 1", "rustc": "rustc 1" },
            "date": "2000-01-01", "command": "a command", "seconds": 1, "has_failures": false,
        })
    };
    let groups = [
        (
            "peers",
            values(&works, &[("ns", 20.0), ("syscalls", 0.25)], &allocators, 5),
            5,
        ),
        (
            "traces",
            values(
                &["one", "other"],
                &[("cpu_ms", 2.0), ("peak_ratio", 3.0)],
                &allocators,
                2,
            ),
            2,
        ),
        (
            "explicit",
            values(
                &["arena/alloc/u64"],
                &[("ns", 2.0)],
                &[
                    ("stepalloc; kept; with a name as long as they come", 1.1),
                    ("bumpalo", 1.0),
                ],
                15,
            ),
            15,
        ),
        (
            "frameworks",
            values(
                &["candle-mlp-1t"],
                &[("ms", 2.0), ("peak_mib", 3.0), ("losses", 1e15)],
                &allocators,
                5,
            ),
            5,
        ),
        (
            "counts",
            values(
                &["pair", "span"],
                &[("instructions", 70.0)],
                &[("plain", 1.0), ("hardened", 7.0)],
                1,
            ),
            1,
        ),
    ];
    for (name, text, rounds) in groups {
        std::fs::write(folder.join(name).with_extension("csv"), text).unwrap();
        std::fs::write(folder.join(name).with_extension("json"), origin(rounds).to_string()).unwrap();
    }
}

fn report(arguments: &[&str], folder: &Path) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_report"));
    command.args(arguments).arg("--folder").arg(folder);
    command.output().unwrap()
}

fn made_page() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fixture(folder.path());
    let output = report(&["page"], folder.path());
    assert!(output.status.success(), "{output:?}");
    let page = folder.path().join("report.html");
    (folder, page)
}

/// Numbers and truths about the page as it stands.
const LOOK: &str = r#"(() => {
  const charts = [...document.querySelectorAll("figure > svg")];
  const named = (svg) => (svg.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id));
  const wide = [...document.querySelectorAll("body *")].filter((element) =>
    !element.closest(".scroll") && !element.closest("svg") && element.getBoundingClientRect().right > innerWidth + 1);
  const small = (svg) => {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return parseFloat(getComputedStyle(svg.querySelector("text")).fontSize) * scale < 10.5;
  };
  return {
    charts: charts.length,
    bars: charts.filter((svg) => svg.querySelectorAll("rect").length > 0).length,
    alternatives: charts.filter((svg) => svg.getAttribute("role") === "img"
      && named(svg).length === 2 && named(svg).every((element) => element && svg.contains(element) && element.textContent.length > 8)).length,
    tables: document.querySelectorAll("table").length,
    chartsWithTable: charts.filter((svg) => svg.closest("figure").parentElement.querySelector("table tbody td")).length,
    ids: new Set([...document.querySelectorAll("[id]")].map((element) => element.id)).size === document.querySelectorAll("[id]").length,
    losing: [...document.querySelectorAll("tr.loses")].filter((row) => row.textContent.includes("loses")).length,
    wide: wide.map((element) => element.outerHTML.slice(0, 80)),
    scrolls: document.documentElement.scrollWidth > innerWidth,
    cut: charts.filter((svg) => svg.checkVisibility() && [...svg.querySelectorAll("text")].some((text) => {
      const [inner, outer] = [text.getBoundingClientRect(), svg.getBoundingClientRect()];
      return inner.left < outer.left || inner.right > outer.right || inner.bottom > outer.bottom;
    })).map((svg) => svg.querySelector("title").textContent),
    small: charts.filter((svg) => svg.checkVisibility() && small(svg)).length,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    chartInk: getComputedStyle(charts[0].querySelector("text")).fill,
    width: innerWidth,
  };
})()"#;

#[test]
fn the_page_can_be_read_by_everyone_and_asks_nobody() {
    let (_folder, page) = made_page();
    let Some(mut browser) = Chromium::start() else {
        eprintln!("skipped: there is no Chromium here");
        return;
    };
    let url = format!("file://{}", page.display());
    let mut grounds = Vec::new();
    for (width, scheme) in [(390, "light"), (390, "dark"), (1200, "light"), (1200, "dark")] {
        browser.emulate(width, scheme);
        let log = browser.open(&url);
        browser.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })");
        let look = browser.evaluate(LOOK);
        let count = |name: &str| look[name].as_u64().unwrap_or_else(|| panic!("{name} in {look}"));
        // Summaries of time for peers, traces and frameworks, of memory for the latter two, the pieces, the counts; and a
        // chart for each row.
        assert_eq!(count("charts"), 3 + 2 + 1 + 1 + 6 + 2 + 1, "{look}");
        for same in ["bars", "alternatives", "tables", "chartsWithTable"] {
            assert_eq!(count(same), count("charts"), "{same} in {look}");
        }
        // Two works by their time to the best peer, ours in and outside of scopes in their own tables, outside in the
        // other rows too, and one piece.
        assert_eq!(count("losing"), 2 + 2 + 6 + 2 + 1 + 1, "{look}");
        assert_eq!(look["ids"], json!(true), "an id stands twice");
        assert_eq!(count("width"), width, "{look}");
        assert_eq!(look["wide"], json!([]), "wider than the window");
        assert_eq!(look["scrolls"], json!(false), "the page scrolls sideways");
        assert_eq!(look["cut"], json!([]), "a chart's text leaves it");
        assert_eq!(count("small"), 0, "text too small to read: {look}");
        assert_ne!(look["ground"], look["ink"]);
        assert_eq!(look["ink"], look["chartInk"], "the charts' text follows the scheme");
        assert_eq!(log.console, Vec::<Value>::new(), "the console is silent");
        assert!(!log.requests.is_empty(), "the page itself was not seen as a request");
        for request in &log.requests {
            assert!(
                request == &url || request.starts_with("data:"),
                "a request to {request}"
            );
        }
        grounds.push(look["ground"].clone());
        if let Some(folder) = std::env::var_os("STEPALLOC_SCREENSHOTS") {
            let picture = browser.screenshot();
            std::fs::write(Path::new(&folder).join(format!("{width}-{scheme}.png")), picture).unwrap();
        }
    }
    assert_eq!((&grounds[0], &grounds[1]), (&grounds[2], &grounds[3]));
    assert_ne!(grounds[0], grounds[1], "dark mode changes nothing");
}

#[test]
fn markdown_charts_and_ratios_stand_beside_the_page() {
    let (folder, _) = made_page();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let markdown = read("report.md");
    assert!(
        markdown.contains("| **json** ") && markdown.contains("**loses**"),
        "{markdown}"
    );
    assert!(markdown.contains("A <CPU> & more, 2 cores") && markdown.contains("2000-01-01"));
    assert!(markdown.contains("too few for confidence intervals"));
    assert!(!markdown.contains("losses |"), "a digest is no figure");
    let chart = read("charts/peers-time.svg");
    for part in [
        "role=\"img\"",
        "<title ",
        "<desc ",
        "prefers-color-scheme",
        "batch-100000-in-order",
    ] {
        assert!(chart.contains(part), "no {part} in the chart");
    }
    assert!(read("peers-ratios.csv").contains("pair-16,ns,mimalloc,System,0.5,0.5,0.5,5\n"));
}

#[test]
fn the_readme_takes_whole_runs_only() {
    let (folder, _) = made_page();
    let readme = folder.path().join("README.md");
    std::fs::write(&readme, "a\n<!-- figures: begin -->\n<!-- figures: end -->\nb\n").unwrap();
    let put = |more: &[&str]| {
        let arguments: Vec<&str> = ["readme", "--file", readme.to_str().unwrap()]
            .iter()
            .chain(more)
            .copied()
            .collect();
        report(&arguments, folder.path())
    };
    // The traces have two rounds only.
    assert!(!put(&[]).status.success());
    assert!(put(&["--draft"]).status.success());
    let text = std::fs::read_to_string(&readme).unwrap();
    assert!(text.starts_with("a\n") && text.ends_with("b\n"));
    for part in [
        "JSON documents",
        "**1.80",
        "This is a draft",
        "candle mlp, 1",
        "| 490 ",
        "A <CPU> & more",
        "`a command`",
        "commit 0123456789ab",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}
