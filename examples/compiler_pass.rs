//! A scope around a compiler's pass: nodes of trees by the thousand, and only the finished code is kept.
//! `cargo run --release --example compiler_pass`

use std::rc::Rc;

use stepalloc::{arena_scope_report, StepAlloc};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

enum Tree {
    Number(i64),
    Name(String),
    Apply(char, Rc<Tree>, Rc<Tree>),
}

/// Parses a sum of products of numbers and names.
fn parse(source: &str) -> Rc<Tree> {
    let leaf = |word: &str| Rc::new(word.parse().map_or_else(|_| Tree::Name(word.to_string()), Tree::Number));
    let apply = |operator| move |left, right| Rc::new(Tree::Apply(operator, left, right));
    let product = |source: &str| {
        let factors = source.split('*').map(|word| leaf(word.trim()));
        factors.reduce(apply('*')).expect("split gives a part")
    };
    let products = source.split('+').map(product);
    products.reduce(apply('+')).expect("split gives a part")
}

/// Computes what is constant; shares the parts of the tree that it does not change.
fn fold(tree: &Rc<Tree>) -> Rc<Tree> {
    let Tree::Apply(operator, left, right) = &**tree else {
        return tree.clone();
    };
    let (left, right) = (fold(left), fold(right));
    match (operator, &*left, &*right) {
        ('+', Tree::Number(a), Tree::Number(b)) => Rc::new(Tree::Number(a + b)),
        ('*', Tree::Number(a), Tree::Number(b)) => Rc::new(Tree::Number(a * b)),
        _ => Rc::new(Tree::Apply(*operator, left, right)),
    }
}

fn emit(tree: &Tree, code: &mut Vec<String>) {
    match tree {
        Tree::Number(number) => code.push(format!("push {number}")),
        Tree::Name(name) => code.push(format!("load {name}")),
        Tree::Apply(operator, left, right) => {
            emit(left, code);
            emit(right, code);
            code.push(format!("apply {operator}"));
        }
    }
}

fn main() {
    let source = format!("width * height {}", "+ 2 * 3 * 7 ".repeat(1_000));
    let (code, report) = arena_scope_report(|| {
        let mut code = Vec::new();
        emit(&fold(&parse(&source)), &mut code);
        code
    });
    println!(
        "the pass made {} blocks; {} of them are the code",
        report.blocks, report.escapees
    );

    assert_eq!(code[..3], ["load width", "load height", "apply *"]);
    assert!(code[3..].chunks(2).all(|line| line == ["push 42", "apply +"]));
    assert!(report.installed && report.blocks > 10_000);
    // The vector and its strings; all nodes of both trees are gone.
    assert_eq!(report.escapees, 1 + 3 + 2 * 1_000);
}
