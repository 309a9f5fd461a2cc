//! The workloads, by what they press on. Each checks what it computed: a bench that computes nothing counts for nothing.
mod arenas;
mod memory;
mod small;
mod tensors;
mod threads;

use crate::run::Run;

/// A row of the table.
pub struct Workload {
    pub name: &'static str,
    /// One line for people.
    pub what: &'static str,
    pub run: fn(&Run),
    /// Whether it can run with buffers kept by hand.
    pub keeps: bool,
    /// Whether all blocks of a step end with it, so that a bare bump allocator can serve it.
    pub bumps: bool,
    /// Whether there is code for the explicit arenas: for none, for those of mixed types, or for typed-arena too.
    pub arenas: Arenas,
}

/// Which explicit arenas a workload has code for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Arenas {
    None,
    Mixed,
    All,
}

const fn row(name: &'static str, what: &'static str, run: fn(&Run)) -> Workload {
    Workload {
        name,
        what,
        run,
        keeps: false,
        bumps: false,
        arenas: Arenas::None,
    }
}

const fn kept_row(name: &'static str, what: &'static str, run: fn(&Run)) -> Workload {
    Workload {
        keeps: true,
        ..row(name, what, run)
    }
}

const fn bump_row(name: &'static str, what: &'static str, run: fn(&Run)) -> Workload {
    Workload {
        bumps: true,
        ..row(name, what, run)
    }
}

const fn arena_row(name: &'static str, what: &'static str, run: fn(&Run)) -> Workload {
    Workload {
        arenas: Arenas::Mixed,
        ..bump_row(name, what, run)
    }
}

/// All rows, in the order of the tables.
pub const WORKLOADS: &[Workload] = &[
    bump_row("pair-16", "allocate and free one block of 16 B", small::pair::<16, 8>),
    bump_row("pair-32", "of 32 B", small::pair::<32, 8>),
    bump_row("pair-64", "of 64 B", small::pair::<64, 8>),
    bump_row("pair-128", "of 128 B", small::pair::<128, 8>),
    bump_row("pair-256", "of 256 B", small::pair::<256, 8>),
    bump_row("pair-512", "of 512 B", small::pair::<512, 8>),
    bump_row("pair-1024", "of 1,024 B", small::pair::<1024, 8>),
    bump_row("aligned-pair-256", "of 256 B at alignment 64", small::pair::<256, 64>),
    arena_row(
        "batch-1000-in-order",
        "1,000 mixed small blocks, freed in the order of making",
        small::batch_in_order::<1000>,
    ),
    arena_row(
        "batch-1000-against",
        "1,000, freed last first",
        small::batch_against::<1000>,
    ),
    arena_row(
        "batch-1000-random",
        "1,000, freed at random",
        small::batch_random::<1000>,
    ),
    arena_row(
        "batch-100000-in-order",
        "100,000, freed in the order of making",
        small::batch_in_order::<100_000>,
    ),
    arena_row(
        "batch-100000-against",
        "100,000, freed last first",
        small::batch_against::<100_000>,
    ),
    arena_row(
        "batch-100000-random",
        "100,000, freed at random",
        small::batch_random::<100_000>,
    ),
    Workload {
        arenas: Arenas::All,
        ..bump_row(
            "rc-graph",
            "a graph of Rc nodes built, walked backwards and dropped, as autograd does; a node",
            small::rc_graph,
        )
    },
    bump_row("json", "JSON documents parsed and dropped; a byte of text", small::json),
    bump_row("collections", "String, HashMap, BTreeMap; an entry", small::collections),
    arena_row("grow-small", "a Vec pushed to 4 KiB; a push", small::grow_small),
    row(
        "enter-leave",
        "an empty scope; for those without scopes a pair of 32 B",
        small::enter_leave,
    ),
    row(
        "enter-leave-depth-8",
        "the same inside eight scopes",
        small::enter_leave_deep,
    ),
    arena_row(
        "escape-0",
        "1,000 blocks a step, none kept until the next; a block",
        small::escape::<0>,
    ),
    row("escape-1", "one in 100 kept", small::escape::<10>),
    row("escape-10", "one in 10 kept", small::escape::<100>),
    row("escape-100", "all kept", small::escape::<1000>),
    kept_row(
        "tensor-small",
        "a training step's buffers, 4 KiB to 256 KiB",
        tensors::small,
    ),
    kept_row("tensor-medium", "64 KiB to 4 MiB", tensors::medium),
    kept_row("tensor-large", "64 KiB to 64 MiB", tensors::large),
    kept_row("vec-256mb", "a Vec pushed to 256 MB", tensors::vec_pushed),
    row(
        "zeroed-64mb",
        "64 MB zeroed, then a byte of each page written",
        tensors::zeroed,
    ),
    row(
        "drift",
        "64 MB live, drifting sizes, random lifetimes; a block",
        memory::drift,
    ),
    row(
        "replace-16-1024",
        "200,000 blocks of 16 to 1,024 B replaced at random 30 times",
        memory::replace::<16, 1024>,
    ),
    row("replace-16-128", "of 16 to 128 B", memory::replace::<16, 128>),
    row("replace-16-32", "of 16 to 32 B", memory::replace::<16, 32>),
    row(
        "escapee-first",
        "1,000,000 steps that each leave 24 B, made before ten temporaries",
        memory::escapee::<0>,
    ),
    row("escapee-middle", "made between them", memory::escapee::<5>),
    row("escapee-last", "made after them", memory::escapee::<10>),
    row(
        "thread-turns",
        "200 threads in turn use 100 MB each and end",
        threads::turns,
    ),
    row(
        "producer-consumer",
        "one thread makes, another frees; wall time of a block",
        threads::producer_consumer,
    ),
];
