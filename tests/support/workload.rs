//! Work over std's collections whose results are known: each function builds, changes, checks and drops, by seed.

use super::random::Random;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque};
use std::fmt::Write;
use std::rc::{Rc, Weak};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// A piece of work.
pub type Work = fn(&mut Random);

/// All of them, by name.
pub const ALL: &[(&str, Work)] = &[
    ("vectors", vectors),
    ("strings", strings),
    ("maps", maps),
    ("queues", queues),
    ("rc_graph", rc_graph),
    ("sorting", sorting),
    ("channels", channels),
    ("shared_tree", shared_tree),
    ("large", large),
    ("boxed", boxed),
    ("unwinding", unwinding),
];

/// Runs a random one.
pub fn any(random: &mut Random) {
    let (_, work) = ALL[random.below(ALL.len())];
    work(random);
}

fn text(number: u64) -> String {
    format!("{number:x}-{number}-{}", "padding".repeat((number % 9) as usize))
}

fn vectors(random: &mut Random) {
    let mut rows: Vec<Vec<u64>> = vec![];
    for _ in 0..60 {
        match random.below(6) {
            0 | 1 => rows.push((0..random.size(9) as u64).collect()),
            2 if !rows.is_empty() => {
                let row = rows.swap_remove(random.below(rows.len()));
                assert!(row.iter().enumerate().all(|(i, &x)| i as u64 == x));
            }
            3 if !rows.is_empty() => {
                let index = random.below(rows.len());
                let len = rows[index].len() as u64;
                rows[index].extend(len..len + random.size(8) as u64);
            }
            4 if !rows.is_empty() => {
                let index = random.below(rows.len());
                let half = rows[index].len() / 2;
                rows[index].truncate(half);
                rows[index].shrink_to_fit();
            }
            _ => rows.push(
                vec![0; random.size(9)]
                    .into_iter()
                    .enumerate()
                    .map(|(i, _)| i as u64)
                    .collect(),
            ),
        }
    }
    assert!(rows
        .iter()
        .flat_map(|row| row.iter().enumerate())
        .all(|(i, &x)| i as u64 == x));
}

fn strings(random: &mut Random) {
    let mut all = String::new();
    let mut parts = vec![];
    for _ in 0..40 {
        let number = random.bits() >> random.below(60);
        parts.push(text(number));
        write!(all, "{};", text(number)).unwrap();
    }
    assert_eq!(all.split_terminator(';').collect::<Vec<_>>(), parts);
    let upper = all.to_uppercase().replace("PADDING", "p");
    assert_eq!(upper.matches('p').count(), all.matches("padding").count());
    assert_eq!(all.chars().rev().collect::<String>().len(), all.len());
}

fn maps(random: &mut Random) {
    let mut hash: HashMap<u64, String> = HashMap::new();
    let mut tree: BTreeMap<u64, String> = BTreeMap::new();
    for _ in 0..200 {
        let key = random.below(150) as u64;
        match random.below(3) {
            0 => assert_eq!(hash.remove(&key), tree.remove(&key)),
            _ => assert_eq!(hash.insert(key, text(key)), tree.insert(key, text(key))),
        }
    }
    assert!(
        hash.len() == tree.len()
            && tree
                .iter()
                .all(|(key, value)| hash[key] == *value && *value == text(*key))
    );
    let even: BTreeMap<_, _> = tree
        .range(20..90)
        .filter(|(key, _)| *key % 2 == 0)
        .map(|(k, v)| (k, v.clone()))
        .collect();
    assert!(even.iter().all(|(key, value)| *value == text(**key)));
    let set: HashSet<String> = hash.into_values().collect();
    let sorted: BTreeSet<String> = tree.into_values().collect();
    assert!(set.len() == sorted.len() && sorted.iter().all(|one| set.contains(one)));
}

fn queues(random: &mut Random) {
    let (mut queue, mut list, mut heap) = (VecDeque::new(), LinkedList::new(), BinaryHeap::new());
    for _ in 0..150 {
        let number = random.bits();
        if random.below(3) == 0 {
            assert_eq!(queue.pop_front(), list.pop_front());
        } else {
            queue.push_back(text(number));
            list.push_back(text(number));
            heap.push(Box::new(number));
        }
    }
    assert!(queue.iter().eq(list.iter()));
    let mut last = u64::MAX;
    while let Some(next) = heap.pop() {
        assert!(*next <= last);
        last = *next;
    }
}

struct Node {
    name: String,
    up: RefCell<Weak<Node>>,
    down: RefCell<Vec<Rc<Node>>>,
}

fn rc_graph(random: &mut Random) {
    let node = |i: usize| {
        Rc::new(Node {
            name: text(i as u64),
            up: RefCell::new(Weak::new()),
            down: RefCell::new(vec![]),
        })
    };
    let nodes: Vec<Rc<Node>> = (0..60).map(node).collect();
    for (i, child) in nodes.iter().enumerate().skip(1) {
        let parent = &nodes[random.below(i)];
        parent.down.borrow_mut().push(child.clone());
        *child.up.borrow_mut() = Rc::downgrade(parent);
    }
    let root = nodes[0].clone();
    drop(nodes);
    let (mut stack, mut seen) = (vec![root.clone()], 0);
    while let Some(next) = stack.pop() {
        seen += 1;
        for child in next.down.borrow().iter() {
            assert_eq!(child.up.borrow().upgrade().unwrap().name, next.name);
            stack.push(child.clone());
        }
    }
    assert_eq!(seen, 60);
}

fn sorting(random: &mut Random) {
    let mut words: Vec<String> = (0..200).map(|_| text(random.bits() >> 40)).collect();
    let mut copy = words.clone();
    words.sort();
    copy.sort_by_key(|word| std::cmp::Reverse(word.clone()));
    copy.reverse();
    assert!(words == copy && words.windows(2).all(|pair| pair[0] <= pair[1]));
    words.dedup();
    let joined = words.join("\n");
    assert!(joined.lines().eq(words.iter()));
}

/// Escapees: messages made in the scopes of one thread, freed in those of others, some after their maker's death.
fn channels(random: &mut Random) {
    let (to_worker, from_main) = channel::<(u64, String)>();
    let (to_main, from_worker) = sync_channel::<(u64, Vec<String>)>(8);
    let number = random.bits();
    let worker = thread::spawn(move || {
        super::chaos::name_thread(number);
        for (key, word) in from_main {
            to_main.send((key, vec![word; 3])).unwrap();
        }
        (0..20).map(text).collect::<Vec<_>>()
    });
    let sender = thread::spawn(move || {
        super::chaos::name_thread(number + 1);
        for key in 0..100 {
            to_worker.send((key, text(key))).unwrap();
        }
    });
    let mut kept = vec![];
    for (key, words) in from_worker {
        assert!(words.iter().all(|word| *word == text(key)));
        if key % 3 == 0 {
            kept.push((key, words));
        }
    }
    sender.join().unwrap();
    let last = worker.join().unwrap();
    assert!(last.iter().enumerate().all(|(i, word)| *word == text(i as u64)));
    assert!(kept.iter().all(|(key, words)| words[1] == text(*key)));
}

fn shared_tree(random: &mut Random) {
    let shared: Arc<Mutex<BTreeMap<u64, Arc<String>>>> = Arc::default();
    let number = random.bits() | 7;
    thread::scope(|scope| {
        for worker in 0..3 {
            let shared = shared.clone();
            scope.spawn(move || {
                super::chaos::name_thread(number ^ worker);
                let mut random = Random::new(number ^ worker);
                let mut mine = vec![];
                for _ in 0..60 {
                    let key = random.below(40) as u64;
                    let mut map = shared.lock().unwrap();
                    if random.one_in(3) {
                        mine.extend(map.remove(&key));
                    } else {
                        mine.push(map.entry(key).or_insert_with(|| Arc::new(text(key))).clone());
                    }
                }
                assert!(mine.iter().all(|word| word.contains('-')));
            });
        }
    });
    let map = shared.lock().unwrap();
    assert!(map.iter().all(|(key, value)| **value == text(*key)));
}

/// Long blocks: the small area's long ones, spans, growth and shrinking in place, zeroed memory.
fn large(random: &mut Random) {
    let mut kept: Vec<Vec<u8>> = vec![];
    for _ in 0..12 {
        let size = random.size(21);
        let mut block = if random.one_in(2) {
            vec![0; size]
        } else {
            Vec::with_capacity(size)
        };
        block.resize(size, 0);
        assert!(block.first() == Some(&0) && block[size / 2] == 0 && block[size - 1] == 0);
        block[size - 1] = 7;
        block.reserve_exact(random.size(18));
        if random.one_in(3) {
            block.shrink_to(size);
        }
        assert_eq!(block[size - 1], 7);
        kept.push(block);
        if kept.len() > 4 {
            kept.swap_remove(random.below(4));
        }
    }
    assert!(kept.iter().all(|block| block.last() == Some(&7)));
}

#[repr(align(64))]
struct Line([u8; 64]);
#[repr(align(8192))]
struct Pages([u8; 8192]);

fn boxed(random: &mut Random) {
    let byte = random.bits() as u8;
    let lines: Vec<Box<Line>> = (0..20).map(|i| Box::new(Line([byte ^ i; 64]))).collect();
    let pages = Box::new(Pages([byte; 8192]));
    let calls: Vec<Box<dyn Fn(u64) -> u64>> = (0..20u64).map(|i| Box::new(move |x| x + i) as Box<_>).collect();
    assert_eq!(calls.iter().fold(0, |sum, call| call(sum)), 190);
    assert!(lines.iter().zip(0..).all(|(line, i)| line.0[63] == byte ^ i) && pages.0[8191] == byte);
    let words: Box<[Box<str>]> = (0..20).map(|i| text(i).into_boxed_str()).collect();
    let shared: Arc<[Box<str>]> = words.into();
    assert!(shared.iter().zip(0..).all(|(word, i)| **word == *text(i)));
}

fn unwinding(random: &mut Random) {
    let number = random.bits();
    let caught = std::panic::catch_unwind(|| {
        let words: Vec<String> = (0..20).map(text).collect();
        if words.len() == 20 {
            std::panic::resume_unwind(Box::new(text(number)));
        }
    });
    assert_eq!(*caught.unwrap_err().downcast::<String>().unwrap(), text(number));
}
