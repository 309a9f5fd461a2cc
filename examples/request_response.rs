//! A scope for each request: what handling it allocates goes at once, and the response outlives it.
//! `cargo run --release --example request_response`

use std::collections::BTreeMap;
use std::fmt::Write;

use stepalloc::{arena_scope, arena_scope_report, StepAlloc};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// `GET /greet?name=Ada&times=2`, taken apart.
struct Request {
    path: String,
    query: BTreeMap<String, String>,
}

fn parse(line: &str) -> Result<Request, String> {
    let target = line.strip_prefix("GET ").ok_or_else(|| format!("not a GET: {line}"))?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut fields = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("no value: {pair}"))?;
        fields.insert(key.to_string(), value.to_string());
    }
    Ok(Request {
        path: path.to_string(),
        query: fields,
    })
}

fn handle(line: &str) -> Result<String, String> {
    let request = parse(line)?;
    if request.path != "/greet" {
        return Err(format!("no such page: {}", request.path));
    }
    let name = request.query.get("name").map_or("you", String::as_str);
    let times = request.query.get("times").map_or(Ok(1), |times| times.parse::<usize>());
    let mut page = String::new();
    for line in vec![format!("Hello, {name}!"); times.map_err(|error| error.to_string())?] {
        writeln!(page, "{line}").map_err(|error| error.to_string())?;
    }
    Ok(page)
}

fn main() {
    // An early return by `?` leaves the scope like any other end, and the error that escapes is as safe as a page.
    let mut pages = Vec::new();
    let mut errors = Vec::new();
    for number in 0..1_000 {
        let line = match number % 10 {
            0 => "GET /greet?name".to_string(),
            1 => "POST /greet".to_string(),
            _ => format!("GET /greet?name=caller-{number}&times={}", number % 10),
        };
        match arena_scope(|| handle(&line)) {
            Ok(page) => pages.push(page),
            Err(error) => errors.push(error),
        }
    }

    // What one request allocates: all of it is gone at the end of its scope, but for the page.
    let (page, report) = arena_scope_report(|| handle("GET /greet?name=Ada&times=3"));
    println!(
        "one request made {} blocks, {} bytes; {} outlived it",
        report.blocks, report.bytes, report.escapees
    );

    assert_eq!(page.as_deref(), Ok("Hello, Ada!\nHello, Ada!\nHello, Ada!\n"));
    assert!(report.installed && report.blocks >= 10);
    assert_eq!(report.escapees, 1);
    assert_eq!((pages.len(), errors.len()), (800, 200));
    assert_eq!(pages[1], "Hello, caller-3!\n".repeat(3));
    assert_eq!(errors[..2], ["no value: name", "not a GET: POST /greet"]);
}
