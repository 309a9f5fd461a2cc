//! The explicit arenas on the workloads that fit them: where all blocks of a step end with it, and where the types say so.
//! The code of the step differs, for such an arena has to be handed to whatever allocates in it; the work and the result
//! are the same. What needs a `BTreeMap`, or a library that knows no arenas (JSON), has no row here.
use std::alloc::Layout;
use std::cell::Cell;
use std::hint::black_box;
use std::ptr::NonNull;

use bump_scope::traits::BumpAllocatorTyped;
use stepalloc_measure::mapped::Mapped;

use crate::run::{Arena, Run};

/// What the workloads ask of an arena of mixed types.
trait StepArena {
    fn new() -> Self;

    /// A block that lives until the reset. An arena without memory ends the process.
    fn alloc(&self, layout: Layout) -> NonNull<u8>;

    /// A `Vec` of the arena's own kind, pushed `count` times; its length and its last byte.
    fn pushed(&self, count: usize, byte: u8) -> (usize, u8);

    fn reset(&mut self);

    #[inline(always)]
    fn value<T>(&self, value: T) -> &T {
        let place = self.alloc(Layout::new::<T>()).cast::<T>();
        // SAFETY: the block is the value's own, of its size and alignment, and lives as long as the borrow of the arena.
        unsafe {
            place.write(value);
            place.as_ref()
        }
    }

    #[inline(always)]
    fn values<T: Copy>(&self, values: &[T]) -> &[T] {
        let place = self.alloc(Layout::for_value(values)).cast::<T>();
        // SAFETY: as above, for `values.len()` values.
        unsafe {
            place.copy_from_nonoverlapping(NonNull::from(values).cast(), values.len());
            NonNull::slice_from_raw_parts(place, values.len()).as_ref()
        }
    }
}

macro_rules! push_all {
    ($vec:expr, $count:expr, $byte:expr) => {{
        let mut bytes = $vec;
        for _ in 0..$count {
            bytes.push($byte);
        }
        (black_box(&bytes).len(), bytes[$count - 1])
    }};
}

impl StepArena for bumpalo::Bump {
    fn new() -> Self {
        bumpalo::Bump::new()
    }

    #[inline(always)]
    fn alloc(&self, layout: Layout) -> NonNull<u8> {
        self.alloc_layout(layout)
    }

    fn pushed(&self, count: usize, byte: u8) -> (usize, u8) {
        push_all!(bumpalo::collections::Vec::new_in(self), count, byte)
    }

    fn reset(&mut self) {
        bumpalo::Bump::reset(self);
    }
}

impl StepArena for bump_scope::Bump {
    fn new() -> Self {
        bump_scope::Bump::new()
    }

    #[inline(always)]
    fn alloc(&self, layout: Layout) -> NonNull<u8> {
        self.allocate_layout(layout)
    }

    fn pushed(&self, count: usize, byte: u8) -> (usize, u8) {
        push_all!(bump_scope::BumpVec::new_in(self), count, byte)
    }

    fn reset(&mut self) {
        bump_scope::Bump::reset(self);
    }
}

impl StepArena for blink_alloc::BlinkAlloc {
    fn new() -> Self {
        blink_alloc::BlinkAlloc::new()
    }

    #[inline(always)]
    fn alloc(&self, layout: Layout) -> NonNull<u8> {
        match self.allocate(layout) {
            Ok(block) => block.cast(),
            Err(_) => std::alloc::handle_alloc_error(layout),
        }
    }

    fn pushed(&self, count: usize, byte: u8) -> (usize, u8) {
        push_all!(allocator_api2::vec::Vec::new_in(self), count, byte)
    }

    fn reset(&mut self) {
        blink_alloc::BlinkAlloc::reset(self);
    }
}

/// As the batch of the general allocators: made in order, read back in `read_order`; the arena's reset frees.
pub fn batch(run: &Run, arena: Arena, layouts: &[Layout], read_order: &[usize]) {
    match arena {
        Arena::Bumpalo => batch_in::<bumpalo::Bump>(run, layouts, read_order),
        Arena::BumpScope => batch_in::<bump_scope::Bump>(run, layouts, read_order),
        Arena::Blink => batch_in::<blink_alloc::BlinkAlloc>(run, layouts, read_order),
        Arena::Typed => unreachable!("a batch has mixed sizes"),
    }
}

fn batch_in<A: StepArena>(run: &Run, layouts: &[Layout], read_order: &[usize]) {
    let count = layouts.len();
    let mut places = Mapped::new(count, std::ptr::null_mut::<u64>());
    let mut arena = A::new();
    run.time(count, || {
        for (index, (place, layout)) in places.iter_mut().zip(layouts).enumerate() {
            // SAFETY: every layout has room for a word.
            unsafe {
                *place = arena.alloc(*layout).as_ptr().cast();
                place.write(index as u64);
            }
        }
        // SAFETY: each block lives until the reset.
        let sum: u64 = read_order.iter().map(|&index| unsafe { places[index].read() }).sum();
        arena.reset();
        assert_eq!(sum, (count * (count - 1) / 2) as u64);
    });
}

/// `Vec`s pushed to 4 KiB.
pub fn grow(run: &Run, arena: Arena) {
    match arena {
        Arena::Bumpalo => grow_in::<bumpalo::Bump>(run),
        Arena::BumpScope => grow_in::<bump_scope::Bump>(run),
        Arena::Blink => grow_in::<blink_alloc::BlinkAlloc>(run),
        Arena::Typed => unreachable!("its values do not grow"),
    }
}

fn grow_in<A: StepArena>(run: &Run) {
    let mut arena = A::new();
    run.time(64 * 4096, || {
        let mut total = 0;
        for round in 0..64 {
            let (len, last) = arena.pushed(4096, round);
            total += len + usize::from(last);
        }
        arena.reset();
        assert_eq!(total, 64 * 4096 + 63 * 64 / 2);
    });
}

/// A value of a computation; what it was made of is borrowed, not counted.
struct Node<'a> {
    value: f64,
    gradient: Cell<f64>,
    seen: Cell<bool>,
    parents: Parents<'a>,
}

type Parents<'a> = &'a [(&'a Node<'a>, f64)];

impl<'a> Node<'a> {
    fn new(value: f64, parents: Parents<'a>) -> Self {
        Node {
            value,
            gradient: Cell::new(0.0),
            seen: Cell::new(false),
            parents,
        }
    }
}

/// Where a graph's nodes are made.
trait Nodes<'a> {
    fn node(&'a self, node: Node<'a>) -> &'a Node<'a>;
    fn parents(&'a self, parents: &[(&'a Node<'a>, f64)]) -> Parents<'a>;
}

impl<'a, A: StepArena> Nodes<'a> for A {
    #[inline(always)]
    fn node(&'a self, node: Node<'a>) -> &'a Node<'a> {
        self.value(node)
    }

    #[inline(always)]
    fn parents(&'a self, parents: &[(&'a Node<'a>, f64)]) -> Parents<'a> {
        self.values(parents)
    }
}

/// typed-arena's: one for each type. They cannot be reset, only dropped.
#[derive(Default)]
struct Typed<'a> {
    nodes: typed_arena::Arena<Node<'a>>,
    parents: typed_arena::Arena<(&'a Node<'a>, f64)>,
}

impl<'a> Nodes<'a> for Typed<'a> {
    #[inline(always)]
    fn node(&'a self, node: Node<'a>) -> &'a Node<'a> {
        self.nodes.alloc(node)
    }

    #[inline(always)]
    fn parents(&'a self, parents: &[(&'a Node<'a>, f64)]) -> Parents<'a> {
        self.parents.alloc_extend(parents.iter().copied())
    }
}

/// Parents before children.
fn sort<'a>(node: &'a Node<'a>, order: &mut Vec<&'a Node<'a>>) {
    if !node.seen.replace(true) {
        for (parent, _) in node.parents {
            sort(parent, order);
        }
        order.push(node);
    }
}

/// The graph of the `Rc` row. The lists of nodes stay `Vec`s.
fn graph<'a>(nodes: &'a impl Nodes<'a>, width: usize, depth: usize) {
    let leaves: Vec<&Node> = (0..width).map(|_| nodes.node(Node::new(1.0, &[]))).collect();
    let mut layer = leaves.clone();
    for _ in 1..depth {
        let node = |index: usize| {
            let (left, right) = (layer[index], layer[(index + 1) % width]);
            let value = left.value * 0.5 + right.value * 0.5;
            nodes.node(Node::new(value, nodes.parents(&[(left, 0.5), (right, 0.5)])))
        };
        layer = (0..width).map(node).collect();
    }
    let last: Vec<(&Node, f64)> = layer.into_iter().map(|node| (node, 1.0)).collect();
    let loss = nodes.node(Node::new(0.0, nodes.parents(&last)));
    let mut order = Vec::new();
    sort(loss, &mut order);
    loss.gradient.set(1.0);
    for node in order.iter().rev() {
        for (parent, weight) in node.parents {
            parent
                .gradient
                .set(parent.gradient.get() + node.gradient.get() * weight);
        }
    }
    let total: f64 = leaves.iter().map(|leaf| leaf.gradient.get()).sum();
    assert!((total - width as f64).abs() < 1e-6 && order.len() == width * depth + 1);
}

/// A graph of `depth` layers of `width` nodes, built, walked backwards and dropped as a whole.
pub fn node_graph(run: &Run, arena: Arena, width: usize, depth: usize) {
    match arena {
        Arena::Bumpalo => graph_in::<bumpalo::Bump>(run, width, depth),
        Arena::BumpScope => graph_in::<bump_scope::Bump>(run, width, depth),
        Arena::Blink => graph_in::<blink_alloc::BlinkAlloc>(run, width, depth),
        Arena::Typed => run.time(width * depth, || graph(&Typed::default(), width, depth)),
    }
}

fn graph_in<A: StepArena>(run: &Run, width: usize, depth: usize) {
    let mut arena = A::new();
    run.time(width * depth, || {
        graph(&arena, width, depth);
        arena.reset();
    });
}
