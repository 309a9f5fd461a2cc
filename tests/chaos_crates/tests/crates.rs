//! Workloads over real crates, their results checked, while scopes come and go at arbitrary allocations of every thread.

use chaos_crates::support::chaos;
use chaos_crates::support::random::Random;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Runs `work` with new seeds for a time, on two threads, and asserts what the arena served.
fn repeat(number: u64, work: impl Fn(&mut Random) + Sync) {
    let seconds = std::env::var("STEPALLOC_CHAOS_SECONDS").map_or(3, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (work, number) = (&work, number * 16 + thread);
            scope.spawn(move || {
                chaos::name_thread(number);
                let mut random = Random::new(chaos::seed() ^ number);
                while Instant::now() < end {
                    work(&mut random);
                }
            });
        }
    });
    chaos::assert_share();
}

fn text(number: usize) -> String {
    format!("{number}-{number:b}")
}

fn document(random: &mut Random, depth: usize) -> serde_json::Value {
    use serde_json::Value;
    match random.below(if depth == 0 { 4 } else { 7 }) {
        0 => Value::from(random.bits()),
        1 => Value::from(text(random.below(1 << 20))),
        2 => Value::from(random.below(1 << 30) as f64 / 8.0),
        3 => Value::Null,
        4 => (0..random.below(8)).map(|_| document(random, depth - 1)).collect(),
        _ => {
            let field = |random: &mut Random| (text(random.below(1 << 10)), document(random, depth - 1));
            Value::Object((0..random.below(9)).map(|_| field(random)).collect())
        }
    }
}

#[test]
fn serde_json_documents() {
    repeat(1, |random| {
        let made: Vec<_> = (0..10).map(|_| document(random, 5)).collect();
        let texts: Vec<String> = made
            .iter()
            .map(|one| serde_json::to_string_pretty(one).unwrap())
            .collect();
        let read: Vec<serde_json::Value> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert!(read == made);
        assert!(serde_json::from_str::<serde_json::Value>(&texts.join("")[1..]).is_err() || texts[0].len() < 20);
    });
}

#[test]
fn regex_searches() {
    repeat(2, |random| {
        let word = text(random.below(1 << 16));
        let pattern = regex::Regex::new(&format!(r"(?P<word>{word})[,;]|(\d+)-([01]+)[,;]")).unwrap();
        let words: Vec<String> = (0..100).map(|_| text(random.below(1 << 16))).collect();
        let line = format!("{};{word},", words.join(","));
        let found: Vec<String> = pattern
            .captures_iter(&line)
            .map(|found| {
                found
                    .name("word")
                    .map_or_else(|| format!("{}-{}", &found[2], &found[3]), |m| m.as_str().to_string())
            })
            .collect();
        assert!(found.len() == 101 && found[..100] == words && found[100] == word);
        assert_eq!(pattern.replace_all(&line, "").len(), 0);
        let set = regex::RegexSet::new(words.iter().take(20).map(|word| format!("^{word}$"))).unwrap();
        assert!(set.is_match(&words[random.below(20)]));
    });
}

#[test]
fn hashbrown_and_indexmap_tables() {
    repeat(3, |random| {
        let mut table: hashbrown::HashMap<String, Vec<usize>> = hashbrown::HashMap::new();
        let mut index: indexmap::IndexMap<String, Vec<usize>> = indexmap::IndexMap::new();
        let mut model: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for _ in 0..400 {
            let key = random.below(120);
            match random.below(5) {
                0 => {
                    let gone = model.remove(&text(key));
                    assert!(table.remove(&text(key)) == gone && index.swap_remove(&text(key)) == gone);
                }
                1 if random.one_in(20) => {
                    table.shrink_to_fit();
                    index.shrink_to_fit();
                }
                _ => {
                    table.entry(text(key)).or_default().push(key);
                    index.entry(text(key)).or_default().push(key);
                    model.entry(text(key)).or_default().push(key);
                }
            }
        }
        let mut sorted: Vec<_> = table.into_iter().collect();
        sorted.sort();
        index.sort_keys();
        assert!(sorted.into_iter().eq(model.clone()) && index.into_iter().eq(model));
    });
}

#[test]
fn rayon_pools() {
    use rayon::prelude::*;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    repeat(4, |random| {
        let seed = random.below(1 << 20);
        pool.install(|| {
            let mut words: Vec<String> = (0..400).into_par_iter().map(|i| text(i ^ seed)).collect();
            let total: usize = words.par_iter().map(String::len).sum();
            words.par_sort();
            assert!(words.windows(2).all(|pair| pair[0] <= pair[1]));
            assert_eq!(total, words.iter().map(String::len).sum::<usize>());
            let groups: Vec<Vec<String>> = words.par_chunks(7).map(<[String]>::to_vec).collect();
            let (left, right) = rayon::join(|| groups.concat(), || groups.iter().flatten().count());
            assert!(left == words && right == 400);
        });
    });
}

#[test]
fn crossbeam_queues_and_epochs() {
    use crossbeam::{channel, epoch, queue::SegQueue};
    let (queue, shared) = (SegQueue::<String>::new(), epoch::Atomic::new(String::from("0-0")));
    repeat(5, |random| {
        let (sender, receiver) = channel::bounded::<(usize, String)>(16);
        let number = random.bits();
        crossbeam::scope(|scope| {
            let handle = scope.spawn(|_| {
                chaos::name_thread(number);
                for (key, word) in &receiver {
                    assert_eq!(word, text(key));
                    queue.push(word);
                    let guard = epoch::pin();
                    let old = shared.swap(
                        epoch::Owned::new(text(key)),
                        std::sync::atomic::Ordering::AcqRel,
                        &guard,
                    );
                    // SAFETY: the pointer was swapped out, so nobody finds it any more, and readers have pinned.
                    unsafe { guard.defer_destroy(old) };
                }
            });
            for key in 0..100 {
                sender.send((key, text(key))).unwrap();
                let guard = epoch::pin();
                let seen = shared.load(std::sync::atomic::Ordering::Acquire, &guard);
                // SAFETY: never null, and pinned.
                assert!(unsafe { seen.deref() }.contains('-'));
                if let Some(word) = queue.pop() {
                    assert!(word.contains('-'));
                }
            }
            drop(sender);
            handle.join().unwrap();
        })
        .unwrap();
    });
}

#[test]
fn tokio_tasks() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    repeat(6, |random| {
        let seed = random.below(1 << 20);
        runtime.block_on(async move {
            let (sender, mut receiver) = tokio::sync::mpsc::channel::<Vec<String>>(4);
            let tasks: Vec<_> = (0..10)
                .map(|task| {
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        for i in 0..10 {
                            tokio::task::yield_now().await;
                            sender.send(vec![text(seed ^ i); task + 1]).await.unwrap();
                        }
                        text(task)
                    })
                })
                .collect();
            drop(sender);
            let mut words = 0;
            while let Some(batch) = receiver.recv().await {
                assert!(batch.iter().all(|word| *word == batch[0]));
                words += batch.len();
            }
            assert_eq!(words, 550);
            for (number, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await.unwrap(), text(number));
            }
            let blocking = tokio::task::spawn_blocking(move || (0..50).map(text).collect::<Vec<_>>());
            assert_eq!(blocking.await.unwrap().len(), 50);
        });
    });
}

#[test]
fn bytes_shared_and_split() {
    use bytes::{Buf, BufMut, Bytes, BytesMut};
    repeat(7, |random| {
        let mut buffer = BytesMut::with_capacity(random.size(12));
        let numbers: Vec<u64> = (0..random.size(9)).map(|_| random.bits()).collect();
        for number in &numbers {
            buffer.put_u64(*number);
        }
        let mut parts: Vec<Bytes> = vec![];
        while buffer.len() > 8 * 16 {
            parts.push(buffer.split_to(8 * (1 + random.below(16))).freeze());
        }
        parts.push(buffer.freeze());
        let threads: Vec<_> = parts
            .iter()
            .cloned()
            .map(|part| std::thread::spawn(move || part.to_vec()))
            .collect();
        let copied: Vec<u8> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let mut all = Bytes::from(copied);
        assert!(numbers.iter().all(|number| all.get_u64() == *number) && all.is_empty());
    });
}
