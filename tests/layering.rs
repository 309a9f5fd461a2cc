//! The order of `mod` lines in `src/lib.rs` is the architecture: a file may name only modules declared before its own.
//! And two rooms: `libc` is named under `src/sys/` alone, std's `System` only where it is the default backing.
//!
//! An `unsafe` without its SAFETY line is clippy's to find (`undocumented_unsafe_blocks`), not this file's.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the default backing may be named.
const SYSTEM_ROOMS: &[&str] = &["global"];

/// The modules that `lib.rs` declares, lowest layer first.
fn order(lib: &str) -> Vec<String> {
    let declared = |line: &str| {
        let line = line.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        Some(line.strip_prefix("mod ")?.split([';', ' ']).next()?.to_string())
    };
    lib.lines().filter_map(declared).collect()
}

/// The module of `lib.rs` that a file belongs to: its first path component, `heap_tests.rs` being part of `heap`.
fn module_of(path: &Path) -> String {
    let first = path.iter().next().unwrap().to_str().unwrap();
    let stem = first.strip_suffix(".rs").unwrap_or(first);
    stem.strip_suffix("_tests").unwrap_or(stem).to_string()
}

/// The names that follow `crate::` in the code, in groups in braces too.
fn named(code: &str) -> Vec<String> {
    let word = |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap()
            .to_string()
    };
    let mut names = vec![];
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(word(rest));
            continue;
        };
        let (mut depth, mut item) = (1, String::new());
        for c in group.chars() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if depth == 0 || (depth == 1 && c == ',') {
                names.push(word(item.trim()));
                item.clear();
            } else {
                item.push(c);
            }
            if depth == 0 {
                break;
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// What is wrong with one file, a line for each fault.
fn faults(order: &[String], path: &Path, text: &str) -> Vec<String> {
    let uncommented = |line: &str| line.split("//").next().unwrap_or("").to_string();
    let code: String = text.lines().map(|line| uncommented(line) + "\n").collect();
    let module = module_of(path);
    let Some(own) = order.iter().position(|name| *name == module) else {
        return vec![format!("{}: lib.rs declares no `mod {module}`", path.display())];
    };
    let mut found = vec![];
    for name in named(&code) {
        match order.iter().position(|known| *known == name) {
            Some(layer) if layer <= own => {}
            Some(_) => found.push(format!("{}: names `crate::{name}`, a higher layer", path.display())),
            None => found.push(format!("{}: names `crate::{name}` by the façade", path.display())),
        }
    }
    if code.contains("libc::") && module != "sys" {
        found.push(format!("{}: names libc outside src/sys", path.display()));
    }
    let system = code
        .lines()
        .any(|line| line.contains("std::alloc") && line.contains("System"));
    if system && !SYSTEM_ROOMS.contains(&module.as_str()) {
        found.push(format!("{}: names std's System", path.display()));
    }
    found
}

fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn no_file_names_a_layer_above_its_own() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let order = order(&fs::read_to_string(src.join("lib.rs")).unwrap());
    let mut paths = vec![];
    files(&src, &mut paths);
    assert!(
        order.len() > 10 && paths.len() > order.len(),
        "the list of modules was not found"
    );
    let mut found = vec![];
    for path in paths {
        let inside = path.strip_prefix(&src).unwrap();
        if inside != Path::new("lib.rs") {
            found.extend(faults(&order, inside, &fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_check_sees_each_kind_of_violation() {
    let order = order("mod align;\nmod sys;\npub mod heap;\nmod global; // the door\npub use heap::Heap;\n");
    assert_eq!(order, ["align", "sys", "heap", "global"]);
    let count = |path: &str, text: &str| faults(&order, Path::new(path), text).len();
    assert_eq!(
        count(
            "heap.rs",
            "use crate::{align::{max, min}, sys};\nuse crate::align::CACHE_LINE; // not crate::global"
        ),
        0
    );
    assert_eq!(
        count("heap.rs", "use crate::{\n    align::{max, min},\n    global,\n};"),
        1
    );
    assert_eq!(count("heap_tests.rs", "fn f() { crate::global::install() }"), 1);
    assert_eq!(count("sys/unix.rs", "use crate::heap::Heap;"), 1);
    assert_eq!(count("global.rs", "use crate::Heap;"), 1);
    assert_eq!(count("sys/unix.rs", "libc::mmap()"), 0);
    assert_eq!(count("heap.rs", "libc::mmap()"), 1);
    assert_eq!(count("global.rs", "use std::alloc::{GlobalAlloc, System};"), 0);
    assert_eq!(count("heap.rs", "use std::alloc::{GlobalAlloc, System};"), 1);
    assert_eq!(count("stray.rs", ""), 1);
}
