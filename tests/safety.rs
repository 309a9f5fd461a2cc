//! The page `safety` names tests and breaks: each must be there, and each invariant of the design must have its row.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What stands between backquotes.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The rows of the first table of the page, as cells.
fn rows(page: &str) -> Vec<Vec<String>> {
    let lines = page.lines().map(|line| line.trim_start_matches("//!").trim());
    let table = lines.skip_while(|line| !line.starts_with("| | in short")).skip(2);
    table
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().to_string())
                .collect()
        })
        .collect()
}

/// The names of the breaks in the list.
fn breaks(list: &str) -> BTreeSet<&str> {
    list.lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .collect()
}

/// What is wrong with the page.
fn faults(page: &str, list: &str, design: &str, models: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let (rows, breaks) = (rows(page), breaks(list));
    let mut faults = vec![];
    for row in &rows {
        for file in quoted(&row[2]).filter(|file| !exists(file)) {
            faults.push(format!("{}: there is no {file}", row[0]));
        }
        for name in quoted(&row[4]).filter(|name| !breaks.contains(name)) {
            faults.push(format!("{}: no break is named {name}", row[0]));
        }
        for model in quoted(&row[3]).filter(|model| !models.contains(&format!("fn {model}("))) {
            faults.push(format!("{}: there is no model {model}", row[0]));
        }
        if quoted(&row[2]).count() == 0 || row[3].is_empty() || quoted(&row[4]).count() == 0 {
            faults.push(format!("{} has an empty cell", row[0]));
        }
    }
    // The design's own table, H1 and on.
    let invariants = design
        .lines()
        .filter_map(|line| line.strip_prefix("//! | H")?.split(' ').next());
    for number in invariants {
        if !rows.iter().any(|row| row[0] == format!("H{number}")) {
            faults.push(format!("H{number} has no row"));
        }
    }
    faults
}

#[test]
fn the_page_names_only_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (page, list, design) = (
        read("src/safety.rs"),
        read("tests/mutations/list.toml"),
        read("src/design.rs"),
    );
    assert!(
        rows(&page).len() >= 12 && breaks(&list).len() >= 100,
        "the tables were not found"
    );
    let models = read("tests/loom/models.rs");
    assert!(
        rows(&page).iter().filter(|row| quoted(&row[3]).count() != 0).count() >= 4,
        "no models were found"
    );
    let faults = faults(&page, &list, &design, &models, |file| root.join(file).exists());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // The loom breaks that stand in the text below the table.
    let names = breaks(&list);
    for name in [
        "fold-relaxed",
        "remote-free-relaxed",
        "span-fold-relaxed",
        "take-over-without-acquire",
    ] {
        assert!(page.contains(name) && names.contains(name), "{name}");
    }
}

#[test]
fn the_check_sees_what_is_missing() {
    let page = "//! | | in short | test | model | break |\n//! |---|\n//! | H1 | x | `tests/a.rs` | m | `one` |\n";
    let list = "name = \"one\"\n";
    let count =
        |page: &str, list: &str, design: &str, there: bool| faults(page, list, design, "fn m()", |_| there).len();
    assert_eq!(count(page, list, "//! | H1 | a bit", true), 0);
    assert_eq!(count(page, list, "//! | H1 | a bit", false), 1);
    assert_eq!(count(page, "name = \"other\"\n", "", true), 1);
    assert_eq!(count(page, list, "//! | H2 | owner", true), 1);
    assert_eq!(count(&page.replace("| m |", "| |"), list, "", true), 1);
    assert_eq!(count(&page.replace("| m |", "| loom's `m` |"), list, "", true), 0);
    assert_eq!(count(&page.replace("| m |", "| loom's `n` |"), list, "", true), 1);
}

/// The lints that keep the SAFETY lines are denied, in this package and those of the tests.
#[test]
fn the_lints_are_on() {
    let manifest = read("Cargo.toml");
    for lint in [
        "undocumented_unsafe_blocks",
        "missing_safety_doc",
        "unsafe_op_in_unsafe_fn",
    ] {
        assert!(manifest.contains(&format!("{lint} = \"deny\"")), "{lint}");
    }
}
