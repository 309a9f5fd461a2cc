//! What a child does: `on-… WORKLOAD WAY LENGTH`, as the driver calls it. One figure a line to standard output.
//! Arguments are read by hand: a parser of command lines would leave its own blocks in the heap under test.
use crate::run::{Arena, Length, Run, Way};
use crate::workloads::WORKLOADS;

/// The whole of a child's `main`.
pub fn main() {
    stepalloc_measure::process::end(run());
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, name, way, length] = arguments.as_slice() else {
        return Err("usage: WORKLOAD plain|scope|bump|kept|ARENA full|quick|counted".into());
    };
    let way = match way.as_str() {
        "plain" => Way::Plain,
        "scope" => Way::Scope,
        "bump" => Way::Bump,
        "kept" => Way::Kept,
        "bumpalo" => Way::Arena(Arena::Bumpalo),
        "bump-scope" => Way::Arena(Arena::BumpScope),
        "blink-alloc" => Way::Arena(Arena::Blink),
        "typed-arena" => Way::Arena(Arena::Typed),
        other => return Err(format!("unknown way {other}")),
    };
    let length = match length.as_str() {
        "full" => Length::Full,
        "quick" => Length::Quick,
        "counted" => Length::Counted,
        other => return Err(format!("unknown length {other}")),
    };
    let workload = WORKLOADS.iter().find(|workload| workload.name == name);
    let workload = workload.ok_or_else(|| format!("no workload is called {name}"))?;
    let run = Run::new(way, length);
    (workload.run)(&run);
    run.print();
    Ok(())
}
