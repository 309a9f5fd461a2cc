//! Requests made by one thread, answered in a scope by another, and freed by the first: every block dies abroad.

use crate::random::Random;
use crate::Shared;
use std::sync::mpsc::sync_channel;
use stepalloc::arena_scope;

struct Request {
    words: Vec<String>,
    body: Vec<u8>,
}

struct Answer {
    body: String,
    longest: usize,
}

fn answer(request: Request, shared: &Shared) -> Answer {
    arena_scope(|| {
        let Request { mut words, body } = request;
        words.sort();
        words.dedup();
        let longest = words.iter().map(String::len).max().unwrap_or(0);
        let text = words.join(" ");
        shared.look(text.as_bytes());
        assert!(
            body.iter().all(|&byte| byte == body.len() as u8),
            "a request was written on its way"
        );
        Answer { body: text, longest }
    })
}

/// Serves until told to stop.
pub fn run(shared: &Shared, mut random: Random) {
    let (to_server, requests) = sync_channel::<Request>(16);
    let (to_client, answers) = sync_channel::<Answer>(16);
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            for request in requests {
                if to_client.send(answer(request, shared)).is_err() {
                    return;
                }
                shared.step_ends();
            }
        });
        let client = move || {
            let mut waiting = 0;
            while shared.goes_on() {
                let request = arena_scope(|| {
                    let words = (0..1 + random.below(40))
                        .map(|_| format!("word {}", random.below(1_000)))
                        .collect();
                    // One in sixteen is a large body: a span.
                    let len = if random.below(16) == 0 {
                        20_000 + random.below(200_000)
                    } else {
                        random.below(2_000)
                    };
                    Request {
                        words,
                        body: vec![len as u8; len],
                    }
                });
                if to_server.send(request).is_err() {
                    return;
                }
                waiting += 1;
                if waiting > 8 {
                    let Ok(answer) = answers.recv() else { return };
                    assert!(answer.body.split(' ').all(|word| word.len() <= answer.longest.max(4)));
                    waiting -= 1;
                }
            }
            drop(to_server);
            answers.iter().for_each(drop);
        };
        client();
        server.join().unwrap();
    });
}
