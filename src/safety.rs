//! Why it is safe, what guards each reason, what is not proved, and how to report a defect.
//!
//! Prose only. [`design`](crate::design) tells how it works; here is what would show that it does not.
//!
//! # The theorem
//!
//! **No sequence of scope calls can give one byte to two live blocks.** Scopes are hints where the next hole begins; the
//! map says what may be used. Memory is handed out only from a hole, a granule enters a hole only where its bit is clear
//! after folding, its bit is set as it enters, and freeing clears exactly the block's bits. So no call of
//! [`arena_scope`](crate::arena_scope()), [`ArenaScope`](crate::ArenaScope) or [`outside_scope`](crate::outside_scope()), nested,
//! forgotten, out of order, or cut short by a panic or a thread's end, can make safe code unsound. None of them is
//! `unsafe`, and all of `src/scope.rs` has no `unsafe` in it.
//!
//! # What guards each invariant
//!
//! *Test* is a file of `tests/` or a test module of the crate; *model* the naive oracle that it is held against, or the
//! loom model of the threads (`tests/loom/models.rs`); *break* an entry of `tests/mutations/list.toml`: a line of the allocator that is broken on
//! purpose in a copy, so that the lane goes red. There are some 360 of them; here is one or two for each invariant.
//!
//! | | in short | test | model | break |
//! |---|---|---|---|---|
//! | H1 | a bit is set exactly in live blocks and holes | `src/heap_tests.rs`, `tests/chaos.rs` | a map of live blocks by address; a shadow map that aborts | `take-without-setting-bits`, `leave-the-gap-before-an-aligned-block-set`, `a-short-block-s-second-word-is-not-set` |
//! | H2 | the owner takes only what is clear after folding | `src/heap_tests.rs`, `src/live_map_tests.rs` | two rows of flags; each of two searches for the other; loom's `what_a_remote_free_did_comes_before_the_next_use` | `fold-without-clearing-remote-bits`, `near-hole-without-a-look-at-the-next-word`, `what-is-remembered-is-taken-without-a-look`, `the-area-ends-inside-a-line` |
//! | H3 | a remote free touches the remote map alone, once | `src/live_map_tests.rs`, `src/gathered.rs`, `tests/escapees.rs`, `tests/realloc.rs` | two rows of flags; loom's `neighbours_in_one_word_freed_by_two_threads_are_both_folded_once` | `free-remotely-in-the-live-map`, `remote-free-by-load-and-store`, `what-is-gathered-is-lost-at-the-next-line` |
//! | H4 | freeing clears the block's bits, no others | `src/heap_tests.rs`, `tests/misuse.rs` | a map of live blocks; every granule counted while it runs and at the end | `forget-a-blocks-last-granule`, `clear-one-word-where-a-block-reaches-into-two` |
//! | H5 | spans tile their area | `src/spans_tests.rs`, `tests/traces.rs` | first fit by a walk over a map; loom's `a_span_freed_by_its_owner_and_by_another_thread_is_free_once` | `merge-across-a-live-head`, `fold-a-span-twice` |
//! | H6 | a segment has at most one owner | `tests/many_threads.rs`, `tests/escapees.rs` | every byte accounted for when all threads are dead; loom's `an_owner_sees_all_that_the_last_one_wrote` | `giving-one-segment-back-gives-its-word`, `release-the-segment-before-the-slot-is-zeroed` |
//! | H7 | routed by address; the backing sees a function of the layout | `tests/backing.rs`, `tests/realloc.rs` | a shadow map of the backing's blocks and layouts | `reallocations-are-routed-by-scope`, `the-backing-frees-with-another-layout` |
//! | H8 | frames are a stack, guards act while theirs is there | `src/heap_tests.rs`, `tests/scopes.rs` | a plain stack, in the frame table and beyond its end | `a-guard-that-is-gone-finds-a-frame`, `a-suspension-is-cut-short` |
//! | A1–A5 | the explicit arena's, see `src/arena.rs` | `tests/arena.rs`, `tests/arena_checkpoints.rs` | blocks, marks and their order in lists | `an-arena-bumps-past-its-end`, `blocks-below-a-checkpoint-are-freed` |
//! | B1–B4 | its memory's, see `src/arena/blocks.rs` | `tests/arena.rs` | zeroed blocks looked at | `an-arenas-known-zero-is-off`, `decommitted-pages-come-back-dirty` |
//! | P1, P2 | pools': a slot is live, or free once, or fresh | `tests/pool.rs` | values that count themselves; loom's `a_shared_pool_gives_no_slot_to_two_threads` | `a-pools-slot-is-handed-out-twice`, `a-shared-pool-gives-the-slot-back-before-the-drop` |
//! | R1 | raw pools': a free is taken once, of an object's start | `tests/pool.rs` | a list of what is out, hostile frees | `a-freed-slot-stays-live`, `a-pointer-into-an-object-is-taken` |
//! | known zero | what is said to be zero is | `tests/zeroed.rs`, `src/heap_tests.rs` | every byte looked at | `known-zero-mark-off-by-one`, `the-top-moves-down` |
//! | figures | each byte is in one class; counts return to zero | `tests/stats.rs`, `tests/report.rs`, `tests/soak/src/main.rs` | sums; the system's map of usable pages; naive counts; a line through resident memory | `the-hole-counts-as-live`, `covered-blocks-stay-in-the-table` |
//! | the system's | each system file keeps the contract of `src/sys/mod.rs` | `src/sys/tests.rs` | every byte of every page looked at; the system's own word on what is resident | `windows-discards-nothing-and-says-it-did`, `unix-releases-half` |
//! | arithmetic | layout and rounding | `src/layout.rs`, `src/align.rs` | division, bit by bit, for all small numbers | `a-mask-is-one-bit-short`, `the-areas-of-a-segment-overlap` |
//!
//! Memory orders are loom's and the thread sanitizer's: `fold-relaxed`, `remote-free-relaxed`, `span-free-relaxed`,
//! `take-over-without-acquire` and `give-back-without-release` are breaks that no other run on one machine need show. The
//! models try every order of few steps; the sanitizer sees whole programs on the real system, where each of these is a data
//! race between two owners of one block or of one segment. The models alone see orders that guard no plain memory (that of
//! the reservation's base and size), and those of the two of a freed span that need the third thread between them
//! (`span-fold-relaxed`).
//!
//! # The lanes
//!
//! | command | what | goes red when broken: shown by |
//! |---|---|---|
//! | `cargo test` | all of the tests | `tests/mutations` |
//! | `.ci/run` | those, longer, in release, and chaos and soak of a minute; hardened mode | |
//! | `.ci/long` | the breaks, fuzzing, chaos of ten minutes, other crates' own suites under chaos, soak; the two below | |
//! | `.ci/loom` | the paths between threads in every order, on the crate's own code | `.ci/loom mutants`: each ordering weakened |
//! | `.ci/sanitizers` | the tests under the address and leak sanitizers; free memory of the arenas poisoned; those with threads under the thread sanitizer, std built with it | `tests/poisoned.rs`: faults made on purpose, reported only where poisoning is on; breaks with the lanes `races`, `poison`, `address` |
//! | `cargo test --features hardened` | all of the tests with every block checked | `tests/hardened.rs`: misuse in children; breaks of `src/guard.rs` |
//! | `cargo run --manifest-path tests/mutations/Cargo.toml` | each break in turn | a break that survives is an error, and so is one whose text is gone |
//! | `.ci/ports` | the tests as Windows programs under Wine, on aarch64 under qemu-user, there with pages of 64 KiB too; the types of four more systems | breaks of `src/sys/`, by the lanes `windows`, `aarch64` and `large_pages` of `tests/mutations` |
//! | `fuzz/run` | programs of operations by libFuzzer, on the heap, two threads, arenas, pools, aligned memory | |
//! | `tests/chaos_crates/upstream.sh` | the suites of bytes, hashbrown, indexmap, serde_json, regex-syntax, aho-corasick, rayon and crossbeam under chaos | `tests/shadow.rs`: chaos and shadow map over allocators broken on purpose |
//! | `cargo run --release --manifest-path tests/soak/Cargo.toml` | trains, parses and serves while threads die | `tests/soak/tests/goes_red.rs`: a leak, and a block kept |
//!
//! A chaos or fuzz run that lives in the fallback would prove nothing, so each says and asserts that the arena served at
//! least nine in ten of what it was to serve.
//!
//! Each `unsafe` stands under a `SAFETY` line, each `unsafe fn` has a `# Safety` section, and a lint refuses the crate
//! otherwise (`undocumented_unsafe_blocks`, `missing_safety_doc`, `unsafe_op_in_unsafe_fn` in `Cargo.toml`).
//!
//! # Hardened mode
//!
//! A build with the feature `hardened` sends every call to the slow path and looks there. It sees what the plain build sees,
//! and besides:
//!
//! - the double frees that the inline path misses: of a block at the position, because the one behind it was freed in
//!   between, and of a small block by its own thread after another freed it (it keeps no freed blocks, so the third
//!   cannot happen);
//! - a free of an address of the reservation that was never a block, at any place in it;
//! - a write up to 16 bytes past a block's end, when the block is freed, by whichever thread;
//! - a free with another size, or of the inside of a block: the mark there is not the one that address and size make;
//! - and a reader of freed memory finds junk, a resized block always moves: who uses the old place is soon found.
//!
//! It does not see a write beyond the mark, one into a block that was freed before, or a second free once the memory is
//! another block's of the same place and size. The address sanitizer with the feature `asan` sees the first two as they
//! happen.
//!
//! # What is not proved
//!
//! - It is tested, not verified: no proof assistant has seen it, and the models are as good as the people who wrote them.
//! - Orders of memory are modelled for two and three threads and a few steps each, and run on x86-64 alone.
//! - Freeing twice, freeing what is not a block, and a wrong layout are undefined behaviour, as with every allocator; they
//!   end the process only where the maps show them (see [`design`](crate::design), *What is not seen*), or hardened mode.
//! - Allocating in a signal handler is undefined, as with most allocators: a `&mut` to the thread's heap may be alive.
//! - The system is taken at its word: pages given back read as zero, pages joined to a huge one keep what they hold, a
//!   reservation is nobody else's. Its file is held to that in `src/sys/tests.rs`, on each system where the tests have run; on
//!   a real Windows, macOS, FreeBSD and Android none has.
//! - Memory that is never given back to the system is not looked for beyond an hour's soak.
//! - The bounds on memory (what escapees pin, how far an area grows) are measured, not proved. Safety does not rest on them.
//!
//! # What was found
//!
//! - **Soundness, mended on 2026-11-29.** The end of what a small area had ever used could lie inside a line, the mark of the
//!   lane of lines behind it. A scope that took memory back up to that mark took up to 48 bytes that were never used, and the
//!   area's next growth handed them out again. It needed an area at its end, a scope left there, and a block freed just before
//!   it; one random program in some hundred thousand met it. Now the end is a line's, each taking of memory is checked in
//!   tests, and the programs of phases of `src/heap_tests.rs`, written after it, meet it within some hundred.
//!
//! # How to report a defect
//!
//! Two live blocks that share a byte, a block whose content changes, memory said to be zero that is not, a deadlock or a
//! crash in the allocator: open an issue marked *soundness*, in private if it can be used against someone. Helpful, in this
//! order: the program, or the seed that a chaos run printed (`STEPALLOC_CHAOS_SEED`), or the fuzzer's artifact; the
//! commit and the system; whether it is gone with `System` in place of `StepAlloc`. A defect is mended with a test that
//! fails without the mend, in the general lane that should have seen it, and a break in the list.
