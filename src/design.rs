//! The design: what the words mean, why scopes cannot hurt, what a call does, and what it costs.
//!
//! Prose only. Each file of `src/` opens with its own part of this, closer to the code.
//!
//! # Words
//!
//! | word | means |
//! |---|---|
//! | block | one live allocation: a pointer and its `Layout` |
//! | reservation | the one range of address space that all arenas live in |
//! | segment | the part of the reservation that one thread owns; 64 GiB where there is room |
//! | granule | 16 bytes of a segment's small area; one bit of its maps |
//! | line | 64 bytes; blocks from 64 bytes on begin at one and occupy whole ones |
//! | live map | a bit for each granule: set while it is in a live block or in a current hole |
//! | remote map | a bit for each granule that another thread has freed and the owner has not folded in yet |
//! | gathered | for each lane what a thread has freed in one cache line of another's maps, 8 KiB of blocks, and not told it yet |
//! | hole, lane | a run of granules that were free, filled by bumping; one lane has the hole for blocks below 64 bytes, the other that for blocks from there on |
//! | magazine | for each size up to 1 KiB where the last 256 blocks were freed, while a thread recycles |
//! | unit, span | 1 KiB of a segment's span area; a run of whole units that holds one large block |
//! | region | 4,096 units, whose tables stand together |
//! | chunk | 64 KiB of either area; what the marks of use are kept for |
//! | range | 2 MiB of a segment: what a huge page holds |
//! | heap | a thread's arena: its segment, its two lanes (position and limit of a hole each), its frames |
//! | scope, frame | an extent in which the thread allocates from its heap; what the heap saved when it began |
//! | suspension | an extent of `outside_scope`: a frame that takes the thread out of all scopes |
//! | escapee | a block made inside a scope and still live at its end |
//! | local, remote | of the owning thread, of any other |
//! | backing | the allocator that serves what the arenas do not |
//! | step | what a program repeats: a scope that ended |
//!
//! # Layers
//!
//! The order of `mod` lines in `lib.rs` is the architecture: a file names only what stands above its own line, and
//! `tests/layering.rs` keeps that.
//!
//! ```text
//! 5  doors        scope global stats tensor_arena
//! 4  the thread   thread                            the slot, when a segment is claimed, teardown
//! 3  allocators   heap ledger | aligned arena pool  the global allocator's | the explicit pieces
//! 2  memory       huge_pages live_map marks spans segment gathered
//! 1  outside      sys sync                          the system's contract; the atomics
//! 0  arithmetic   align layout error zeroable       integers in, integers out
//! ```
//!
//! # Where things are
//!
//! ```text
//! reservation   | segment 0 | segment 1 | ... | segment 254 |          16 TiB of address space, no memory
//!
//! segment       | header, marks | live map | remote map | span tables | small area: 1/4 | span area |
//!
//! small area    |live|free|live live|  hole: pos ····· limit |live| free ... | never used
//! live map       1111 0000 1111 1111         1111111111111    1111  0000       0000
//!
//! span area     |used 5 units|free 6|used 9| never used: reads as zero
//! ```
//!
//! Blocks up to 8 KiB (at an alignment up to 4 KiB) are small; the others get spans. Maps and tables are committed in step
//! with the areas that they describe: first 1 MiB, then as much again as there is, at most 64 MiB at a time.
//!
//! # The theorem
//!
//! **Scopes are hints; the map is safety.** Rust hands the `Layout` to `dealloc`, so an allocator knows the exact extent
//! of every block without headers or size classes, and one bit for 16 bytes says whether memory may be used. Memory is
//! handed out only from a current hole, or where a block was freed before; a granule is taken for either only when its bit is
//! clear, and its bit is set as it is taken; freeing clears exactly the block's bits. Leaving a scope frees nothing: it says
//! where to look for the next hole, and the look reads the bits. So no sequence of scope calls, whether nested, forgotten,
//! dropped out of order or abandoned by a panic, can give one byte to two live blocks. A wrong hint, of a scope or of a
//! magazine, costs a little memory or time.
//!
//! | | invariant | kept in |
//! |---|---|---|
//! | H1 | A granule's bit is set exactly while it is in a live block (freed remotely and not folded counts as live) or in `[pos, limit)` of a lane's hole; those lie apart, and are empty while the thread recycles. So `alloc` writes no bit in a hole; the gap before a block of large alignment leaves the hole and is cleared | `heap`: `take`, `bump`, `bump_any`, `extend_hole`, `alloc_again`; `live_map` |
//! | H2 | Only the owner writes the live map; it takes granules only where the bits are clear after folding, and only of what was ever used, which ends at a line. Giving a hole up clears `[pos, limit)`, no more | `live_map`: `fold`, `next_run`, `run_starts`, `take_short`; `heap`: `grow`, `set_free`, `take`, `next_hole`, `alloc_again`, `give_up_hole` |
//! | H3 | A remote free touches the remote map alone, or a span's bit. Until it is told the block is live to everybody else, so it may be told late | `live_map::free_bits`, `gathered`, `spans::free_remote` |
//! | H4 | Freeing the block that ends at its lane's position moves the position back, unless the thread recycles; any other free clears the block's bits, all of them and no others. A bit already clear there is a double free | `heap`: `free_short`, `free_near`, `free_small`; `live_map`: `clear`, `clear_short`, `clear_anywhere` |
//! | H5 | Spans tile `[0, top)`: from each head its length leads to the next, and no two free ones are neighbours. Only the owner changes the tiling; a remote free sets one bit of a bitmap apart, then a flag, and each is folded once | `spans` |
//! | H6 | A segment has at most one owner, by one bit of an atomic bitmap (AcqRel). Maps, marks and tables live in the segment, so that a dead thread's escapees can be freed by anyone and the next owner carries on | `segment`; `heap`: `attach`, `detach` |
//! | H7 | An address inside the reservation is an arena's, any other the backing's. Frees and reallocations are routed by the address alone, never by whether a scope is open. What the backing sees is a pure function of the caller's layout | `global`; `segment::contains` |
//! | H8 | (policy, not safety) Frames are a stack; each has a serial that its thread does not use again, and a guard acts only while its frame is there with its serial | `heap`: `push`, `find`, `leave_slow` |
//!
//! Each owner of memory has a `debug_check` that asserts its numbers. It runs in tests only: a panic inside `GlobalAlloc`
//! would be undefined behaviour.
//!
//! # The life of one allocation
//!
//! `let text = format!("step {n}");` in a scope, and later its drop:
//!
//! 1. `StepAlloc::alloc` reads the thread's slot (a `const` thread-local without a destructor) and calls `Heap::bump`: the
//!    size says which lane, and the position and the size, in whole granules or lines, are compared with the end of its
//!    hole. It fits: the new position is stored, and that is all. No bit changes, for the hole's bits were set when it was
//!    taken, and no gap is left, for each lane's holes begin at its own grain.
//! 2. Whether the thread is in a scope is looked at first. Outside the request goes to the backing as it is;
//!    from `simd_threshold` bytes on with an alignment of 64, from `large_threshold` bytes on to a span.
//! 3. Where it does not fit, `alloc_slow` looks for the next hole: the free granules right behind this one; the next free
//!    run from the search mark on; the area from its start, if that is paid for; memory never used, 64 KiB at a time.
//!    On one in 32 of these slow paths the clock is read, and free pages that no step has used for some time go back to the system.
//! 4. The string grows: `realloc` lengthens the block at the position, or where the granules behind it are free; else it
//!    moves.
//! 5. The drop calls `dealloc`. The block ends at the position: the position moves back. Or its bits are cleared, in at
//!    most two words up to 1 KiB. Another thread drops it: it sets the bits of the remote map (Release), together with
//!    those of what it frees beside it in the same 8 KiB; the owner takes them (Acquire) before it uses that memory again.
//! 6. The scope ends. If both positions are where they were, nothing is left to do. Else a lane's hole is given up and taken again
//!    where the scope began, cut at the first live granule: the next step walks the same warm memory. An escapee keeps its
//!    own bits set, so the walk goes round it; when it is freed its granules are as free as any.
//!
//! # What leaving does
//!
//! It pops the frame and those above it (of scopes nested in it, and of forgotten ones), and counts a step. Spans need
//! nothing: each is free when its block is freed. Where the scope used less than a hole, and what escaped stands at its
//! beginning, the position goes back behind the escapees and the bits of what the scope used are looked at and set. Else
//! the hole is given up and taken anew where the scope began: 64 KiB in each lane, 64 words each time, whatever was
//! allocated. `benches/counts` has the count of instructions (`enter+leave`, and `enter+leave-used` with two escapees).
//!
//! If escapees have filled the memory near the beginning so densely that the scope's walk was more than eight times what
//! it allocated, the beginning moves on to where the scope is now. So the walk of a step is bounded by what it allocates,
//! however many escapees there are; what is left (the hole taken anew, and colder memory) shows in the rows `escapee-*` of
//! `benches/peers`.
//!
//! A suspension is a closure that is still running. If a scope around it is left inside it, the scope ends and the
//! suspension stays until its closure returns.
//!
//! # What recycling does
//!
//! A step that frees what it made wants its next blocks side by side, and the hole gives it that. Where one long scope
//! replaces blocks at random, a cache or a tree that is edited, each block goes to another hole instead: a search, cold memory,
//! and what fits where is left to chance. So there a thread *recycles*: of each block up to 1 KiB that it frees it remembers, in
//! the magazine of its size, where it was, and the next request of that size looks there first. Mostly the bits are clear
//! still, and the block is made there. If somebody has the memory by then, another place is found as ever.
//!
//! It begins within one scope, when 512 holes in turn were shorter than 1 KiB, or when two looks in turn find that some
//! of the area is free; it ends when a scope is left that made anything, a counting scope is entered, or one request in
//! five finds nothing for long. Such a thread then rests for as long as 16,384 holes take. Magazines hold no memory but their
//! own: at most 20 of 1 KiB are in use, in the segment's head. Where pages go back all is forgotten, for what is made
//! where a block was counts as used already.
//!
//! While it recycles the area is masked (`len` is 0), so that a free takes the slow path, which remembers the block; the
//! inline path is as it was and pays nothing. And holes are empty: a slow call takes what its block needs, and a free moves no
//! position. So all bits that are set are blocks', and a free that looks at the bits need not look at holes as well.
//!
//! # What it costs
//!
//! | what | costs |
//! |---|---|
//! | maps | two bits for 16 bytes: 1/64 of the small area in use |
//! | span tables | 36 KiB for 4 MiB |
//! | a block below 64 bytes | its size rounded up to 16 |
//! | a block from 64 bytes to 8 KiB, in a scope | rounded up to 64 |
//! | a span | rounded up to 1 KiB |
//! | a thread that never opens a scope nor makes a large block | its slot: 64 frames of 64 bytes and about 1 KiB beside them; 5 KiB that the system copies when a thread begins |
//! | a thread with an arena | its head (a page or more touched) and what it uses |
//! | a program with a scope open | the pages of its largest step; they go back when no step has used them for a while |
//!
//! # Where the code differs from the first design
//!
//! - **Blocks from 64 bytes on occupy whole lines, and have a hole of their own.** They were to begin at a line in the one
//!   hole there was. Now neither kind needs a gap before it, and frees in the order against that of making meet the
//!   position; the gap behind a block of lines was seldom of use to anyone. And small escapees, which are most, do not break
//!   up the stretch that a step's other blocks walk: with one in the middle of each step the walk grew with their number.
//! - **Spans have units of 1 KiB, and the small area ends at 8 KiB.** They were to be of 4 KiB and "tens of KiB". A
//!   recorded random forest, whose live blocks are mostly of 14 KiB, needed 1.32 times its live peak with a small area up to
//!   32 KiB: next fit is too loose for blocks of that size. With first fit over units of 1 KiB it needs 1.09.
//! - **Blocks of more than 1 KiB that do not fit the hole are placed by a search of their own**, with its own mark, so that
//!   one of them does not cost the small ones their hole.
//! - **A look at the whole area is paid for by having allocated a thirty-second of it** since the last, and not made when
//!   more than four fifths are live, unless the area cannot grow.
//! - **Each lane, and the long blocks, pay for their own looks.** With one purse a lane's look made the other grow: blocks
//!   of 16 to 128 bytes replaced at random in one scope held 2.3 times what lives, so 2.0. A word in which no run is long
//!   enough for the block is passed by in one look.
//! - **A look at the whole area is charged to the scope's walk** as the walk that it is. Not charged, a step at the area's
//!   end found room far below, went back to the end on leaving, and the next step grew the area: without end where whole
//!   steps escape and other threads free them.
//! - **Entering copies two positions, and computes nothing.** What a scope walked is worked out on leaving, if at all, from
//!   what its frame was given by the first slow path inside it; nothing changes before. Entering and leaving so fell from 91
//!   instructions to 61, and freeing a small block that is not the last from 53 to 40, straight through: `cargo bench
//!   --bench counts`.
//! - **A free's bits come from a table**, and whether the block is short is asked together with whether it reaches into
//!   the next word. A shift by a variable count is three steps of the processor, and there were two. A batch of 1,000 takes
//!   4 % less time beside the same peers; with the second shift left, one instruction more, it took no less.
//! - **The thread's slot is reached by a closure that returns its address.** `LocalKey::with` is not promised to be inlined;
//!   with the whole of `alloc` in its closure it was a call in some programs, arguments in memory: 94 instructions for a
//!   pair in a scope where 61 do.
//! - **Outside a scope a request of common size and alignment goes to the backing in one jump.** `System` looks at the alignment as
//!   well, and for uncommon ones has a frame; with the same look before the call its own is gone, and only the uncommon call a
//!   function. With the arguments where the call had them a pair is 29 instructions, not 35 (`System` alone: 10), and takes 1.09
//!   to 1.16 times `System`'s time on an AMD EPYC (1.22 before), 11 interleaved runs of `benches/peers`.
//! - **The next hole of short blocks is searched in one pass.** Giving a hole up, walking, taking and accounting were 570
//!   instructions, each step right for any block. Short blocks whose next hole is within 64 words get it from one loop over
//!   the words, in about 250: a block replaced at random came from 217 instructions to 179, by `cargo bench --bench counts`
//!   as it was then, before such blocks were kept. A differential test holds both searches to the same places, debts and marks.
//! - **A hole in memory used before is 16 words of bits at first**, and lengthened when it is used up; words between a
//!   range's ends are set and cleared whole. A step that leaves one small block between others takes its hole anew, and
//!   with 64 words, each cut out by its own mask, that was 4,600 of its 5,800 instructions: 2,100 now.
//! - **Blocks replaced at random are made where one of their size was freed**; see above. Such a program misses the cache at
//!   each block, and what counts is how many misses are on their way at once: a processor looks some 250 instructions
//!   ahead, and no further than a branch that it mispredicted. At first freed blocks were kept with all their bits, 32 of each
//!   size, each looked up in its magazine lest it be kept twice: 350 instructions for a free and what replaces it, the
//!   rare misses with them. Now a magazine is a hint, checked by the bits alone, so it needs no look for doubles, may be long,
//!   holds no memory, and no branch depends on where a block is or how long. Blocks of 16 to 1,024 bytes hold 1.18 times
//!   what lives (1.21 before; 1.37 without any of this), of 16 to 128 and to 32 bytes 1.45 and 1.41 as before.
//! - **While a thread recycles its holes are empty.** A free looked at the last block and both holes, lest a second free clear a
//!   hole's bits: 16 instructions, and the registers that they took had to be saved. Now every set bit is a block's, and what
//!   the others need is ordered so that nothing is saved. Row `replace-in-scope` of `cargo bench --bench counts`: 278 with blocks
//!   kept, 199 with hints, 177 now; the rows `replace-*` of `benches/peers` take 0.75 to 0.99 of the time, medians of 9 and 11
//!   interleaved runs on an AMD EPYC, by size and by what else uses the machine's memory. A scope that ends while its thread
//!   recycles takes its hole anew, or each step would begin where the last block of the one before it was.
//! - **Requests served by a magazine pay for huge pages as well**, 64 of them as much as a slow call: what is replaced in
//!   place makes few of those, and is what wants huge pages most.
//! - **A small area of more than 32 MiB grows by huge pages**, asked for once: what goes back comes again in small ones, and
//!   what came along with the last, a sixteenth of what is used at most, goes back with other free memory. Where 200,000
//!   blocks of 16 to 1,024 bytes are replaced thirty times, joining took until the eleventh round, for each huge page is
//!   memory that the machine must find anew: the first six took 1.44 times as long as the last, and take 1.02 times now
//!   (medians of nine interleaved runs on an AMD EPYC). The whole takes 0.95 to 1.00 of the time, in 1.18 times what lives
//!   instead of 1.16.
//! - **Frees of another thread's blocks are gathered by word.** Each was an atomic change of a word or two of the owner's
//!   remote map, more than half of the time of a consumer that drops what a producer made. Now the first and those that follow
//!   in the same 1 KiB are one change, and all but the first find neither segment nor maps anew: 342 instructions became
//!   230 (`cargo bench --bench counts`, row remote-free), and producer and consumer take 0.95 times rpmalloc's time, where
//!   they took 1.13. What is gathered is told when the thread frees elsewhere, asks for figures or ends. While the owner
//!   counts, nothing is gathered, so that reports stay exact.
//! - **Then by cache line of the maps, for each lane.** With blocks of 16 to 1,024 bytes every other free left its word, and
//!   one in ten went from lines to grains and back: 202 instructions a block on the side of the consumer, for whom the
//!   producer waited. Now eight words are told together, no branch depends on where a word ends, and the lanes are apart.
//!   Of mixed sizes 274 instructions became 208, of 64 bytes 222 became 234 (`cargo bench --bench counts`, remote-free-mixed
//!   and remote-free, with the start of a thread), and producer and consumer take 0.78 to 0.80 times the time (medians of
//!   21 to 31 interleaved runs, three times, on an AMD EPYC). A thread that frees nothing more holds 16 KiB at most.
//! - **What drifting sizes leave behind goes back within the step.** A step whose sizes drift from small to large, or back,
//!   held both areas until the clock saw it: 3.2 times what lives, so 2.1. Whenever a sixteenth of what is held came into
//!   use that had been clean, what is held is compared with what lives, and free pages go back if no more than half of
//!   it lives. Once an interval, or as often as it takes within one scope: steps that use one area and then the other keep
//!   both, and fault no more than before. A large block has it looked at after it was made or grew: before, a program with one
//!   such block a step had nothing live then, and its second step faulted all of it in again.
//! - **What lived long goes back too when it is freed.** A chunk that aged beside live blocks counted as clean, and its
//!   blocks' pages stayed for good: 200 MiB of small blocks dropped after some seconds of steps were 210 MiB ever after, are 5
//!   within ten seconds. Now each chunk has a note which of its pages stayed, and those are looked at in one interval of eight.
//! - **Small pages are joined to huge ones, where all of them are in memory.** Huge pages were to be for fresh spans that fill
//!   them only, and asked for so they still are, from 4 MiB on. Now an area's ranges of 2 MiB are also looked at when much was
//!   done in it since the last look, and full ones are joined (Linux's `MADV_COLLAPSE`), one for each 4 MiB of large blocks
//!   made, say: nothing more is held, to a page, and nobody waits for many. On an AMD EPYC, medians of five to nine interleaved
//!   runs: the step of medium tensors takes 8 to 10 % less, two recorded programs of candle 10 to 25 and 2 to 14 %, blocks of 16
//!   to 1,024 and 128 bytes replaced at random 8 to 11 and 4 to 9 % (of 16 to 32: no less), batches the same. A range takes 0.3
//!   to 1 ms, once; on a virtual machine whose host must find the memory first up to 5. What goes back of a joined range Linux
//!   would keep until memory runs short, all 400 MiB of 400 in a program of ours that left a page in each range; advice that
//!   splits it (`MADV_COLD`) frees it at once.
//! - **The maxima over free spans are looked for anew only where the largest has gone.** Where one length comes and one goes
//!   the longer is written first. A span made and freed among a hundred others was 1,561 instructions, is 964.
//! - **The first scope of a thread goes back too.** It opens before there is a segment; its frame names no position, and
//!   the lanes remember where their first holes began. Without that the second step touched new pages.
//! - **A scope's beginning moves on** when its walk is more than eight times what it allocated; see above. Without that
//!   each step would walk past the escapees of all steps before it.
//! - **Frames are in the thread's static memory**, not in the segment: scopes nest and end alike in a thread that has no
//!   segment, and opening one touches no page of an arena. Deeper than 64, scopes run in the mark of the last frame.
//! - **The reservation is one packed word**, base and number and size of segments together, set by one compare and
//!   exchange. With base and size apart two threads that reserved at once could have mixed theirs. The membership test
//!   reads a copy of both, which every thread writes with the same values before it claims a segment.
//! - **Suspensions are never cut short.** Leaving a scope was to pop every frame above it. A suspension is not a mark but
//!   a closure that still runs, and what it allocates must stay outside until it ends.
//! - **Figures read the maps as they stand.** `stats` was to see what owners publish; small blocks of other threads are
//!   counted in their maps, less what the remote maps say, so they are exact but for holes, and nobody pays to keep a
//!   count. Only a look at all of it costs time, a bit for 16 bytes.
//! - **Orphan segments are reclaimed by whoever frees into them.** A thread may end with live blocks in its segment and no
//!   other may ever claim it. Who frees the first MiB there, and each MiB after it, claims the segment for a moment, gives
//!   the pages of its free memory back, and releases it.
//!
//! # What was tried and is not here
//!
//! Each was measured beside the code as it is, in interleaved runs, and gave nothing that the noise did not cover, or less
//! than it cost.
//!
//! - Clearing bits by bytes, so that frees of neighbours do not wait for each other's word: no faster. What bounds a batch
//!   of small blocks is the number of instructions, some 40 for a free that is not the last block's.
//! - Both lanes side by side, small blocks' holes cut from that of lines, 64 bytes to 64 KiB at a time. Simulated by a bare
//!   bump for the graph of `Rc`, on an AMD EPYC: 61 to 68 ns a node (81 at 4 KiB) where two streams apart take 58, and one
//!   stream without lines 38. It is the alignment of blocks from 64 bytes on that costs there, not the distance.
//! - Growing at other shares than four fifths live. For 200,000 blocks of 16 to 1,024, 128 and 32 bytes replaced at random
//!   three quarters held 1.46, 1.78, 1.81 times what lives instead of 1.37, 1.72, 1.68, for 10, 2 and 0 % of the time less;
//!   six sevenths 1.28, 1.56, 1.57 for 40, 15 and 8 % more (medians of seven interleaved runs).
//! - Lines from 128 or 256 bytes on instead of 64: 1.61 and 1.51 times what lives for blocks of 16 to 128 bytes instead of
//!   1.78 (at three quarters), the same time. But then a vector of 16 floats no longer begins at a cache line, which is promised.
//! - The next hole's memory fetched ahead, by a write to it or an instruction: slower by 10 ns in the rows `replace-*`.
//! - A line fetched ahead at each bump, 512 to 2,048 bytes from the position, to read or to write: batches of 100,000 took 0
//!   to 15 % less, graphs of `Rc` 3 % more, all within the spread.
//! - Clearing the bits of a freed block on the inline path too without a branch where it reaches into a second word: eleven
//!   instructions more, batches 4 to 20 % slower.
//! - Best fit, worst fit, long-lived buffers from the other end, and whole free spans before parts of one, for the step of
//!   large tensors: simulated on its sizes, first and best fit end at 331 MiB alike where 279 live at the peak, the others
//!   higher. Only who knows what comes next packs it better.
//! - Fewer looks at the whole area while a thread recycles: no less time, more memory.
//! - Keeping the bits of blocks freed one behind the other set until the run ends, one run a lane: a free in order is then two
//!   compares and a store. Batches freed in order took 7 % less, at random 30 % more, a graph of `Rc` 15 % more: most runs
//!   are of one block, and that is cleared one free later, by a mask that waits for what the free before wrote.
//! - One compare for the last block and for the hole: three instructions less, but two registers more, which cost a frame.
//! - A slot of zeros only, so that the system has nothing to copy when a thread begins: glibc then writes zeros instead. A
//!   thousand idle threads held the same 17.7 KiB each.
//! - In gathering frees of others: the next lines of both maps fetched ahead; no look at the live map before the word is told.
//!   The same time.
//! - Counting what is free, before a look at the area, only until there is enough: a third less of that count, the same time.
//! - Huge pages for small areas from 4 MiB on, before they were joined at all, on an AMD EPYC (medians of seven interleaved
//!   runs, whose spread was as large): 12 and 5 % less where blocks of 16 to 1,024 and 128 bytes are replaced, 0, 7 and 9 %
//!   more in batches of 100,000.
//! - Huge pages for whatever the span area commits beyond its first 8 MiB, on an AMD EPYC: the step of medium tensors took 10 %
//!   less, two recorded programs of candle 12 and 21 % less, the other four as long as before. But the last of the huge pages is
//!   seldom full: the six programs held 1.073 times what lives instead of 1.060. Not kept for that.
//!
//! # What is not seen
//!
//! Freeing twice is undefined behaviour, in safe Rust impossible; where the maps show it the program is ended, with a static
//! message. They cannot show it when the memory belongs to another block by then, nor in three cases where the inline path
//! does not look: a block of at most 1 KiB that another thread freed and its own thread frees again before that is told and
//! folded in; one whose end is its lane's position, because the block behind it was freed in between; and one whose memory is
//! in the other lane's hole. What the backing made is the backing's to see.
//!
//! # Sources
//!
//! - The seed: the C arena API of the aicraft project, with one thread-local arena per step and no safe escapes.
//! - Wilson, Johnstone, Neely, Boles, *Dynamic Storage Allocation: A Survey and Critical Review* (1995): address-ordered
//!   first fit, and why fragmentation is a matter of policy.
//! - Blackburn, McKinley, *Immix: A Mark-Region Garbage Collector* (2008): bumping into holes between survivors.
//! - Leijen, Zorn, de Moura, *Mimalloc: Free List Sharding in Action* (2019), and snmalloc (Liétar et al., 2019): a list
//!   of remote frees apart from the local ones. The remote map is that without lists.
//! - jemalloc (Evans, 2006): decay of unused pages by time.
//! - bumpalo, bump-scope: what an arena with lifetimes is like, and arithmetic apart from memory.
//! - ClickHouse, blink-alloc, context-allocator: the other ways to give a global allocator an arena, and what they lack.
