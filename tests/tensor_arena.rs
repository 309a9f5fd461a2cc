//! The process-wide arena: one test at a time, since there is one arena.

use serial_test::serial;
use stepalloc::{cleanup_tensor_arena, init_tensor_arena, tensor_arena, try_tensor_arena, Arena, TensorArenaError};

/// Whatever the tests before did, there is no arena now.
fn start_without() {
    let _ = cleanup_tensor_arena();
}

/// A live arena.
fn start_with() {
    start_without();
    init_tensor_arena(Arena::builder().block_size(1 << 20)).unwrap();
}

#[test]
#[serial]
fn initialisation_comes_first_and_once() {
    start_with();
    assert_eq!(tensor_arena().stats().reserved_bytes, 1 << 20);
    assert_eq!(init_tensor_arena(Arena::builder()), Err(TensorArenaError::AlreadyMade));
    cleanup_tensor_arena().unwrap();
    assert_eq!(cleanup_tensor_arena(), Err(TensorArenaError::NotMade));
    assert_eq!(try_tensor_arena().err(), Some(TensorArenaError::NotMade));
    init_tensor_arena(Arena::builder()).unwrap();
    assert_eq!(tensor_arena().align(), 64);
}

#[test]
#[serial]
fn refused_settings_leave_no_arena_behind() {
    start_without();
    assert!(matches!(
        init_tensor_arena(Arena::builder().align(3)),
        Err(TensorArenaError::Alloc(_))
    ));
    assert!(matches!(
        init_tensor_arena(Arena::builder().block_size(usize::MAX)),
        Err(TensorArenaError::Alloc(_))
    ));
    assert!(init_tensor_arena(Arena::builder()).is_ok());
}

#[test]
#[serial]
fn asking_twice_on_one_thread_is_an_error_not_a_deadlock() {
    start_with();
    let mut arena = tensor_arena();
    assert_eq!(try_tensor_arena().err(), Some(TensorArenaError::Held));
    assert_eq!(cleanup_tensor_arena(), Err(TensorArenaError::Held));
    assert_eq!(init_tensor_arena(Arena::builder()), Err(TensorArenaError::Held));
    arena.scope(|_| assert_eq!(try_tensor_arena().err(), Some(TensorArenaError::Held)));
    drop(arena);
    assert!(try_tensor_arena().is_ok());
}

#[test]
#[serial]
#[should_panic(expected = "there is no tensor arena")]
fn use_after_the_end_panics() {
    start_with();
    cleanup_tensor_arena().unwrap();
    tensor_arena();
}

#[test]
#[serial]
fn a_panic_while_it_is_lent_gives_it_back() {
    start_with();
    let caught = std::panic::catch_unwind(|| {
        tensor_arena().scope(|scope| {
            scope.alloc(1);
            panic!("inside");
        })
    });
    assert!(caught.is_err());
    assert_eq!(tensor_arena().stats().used_bytes, 0);
}

/// The C library's global is unguarded: two threads that allocate at once got the same memory.
#[test]
#[serial]
fn no_memory_is_handed_out_twice() {
    start_with();
    const THREADS: usize = 8;
    let blocks = if cfg!(miri) { 20 } else { 2_000 };
    let mut all: Vec<(usize, usize)> = std::thread::scope(|threads| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                threads.spawn(move || {
                    let mine: Vec<(usize, usize)> = (0..blocks)
                        .map(|n| {
                            let arena = tensor_arena();
                            let block = arena.alloc_slice_fill(1 + n % 200, thread as u8);
                            (block.as_mut_ptr().expose_provenance(), block.len())
                        })
                        .collect();
                    for &(at, len) in &mine {
                        // SAFETY: nobody resets the arena while this test runs, so the block is still this thread's.
                        let bytes =
                            unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(at), len) };
                        assert!(bytes.iter().all(|&byte| byte == thread as u8));
                    }
                    mine
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    all.sort_unstable();
    assert_eq!(all.len(), THREADS * blocks);
    assert!(all.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    let mut arena = tensor_arena();
    arena.reset();
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
#[serial]
fn first_use_by_many_threads_makes_one_arena() {
    start_with();
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| tensor_arena().scope(|scope| assert_eq!(*scope.alloc(1), 1)));
        }
    });
    assert_eq!(tensor_arena().stats().block_count, 1);
}
