//! Small blocks: time only.
use std::alloc::Layout;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::rc::Rc;

use stepalloc_measure::mapped::Mapped;

use super::arenas;
use crate::run::{Run, Way};

/// Makes a block, writes its first word, reads it back, frees it. Returns what it read.
///
/// # Safety
/// The layout has room for a word at a word's alignment.
#[inline(always)]
unsafe fn make_and_free(layout: Layout, value: u64) -> u64 {
    // SAFETY: the caller's own promise; a null block would fault on the write, in a bench as good as a check.
    unsafe {
        let place = black_box(std::alloc::alloc(layout)).cast::<u64>();
        place.write(value);
        let read = black_box(place).read();
        std::alloc::dealloc(place.cast(), layout);
        read
    }
}

const fn layout(size: usize, align: usize) -> Layout {
    match Layout::from_size_align(size, align) {
        Ok(layout) => layout,
        Err(_) => panic!("not a layout"),
    }
}

fn pairs<const SIZE: usize, const ALIGN: usize>() {
    const PAIRS: u64 = 10_000;
    let mut sum = 0;
    for value in 0..PAIRS {
        // SAFETY: rows have sizes of 16 or more at alignments of 8 or more.
        sum += unsafe { make_and_free(const { layout(SIZE, ALIGN) }, value) };
    }
    assert_eq!(sum, PAIRS * (PAIRS - 1) / 2);
}

pub fn pair<const SIZE: usize, const ALIGN: usize>(run: &Run) {
    run.time(10_000, || run.step(pairs::<SIZE, ALIGN>));
}

pub fn enter_leave(run: &Run) {
    if run.way != Way::Scope {
        return run.time(10_000, pairs::<32, 8>);
    }
    run.time(10_000, || {
        let mut sum = 0;
        for value in 0..10_000_u64 {
            sum += stepalloc::arena_scope(|| black_box(value));
        }
        assert_eq!(sum, 10_000 * 9_999 / 2);
    });
}

pub fn enter_leave_deep(run: &Run) {
    fn nest(depth: usize, f: &mut dyn FnMut()) {
        match depth {
            0 => f(),
            _ => stepalloc::arena_scope(|| nest(depth - 1, f)),
        }
    }
    match run.way {
        Way::Scope => nest(8, &mut || enter_leave(run)),
        Way::Plain | Way::Bump | Way::Arena(_) | Way::Kept => enter_leave(run),
    }
}

/// Sizes of small blocks as programs have them: many below 64 B, few of hundreds.
const SIZES: [usize; 12] = [16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 256, 512];

fn batch<const COUNT: usize>(run: &Run, free_order: &[usize]) {
    let mut random = fastrand::Rng::with_seed(7);
    let layouts: Vec<Layout> = (0..COUNT)
        .map(|_| layout(SIZES[random.usize(..SIZES.len())], 8))
        .collect();
    let layouts = Mapped::from_slice(&layouts);
    let free_order = Mapped::from_slice(free_order);
    if let Way::Arena(arena) = run.way {
        return arenas::batch(run, arena, &layouts, &free_order);
    }
    let mut places = Mapped::new(COUNT, std::ptr::null_mut::<u64>());
    run.time(COUNT, || {
        let sum = run.step(|| {
            for (index, (place, layout)) in places.iter_mut().zip(layouts.iter()).enumerate() {
                // SAFETY: every layout has room for a word.
                unsafe {
                    *place = std::alloc::alloc(*layout).cast();
                    place.write(index as u64);
                }
            }
            let mut sum = 0;
            for &index in free_order.iter() {
                // SAFETY: each index comes once, so each block is read while it lives and freed once.
                unsafe {
                    sum += places[index].read();
                    std::alloc::dealloc(places[index].cast(), layouts[index]);
                }
            }
            sum
        });
        assert_eq!(sum, (COUNT * (COUNT - 1) / 2) as u64);
    });
}

pub fn batch_in_order<const COUNT: usize>(run: &Run) {
    batch::<COUNT>(run, &(0..COUNT).collect::<Vec<_>>());
}

pub fn batch_against<const COUNT: usize>(run: &Run) {
    batch::<COUNT>(run, &(0..COUNT).rev().collect::<Vec<_>>());
}

pub fn batch_random<const COUNT: usize>(run: &Run) {
    let mut order: Vec<usize> = (0..COUNT).collect();
    fastrand::Rng::with_seed(11).shuffle(&mut order);
    batch::<COUNT>(run, &order);
}

/// 1,000 blocks a step, of which `KEPT` live until the next step has ended.
pub fn escape<const KEPT: usize>(run: &Run) {
    const COUNT: usize = 1000;
    let mut random = fastrand::Rng::with_seed(13);
    let layouts: Vec<Layout> = (0..COUNT)
        .map(|_| layout(SIZES[random.usize(..SIZES.len())], 8))
        .collect();
    let layouts = Mapped::from_slice(&layouts);
    if let Way::Arena(arena) = run.way {
        return arenas::batch(
            run,
            arena,
            &layouts,
            &Mapped::from_slice(&std::array::from_fn::<_, COUNT, _>(|at| at)),
        );
    }
    let mut places = Mapped::new(COUNT, std::ptr::null_mut::<u64>());
    let mut kept = Mapped::new(COUNT, std::ptr::null_mut::<u64>());
    let is_kept = |index: usize| KEPT > 0 && index.is_multiple_of(COUNT / KEPT.max(1));
    run.time(COUNT, || {
        let sum = run.step(|| {
            let mut sum = 0;
            for (index, place) in places.iter_mut().enumerate() {
                // SAFETY: every layout has room for a word.
                unsafe {
                    *place = std::alloc::alloc(layouts[index]).cast();
                    place.write(index as u64);
                }
            }
            for index in (0..COUNT).filter(|&index| !is_kept(index)) {
                // SAFETY: the block was made above and is not freed elsewhere.
                unsafe {
                    sum += places[index].read();
                    std::alloc::dealloc(places[index].cast(), layouts[index]);
                }
            }
            sum
        });
        let mut kept_sum = 0;
        for index in (0..COUNT).filter(|&index| is_kept(index)) {
            // SAFETY: the block of the step before, read and freed once; then this step's takes its place.
            unsafe {
                if !kept[index].is_null() {
                    kept_sum += kept[index].read();
                    std::alloc::dealloc(kept[index].cast(), layouts[index]);
                } else {
                    kept_sum += index as u64;
                }
            }
            kept[index] = places[index];
        }
        assert_eq!(sum + kept_sum, (COUNT * (COUNT - 1) / 2) as u64);
    });
}

/// A value of a computation and the values that it was made of.
struct Node {
    value: f64,
    gradient: Cell<f64>,
    seen: Cell<bool>,
    parents: Vec<(Rc<Node>, f64)>,
}

impl Node {
    fn new(value: f64, parents: Vec<(Rc<Node>, f64)>) -> Rc<Node> {
        Rc::new(Node {
            value,
            gradient: Cell::new(0.0),
            seen: Cell::new(false),
            parents,
        })
    }
}

/// Parents before children.
fn sort(node: &Rc<Node>, order: &mut Vec<Rc<Node>>) {
    if !node.seen.replace(true) {
        for (parent, _) in &node.parents {
            sort(parent, order);
        }
        order.push(Rc::clone(node));
    }
}

pub fn rc_graph(run: &Run) {
    const WIDTH: usize = 200;
    const DEPTH: usize = 50;
    if let Way::Arena(arena) = run.way {
        return arenas::node_graph(run, arena, WIDTH, DEPTH);
    }
    run.time(WIDTH * DEPTH, || {
        run.step(|| {
            let leaves: Vec<Rc<Node>> = (0..WIDTH).map(|_| Node::new(1.0, Vec::new())).collect();
            let mut layer = leaves.clone();
            for _ in 1..DEPTH {
                let node = |index: usize| {
                    let (left, right) = (&layer[index], &layer[(index + 1) % WIDTH]);
                    let value = left.value * 0.5 + right.value * 0.5;
                    Node::new(value, vec![(Rc::clone(left), 0.5), (Rc::clone(right), 0.5)])
                };
                layer = (0..WIDTH).map(node).collect();
            }
            let loss = Node::new(0.0, layer.into_iter().map(|node| (node, 1.0)).collect());
            let mut order = Vec::new();
            sort(&loss, &mut order);
            loss.gradient.set(1.0);
            for node in order.iter().rev() {
                for (parent, weight) in &node.parents {
                    parent
                        .gradient
                        .set(parent.gradient.get() + node.gradient.get() * weight);
                }
            }
            let total: f64 = leaves.iter().map(|leaf| leaf.gradient.get()).sum();
            assert!((total - WIDTH as f64).abs() < 1e-6 && order.len() == WIDTH * DEPTH + 1);
        })
    });
}

fn document(random: &mut fastrand::Rng) -> String {
    let mut records = Vec::new();
    for id in 0..100 {
        let tags: Vec<String> = (0..random.usize(0..6))
            .map(|tag| format!("tag-{tag}-{}", random.u16(..)))
            .collect();
        let scores: Vec<f64> = (0..random.usize(0..8)).map(|_| random.f64()).collect();
        records.push(serde_json::json!({
            "id": id,
            "name": format!("user number {}", random.u32(..)),
            "active": random.bool(),
            "tags": tags,
            "address": { "street": format!("{} Long Street", random.u8(..)), "city": "Springfield", "zip": null },
            "scores": scores,
        }));
    }
    serde_json::Value::Array(records).to_string()
}

/// How many values a document holds.
fn count(value: &serde_json::Value) -> usize {
    1 + match value {
        serde_json::Value::Array(values) => values.iter().map(count).sum(),
        serde_json::Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

pub fn json(run: &Run) {
    let mut random = fastrand::Rng::with_seed(17);
    let texts: Vec<String> = (0..8).map(|_| document(&mut random)).collect();
    let parse = |text: &String| count(&serde_json::from_str(text).expect("the documents are valid"));
    let expected: Vec<usize> = texts.iter().map(parse).collect();
    run.time(texts.iter().map(String::len).sum(), || {
        for (text, &expected) in texts.iter().zip(&expected) {
            assert_eq!(run.step(|| parse(text)), expected);
        }
    });
}

pub fn collections(run: &Run) {
    const ENTRIES: usize = 500;
    run.time(3 * ENTRIES, || {
        let (map, tree, words) = run.step(|| {
            let mut map: HashMap<String, Vec<usize>> = HashMap::new();
            let mut tree: BTreeMap<usize, String> = BTreeMap::new();
            let mut words: Vec<String> = Vec::new();
            for entry in 0..ENTRIES {
                map.entry(format!("key {}", entry % 250)).or_default().push(entry);
                tree.insert(entry * 7919 % 10_007, entry.to_string());
                words.push("a".repeat(entry % 64 + 1));
            }
            words.sort_unstable();
            words.dedup();
            (map.len(), tree.len(), words.len())
        });
        assert_eq!((map, tree, words), (250, ENTRIES, 64));
    });
}

pub fn grow_small(run: &Run) {
    if let Way::Arena(arena) = run.way {
        return arenas::grow(run, arena);
    }
    run.time(64 * 4096, || {
        let total = run.step(|| {
            let mut total = 0;
            for round in 0..64 {
                let mut bytes: Vec<u8> = Vec::new();
                for _ in 0..4096 {
                    bytes.push(round);
                }
                total += black_box(&bytes).len() + usize::from(bytes[4095]);
            }
            total
        });
        assert_eq!(total, 64 * 4096 + 63 * 64 / 2);
    });
}
