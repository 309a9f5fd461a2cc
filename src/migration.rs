//! From the C memory API to this crate: each function and struct, its form here, and what is better.
//!
//! | C | Rust | what is better |
//! |---|---|---|
//! | `ac_aligned_alloc(size, alignment)` | [`aligned_alloc`](crate::aligned_alloc), [`aligned_alloc_zeroed`](crate::aligned_alloc_zeroed), [`AlignedBuf`](crate::AlignedBuf) | bad sizes and alignments are errors; zeroed pages are not touched; the buffer frees itself ([1](#1-aligned-memory)) |
//! | `ac_aligned_free(ptr)` | [`aligned_free`](crate::aligned_free), or nothing with `AlignedBuf` | one form on all systems ([1](#1-aligned-memory)) |
//! | `ac_arena` | [`Arena`](crate::Arena) | what it hands out borrows it: no use after a reset compiles ([2](#2-the-arena)) |
//! | `ac_arena_block` | private; [`ArenaStats`](crate::ArenaStats) tells | no link to lose: growth after a reset keeps every block ([2](#2-the-arena)) |
//! | `ac_arena_init(a, block_size)` | [`Arena::with_block_size`](crate::Arena::with_block_size), [`Arena::builder`](crate::Arena::builder) | cannot fail, asks for memory at first use; alignment and limit are settings ([2](#2-the-arena)) |
//! | `ac_arena_alloc(a, size)` | [`Arena::alloc`](crate::Arena::alloc) and its kin, [`Arena::try_alloc_layout`](crate::Arena::try_alloc_layout) | typed; `size + 63` cannot wrap; a refused block is an error, not a null pointer ([2](#2-the-arena)) |
//! | `ac_arena_reset(a)` | [`Arena::reset`](crate::Arena::reset), [`Arena::reset_with`](crate::Arena::reset_with) | keeps all memory, some, or none, as told ([2](#2-the-arena)) |
//! | `ac_arena_destroy(a)` | `drop` | runs by itself, once ([2](#2-the-arena)) |
//! | `ac_arena_checkpoint`, `ac_arena_save(a, &cp)` | [`Arena::scope`](crate::Arena::scope); [`Checkpoint`](crate::Checkpoint), [`Arena::checkpoint`](crate::Arena::checkpoint) | the scope is checked by the compiler ([3](#3-checkpoints)) |
//! | `ac_arena_restore(a, &cp)` | the end of the scope; [`Arena::reset_to`](crate::Arena::reset_to) | stale and foreign checkpoints are refused; pages stay mapped and warm ([3](#3-checkpoints)) |
//! | `ac_pool` | [`RawPool`](crate::RawPool), [`Pool`](crate::Pool), [`SharedPool`](crate::SharedPool) | typed with `Drop`, growing if wanted, for many threads if wanted ([4](#4-pools)) |
//! | `ac_pool_free_node` | private | not in the objects: a write after a free does not break a `RawPool` ([4](#4-pools)) |
//! | `ac_pool_init(p, obj_size, n)` | [`RawPool::fixed`](crate::RawPool::fixed), [`RawPool::growing`](crate::RawPool::growing) | `obj_size * n` cannot wrap ([4](#4-pools)) |
//! | `ac_pool_alloc(p)` | [`RawPool::alloc`](crate::RawPool::alloc), [`Pool::alloc`](crate::Pool::alloc) | a full pool is an error ([4](#4-pools)) |
//! | `ac_pool_free(p, obj)` | [`RawPool::free`](crate::RawPool::free), or dropping the handle | checks range, stride and liveness, not the range alone, and says what was wrong ([4](#4-pools)) |
//! | `ac_pool_destroy(p)` | `drop` | values whose handles were leaked are dropped ([4](#4-pools)) |
//! | `g_tensor_arena` | [`tensor_arena`](crate::tensor_arena()) | lent to one thread at a time; made on first use ([5](#5-the-process-wide-arena)) |
//! | `ac_init()`, `ac_cleanup()` | [`init_tensor_arena`](crate::init_tensor_arena), [`cleanup_tensor_arena`](crate::cleanup_tensor_arena) | twice, too early and too late are errors ([5](#5-the-process-wide-arena)) |
//!
//! Code that allocates through the global allocator, its own or a library's, needs none of these: with
//! [`StepAlloc`](crate::StepAlloc) installed, [`arena_scope`](crate::arena_scope()) around a step is all.
//!
//! # 1 Aligned memory
//! ```
//! use stepalloc::{aligned_alloc, aligned_alloc_zeroed, aligned_free, AlignedBuf, AllocError};
//!
//! // float* x = ac_aligned_alloc(n * sizeof(float), 64); ... ac_aligned_free(x);
//! let mut x: AlignedBuf<f32> = AlignedBuf::zeroed(1000);
//! x[0] = 1.0;
//! assert_eq!(x.as_ptr().addr() % 64, 0);
//!
//! assert_eq!(aligned_alloc(usize::MAX, 64), Err(AllocError::BadLayout));
//! let raw = aligned_alloc_zeroed(100, 64).unwrap();
//! // SAFETY: taken with these numbers, freed once.
//! unsafe { aligned_free(raw, 100, 64) };
//! ```
//!
//! # 2 The arena
//! ```
//! use stepalloc::{AllocError, Arena, Retain};
//! use std::alloc::Layout;
//!
//! let mut arena = Arena::with_block_size(1 << 20); // ac_arena_init
//! let x = arena.alloc_slice_fill(1000, 0.5f32); // ac_arena_alloc
//! assert_eq!((x.as_ptr().addr() % 64, x[999]), (0, 0.5));
//! let absurd = Layout::from_size_align(isize::MAX as usize, 1).unwrap();
//! assert_eq!(arena.try_alloc_layout(absurd), Err(AllocError::BadLayout));
//! for _ in 0..3 {
//!     arena.reset(); // ac_arena_reset
//!     arena.alloc_slice_fill(3 << 20, 0u8);
//!     assert_eq!(arena.stats().block_count, 2);
//! }
//! arena.reset_with(Retain::None);
//! assert_eq!(arena.stats().committed_bytes, 0);
//! ```
//! ```compile_fail,E0502
//! let mut arena = stepalloc::Arena::new();
//! let x = arena.alloc(1.0);
//! arena.reset();
//! *x = 2.0; // in C this writes into whatever is there next
//! ```
//!
//! # 3 Checkpoints
//! ```
//! use stepalloc::{Arena, CheckpointError};
//!
//! let arena = Arena::new();
//! let params = arena.alloc_slice_fill(10, 1.0f32);
//! let start = arena.checkpoint(); // ac_arena_save
//! let grads = arena.alloc_slice_copy(params);
//! params[0] -= grads[0];
//! let inner = arena.checkpoint();
//! // SAFETY: nothing made since `start` is used any more.
//! unsafe { arena.reset_to(&start) }.unwrap(); // ac_arena_restore
//! // SAFETY: a refused call needs nothing.
//! assert_eq!(unsafe { arena.reset_to(&inner) }, Err(CheckpointError::Stale));
//! assert_eq!(params[0], 0.0);
//! ```
//! The training loop of the C page, with the explicit arena, where the parameters survive in the outer scope:
//! ```
//! let mut arena = stepalloc::Arena::new();
//! arena.scope(|model| {
//!     let w = model.alloc_slice_fill(4, 1.0f32);
//!     for _step in 0..10 {
//!         model.scope(|step| {
//!             let forward = step.alloc_slice_from_iter(w.iter().map(|w| w * 3.0));
//!             let backward = step.alloc_slice_from_iter(forward.iter().map(|y| 0.1 * (y - 6.0)));
//!             w.iter_mut().zip(backward).for_each(|(w, g)| *w -= *g);
//!         });
//!     }
//!     assert!(w.iter().all(|w| (w - 2.0).abs() < 0.1));
//! });
//! ```
//! and with `arena_scope`, where nothing but the loop changes:
//! ```
//! let mut w = vec![1.0f32; 4];
//! for _step in 0..10 {
//!     stepalloc::arena_scope(|| {
//!         let forward: Vec<f32> = w.iter().map(|w| w * 3.0).collect();
//!         let backward: Vec<f32> = forward.iter().map(|y| 0.1 * (y - 6.0)).collect();
//!         w.iter_mut().zip(&backward).for_each(|(w, g)| *w -= g);
//!     });
//! }
//! assert!(w.iter().all(|w| (w - 2.0).abs() < 0.1));
//! ```
//!
//! # 4 Pools
//! ```
//! use stepalloc::{AllocError, Pool, PoolFreeError, RawPool};
//!
//! let mut pool = RawPool::fixed(48, 2).unwrap(); // ac_pool_init
//! let (a, b) = (pool.alloc().unwrap(), pool.alloc().unwrap()); // ac_pool_alloc
//! assert_eq!(pool.alloc(), Err(AllocError::LimitReached));
//! pool.free(a).unwrap(); // ac_pool_free
//! assert_eq!(pool.free(a), Err(PoolFreeError::NotLive));
//! assert_eq!(pool.free(b.map_addr(|addr| addr.saturating_add(1))), Err(PoolFreeError::Interior));
//! assert_eq!(RawPool::fixed(1 << 40, 1 << 40).err(), Some(AllocError::BadLayout));
//!
//! let nodes = Pool::new();
//! let node = nodes.alloc(vec![1, 2, 3]);
//! assert_eq!(node.len(), 3);
//! drop(node); // drops the vector, frees the slot
//! assert!(nodes.is_empty());
//! ```
//!
//! # 5 The process-wide arena
//! ```
//! use stepalloc::{cleanup_tensor_arena, init_tensor_arena, tensor_arena, Arena, TensorArenaError};
//!
//! init_tensor_arena(Arena::builder().block_size(16 << 20)).unwrap(); // ac_init
//! let sum = tensor_arena().scope(|step| step.alloc_slice_fill(8, 0.5f32).iter().sum::<f32>());
//! assert_eq!(sum, 4.0);
//! cleanup_tensor_arena().unwrap(); // ac_cleanup
//! assert_eq!(cleanup_tensor_arena(), Err(TensorArenaError::NotMade));
//! ```
